"Our losses and views beside the public implementations, live where they can be imported."
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skinrepro.data.views import OPS, Views, draw, jitter, render
from skinrepro.methods.byol import byol_loss
from skinrepro.methods.simclr import nt_xent
from skinrepro.methods.train import ema_rate

i, j = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)[None]
ZA = torch.sin(1 + 7*i + 3*j)
ZB = torch.sin(2 + 5*i + 2*j) + .5*ZA
PA, PB = torch.cos(3 + 2*i + 5*j), torch.cos(1 + 4*i + 3*j)
STORED = {.07: 5.087581890798691, .1: 3.807386940644209, .5: 2.007724275017140}


def test_inputs(): assert ZA[0].tolist() == pytest.approx([.8414709848, -.7568024953, .6569865987, -.5440211109, .4201670368], abs=1e-10)


@pytest.mark.parametrize('τ', STORED)
def test_nt_xent(τ):
    ours = nt_xent(ZA, ZB, τ).item()
    assert ours == pytest.approx(STORED[τ], abs=1e-12)
    lightly = pytest.importorskip('lightly.loss', exc_type=ImportError)
    assert ours == pytest.approx(lightly.NTXentLoss(temperature=τ)(ZA, ZB).item(), abs=1e-12)


def test_nt_xent_gradient():
    lightly = pytest.importorskip('lightly.loss', exc_type=ImportError)
    grads = []
    for f in (lambda a, b: nt_xent(a, b, .1), lightly.NTXentLoss(temperature=.1)):
        a, b = ZA.clone().requires_grad_(), ZB.clone().requires_grad_()
        f(a, b).backward(); grads.append(torch.cat([a.grad, b.grad]))
    assert torch.allclose(*grads, atol=1e-12) and grads[0].abs().max() > .1


def test_nt_xent_is_self_supervised():
    module = pytest.importorskip('self_supervised.vision.simclr', exc_type=ImportError)
    cb = SimpleNamespace(temp=.07, dls=SimpleNamespace(device='cpu'), _remove_diag=lambda x: module.SimCLR._remove_diag(None, x))
    theirs = module.SimCLR.lf(cb, torch.cat([ZA, ZB]), torch.arange(12).roll(6))
    assert nt_xent(ZA, ZB, .07).item() == pytest.approx(theirs.item(), abs=1e-8)


def test_byol():
    assert byol_loss(PA, PB, ZA, ZB).item() == pytest.approx(2.835881082811856, abs=1e-12)
    lightly = pytest.importorskip('lightly.loss', exc_type=ImportError)
    n = lightly.NegativeCosineSimilarity()
    assert n(PA, ZB).item() == pytest.approx(-.168572502415983, abs=1e-12)
    assert byol_loss(PA, PB, ZA, ZB).item() == pytest.approx(4 + 2*(n(PA, ZB) + n(PB, ZA)).item(), abs=1e-12)


def test_ema_schedule():
    assert ema_rate(50, 100) == pytest.approx(.998, abs=1e-12) and ema_rate(0, 100) == .996 and ema_rate(100, 100) == 1
    cosine = pytest.importorskip('lightly.utils.scheduler', exc_type=ImportError).cosine_schedule
    for k in range(0, 100, 7): assert ema_rate(k, 100) == pytest.approx(cosine(k, 100, .996, 1), abs=1e-4)
    for k in range(100): assert ema_rate(k, 99) == pytest.approx(cosine(k, 100, .996, 1), abs=1e-12) # lightly divides by K - 1


@pytest.fixture(scope='module')
def pictures(): return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize('op, name', enumerate(['brightness', 'contrast', 'saturation', 'hue']))
def test_colour_is_torchvisions(op, name, pictures):
    "One operation, each image by its own factor."
    import torchvision.transforms.v2.functional as T
    x = pictures.permute(0, 3, 1, 2).float()/255
    f = np.random.default_rng(op).uniform(*((-.2, .2) if name == 'hue' else (.2, 1.8)), len(x)).astype(np.float32)
    factor = np.tile(np.float32([1, 1, 1, 0]), (len(x), 1)); factor[:, op] = f
    ours = jitter(x.clone(), np.tile(np.arange(4), (len(x), 1)), factor, np.ones(len(x), bool))
    theirs = torch.stack([getattr(T, f'adjust_{name}')(v, float(k)) for v, k in zip(x, f)])
    assert (ours - theirs).abs().max() < 2e-5 and (ours - x).abs().max() > .05


def test_jitter_in_each_images_order(pictures):
    import torchvision.transforms.v2.functional as T
    x = pictures.permute(0, 3, 1, 2).float()/255
    p = OPS['jitter'][0](np.random.default_rng(1), len(x), 40, 40, .8, .8, .8, .2, .8)
    ops = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue)
    want = []
    for v, order, factor, on in zip(x, p['order'], p['factor'], p['on']):
        for op in order if on else (): v = ops[op](v, float(factor[op]))
        want.append(v)
    assert not p['on'].all() and len({tuple(o) for o in p['order']}) > 3
    assert (jitter(x.clone(), **p) - torch.stack(want)).abs().max() < 1e-4


def test_crop_and_flip_are_torchvisions(pictures):
    import torchvision.transforms.v2.functional as T
    recipe = (('crop', dict(scale=(.08, 1.), ratio=(3/4, 4/3))), ('flip', dict(p=.5)))
    c, f = params = draw(recipe, len(pictures), 40, 40, 7)
    ours = render(recipe, pictures, params, 16)
    for k, v in enumerate(pictures.permute(0, 3, 1, 2)):
        w = T.resized_crop(v, int(c['top'][k]), int(c['left'][k]), int(c['height'][k]), int(c['width'][k]), [16, 16], antialias=True)
        w = T.horizontal_flip(w) if f['on'][k] else w
        assert torch.equal(ours[k], w.float()/255)


def test_crop_distribution_is_torchvisions():
    from torchvision.transforms import RandomResizedCrop
    recipe = (('crop', dict(scale=(.08, 1.), ratio=(3/4, 4/3))),)
    (p,) = draw(recipe, 4000, 64, 64, 1)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(torch.zeros(3, 64, 64), (.08, 1.), (3/4, 4/3)) for _ in range(4000)])
    ours = np.stack([p[k] for k in ('top', 'left', 'height', 'width')], 1)
    se = np.hypot(ours.std(0), theirs.std(0))/math.sqrt(4000)
    assert (abs(ours.mean(0) - theirs.mean(0)) < 4*se).all() and np.allclose(ours.std(0), theirs.std(0), rtol=.07)


def test_blur_is_torchvisions(pictures):
    import torchvision.transforms.v2.functional as T
    x = pictures.permute(0, 3, 1, 2).float()/255
    sigma = np.linspace(.1, 2, len(x)).astype(np.float32)
    theirs = torch.stack([T.gaussian_blur(v, [5, 5], [float(s)]*2) for v, s in zip(x, sigma)]) # 5 = 2*(40//20) + 1
    assert (OPS['blur'][1](x.clone(), sigma) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize('recipe', ['gan_ssl', 'simclr', 'byol'])
def test_two_equal_images_get_different_views(recipe, pictures):
    "torchvision's v2 transforms draw once for a whole batch; ours draw for every image and view."
    x = pictures[:1].repeat(6, 1, 1, 1)
    v = Views(recipe, 16)(x, 0, 'views', 0)
    assert v.shape == (12, 3, 16, 16) and v.is_contiguous(memory_format=torch.channels_last)
    assert all(not torch.allclose(v[a], v[b]) for a in range(12) for b in range(a))
    assert torch.equal(v, Views(recipe, 16)(x, 0, 'views', 0)) and not torch.equal(v, Views(recipe, 16)(x, 0, 'views', 1))
