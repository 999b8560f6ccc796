"SimCLR from image files, end to end: ours beside its own bare step, lightly's tutorial (as it is, and tuned) and self_supervised."
import logging, os
logging.captureWarnings(True) # before the libraries: some warn when imported, some reset warning filters
os.environ.setdefault('GOMP_SPINCOUNT', '0') # before torch: threads that wait must not burn the cores of the loaders
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import argparse, contextlib, gc, io, multiprocessing, statistics, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Sampler

from skinrepro.companion.records import machine
from skinrepro.core import UserError, default_device, home, rng, write_json
from skinrepro.data.lesions import LesionSet, manifest
from skinrepro.data.phantom import phantom
from skinrepro.data.views import Views
from skinrepro.methods.encoders import Projected, encoder, mlp
from skinrepro.methods.simclr import SimCLR, nt_xent
from skinrepro.methods.train import OPTIMISERS, StepLoader, fit, learner

STORE = {32: 64, 64: 128, 96: 256} # side of a view -> side of the stored images
TARGETS = dict(bare={32: .75, 64: .70, 96: .75}, lightly={32: 2., 64: 2., 96: 2.}, lightly_tuned={32: 1.8, 96: 1.25}) # least ratio of ours to each
LABELS = dict(ours='skinrepro', bare='(a) bare step', lightly='(b) lightly tutorial', lightly_tuned='(c) lightly tuned', self_supervised='(d) self_supervised')
ROUNDS = 5 # fewer give no verdict
LR, TEMPERATURE = 1e-3, .07


@dataclass(frozen=True)
class Setting:
    "What every contestant is given."
    files:Path # folder of JPEGs
    x:object # (N, S, S, 3) uint8, the same pictures decoded once
    size:int # side of a view, pixels
    batch:int # pairs a step
    precision:str # 'bf16' or 'fp32': of ours, (a) and (c)
    workers:int # loader processes of the peers
    device:torch.device


def native_bf16()->bool:
    "Whether bfloat16 runs in hardware here: elsewhere it is emulated, many times slower than fp32."
    if torch.cuda.is_available(): return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path('/proc/cpuinfo')
    return info.exists() and bool({'avx512_bf16', 'amx_bf16'} & set(info.read_text().split()))


# Contestants: each takes a Setting and returns `run(n)`, which trains n steps from files (or, ours, from the store) and carries on where it stopped.

def ours(s):
    "What users run: a store, stateless exact views, a fastai Learner; no loader process."
    loader = StepLoader(s.x, np.arange(len(s.x)), s.batch, steps=1)
    model = Projected(encoder('resnet18'), mlp(512), s.precision)
    learn = learner(model, loader, [SimCLR(Views('gan_ssl', s.size), TEMPERATURE)], LR, device=s.device)
    def run(n):
        loader.step, loader.steps, loader.seed = 0, n, loader.seed + 1
        fit(learn)
    return run

def bare(s):
    "(a) The same model, optimiser, precision and loss on views that are already made: no data path, no Learner."
    views, g = Views('gan_ssl', s.size), rng('bench', s.size)
    made = [views(torch.from_numpy(s.x[np.sort(g.permutation(len(s.x))[:s.batch])]).to(s.device), 'bench', k) for k in range(4)]
    model = Projected(encoder('resnet18'), mlp(512), s.precision).to(s.device).train()
    opt = OPTIMISERS['adam'](model.parameters(), lr=LR, fused=True)
    def run(n):
        for k in range(n):
            nt_xent(*model(made[k % len(made)]).chunk(2), TEMPERATURE).backward()
            opt.step(); opt.zero_grad()
    return run

class Shuffled(Sampler):
    "`n` indices, permutation after permutation; `n` may change between epochs."
    def __init__(self, size): self.size, self.n, self.rng = size, size, np.random.default_rng(0)
    def __len__(self): return self.n
    def __iter__(self):
        for k in range(-(-self.n//self.size)): yield from self.rng.permutation(self.size)[:self.n - k*self.size].tolist()

class TutorialSimCLR(nn.Module):
    "The model of lightly's SimCLR example."
    def __init__(self):
        from lightly.models.modules import SimCLRProjectionHead
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x): return self.projection_head(self.backbone(x).flatten(start_dim=1))

def lightly(s, tuned=False):
    "(b) lightly's SimCLR example in plain PyTorch; `tuned`: (c), with channels_last and our precision."
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    data = LightlyDataset(str(s.files), transform=SimCLRTransform(input_size=s.size, gaussian_blur=0.)) # its other defaults are P0's magnitudes
    sampler = Shuffled(len(data))
    batches = DataLoader(data, s.batch, sampler=sampler, drop_last=True, num_workers=s.workers, persistent_workers=s.workers > 0)
    layout = torch.channels_last if tuned else torch.contiguous_format
    model, loss = TutorialSimCLR().to(s.device, memory_format=layout).train(), NTXentLoss(temperature=TEMPERATURE)
    opt = torch.optim.SGD(model.parameters(), lr=6e-2, momentum=.9, weight_decay=5e-4)
    low = tuned and s.precision == 'bf16'
    def run(n):
        sampler.n = n*s.batch
        for (x0, x1), *_ in batches:
            with torch.autocast(s.device.type, torch.bfloat16, enabled=low):
                z0, z1 = (model(x.to(s.device, memory_format=layout)) for x in (x0, x1))
            loss(z0.float(), z1.float()).backward()
            opt.step(); opt.zero_grad()
    return run

def lightly_tuned(s):
    "(c) lightly with the two levers anyone can pull."
    return lightly(s, tuned=True)

def self_supervised(s):
    "(d) The library's SimCLR callback and default pipelines on fastai's loaders, as in its tutorial; the encoder is a model object, since its names break."
    from fastai.callback.core import Callback, CancelValidException
    from fastai.data.block import DataBlock
    from fastai.data.transforms import IndexSplitter
    from fastai.learner import Learner
    from fastai.vision.augment import Resize
    from fastai.vision.data import ImageBlock
    from self_supervised.vision.simclr import SimCLR as Theirs, create_simclr_model, get_simclr_aug_pipelines
    class NoValidation(Callback):
        def before_validate(self): raise CancelValidException
    files = sorted(s.files.glob('*.jpg'))
    block = DataBlock(blocks=(ImageBlock,), splitter=IndexSplitter([]), item_tfms=Resize(s.size, 'squish'))
    dls_of = lambda n: block.dataloaders([files[i % len(files)] for i in range(n*s.batch)], bs=s.batch, num_workers=s.workers, device=s.device)
    augs = get_simclr_aug_pipelines(s.size, rotate=False, blur=False, resize_scale=(.08, 1.), jitter_s=1., jitter_p=.8, bw_p=.2, cuda=s.device.type == 'cuda')
    model = create_simclr_model(encoder('resnet18'), hidden_size=512, projection_size=128)
    learn = Learner(dls_of(1), model, loss_func=lambda *_: None, lr=LR, cbs=[Theirs(augs, temp=TEMPERATURE), NoValidation()])
    learn.remove_cbs([c for c in learn.cbs if type(c).__name__ == 'ProgressCallback']); learn.logger = lambda *_: None
    held = {}
    def run(n):
        if n not in held: held[n] = dls_of(n)
        learn.dls = held[n]
        learn.fit(1)
    run.prepare = lambda n: held.setdefault(n, dls_of(n)) # the list of files is no part of an epoch
    return run

CONTESTANTS = dict(ours=ours, bare=bare, lightly=lightly, lightly_tuned=lightly_tuned, self_supervised=self_supervised)


def cpu_seconds()->float:
    "Processor time of this process and of its loader processes, running and ended."
    t = os.times()
    total = t.user + t.system + t.children_user + t.children_system
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError): # no /proc, or just ended
            total += sum(map(int, Path(f'/proc/{child.pid}/stat').read_text().rpartition(')')[2].split()[11:13]))/os.sysconf('SC_CLK_TCK')
    return total

def timed(run, n, device)->tuple: # (wall seconds, CPU seconds)
    "What `n` steps cost."
    gc.collect()
    sync = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    sync(); cpu, wall = cpu_seconds(), time.perf_counter()
    run(n); sync()
    return time.perf_counter() - wall, cpu_seconds() - cpu

def pictures(folder, n):
    "Write `n` rendered lesions as 600 x 450 JPEGs, the format of HAM10000."
    folder.mkdir()
    drawn = phantom(n)
    def write(i):
        im = Image.fromarray(drawn.render(450, i, i + 1)[0]).resize((600, 450), Image.Resampling.BICUBIC)
        im.save(folder/f'{i:05d}.jpg', quality=95)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()) as pool: list(pool.map(write, range(n)))
    return folder

def decoded(folder, size, cache)->tuple: # (array, seconds)
    "The store, built from nothing, and what that took."
    began = time.perf_counter()
    files = sorted(folder.glob('*.jpg'))
    data = LesionSet('bench', manifest(dict(image_id=[f.stem for f in files], label='lesion', path=[str(f) for f in files])), ('lesion',))
    with contextlib.redirect_stdout(io.StringIO()): x = data.images(size, cache) # its progress bar
    return x, time.perf_counter() - began

def summary(values)->dict: # median, least, most
    "Median and range of the rounds."
    return dict(median=statistics.median(values), min=min(values), max=max(values))

def affordable(s, rounds, limit)->Setting: # the same, perhaps with a smaller batch
    "Halve the batch until two steps of everyone in every round fit the time limit, going by the bare step."
    while True:
        run = bare(s); run(1)
        t, _ = timed(run, 1, s.device)
        if s.batch < 32 or 2*rounds*len(CONTESTANTS)*1.2*t <= limit: return s # the others take about a fifth longer than the bare step
        s = replace(s, batch=s.batch//2)

def measure(s, rounds, seconds, console)->dict: # contestant -> numbers
    "All contestants in turn, the order turned round each time."
    runs, out = {}, {}
    for name, make in CONTESTANTS.items():
        try: runs[name] = make(s)
        except ImportError as e: out[name] = dict(skipped=f'{e.name} is not installed')
    steps = {}
    with console.status(f'{s.size} px: warming up'):
        for name, run in runs.items():
            run(1) # kernels are chosen, loader processes start
            t, _ = timed(run, 1, s.device)
            steps[name] = max(2, round(seconds/t))
            if hasattr(run, 'prepare'): run.prepare(steps[name])
    took = {name: [] for name in runs}
    for r in range(rounds):
        with console.status(f'{s.size} px: round {r + 1} of {rounds}'):
            for name in list(runs)[::-1 if r % 2 else 1]: took[name].append(timed(runs[name], steps[name], s.device))
    for name, rows in took.items():
        pairs = steps[name]*s.batch
        rate = [pairs/wall for wall, _ in rows]
        out[name] = dict(steps=steps[name], seconds=[w for w, _ in rows], pairs_per_s=rate, cpu_ms_per_pair=[1e3*c/pairs for _, c in rows],
                         precision='fp32' if name in ('lightly', 'self_supervised') else s.precision, **{f'pairs_per_s_{k}': v for k, v in summary(rate).items()})
    for name in took:
        if name == 'ours': continue
        ratio = [a/b for a, b in zip(out['ours']['pairs_per_s'], out[name]['pairs_per_s'])] # of the same round
        target = TARGETS.get(name, {}).get(s.size)
        if name != 'bare': out[name]['ceiling'] = statistics.median(a/b for a, b in zip(out['bare']['pairs_per_s'], out[name]['pairs_per_s'])) # what no data path can exceed
        out[name]['ratio'] = dict(summary(ratio), rounds=ratio, target=target, met=None if target is None or rounds < ROUNDS else statistics.median(ratio) >= target)
    return out

def table(size, found)->Table:
    "One size, for the eye."
    t = Table(title=f"{size} px, batch {found['batch']} (store at {found['store']['size']} px, built once in {found['store']['seconds']:.1f} s)", title_justify='left')
    for head in ('', 'precision', 'pairs/s', 'CPU ms a pair', r'ours / it, median \[range]', 'target', '', '(a) / it'): t.add_column(head, no_wrap=head == '', justify='left' if head in ('', 'precision') else 'right')
    for name, label in LABELS.items():
        c = found['contestants'][name]
        if 'skipped' in c: t.add_row(label, '', 'skipped', '', c['skipped'], '', '', ''); continue
        row = [label, c['precision'], f"{c['pairs_per_s_median']:.1f}", f"{statistics.median(c['cpu_ms_per_pair']):.1f}"]
        if r := c.get('ratio'):
            verdict = '' if r['target'] is None else 'too few rounds' if r['met'] is None else '[green]met[/]' if r['met'] else '[red]not met[/]'
            row += [f"{r['median']:.2f} [{r['min']:.2f}-{r['max']:.2f}]".replace('[', r'\['), '' if r['target'] is None else f"≥ {r['target']:.2f}", verdict, f"{c['ceiling']:.2f}" if 'ceiling' in c else '']
        t.add_row(*row)
    return t

def versions()->dict: # package -> version
    "The peers' packages; the others are in the machine's entry."
    found = {}
    for p in ('skinrepro', 'lightly', 'self-supervised', 'kornia', 'fastcore', 'pillow'):
        with contextlib.suppress(ImportError): found[p] = version(p)
    return found

def arguments(argv=None):
    "The command line, checked."
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--sizes', default='32,64,96', help='sides of a view, pixels')
    p.add_argument('--rounds', type=int, default=ROUNDS, help=f'fewer than {ROUNDS} give no verdict')
    p.add_argument('--batch', type=int, default=64, help='pairs a step')
    p.add_argument('--images', type=int, default=256, help='JPEGs to write')
    p.add_argument('--seconds', type=float, default=4., help='one contestant, one round; never less than 2 steps')
    p.add_argument('--limit', type=float, default=600., help='seconds for all rounds of all sizes, about; a slow machine gets a smaller batch')
    p.add_argument('--workers', type=int, default=2, help='loader processes of the peers')
    p.add_argument('--precision', choices=('fp32', 'bf16'), help='of ours, (a) and (c); default bf16 where it is native')
    p.add_argument('--out', type=Path, help='default results/bench/simclr.json')
    a = p.parse_args(argv)
    try: a.sizes = [int(v) for v in a.sizes.split(',')]
    except ValueError: raise UserError(f"--sizes '{a.sizes}' is no list of numbers: write 32,64,96") from None
    if bad := [v for v in a.sizes if v not in STORE]: raise UserError(f"--sizes {bad[0]} is not measured: choose from {', '.join(map(str, STORE))}")
    if min(a.rounds, a.batch - 1) < 1: raise UserError('--rounds must be 1 or more, --batch 2 or more')
    if a.batch > a.images: raise UserError(f'--batch {a.batch} is more than --images {a.images}: write more images or take a smaller batch')
    return a

def main(argv=None):
    "Measure, print, and write the numbers."
    a, console = arguments(argv), Console()
    if not console.is_terminal: console = Console(width=132)
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    device, native = default_device(), native_bf16()
    precision = a.precision or ('bf16' if native else 'fp32')
    notes = [] if native else ['This machine has no native bfloat16 (avx512_bf16, amx_bf16 or a GPU), where it would run many times slower than fp32: '
                               f"(c) is lightly with channels_last in {precision}, and ours and (a) run in {precision} too."]
    if a.rounds < ROUNDS: notes.append(f'Fewer than {ROUNDS} rounds: no verdict.')
    for n in notes: console.print(n)
    began, load, sizes = time.perf_counter(), os.getloadavg()[0], {}
    with tempfile.TemporaryDirectory(prefix='skinrepro-bench-') as tmp:
        os.environ['SKINREPRO_CACHE'] = tmp # the user's cache is left alone
        with console.status(f'writing {a.images} pictures'): folder = pictures(Path(tmp)/'jpeg', a.images)
        kb = statistics.mean(f.stat().st_size for f in folder.iterdir())/1e3
        for size in a.sizes:
            x, seconds = decoded(folder, STORE[size], tmp)
            s = affordable(Setting(folder, x, size, a.batch, precision, a.workers, device), a.rounds, a.limit*size/sum(a.sizes))
            if s.batch < a.batch: notes.append(f'{size} px: batch {s.batch} instead of {a.batch}, to stay within the time limit.'); console.print(notes[-1])
            found = measure(s, a.rounds, a.seconds, console)
            sizes[str(size)] = dict(batch=s.batch, store=dict(size=STORE[size], seconds=seconds, images=a.images, images_per_s=a.images/seconds), contestants=found)
            gc.collect() # ends the loader processes of this size
            console.print(table(size, sizes[str(size)]))
    out = a.out or home()/'results'/'bench'/'simclr.json'
    write_json(out, dict(date=datetime.now(timezone.utc).isoformat(timespec='seconds'), seconds=round(time.perf_counter() - began, 1), notes=notes, machine=machine(), versions=versions(),
        load=[load, os.getloadavg()[0]], sizes=sizes, settings=dict(sizes=a.sizes, rounds=a.rounds, batch=a.batch, images=a.images, seconds=a.seconds, limit=a.limit, workers=a.workers,
        precision=precision, native_bf16=native, device=device.type, jpeg=dict(width=600, height=450, quality=95, mean_kb=round(kb, 1)), backbone='resnet18', views='gan_ssl')))
    console.print(f'Written to {out.name}; {time.perf_counter() - began:.0f} s in all; load {load:.1f} before, {os.getloadavg()[0]:.1f} after (a busy machine blurs ratios).')


if __name__ == '__main__':
    try: main()
    except UserError as e: sys.exit(f'error: {e}')
