"FID, KID, precision, recall and the memorising check, against torch-fidelity, scipy and closed forms."
import hashlib

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from skinrepro.core import UserError
from skinrepro.evaluation import gan_metrics as gm
from skinrepro.evaluation.gan_metrics import Features, Value, diversity, extractor, features, fid, fid_curve, fid_floor, fid_trials, frechet, frechet_statistics, kid, memorising, nearest, pixels, precision_recall, report, table
from skinrepro.methods.encoders import encoder


def cloud(n, d=16, seed=0, scale=1., shift=0., name='x', side=32): return Features((scale*np.random.default_rng(seed).normal(size=(n, d)) + shift).astype('float32'), name, 'net sha256:00', side)
def images(n, side=16, seed=0): return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def net(): return extractor(encoder('resnet18'), 'resnet18-untrained', 32)


def stats(x): return np.mean(x, 0), np.cov(x.T)


def test_frechet_oracle():
    g = np.random.default_rng(0)
    a, b = g.normal(size=(400, 8)), 1.3*g.normal(size=(400, 8)) + .4
    assert frechet(a, b) == pytest.approx(2.55867360, abs=1e-8)
    assert frechet_statistics(*stats(a), *stats(b)) == pytest.approx(2.55867360, abs=1e-8)


@pytest.mark.parametrize('n,m,d', [(400, 300, 32), (200, 40, 32), (300, 20, 64), (20, 30, 64), (64, 65, 64)])
def test_frechet_is_the_librarys(n, m, d):
    tf = pytest.importorskip('torch_fidelity.metric_fid')
    g = np.random.default_rng(1); mix = g.normal(size=(d, d))
    a, b = g.normal(size=(n, d)) @ mix, 1.2*g.normal(size=(m, d)) @ mix + .3
    theirs = tf.fid_statistics_to_metric(*(tf.fid_features_to_statistics(torch.from_numpy(v)) for v in (a, b)), verbose=False)[tf.KEY_METRIC_FID]
    assert frechet(a, b) == pytest.approx(theirs, rel=1e-6)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-12)
    if min(n, m) > d: assert frechet(a, b) == pytest.approx(((a.mean(0) - b.mean(0))**2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2*sqrtm(np.cov(a.T) @ np.cov(b.T)).real), rel=1e-9)


def test_frechet_closed_form():
    a = np.random.default_rng(2).normal(size=(30, 50)); a -= a.mean(0) # fewer images than features
    assert frechet(a, 2*a + .5) == pytest.approx(50*.25 + np.trace(np.cov(a.T)), rel=1e-10)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_kid_is_the_formula():
    x, y = cloud(30, seed=1), cloud(30, seed=2, shift=.5)
    u, v = x.f.astype(float), y.f.astype(float); k = lambda p, q: (p @ q.T/16 + 1)**3
    off = sum(k(s, s).sum() - np.trace(k(s, s)) for s in (u, v))/(30*29)
    assert kid(x, y, subsets=1, size=30).value == pytest.approx(off - 2*k(u, v).mean(), rel=1e-9)


def test_kid_is_unbiased_and_fid_is_not():
    x, y = cloud(1000, seed=1), cloud(1000, seed=2)
    small, large = (kid(x, y, 200, n).value for n in (10, 300))
    assert abs(small) < .1 and abs(large) < .05
    assert fid_trials(x, y, 20, 10).value > 5*fid_trials(x, y, 500, 10).value


def test_precision_recall_by_hand():
    line = lambda *v: Features(np.array(v, 'float32')[:, None], 'line', 'net', 8)
    real, gen = line(0, 1, 2, 3, 10, 11, 12, 13), line(.1, 1.1, 2.1, 3.1, 40, 41)
    p, r = precision_recall(gen, real, k=1) # real balls have radius 1, so do the generated ones
    assert (round(p.value, 6), r.value) == (round(4/6, 6), .5)
    far = cloud(50, shift=100)
    assert [v.value for v in precision_recall(far, cloud(50))] == [0, 0]
    assert [v.value for v in precision_recall(cloud(50), cloud(50))] == [1, 1]


def test_precision_recall_in_parts_is_the_whole():
    tf = pytest.importorskip('torch_fidelity.metric_prc')
    a, b = cloud(2500, seed=1), cloud(2100, seed=2, scale=.8) # more than one part
    p, r = precision_recall(a, b)
    whole = tf.prc_features_to_metric(torch.from_numpy(a.f).double(), torch.from_numpy(b.f).double(), verbose=False)
    assert (p.value, r.value) == (whole['precision'], whole['recall'])


def test_diversity():
    f = cloud(1300).f
    want = np.sqrt(((f[:200, None].astype(float) - f[None, :200])**2).sum(-1)).sum()/(200*199)
    assert diversity(Features(f[:200], 'x', 'e', 8)).value == pytest.approx(want, rel=1e-9)
    assert diversity(cloud(1300)).value == pytest.approx(diversity(cloud(1300), n=1300, trials=1).value, rel=1e-12) # in more than one chunk
    assert diversity(cloud(300, scale=2.)).value == pytest.approx(2*diversity(cloud(300)).value, rel=1e-5)


def test_every_value_has_its_protocol():
    gen, real = cloud(60, seed=1, name='generated'), cloud(80, seed=2, name='real')
    values = [*report(gen, real, trials=3, subsets=5), *fid_curve(gen, real, [10, 20], 3, seed=4)]
    assert {'fid', 'kid', 'precision', 'recall', 'fid_n40', 'fid_floor_n40', 'diversity_generated', 'diversity_real', 'fid_n10', 'fid_n20'} == {v.name for v in values}
    for v in values:
        assert 'net sha256:00' in v.protocol and ('generated n=60' in v.protocol or 'real n=80' in v.protocol)
        assert v.protocol in str(v) and v.row()['protocol'] == v.protocol and np.isfinite(v.row()['value']) and v.row()['n'] > 0 and v.row()['split']
    assert '5 subsets of 30' in next(v.protocol for v in values if v.name == 'kid') and 'seed 4' in values[-1].protocol
    assert list(table(values).protocol) == [v.protocol for v in values]
    with pytest.raises(UserError, match='no protocol'): Value('fid', 1., 3, '')


def test_seeds():
    a, b = cloud(60, seed=1), cloud(60, seed=2)
    for f in (lambda s: fid_trials(a, b, 20, 5, s), lambda s: fid_floor(a, 20, 5, s), lambda s: kid(a, b, 5, 20, s), lambda s: diversity(a, 20, 5, s)):
        assert f(0) == f(0) and f(0).value != f(1).value


def test_floor_halves_are_disjoint():
    twice = Features(np.repeat(cloud(1).f, 40, 0), 'x', 'e', 8)
    assert fid_floor(twice, 20, 2).value == pytest.approx(0, abs=1e-12)
    with pytest.raises(UserError, match='need 42'): fid_floor(cloud(40), 21)


@pytest.mark.parametrize('make,match', [
    (lambda: fid(cloud(1), cloud(9)), 'has 1 images, at least 2'),
    (lambda: fid(cloud(9), cloud(9, d=8)), '16 features and x 8'),
    (lambda: fid(cloud(9), cloud(9, side=64)), 'bring both to one size'),
    (lambda: fid(cloud(9), Features(cloud(9).f, 'x', 'other', 32)), 'different extractors'),
    (lambda: Features(np.full((2, 3), np.inf, 'float32'), 'x', 'e', 8), 'image 0 has NaN or infinite'),
    (lambda: kid(cloud(9), cloud(9), size=10), 'at least 10'),
    (lambda: kid(cloud(9), cloud(9), subsets=0), 'subsets=0'),
    (lambda: precision_recall(cloud(4), cloud(9)), 'at least 5'),
    (lambda: fid_trials(cloud(9), cloud(9), 10), 'at least 10'),
    (lambda: diversity(cloud(9), n=10), 'at least 10')])
def test_refusals(make, match):
    with pytest.raises(UserError, match=match): make()


def test_features(net):
    x = images(7)
    f = features(x, net, 'x', batch=3)
    assert f.f.dtype == np.float32 and f.f.shape == (7, 512) and f.side == 16
    assert np.allclose(features(x, net, 'x', rows=[4, 2]).f, f.f[[4, 2]], atol=1e-5)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert np.array_equal(features(x, net, 'x', batch=3).f, f.f) # never less than float32
    assert net.hash[:12] in f.extractor and '32 px' in f.extractor
    for bad in (x/255, x[:, :8], x[..., :1], x[:0], None):
        with pytest.raises(UserError): features(bad, net, 'x')


def test_weights_hash_sees_one_weight(net):
    other = encoder('resnet18')
    assert gm.weights_hash(other) == net.hash
    with torch.no_grad(): other.conv1.weight[0, 0, 0, 0] += 1e-3
    assert gm.weights_hash(other) != net.hash


def test_nearest():
    g = np.random.default_rng(0); base, q = g.normal(size=(300, 12)) + 50, g.normal(size=(700, 12)) + 50
    i, d = nearest(q, base)
    full = np.sqrt(((q[:, None] - base[None])**2).sum(-1))
    assert np.allclose(d, full.min(1), rtol=1e-5) and (i == full.argmin(1)).mean() > .99
    assert (nearest(base, base)[1] == 0).all()
    assert np.linalg.norm(pixels(np.full((1, 64, 64, 3), 9, 'uint8'))) == pytest.approx(9, rel=1e-5)


def test_memorising_finds_copies(net):
    train, held, fresh = images(150, seed=1), images(100, seed=2), images(60, seed=3)
    copies = fresh.copy(); copies[::3] = train[:20]
    clean, caught = memorising(fresh, train, held, net), memorising(copies, train, held, net)
    for space in ('feature', 'pixel'):
        assert clean[space].value.value < .1 and .33 <= caught[space].value.value < .43
        assert (caught[space].index[::3] == np.arange(20)).all() and (caught[space].distance[::3] < .01).all()
        assert 'held-out n=100' in caught[space].value.protocol
    mirrored = memorising(train[:20, :, ::-1], train, held, net, flips=True)
    assert all(n.value.value == 1 for n in mirrored.values())
    with pytest.raises(UserError, match='pass 100 or more'): memorising(fresh, train, held[:99], net)
    with pytest.raises(UserError, match='not between 0 and 1'): memorising(fresh, train, held, net, quantile=1)


def test_inception_by_hash(tmp_path, monkeypatch):
    "Loader, fusion and refusal, on random weights in the real network: the true file is never fetched."
    m = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3'); Net = m.FeatureExtractorInceptionV3
    hub = tmp_path/'hub'; (hub/'checkpoints').mkdir(parents=True); monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(hub))
    monkeypatch.setattr(m, 'load_state_dict_from_url', lambda *a, **k: pytest.fail('a download was tried'))
    stand_in = gm.Extractor('ours', torch.nn.Linear(1, 1), 32, '0'*64)
    with pytest.raises(UserError, match='none are downloaded'): gm.inception()
    assert gm.best_extractor(stand_in) is stand_in
    path = hub/'checkpoints'/'weights-inception-2015-12-05-6726825d.pth'
    torch.save({}, path)
    with pytest.raises(UserError, match='not that of known'): gm.inception()
    with monkeypatch.context() as patch: # a randomly initialised network, without reading weights
        patch.setattr(Net, 'load_state_dict', lambda self, s: None)
        torch.manual_seed(0); plain = Net('x', ['2048'], feature_extractor_weights_path=str(path))
    torch.save(plain.state_dict(), path); sha = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(gm, 'INCEPTION', {sha: ('inception-v3-2015-fid-pool3', (path.name,))})
    ex = gm.best_extractor(stand_in, device='cpu')
    x = images(3)
    with torch.no_grad(): want = plain(torch.from_numpy(x).permute(0, 3, 1, 2))[0].numpy()
    f = features(x, ex, 'x', batch=2)
    assert f.f.shape == (3, 2048) and np.allclose(f.f, want, atol=1e-5*np.abs(want).max()) and np.ptp(want, 0).max() > 0
    assert sha[:12] in f.extractor and 'TensorFlow-1' in f.extractor
