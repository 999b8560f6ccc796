"One run over several processes is the run in one: gradients, weights and checkpoints; this file is also the process that is started."
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from skinrepro.core import UserError

LOSSES = ('nt_xent', 'barlow_twins', 'vicreg')


def gradient(loss, how, rank=0): # of one process, averaged over all; `halves` is the mistake
    from contextlib import nullcontext

    from torch import distributed as dist, nn

    from skinrepro.methods.barlow_twins import barlow_twins_loss
    from skinrepro.methods.parallel import joined, joined_batch_norm, my_share, world
    from skinrepro.methods.simclr import nt_xent
    from skinrepro.methods.vicreg import vicreg_loss
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 24), nn.BatchNorm1d(24), nn.Linear(24, 20)).double()
    x = torch.randn(16, 3, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    together, norms = (joined, joined_batch_norm(net)) if how == 'joined' else (lambda z: z, nullcontext())
    with norms: value = dict(nt_xent=nt_xent, barlow_twins=barlow_twins_loss, vicreg=vicreg_loss)[loss](*together(net(my_share(x))).chunk(2))
    value.backward()
    for p in net.parameters():
        if world()[1] > 1: dist.all_reduce(p.grad); p.grad /= world()[1]
    return dict(value=value.item(), grad=torch.cat([p.grad.flatten() for p in net.parameters()]), norm=torch.cat([b.double().flatten() for b in net.buffers()]))


def train(method, device, folder=None): # three steps on the embedded data
    from skinrepro.data.phantom import phantom
    from skinrepro.data.views import Views
    from skinrepro.methods.barlow_twins import BarlowTwins, Joint
    from skinrepro.methods.encoders import Projected, encoder, mlp
    from skinrepro.methods.parallel import Joined
    from skinrepro.methods.simclr import SimCLR
    from skinrepro.methods.train import StepLoader, fit, learner
    net, views = encoder('test_resnet', 0), Views('gan_ssl', 16)
    head = mlp(net.num_features, 32, 16, bn=True, seed=0)
    model, cb = (Projected(net, head), SimCLR(views)) if method == 'simclr' else (Joint(net, head), BarlowTwins(views))
    learn = learner(model, StepLoader(phantom(n=16).images(24), np.arange(16), 8, 3), [cb, Joined()], 1e-2, opt='sgd', folder=folder, seconds=1e9, device=device) # Adam would make rounding large where a gradient is nothing
    start = {k: v.clone() for k, v in model.state_dict().items()}
    curve = fit(learn)
    return dict(start=start, model=model.state_dict(), loss=curve['loss'])


def main(out, what, *words): # what `accelerate launch`, `torchrun` or a test starts
    from skinrepro.methods.parallel import processes, world
    torch.set_num_threads(1)
    with processes() as device:
        made = train(words[0], device, Path(out)/'work') if what == 'train' else {(loss, how): gradient(loss, how) for loss in LOSSES for how in ('joined', 'halves')}
        torch.save(made, Path(out)/f'{world()[0]}.pt')


if __name__ == '__main__': main(*sys.argv[1:]); sys.exit()


def environment(tmp_path, **more): return os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONWARNINGS='ignore', SKINREPRO_CACHE=str(tmp_path/'cache'), PYTHONPATH=os.pathsep.join(p for p in sys.path if p)) | more


def two(tmp_path, *words): # the same in two processes that meet on loopback
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = str(s.getsockname()[1])
    there = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    procs = [subprocess.Popen([sys.executable, __file__, str(tmp_path), *words], env=environment(tmp_path, **there, RANK=str(r), LOCAL_RANK=str(r)), stderr=subprocess.PIPE, text=True) for r in range(2)]
    ends = [p.communicate(timeout=600)[1] for p in procs]
    assert [p.returncode for p in procs] == [0, 0], ends
    return [torch.load(tmp_path/f'{r}.pt', weights_only=True) for r in range(2)]


@pytest.fixture(scope='module')
def gradients(tmp_path_factory): return two(tmp_path_factory.mktemp('two'), 'gradients')


@pytest.mark.parametrize('loss', LOSSES)
def test_two_processes_have_the_gradient_of_the_joined_batch(gradients, loss):
    one = gradient(loss, 'joined')
    for got in (g[loss, 'joined'] for g in gradients):
        assert got['value'] == pytest.approx(one['value'], rel=1e-12)
        for part in ('grad', 'norm'): torch.testing.assert_close(got[part], one[part], rtol=1e-9, atol=1e-11*one[part].abs().max().item())
    half = gradients[0][loss, 'halves']['grad'] # what nobody would notice
    assert (half - one['grad']).abs().max() > .01*one['grad'].abs().max()


@pytest.mark.parametrize('method', ['simclr', 'barlow_twins'])
def test_training_in_two_processes_is_training_in_one(tmp_path, method):
    a, b = two(tmp_path, 'train', method)
    one = train(method, 'cpu')
    assert all(torch.equal(v, b['model'][k]) for k, v in a['model'].items()) and a['loss'] == b['loss'] # the two agree bit for bit
    assert a['loss'] == pytest.approx(one['loss'], rel=1e-4)
    def far(x, y): return torch.cat([(x[k] - y[k]).flatten().double() for k in x if x[k].is_floating_point()]).norm()
    assert far(a['model'], one['model']) < 1e-3*far(one['model'], one['start']) # rounding, beside how far training went
    again = train(method, 'cpu', tmp_path/'work') # the checkpoint of two is one's
    assert all(torch.equal(v, a['model'][k]) for k, v in again['model'].items())


def test_accelerate_starts_it(tmp_path):
    command = Path(sys.executable).parent/'accelerate'
    if not command.is_file(): pytest.skip("accelerate is not installed: pip install 'skinrepro[cluster]'")
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = str(s.getsockname()[1])
    words = ['launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', port, '--num_cpu_threads_per_process', '1', __file__, str(tmp_path), 'train', 'simclr']
    r = subprocess.run([str(command), *words], env=environment(tmp_path, HF_HOME=str(tmp_path)), capture_output=True, text=True, timeout=600)
    assert r.returncode == 0, r.stderr
    a, b = (torch.load(tmp_path/f'{k}.pt', weights_only=True) for k in range(2))
    assert a['loss'] == b['loss'] and a['loss'] == pytest.approx(train('simclr', 'cpu')['loss'], rel=1e-4)


def test_batches_that_cannot_be_shared(monkeypatch):
    from skinrepro.methods import parallel
    monkeypatch.setattr(parallel, 'world', lambda: (1, 2))
    x = torch.arange(8)
    assert parallel.my_share(x).tolist() == [2, 3, 6, 7] and parallel.my_share(x, 1).tolist() == [4, 5, 6, 7]
    with pytest.raises(UserError, match='batch=3 cannot be shared by 2 processes: choose a multiple of 2'): parallel.my_share(torch.arange(6))


def test_norms_are_given_back():
    from torch import nn

    from skinrepro.methods.parallel import joined_batch_norm
    net, x = nn.BatchNorm1d(3), torch.randn(4, 3)
    with joined_batch_norm(net): assert 'forward' in vars(net)
    assert 'forward' not in vars(net) and torch.equal(net(x), nn.BatchNorm1d(3)(x))
