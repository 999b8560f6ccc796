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
    for bad in (dict(skin=0), dict(skin=7), dict(skin=2.5), dict(condition=26), dict(condition=-1), dict(condition=1.5), dict(condition=(1, 2))):
        with pytest.raises(UserError): d.encode(**{**dict(skin=1, boxes=((0, 0, 1, 1),), condition=0, size=8), **bad})
    for box in ((.5, .1, .2, .3), (.1, .1, .1, .3), (1.2, .1, 1.5, .3), (-.1, 0, .5, .5), (10, 10, 30, 40), (0, 0, float('nan'), 1), (0, 0, 1)):
        with pytest.raises(UserError, match='leaves the frame'): d.encode(1, ((0, 0, 1, 1), box), 0, 8)


def test_only_a_map_is_read():
    good = d.encode(2, ((.1, .1, .6, .6),), 3, 8); level = d._level
    half, other, untyped, torn, grey = (good.copy() for _ in range(5))
    half[3, 3, 2] = 0; other[3, 3, 1:] = level(6); untyped[..., 0] = 0; torn[0, 0, 0] = level(3); grey[0, 0, 1] += 1 # condition 35 does not exist
    for bad in (half, other, untyped, torn, grey, np.full((4, 4, 3), 99, np.uint8), np.zeros((8, 8, 3), np.uint8), good[..., 0], good[..., :2], good[:0], good/255):
        with pytest.raises(UserError, match='no semantic map'): d.decode(bad)
    assert d.decode(good)[0] == 2 and d.decode(good.tolist())[1].keys() == {3} and d.decode(d.encode(5, (), 0, 8)) == (5, {}) and d.decode(d.encode(6, ((0, 0, 1, 1),), 25, 8))[1][25].all()


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


def test_an_image_without_skin_to_measure_has_no_map(ds):
    "A lesion that fills the frame leaves no skin: its type cannot be a proxy's, so it is left out."
    from dataclasses import replace
    skin = ds.manifest.skin_type.copy(); skin[:2] = None
    box = ds.manifest.box.copy(); box[0] = ((0., 0., 1., 1.),)
    boxes, types, proxy = d.annotations(replace(ds, manifest=ds.manifest.assign(skin_type=skin, box=box)), 32)
    assert boxes[0] == () and boxes[1] and proxy[:2].all() and not proxy[2:].any() and 1 <= types[1] <= 6
    x = np.full((10, 10, 3), 200, np.uint8); x[:, :5] = (90, 60, 45); left = np.zeros((10, 10), bool); left[:, :5] = True
    assert d.skin_ita(x, left) > 40 > -40 > d.skin_ita(x, ~left) and np.isnan(d.skin_ita(x, np.ones((10, 10), bool)))


def test_a_rim_and_hair_are_no_skin(ds):
    yy, xx = np.indices((64, 64)) - 31.5; none = np.zeros((64, 64), bool)
    x = np.full((64, 64, 3), (230, 190, 170), np.uint8); pale = d.skin_ita(x, none)
    rim, hair, grey = x.copy(), x.copy(), x.copy(); rim[yy**2 + xx**2 > 24**2] = 5; hair[:, ::3] = hair[:, 1::3] = (25, 20, 15); grey[yy**2 + xx**2 > 32**2] = (100, 80, 70)
    for v in (rim, hair, grey): assert d.skin_ita(v, none) == d.skin_angle(v[None], [()])[0] == pale
    assert np.isnan(d.skin_ita(np.full_like(x, 3), none)) and np.isfinite(d.skin_angle(np.full_like(x, 3)[None], [()])[0])
    assert not (d.visible_skin(x, none) & ~d.visible_skin(x, yy > 0) & (yy <= 0)).any() and not d.visible_skin(x, yy > 0)[yy > 0].any() # the lesion alone is left out
    boxes, types, _ = d.annotations(ds, 64); seen = [d.lightness(v[~d.inside(b, 64)]/255) for v, b, t in zip(ds.images(64), boxes, types) if t == 6]
    assert 27 < np.mean([np.median(v) for v in seen]) < 33 and np.mean([(v > 20).mean() for v in seen]) > .9 # dark skin stays


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


def test_the_checkerboard_is_what_alternates():
    x = np.full((2, 64, 64, 3), 100, np.uint8); x[:, ::2] = 110 # rows of 110 and 100: a cell of two by two has variance 25, blocks do not wash it out
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 64, 3))[None]
    assert d.checkerboard(x) == 25 and d.checkerboard(smooth) == .25 and d.checkerboard(np.roll(x, 1, 1)) == 25
    for bad in (x[:0], x[:, :4, :4]):
        with pytest.raises(UserError, match='hold no block'): d.checkerboard(bad)


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
    assert {'fid', 'kid', 'checkerboard', 'ita_spearman', 'ita_lesion_spearman', 'ita_falls', 'lightness_range', 'size_spearman', 'size_found', 'size_iou', 'size_slope', 'surround_change_bcc', 'surround_noise_bcc',
            'loss_wobble', 'fid_at_20', 'fid_at_80', 'fid_at_100', 'fid_wobble', 'condition_accuracy', 'condition_majority_share', 'condition_balanced_accuracy'} <= set(named)
    assert {'size_found', 'size_iou', 'size_slope', 'condition_majority_share'} <= {m['name'] for m in chain['real']['metrics']}
    for k in chain: # every condition that is shown has its majority share beside it
        names = {m['name'] for m in chain[k]['metrics']} if k != 'where' else set()
        assert ('condition_accuracy' in names) == ('condition_majority_share' in names) == ('condition_macro_f1' in names)
    for k, n in (('ita_spearman', 4), ('size_spearman', len(chain['dermgan']['figures']['size_area'])), ('surround_change_bcc', 1)): assert named[k]['n'] == n # what was measured
    c = chain['dermgan']['data']['counts']; assert all(c[f'gan_train_type_{t}_by_ita'] == 0 for t in range(1, 7)); assert 0 < sum(c[f'gan_train_type_{t}'] for t in range(1, 7)) <= c['gan_train'] and c['skin_type_by_ita'] == 0
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


def test_sheets_come_back(chain):
    f = chain['dermgan']['figures']
    assert d.unpacked(f['colour_sheet']).shape == (4*32, 6*32, 3) and d.unpacked(f['size_sheet']).shape[1] == 7*32
    big = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8).repeat(32, 1).repeat(32, 2); v = d.packed(big, 3)
    assert d.unpacked(v).shape == (2*96, 3*96, 3) and len(v) < 60_000 # a sheet of the paper's size fits beside a record, too
    x = np.linspace(0, 255, 6*32*32*3).reshape(6, 32, 32, 3).astype(np.uint8); v = d.unpacked(d.packed(x, 3))
    assert np.abs(v[:32, 32:64].astype(int) - x[1]).mean() < 3 and np.abs(v[32:, :32].astype(int) - x[3]).mean() < 3


def test_snapshots_lie_on_the_way(chain):
    from skinrepro.methods.train import load_state
    whole = [load_state(chain['where']['gan']/n) for n in (*[f'generator-{k}.pt' for k in range(1, 5)], 'generator.pt')]
    key = next(k for k in whole[0] if k.endswith('weight')); dist = [float((w[key] - whole[-1][key]).abs().mean()) for w in whole]
    assert dist[-1] == 0 and all(a > b for a, b in zip(dist, dist[1:])) and set(chain['gan']['artefacts']) >= {'generator.pt', 'generator-4.pt'}


def disc(s, size=48, skin=(220, 180, 160), lesion=(90, 50, 40)):
    r = np.hypot(*(np.indices((size, size)) - size/2 + .5)); return np.where((r < s*size/2)[..., None], lesion, skin).astype(np.uint8)


def test_a_lesion_is_found_only_where_there_is_one():
    grow = [(.5 - s/2,)*2 + (.5 + s/2,)*2 for s in d.SIDES]
    good = d.size_scores([disc(s) for s in d.SIDES], grow); assert good['size_found'] == 1 and good['size_iou'] > .9 and abs(good['size_slope'] - np.pi/4) < .05
    fixed = d.size_scores([disc(.4)]*7, grow); assert abs(fixed['size_slope']) < .01 and fixed['size_iou'] < good['size_iou'] # a lesion that ignores its box
    for seed in range(5):
        v = rng(seed).normal(150, 20, (48, 48, 3)).clip(0, 255).astype(np.uint8)
        assert not any(d.segment(v, b).any() for b in grow[2:]) # noise, which Otsu always cut in two
    assert not d.segment(disc(.5, lesion=(215, 176, 157)), grow[3]).any() # too alike
    two = disc(.3); two[:8, :8] = (90, 50, 40); assert d.segment(two, grow[1])[:10, :10].sum() == 0 # another lesion in a corner is another one


def test_controls_find_what_a_perfect_generator_does(ds, monkeypatch):
    "A generator that paints its map to the letter: monotone colour, area in step with the box, untouched surroundings."
    from types import SimpleNamespace
    tone = np.linspace(235, 60, 6)
    def painter(G, maps, seed=0, batch=64, paired=False):
        out = np.empty(maps.shape, np.uint8)
        for o, m in zip(out, maps):
            t, masks = d.decode(m); o[:] = tone[t - 1]*np.array([1, .8, .7])
            for mask in masks.values(): o[mask] = o[mask]*.5
        return out
    monkeypatch.setattr(d, 'generate', painter)
    cfg = tiny(); data = SimpleNamespace(ds=ds, split=split_of(cfg, ds)[1], notes=d.annotations(ds, 32), x=ds.images(32))
    colour, shown = d.colour_control(cfg, data, None); size, around, grown = d.size_control(cfg, data, None)
    assert colour['ita_spearman'] == -1 and colour['ita_falls'] == 1 and colour['ita_range'] > 50 and colour['lightness_range'] > 30 and colour['ita_lesion_spearman'] < -.9
    assert size['size_found'] == 1 and size['size_spearman'] > .999 and size['size_iou'] > .99 and abs(size['size_slope'] - 1) < .02 and around['surround_change_bcc'] == 0 == around['surround_noise_bcc']


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


def test_real_and_generated_images_are_resized_once(ds, chain):
    "The classifier's store has its own size: a generated picture is not blown up to the windows' store and shrunk again."
    from types import SimpleNamespace
    cfg = tiny('augmented', store_size=64); data = SimpleNamespace(ds=ds, split=split_of(cfg, ds)[1], notes=d.annotations(ds, 32), x=ds.images(64))
    x, y, rows, more = d.training_set(cfg, data, chain['where'])
    assert x.shape[1:] == (32, 32, 3) and len(x) == len(y) == len(ds) + len(more) and np.array_equal(x[rows[:5]], ds.images(32)[rows[:5]])
    pool = d.crops_of(cfg, data, 'map_pool'); from skinrepro.core import seed_of
    made = d.generate(d.load_generator(cfg, chain['where']['gan']), d.draw_maps(pool, more, 32, seed_of(cfg.seed, 'added'), cfg.shift), cfg.seed)
    assert np.array_equal(x[rows[-len(more):]], made)


def test_the_search_for_weights_sees_no_evaluation_image(ds, chain):
    made = arms('smoke', 'paper'); search = {a: c for a, c in made.items() if a.startswith('weights_')}
    assert len(search) == 8 and all(c.judged == 'map_pool' and c.kimg < made['dermgan'].kimg for c in search.values()) and {(c.w_l1, c.w_roi, c.w_fm) for c in search.values()} >= {(100., 50., 10.)}
    _, s = split_of(tiny(), ds); cfg = search['weights_l1_10_roi_10_fm_1'].but(**TINY); gan = chain['where']
    seen = []
    class Watch(d.Crops):
        def __init__(self, x, notes, y, rows, *a): seen.extend(rows); super().__init__(x, notes, y, rows, *a)
    real = d.Crops; d.Crops = Watch
    try: r = run(cfg.but(kimg=TINY['kimg']), ds, None, gan)
    finally: d.Crops = real
    assert seen and not set(seen) & set(s.rows['fid_eval']) and not set(seen) & set(s.rows['clf_test'])
    assert {'fid', 'kid'} <= {m['name'] for m in r['metrics']}


def pictures(n=20, size=16):
    "Three conditions; real pictures are darker than synthetic ones, so that a file can be told by its pixels."
    return {c: (np.full((n, size, size, 3), 50 + k, np.uint8), np.full((n, size, size, 3), 150 + k, np.uint8)) for k, c in enumerate(('mel', 'nv', 'bcc'))}


def click_through(kit, rater, choose, stop=None):
    r = d.Rating(kit, rater)
    while not r.done:
        for i in r.images:
            if choose(r, i): r.click(i)
            if stop is not None and r.clicks >= stop: return r
        r.turn()
    return r


def test_a_kit_is_blind_and_shuffled(tmp_path):
    import json
    import pandas as pd
    from PIL import Image
    kit = d.make_study(tmp_path/'kit', pictures(), each=10, shown=7)
    key, study = pd.read_csv(kit/'key.csv'), json.loads((kit/'study.json').read_text())
    assert len(key) == 60 and key.real.sum() == 30 and key.image.is_unique and key.groupby('condition').size().eq(20).all()
    for r in key.itertuples(): assert (np.asarray(Image.open(kit/'images'/f'{r.image}.png'))[0, 0, 0] < 100) == r.real # the key tells the truth
    assert len({(f.stat().st_mode, Image.open(f).size, tuple(Image.open(f).info)) for f in (kit/'images').iterdir()}) == 1 # nothing but pixels differs
    said = json.dumps(study); assert not any(w in said for w in ('real"', 'synthetic', 'true', 'mel'))
    order = [i for p in d.Rating(kit, 'a').pages for i in p['images']]; assert sorted(order) == sorted(key.image) == sorted(study['questions'][0]['images'])
    real = key.set_index('image').real[order].to_numpy(); assert .25 < (real[1:] == real[:-1]).mean() < .75 # no blocks
    assert d.Rating(kit, 'a').pages == d.Rating(kit, 'a').pages != d.Rating(kit, 'b').pages and [len(p['images']) for p in d.Rating(kit, 'a').pages] == [7]*8 + [4]
    again = d.make_study(tmp_path/'again', pictures(), each=10, shown=7); assert (again/'key.csv').read_text() == (kit/'key.csv').read_text()
    assert (d.make_study(tmp_path/'other', pictures(), each=10, seed=1)/'key.csv').read_text() != (kit/'key.csv').read_text()


def test_the_two_designs():
    one, two = d.study_design(list('abcdefgh')), d.study_design(list('abcdefgh'), 'relevance')
    assert (len(one), one.real.sum(), two.question.nunique()) == (160, 80, 16) and two.groupby('question').size().eq(30).all()
    own = two[two.asked == two.condition]; assert own.groupby(['question', 'real']).size().eq(10).all() and not own.duplicated(['condition', 'real', 'picture']).any()
    assert not two.duplicated(['question', 'condition', 'real', 'picture']).any() and two[two.asked != two.condition].real.mean() == .5
    with pytest.raises(UserError, match='lower it'): d.study_design(['a', 'b'], 'relevance', others=99)
    for bad in (dict(conditions=[]), dict(each=0), dict(questions=0)):
        with pytest.raises(UserError, match='1 or more'): d.study_design(**{**dict(conditions=['a', 'b'], kind='relevance'), **bad})
    assert len(d.study_design(['a', 'b'], 'relevance', others=0)) == 2*2*20 and len(d.study_design(['a'], 'relevance')) == 40


def test_every_click_is_on_the_disk_and_a_rater_goes_on(tmp_path):
    import json
    kit = d.make_study(tmp_path/'kit', pictures(), each=6, shown=5)
    r = d.Rating(kit, 'anna'); assert not r.file.exists()
    for k, i in enumerate(r.images):
        r.click(i); on_disk = json.loads(r.file.read_text()); assert on_disk['chosen'] == sorted(r.chosen) and on_disk['clicks'] == k + 1
    r.click(r.images[0]); assert r.images[0] not in json.loads(r.file.read_text())['chosen']
    r.turn(); again = d.Rating(kit, 'anna'); assert (again.page, again.chosen, again.clicks, again.images) == (1, r.chosen, 7, r.images)
    again.turn(-1); assert again.page == 0 and again.chosen == r.chosen; again.turn(-1); assert again.page == 0
    with pytest.raises(UserError, match='another window'): r.click(r.images[1]) # out of date
    assert r.images[1] not in r.chosen and json.loads(r.file.read_text())['clicks'] == 9
    with pytest.raises(UserError, match='not on this page'): again.click(again.pages[3]['images'][0])


def test_a_failed_write_changes_nothing(tmp_path, monkeypatch):
    import os
    kit = d.make_study(tmp_path/'kit', pictures(), each=6); r = d.Rating(kit, 'bo'); r.click(r.images[0]); before = r.file.read_bytes()
    def full(*a): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', full)
        with pytest.raises(OSError): r.click(r.images[1])
    assert r.file.read_bytes() == before and r.chosen == {r.images[0]} and len(list(r.file.parent.iterdir())) == 1
    r.click(r.images[1]); assert d.Rating(kit, 'bo').chosen == {r.images[0], r.images[1]}


def test_answers_of_known_raters_are_scored_exactly(tmp_path):
    import pandas as pd
    kit = d.make_study(tmp_path/'kit', pictures(), each=10, shown=9); key = pd.read_csv(kit/'key.csv').set_index('image')
    with pytest.raises(UserError, match='no finished answers'): d.read_answers(kit)
    click_through(kit, 'expert', lambda r, i: key.real[i]); click_through(kit, 'all', lambda r, i: True); click_through(kit, 'only-mel', lambda r, i: key.condition[i] == 'mel')
    click_through(kit, 'tired', lambda r, i: True, stop=5)
    a = d.read_answers(kit); assert len(a) == 180 and set(a.rater) == {'expert', 'all', 'only-mel'} # who has not finished does not count
    t = d.score_study(a, 300)
    assert t.loc['mel', 'real'] == 1 and abs(t.loc['mel', 'synthetic'] - 2/3) < 1e-12 and abs(t.loc['nv', 'real'] - 2/3) < 1e-12 and abs(t.loc['nv', 'synthetic'] - 1/3) < 1e-12
    assert abs(t.loc['micro', 'real'] - 7/9) < 1e-12 and abs(t.loc['macro', 'synthetic'] - 4/9) < 1e-12 and abs(t.loc['nv', 'real_sd'] - np.std([1, 1, 0], ddof=1)) < 1e-12
    assert abs(t.loc['micro', 'real_sd'] - np.std([1, 1, 1/3], ddof=1)) < 1e-12 and t.loc['micro', 'real_n'] == 90 and (t.raters == 3).all()
    assert len(d.read_answers(kit, partial=True)) == 180 # five clicks on the first page: not one page is finished


def test_relevance_counts_other_conditions_apart(tmp_path):
    import pandas as pd
    kit = d.make_study(tmp_path/'kit', pictures(), 'relevance', each=10, shown=30); key = pd.read_csv(kit/'key.csv').set_index('image')
    asks = {p['ask'] for p in d.Rating(kit, 'x').pages}; assert asks == {f'Which of these show {c}?' for c in ('mel', 'nv', 'bcc')}
    click_through(kit, 'knows', lambda r, i: key.condition[i] in r.ask); click_through(kit, 'all', lambda r, i: True)
    t = d.score_study(d.read_answers(kit), 100); assert (t.real == 1).all() and (t.synthetic == 1).all() and (t.others == .5).all()
    blind = click_through(d.make_study(tmp_path/'two', pictures(), 'relevance'), 'real-only', lambda r, i: (kit.parent/'two'/'images'/f'{i}.png').exists() and np.asarray(_open(kit.parent/'two'/'images'/f'{i}.png'))[0, 0, 0] < 100)
    t = d.score_study(d.read_answers(tmp_path/'two'), 50); assert blind.done and (t.real == 1).all() and (t.synthetic == 0).all()


def _open(path):
    from PIL import Image
    return Image.open(path)


def test_a_kit_from_a_trained_generator(ds, chain, tmp_path):
    cfg = tiny(); made = d.study_pictures(cfg, ds, chain['where']['gan'], 1)
    assert set(made) <= set(ds.classes) and len(made) >= 4 and all(a.shape == b.shape == (1, 32, 32, 3) for a, b in made.values())
    again = d.study_pictures(cfg, ds, chain['where']['gan'], 1); assert all(np.array_equal(a, b) for c in made for a, b in zip(made[c], again[c]))
    kit = d.make_study(tmp_path/'kit', made, each=1); d.simulate_raters(kit, 1); assert len(d.read_answers(kit)) == 2*len(made)
    with pytest.raises(UserError, match='lower n'): d.study_pictures(cfg, ds, chain['where']['gan'], 500)


def test_simulated_raters_and_intervals(tmp_path):
    kit = d.make_study(tmp_path/'kit', pictures(), each=20, shown=120); d.simulate_raters(kit, 8, .7, .2, spread=.02)
    a = d.read_answers(kit); t = d.score_study(a, 400); assert abs(t.loc['micro', 'real'] - .7) < .06 and abs(t.loc['macro', 'synthetic'] - .2) < .06
    assert (t.real_low <= t.real + 1e-9).all() and (t.real <= t.real_high + 1e-9).all() and .01 < t.loc['micro', 'real_high'] - t.loc['micro', 'real_low'] < .2
    assert d.score_study(a, 400).equals(t) and not d.score_study(a, 400, seed=1).equals(t)
    uneven = a[~((a.condition == 'mel') & a.real & (a.index % 2 == 0))]; u = d.score_study(uneven, 50); assert u.loc['micro', 'real'] != u.loc['macro', 'real']
    one = d.score_study(a[a.rater == a.rater[0]], 50); assert np.isnan(one.loc['micro', 'real_sd']) and one.loc['micro', 'real_low'] < one.loc['micro', 'real_high'] # answers vary even where raters cannot
    for bad in (a.drop(columns='rater'), a.iloc[:0], a[a.real], a.assign(chosen=np.nan), a[(a.rater != a.rater[0]) | (a.condition != 'mel')]):
        with pytest.raises(UserError): d.score_study(bad)


def test_intervals_cover():
    "On raters drawn from a known rate, the 95 % interval holds it about that often."
    import pandas as pd
    held = 0
    for k in range(60):
        g = rng(k, 'cover'); p = np.clip(.5 + g.normal(0, .12, 10), 0, 1)
        a = pd.DataFrame([dict(rater=r, condition=c, real=real, chosen=g.random() < p[r]) for r in range(10) for c in 'ab' for real in (True, False) for _ in range(10)])
        t = d.score_study(a, 200, seed=k); held += t.loc['micro', 'real_low'] <= .5 <= t.loc['micro', 'real_high']
    assert 50 <= held <= 60


def test_a_kit_refuses_what_it_cannot_be(tmp_path):
    kit = d.make_study(tmp_path/'kit', pictures(), each=3)
    odd = dict(pictures(), mel=(pictures()['mel'][0], np.zeros((20, 8, 8, 3), np.uint8)))
    for call in (lambda: d.make_study(kit, pictures()), lambda: d.make_study(tmp_path/'a', pictures(2)), lambda: d.make_study(tmp_path/'b', odd), lambda: d.make_study(tmp_path/'c', pictures(), 'beauty'),
                 lambda: d.make_study(tmp_path/'e', pictures(), shown=0), lambda: d.Rating(tmp_path, 'anna'), lambda: d.Rating(kit, '../anna'), lambda: d.Rating(kit, '')):
        with pytest.raises(UserError): call()
    d.Rating(kit, 'anna').turn(); d.make_study(tmp_path/'new', pictures(), each=4)
    (tmp_path/'new'/'answers').mkdir(); (tmp_path/'new'/'answers'/'anna.json').write_bytes((kit/'answers'/'anna.json').read_bytes())
    with pytest.raises(UserError, match='another study'): d.Rating(tmp_path/'new', 'anna')
    (kit/'answers'/'anna.json').write_text('{"study": ')
    with pytest.raises(UserError, match='not whole JSON'): d.Rating(kit, 'anna')


def test_the_form_says_what_the_state_says(tmp_path):
    "The widget, driven without a browser: what a click does to the state and to the page."
    pytest.importorskip('ipywidgets', reason='ipywidgets is not installed')
    kit = d.make_study(tmp_path/'kit', pictures(), each=3, shown=8); r = d.Rating(kit, 'form'); form = d.study_form(r); head, grid, foot = form.children
    back, onward, said = foot.children; assert len(grid.children) == 8 and back.disabled and 'Page 1 of 3' in head.value
    grid.children[2].children[1].value = True; assert r.chosen == {r.images[2]} and d.Rating(kit, 'form').chosen == r.chosen and 'saved' in said.value
    d.Rating(kit, 'form').turn(0); grid.children[3].children[1].value = True; assert 'another window' in said.value # somebody else wrote meanwhile
    form = d.study_form(r := d.Rating(kit, 'form')); head, grid, foot = form.children; assert [c.children[1].value for c in grid.children] == [i in r.chosen for i in r.images]
    for _ in range(3): foot.children[1].click()
    assert r.done and 'Thank you' in head.value and not grid.children and foot.children[1].disabled


def test_painter(ds):
    p = d.Painter(d.unet(32, 4), ds.classes, 32, {1: 3, 5: 0})
    t, masks = d.decode(p.set(skin=4, condition='bcc', box=(.25, .5, .75, 1.)).map); k = ds.classes.index('bcc')
    assert t == 4 and list(masks) == [k] and np.array_equal(masks[k], d.inside(((.25, .5, .75, 1.),), 32)) and p.picture.shape == (32, 32, 3)
    assert np.array_equal(p.picture, p.picture) and '0 windows' in p.set(skin=5).note and p.set(skin=4).note == ''
    for bad in (dict(skin=0), dict(skin=2.5), dict(condition='mole'), dict(box=(.2, .2, .2, .4)), dict(box=(-.1, 0, 1, 1))):
        before = p.map
        with pytest.raises(UserError): p.set(**bad)
        assert np.array_equal(p.map, before)


def test_the_form_of_the_painter(ds):
    pytest.importorskip('ipywidgets', reason='ipywidgets is not installed')
    G = d.unet(32, 4)
    for w in G.parameters(): w.data *= 5 # initial weights are so small that every picture is grey
    p = d.Painter(G, ds.classes, 32); form = d.paint_form(p); (across, skin), (down, condition), (left, right), (again, said) = (row.children for row in form.children)
    seen = [bytes(right.value)]
    for act in (lambda: setattr(skin, 'value', 6), lambda: setattr(condition, 'value', 'scc'), lambda: setattr(across, 'value', (.1, .4)), lambda: setattr(down, 'value', (.9, 1.)), again.click): act(); seen.append(bytes(right.value))
    assert len(set(seen)) == 6 and (p.skin, p.classes[p.condition], p.draw) == (6, 'scc', 1) and 'nearly absent' in said.value
    across.value = (1., 1.); assert p.box[2] == 1 and p.box[0] < 1 # a box never vanishes


def test_compare_against_a_library_and_itself():
    from sklearn.metrics import f1_score
    g = rng(3); y = g.choice(4, 500, p=(.7, .2, .06, .04)); a, b = (np.where(g.random((3, 500)) < s, y, g.integers(0, 4, (3, 500))) for s in (.4, .7))
    tests, t = d.compare(y, a, b, 'abcd', 300)
    assert np.allclose(t.baseline, np.mean([f1_score(y, p, average=None) for p in a], 0)) and np.allclose(t.gain, t.augmented - t.baseline) and len(tests) == 3
    assert (t.gain_low <= t.gain).all() and (t.gain <= t.gain_high).all() and (t.gain_high - t.gain_low)['d'] > (t.gain_high - t.gain_low)['a'] # the rare class is the uncertain one
    assert d.compare(y, a, a, 'abcd', 50)[1][['gain', 'gain_low', 'gain_high']].abs().to_numpy().max() == 0
    for bad in ((y, a, b[:, :-1]), ([], [], [])):
        with pytest.raises(UserError, match='same test images'): d.compare(*bad, 'abcd')


@pytest.mark.data
def test_real_masks_become_maps(data_dir):
    "HAM10000's lesion masks: a box in which the mask lies, an exact map, a type by ITA marked as proxy."
    from dataclasses import replace
    from skinrepro.data.archives import open_dataset
    from skinrepro.data.lesions import decode
    ds = open_dataset('ham10000', str(data_dir)); some = replace(ds, manifest=ds.manifest.iloc[::50].reset_index(drop=True))
    boxes, skin, proxy = d.annotations(some, 64); have = [i for i, b in enumerate(boxes) if b]
    assert len(some) > 150 and len(have) > .97*len(some) and proxy.all() and set(skin[have]) <= set(range(1, 7))
    for i in have[:60]:
        mask = decode(some.manifest['mask'][i], 64, 'L') > 0; cover = d.inside(boxes[i], 64)
        assert (mask & cover).sum() > .9*mask.sum() # but for specks
        t, masks = d.decode(d.encode(int(skin[i]), boxes[i], int(some.y[i]), 64)); assert t == skin[i] and np.array_equal(masks[some.y[i]], cover)
    x = some.images(64); light = [x[i][~d.inside(boxes[i], 64)].mean() for i in have if (~d.inside(boxes[i], 64)).any()]
    assert np.corrcoef(light, [skin[i] for i in have if (~d.inside(boxes[i], 64)).any()])[0, 1] < -.2 # darker skin, higher type


@pytest.mark.data
def test_type_six_of_dermoscopy_is_mostly_rim(data_dir):
    "By all pixels outside the lesion most type VI is black corners around pale skin; by visible skin it is not VI."
    from skinrepro.data.archives import open_dataset
    from skinrepro.data.phantom import ita
    ds = open_dataset('ham10000', str(data_dir)); x = ds.images(64); masks = d.mask_store(ds, np.arange(len(ds)), 64); boxes, skin, _ = d.annotations(ds, 64)
    naive = np.array([d.type_of_ita(np.median(ita(v[m == 0][::8]/255))) if (m == 0).mean() > .05 else 0 for v, m in zip(x, masks)])
    was = naive == 6; now = np.array([bool(b) for b in boxes]) & (skin == 6)
    assert was.sum() > 20 and (was & ~now).sum() > was.sum()/2 and now.sum() < 20
    assert (skin[np.isin(naive, (1, 2, 3))] == naive[np.isin(naive, (1, 2, 3))]).mean() > .95 # elsewhere the limits change little


@pytest.mark.data
def test_clinical_photographs_bring_boxes_and_types(data_dir):
    from skinrepro.data.archives import read_pad_ufes_20
    import warnings
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); ds = read_pad_ufes_20(data_dir, partial=True)
    boxes, skin, proxy = d.annotations(ds, 32); known = ds.manifest.skin_type.notna().to_numpy()
    assert np.array_equal(proxy, ~known) and known.sum() > 400 and np.array_equal(skin[known], ds.manifest.skin_type[known].to_numpy(int)) and sum(map(bool, boxes)) > .95*len(ds)
    cfg = arms('small', 'paper')['dermgan'].but(dataset='pad_ufes_20'); _, s = split_of(cfg, ds); assert min(s.counts.values()) > 50
    assert len(d.Crops(ds.images(64), (boxes, skin, proxy), ds.y, s.rows['gan_train'], 32)) > 300


def test_missing_inputs_and_wrong_values(ds):
    for arm in ('dermgan', 'real', 'augmented'):
        with pytest.raises(UserError, match='make it with'): run(tiny(arm), ds, None, {})
    for bad in (dict(upsample='nearest'), dict(mix='half'), dict(method='pix2pix'), dict(w_l2=3.), dict(control=0), dict(shares=(.8, .1, .1)), dict(shares=(.5, .5, 0., .1)), dict(shares=(1., 1., 1., float('nan'))),
                dict(size=100), dict(size=16), dict(width=0), dict(kimg=0), dict(lr=-1e-3), dict(clf_lr=0), dict(w_l1=-1), dict(w_fm=float('nan')), dict(snapshots=-1), dict(shift=-.1)):
        with pytest.raises(UserError): Config().but(**bad)
