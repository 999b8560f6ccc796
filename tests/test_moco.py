"MoCo-v2: the loss beside a public implementation, the queue, exact resume, and batch norm that tells nothing."
import copy
import math

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from skinrepro.core import UserError, rng, torch_rng
from skinrepro.data.phantom import phantom
from skinrepro.data.views import Views
from skinrepro.methods.encoders import encoder, mlp
from skinrepro.methods.moco import MOCO, Cosine, MoCoModel, check_queue, enqueue, info_nce, key_mode, random_layers, sgd, split_batch_norm
from skinrepro.methods.train import StepLoader, fit, learner, load_state

i, j = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(5, dtype=torch.float64)[None]
ZA = torch.sin(1 + 7*i + 3*j)
ZB = torch.sin(2 + 5*i + 2*j) + .5*ZA
QUEUE = nn.functional.normalize(torch.cos(.5 + 3*torch.arange(7, dtype=torch.float64)[:, None] + 2*j), dim=1)
STORED = {.07: .980449546702607, .2: .944216607354870}


@pytest.fixture(autouse=True)
def one_thread():
    was = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


@pytest.mark.parametrize('τ', STORED)
def test_info_nce(τ):
    assert info_nce(ZA, ZB, QUEUE, τ).item() == pytest.approx(STORED[τ], abs=1e-12)


@pytest.mark.parametrize('τ', STORED)
def test_info_nce_is_lightlys(τ):
    lightly = pytest.importorskip('lightly.loss', exc_type=ImportError)
    theirs, grads = lightly.NTXentLoss(temperature=τ, memory_bank_size=(7, 5)), []
    theirs.memory_bank.bank = QUEUE.clone()
    for f in (lambda q: info_nce(q, ZB, QUEUE, τ), lambda q: theirs(q, ZB)):
        q = ZA.clone().requires_grad_(); loss = f(q); loss.backward(); grads.append((loss.item(), q.grad))
    assert grads[0][0] == pytest.approx(grads[1][0], abs=1e-12) and torch.allclose(grads[0][1], grads[1][1], atol=1e-12)
    assert grads[0][1].abs().max() > .01


@pytest.mark.parametrize('K, sizes', [(7, [3]*9), (7, [1, 5, 2, 7, 3, 20, 4]), (8, [4]*6), (5, [12, 1, 12])])
def test_queue_holds_the_last_keys(K, sizes):
    queue, at, seen = torch.full((K, 2), -1.), 0, []
    for n in sizes:
        keys = torch.arange(len(seen), len(seen) + n)[:, None].float().expand(-1, 2)
        seen += keys[:, 0].tolist(); at = enqueue(queue, at, keys)
        want = [-1.]*(K - len(seen[-K:])) + seen[-K:]
        assert queue.roll(-at, 0)[:, 0].tolist() == want and torch.equal(queue[:, 0], queue[:, 1])


def test_queue_guard():
    check_queue(50, 100); check_queue(50, 101)
    for K, n in ((51, 100), (65_536, 20_926)):
        with pytest.raises(UserError, match=f'at most {n//2}'): check_queue(K, n)
    with pytest.raises(UserError, match='queue of 40 keys is more than half of the 64 training images'): fit(tiny(K=40))
    with pytest.raises(UserError, match='choose groups <= 8'): fit(tiny(groups=9))
    with pytest.raises(UserError, match='both, key, none'): MoCoModel(nn.Identity(), nn.Identity(), 8, split='keys')


class Stop(Callback):
    order = 99
    def __init__(self, step): self.at = step
    def after_batch(self):
        if self.learn.step == self.at: raise KeyboardInterrupt


IMAGES, BATCH, STEPS = 64, 16, 10


PICTURES = []
def tiny(folder=None, stop=None, K=27, groups=4, seed=0): # 27 keys: the queue wraps inside a batch
    if not PICTURES: PICTURES.append(phantom(n=IMAGES).images(24))
    net = encoder('test_resnet', seed)
    model = MoCoModel(net, mlp(net.num_features, net.num_features, 16, seed=seed), K, dim=16, groups=groups, seed=seed)
    loader, kw = StepLoader(PICTURES[0], np.arange(IMAGES), BATCH, STEPS, seed), sgd(BATCH, base=.5)
    cbs = [MOCO(Views('gan_ssl', 16), momentum=.9, seed=seed), Cosine(kw['lr'])] + ([Stop(stop)] if stop else [])
    learn = learner(model, loader, cbs, seed=seed, folder=folder, seconds=1e9, device='cpu', **kw)
    if folder: learn.checkpoint.every = 3
    return learn


def test_resumes_bit_for_bit(tmp_path):
    "Stopped at step 7 of 4 steps an epoch, after a checkpoint at step 6; weights, key network, queue and schedule go on as if nothing had been."
    whole = tiny(); loss = fit(whole)['loss']
    with pytest.raises(KeyboardInterrupt): fit(tiny(tmp_path, stop=7))
    states = [load_state(tmp_path/f'checkpoint-{k}.pt') for k in (0, 1)]
    assert [s['step'] for s in states] == [3, 6]
    assert {'queue', 'at'} <= states[1]['model'].keys() and states[1]['model']['at'] == 6*BATCH % 27
    resumed = tiny(tmp_path); assert fit(resumed)['loss'] == loss and len(loss) == STEPS
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    a, b = (l.opt.opt.state_dict() for l in (whole, resumed))
    assert a['param_groups'][0]['lr'] == b['param_groups'][0]['lr'] and all(torch.equal(v, b['state'][k][n]) for k, s in a['state'].items() for n, v in s.items())
    assert not torch.equal(states[1]['model']['queue'], whole.model.queue) and fit(tiny(seed=1))['loss'] != loss


def test_training_as_described():
    "SGD with momentum, wd 1e-4 and a cosine by step; the key network is averaged, the queue holds the last keys, unit length, no gradient."
    learn = tiny()
    seen, models = [], []
    class Look(Callback):
        order = 98
        def after_batch(self):
            group = self.opt.opt.param_groups[0]
            seen.append((group['lr'], group['momentum'], group['weight_decay'], type(self.opt.opt).__name__))
            models.append(dict(q=copy.deepcopy(self.model.query.state_dict()), k=copy.deepcopy(self.model.key.state_dict()), keys=self.learn.pred[1].clone()))
    learn.add_cb(Look()); fit(learn)
    lr = sgd(BATCH, base=.5)['lr']; assert lr == .5*BATCH/256
    for k, (l, m, wd, name) in enumerate(seen):
        assert l == pytest.approx(lr*(1 + math.cos(math.pi*k/STEPS))/2) and (m, wd, name) == (.9, 1e-4, 'SGD')
    for before, after in zip(models, models[1:]):
        for n, p in learn.model.key.named_parameters():
            assert torch.allclose(after['k'][n], .9*before['k'][n] + .1*after['q'][n], atol=1e-6) and not p.requires_grad and p.grad is None
    last = torch.cat([m['keys'] for m in models])[-27:]
    assert torch.equal(learn.model.queue.roll(-int(learn.model.at), 0), last) and torch.allclose(last.norm(dim=1), torch.ones(27), atol=1e-5)


@pytest.mark.parametrize('name', ['resnet18', 'densenet121', 'efficientnet_b0'])
def test_any_encoder(name):
    net = encoder(name); plain = copy.deepcopy(net)
    model = MoCoModel(net, mlp(net.num_features), 8, groups=2)
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    q, k = model(x, x.flip(0), torch.tensor([3, 1, 5, 0, 2, 4]))
    assert q.shape == k.shape == (6, 128) and q.requires_grad and not k.requires_grad
    model.precision = 'bf16'; assert {v.dtype for v in model(x, x)} == {torch.float32}
    assert model.encoder.state_dict().keys() == plain.state_dict().keys() # the encoder that is handed on is a plain one
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all('forward' not in m.__dict__ and m.momentum == .1 for m in norms)


def test_split_is_by_hand():
    x = torch.randn(10, 4, 3, 3, generator=torch.Generator().manual_seed(0))*2 + 1
    net = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.BatchNorm2d(5)); ref = copy.deepcopy(net)
    with split_batch_norm(net, 3): y = net(x)
    assert torch.allclose(y, torch.cat([ref(p) for p in x.tensor_split(3)]), atol=1e-6) # the network, three times; 10 = 4 + 3 + 3
    assert not torch.allclose(y, net(x), atol=.01)
    with pytest.raises(RuntimeError), split_batch_norm(net, 3): raise RuntimeError
    assert all('forward' not in m.__dict__ for m in net) and net[1].momentum == .1


def test_keys_come_back_in_order():
    "Without batch norm the order makes no difference; with split batch norm it decides who keeps company with whom."
    x, order = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    free = MoCoModel(nn.Linear(6, 6), nn.Identity(), 8, dim=6, groups=2)
    assert torch.allclose(free(x, x)[1], free(x, x, order)[1], atol=1e-6)
    model = MoCoModel(nn.BatchNorm1d(6), nn.Identity(), 8, dim=6, groups=2)
    k, by_hand = model(x, x, order)[1], torch.empty(8, 6)
    for rows in order.tensor_split(2): by_hand[rows] = nn.functional.normalize(nn.BatchNorm1d(6)(x[rows]), dim=1)
    assert torch.allclose(k, by_hand, atol=1e-5) and not torch.allclose(k, model(x, x)[1], atol=.01)


class Bypass(nn.Module):
    "A weight a channel decides how much of the image is left beside the batch's statistics."
    def __init__(self, D):
        super().__init__(); self.bn, self.w = nn.BatchNorm1d(D, affine=False), nn.Parameter(torch.full((D,), .6))
    def forward(self, x): return self.bn(x) - self.w*x


def stranger(x, *seed): return torch.cat([x, x[torch.randperm(len(x), generator=torch_rng(*seed))]])
def neighbour(x, *_): return torch.cat([x, x.roll(1, 0)])


def leak(split, shuffle, views, seed, K=256, N=64, D=64):
    "The loss at the end, where a query's key is another image of its batch and all images are noise."
    model = MoCoModel(Bypass(D), nn.Identity(), K, dim=D, split=split, seed=seed)
    loader = StepLoader(rng(seed, 'noise').normal(size=(1024, D)).astype('float32'), np.arange(1024), N, 60, seed)
    cb = MOCO(views, momentum=.9, shuffle=shuffle, seed=seed)
    return np.mean(fit(learner(model, loader, [cb], lr=.03, seed=seed, device='cpu'))['loss'][-15:])


@pytest.mark.parametrize('seed', [1, 2])
def test_batch_norm_leaks_unless_split_and_shuffled(seed):
    "P1-23."
    chance = math.log(257)
    whole, shuffled, key, both = (leak(*a, stranger, seed) for a in (('none', False), ('none', True), ('key', True), ('both', True)))
    assert whole < .6*chance and abs(whole - shuffled) < .15 # shuffling alone changes nothing
    assert leak('both', False, neighbour, seed) < .6*chance # nor does splitting alone, inside a sub-batch
    assert whole + 1 < key < .9*chance < .93*chance < both < 1.05*chance


def test_shuffling_a_whole_batch_changes_no_key():
    x, order = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    keys = lambda split, order: MoCoModel(copy.deepcopy(net), nn.Identity(), 8, dim=8, groups=3, split=split)(x, x, order)[1]
    assert torch.allclose(keys('none', None), keys('none', order), atol=1e-5)
    assert (keys('key', None) - keys('key', order)).abs().max() > .01


def nets():
    import timm
    import torchvision
    yield 'timm b0', timm.create_model('efficientnet_b0', num_classes=0, drop_path_rate=.5, drop_rate=.3), 1280, 'DropPath'
    tv = torchvision.models.efficientnet_b0(weights=None, stochastic_depth_prob=.5)
    yield 'torchvision b0', tv, 1000, 'StochasticDepth'
    yield 'toy', nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), nn.BatchNorm1d(16), nn.Dropout(.5)), 16, 'Dropout'


def test_key_network_draws_nothing():
    "P1-24: two passes of two images agree in the key network, not in the query network, and batch norm goes on learning."
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, net, D, kind in nets():
        model = MoCoModel(net, mlp(D), 8, split='none')
        assert random_layers(model.query)[kind] and not random_layers(model.key), name
        norms = [m for m in model.key.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        before = [m.running_mean.clone() for m in norms]
        torch.manual_seed(0); (q1, k1), (q2, k2) = model(x, x), model(x, x)
        assert torch.equal(k1, k2) and not torch.allclose(q1, q2, atol=1e-3), name
        assert norms and all(m.training and not torch.equal(m.running_mean, b) for m, b in zip(norms, before)), name
        assert all(m.training for m in model.train().query.modules()) and not any(m.training for m in model.eval().modules()), name
        model.train(); assert all(m.training for m in norms) and not random_layers(model.key), name
    left_alone = key_mode(nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train())
    assert [m.training for m in left_alone] == [False, True]
