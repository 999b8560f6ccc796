"GANs: oracles, structure, growth, and a training that survives kills, full disks, NaNs and other people's checkpoints."
import errno
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gan_child import BATCH, EVERY, IMAGES, STEPS, game, plain, train
from lab import environment, finish, wait_for

from skinrepro.core import UserError
from skinrepro.methods import gan, pggan, stylegan
from skinrepro.methods.train import load_state

KINDS = ('pggan', 'stylegan')
count = lambda m: sum(p.numel() for p in m.parameters())


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    was = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(was)


# oracles

def test_r1_closed_form():
    x = torch.sin(torch.arange(24.).double()).view(2, 3, 2, 2).requires_grad_()
    assert gan.r1((.3*x**2).sum((1, 2, 3)), x, 10.).item() == pytest.approx(10.541957918787867, abs=1e-12)


def test_wgan_gp_closed_form():
    x = torch.randn(5, 3, 2, 2).double()
    assert gan.wgan_gp(lambda v: v.flatten(1) @ torch.full((12,), .5).double(), x, -x).item() == pytest.approx(5.358983848622453, abs=1e-9)


def test_penalties_reach_the_weights():
    D = pggan.Discriminator(8, 8); x = torch.randn(4, 3, 8, 8)
    for f in (lambda: gan.r1(D(x.requires_grad_()), x), lambda: gan.wgan_gp(D, x.detach(), -x.detach())):
        D.zero_grad(); f().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in D.named_parameters() if n.endswith('weight') and 'rgbs.0' not in n)


def test_r1_gradient_is_numerically_right():
    torch.manual_seed(0); D = pggan.Discriminator(4, 4).double(); x = torch.randn(4, 3, 4, 4).double().requires_grad_()
    w = D.dense.weight; grad, = torch.autograd.grad(gan.r1(D(x), x), w)
    e = 1e-6
    with torch.no_grad(): w[1, 2] += e
    up = gan.r1(D(x), x).item()
    with torch.no_grad(): w[1, 2] -= 2*e
    assert grad[1, 2].item() == pytest.approx((up - gan.r1(D(x), x).item())/(2*e), rel=1e-5)


def test_layer_oracles():
    assert pggan.pixel_norm(torch.arange(1., 9).double().view(1, 8, 1, 1)).square().mean().item() == pytest.approx(1, abs=1e-9)
    s = pggan.minibatch_std(torch.sin(torch.arange(32.).double()).view(4, 2, 2, 2))
    assert s[:, 2].unique().item() == pytest.approx(.696933373571980, abs=1e-7)
    x, a, b = torch.randn(3, 5, 6, 6), torch.randn(3, 5), torch.randn(3, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = stylegan.adain(x.contiguous(memory_format=layout), a, b)
        assert (y.mean((2, 3)) - b).abs().max() < 1e-6 and (y.std((2, 3), correction=0) - a.abs()).abs().max() < 1e-5


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_losses_are_wide(dtype):
    for d, g in gan.LOSSES.values(): assert d(torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype)).dtype == g(torch.ones(3, dtype=dtype)).dtype == torch.float32


def test_structure_at_256():
    with torch.device('meta'): G, D, P = stylegan.StyleGAN(256), pggan.Discriminator(256), pggan.PGGAN(256)
    n = lambda kind: sum(isinstance(m, kind) for m in G.modules())
    assert (n(stylegan.AdaIN), n(stylegan.Noise)) == (14, 14)
    assert sum(isinstance(m, pggan.Conv) and m.weight.shape[-1] == 3 for m in G.modules()) == 13
    assert sum(isinstance(m, pggan.Linear) for m in G.mapping) == 8 and count(G.mapping) == 2_101_248
    assert (count(P), count(D)) == (23_051_989, 23_052_353)
    assert count(G) - count(G.mapping) - count(G.rgbs) + count(G.rgbs[-1]) == 23_977_155 + 512


@pytest.mark.parametrize('kind', KINDS)
def test_fade_is_exact_at_its_ends(kind):
    G, D = getattr(globals()[kind], kind)(16, 8, 8); G.eval(); z = torch.randn(3, 8); kw = dict(noise=[1, 2, 3])
    with torch.no_grad():
        assert torch.equal(G(z, 16, 0., **kw), pggan.double(G(z, 8, **kw)))
        assert torch.equal(G(z, 16, 1., **kw), G.rgbs[-1](G.features(z, 3, **kw)[-1]))
        x = torch.randn(4, 3, 16, 16); assert torch.allclose(D(x, 0.), D(F.avg_pool2d(x, 2)), atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_sampling_is_a_series(kind):
    G, _ = getattr(globals()[kind], kind)(16, 16, 16)
    if kind == 'stylegan':
        for b in G.blocks:
            for l in b: torch.nn.init.ones_(l.noise.scale)
    a = pggan.sample(G, 35, seed=7)
    assert a.shape == (35, 16, 16, 3) and a.dtype == np.uint8 and (a[:5] == pggan.sample(G, 5, seed=7)).all() and (a[20:] == pggan.sample(G, 15, seed=7, start=20)).all()
    assert (a != pggan.sample(G, 35, seed=8)).any() and len({v.tobytes() for v in a}) == 35 and G.training
    assert pggan.sample(G, 0).shape == (0, 16, 16, 3)


def test_truncation():
    G, _ = stylegan.stylegan(8, 8, 8)
    for _ in range(3): G(torch.randn(16, 8))
    spread = [pggan.sample(G, 16, psi=p).astype(float).std(0).mean() for p in (1., .5, 0.)]
    assert spread[0] > spread[1] > spread[2] == 0


@pytest.mark.parametrize('steps', (1, 4))
def test_growth_covers_every_image_once(steps):
    g = pggan.Growth(32, 30., 2., 1.); at = [g.at(n) for n in range(0, 30000, 100*steps)]
    assert [r for r, _ in at] == sorted(r for r, _ in at) and {r for r, _ in at} == {4, 8, 16, 32} and all(0 <= a <= 1 for _, a in at) and at[-1] == (32, 1.)


# training

def same(a, b):
    for part in a:
        assert a[part].keys() == b[part].keys()
        for k, v in a[part].items(): assert torch.equal(v.nan_to_num(-1.), b[part][k].nan_to_num(-1.)), (part, k)


@pytest.fixture(scope='module')
def whole(): return {k: plain(train(k, every=0)) for k in KINDS}


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    "Folders of processes killed after their second checkpoint, at step 6: in the middle of the fade to 8 px."
    folders = {k: tmp_path_factory.mktemp(k) for k in KINDS}
    procs = {k: subprocess.Popen([sys.executable, str(Path(__file__).with_name('gan_child.py')), k, str(f), '.3'], env=environment(f), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for k, f in folders.items()}
    left = dict(procs)
    while left: # each is killed as soon as it is due
        k = wait_for(lambda: next((k for k, p in left.items() if p.poll() is not None or (folders[k]/'checkpoint-1.pt.sha256').exists()), None))
        p = left.pop(k); p.send_signal(signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL and not (folders[k]/'final.pt').exists(), p.stderr.read()
    return folders


@pytest.mark.parametrize('kind', KINDS)
def test_kill_9_in_a_fade_changes_nothing(kind, killed, whole, tmp_path):
    steps = [load_state(killed[kind]/f'checkpoint-{k}.pt')['step'] for k in (0, 1)]
    assert steps == [EVERY, 2*EVERY]
    resolution, alpha = game(kind).growth.at(steps[1]*BATCH)
    assert resolution == 8 and 0 < alpha < 1
    result = train(kind, killed[kind])
    same(whole[kind], plain(result))
    p = json.loads((killed[kind]/'progress.json').read_text())
    assert (p['step'], p['steps'], p['images'], p['resolution'], p['alpha']) == (STEPS, STEPS, STEPS*BATCH, 8, 1) and math.isfinite(p['d'])
    assert {f.name for f in killed[kind].glob('*.png')} == {'sheet-0000005.png', 'sheet-0000010.png'} and not list(killed[kind].glob('.checkpoint-*.tmp')) # what else a killed writer left, the runner sweeps


def test_something_was_compared(whole):
    a = whole['stylegan']
    assert any(not torch.equal(v, a['game'][f'G.{k}']) for k, v in a['G'].items()) and len(set(a['curve']['d'].tolist())) == STEPS
    assert a['curve']['penalty'].isnan().tolist() == [bool(k % 2) for k in range(STEPS)]
    other = plain(train('stylegan', seed=1, steps=2))
    assert not torch.equal(other['curve']['d'], a['curve']['d'][:2])


def test_finished_run_is_read_not_repeated(whole, tmp_path):
    train('pggan', tmp_path); again = train('pggan', tmp_path)
    same(whole['pggan'], plain(again)); assert again['images_per_s'] == 0


def test_newest_checkpoint_damaged(whole, tmp_path):
    train('pggan', tmp_path, steps=6); f = tmp_path/'checkpoint-1.pt'; f.write_bytes(f.read_bytes()[:-100])
    same(whole['pggan'], plain(train('pggan', tmp_path)))


def test_share_is_one_pass(whole):
    calls = []
    for share in (True, False):
        g = game('stylegan', share=share); n = []; g.G.register_forward_hook(lambda *_: n.append(1)); train('stylegan', made=g, steps=2, sheet_every=0); calls.append(len(n))
    assert calls == [2, 4]


def test_bf16_trains_close_to_fp32():
    a, b = (train('stylegan', made=game('stylegan', precision=p), steps=3)['curve']['d'] for p in ('fp32', 'bf16'))
    assert not np.array_equal(a, b) and np.allclose(a, b, rtol=.05)


def test_channels_last_is_a_layout(whole):
    r = train('stylegan', steps=3, channels_last=True)
    assert np.allclose(r['curve']['d'], whole['stylegan']['curve']['d'][:3], rtol=1e-3)
    assert r['game'].G.blocks[0][1].conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('loss,penalty', [('wgan', 'wgan_gp'), ('minimax', 'none')])
def test_other_losses_run(loss, penalty):
    c = train('pggan', made=game('pggan', loss=loss, penalty=penalty), steps=3)['curve']
    assert np.isfinite(c['d']).all() and np.isfinite(c['g']).all()


# what can go wrong

class Breaks:
    def __init__(self, g, at, part): self.g, self.at, self.part, self.real = g, at, part, getattr(g, f'{part}_loss')
    def __call__(self, batch, step):
        loss, logs = self.real(batch, step)
        return (loss*torch.inf, dict(logs, **{self.part: loss*torch.inf})) if step == self.at else (loss, logs)


@pytest.mark.parametrize('part', 'dg')
def test_broken_loss_stops_and_keeps_the_checkpoint(part, tmp_path, whole):
    g = game('pggan'); setattr(g, f'{part}_loss', Breaks(g, 8, part))
    with pytest.raises(UserError, match=rf"loss '{part}' is -?inf at step 8, resolution 8, alpha 0\.625 \(the checkpoint of step 6 is kept\)"): train('pggan', tmp_path, made=g)
    assert load_state(tmp_path/'checkpoint-1.pt')['step'] == 6
    same(whole['pggan'], plain(train('pggan', tmp_path))) # without the fault it goes on


def test_broken_weight_is_never_saved(tmp_path):
    g = game('pggan')
    def late(batch, step, real=g.g_loss):
        if step == 5:
            with torch.no_grad(): g.G.dense.weight[0, 0] = torch.nan
            return torch.zeros((), requires_grad=True)*0, {}
        return real(batch, step)
    g.g_loss = late
    with pytest.raises(UserError, match='not finite at step 6.*checkpoint of step 3 is kept'): train('pggan', tmp_path, made=g)
    assert load_state(tmp_path/'checkpoint-0.pt')['step'] == 3 and not (tmp_path/'checkpoint-1.pt').exists()


@pytest.mark.parametrize('fails', ('.pt', '.sha256', 'sheet', 'progress'))
def test_full_disk(fails, tmp_path, monkeypatch, whole):
    train('pggan', tmp_path, steps=6)
    import skinrepro.core as core
    real = core.atomic
    def full(path, mode='w'):
        if fails in str(path): raise OSError(errno.ENOSPC, 'No space left on device')
        return real(path, mode)
    for m in ('skinrepro.methods.train.atomic', 'skinrepro.methods.gan.atomic', 'skinrepro.core.atomic'): monkeypatch.setattr(m, full)
    with pytest.raises(UserError) as e: train('pggan', tmp_path)
    monkeypatch.undo()
    assert 'no space left on device (the checkpoint of step' in str(e.value) and '\n' not in str(e.value) and str(e.value).count(': ') == 1
    assert any(load_state(tmp_path/f'checkpoint-{k}.pt') for k in (0, 1))
    same(whole['pggan'], plain(train('pggan', tmp_path)))


def test_disk_that_ends_within_a_checkpoint(tmp_path):
    "A real failing write, in the middle of the file, by a limit on file size in another process."
    train('pggan', tmp_path, steps=3); size = (tmp_path/'checkpoint-0.pt').stat().st_size
    code = ("import signal, resource, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "from gan_child import train\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size//2}, {size//2}))\n"
            "from skinrepro.core import UserError\n"
            f"try: train('pggan', {str(tmp_path)!r})\n"
            "except UserError as e: print(e); sys.exit(2)")
    p = subprocess.Popen([sys.executable, '-c', code], env=environment(tmp_path, PYTHONPATH=str(Path(__file__).parent)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    rc, out, err = finish(p)
    assert rc == 2 and "'checkpoint-1.pt' could not be written at step 6, file too large (the checkpoint of step 3 is kept)" in out, out + err
    assert load_state(tmp_path/'checkpoint-0.pt')['step'] == 3 and not list(tmp_path.glob('.checkpoint*'))


def test_another_architecture(tmp_path):
    train('pggan', tmp_path, steps=3); before = (tmp_path/'checkpoint-0.pt').read_bytes()
    for made in (game('stylegan'), game('pggan', fmap=16)):
        with pytest.raises(UserError, match="checkpoint-0.pt holds another network.*name another folder"): train('pggan', tmp_path, made=made)
    with pytest.raises(UserError, match='was made with seed=0, not 1'): train('pggan', tmp_path, seed=1)
    assert (tmp_path/'checkpoint-0.pt').read_bytes() == before


def test_bad_sizes():
    with pytest.raises(UserError, match='size=48 is not a power of two from 4 up: choose 64'): stylegan.stylegan(48, 8, 8)
    with pytest.raises(UserError, match='power of two'): pggan.Growth(100)
    with pytest.raises(UserError, match=f'batch=64 is more than the {IMAGES} training images: choose batch <= {IMAGES}'):
        from skinrepro.methods.train import StepLoader
        StepLoader(np.zeros((IMAGES, 8, 8, 3), np.uint8), np.arange(IMAGES), 64, 3)
    g = game('pggan'); g.phase = g.at(0)
    with pytest.raises(UserError, match=r'images of 16 px and a schedule for 8: use ds.images\(8\)'): g.reals((torch.zeros(4, 16, 16, 3, dtype=torch.uint8),))
    with pytest.raises(UserError, match='the schedule ends at 16 px and the generator at 8'): pggan.ProgressiveGAN(g.G, g.D, pggan.Growth(16, 9., 1., 1.), 8)


def test_leftovers_of_a_killed_writer_go(tmp_path):
    left = tmp_path/'.checkpoint-0.pt.abc.tmp'; left.write_bytes(b'x')
    train('pggan', tmp_path, steps=3); assert not left.exists()


def test_keep_best(tmp_path):
    seen = []
    def score(G, step): seen.append((G.training, step)); return None if step < 5 else {6: 2., 9: 1., 12: 3.}[step]
    r = train('pggan', tmp_path, score=score, score_every=3)
    best = load_state(tmp_path/'best.pt')
    assert seen == [(False, s) for s in (3, 6, 9, 12)] and r['scores'] == [(6, 2.), (9, 1.), (12, 3.)] and (best['step'], best['score'], r['best']) == (9, 1., 1.)
    at9 = train('pggan', steps=9)['G'].state_dict()
    assert all(torch.equal(v, at9[k]) for k, v in best['model'].items())


def test_folded_convolutions_train_alike(monkeypatch, whole):
    monkeypatch.setattr(pggan.Conv, 'fold', False)
    for k in KINDS: assert np.allclose(train(k, steps=3)['curve']['d'], whole[k]['curve']['d'][:3], rtol=1e-4)
