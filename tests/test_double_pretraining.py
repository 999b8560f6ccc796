"P4 as a whole: splits by the released rule, the two phases and their finder, what needs what, and a chain from source to test."
import math

import numpy as np
import pandas as pd
import pytest

from skinrepro.core import UserError, rng
from skinrepro.data.phantom import phantom
from skinrepro.data.splits import groups, shared
from skinrepro.papers.double_pretraining import (ARMS, CLASSES, FILES, HIDDEN, MAIN, PRESETS, PROTOCOLS, STAGES, TABLE1, TUNE, Config, Looks, Pipes, anchors, arms, audit, backbone, classifier, decaying, divide, draw,
    every_score, find_lr, fine_tune, inputs, joint, label_files, load_net, one_cycle, released_order, run, source_of, split_of, target_of, test_scores as scores_of, traces, tta, walk, weights_file)

TINY = dict(epochs=1, batch=16, finder_its=20, target_epochs=1, target_batch=64, source_images=160, source_epochs=1, source_ssl_epochs=1)


@pytest.fixture(scope='module')
def ds(): return phantom(600)


def tiny(protocol='strict', arm='barlow_twice', **more): return arms('smoke', protocol)[arm].but(**{**TINY, **more})


@pytest.fixture(scope='module')
def labels(data_dir):
    "The public label files without the downsampled copies: ids, labels in Table 1's order, lesions, sources."
    truth, meta = (pd.read_csv(data_dir/'ISIC2019'/f'ISIC_2019_Training_{f}.csv') for f in ('GroundTruth', 'Metadata'))
    keep = ~truth.image.str.contains('downsampled')
    assert keep.sum() == 23257 and (~keep).sum() == 2074
    truth, meta = truth[keep].reset_index(drop=True), meta[keep].reset_index(drop=True)
    lesion = meta.lesion_id.fillna(truth.image).to_numpy()
    return truth.image.to_numpy(), truth[[c.upper() for c in CLASSES]].to_numpy().argmax(1), lesion, meta.lesion_id.str.partition('_')[0].fillna('other').to_numpy()


def counts(y, rows): return dict(zip(CLASSES, np.bincount(y[rows], minlength=8).tolist()))


@pytest.mark.data
def test_the_recovered_order_gives_the_released_counts(labels):
    ids, y, lesion, source = labels
    order = released_order(ids)
    s = walk(y, order, ids)
    train, valid = counts(y, s['train']), counts(y, s['valid'])
    assert {c: train[c] - TABLE1[c] for c in CLASSES if train[c] != TABLE1[c]} == dict(bkl=1) # one image more [P4-104]
    assert sum(train.values()) == 2555 and len(s['valid']) == 1280 and max(abs(valid[c] - HIDDEN[c]) for c in CLASSES) <= 3
    assert valid == dict(nv=461, mel=307, bcc=271, bkl=112, ak=64, scc=42, vasc=12, df=11)
    assert set(source[s['train']]) == {'BCN'} # no label of HAM10000 [P4-105]
    assert (source[s['test']] == 'HAM').sum() == 10015 and abs((source[s['test']] == 'BCN').sum() - 8579) <= 1
    assert abs(np.isin(lesion[s['test']], lesion[s['train']]).sum() - 4190) < 10 # 22 % share a lesion
    assert ids[np.sort(s['test'])][10] == 'ISIC_0000011'
    down = walk(y, np.argsort(ids)[::-1], ids)
    assert len(down['train']) == 2555 and len(np.intersect1d(down['train'], s['train'])) == 2309
    assert len(walk(y, np.argsort(ids), ids)['train']) == 1939 # ascending ids are far off [P4-05]
    assert anchors(dict(test=ids[np.sort(s['test'])])) == {('test', 10): True}
    assert not anchors(dict(list=ids[order]))['list', 0] # the page's first entries jitter by about 20


@pytest.mark.data
def test_the_told_numbers_are_those_of_the_label_files(labels, data_dir):
    "What the page computes is what this project publishes about the list [P4-104, P4-105]."
    from skinrepro.companion.published import load_published
    df = label_files(data_dir)
    assert df.image_id.tolist() == labels[0].tolist() and (df.label.map(CLASSES.index) == labels[1]).all() and (df.lesion_id == labels[2]).all()
    got, known = audit(df), load_published('double_pretraining').set_index('id')
    assert got['P4-105/bcn/train'] == 100
    for k, v in got.items():
        if k == 'P4-105/bcn/train': continue
        slack = 30 if k == 'P4-104/random/train' else 10 if 'approximate' in known.note[k] else .5
        assert abs(v - known.value[k]) <= slack, (k, v)
    of = {p: divide(arms('paper', p)['barlow'], labels[1], labels[0], labels[2] if p == 'strict' else labels[0], CLASSES, True) for p in PROTOCOLS}
    assert counts(labels[1], of['paper']['train']) == counts(labels[1], of['strict']['train']) == TABLE1 and len(of['released']['train']) == 2555
    with pytest.raises(UserError, match='Training_GroundTruth'): label_files(data_dir/'PAD-UFES-20')


@pytest.mark.data
def test_the_drawn_split_has_exactly_table_1(labels):
    ids, y, lesion, _ = labels
    wants = {k: [want[c] for c in CLASSES] for k, want in (('train', TABLE1), ('valid', HIDDEN))}
    s = draw(y, ids, wants)
    assert counts(y, s['train']) == TABLE1 and counts(y, s['valid']) == HIDDEN
    assert counts(y, s['test']) == dict(ak=498, bcc=2549, bkl=1663, df=173, mel=3339, nv=10601, scc=414, vasc=186)
    assert not np.array_equal(s['train'], draw(y, ids, wants, 1)['train'])
    g = draw(y, lesion, wants)
    sets = [set(lesion[v]) for v in g.values()]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert counts(y, g['train']) == TABLE1 # single images fill every count


@pytest.mark.data
def test_isic_ham_follows_the_rule_scaled(data_dir):
    from skinrepro.data.archives import read_isic2019
    ds = read_isic2019(data_dir, 'isic2019_ham')
    used, s = split_of(arms('small', 'paper')['barlow_twice'], ds)
    assert len(s.rows['valid']) == 550 and np.bincount(ds.y[s.rows['train']]).max() == 215 and sum(s.counts.values()) == 10015
    assert len(used) == len(s.rows['train']) + len(s.rows['test'])
    used, s = split_of(arms('small', 'strict')['barlow_twice'], ds)
    assert abs(len(s.rows['valid']) - 550) < 5 and not len(shared(ds, s.rows['train'], s.rows['test'])) and not len(shared(ds, used, s.rows['test']))
    assert np.bincount(ds.y[s.rows['train']]).max() <= 215


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_every_arm_is_a_config_and_names_what_it_needs(preset, protocol):
    made = arms(preset, protocol)
    assert list(made) == list(ARMS) and set(MAIN) <= set(made)
    for name, cfg in made.items():
        assert cfg.arm == name and cfg.stage == 'evaluate'
        for need in inputs(cfg).values():
            assert need.stage in ('source', 'target') and need.arm in made
            for deeper in inputs(need).values(): assert deeper.stage == 'source' and not inputs(deeper) and deeper.arm in made
    assert set(STAGES) == {'evaluate', 'source', 'target'}


def test_what_does_not_matter_is_not_in_a_name():
    a = arms('small', 'paper')
    assert source_of(a['barlow']) == source_of(arms('small', 'released')['barlow_twice'].but(seed=4)) == inputs(target_of(a['barlow_twice']))['source']
    assert source_of(a['supervised'].but(lambd=.5)) == source_of(a['supervised']) != source_of(a['barlow'])
    assert target_of(a['barlow_twice'].but(epochs=3, tta=1)) == target_of(a['barlow_twice']) != target_of(a['barlow_twice'].but(seed=1))
    assert target_of(a['barlow_twice_inductive']) != target_of(a['barlow_twice']) == target_of(a['barlow_twice_fixed']) # the control shares what it starts from
    assert not inputs(arms('paper')['vicreg_200x2']) and inputs(a['random']) == {}
    for stage in (source_of, target_of): # what a lab sheet is told makes the same configuration
        c = stage(a['barlow_twice']); base = a[c.arm]
        assert base.but(**{k: v for k, v in c.to_dict().items() if v != base.to_dict()[k]}) == c


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_who_sees_what(ds, protocol):
    cfg = tiny(protocol)
    used, s = split_of(cfg, ds)
    n = len(np.intersect1d(used, s.rows['test']))
    assert n == (0 if protocol == 'strict' else s.counts['test']) and np.isin(s.rows['train'], used).all()
    assert (len(shared(ds, s.rows['train'], s.rows['test'])) == 0) == (protocol == 'strict')
    assert np.bincount(ds.y[s.rows['train']]).max() <= cfg.cap and sum(s.counts.values()) == len(ds)
    assert split_of(cfg.but(seed=5), ds)[1].hash == s.hash != split_of(cfg.but(split_seed=5), ds)[1].hash


def test_a_list_of_ones_own(ds, tmp_path):
    ids = ds.manifest.image_id.to_numpy()
    def wrote(**columns): pd.DataFrame(columns).to_csv(tmp_path/'ids.csv', index=False); return tiny('paper').but(split='ids', ids=str(tmp_path/'ids.csv'))
    cfg = wrote(image_id=ids[:60], set=['train']*30 + ['valid']*5 + ['test']*25)
    assert split_of(cfg, ds)[1].counts == dict(train=30, valid=5, test=25)
    for columns, says in ((dict(image_id=ids[:2], set=['train', 'tset']), "the set 'tset'"), (dict(image_id=['nobody'], set=['train']), 'does not have'),
                          (dict(image_id=ids[[0, 0]], set=['train', 'test']), 'twice'), (dict(image=ids[:1], set=['train']), "no column 'image_id'"), (dict(image_id=ids[:1], set=['train']), 'no image in the set')):
        with pytest.raises(UserError, match=says): split_of(wrote(**columns), ds)
    with pytest.raises(UserError, match='is no file'): split_of(tiny('paper').but(split='ids'), ds)
    wrote(image_id=['ISIC_0071718'] + [f'X{k}' for k in range(43)] + ['ISIC_0071754'], set=['test'] + ['train']*44)
    assert traces(tmp_path/'ids.csv') == {'list[0]': True, 'list[10]': False, 'train[44]': False, 'test[10]': False} # 44 come before it in the list, 43 in training
    run_of = wrote(image_id=ids[:60], set=['train']*30 + ['valid']*5 + ['test']*25).but(start='random', weights='none', target='none', mode='all', batch=8, epochs=1, finder='fixed')
    assert set(run(run_of, ds)['data']['traces'].values()) == {False}
    lesion = groups(ds, 'lesion'); twice = np.flatnonzero(np.isin(lesion, pd.Series(lesion)[pd.Series(lesion).duplicated()]))
    two = twice[lesion[twice] == lesion[twice[0]]][:2]
    with pytest.raises(UserError, match='leak'): split_of(wrote(image_id=ids[two], set=['train', 'test']).but(group='lesion'), ds)
    with pytest.raises(UserError, match='leave no test image'): split_of(tiny('paper', head=600), ds)


def test_the_schedule_is_fastais():
    from fastai.callback.schedule import combined_cos
    lr, mom = combined_cos(.25, 1/25, 1., 1/1e5), combined_cos(.25, .95, .85, .95)
    for steps in (7, 160):
        for k in range(steps): assert np.allclose(one_cycle(k, steps, 1.), (float(lr(k/steps)), float(mom(k/steps))), atol=1e-6)
    assert one_cycle(0, 100, .5)[0] == .02 and one_cycle(25, 100, .5) == (.5, .85) and math.isclose(one_cycle(100, 100, .5)[0], .5e-5)


def test_a_rate_that_only_falls(ds):
    rates = [decaying(k, 50, .5)[0] for k in range(50)]
    assert rates[0] == .5 and rates == sorted(rates, reverse=True) and math.isclose(decaying(50, 50, .5)[0], .5e-5)
    cfg = tiny(arm='supervised_quarter_decay', epochs=2, batch=8, finder='fixed')
    r = run(cfg.but(weights='none', start='random'), ds)
    per = r['data']['counts']['labelled']//8; f = r['figures']
    assert r['data']['counts']['labelled'] < .35*r['data']['counts']['train'] and np.allclose(f['lr'][per:], [decaying(k, 2*per, cfg.lr_fixed)[0] for k in range(2*per)], rtol=1e-6) and np.allclose(f['mom'], .9)


def test_a_run_takes_the_rates_it_says(ds):
    cfg = tiny(arm='supervised_fixed', epochs=2)
    rows = split_of(cfg, ds)[1].rows['train']
    made = fine_tune(cfg, ds, rows, backbone(cfg.backbone))
    per = len(rows)//cfg.batch; f = made['figures']
    assert len(f['lr']) == 3*per and np.allclose(f['lr'][:per], 1e-3) and np.allclose(f['mom'][:per], .9)
    assert np.allclose(f['lr'][per:], [one_cycle(k, 2*per, cfg.lr_fixed)[0] for k in range(2*per)], rtol=1e-6)
    assert {m['name'] for m in made['metrics']} == {'loss', 'steps', 'lr_max'}


def test_freezing(ds):
    import torch
    for train_bn in (False, True):
        cfg = tiny(arm='supervised_probe', epochs=1, train_bn=train_bn)
        net = backbone(cfg.backbone); before = {k: v.clone() for k, v in net.state_dict().items()}
        rows = split_of(cfg, ds)[1].rows['train']
        made = fine_tune(cfg, ds, rows, net)
        moved = {k for k, v in made['model'].encoder.state_dict().items() if not torch.equal(v, before[k])}
        bn = {f'{n}.{p}' for n, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d) for p in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')}
        assert moved <= bn and bool(moved) == train_bn # convolutions never move
        assert not any(m['name'] == 'lr_found' for m in made['metrics'])


def test_the_finder_changes_nothing_and_repeats(ds):
    import torch
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)); opt = torch.optim.Adam(net.parameters())
    x = torch.randn(50, 8, 3)
    loss = lambda m, k: ((m(x[k % 50])[:, 0] - x[k % 50].sum(1))**2).mean()
    loss(net, 0).backward(); opt.step()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, [v['exp_avg'].clone() for v in opt.state.values()]
    a, b = (find_lr(net, opt, loss) for _ in range(2))
    assert a == b and a['lrs'][0] == 1e-7 and 1e-6 < a['valley'] < 10
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and all(torch.equal(v['exp_avg'], s) for v, s in zip(opt.state.values(), state))
    with pytest.raises(UserError, match='diverged'): find_lr(net, opt, lambda m, k: loss(m, k)*100**k, its=30)


def test_views():
    import torch
    x = torch.from_numpy(rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8))
    same = x[:1].repeat(6, 1, 1, 1)
    crop = (TUNE[0], ('blur', dict(sigma=(.1, 2.), p=1.)))
    one, many = (Looks([crop], 32, False, b)(same, 1) for b in (True, False))
    assert all(torch.equal(one[0], v) for v in one) and not torch.equal(many[0], many[1])
    a, b = Looks([TUNE], 32, True)(x, 1), Looks([TUNE], 32, False)(x, 1)
    pair = Looks([(TUNE[0], ('solarise', dict(threshold=.5, p=1.)))], 32, False, kornia=True)(same, 1)
    assert 0 <= pair.min() and pair.max() <= .6 and torch.equal(pair, Looks([(TUNE[0], ('solarise', dict(threshold=.5, p=1.)))], 32, False, kornia=True)(same, 1))
    assert b.min() >= 0 and b.max() <= 1 and a.min() < 0 and torch.equal(a, Looks([TUNE], 32)(x, 1)) and not torch.equal(a, Looks([TUNE], 32)(x, 2))


def test_tta_is_the_mean_of_its_passes(ds):
    import torch
    x, net, views = ds.images(32), classifier(backbone('test_resnet'), 8), Looks([TUNE], 32)
    got = tta(net, x, np.arange(10), views, seed=4, batch=4)
    assert got.shape == (10, 8) and np.allclose(got.sum(1), 1, atol=1e-5) and np.array_equal(got, tta(net, x, np.arange(10), views, seed=4, batch=4)) and net.training
    net.eval(); want = 0
    for k in range(3):
        with torch.no_grad(): want = want + net(views(torch.from_numpy(np.array(x[:4])), 4, 'tta', k, 0)).softmax(1)/3
    assert np.allclose(got[:4], want.numpy(), atol=1e-6)


def test_tta_is_fastais_without_its_plain_pass():
    "learn.tta(n=3, beta=None) returns ((augmented mean, plain), targets); ours is the first [P4-31]."
    import torch
    from fastai.data.core import Datasets
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.data.all import Transform
    from fastai.torch_core import TensorImage
    x, y = rng('tta').integers(0, 255, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3
    class Shift(Transform): # another picture at every pass, none outside training
        split_idx = 0
        def __init__(self): self.k = 0
        def encodes(self, b:TensorImage): self.k += 1; return b + .3*self.k
    torch.manual_seed(0); net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    sets = Datasets(range(12), [[lambda i: TensorImage(torch.from_numpy(x[i]).permute(2, 0, 1).float()/255)], [lambda i: torch.tensor(int(y[i]))]])
    dls = sets.dataloaders(bs=12, shuffle=False, drop_last=False, after_batch=[Shift()], device='cpu', num_workers=0)
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat())
    with learn.no_bar(): (mean, plain), targets = learn.tta(dl=dls.train, n=3, beta=None)
    class Same:
        def __call__(self, b, seed, what, k, i): return b.permute(0, 3, 1, 2).float()/255 + .3*(k + 1)
    got = tta(net, x, np.arange(12), Same())
    assert np.allclose(got, mean.numpy(), atol=1e-6) and not np.allclose(got, plain.numpy(), atol=1e-2) and targets.tolist() == y.tolist()


def test_the_librarys_views():
    import torch
    pytest.importorskip('self_supervised', reason='self_supervised is a development requirement')
    same = torch.from_numpy(rng(0).integers(0, 255, (1, 40, 40, 3), dtype=np.uint8)).repeat(40, 1, 1, 1)
    a = Pipes('tuning', 32)(same, 4, 'views')
    state = torch.random.get_rng_state()
    assert torch.equal(a, Pipes('tuning', 32)(same, 4, 'views')) and not torch.equal(a, Pipes('tuning', 32)(same, 5, 'views'))
    assert torch.equal(state, torch.random.get_rng_state()) # nobody else's draws are touched
    kinds = pd.Series([v.numpy().tobytes() for v in a]).value_counts()
    assert .3 < kinds.iloc[0]/40 < .85 and len(kinds) < 25 # one crop: neither flipped nor rotated, .75 x .75, are the same picture
    assert 0 <= a.min() and a.max() <= 1 + 1e-6 # no normalisation
    one, two = zip(*(Pipes('pretraining', 32)(same, k).chunk(2) for k in range(8)))
    rough = lambda vs: np.array([float((v[..., 1:] - v[..., :-1]).abs().mean()) for v in vs])
    assert rough(one).mean() < .8*rough(two).mean() # the first is always blurred, by a width that the batch shares
    assert rough(one).std()/rough(one).mean() > 2*rough(two).std()/rough(two).mean()
    assert len({v.numpy().tobytes() for v in one[0]}) > 20


def test_released_runs_on_the_library_and_resumes(ds, tmp_path, monkeypatch):
    "Second pretraining by the library's own callback: its loss, its terms, killed and resumed, then fine-tuned."
    pytest.importorskip('self_supervised', reason='self_supervised is a development requirement')
    from self_supervised.vision.barlow_twins import BarlowTwins, BarlowTwinsModel
    from skinrepro.methods import train
    cfg = target_of(tiny('released', 'target_only'))
    model, cbs, *_ = joint(cfg, backbone(cfg.backbone).eval())
    assert cfg.engine == 'self_supervised' and isinstance(model, BarlowTwinsModel) and any(type(c) is BarlowTwins for c in cbs)
    whole = run(cfg, ds, tmp_path/'whole')
    f = whole['figures']
    assert np.allclose(f['loss'], f['invariance'] + f['redundancy'], rtol=1e-4) and any(m['name'] == 'lr_found' for m in whole['metrics'])
    stop, real = len(f['loss'])*2//3, train.Stateless.after_batch
    def after_batch(self):
        real(self)
        if self.learn.step == stop: self.learn.checkpoint.save(); raise KeyboardInterrupt
    monkeypatch.setattr(train.Stateless, 'after_batch', after_batch)
    with pytest.raises(KeyboardInterrupt): run(cfg, ds, tmp_path/'cut')
    monkeypatch.undo()
    again = run(cfg, ds, tmp_path/'cut')
    assert np.array_equal(again['figures']['loss'], f['loss']) and np.array_equal(again['figures']['find_loss'], f['find_loss'])
    test = run(tiny('released', 'target_only'), ds, None, dict(encoder=tmp_path/'whole'))
    assert {m['name'] for m in test['metrics']} >= {'accuracy', 'unshared_f1_nv', 'shared_lesion_share'} and test['data']['source'] == 'none'
    with pytest.raises(UserError, match='precision=fp32'): joint(cfg.but(precision='bf16'), backbone(cfg.backbone))


def test_without_the_library_released_says_what_it_needs(monkeypatch):
    import sys
    for name in [m for m in sys.modules if m.split('.')[0] == 'self_supervised']: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'self_supervised', None)
    with pytest.raises(UserError, match="extra 'engine'"): Pipes('tuning', 32)


def test_a_loss_on_the_encoder(ds):
    cfg = target_of(tiny(arm='barlow_twice_encoder', start='random', weights='none'))
    assert cfg.arm == 'target_only' and cfg.target_loss_on == 'encoder' and target_of(tiny(arm='barlow_twice_encoder')).arm == 'barlow_twice_encoder' and target_of(tiny(arm='barlow_twice_domain')).arm == 'barlow_twice_domain'
    model, *_ = joint(cfg, backbone(cfg.backbone))
    assert not list(model.projector.parameters()) and joint(target_of(tiny()), backbone('test_resnet'))[0].projector[-1].out_features == cfg.projector


@pytest.fixture(scope='module')
def chain(ds, tmp_path_factory):
    "Source, second pretraining, fine-tuning, each from the one before."
    d, cfg = tmp_path_factory.mktemp('chain'), tiny()
    out = dict(source=run(source_of(cfg), ds, d/'source'))
    out['target'] = run(target_of(cfg), ds, d/'target', dict(source=d/'source'))
    out['test'] = run(cfg, ds, d/'test', dict(encoder=d/'target'))
    return dict(out, folder=d, cfg=cfg)


def test_no_finder_in_either_training(ds, chain):
    "The control of the second pretraining: one fixed rate in both, everything else as it was."
    cfg, found = target_of(tiny(arm='barlow_twice_both_fixed')), target_of(chain['cfg'])
    assert cfg.but(arm=found.arm, finder='valley') == found and source_of(cfg) == source_of(found)
    r = run(cfg.but(lr_fixed=3e-4), ds, None, dict(source=chain['folder']/'source'))
    m = {x['name']: x['value'] for x in r['metrics']}; was = {x['name']: x['value'] for x in chain['target']['metrics']}
    assert m['lr_max'] == 3e-4 and 'lr_found' not in m and m['steps'] == was['steps'] and was['lr_found'] == was['lr_max']
    assert np.isclose(r['figures']['lr'][-(len(r['figures']['lr'])//2):].max(), 3e-4, rtol=.2) # 1cycle's, not the head's .001


def test_the_chain_gives_every_number_of_the_tables(ds, chain):
    m = {x['name']: x for x in chain['test']['metrics']}
    assert len(m) == len(chain['test']['metrics']) and all(np.isfinite(x['value']) and x['n'] > 0 and x['split'] for x in m.values())
    assert {'accuracy', 'balanced_accuracy', 'macro_f1', 'majority_share', 'weighted_precision', 'weighted_recall', 'weighted_f1', 'lr_found', 'lr_max', 'unshared_accuracy'} <= set(m)
    f = chain['test']['figures']
    present = {ds.classes[k] for k in np.unique(f['y'])}
    assert {f'{n}_{c}' for c in present for n in ('precision', 'recall', 'f1', 'auc', 'ap')} <= set(m)
    assert np.isclose(m['accuracy']['value'], (f['y'] == f['pred']).mean()) and np.isclose(m['accuracy']['value'], m['weighted_recall']['value'])
    assert (f['prob'].astype(float).argmax(1) == f['pred']).mean() > .99 # the record keeps half precision
    assert m['unshared_accuracy']['n'] == m['accuracy']['n'] # strict: nothing is shared
    assert {x['name'] for x in chain['target']['metrics']} >= {'lr_found', 'steps', 'loss'} and len(chain['target']['figures']['invariance'])
    cfg, counts = chain['cfg'], chain['test']['data']['counts']
    steps = next(x['value'] for x in chain['target']['metrics'] if x['name'] == 'steps')
    assert cfg.step_matched and steps == (cfg.target_head_epochs + cfg.target_epochs)*((counts['train'] + counts['test'])//cfg.target_batch) # the frozen epoch, too
    assert chain['source']['data']['source'] == 'textures' and chain['test']['data']['counts']['pretraining'] > 0


def test_every_number_can_be_had_again_from_the_arrays(ds, chain):
    f, kept = chain['test']['figures'], {x['name']: x['value'] for x in chain['test']['metrics']}
    again = {x['name']: x['value'] for x in every_score(f['y'], f['prob'].astype(float), ds.classes)}
    on = f['unshared_part'].astype(bool)
    again |= {x['name']: x['value'] for x in every_score(f['y'][on], f['prob'][on].astype(float), ds.classes, 'unshared_')}
    assert len(again) > 60 and all(abs(v - kept[k]) < 5e-3 for k, v in again.items())


def test_thirty_five_runs_are_one_command():
    from skinrepro.companion.runner import plan
    cells = plan('double_pretraining', 'paper', protocols=['paper'], arms=['supervised', 'barlow_twice'], seeds=range(35))
    assert len({c.id for c in cells}) == 70 and len({n.id for c in cells for n in c.needs.values()}) == 35 # a second pretraining a run, as in the code


def test_each_link_starts_from_the_one_before(chain):
    import torch
    from skinrepro.methods.train import load_state
    d, cfg = chain['folder'], chain['cfg']
    for c, folder in ((target_of(cfg), 'source'), (cfg, 'target')):
        state = load_state(d/folder/'encoder.pt')
        assert all(torch.equal(v, state[k]) for k, v in load_net(c, d/folder).state_dict().items())
    with pytest.raises(UserError, match='make it with'): load_net(cfg, d/'nowhere')


def test_a_killed_run_goes_on_bit_for_bit(ds, chain, tmp_path, monkeypatch):
    "Stopped after the finder, in the middle of an epoch."
    from skinrepro.methods import train
    d, cfg = chain['folder'], chain['cfg']
    whole = chain['test']
    stop, real = int(whole['figures']['lr'].size*.8), train.Stateless.after_batch
    def after_batch(self):
        real(self)
        if self.learn.step == stop: self.learn.checkpoint.save(); raise KeyboardInterrupt
    monkeypatch.setattr(train.Stateless, 'after_batch', after_batch)
    with pytest.raises(KeyboardInterrupt): run(cfg, ds, tmp_path, dict(encoder=d/'target'))
    monkeypatch.undo()
    again = run(cfg, ds, tmp_path, dict(encoder=d/'target'))
    for k in ('loss', 'lr', 'find_loss', 'pred'): assert np.array_equal(again['figures'][k], whole['figures'][k]), k
    pick = lambda r: {m['name']: m['value'] for m in r['metrics'] if m['name'] != 'test_images_per_s'}
    assert pick(again) == pick(whole)


def test_scores_by_source_and_without_shared_lesions(ds):
    from dataclasses import replace
    _, s = split_of(tiny('paper'), ds)
    two = replace(ds, manifest=ds.manifest.assign(source=np.where(np.arange(len(ds)) % 2, 'A', 'B')))
    prob = rng(1).dirichlet(np.ones(8), len(s.rows['test']))
    m = {x['name']: x for x in scores_of(two, s, prob)}
    assert m['a_accuracy']['n'] + m['b_accuracy']['n'] == m['accuracy']['n'] > m['unshared_accuracy']['n'] > 0
    assert {k.removeprefix('unshared_') for k in m if k.startswith('unshared_')} >= {'balanced_accuracy', 'weighted_f1', 'f1_nv', 'auc_nv', 'ap_nv'} <= {k.removeprefix('a_') for k in m if k.startswith('a_')} # every metric
    assert np.isclose(m['shared_lesion_share']['value'], 1 - m['unshared_accuracy']['n']/m['accuracy']['n'])
    assert np.isclose(m['a_accuracy']['value']*m['a_accuracy']['n'] + m['b_accuracy']['value']*m['b_accuracy']['n'], m['accuracy']['value']*m['accuracy']['n'])


def test_public_weights_are_files_or_an_error(tmp_path, monkeypatch):
    import torch
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch')); monkeypatch.setenv('SKINREPRO_HOME', str(tmp_path))
    a = arms('paper')
    with pytest.raises(UserError, match='resnet50-11ad3fa6.pth'): load_net(a['supervised'])
    with pytest.raises(UserError, match='resnet50-0676ba61.pth'): weights_file(a['supervised_v1'])
    with pytest.raises(UserError, match='barlowtwins_resnet50.pth'): weights_file(a['barlow_twice'])
    folder = tmp_path/'artefacts'/'weights'; folder.mkdir(parents=True)
    net = backbone('resnet50', 7); torch.save(dict(net.state_dict(), **{'fc.weight': torch.zeros(1), 'fc.bias': torch.zeros(1)}), folder/FILES['barlow', ''])
    assert torch.equal(load_net(a['barlow']).conv1.weight, net.conv1.weight)
    torch.save(net.state_dict(), folder/FILES['supervised', 'v2'])
    with pytest.raises(UserError, match='not what its name says'): load_net(a['supervised'])
    with pytest.raises(UserError, match='those of a resnet50'): load_net(arms('small')['supervised'].but(weights='imagenet'))
    with pytest.raises(UserError, match='nothing to start from'): load_net(a['supervised'].but(weights='none'))
    assert {c.weights for c in arms('small').values()} == {'textures', 'none'} and arms('small')['random'].weights == 'none' # a stand-in is called one


def test_accumulation_counts_images(ds):
    cfg = tiny(arm='vicreg_200x2', batch=8, accumulate=16)
    assert cfg.large and cfg.start == 'vicreg' and arms('paper')['vicreg_200x2'].accumulate == 64
    made = fine_tune(cfg, ds, split_of(cfg, ds)[1].rows['train'][:72], backbone('test_resnet')) # nine batches
    frozen = (made['figures']['lr'] == np.float32(cfg.head_lr)).sum()
    assert next(m['value'] for m in made['metrics'] if m['name'] == 'steps') % 2 == frozen % 2 == 0 < frozen # no update is half of one phase and half of the other


def test_bad_input():
    with pytest.raises(UserError, match="unknown preset 'tiny'"): arms('tiny')
    with pytest.raises(UserError, match="did you mean 'released'"): arms('smoke', 'relesed')
    with pytest.raises(UserError, match='unknown parameter'): Config().but(epoch=3)
    with pytest.raises(UserError, match='start='): Config(start='simclr')
    for name in ('epochs', 'tta', 'batch', 'target_batch'):
        with pytest.raises(UserError, match=f'{name}=0 leaves nothing to do'): Config().but(**{name: 0})
