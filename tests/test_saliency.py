"InputIBA's identities, a network whose seeing is known, models by layer name, and judges against closed forms."
import dataclasses

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch import nn
from torch.distributions import Normal, kl_divergence

from skinrepro.core import UserError, sources
from skinrepro.evaluation.saliency import (IBAConfig, deletion_insertion, effective_heat_ratio, feature, feature_iba, feature_kl, frozen, heat_inside, input_iba,
    input_kl, judge, layer_of, match, other_map, prepare, randomise, rank_correlation, sanity, sensitivity_n, smooth, triplets, unit)

QUICK = IBAConfig(gan_samples=40, gan_epochs=2, feature_steps=5, input_steps=20, input_batch=4)


class Keyhole(nn.Module):
    "Red or blue, in rows and columns 8 to 23 only."
    def __init__(self, gain=60.):
        super().__init__()
        self.stage, self.gain = nn.Conv2d(3, 2, 4, 4), gain
        with torch.no_grad():
            w = torch.zeros(2, 3, 4, 4); w[0, 0] = w[1, 2] = 1/16
            self.stage.weight.copy_(w); self.stage.bias.zero_()
    def forward(self, x):
        f = self.stage(x)[:, :, 2:6, 2:6].mean((2, 3))
        return self.gain*(f - f.flip(1))/2


TRUTH = np.zeros((32, 32), bool); TRUTH[8:24, 8:24] = True


def pictures(n=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = .5*torch.randn(n, 3, 32, 32, generator=g); tint = torch.where(torch.from_numpy(TRUTH), 1., -1/3)
    sign = (torch.arange(n) % 2*2 - 1.).view(-1, 1, 1)
    x[:, 0] -= sign*tint; x[:, 2] += sign*tint
    return x


@pytest.fixture(scope='module')
def keyhole():
    torch.set_num_threads(1)
    net = Keyhole(); x = pictures()
    return net, x, prepare(net, 'stage', x, batch=7)


def numbers(seed, n=200):
    g = torch.Generator().manual_seed(seed)
    x, m, r = (torch.randn(n, generator=g, dtype=torch.float64) for _ in range(3))
    lam, mask, sd = (torch.rand(n, generator=g, dtype=torch.float64) for _ in range(3))
    return x, .99*lam, m, sd + .1, .99*mask, r


@pytest.mark.parametrize('seed', range(3))
def test_kl_is_torchs(seed):
    x, lam, mean, sd, mask, g = numbers(seed)
    given = Normal(lam*x + (1-lam)*mean, (1-lam)*sd)
    torch.testing.assert_close(feature_kl(x, lam, mean, sd), kl_divergence(given, Normal(mean, sd)))
    torch.testing.assert_close(input_kl(x, lam, mean, sd, mask, g), kl_divergence(given, Normal(lam*mask*g + (1-lam*mask)*mean, (1-lam*mask)*sd)))
    assert (input_kl(x, lam, mean, sd, mask) >= -1e-12).all()


def test_identities():
    x, lam, mean, sd, mask, g = numbers(9)
    torch.testing.assert_close(input_kl(x, lam, mean, sd, 0*mask, g), feature_kl(x, lam, mean, sd))
    torch.testing.assert_close(input_kl(x, 0*lam, mean, sd, mask, g), 0*x)
    small = [input_kl(x, t*lam, mean, sd, mask, g).abs().max().item() for t in (1e-1, 1e-2, 1e-3)]
    assert small[0] > small[1] > small[2] and small[2] < 1e-3


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_finite_where_both_masks_are_one(dtype):
    x, lam, mean, sd, mask, g = (t.to(dtype) for t in numbers(3))
    one = torch.ones_like(x)
    for m in (one, mask, 0*one):
        for behind in (None, g):
            a = one.clone().requires_grad_()
            kl = input_kl(x, a, mean, sd, m, behind)
            assert kl.isfinite().all() and torch.autograd.grad(kl.sum(), a)[0].isfinite().all()
    assert feature_kl(x, one, mean, sd).isfinite().all()
    assert input_kl(x, one, mean, sd, one).abs().max() == 0 # the prior knows as much


def test_config_is_frozen_and_sourced():
    c = IBAConfig()
    want = dict(images=1000, feature_alpha=5, feature_sigma=1, feature_beta=20, feature_batch=10, feature_steps=10, feature_lr=1, gan_samples=200, gan_batch=20,
        gan_epochs=20, critic_iter=5, critic_lr=5e-5, clip=.01, mean_lr=.1, eps_lr=.05, mask_lr=.003, input_beta=20, input_steps=60, input_lr=1, input_batch=10, input_sigma=1)
    assert {k: getattr(c, k) for k in want} == want
    with pytest.raises(dataclasses.FrozenInstanceError): c.images = 3
    with pytest.raises(UserError, match="did you mean 'input_beta'"): c.but(input_betta=3)
    table = sources(IBAConfig)
    assert (table.comment.str.contains('P1-5|ours')).all()


def test_prepare_is_mean_and_sd(keyhole):
    net, x, p = keyhole
    f = net.stage(x)
    torch.testing.assert_close(p.mean, f.mean(0), atol=1e-5, rtol=1e-4); torch.testing.assert_close(p.sd, f.std(0, correction=0).clamp_min(.01), atol=1e-5, rtol=1e-4)
    assert p.n == 30 and prepare(net, 'stage', x, IBAConfig(images=10)).n == 10
    with pytest.raises(UserError, match='two images or more'): prepare(net, 'stage', x[:1])


def test_the_map_lies_where_the_network_looks(keyhole):
    net, x, p = keyhole
    for i in (0, 1):
        e = input_iba(p, x[i], cfg=QUICK.but(feature_steps=10, input_steps=40))
        assert e.target == i and np.isfinite(e.map).all() and np.isfinite(e.bits).all() and 0 <= e.map.min() <= e.map.max() <= 1
        assert heat_inside(e.map, TRUTH) > .85 and effective_heat_ratio(e.map, TRUTH) > .85 and TRUTH.mean() == .25
        assert e.p > .99 and e.p_kept > e.p_noise and e.generated[TRUTH].mean() > e.generated[~TRUTH].mean()
        assert len(e.rows['input']) == 40 and len(e.rows['feature']) == 10


def test_same_seed_same_map(keyhole):
    _, x, p = keyhole
    a, b, c = (input_iba(p, x[0], cfg=QUICK, seed=s) for s in (1, 1, 2))
    assert (a.map == b.map).all() and (a.map != c.map).any()


def test_feature_bottleneck_gives_its_own_kl(keyhole):
    _, x, p = keyhole
    r, lam, bits, rows = feature_iba(p, x[0], 0, QUICK)
    torch.testing.assert_close(bits*np.log(2), feature_kl(r, lam, p.mean, p.sd)); assert len(rows) == 5
    assert bits[:, 2:6, 2:6].mean() > bits.mean()


def test_generator_steps_and_own_rates(keyhole):
    "One generator step for five of the critic; the mask moves by its own small rate; critic weights stay clipped."
    _, x, p = keyhole
    r, lam, bits, _ = feature_iba(p, x[0], 0, QUICK)
    m, rows = match(p, x[0], r, lam, bits, QUICK.but(gan_samples=100, gan_epochs=2))
    assert [k for k, _ in rows] == [5, 10] and np.isfinite([d for _, d in rows]).all()
    still, _ = match(p, x[0], r, lam, bits, QUICK.but(gan_samples=100, gan_epochs=2, mask_lr=0.))
    assert 0 < (m - still).abs().max() < .05 # 2 RMSprop steps at .003, the first ten times as long


def test_model_is_left_as_it_was(keyhole):
    net, x, p = keyhole
    net.train(); net.stage.bias.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    input_iba(p, x[0], cfg=QUICK.but(input_steps=2))
    assert net.training and not net.stage.bias.requires_grad and net.stage.weight.requires_grad and net.stage.weight.grad is None
    assert not net.stage._forward_hooks and all((before[k] == v).all() for k, v in net.state_dict().items())
    with pytest.raises(ZeroDivisionError):
        with frozen(net): 1/0
    assert net.training
    net.stage.bias.requires_grad_(True)


@pytest.mark.parametrize('make,layer,wrong,meant', [('torchvision:resnet18', 'layer2', 'layer22', 'layer2'), ('timm:efficientnet_b4', 'blocks.4', 'block.4', 'blocks.4'), ('torchvision:densenet121', 'features.denseblock2', 'features.denseblok2', 'features.denseblock2')])
def test_any_model_by_layer_name(make, layer, wrong, meant):
    import timm, torchvision
    torch.manual_seed(0)
    kind, name = make.split(':')
    net = timm.create_model(name, num_classes=3) if kind == 'timm' else getattr(torchvision.models, name)(num_classes=3)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    p = prepare(net, layer, x)
    e = input_iba(p, x[0], 1, QUICK.but(gan_samples=20, gan_batch=4, gan_epochs=1, feature_steps=2, input_steps=2, feature_batch=2, input_batch=2))
    assert e.map.shape == (32, 32) and np.isfinite(e.map).all() and e.feature.shape == tuple(p.mean.shape[1:])
    with pytest.raises(UserError, match=f"did you mean '{meant}'"): layer_of(net, wrong)


def test_what_is_refused(keyhole):
    net, x, p = keyhole
    for call, says in [(lambda: input_iba(p, x[0], 5), 'classes 0..1'), (lambda: input_iba(p, x[:1]), 'pass one image'), (lambda: input_iba(p, x[0, :, :16, :16]), 'was prepared at'),
        (lambda: input_iba(p, torch.full_like(x[0], torch.nan)), 'not finite'), (lambda: other_map(net, x[0], 0, 'gradcamm'), "did you mean 'gradcam'"),
        (lambda: sensitivity_n(net, x[0], TRUTH*1., 0, ns=[0]), 'remove between'), (lambda: heat_inside(TRUTH*-1., TRUTH), 'negative')]:
        with pytest.raises(UserError, match=says): call()
    unused = Keyhole(); unused.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match='takes no part'): feature(unused, 'spare', x)
    with pytest.raises(UserError, match='no layer'): other_map(net, x[0], 0, 'gradcam', 'nothing') if captum() else layer_of(net, 'nothing')


def captum():
    try: import captum.attr
    except ImportError: return False
    return True


def test_smooth():
    a = torch.randn(3, 9, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(smooth(torch.ones(2, 5, 5)), torch.ones(2, 5, 5)); assert smooth(a, 0) is a
    from scipy.ndimage import gaussian_filter1d
    want = gaussian_filter1d(gaussian_filter1d(a.numpy(), 1, 1, mode='nearest', truncate=3), 1, 2, mode='nearest', truncate=3)
    np.testing.assert_allclose(smooth(a, 1).numpy(), want, atol=1e-5)
    assert smooth(torch.rand(1, 1, 1)).shape == (1, 1, 1)


class Sum(nn.Module):
    "Logit 0 is a weighted sum of pixels."
    def __init__(self, w): super().__init__(); self.w = nn.Parameter(torch.as_tensor(w, dtype=torch.float32))
    def forward(self, x): s = (x*self.w).sum((1, 2, 3)); return torch.stack([s, -s], 1)


def test_sensitivity_n_of_a_linear_network_is_one():
    g = np.random.default_rng(0); w = g.normal(size=(16, 16)); x = torch.from_numpy(g.normal(size=(1, 16, 16))).float().expand(3, -1, -1)
    exact = 3*w*(x[0].numpy() - x[0].mean().item())
    assert all(r == pytest.approx(1, abs=1e-4) for r in sensitivity_n(Sum(w), x, exact, 0, draws=32).values())
    assert all(r == pytest.approx(-1, abs=1e-4) for r in sensitivity_n(Sum(w), x, -exact, 0, draws=32).values())
    assert all(np.isnan(r) for r in sensitivity_n(Sum(w), x, np.ones((16, 16)), 0, draws=8).values())


def test_deletion_and_insertion(keyhole):
    _, x, _ = keyhole; net = Keyhole(gain=3)
    good, bad = (deletion_insertion(net, x[0], h, 0, steps=16) for h in (TRUTH*1., ~TRUTH*1.))
    p = net(x[:1]).softmax(1)[0, 0].item()
    assert good['deletion'][0] == pytest.approx(p) == good['insertion'][-1] and good['deletion'][-1] == pytest.approx(good['insertion'][0])
    assert good['deletion_auc'] < bad['deletion_auc'] and good['insertion_auc'] > bad['insertion_auc']
    assert good['deletion'][4] == pytest.approx(good['deletion'][-1]) # a quarter of the pixels is all there is
    assert bad['deletion'][12] == pytest.approx(p)


def test_heat_ratios_in_closed_form():
    m = np.zeros((10, 10), bool); m[:, :3] = True
    assert heat_inside(np.ones((10, 10)), m) == pytest.approx(.3) == effective_heat_ratio(np.ones((10, 10)), m)
    assert effective_heat_ratio(m*1., m) == 1 and effective_heat_ratio(~m*1., m) == 0
    h = np.arange(100.).reshape(10, 10).T + 1 # columns 0..9 in rising order
    q = np.linspace(0, .9, 10); ratio = [heat_inside(np.where(h >= np.quantile(h, t), h, 0), m) for t in q]
    assert effective_heat_ratio(h, m) == pytest.approx(trapezoid(ratio, q)/.9)
    assert effective_heat_ratio(h, m) < heat_inside(h, m)
    assert np.isnan(heat_inside(np.zeros((10, 10)), m))


def test_randomise_and_sanity(keyhole):
    _, x, _ = keyhole
    torch.manual_seed(0); net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4*28*28, 2))
    state = torch.random.get_rng_state(); part = randomise(net, 1/3)
    assert torch.equal(part[0].weight, net[0].weight) and torch.equal(part[2].weight, net[2].weight) and not torch.equal(part[4].weight, net[4].weight)
    assert torch.equal(randomise(net).state_dict()['0.weight'], randomise(net).state_dict()['0.weight']) and torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(randomise(net, seed=1)[0].weight, randomise(net)[0].weight) and torch.equal(randomise(net, 0.)[4].weight, net[4].weight)
    assert list(sanity(lambda m: x[0, 0].numpy(), net).values()) == pytest.approx([1, 1, 1])
    found = sanity(lambda m: np.abs(m[4].weight[0].detach().numpy()), net)
    assert all(abs(r) < .1 for r in found.values())
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.))) and rank_correlation(np.arange(4.), -np.arange(4.)) == pytest.approx(-1)


def test_captum_maps(keyhole):
    if not captum(): pytest.skip('captum is not installed')
    net, x, _ = keyhole
    ig = other_map(net, x[0], 0, 'integrated_gradients'); cam = other_map(net, x[0], 0, 'gradcam', 'stage')
    assert ig.shape == cam.shape == (32, 32) and ig.min() >= 0 <= cam.min() and heat_inside(ig, TRUTH) == pytest.approx(1)
    assert sorted(judge(net, x[0], ig, 0, TRUTH)) == ['area', 'deletion', 'ehr', 'insertion', 'inside', 'sensitivity_n'] and 'ehr' not in judge(net, x[0], ig, 0)


def test_without_captum_a_sentence(keyhole, monkeypatch):
    import sys
    net, x, _ = keyhole
    monkeypatch.setitem(sys.modules, 'captum', None); monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(UserError, match='pip install captum'): other_map(net, x[0], 0, 'gradcam', 'stage')
    assert other_map(net, x[0], 0, 'random').shape == (32, 32)


def test_triplets_are_dark_red_where_most():
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    h = np.arange(64.).reshape(8, 8); x = np.zeros((8, 8, 3), np.uint8)
    fig = triplets([x, x, x], [h, h, 0*h], [h > 30]*3, ['a', 'b', 'c'])
    a = fig.axes[1].images[0]; r, g, b, _ = a.cmap(a.norm(h.max()))
    assert len(fig.axes) == 12 and .4 < r < .8 and g < .1 and b < .2 and a.cmap(a.norm(0))[2] > a.cmap(a.norm(0))[0]
    assert unit(h).max() == 1 and unit(h).min() == 0 and unit(0*h).max() == 0
    plt.close(fig)
