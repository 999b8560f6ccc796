"P3 as a whole: semantic maps, four disjoint sets, networks and losses against the oracles, what needs what, and a tiny chain."
import numpy as np
import pytest

from skinrepro.core import UserError, rng
from skinrepro.data.phantom import phantom, phantom_masks
from skinrepro.data.splits import groups
from skinrepro.papers import dermgan as d
from skinrepro.papers.dermgan import ARMS, MAIN, PRESETS, PROTOCOLS, SETS, STAGES, Config, arms, features_of, gan_of, inputs, run, split_of

TINY = dict(kimg=.32, control=4, trials=3, clf_epochs=2, added=24)


def tiny(arm='dermgan', protocol='paper', **more): return arms('smoke', protocol)[arm].but(**{**TINY, **more})


@pytest.fixture(scope='module')
def ds(): return phantom(240)


@pytest.fixture(scope='module')
def chain(ds, tmp_path_factory):
    "GAN and features, and everything that is judged with them."
    f = tmp_path_factory.mktemp('chain'); where = dict(gan=f/'gan', features=f/'features')
    out = dict(gan=run(gan_of(tiny()), ds, f/'gan'), features=run(features_of(tiny()), ds, f/'features'))
    for arm in ('real', 'dermgan', 'baseline', 'augmented'): out[arm] = run(tiny(arm), ds, f/arm, where)
    return dict(out, where=where)


def value(r, name): return next(m['value'] for m in r['metrics'] if m['name'] == name)


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_every_arm_names_what_it_needs(preset, protocol):
    made = arms(preset, protocol)
    assert list(made) == list(ARMS) and set(MAIN) <= set(made)
    for name, cfg in made.items():
        assert cfg.arm == name and cfg.stage == 'evaluate'
        for need in inputs(cfg).values():
            assert need.stage in STAGES and need.stage != 'evaluate' and need.arm in made and not inputs(need)


def test_what_does_not_matter_is_not_in_a_name():
    a = arms('small', 'strict')
    assert gan_of(a['augmented']) == gan_of(a['dermgan'].but(clf_lr=9., control=2)) == gan_of(arms('small', 'paper')['dermgan'])
    assert len({features_of(c.but(seed=s)) for c in a.values() for s in (0, 1)}) == 1
    assert len({gan_of(a[k]) for k in ('dermgan', 'no_resize_conv', 'no_roi_loss', 'no_feature_matching', 'roi_discriminator')}) == 5
    assert a['baseline'] == arms('small', 'paper')['baseline'] and a['augmented'].step_matched


@pytest.mark.parametrize('group', ('patient', 'lesion'))
def test_four_disjoint_sets(ds, group):
    cfg = tiny(group=group); _, split = split_of(cfg, ds); g = groups(ds, group)
    assert tuple(split.rows) == SETS and sum(split.counts.values()) == len(ds)
    for i, a in enumerate(SETS):
        for b in SETS[i + 1:]: assert not set(g[split.rows[a]]) & set(g[split.rows[b]])
    assert split.hash == split_of(cfg, ds)[1].hash != split_of(cfg.but(split_seed=1), ds)[1].hash
    used, _ = split_of(tiny('baseline', group=group), ds)
    assert not set(g[used]) & set(g[split.rows['clf_test']]) and set(split.rows['gan_train']) < set(used)


def test_too_few_images_for_four_sets():
    with pytest.raises(UserError, match='no image is left'): split_of(tiny(), phantom(3))


def test_maps_come_back_exactly():
    for seed in range(30):
        g = rng(seed); n = int(g.integers(1, 4)); lo = g.uniform(0, .7, (n, 2)); b = [tuple(v) for v in np.concatenate([lo, lo + g.uniform(.05, .3, (n, 2))], 1)]
        ks, t = g.integers(0, 26, n).tolist(), int(g.integers(1, 7))
        got, masks = d.decode(d.encode(t, b, ks, 48))
        want = np.full((48, 48), -1)
        for one, k in zip(b, ks): want[d.inside((one,), 48)] = k
        assert got == t and set(masks) == set(want[want >= 0])
        for k, m in masks.items(): assert np.array_equal(m, want == k)


def test_a_map_refuses_what_it_cannot_hold():
    for bad in (dict(skin=0), dict(skin=7), dict(condition=26), dict(condition=(1, 2))):
        with pytest.raises(UserError): d.encode(**{**dict(skin=1, boxes=((0, 0, 1, 1),), condition=0, size=8), **bad})
    with pytest.raises(UserError, match='no semantic map'): d.decode(np.full((4, 4, 3), 99, np.uint8))


def test_masks_and_boxes_agree(ds):
    "The phantom has both: boxes of its masks lie on its own."
    from skinrepro.papers.dermgan import _iou
    masks, boxes = phantom_masks(ds, 64, 0, 60), ds.manifest.box
    for m, b in zip(masks, boxes):
        if len(b) == 1 and len(got := d.boxes_of_mask(m)) == 1: assert np.abs(np.subtract(got[0], b[0])).max() < .05


def test_data_without_boxes_are_refused(ds):
    from dataclasses import replace
    bare = replace(ds, manifest=ds.manifest.assign(box=[()]*len(ds), mask=''))
    with pytest.raises(UserError, match='neither boxes nor masks'): d.annotations(bare, 32)


def test_missing_types_are_proxies(ds):
    from dataclasses import replace
    half = ds.manifest.skin_type.copy(); half[:100] = None
    boxes, skin, proxy = d.annotations(replace(ds, manifest=ds.manifest.assign(skin_type=half)), 32)
    assert proxy[:100].all() and not proxy[100:].any() and skin.min() >= 1 and skin.max() <= 6
    assert np.corrcoef(skin[:100], ds.manifest.skin_type[:100].astype(int))[0, 1] > .7


def test_windows_hold_their_group(ds):
    boxes = d.annotations(ds, 32)[0]
    for i, b in enumerate(boxes):
        w = d.window(b, rng(i)); assert min(w) > -1e-9 and max(w) < 1 + 1e-9 and abs((w[2] - w[0]) - (w[3] - w[1])) < 1e-9
        assert any(all(w[0] <= b[k][0] + 1e-9 and w[2] >= b[k][2] - 1e-9 and w[1] <= b[k][1] + 1e-9 and w[3] >= b[k][3] - 1e-9 for k in g) for g in d.adjacent(b))
        assert d.seen_in(b, w)


def test_crops_are_the_same_however_asked(ds):
    c = d.Crops(ds.images(32), d.annotations(ds, 32), ds.y, np.arange(20), 32, per=2)
    all_ = c[np.arange(40)]
    assert len(c) == 40 and np.array_equal(c[np.array([7, 3])], all_[[7, 3]]) and not np.array_equal(all_[0], all_[1])
    for k in range(40):
        t, masks = d.decode(all_[k, ..., 3:]); assert t == c.spec(k)[0] and list(masks) == [c.conditions[k]]


def test_networks_have_the_reference_sizes():
    n = lambda m: sum(p.numel() for p in m.parameters())
    assert (n(d.unet(256)), n(d.unet(256, upsample='deconv')), n(d.patchgan())) == (39157763, 54413955, 2768705)
    import torch
    for size in (32, 64, 128): assert d.unet(size, 2)(torch.zeros(2, 3, size, size)).shape == (2, 3, size, size)
    assert not any(isinstance(m, torch.nn.ConvTranspose2d) for m in d.unet(64, 2).modules())
    for bad in (48, 16):
        with pytest.raises(UserError, match='choose 32'): d.unet(bad)


def test_losses_equal_the_oracles():
    import torch
    r, q = (f(torch.arange(48.).double()).view(1, 3, 4, 4) for f in (torch.sin, torch.cos)); box = torch.zeros(1, 1, 4, 4).double(); box[..., 1:3, 1:4] = 1
    assert abs(d.roi_l1(r, q, box) - .881963543764966) < 1e-12 and abs(d.roi_l1(r, q, box, 'per_image') - .330736328911861) < 1e-12
    assert abs(d.feature_matching(r, q) - 1.002350438232505) < 1e-12
    both = torch.cat([r, q]), torch.cat([q, r]); assert d.feature_matching(*both, 'batch_mean') < 1e-20 < d.feature_matching(*both)
    with pytest.raises(UserError): d.roi_l1(r, q, box, 'area')


def test_a_switched_off_loss_has_no_say(ds):
    "With one weight at a time, G's loss is that term; all six switches train."
    import torch
    x = torch.from_numpy(d.Crops(ds.images(32), d.annotations(ds, 32), ds.y, np.arange(8), 32)[np.arange(4)])
    for name in ('l1', 'roi', 'adv', 'fm'):
        cfg = gan_of(tiny()).but(**{f'w_{k}': 0. for k in ('l1', 'roi', 'adv', 'fm')}).but(**{f'w_{name}': 2.})
        g = d.game_of(cfg); torch.manual_seed(0); g.d_loss((x,), 0); loss, logs = g.g_loss((x,), 0)
        assert abs(loss - 2*logs[name]) < 1e-5
    for sw in (dict(upsample='deconv'), dict(roi_critic=True), dict(fm='batch_mean'), dict(fm_at='pre'), dict(roi_norm='per_image')):
        g = d.game_of(gan_of(tiny()).but(**sw)); loss, _ = g.d_loss((x,), 0); loss.backward(); loss, _ = g.g_loss((x,), 0); loss.backward()
        assert all(p.grad is not None for p in g.parameters())


def test_an_interrupted_gan_goes_on_bit_for_bit(ds, tmp_path):
    import torch
    from skinrepro.methods.train import load_state
    cfg = gan_of(tiny(kimg=.16)); run(cfg, ds, tmp_path/'whole')
    run(cfg.but(kimg=.064), ds, tmp_path/'parts'); run(cfg, ds, tmp_path/'parts') # four steps, then the rest from the checkpoint
    a, b = (load_state(tmp_path/k/'generator.pt') for k in ('whole', 'parts'))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_chain(chain):
    for r in ('gan', 'features', 'real', 'dermgan', 'baseline', 'augmented'):
        ms = chain[r]['metrics']
        assert len({m['name'] for m in ms}) == len(ms) and all(np.isfinite(m['value']) and m['n'] > 0 and m['split'] for m in ms)
    named = {m['name']: m for m in chain['dermgan']['metrics']}
    assert {'fid', 'kid', 'checkerboard', 'ita_spearman', 'ita_lesion_spearman', 'size_spearman', 'surround_change_bcc', 'surround_noise_bcc', 'loss_wobble'} <= set(named)
    for k in ('fid', 'kid'): assert 'n=' in named[k]['protocol'] and 'small trained on real windows' in named[k]['protocol']
    assert abs(named['fid']['sd196'] - 1.96*named['fid']['sd']) < 1e-12 and -1 <= named['ita_spearman']['value'] <= 1
    fl = next(m for m in chain['real']['metrics'] if m['name'] == 'fid'); assert fl['n'] == named['fid']['n'] and fl['value'] < named['fid']['value']


def test_classifiers_have_everything_beside_an_accuracy(chain, ds):
    for r in ('baseline', 'augmented'):
        for k in ('accuracy', 'balanced_accuracy', 'macro_f1', 'majority_share', 'f1_nv', 'recall_nv', 'precision_nv'): value(chain[r], k)
        assert len(chain[r]['figures']['y']) == len(chain[r]['figures']['pred']) == chain[r]['data']['counts']['clf_test']
        m = next(m for m in chain[r]['metrics'] if m['name'] == 'accuracy'); assert m['low'] <= m['value'] <= m['high']
    assert np.array_equal(chain['baseline']['figures']['y'], chain['augmented']['figures']['y'])
    assert sum(value(chain['augmented'], f'images_added_{c}') for c in ds.classes) == 24 and value(chain['augmented'], 'images_added_nv') == 0 == value(chain['baseline'], 'images_added_mel')


def test_figures_fit_beside_a_record(chain, tmp_path):
    for r in ('gan', 'features', 'real', 'dermgan', 'baseline', 'augmented'):
        np.savez_compressed(tmp_path/f'{r}.npz', **chain[r]['figures']); assert (tmp_path/f'{r}.npz').stat().st_size <= 300_000


def test_equal_shares_and_steps(ds, chain):
    mixes = {m: d.made_conditions(tiny('augmented', mix=m, added=60), d.Crops(ds.images(32), d.annotations(ds, 32), ds.y, split_of(tiny(), ds)[1].rows['map_pool'], 32), ds) for m in ('pool', 'equal')}
    assert all(len(v) == 60 for v in mixes.values()) and np.ptp(np.unique(mixes['equal'], return_counts=True)[1]) <= 1
    free, matched = (len(run(tiny('augmented', p, added=96), ds, None, chain['where'])['figures']['loss']) for p in PROTOCOLS)
    assert matched == len(chain['baseline']['figures']['loss']) < free


def test_whole_images_or_windows(ds, chain):
    r = run(tiny('augmented_crops'), ds, None, chain['where']); assert len(r['figures']['y']) == len(chain['baseline']['figures']['y'])


def test_scorer_reads_what_was_put_in():
    design = d.study_design(['a', 'b', 'c'], each=40); a = d.simulate_raters(design, 12, .7, .2, .02)
    t = d.score_study(a, 200); assert abs(t.loc['micro', 'real'] - .7) < .05 and abs(t.loc['macro', 'synthetic'] - .2) < .05
    assert (t.real_low <= t.real + 1e-9).all() and (t.real <= t.real_high + 1e-9).all()
    assert len(d.study_design(list('abcdefgh'))) == 160 and d.study_design(list('abcdefgh'), questions=2).question.nunique() == 16
    uneven = a[~((a.condition == 'a') & a.real & (a.index % 2 == 0))]; u = d.score_study(uneven, 50); assert u.loc['micro', 'real'] != u.loc['macro', 'real']
    one = d.score_study(a[a.rater == 0], 50); assert np.isnan(one.loc['micro', 'real_sd'])
    for bad in (a.drop(columns='rater'), a.iloc[:0], a[a.real], a.assign(chosen=np.nan)):
        with pytest.raises(UserError): d.score_study(bad)


def test_missing_inputs_and_wrong_values(ds):
    for arm in ('dermgan', 'real', 'augmented'):
        with pytest.raises(UserError, match='make it with'): run(tiny(arm), ds, None, {})
    for bad in (dict(upsample='nearest'), dict(mix='half'), dict(method='pix2pix'), dict(w_l2=3.)):
        with pytest.raises(UserError): Config().but(**bad)
