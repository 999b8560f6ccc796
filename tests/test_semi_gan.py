"P2 as a whole: losses against their oracles, five layers in both layouts, splits and leaks, what needs what, and a tiny chain."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skinrepro.core import UserError
from skinrepro.data.lesions import LesionSet, manifest
from skinrepro.data.phantom import phantom
from skinrepro.data.splits import groups, shared
from skinrepro.papers import semi_gan as p2
from skinrepro.papers.semi_gan import ARMS, DEEP, MAIN, PRESETS, PROTOCOLS, STAGES, arms, augment, class_loss, d_game, discriminator, g_game, generator, inputs, log_fake, network_of, quotas, run, source_of, split_of

TINY = dict(n_train=120, n_test=60, size=32, width=4, z_dim=8, epochs=2, batch=20, source_images=48, source_epochs=1, gan_images=60)
HAM = dict(akiec=327, bcc=514, bkl=1099, df=115, mel=1113, nv=6705, vasc=142)


@pytest.fixture(scope='module')
def ds(): return phantom(600)


def tiny(arm='semi_gan', protocol='strict', **more): return arms('smoke', protocol)[arm].but(**{**TINY, **more})


def chain(cfg, ds, where):
    "Every run that a configuration needs, then itself; its result and folder."
    need = {}
    for k, c in inputs(cfg).items():
        need[k] = str(where/k)
        if not (where/k).is_dir(): chain(c, ds, where/k)
    where.mkdir(parents=True, exist_ok=True)
    return run(cfg, ds, where, need)


def by_name(result): return {m['name']: m for m in result['metrics']}


@pytest.fixture(scope='module')
def judged(ds, tmp_path_factory):
    d = tmp_path_factory.mktemp('p2')
    return chain(tiny(), ds, d/'semi_gan'), d


# losses

def wave(f, n, a, b, c): return torch.tensor([[f(a + b*i + c*j) for j in range(8)] for i in range(n)], dtype=torch.double)


def test_oracle_vectors_and_the_identity():
    lr, lf, y = wave(math.sin, 3, 1, 2, 3), wave(math.cos, 2, .5, 3, 2), torch.tensor([0, 3, 6])
    seven, real = class_loss(lr, y).item(), -log_fake(lr)[1].mean().item()
    assert F.cross_entropy(lr, y).item() == pytest.approx(2.491270083011995, abs=1e-12) == seven + real
    assert seven == pytest.approx(2.372049624341353, abs=1e-12) and real == pytest.approx(.119220458670643, abs=1e-12)
    assert g_game(lf).item() == pytest.approx(-2.375181140901626, abs=1e-12)
    assert g_game(lf, 'non_saturating').item() == pytest.approx(.105441961198102, abs=1e-12)
    assert d_game(lr, lf).item() == pytest.approx(real + 2.375181140901626, abs=1e-12)


def test_identity_in_gradients_too():
    x = torch.randn(5, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_(); y = torch.tensor([0, 1, 2, 6, 6])
    a, = torch.autograd.grad(F.cross_entropy(x, y), x); b, = torch.autograd.grad(class_loss(x, y) - log_fake(x)[1].mean(), x)
    assert torch.allclose(a, b, atol=1e-12)


def test_losses_are_finite_where_the_discriminator_is_sure():
    x = torch.tensor([[0.]*7 + [200.], [200.] + [0.]*7])
    for v in (d_game(x, x), g_game(x), g_game(x, 'non_saturating')): assert v.isfinite()


# networks

@pytest.mark.parametrize('size', [64, 128, 224])
@pytest.mark.parametrize('layout', ['kernel', 'linear'])
def test_five_layers_reach_the_size(size, layout):
    G = generator(size, 5, 2, layout).eval()
    with torch.no_grad(): x = G(torch.randn(2, 5))
    assert x.shape == (2, 3, size, size) and x.abs().max() <= 1
    ups = [m for m in G if isinstance(m, torch.nn.ConvTranspose2d)]
    assert len(ups) == 5 and sum(isinstance(m, torch.nn.Linear) for m in G) == (layout == 'linear')
    D = discriminator(size, 8, 2)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in D) == 4 and sum(isinstance(m, torch.nn.Linear) for m in D) == 1
    assert D.eval()(x).shape == (2, 8)


def test_dcgan_ends_at_64(): # the contradiction of P2-20
    side = 1
    for k, s, p in ((4, 1, 0), *((4, 2, 1),)*4): side = (side - 1)*s - 2*p + k
    assert side == 64


def test_parameter_counts_of_both_layouts():
    count = lambda layout: sum(p.numel() for p in generator(224, 100, 64, layout).parameters())
    assert (round(count('kernel')/1e6, 2), round(count('linear')/1e6, 2)) == (12.79, 5.32)


@pytest.mark.parametrize('make, says', [(lambda: generator(100), 'multiple of 16'), (lambda: generator(48, layout='linear'), 'multiple of 32'), (lambda: generator(64, layout='liner'), 'kernel or linear'),
                                        (lambda: discriminator(40), 'multiple of 16'), (lambda: augment(torch.zeros(1, 3, 8, 8), 'basline'), "did you mean 'baseline'"), (lambda: arms('smal'), "did you mean 'small'")])
def test_bad_input_says_how_to_mend_it(make, says):
    with pytest.raises(UserError, match=says): make()


# augmentation

@pytest.mark.parametrize('recipe', ['gan', 'baseline'])
def test_each_image_draws_its_own(recipe):
    torch.manual_seed(0); one = torch.rand(1, 3, 24, 24)*1.8 - .9
    y = augment(one.expand(6, -1, -1, -1), recipe)
    assert y.shape == (6, 3, 24, 24) and y.abs().max() <= 1 + 1e-5 and len({v.sum().item() for v in y}) == 6


def test_blur_is_one_of_scipys():
    from scipy.ndimage import gaussian_filter
    torch.manual_seed(1); x = torch.rand(3, 1, 64, 64, dtype=torch.float); torch.manual_seed(2); σ = (1.5*torch.rand(3, 1)).clamp_min(.1).flatten()
    torch.manual_seed(2); y = p2.blur(x, 1.5)
    for a, b, s in zip(y[:, 0], x[:, 0], σ): np.testing.assert_allclose(a, gaussian_filter(b.numpy(), s.item(), mode='mirror', radius=5), atol=2e-5)


# data

@pytest.fixture(scope='module')
def ham_like(): # the class counts of the official files, lesions of one to three images
    label = np.repeat(list(HAM), list(HAM.values())); r = np.random.default_rng(0)
    lesion = [f'{c}{k}' for c, n in HAM.items() for k in np.sort(r.integers(0, int(.75*n), n))]
    return LesionSet('ham-like', manifest(dict(image_id=[f'i{k}' for k in range(len(label))], label=label, lesion_id=lesion), source='t'), tuple(HAM))


def test_the_papers_numbers_on_the_papers_counts(ham_like):
    cfg = arms('paper', 'paper')['semi_gan']
    used, split = split_of(cfg, ham_like)
    test = np.bincount(ham_like.y[split.rows['test']])
    assert split.counts == dict(train=8000, test=2000) and dict(zip(HAM, test))['nv'] == 1339 and dict(zip(HAM, test))['df'] == 23
    assert len(ham_like) - 10000 == 15 and len(shared(ham_like, used, split.rows['test'])) > 500
    strict = split_of(arms('paper', 'strict')['semi_gan'], ham_like)[1]
    assert strict.counts == dict(train=8000, test=2000) and np.array_equal(np.bincount(ham_like.y[strict.rows['test']]), test)
    assert not len(shared(ham_like, strict.rows['train'], strict.rows['test']))
    for s in (split, strict): np.testing.assert_allclose(np.bincount(ham_like.y[s.rows['train']])/8000, np.array(list(HAM.values()))/10015, atol=1.5e-3)


def test_quotas_are_whole_and_close():
    for n in (1, 7, 100, 2000): q = quotas(list(HAM.values()), n); assert q.sum() == n and (abs(q - n*np.array(list(HAM.values()))/10015) < 1).all()


def test_validation_comes_from_training_and_leaks_nothing(ds):
    a, b = split_of(tiny(), ds)[1], split_of(tiny(validation=.1), ds)[1]
    assert np.array_equal(a.rows['test'], b.rows['test']) and set(b.rows['train']) | set(b.rows['valid']) == set(a.rows['train'])
    assert len(b.rows['valid']) and not len(shared(ds, b.rows['train'], b.rows['valid']))


def test_groups_of_several_classes_still_give_the_number(ds):
    "Patients have lesions of several classes: nobody on both sides, and exactly the test images asked for."
    assert any(len(set(ds.y[groups(ds, 'patient') == p])) > 1 for p in np.unique(groups(ds, 'patient')))
    _, s = split_of(tiny(group='patient'), ds)
    assert s.counts == dict(train=120, test=60) and not len(shared(ds, s.rows['train'], s.rows['test'], 'patient'))


def test_whole_groups():
    member, y = np.array([0, 0, 1, 1, 1, 2, 3]), np.array([0, 0, 1, 1, 1, 0, 1])
    assert p2._whole_groups(member, y, np.array([2, 1]), range(4)).tolist() == [True]*2 + [False]*4 + [True] # the second is too large, the third comes too late
    assert p2._whole_groups(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 0]), np.array([2, 0]), range(2)).tolist() == [False]*2 + [True]*2
    assert p2._whole_groups(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([2, 0]), range(2)).tolist() == [True]*2 + [False]*2 # no group fits the shares: the total counts


def test_large_lesions_are_not_preferred(ham_like):
    "A draw by image would meet lesions of three images three times as soon."
    lesion = groups(ham_like, 'lesion'); size = dict(zip(*np.unique(lesion, return_counts=True)))
    test = split_of(arms('paper', 'strict')['semi_gan'], ham_like)[1].rows['test']
    of_test, of_all = (np.mean([size[k] for k in np.unique(l)]) for l in (lesion[test], lesion))
    assert of_test == pytest.approx(of_all, rel=.03)


def test_leak_counts_images_of_seen_lesions(ds):
    _, s = split_of(tiny(protocol='paper'), ds); lesion = ds.manifest.lesion_id.to_numpy(); test = s.rows['test']
    by_hand = np.array([any(lesion[t] == lesion[r] for r in s.rows['train']) for t in test]); assert 0 < by_hand.sum() < len(test)
    right_if_seen = np.where(by_hand, ds.y[test], (ds.y[test] + 1) % 8)
    seen, metrics = p2.leak(ds, s, right_if_seen); m = {x['name']: x for x in metrics}
    assert np.array_equal(seen, by_hand) and m['seen_lesion_share']['value'] == pytest.approx(by_hand.mean())
    assert (m['accuracy_seen_lesion']['value'], m['balanced_accuracy_seen_lesion']['value'], m['accuracy_unseen_lesion']['value']) == (1, 1, 0)
    assert m['accuracy_seen_lesion']['n'] + m['accuracy_unseen_lesion']['n'] == 60


def test_intervals_redraw_what_is_named():
    from skinrepro.evaluation.metrics import bootstrap
    r = np.random.default_rng(1); y = r.integers(0, 3, 90).repeat(3); pred = np.where(r.random(90).repeat(3) < .7, y, (y + 1) % 3)
    one, lesion = (p2.intervals(y, pred, u, 'abc') for u in (np.arange(270), np.arange(270)//3))
    assert one['balanced_accuracy'] == pytest.approx(bootstrap(y, pred, 'balanced_accuracy'), abs=.02)
    assert set(one) == {'accuracy', 'balanced_accuracy', 'macro_f1', *(f'{w}_{c}' for w in ('recall', 'precision', 'f1') for c in 'abc')}
    for k in ('accuracy', 'recall_a', 'f1_c'): assert np.ptp(lesion[k])/np.ptp(one[k]) == pytest.approx(3**.5, rel=.25), k
    few = p2.intervals(np.array([0]*50 + [1]*2), np.zeros(52, int), np.arange(52), 'ab')
    assert few['recall_1'.replace('1', 'b')] == (0, 0) and few['accuracy'][0] < 50/52


@pytest.mark.parametrize('change, says', [(dict(n_train=8000), 'more than the 600'), (dict(validation=1.), 'validation=1.0 is no share'), (dict(validation=-.1), 'is no share')])
def test_sets_that_cannot_be_are_said(ds, change, says):
    with pytest.raises(UserError, match=says): split_of(tiny(**change), ds)


@pytest.mark.parametrize('change', [dict(batch=121), dict(epochs=0)])
def test_a_run_without_a_step_is_refused(ds, change): # not an untrained network under a trained one's name
    with pytest.raises(UserError, match='is no step'): run(network_of(tiny('supervised', **change)), ds)


# configurations

@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_every_arm_is_a_config_and_names_what_it_needs(preset, protocol):
    made = arms(preset, protocol)
    assert list(made) == list(ARMS) and set(MAIN) <= set(made)
    def walk(cfg, depth=0):
        assert depth < 5
        for need in inputs(cfg).values(): assert need.stage in STAGES and need.stage != 'evaluate' and need.arm in made; walk(need, depth + 1)
    for name, cfg in made.items(): assert cfg.arm == name and cfg.stage == 'evaluate'; walk(cfg)


def test_what_does_not_matter_is_not_in_a_name():
    a = arms('small', 'paper')
    assert network_of(a['supervised'].but(gan_images=5, g_loss='non_saturating', z_dim=3, source_lr=1.)) == network_of(a['supervised'])
    assert network_of(a['semi_gan'].but(gan_images=5, judge='resnet50')) == network_of(a['semi_gan']) != network_of(a['semi_gan'].but(z_dim=3))
    assert inputs(a['semi_gan'])['judge'] == network_of(a['resnet18'])
    assert source_of(a['resnet18']) == source_of(a['resnet18_same_aug'].but(seed=7)) and source_of(a['resnet18']) != source_of(a['resnet50'])


def test_one_judge_for_all_seeds():
    a = arms('small', 'paper')['semi_gan']
    assert inputs(a.but(seed=2))['judge'] == inputs(a)['judge'] and inputs(a.but(seed=2))['network'] != inputs(a)['network']
    assert inputs(a)['judge'] != inputs(arms('small', 'strict')['semi_gan'])['judge']


def test_weights_asked_for_reach_the_baselines_only():
    "`--set weights=imagenet` holds for a whole grid, and its table for all arms."
    from skinrepro.companion.runner import plan
    asked = {c.cfg.arm: c.cfg.weights for c in plan('semi_gan', 'small', 'ham10000', ['paper'], overrides=dict(weights='imagenet'))}
    assert asked == dict(semi_gan='none', supervised='none', resnet18='imagenet')
    with pytest.raises(UserError, match="net='resnet8'"): tiny(net='resnet8')


def test_the_recipe_reads_the_papers_own_arm():
    "The table of deviations shows the fields of the last arm: it must be the paper's."
    from skinrepro.companion.checklist import deviations
    d = deviations('semi_gan').set_index('id')
    assert d.loc['P2-28', 'paper'] == 'label_share = 1.0' and d.loc['P2-16', ['paper', 'strict']].tolist() == ['g_loss = saturating', 'g_loss = non_saturating'] and 'augment = gan' in d.loc['P2-25', 'paper']


def test_protocols(): 
    paper, strict = (arms('paper', p)['semi_gan'] for p in PROTOCOLS)
    assert (paper.g_loss, paper.group, strict.g_loss, strict.group) == ('saturating', 'image', 'non_saturating', 'lesion')


def test_weights_are_named_and_never_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert {arms('paper')[a].weights for a in DEEP} == {'textures'} and arms('paper')['resnet50_scratch'].weights == 'none' # no file here: the stand-in, by name
    before = {p: arms(p) for p in ('smoke', 'small')}
    f = tmp_path/'hub'/'checkpoints'/p2.FILES['resnet18']; f.parent.mkdir(parents=True); f.write_bytes(b'no weights')
    cfg = arms('paper')['resnet18']; assert cfg.weights == 'imagenet' and 'source' not in inputs(network_of(cfg)) and arms('paper')['resnet50'].weights == 'textures'
    assert before == {p: arms(p) for p in before} and before['small']['resnet18'].weights == 'textures' # records of these sizes do not depend on a machine's cache
    assert arms('paper')['semi_gan'].judge_weights == 'textures' and inputs(arms('small')['semi_gan'])['judge'] == network_of(arms('small')['resnet18'])
    with pytest.raises(UserError, match='^weights absent'): p2.network(network_of(cfg), 7)


def test_weights_in_the_projects_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'none')); monkeypatch.setenv('SKINREPRO_HOME', str(tmp_path)); from skinrepro import core
    f = core.artefacts()/'weights'/p2.FILES['resnet50']; f.parent.mkdir(parents=True); f.write_bytes(b'x')
    assert p2.weights_file('resnet50') == f and p2.weights_file('resnet18') is None


def test_imagenet_file_fits(monkeypatch, tmp_path): # a stand-in file under a name that holds its hash
    import hashlib, torchvision
    torch.manual_seed(0); old = {k.replace('norm1', 'norm.1').replace('conv2', 'conv.2') if 'denselayer' in k else k: v for k, v in torchvision.models.densenet121(weights=None).state_dict().items()}
    torch.save(old, tmp_path/'w.pth'); name = f"densenet121-{hashlib.sha256((tmp_path/'w.pth').read_bytes()).hexdigest()[:8]}.pth"
    folder = tmp_path/'hub'/'checkpoints'; folder.mkdir(parents=True); (tmp_path/'w.pth').rename(folder/name)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path)); monkeypatch.setitem(p2.FILES, 'densenet121', name)
    net = p2.network(network_of(arms('paper')['densenet121']), 7)
    assert torch.equal(net[1].state_dict()['features.denseblock1.denselayer1.conv2.weight'], old['features.denseblock1.denselayer1.conv.2.weight'])


# the game

@pytest.mark.parametrize('recipe', ['none', 'gan', 'baseline'])
@pytest.mark.parametrize('arm', ['semi_gan', 'conditional'])
def test_all_that_the_discriminator_sees_lies_in_one_range(ds, arm, recipe): # P2-48
    torch.manual_seed(0); game = game_of(tiny(arm, augment=recipe), ds); seen = []
    with torch.no_grad(): game.G[-2].weight.mul_(200) # images that use the whole range
    game.D.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    game.d_loss(batch_of(ds), 0); game.g_loss(batch_of(ds), 0)
    assert len(seen) == 3 and all(x.shape == (16, 3, 32, 32) and x.dtype == torch.float32 for x in seen) # real, generated, generated for G
    for x in seen: assert -1 - 1e-5 <= x.min() < -.5 and .5 < x.max() <= 1 + 1e-5


def game_of(cfg, ds, known=None):
    G = p2._generator(cfg, 8) if cfg.method == 'gan' else torch.nn.Linear(1, 1)
    return p2._game()(G, p2.network(cfg, 8), ds.y, np.ones(len(ds), bool) if known is None else known, n=8, cfg=cfg, steps=10)


def batch_of(ds, n=16): return torch.tensor(ds.render(32, 0, n)), torch.arange(n)


def test_d_loss_is_the_sum_of_its_parts(ds):
    torch.manual_seed(0); game = game_of(tiny(weight=3.), ds); loss, logs = game.d_loss(batch_of(ds), 0)
    assert loss.item() == pytest.approx(3*logs['label'].item() + logs['d'].item(), rel=1e-6)
    g, _ = game.g_loss(batch_of(ds), 0); assert g.isfinite() and game.fake is None


def test_unlabelled_images_enter_the_game_only(ds):
    logs = []
    for known in (np.ones(len(ds), bool), np.zeros(len(ds), bool)):
        torch.manual_seed(0); logs.append(game_of(tiny(), ds, known).d_loss(batch_of(ds), 0)[1])
    assert logs[0]['d'].item() == logs[1]['d'].item() and logs[1]['label'].item() == 0 < logs[0]['label'].item()


def test_pseudo_labels_wait_and_need_confidence(ds):
    game = game_of(tiny('pseudo_label', pseudo_threshold=0.), ds); b = batch_of(ds)
    assert 'pseudo' not in game.d_loss(b, 2)[1] and game.d_loss(b, 3)[1]['pseudo'].item() == 1
    game = game_of(tiny('pseudo_label', pseudo_threshold=1.), ds); loss, logs = game.d_loss(b, 9)
    assert logs['pseudo'].item() == 0 and loss.item() == pytest.approx(logs['label'].item() + logs['d'].item(), rel=1e-6)


def test_a_conditional_generator_is_told_the_class(ds):
    cfg = tiny('conditional'); G = p2._generator(cfg, 8).eval()
    assert G.z_dim == cfg.z_dim + 8 and len(p2.draw(G, 20, cfg, 8)) == 20
    game = game_of(cfg, ds); game.d_loss(batch_of(ds), 0); assert game.g_loss(batch_of(ds), 0)[0].isfinite()


def test_batch_norm_is_measured_on_what_it_is_shown():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3)); x = torch.randn(40, 3, 4, 4)*2 + 5
    p2.measure_bn(net, x.split(10))
    assert torch.allclose(net[0].running_mean, x.mean((0, 2, 3)), atol=1e-4) and net[0].momentum == .1


def test_the_averaged_generator_has_statistics_of_its_own(judged, ds):
    "Left as the newest weights' they shift its colours: with 512 latents both modes must agree."
    from skinrepro.methods.train import load_state
    cfg = tiny(); G = p2._generator(cfg, 8); G.load_state_dict(load_state(judged[1]/'semi_gan'/'network'/'generator.pt')); z = torch.randn(512, cfg.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): own, batch = G.eval()(z), G.train()(z)
    assert (own.mean((0, 2, 3)) - batch.mean((0, 2, 3))).abs().max() < .02*batch.std()


def test_a_baseline_sees_generated_images_in_a_pass_of_their_own(ds):
    cfg = tiny('supervised', fake_unit=True, weight=3.); seen = []
    game = p2._game()(torch.nn.Linear(1, 1), p2.network(cfg, 8), ds.y, np.ones(len(ds), bool), n=8, cfg=cfg, steps=10, source=p2._generator(cfg, 8).eval())
    assert not [k for k in game.state_dict() if 'source' in k]
    game.D.register_forward_pre_hook(lambda _, x: seen.append(len(x[0]))); loss, logs = game.d_loss(batch_of(ds), 0)
    assert seen == [16, 8] and loss.item() == pytest.approx(3*logs['label'].item() + logs['d'].item(), rel=1e-6)


# runs

def test_chain(judged, ds):
    m = by_name(judged[0]); cfg = tiny()
    for k in ('accuracy', 'balanced_accuracy', 'macro_f1', 'majority_share', 'macro_recall', 'macro_precision', 'seen_lesion_share', 'fid', 'kid', 'p_fake_real', 'p_fake_generated'): assert math.isfinite(m[k]['value']), k
    assert m['accuracy']['n'] == 60 and m['seen_lesion_share']['value'] == 0 and m['macro_recall']['value'] == pytest.approx(m['balanced_accuracy']['value'])
    assert all(m[f'{w}_nv']['low'] <= m[f'{w}_nv']['value'] <= m[f'{w}_nv']['high'] for w in ('recall', 'precision', 'f1'))
    assert sum(m[f'judged_{c}']['value'] for c in ds.classes) == pytest.approx(1) and 0 <= m['judged_shift']['value'] <= 1
    assert m['judge_accuracy']['n'] == 60 and 'resnet18' in m['fid']['protocol'] and 'n=60' in m['fid']['protocol'] and any(k.startswith('fid_floor') for k in m)
    assert m['recall_nv']['groups'] < m['recall_nv']['n'] # under strict, lesions are redrawn
    f = judged[0]['figures']; assert f['in_train'].sum() == 120 and f['in_all'].tolist() == np.bincount(ds.y).tolist() and f['y'].shape == f['pred'].shape == (60,) and f['pred'].max() < len(ds.classes) and f['sheet'].shape == (24, 32, 32, 3)
    assert len({x['name'] for x in judged[0]['metrics']}) == len(judged[0]['metrics']) and judged[0]['data']['counts'] == dict(train=120, test=60)


def test_claims_name_what_the_records_hold(judged):
    from skinrepro.companion.claims import load_claims, terms
    held = set(by_name(judged[0])) # of a run on the phantom, whose classes are others
    def plain(metric): return f"{metric.partition('_')[0]}_nv" if metric.rpartition('_')[2] in HAM else metric
    for c in load_claims('semi_gan').itertuples():
        for _, arm, metric, _ in terms(c.contrast):
            assert arm in ARMS, c.id
            assert plain(metric or c.metric) in held, c.id


def test_source_domain_is_held_out_in_part(ds, tmp_path):
    got = by_name(run(source_of(tiny('resnet18')), ds, tmp_path))
    assert got['source_accuracy']['n'] == 2 and got['labelled']['n'] == 46 and (tmp_path/'body.pt').is_file() # of 48


def test_killed_in_mid_epoch_and_resumed_to_the_same_bits(judged, ds, tmp_path, monkeypatch):
    from functools import partial
    from skinrepro.methods import gan
    from skinrepro.methods.train import load_state
    cfg, whole, d_loss = network_of(tiny()), judged[1]/'semi_gan'/'network', p2._game().d_loss
    monkeypatch.setattr(gan, 'fit_gan', partial(gan.fit_gan, every=2)) # checkpoints between, not every minute
    def dies(self, batch, step):
        if step == 7: raise KeyboardInterrupt
        return d_loss(self, batch, step)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt): m.setattr(p2._game(), 'd_loss', dies); run(cfg, ds, tmp_path, {})
    assert [*tmp_path.glob('checkpoint-*')] and not (tmp_path/'network.pt').exists()
    seen = []; monkeypatch.setattr(p2._game(), 'd_loss', lambda self, batch, step: (seen.append(step), d_loss(self, batch, step))[1])
    got = run(cfg, ds, tmp_path, {})
    assert seen == list(range(6, 12)) and len(got['figures']['d']) == 12 # from the checkpoint on, and the whole curve
    for f in ('network.pt', 'generator.pt'): a, b = load_state(whole/f), load_state(tmp_path/f); assert all(torch.equal(a[k], b[k]) for k in a), f


def test_fewer_labels_and_a_baseline_with_generated_images(judged, ds, tmp_path):
    few = run(network_of(tiny('supervised_f10')), ds)
    assert by_name(few)['labelled']['value'] < 20 and by_name(few)['steps']['value'] == 2*(120//20)
    cfg = network_of(tiny('resnet18_fake_unit', weights='none')); assert set(inputs(cfg)) == {'gan'}
    got = run(cfg, ds, None, dict(gan=str(judged[1]/'semi_gan'/'network'))); assert math.isfinite(by_name(got)['label_training']['value'])


def test_missing_weights_name_the_run(ds, tmp_path):
    for cfg, says in ((tiny('supervised'), "network of arm 'supervised'"), (network_of(tiny('resnet18')), 'source weights of'), (network_of(tiny('resnet18_fake_unit', weights='none')), 'generator for arm')):
        with pytest.raises(UserError, match=says): run(cfg, ds, None, {})
