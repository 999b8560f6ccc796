"Barlow Twins and VICReg beside lightly and beside the direct form; their callbacks, and what a killed run resumes."
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from skinrepro.core import UserError
from skinrepro.data.views import Views, draw
from skinrepro.methods.barlow_twins import BARLOW_TWINS, BarlowTwins, Joint, TwinViews, barlow_terms, barlow_twins_loss, cross, expected_start, projector
from skinrepro.methods.encoders import encoder
from skinrepro.methods.train import StepLoader, fit, learner, load_state
from skinrepro.methods.vicreg import Accumulate, VICReg, vicreg_loss, vicreg_terms

i, j = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)[None]
ZA = torch.sin(1 + 7*i + 3*j)
ZB = torch.sin(2 + 5*i + 2*j) + .5*ZA
BARLOW = {.005: 2.407520422010042, .0051: 2.408003102551907, 1/8192: 2.383975604562633}
STEPS, EVERY, IMAGES, BATCH = 10, 3, 64, 16


def draws(n, d, seed=0): return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graded(f, za, zb): # loss and gradients
    a, b = za.clone().requires_grad_(), zb.clone().requires_grad_()
    loss = f(a, b); loss.backward()
    return loss.item(), torch.cat([a.grad, b.grad])


def same(f, g, za, zb, rel=1e-7):
    (x, p), (y, q) = graded(f, za, zb), graded(g, za, zb)
    assert x == pytest.approx(y, rel=rel) and (p - q).norm() <= rel*q.norm() and q.norm() > 0


def direct(za, zb, lambd=.0051, eps=1e-5): # Barlow Twins with the matrix C in full
    a, b = ((z - z.mean(0))/(z.var(0, correction=0) + eps).sqrt() for z in (za, zb))
    C = a.T @ b/len(a)
    off = ~torch.eye(len(C), dtype=torch.bool)
    return (C.diagonal() - 1).pow(2).sum() + lambd*C[off].pow(2).sum()


# losses

@pytest.mark.parametrize('gram', [True, False, None])
@pytest.mark.parametrize('λ', BARLOW)
def test_barlow_vector(λ, gram): assert barlow_twins_loss(ZA, ZB, λ, gram=gram).item() == pytest.approx(BARLOW[λ], abs=1e-12)


def test_barlow_without_eps_is_the_papers_equation():
    assert barlow_twins_loss(ZA, ZB, eps=0.).item() == pytest.approx(2.383957300680916, abs=1e-12)
    assert barlow_twins_loss(ZA, ZB, eps=0.).item() == pytest.approx(barlow_twins_loss(ZA, ZB).item(), abs=1e-4)


SHAPES = [(6, 5), (64, 16), (8, 15), (8, 16), (16, 200)] # below, at and above D = 2N


@pytest.mark.parametrize('shape', SHAPES)
def test_barlow_is_lightlys(shape):
    lightly = pytest.importorskip('lightly.loss', exc_type=ImportError)
    for λ in (.005, 1/8192): same(lambda a, b: barlow_twins_loss(a, b, λ), lightly.BarlowTwinsLoss(lambda_param=λ), *draws(*shape))


@pytest.mark.parametrize('shape', SHAPES)
def test_barlow_forms_agree(shape):
    z = draws(*shape)
    for gram in (True, False): same(lambda a, b: barlow_twins_loss(a, b, .0051, gram=gram), direct, *z)


def test_barlow_is_self_supervised():
    module = pytest.importorskip('self_supervised.vision.barlow_twins', exc_type=ImportError)
    from types import SimpleNamespace
    cb = SimpleNamespace(I=torch.eye(5, dtype=torch.float64), lmb=1/8192)
    theirs = module.BarlowTwins.lf(cb, torch.cat([ZA, ZB]))
    assert barlow_twins_loss(ZA, ZB, eps=0.).item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize('noise', [0., 1e-4, 1e-2])
def test_near_the_identity(noise):
    "Where C is almost the identity the loss is almost 0, and still has its digits."
    z, e = draws(96, 12)
    z = torch.linalg.qr(z - z.mean(0))[0]*96**.5
    same(lambda a, b: barlow_twins_loss(a, b, .0051), direct, z, z + noise*e)
    assert barlow_twins_loss(z, z + noise*e, .0051) < 1e-2
    single = barlow_twins_loss(z.float(), (z + noise*e).float(), .0051).item()
    assert single == pytest.approx(direct(z, z + noise*e).item(), rel=1e-3, abs=1e-9)


def test_float32_at_the_papers_shape_and_its_start():
    "N = 128, D = 8192 without the D × D matrix: close to float64, and close to the expected start."
    z = draws(128, 8192)
    with torch.no_grad():
        exact, single = barlow_terms(*z), barlow_terms(*z.float())
    for e, s, want in zip(exact, single, expected_start(128, 8192, 1.).values()):
        assert s.item() == pytest.approx(e.item(), rel=2e-6) and e.item() == pytest.approx(want, rel=.01)
    assert expected_start(128, 8192)['invariance'] == pytest.approx(8192*128/127)


def test_less_images_than_units_cannot_reach_zero():
    z, _ = draws(16, 256)
    on, off = barlow_terms(z, z, eps=0.)
    assert on < 1e-12 and off >= 256**2/15 - 256


@pytest.mark.parametrize('shape', [(12, 5), (6, 30)])
def test_constant_unit(shape):
    za, zb = draws(*shape)
    za[:, 2] = .1
    assert barlow_twins_loss(za, zb, eps=0.).isnan() # the paper's equation
    same(lambda a, b: barlow_twins_loss(a, b, .0051), direct, za, zb)
    for f in (barlow_twins_loss, vicreg_loss):
        loss, grad = graded(f, za.float(), zb.float())
        assert math.isfinite(loss) and grad.isfinite().all()


def test_vicreg_vector():
    for gram in (True, False, None):
        for t, want in zip(vicreg_terms(ZA, ZB, gram=gram), (.643909448564112, .206123673826172, 1.866764085577899)): assert t.item() == pytest.approx(want, abs=1e-12)
        assert vicreg_loss(ZA, ZB, gram=gram).item() == pytest.approx(23.117592145335003, abs=1e-11)
    assert vicreg_loss(ZA, ZB, var=50.).item() == pytest.approx(28.270683990989305, abs=1e-11) # the paper's and solo-learn's variance


@pytest.mark.parametrize('shape', SHAPES)
def test_vicreg_is_lightlys(shape):
    lightly = pytest.importorskip('lightly.loss', exc_type=ImportError)
    za, zb = draws(*shape)
    same(vicreg_loss, lightly.VICRegLoss(), .6*za, za + .3*zb)
    same(lambda a, b: vicreg_loss(a, b, 10., 5., 2., 1e-3), lightly.VICRegLoss(lambda_param=10., mu_param=5., nu_param=2., eps=1e-3), za, zb)


def test_no_matrix_of_units_is_made():
    "Where D >= 2N no tensor of D × D elements appears, forward or backward."
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = []
    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.extend(t.numel() for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor))
            return out
    for f in (barlow_twins_loss, vicreg_loss):
        z = draws(8, 128).float(); seen.clear()
        with Sizes(): graded(f, *z)
        assert len(seen) > 20 and max(seen) <= 2*8*128 # 2: the two gradients, joined by `graded`
        seen.clear()
        with Sizes(): graded(lambda a, b: f(a, b, gram=False), *z)
        assert max(seen) == 128*128


@pytest.mark.parametrize('f', [barlow_twins_loss, vicreg_loss])
def test_losses_are_float32_inside_autocast(f):
    z = draws(16, 64).float()
    want = f(*z).item()
    with torch.autocast('cpu', dtype=torch.bfloat16): got = f(*z)
    assert got.dtype == torch.float32 and got.item() == want
    assert f(*z.bfloat16()).dtype == torch.float32
    with pytest.raises(UserError, match='choose batch >= 2'): f(*z[:, :1])


def test_cross_shares_the_gram_matrix():
    a = draws(4, 20)[0]
    for x, y in zip(cross(a, a), cross(a, a.clone(), False)): assert torch.allclose(x, y)


# model and views

def test_projector_parameters():
    with torch.device('meta'):
        count = lambda *a, **k: sum(p.numel() for p in projector(*a, **k).parameters())
        assert (count(2048), count(2048, bias=True)) == (151_027_712, 151_052_288)
        assert count(2048, bias=True, last_bias=False) == 151_052_288 - 8192
        assert count(10, 7, 5, layers=1) == 50
    a, b, c = (projector(6, 5, 4, seed=s) for s in (0, 0, 1))
    assert torch.equal(a[0].weight, b[0].weight) and not torch.equal(a[0].weight, c[0].weight)


def test_views_differ_by_recipe():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8))
    assert torch.equal(TwinViews(16, ['byol', 'byol'])(x, 3, 'views'), Views('byol', 16)(x, 3, 'views'))
    v = TwinViews(16)(x, 0, 'views', 0)
    assert v.shape == (12, 3, 16, 16) and v.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(v, TwinViews(16)(x, 0, 'views', 0)) and not torch.equal(v, TwinViews(16)(x, 0, 'views', 1))
    rough = lambda t: (t[..., 1:] - t[..., :-1]).abs().mean()
    assert rough(v[:6]) < .8*rough(v[6:]) # the first view is always blurred
    for r, blurred, solarised in zip(BARLOW_TWINS, (1., .1), (0., .2)): # the two probabilities in which the recipes differ
        p = dict(zip((op for op, _ in r), draw(r, 4000, 40, 40, 0)))
        assert (p['blur']['sigma'] > 0).mean() == pytest.approx(blurred, abs=.02) and p['solarise']['on'].mean() == pytest.approx(solarised, abs=.02)
    with pytest.raises(UserError, match="did you mean 'byol'"): TwinViews(16, ['byol', 'boyl'])


def test_passes():
    net, v = Joint(encoder('test_resnet'), projector(96, 32, 32)), torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(net(v)[0], net(*v.chunk(2))[0], atol=1e-3) # batch norm saw both views, or one
        net.eval()
        assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(net(v), net(*v.chunk(2))))
    assert Joint(encoder('test_resnet'))(v)[0].shape == (8, 96) # the loss on the encoder's features


# training

class Watch(Callback):
    "Notes the first step, can stop after one, and can wait there."
    order = 99
    def __init__(self, stop=None, pause=0): self.stop, self.pause, self.first = stop, pause, None
    def before_batch(self): self.first = self.learn.step if self.first is None else self.first
    def after_batch(self):
        if self.learn.step != self.stop: return
        time.sleep(self.pause)
        raise KeyboardInterrupt


def train(method, folder=None, stop=None, pause=0, seed=0, precision='fp32', extra=(), **kw):
    torch.set_num_threads(1)
    x = np.random.default_rng(0).integers(0, 256, (IMAGES, 24, 24, 3), dtype=np.uint8)
    model = Joint(encoder('test_resnet', seed), projector(96, 64, 64, seed=seed), precision)
    cb = (BarlowTwins if method == 'barlow' else VICReg)(TwinViews(16), seed=seed, **kw)
    watch = Watch(stop, pause)
    learn = learner(model, StepLoader(x, np.arange(IMAGES), BATCH, STEPS, seed), [cb, watch, *extra], 1e-3, 1e-4, seed=seed, folder=folder, seconds=1e9, device='cpu')
    if folder: learn.checkpoint.every = EVERY
    curve = fit(learn)
    return dict(model=model.state_dict(), opt=learn.opt.opt.state_dict()['state'], curve=curve, first=watch.first)


@pytest.fixture(scope='module')
def whole(): return {m: train(m) for m in ('barlow', 'vicreg')}


def bitwise(a, b):
    assert a['curve'] == b['curve'] and len(a['curve']['loss']) == STEPS
    assert a['model'].keys() == b['model'].keys() and all(torch.equal(v, b['model'][k]) for k, v in a['model'].items())
    assert all(torch.equal(v, b['opt'][i][k]) for i, s in a['opt'].items() for k, v in s.items())


@pytest.mark.parametrize('method, names', [('barlow', BarlowTwins.names), ('vicreg', VICReg.names)])
def test_terms_are_logged_and_add_up(whole, method, names):
    curve = whole[method]['curve']
    assert set(curve) == {'loss', *names} and all(isinstance(v, float) for c in curve.values() for v in c)
    assert np.allclose(curve['loss'], sum(np.array(curve[n]) for n in names), rtol=1e-6)
    assert curve['loss'] != train(method, seed=1)['curve']['loss']


def test_a_checkpoint_holds_few_tensors():
    "A term is a tensor until the hundredth step: thousands of them in a checkpoint take longer to save than the model."
    from types import SimpleNamespace
    cb = BarlowTwins(TwinViews(16))
    cb.learn = SimpleNamespace(step=99, curve={n: [torch.tensor(.5)]*100 for n in cb.names})
    cb.after_batch(); assert torch.is_tensor(cb.learn.curve['invariance'][0])
    cb.learn.step = 100; cb.after_batch()
    assert all(v == [.5]*100 and isinstance(v[0], float) for v in cb.learn.curve.values())


def test_options_change_the_run(whole):
    runs = [whole['barlow']['curve']['loss'], *(train('barlow', **k)['curve']['loss'] for k in (dict(passes=1), dict(precision='bf16')))]
    assert len({tuple(r) for r in runs}) == 3 and runs[2][0] == pytest.approx(runs[0][0], rel=.05)
    with pytest.raises(UserError, match='choose 1'): BarlowTwins(TwinViews(16), passes=3)


@pytest.mark.parametrize('method', ['barlow', 'vicreg'])
def test_interrupted_run_resumes_bit_for_bit(method, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt): train(method, tmp_path, stop=8)
    end = train(method, tmp_path)
    assert end['first'] == 2*EVERY and end['first'] % (IMAGES//BATCH) # in the middle of an epoch
    bitwise(whole[method], end)


def test_killed_process_resumes_bit_for_bit(whole, tmp_path, root):
    from lab import environment, wait_for
    proc = subprocess.Popen([sys.executable, __file__, str(tmp_path)], env=environment(tmp_path, PYTHONPATH=str(root)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path/'checkpoint-1.pt.sha256').exists, proc)
    proc.send_signal(signal.SIGKILL)
    assert proc.wait() == -signal.SIGKILL
    assert load_state(tmp_path/'checkpoint-1.pt')['step'] == 2*EVERY
    bitwise(whole['barlow'], train('barlow', tmp_path))


# gradient accumulation

class Count(Callback):
    def before_fit(self): self.updates = 0
    def after_step(self): self.updates += 1


class Regress(Callback):
    order = 9
    def before_fit(self): self.learn.loss_func = lambda p, i: ((p[:, 0] - self.x.sum(1))**2).mean()


def regress(batch, steps, *cbs, folder=None):
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(256, 3)).astype('float32')
    learn = learner(nn.Linear(3, 1), StepLoader(x, np.arange(256), batch, steps), [Regress(), Count(), *cbs], .01, folder=folder, device='cpu')
    if folder: learn.checkpoint.every = 1
    fit(learn)
    return learn


def test_accumulation_counts_samples():
    from fastai.callback.training import GradientAccumulation
    assert [regress(32, 8, GradientAccumulation(n)).count.updates for n in (2, 64, 128)] == [8, 4, 2]
    assert [regress(32, 8, Accumulate(n)).count.updates for n in (32, 64, 128)] == [8, 4, 2]
    whole, halves = regress(64, 8), regress(32, 16, Accumulate(64))
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(whole.model.parameters(), halves.model.parameters()))
    assert np.allclose(np.reshape(halves.curve['loss'], (8, 2)).mean(1), whole.curve['loss'], rtol=1e-5) # and the logged losses are right
    with pytest.raises(UserError, match='images are counted, not batches'): regress(32, 8, Accumulate(2))
    with pytest.raises(UserError, match='choose a multiple of 2'): regress(32, 7, Accumulate(64))


def test_accumulation_resumes_exactly(tmp_path):
    "Stopped within an update, with a checkpoint due after every batch: the run goes on from the last whole update."
    want = regress(32, 16, Accumulate(64))
    with pytest.raises(KeyboardInterrupt): regress(32, 16, Accumulate(64), Watch(stop=7), folder=tmp_path)
    assert sorted(load_state(f)['step'] for f in tmp_path.glob('*.pt')) == [4, 6]
    got = regress(32, 16, Accumulate(64), folder=tmp_path)
    assert got.curve['loss'] == want.curve['loss'] and all(torch.equal(p, q) for p, q in zip(want.model.parameters(), got.model.parameters()))


if __name__ == '__main__': train('barlow', sys.argv[1], stop=7, pause=60)
