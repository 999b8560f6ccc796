"P1 as a whole: what needs what, who may see what, one encoder for all label fractions, and a chain through run()."
import numpy as np
import pytest

from skinrepro.core import UserError, sha256_file
from skinrepro.data.lesions import LesionSet, manifest
from skinrepro.data.phantom import phantom
from skinrepro.data.splits import groups, shared
from skinrepro.papers import label_fraction as lf
from skinrepro.papers.label_fraction import (ALPHAS, ARMS, EXTRA, MAIN, MAPS, PRESETS, PROTOCOLS, STAGES, Config, arms, by_part, classifier_of, cut, divide, encoder_of, examples, excluded, has_mask,
                                             imagenet_file, imagenet_state, inputs, judge, labelled, lesion_masks, run, samples, shrunk, split_of)

MAP = dict(iba_images=20, iba_gan_samples=4, iba_gan_epochs=1, iba_steps=2, iba_noise=2)
TINY = dict(iterations=6, watches=2, ssl_epochs=1, source_images=80, source_iterations=4, queue=32, embedded=60)


@pytest.fixture(scope='module')
def ds(): return phantom(240)


def tiny(arm='moco_10', protocol='strict', **more): return arms('smoke', protocol)[arm].but(**{**TINY, **more})


def named(result): return {m['name']: m for m in result['metrics']}


@pytest.fixture(scope='module')
def chain(ds, tmp_path_factory):
    "Both encoders, and a classifier from each and from none."
    d = tmp_path_factory.mktemp('chain')
    out = dict(folder=d, moco=run(encoder_of(tiny()), ds, d/'moco'), source=run(encoder_of(tiny('source_10')), ds, d/'source'))
    for s in ('moco', 'source', 'scratch'): out[s, 10] = run(tiny(f'{s}_10'), ds, d/f'{s}_10', dict(encoder=d/s))
    out['maps'] = run(tiny('saliency_scratch_100', **MAP), ds, d/'maps', dict(classifier=d/'scratch_10'))
    return out


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_every_arm_is_a_config_and_names_what_it_needs(preset, protocol):
    made = arms(preset, protocol)
    known = [*ARMS, *EXTRA.get(protocol, {})]
    assert list(made) == [a for a in known if preset != 'paper' or not a.startswith('efficientnet_b4')] and set(MAIN) <= set(made)
    for name, cfg in made.items():
        assert cfg.arm == name and cfg.stage == 'evaluate' and name.endswith(f'_{cfg.alpha}')
        for need in inputs(cfg).values():
            assert need.stage in STAGES and need.arm in made
            assert made[need.arm] == need if cfg.judged == 'maps' else need.stage != 'evaluate' and not inputs(need) and need.backbone == cfg.backbone
            assert need.seed == cfg.seed and need.dataset == cfg.dataset


def test_protocols_share_their_runs():
    paper, strict = (arms('small', p) for p in PROTOCOLS)
    assert all(paper[a] == strict[a] for a in paper) and set(strict) - set(paper) == {f'scratch_long_{a}' for a in ALPHAS}


def test_arms_are_those_of_the_published_numbers():
    from skinrepro.companion.claims import load_claims, terms
    from skinrepro.companion.published import load_published
    assert {a for a in load_published('label_fraction').arm.unique() if a} <= set(ARMS)
    assert {a for c in load_claims('label_fraction').contrast if c for _, a, _, _ in terms(c)} <= set(ARMS)


def test_claims_ask_for_what_records_hold(chain):
    "Every metric that a claim names, of an arm of that kind; recall_nv and the like for whichever classes there are."
    from skinrepro.companion.claims import load_claims, terms
    for c in load_claims('label_fraction').to_dict('records'):
        for _, arm, metric, _ in terms(c['contrast']) if c['contrast'] else (): assert (metric or c['metric']) in named(chain['maps' if arm.startswith('saliency') else ('moco', 10)]), c['id']


def test_one_encoder_a_trial():
    made = arms('small')
    for s in ('moco', 'source'):
        assert len({encoder_of(made[f'{s}_{a}']) for a in ALPHAS}) == 1
        assert len({encoder_of(made[f'{s}_10'].but(seed=k)) for k in range(3)}) == 3
    assert encoder_of(made['moco_10'].but(iterations=1, lr=1., views='byol')) == encoder_of(made['moco_50'])
    assert encoder_of(made['moco_10'].but(queue=9)) != encoder_of(made['moco_10'])
    assert encoder_of(made['source_10'].but(queue=9, split_seed=5)) == encoder_of(made['source_10'])


def test_source_is_never_called_imagenet():
    assert {c.weights for c in arms('small').values() if c.strategy == 'source'} == {'textures'}
    assert {c.weights for c in arms('small').values() if c.strategy in ('moco', 'scratch')} == {'none'}
    assert encoder_of(arms('small')['source_10']).weights == 'textures'


@pytest.mark.parametrize('seed', range(4))
def test_sets_share_no_group_and_keep_the_class_shares(seed):
    s = cut(phantom(600))
    split = divide(s, seed=seed)
    for a, b in (('train', 'validation'), ('train', 'test'), ('validation', 'test')):
        for group in ('patient', 'lesion', 'image'): assert not len(shared(s, split.rows[a], split.rows[b], group))
    assert sorted(np.concatenate(list(split.rows.values()))) == list(range(len(s)))
    total = np.bincount(s.y, minlength=len(s.classes))
    for k, q in zip(split.rows, (.6, .2, .2)):
        assert abs(len(split.rows[k])/len(s) - q) < .015
        assert (abs(np.bincount(s.y[split.rows[k]], minlength=len(total)) - q*total) <= np.maximum(3, .04*total)).all()
    assert divide(s, seed=seed).hash == split.hash and divide(s, seed=seed + 1).hash != split.hash


def test_patients_unknown_lesions_stand_in():
    d = LesionSet('x', manifest(dict(image_id=[str(i) for i in range(60)], label=['a', 'b']*30, lesion_id=[f'l{i//3}' for i in range(60)])), ('a', 'b'))
    split = divide(d)
    assert not len(shared(d, split.rows['train'], split.rows['test'], 'lesion'))


def test_bad_shares_and_too_few_groups():
    d = LesionSet('x', manifest(dict(image_id=['1', '2'], label=['a', 'a'])), ('a',))
    with pytest.raises(UserError, match='add up to 1'): divide(d, (.5, .2, .2))
    with pytest.raises(UserError, match='three sets need three'): divide(d)


def test_label_fractions_are_nested_and_differ_by_seed(ds):
    s = samples(tiny(), ds)
    _, split = split_of(tiny(), ds)
    for seed in (0, 1):
        sets = [set(labelled(tiny(f'moco_{a}', seed=seed), s, split)) for a in ALPHAS]
        assert all(a <= b for a, b in zip(sets, sets[1:])) and sets[0] < sets[4] < sets[9] == set(split.rows['train'])
    assert set(labelled(tiny(seed=1), s, split)) != set(labelled(tiny(), s, split))


def test_pretraining_sees_all_of_training_and_nothing_else(ds):
    for p in PROTOCOLS:
        used, split = split_of(tiny(protocol=p), ds)
        assert np.array_equal(used, split.rows['train'])
    assert set(split_of(tiny(transductive=True), ds)[0]) > set(split.rows['test'])


def test_crops_follow_the_boxes(ds):
    s = cut(ds)
    assert len(s) == ds.manifest.box.map(len).sum() and cut(s) is s and (s.manifest.box.map(len) == 0).all()
    assert s.images(16).shape == (len(s), 16, 16, 3) and s.hash != ds.hash
    inside = np.mean([s.render.masks(32, i, i + 1).mean() for i in range(20)]); whole = ds.render.masks(32, 0, 20).mean()
    assert inside > 1.5*whole # a crop is mostly lesion
    k = int(np.flatnonzero(ds.manifest.box.map(len) == 2)[0]); twins = np.flatnonzero(s.render.rows == k)
    assert len(twins) == 2 and s.manifest.image_id[twins[1]] == s.manifest.image_id[twins[0]] + '#2' and len(set(s.manifest.patient_id[twins])) == 1


def test_a_crop_is_the_box(ds):
    x = np.zeros((1, 40, 40, 3), np.uint8); x[:, 10:20, 20:40] = 200
    d = LesionSet('x', manifest(dict(image_id=['a'], label=['c'], box=[((.5, .25, 1., .5),)])), ('c',), render=lambda size, i=0, j=None: x, render_key='t')
    assert (cut(d).render(8)[0] == 200).all()
    with pytest.raises(UserError, match='correct the box'): cut(LesionSet('x', manifest(dict(image_id=['a'], label=['c'], box=[((.5, .5, .2, .9),)])), ('c',), render=d.render, render_key='t'))


def test_whole_pictures_where_there_are_no_boxes():
    d = LesionSet('x', manifest(dict(image_id=['a'], label=['c'])), ('c',))
    assert cut(d) is d and samples(tiny(crop=False), phantom(60)).manifest.box.map(len).all()


def test_exclusion_list_leaves_the_test_set_only(ds, tmp_path):
    s = samples(tiny(), ds)
    _, split = split_of(tiny(), ds)
    out = [s.manifest.image_id[i].split('#')[0] for i in (split.rows['test'][0], split.rows['train'][0])]
    f = tmp_path/'out.txt'; f.write_text('\n'.join(out) + '\n# a comment\n')
    _, less = split_of(tiny(exclude=str(f)), ds)
    assert np.array_equal(less.rows['train'], split.rows['train']) and len(less.rows['test']) < len(split.rows['test']) and less.hash != split.hash
    assert not set(excluded(f, s)) & set(less.ids[less.rows['test']])
    f.write_text('nobody')
    with pytest.raises(UserError, match="names image 'nobody'"): split_of(tiny(exclude=str(f)), ds)
    with pytest.raises(UserError, match='is no file'): split_of(tiny(exclude='none.txt'), ds)


def test_scores_are_sklearns():
    from sklearn.metrics import precision_score, recall_score
    g = np.random.default_rng(0); y, pred = g.integers(0, 4, 80), g.integers(0, 3, 80) # class 3 is never predicted
    m = {k['name']: k['value'] for k in judge(y, pred, ['a', 'b', 'c', 'd'])}
    for k, f in (('precision', precision_score), ('recall', recall_score)):
        assert np.isclose(m[f'macro_{k}'], f(y, pred, average='macro', zero_division=0))
    assert m['precision_d'] == 0 and m['never_predicted'] == 1 and np.isclose(m['top_predicted_share'], np.bincount(pred).max()/80)


def test_chain_holds_what_a_record_needs(chain):
    need = {'accuracy', 'balanced_accuracy', 'macro_f1', 'majority_share', 'macro_precision', 'macro_recall', 'top_predicted_share', 'knn_accuracy', 'silhouette', 'trustworthiness', 'best_accuracy', 'val_accuracy', 'steps'}
    for s in ('moco', 'source', 'scratch'):
        r = chain[s, 10]; m = named(r)
        assert need <= set(m) and len(m) == len(r['metrics']) and all(np.isfinite(v['value']) and v['n'] > 0 and v['split'] for v in r['metrics'])
        assert {k.split('_')[0] for k in m} >= {'recall', 'precision', 'f1'} and m['accuracy']['low'] <= m['accuracy']['value'] <= m['accuracy']['high']
        assert np.isclose((r['figures']['y'] == r['figures']['pred']).mean(), m['accuracy']['value']) and m['steps']['value'] == TINY['iterations']
        assert r['artefacts'] == ['classifier.pt'] and r['data']['counts']['labelled'] < r['data']['counts']['train']
    assert len({r['data']['split'] for r in (chain[s, 10] for s in ('moco', 'source', 'scratch'))}) == 1


def test_figures_fit_beside_a_record(chain, tmp_path):
    for k in ('moco', 'source', ('moco', 10)):
        np.savez_compressed(tmp_path/'f.npz', **chain[k]['figures'])
        assert (tmp_path/'f.npz').stat().st_size <= 300_000


def test_fine_tuning_starts_from_the_encoder(chain):
    "Before the first step the three strategies differ in the encoder only; the head is the same."
    import torch
    nets = {s: lf.load_net(tiny(f'{s}_10'), chain['folder']/s) for s in ('moco', 'source', 'scratch')}
    w = {s: next(p for p in n.parameters() if p.ndim == 4) for s, n in nets.items()}
    assert not torch.equal(w['moco'], w['scratch']) and not torch.equal(w['source'], w['scratch']) and not torch.equal(w['moco'], w['source'])
    heads = [lf.classifier(n, 8, 0).projector.weight for n in nets.values()]
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[0], heads[2])


def test_missing_encoder_is_said(ds):
    with pytest.raises(UserError, match='make it with `skinrepro run`'): run(tiny(), ds)


def test_equal_runs_are_equal_and_interrupted_ones_resume(ds, tmp_path, monkeypatch):
    from skinrepro.methods.train import Checkpoint
    cfg = tiny('scratch_10')
    once = run(cfg, ds, tmp_path/'once')
    keep = Checkpoint.after_batch
    def stop(self): # saved at step 3, killed at step 4
        if self.learn.step == 3: self.save()
        if self.learn.step == 4: raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, 'after_batch', stop)
    with pytest.raises(KeyboardInterrupt): run(cfg, ds, tmp_path/'twice')
    monkeypatch.setattr(Checkpoint, 'after_batch', keep)
    twice = run(cfg, ds, tmp_path/'twice')
    assert once['metrics'] == twice['metrics'] and sha256_file(tmp_path/'once'/'classifier.pt') == sha256_file(tmp_path/'twice'/'classifier.pt')


def test_long_scratch_takes_pretrainings_steps(ds):
    used, _ = split_of(tiny(), ds)
    cfg = tiny('scratch_long_10')
    r = run(cfg, ds)
    assert named(r)['steps']['value'] == TINY['iterations'] + lf.ssl_steps(cfg, len(used)) > TINY['iterations']


def test_head_only_leaves_the_encoder(ds, tmp_path):
    import torch
    from skinrepro.methods.train import load_state
    cfg = tiny('scratch_100', tuned='head', iterations=2, embedded=0)
    run(cfg, ds, tmp_path)
    start, end = lf.load_net(cfg).state_dict(), load_state(tmp_path/'classifier.pt')
    assert all(torch.equal(v, end[f'encoder.{k}']) for k, v in start.items())


def test_imagenet_weights_absent_or_wrong(ds, tmp_path, monkeypatch):
    import torch
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    cfg = arms('smoke')['imagenet_10'].but(**TINY, backbone='resnet18')
    with pytest.raises(UserError, match='^weights absent: ') as e: run(cfg, ds)
    assert str(tmp_path) not in str(e.value)
    (tmp_path/'checkpoints').mkdir(); (tmp_path/'checkpoints'/imagenet_file('resnet18')).write_bytes(b'not weights')
    with pytest.raises(UserError, match='another content'): run(cfg, ds)
    with pytest.raises(UserError, match='weights absent'): imagenet_file('test_efficientnet')
    assert imagenet_file('efficientnet_b4').startswith('efficientnet_b4')


def test_imagenet_weights_are_taken_where_they_lie(ds, tmp_path, monkeypatch):
    "A file whose name holds its sha256, as torchvision's do."
    import torch, torchvision
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path/'w.pth')
    name = f"resnet18-{sha256_file(tmp_path/'w.pth')[:8]}.pth"; (tmp_path/'w.pth').rename(tmp_path/name)
    monkeypatch.setattr(lf, 'imagenet_file', lambda backbone: name)
    state, file, sha = imagenet_state('resnet18', [tmp_path])
    monkeypatch.setattr(lf, 'imagenet_state', lambda backbone: (state, file, sha))
    net = lf.load_net(arms('smoke')['imagenet_10'].but(backbone='resnet18'))
    assert torch.equal(net.conv1.weight, state['conv1.weight']) and file == name


def test_queue_guard_and_bad_values(ds):
    with pytest.raises(UserError, match='more than half'): run(encoder_of(tiny(queue=5000)), ds)
    with pytest.raises(UserError, match='no percentage'): split_of(tiny(alpha=0), ds)
    for bad in (dict(strategy='simclr'), dict(weights='imagnet'), dict(tuned='last'), dict(apha=3)):
        with pytest.raises(UserError): Config().but(**bad)
    with pytest.raises(UserError, match="unknown preset"): arms('tiny')


def test_key_network_draws_nothing(chain): assert named(chain['moco'])['key_random_layers']['value'] == 0


def test_maps_explain_the_classifier_that_was_judged(chain):
    for preset in PRESETS:
        made = arms(preset)
        for s in ('moco', 'scratch'):
            assert classifier_of(made[f'saliency_{s}_100']) == made[f'{s}_100'] == inputs(made[f'saliency_{s}_100'].but(iba_steps=1))['classifier']
    maps, whole = named(chain['maps']), named(chain['scratch', 10]) # the chain explains the classifier of scratch_10
    assert maps['accuracy']['value'] == whole['accuracy']['value'] == maps['accuracy_whole']['value']


def test_a_record_of_maps(chain):
    r, m = chain['maps'], named(chain['maps'])
    z, n = r['figures']['maps'], len(r['figures']['maps'])
    assert z.dtype == np.uint8 and z.shape[1] == len(MAPS) and max(z.shape[2:]) <= 32 and len(r['figures']['maps_y']) == n == m['insertion']['n'] and r['artefacts'] == []
    assert len(m) == len(r['metrics']) and all(np.isfinite(v['value']) and v['n'] > 0 for v in r['metrics'])
    for k in ('insertion', 'deletion', 'heat_inside', 'effective_heat_ratio', 'lesion_cover', 'p', 'p_noise'): assert 0 <= m[k]['value'] <= 1
    assert {f'{a}{k}' for a in ('', 'gradcam_', 'integrated_gradients_', 'random_') for k in ('insertion', 'deletion', 'effective_heat_ratio')} <= set(m)
    assert abs(m['random_heat_inside']['value'] - m['lesion_area']['value']) < .05 # a random map knows no lesion


def test_maps_resume(chain, ds, monkeypatch):
    "Killed at the second image: the first is not made again, and all are as before."
    d, cfg = chain['folder'], tiny('saliency_scratch_100', **MAP)
    keep, made = lf.explain_one, []
    def once(*a):
        if made: raise KeyboardInterrupt
        made.append(1); return keep(*a)
    monkeypatch.setattr(lf, 'explain_one', once)
    with pytest.raises(KeyboardInterrupt): run(cfg, ds, d/'twice', dict(classifier=d/'scratch_10'))
    monkeypatch.setattr(lf, 'explain_one', lambda *a: (made.append(1), keep(*a))[1])
    twice = run(cfg, ds, d/'twice', dict(classifier=d/'scratch_10'))
    assert twice['metrics'] == chain['maps']['metrics'] and np.array_equal(twice['figures']['maps'], chain['maps']['figures']['maps']) and len(made) == len(twice['figures']['maps'])


def test_examples_ask_no_network(ds):
    s = samples(tiny(), ds); _, split = split_of(tiny(), ds)
    rows = examples(s, split.rows['test'], 2)
    assert np.array_equal(rows, examples(s, split.rows['test'], 2)) and set(rows) <= set(split.rows['test'])
    assert not s.manifest.lesion_id.iloc[rows].duplicated().any() and np.bincount(s.y[rows]).max() <= 2 and (np.diff(s.y[rows]) >= 0).all()
    assert set(s.y[rows]) == set(s.y[split.rows['test']])


def test_masks_lie_as_the_pictures_do(ds, tmp_path):
    from PIL import Image
    s = samples(tiny(), ds)
    assert has_mask(s).all() and np.array_equal(lesion_masks(s, [3], 32)[0], s.render.masks(32, 3, 4)[0] > 0)
    half = np.zeros((40, 60), np.uint8); half[:, 30:] = 255
    Image.fromarray(half).save(tmp_path/'m.png'); Image.fromarray(np.stack([half]*3, 2)).save(tmp_path/'a.png')
    rows = dict(image_id=['a', 'b'], label=['c', 'c'], path=[str(tmp_path/'a.png')]*2, mask=[str(tmp_path/'m.png'), ''])
    files = LesionSet('x', manifest(rows), ('c',))
    assert has_mask(files).tolist() == [True, False] and np.array_equal(lesion_masks(files, [0], 8)[0], np.tile([False]*4 + [True]*4, (8, 1)))
    boxed = cut(LesionSet('x', manifest(dict(rows, box=[((0., 0., .5, 1.), (.5, 0., 1., 1.)), ()])), ('c',)))
    assert has_mask(boxed).tolist() == [True, True, False] and not lesion_masks(boxed, [0], 8).any() and lesion_masks(boxed, [1], 8).all()


def test_parts_of_pictures():
    "A network that looks at one corner: what is painted elsewhere cannot matter."
    import torch
    from torch import nn
    class Corner(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
        def forward(self, x): v = x[:, 0, :4, :4].mean((1, 2)); return torch.stack([v, -v], 1)
    g = np.random.default_rng(0); y = g.integers(0, 2, 40); x = np.full((40, 16, 16, 3), 120, np.uint8)
    x[:, :4, :4] = np.where(y, 20, 240)[:, None, None, None]; x[:, 8:, 8:] = 255 - x[:, :8, :8] # on average without colour
    corner = np.zeros((40, 16, 16), bool); corner[:, :4, :4] = True
    got = {m['name']: m['value'] for m in by_part(Corner(), x, y, np.arange(40), corner, 16)}
    assert got['accuracy_whole'] == got['accuracy_lesion_only'] == 1 and got['accuracy_surroundings_only'] < 1 and got['accuracy_elsewhere_only'] < 1
    same = {m['name']: m['value'] for m in by_part(Corner(), x, y, np.arange(40), np.full_like(corner, True), 16)}
    assert same['accuracy_lesion_only'] == same['accuracy_whole']


def test_small_maps_keep_their_order():
    h = np.arange(64*64.).reshape(64, 64); s = shrunk(h)
    assert s.shape == (32, 32) and s.min() == 0 and s.max() == 255 and (np.diff(s.astype(int), axis=0) > 0).all() and shrunk(np.ones((8, 8))).max() == 0


def test_maps_without_a_classifier_are_refused(ds):
    with pytest.raises(UserError, match="classifier of arm 'moco_100'.*make it with"): run(tiny('saliency_moco_100', **MAP), ds)
