"StyleGAN's G + D step: ours beside the same architecture run plainly, what each lever gives, the memory of each, and what the pictures are worth after equally many images."
import logging, os
logging.captureWarnings(True) # before the libraries: some warn when imported, some reset warning filters
os.environ.setdefault('GOMP_SPINCOUNT', '0') # before torch: threads that wait must not burn cores
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import argparse, contextlib, gc, importlib, math, multiprocessing, re, statistics, sys, time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from simclr import LR, TEMPERATURE, native_bf16, summary # the bench beside this one

from skinrepro.companion.records import machine, peak_memory
from skinrepro.core import UserError, default_device, home, read_json, rng, seed_of, write_json
from skinrepro.data.phantom import phantom
from skinrepro.data.views import Views
from skinrepro.methods.encoders import Projected, encoder, mlp
from skinrepro.methods.gan import Training, fit_gan
from skinrepro.methods.pggan import Conv, Growth, ProgressiveGAN, resolutions, sample
from skinrepro.methods.simclr import SimCLR
from skinrepro.methods.stylegan import stylegan
from skinrepro.methods.train import StepLoader, fit, learner

TARGET, TARGET_SIZE = 1.5, 64 # least images/s of fast to plain, on a CPU, at this side
ROUNDS = 5 # fewer give no verdict
CYCLE = 8 # steps after which every interval of R1 has come round
GAMMA, GAN_LR, PERIOD = 1., .002, 4 # γ of R1, Adam's rate, and the interval of R1, as in the preset 'small' of papers/gan_ssl
FULL = dict(size=64, width=64, batch=16, rounds=ROUNDS, steps=CYCLE, images=6_000, seeds=3, pairs=10_000, generated=1000, real=2000)
TINY = dict(size=8, width=8, batch=4, rounds=1, steps=CYCLE, images=32, seeds=1, pairs=64, generated=32, real=80)
PRELOAD = ['torch._dynamo', 'skinrepro.methods.stylegan', 'skinrepro.data.phantom', 'skinrepro.data.views', 'skinrepro.methods.simclr', 'skinrepro.companion.records', 'rich.table']


@dataclass(frozen=True)
class Arm:
    "How one and the same architecture is run; the defaults are plain."
    fold:bool = False # a change of size and its convolution in one
    layout:bool = False # channels last in memory
    fused:bool = False # Adam in one kernel
    share:bool = False # one generator pass for both players
    every:int = 1 # steps from one R1 to the next
    bf16:bool = False # precision of forward passes

LEVERS = dict( # name -> (what it changes in an arm, words, kind); those that change nothing come first
    fold=(dict(fold=True), 'folded convolutions', 'exact'),
    layout=(dict(layout=True), 'channels-last layout', 'exact'),
    fused=(dict(fused=True), 'fused Adam', 'exact'),
    share=(dict(share=True), 'one generator pass', 'other draws'),
    lazy=(dict(every=PERIOD), f'R1 every {PERIOD} steps', 'algorithm'),
    bf16=(dict(bf16=True), 'bf16', 'arithmetic'))
KINDS = dict(exact='the same function, up to rounding',
    **{'other draws': "the generator's step judges the very images that D has just learned from, instead of fresh ones: the same loss on another sample"},
    algorithm='the penalty comes seldom and as many times stronger: the same mean, another path', arithmetic='forward passes in 16 bits; the optimiser, losses and the steps with R1 stay fp32')
NOT_RUN = 'not run: no native bf16'


def arms_of(native)->dict: # name -> Arm
    "Plain and fast first, as neighbours; each lever alone; the levers one after the other; R1 more seldom."
    levers = {k: v[0] for k, v in LEVERS.items() if k != 'bf16' or native}
    so_far, rows = Arm(), {}
    for k, change in levers.items(): so_far = replace(so_far, **change); rows[f'to_{k}'] = so_far
    alone = {k: Arm(**change) for k, change in levers.items()}
    out = dict(plain=Arm(), fast=so_far, **alone, lazier=Arm(every=CYCLE), **rows, fast_lazier=replace(so_far, every=CYCLE))
    for twin in ('to_fold', f'to_{list(levers)[-1]}'): del out[twin] # the first lever alone, and fast
    return out

def chain(found)->list: # names of arms from plain to fast, one lever more each
    "Plain, and what the levers make of it, one after the other."
    return ['plain', 'fold', *(k for k in found if k.startswith('to_')), 'fast']


@dataclass(frozen=True)
class Setting:
    "What every arm is given."
    size:int # side of the images, pixels
    width:int # channels at most; the latent is as wide
    batch:int # images a step
    device:str # 'cpu' or 'cuda'
    x:object = None # (n, size, size, 3) uint8, real images


def game(arm, s, growth=None, seed=0): # ProgressiveGAN; without a schedule at full size
    "StyleGAN and its discriminator, run as an arm says."
    G, D = stylegan(s.size, s.width, z_dim=s.width, seed=seed)
    found = ProgressiveGAN(G, D, growth or Growth(s.size, 1., 0., 0.), s.batch, gamma=GAMMA, r1_every=arm.every, share=arm.share, precision='bf16' if arm.bf16 else 'fp32')
    for m in found.modules():
        if isinstance(m, Conv): m.fold = arm.fold
    return found

def training(arm, s)->Training:
    "An arm, ready to step."
    return Training(game(arm, s), lr=GAN_LR, channels_last=arm.layout, fused=arm.fused, device=s.device)

def batch_of(s, k): # (batch, size, size, 3) uint8 of step k
    "Real images, made before: no data path."
    first = k % (len(s.x)//s.batch)*s.batch
    return (torch.from_numpy(s.x[first:first + s.batch]),)

def steps(t, s, n):
    "Go on by n steps, and look at the losses as `fit_gan` does."
    for _ in range(n): t.advance(batch_of(s, t.step))
    t.book.read()

def timed(t, s, n)->tuple: # (wall seconds, CPU seconds)
    "What `n` steps cost."
    gc.collect()
    sync = torch.cuda.synchronize if s.device == 'cuda' else lambda: None
    sync(); cpu, wall = time.process_time(), time.perf_counter()
    steps(t, s, n); sync()
    return time.perf_counter() - wall, time.process_time() - cpu


def memory(arm, s)->dict: # MiB: of networks, optimisers and steps, and of the whole process
    "Peak memory of one arm; call it in a process of its own."
    def status(key): # of this process; not `ru_maxrss`, which a child inherits
        found = re.search(rf'^{key}:\s+(\d+) kB', Path('/proc/self/status').read_text(), re.M) if Path('/proc/self/status').exists() else None
        return int(found[1])/1024 if found else peak_memory()
    torch.set_num_threads(int(os.environ.get('BENCH_THREADS', 1)))
    importlib.import_module('torch._dynamo') # optimisers do it at their first step: it is no memory of theirs
    warm = replace(s, size=8, width=8, batch=2, x=np.zeros((2, 8, 8, 3), np.uint8))
    steps(training(arm, warm), warm, 1) # nor is the libraries' code
    before = status('VmRSS')
    steps(training(arm, s), s, CYCLE if arm.every == CYCLE else max(2, arm.every))
    peak = status('VmHWM')
    if s.device == 'cuda': return dict(training=torch.cuda.max_memory_allocated()/2**20, process=peak)
    return dict(training=peak - before, process=peak)

def memories(arms, s, console)->dict: # name -> dict
    "Every arm in a new process, which has imported everything and computed nothing."
    os.environ.setdefault('PYTHONWARNINGS', 'ignore') # what libraries say while those processes import them
    how = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
    ctx = multiprocessing.get_context(how)
    if how == 'forkserver': ctx.set_forkserver_preload(PRELOAD)
    with console.status('memory, one process each'), ProcessPoolExecutor(1, ctx, max_tasks_per_child=1) as pool:
        return dict(zip(arms, pool.map(memory, arms.values(), [replace(s, x=s.x[:CYCLE*s.batch])]*len(arms))))


def first_step(arm, s)->tuple: # (Training, gradients of D and G at the start)
    "Both players' gradients before anything has moved."
    t, grads = training(arm, s), []
    for player, net, loss_of in (('d', t.game.D, t.game.d_loss), ('g', t.game.G, t.game.g_loss)):
        torch.manual_seed(seed_of(0, player, 0)); t.game.zero_grad()
        loss_of(batch_of(s, 0), 0)[0].backward()
        grads += [[torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]]
    return t, grads

def apart(a, b)->float: # ‖a - b‖ / ‖b‖
    "Relative distance of two lists of tensors."
    return (sum((u - v).double().square().sum() for u, v in zip(a, b))/sum(v.double().square().sum() for v in b)).sqrt().item()

def differences(arms, s)->dict: # lever -> dict(D=, G=, update=)
    "How far each lever's first step is from plain's: gradients, and Adam's step from equal gradients."
    _, want = first_step(Arm(), s)
    def moved(t): # by one step of both optimisers, from plain's gradients
        nets = (('d', t.game.D), ('g', t.game.G)); was = [p.detach().clone() for _, net in nets for p in net.parameters()]
        for (name, net), grads in zip(nets, want):
            for p, g in zip(net.parameters(), grads): p.grad = torch.empty_like(p).copy_(g)
            t.opts[name].step()
        return [p.detach() - w for p, w in zip((p for _, net in nets for p in net.parameters()), was)]
    step, out = moved(training(Arm(), s)), {}
    for name in [k for k in (*LEVERS, 'lazier') if k in arms]:
        t, (d, g) = first_step(arms[name], s)
        out[name] = dict(D=apart(d, want[0]), G=apart(g, want[1]), update=apart(moved(t), step))
    return out


def measure(arms, s, rounds, n, console)->dict: # name -> numbers
    "All arms in turn, the order turned round each time."
    with console.status('warming up'):
        runs = {name: training(arm, s) for name, arm in arms.items()}
        for t in runs.values(): steps(t, s, 2) # kernels are chosen; one step has R1
    gc.collect(); gc.freeze() # what stays is not looked at again and again
    took = {name: [] for name in runs}
    for r in range(rounds):
        with console.status(f'round {r + 1} of {rounds}'):
            for name in list(runs)[::-1 if r % 2 else 1]: took[name].append(timed(runs[name], s, n))
    gc.unfreeze()
    out, seen = {}, n*s.batch
    for name, rows in took.items():
        rate = [seen/wall for wall, _ in rows]
        out[name] = dict(asdict(arms[name]), seconds=[w for w, _ in rows], images_per_s=rate, cpu_ms_per_image=[1e3*c/seen for _, c in rows], **{f'images_per_s_{k}': v for k, v in summary(rate).items()})
    for name in took:
        out[name]['ratio'] = ratio(out, name, 'plain')
        out[name]['cpu_ratio'] = summary([a/b for a, b in zip(out['plain']['cpu_ms_per_image'], out[name]['cpu_ms_per_image'])])
    return out

def ratio(found, a, b)->dict: # median, min, max, rounds
    "images/s of a to those of b, in the same round."
    rounds = [u/v for u, v in zip(found[a]['images_per_s'], found[b]['images_per_s'])]
    return dict(summary(rounds), rounds=rounds)

def shares(found)->dict: # lever -> alone, added, share of the whole
    "What each lever gives to plain, and on top of those before it; the share is of the logarithm, and None where there is no gain to share."
    names = chain(found)
    levers = [k for k in LEVERS if k in found]
    added = {k: ratio(found, after, before) for k, before, after in zip(levers, names, names[1:])}
    total = sum(math.log(v['median']) for v in added.values())
    out = {k: dict(alone=found[k]['ratio'], added=added[k], share=math.log(added[k]['median'])/total if total > math.log(1.05) else None, kind=LEVERS[k][2]) for k in levers}
    return {k: out.get(k, dict(skipped=NOT_RUN, kind=LEVERS[k][2])) for k in LEVERS}


def real_images(a)->tuple: # (name, to train on, held out), uint8
    "Phantoms, or HAM10000 divided by lesion."
    if not a.data: return 'phantom', phantom(a.real).render(a.size), phantom(a.generated, seed=1).render(a.size) # another seed, other patients
    from skinrepro.data.archives import open_dataset
    from skinrepro.data.splits import holdout
    ds = open_dataset('ham10000', a.data)
    rows, x = holdout(ds, np.arange(len(ds)), .8, 'lesion').rows, ds.images(a.size)
    if min(map(len, rows.values())) < max(4, a.batch*CYCLE): raise UserError(f"{ds.name} gives {len(rows['train'])} training and {len(rows['test'])} held-out images, {a.batch*CYCLE} of each are needed: take a smaller --batch or all of the data")
    return ds.name, *(np.asarray(x[np.sort(r)]) for r in (rows['train'], rows['test']))

def feature_network(name, x, a, device): # Extractor
    "A ResNet-18 trained by SimCLR on the real training images, and named so."
    from skinrepro.evaluation.gan_metrics import extractor
    batch = min(64, len(x)); n = max(1, a.pairs//batch)
    model = Projected(encoder('resnet18'), mlp(512))
    fit(learner(model, StepLoader(x, np.arange(len(x)), batch, n), [SimCLR(Views('gan_ssl', a.size), TEMPERATURE)], LR, device=device))
    return extractor(model.encoder, f'resnet18 SimCLR {n*batch} pairs of {len(x)} {name} images', a.size)

def schedule(a)->tuple: # (Growth, steps, rate of the average)
    "The paper's growing in small: three fifths of the images while growing; the average spans about a tenth of the steps."
    n = max(2, a.images//a.batch)
    piece = .6*n*a.batch/1000/(2*(len(resolutions(a.size)) - 1))
    return Growth(a.size, n*a.batch/1000, piece, piece), n, min(.999, 1 - 1/max(2, n/10))

def quality(arms, s, a, name, train, held, console)->dict:
    "KID of plain and fast after equally many images, from the same weights, batches and seeds."
    from skinrepro.evaluation.gan_metrics import features, kid
    with console.status('training the feature network'): ex = feature_network(name, train, a, s.device)
    real = features(held, ex, 'held-out')
    floor = kid(features(train, ex, 'training', np.sort(rng(0, 'floor').permutation(len(train))[:a.generated])), real) # what real images score
    growth, n, average = schedule(a)
    runs, value = [], lambda v: dict(value=v.value, sd=v.sd, n=v.n, protocol=v.protocol)
    for seed in range(a.seeds):
        run = dict(seed=seed)
        for which in ('plain', 'fast')[::-1 if seed % 2 else 1]:
            arm = arms[which]
            with console.status(f'training {which}, seed {seed}'):
                began, cpu = time.perf_counter(), time.process_time()
                made = fit_gan(game(arm, s, growth, seed), StepLoader(train, np.arange(len(train)), s.batch, n, seed), seed=seed, lr=GAN_LR, ema=average, channels_last=arm.layout, fused=arm.fused, device=s.device)
                took = dict(seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - cpu)
            images = sample(made['G'], a.generated, ('bench', seed)) # in fp32, for both
            run[which] = dict(took, kid=value(kid(features(images, ex, 'generated'), real)))
        runs.append(run)
    gap = [r['fast']['kid']['value'] - r['plain']['kid']['value'] for r in runs]
    spread = {k: statistics.stdev(r[k]['kid']['value'] for r in runs) if len(runs) > 1 else None for k in ('plain', 'fast')}
    return dict(images=n*s.batch, steps=n, ema=average, growth=asdict(growth), real=name, floor=value(floor), runs=runs, protocol=runs[0]['plain']['kid']['protocol'],
        fast_minus_plain=dict(mean=statistics.mean(gap), each=gap, sd=statistics.stdev(gap) if len(gap) > 1 else None), sd_over_seeds=spread,
        seconds_ratio=summary([r['plain']['seconds']/r['fast']['seconds'] for r in runs]))


def span(r, digits=2): # for the eye
    "Median and range."
    return f"{r['median']:.{digits}f} [{r['min']:.{digits}f}-{r['max']:.{digits}f}]".replace('[', r'\[')

def columns(t, *heads): # numbers to the right
    "Add columns; the first holds names."
    for h in heads: t.add_column(h, no_wrap=h == '', justify='left' if h in ('', 'kind') else 'right')
    return t

def step_table(found, kept, s)->Table:
    "Plain and fast, and the two between which a purist may choose."
    t = columns(Table(title=f'G + D step, {s.size} px, width {s.width}, batch {s.batch}', title_justify='left'), '', 'images/s', 'CPU ms an image', r'images/s to plain', 'CPU time of plain to its', 'peak MiB of training', 'of its process')
    labels = dict(plain='plain', to_fused='all that is exact', fast='fast', fast_lazier=f'fast, R1 every {CYCLE}')
    for name, label in labels.items():
        c, m = found[name], kept.get(name, {})
        t.add_row(label, span({k: c[f'images_per_s_{k}'] for k in ('median', 'min', 'max')}, 1), f"{statistics.median(c['cpu_ms_per_image']):.1f}", '' if name == 'plain' else span(c['ratio']), '' if name == 'plain' else span(c['cpu_ratio']), *(f'{m[k]:.0f}' if m else '' for k in ('training', 'process')))
    return t

def lever_table(levers, found, kept, far)->Table:
    "One lever a row, in the order in which they are added."
    t = columns(Table(title='Levers: images/s to those of plain (alone), and to those of the row above (added)', title_justify='left'), '', 'alone', 'added', 'share', 'peak MiB alone', 'kind', 'D and G gradients, update: off by')
    mib = lambda k: f"{kept[k]['training']:.0f}" if k in kept else ''
    off = lambda k: ', '.join(f'{v:.0e}' for v in far[k].values())
    for k, (_, words, kind) in LEVERS.items():
        v = levers[k]
        if 'skipped' in v: t.add_row(words, v['skipped'], '', '', '', kind, ''); continue
        t.add_row(words, span(v['alone']), span(v['added']), '' if v['share'] is None else f"{v['share']:.0%}", mib(k), kind, off(k))
    t.add_row(f'R1 every {CYCLE} instead', span(found['lazier']['ratio']), '', '', mib('lazier'), 'algorithm', off('lazier'))
    return t

def quality_table(q)->Table:
    "KID by seed; lower is better."
    t = columns(Table(title=f"KID after {q['images']:,} images each (sd over subsets)", title_justify='left'), 'seed', 'plain', 'fast', 'fast - plain', 'seconds plain', 'seconds fast')
    show = lambda v: f"{v['value']:.4g} ± {v['sd']:.2g}"
    for r, gap in zip(q['runs'], q['fast_minus_plain']['each']): t.add_row(str(r['seed']), show(r['plain']['kid']), show(r['fast']['kid']), f'{gap:+.3g}', f"{r['plain']['seconds']:.0f}", f"{r['fast']['seconds']:.0f}")
    t.add_row('real', show(q['floor']), '', '', '', '')
    return t

def verdict(found, a, device)->dict: # ratio, target, met
    "Whether the target is met, where it applies."
    applies = device == 'cpu' and a.size == TARGET_SIZE and a.rounds >= ROUNDS
    return dict(found['fast']['ratio'], target=TARGET, met=found['fast']['ratio']['median'] >= TARGET if applies else None)

def versions()->dict: # package -> version
    "What `machine` leaves out."
    found = {}
    for p in ('skinrepro', 'torch-fidelity', 'pillow', 'fastcore'):
        with contextlib.suppress(ImportError): found[p] = version(p)
    return found

def arguments(argv=None):
    "The command line, checked."
    p = argparse.ArgumentParser(description=__doc__)
    words = dict(size='side of the images, pixels', width='channels at most; the latent is as wide', batch='images a step', rounds=f'fewer than {ROUNDS} give no verdict; 0 keeps the speeds of the record that is there and measures KID alone',
        steps=f'of one arm in one round, a multiple of {CYCLE}', images='that plain and fast are trained on for KID; 0 leaves it out', seeds='trainings of each for KID', pairs='that the feature network is trained on',
        generated='images judged by KID', real='phantoms to train on')
    for k, w in words.items(): p.add_argument(f'--{k}', type=int, help=f'{w} (default {FULL[k]})')
    p.add_argument('--data', help='folder of official files: HAM10000 instead of phantoms')
    p.add_argument('--tiny', action='store_true', help='seconds instead of an hour; numbers mean nothing')
    p.add_argument('--out', type=Path, default=home()/'results'/'bench'/'gan.json', help='default results/bench/gan.json')
    a = p.parse_args(argv)
    for k, v in (TINY if a.tiny else FULL).items():
        if getattr(a, k) is None: setattr(a, k, v)
    resolutions(a.size) # refuses what is no power of two
    if a.size < 8: raise UserError('--size must be 8 or more: nothing grows below')
    if a.steps < 1 or a.steps % CYCLE: raise UserError(f'--steps {a.steps} is no multiple of {CYCLE}, so that lazy R1 would not come round: choose {max(1, round(a.steps/CYCLE))*CYCLE}')
    if min(a.seeds, a.width, a.pairs, a.batch - 1) < 1 or a.rounds < 0: raise UserError('--seeds, --width and --pairs must be 1 or more, --batch 2 or more, --rounds 0 or more')
    if not a.rounds and not a.images: raise UserError('--rounds 0 and --images 0 leave nothing to measure: give one of them')
    if a.images and a.images < 2*a.batch: raise UserError(f'--images {a.images} is less than two steps of --batch {a.batch}: train on more images, or on 0 to leave KID out')
    if a.images < 0 or a.generated < 4: raise UserError('--images must be 0 or more, --generated 4 or more')
    if a.real < a.batch*CYCLE: a.real = a.batch*CYCLE # enough for a round
    return a

def main(argv=None):
    "Measure, print, and write the numbers."
    a, console = arguments(argv), Console()
    if not console.is_terminal: console = Console(width=150)
    if 'OMP_NUM_THREADS' not in os.environ: torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    os.environ['BENCH_THREADS'] = str(torch.get_num_threads()) # for the processes that measure memory
    device, native = default_device().type, native_bf16()
    arms, notes = arms_of(native), []
    if not native: notes.append('This machine has no native bfloat16 (avx512_bf16, amx_bf16 or a GPU), where it would run many times slower than fp32: that lever is not run, and fast is fp32.')
    if 0 < a.rounds < ROUNDS: notes.append(f'Fewer than {ROUNDS} rounds: no verdict.')
    if a.size != TARGET_SIZE or device != 'cpu': notes.append(f'The target of {TARGET} is for {TARGET_SIZE} px on a CPU: no verdict.')
    if a.tiny: notes.append('--tiny: these numbers show that the bench runs, nothing else.')
    if not a.data: notes.append('Real images are phantoms, which are rendered: KID says how fast compares with plain, not how good lesions are.')
    for n in notes: console.print(n)
    began, load = time.perf_counter(), os.getloadavg()[0]
    with console.status('real images'): name, train, held = real_images(a)
    s = Setting(a.size, a.width, a.batch, device, train)
    spent = dict(speeds(arms, s, a, console), notes=notes) if a.rounds else before(a)
    q = None
    if a.images:
        rate = [spent['arms'][k]['images_per_s_median'] for k in ('plain', 'fast')]
        console.print(f"KID: at most {math.ceil(a.seeds*sum(a.images/r for r in rate)/60)} minutes of training follow (growing is cheaper), and those of the feature network.")
        q = quality(arms, s, a, name, train, held, console)
        gap, sd = q['fast_minus_plain'], q['sd_over_seeds']
        console.print(quality_table(q)); console.print(q['protocol'], highlight=False, markup=False)
        if len(q['runs']) > 1: console.print(f"fast - plain: mean {gap['mean']:+.3g}, sd {gap['sd']:.2g} over {len(q['runs'])} seeds; KID itself varies by sd {sd['plain']:.2g} (plain) and {sd['fast']:.2g} (fast) from seed to seed. So few seeds can show a large loss of quality, not that there is none.")
        else: notes.append('One seed says little: KID varies from seed to seed.'); console.print(notes[-1])
        q.update(now(began, load), settings={k: getattr(a, k) for k in ('size', 'width', 'batch', 'pairs', 'generated', 'real', 'tiny')} | dict(dataset=name, device=device, notes=notes))
    write_json(a.out, dict(spent, quality=q))
    console.print(f'Written to {a.out.name}; {time.perf_counter() - began:.0f} s in all; load {load:.1f} before, {os.getloadavg()[0]:.1f} after (a busy machine blurs ratios).')

def now(began, load)->dict: # of whatever was measured since
    "When, where, and beside what other work."
    return dict(date=datetime.now(timezone.utc).isoformat(timespec='seconds'), seconds=round(time.perf_counter() - began, 1), machine=machine(), versions=versions(), load=[load, os.getloadavg()[0]])

def before(a)->dict: # without its KID
    "The record that is there, whose speeds are kept."
    if not a.out.is_file(): raise UserError(f"--rounds 0 keeps the speeds of '{a.out.name}', which is not there: measure them first")
    return dict(read_json(a.out), quality=None)

def speeds(arms, s, a, console)->dict: # what the record says of them
    "Memory, exactness and images/s of every arm, printed."
    began, load = time.perf_counter(), os.getloadavg()[0]
    kept = memories({k: v for k, v in arms.items() if not a.tiny or k in ('plain', 'fast')}, s, console)
    far = differences(arms, s)
    found = measure(arms, s, a.rounds, a.steps, console)
    levers, speed = shares(found), verdict(found, a, s.device)
    for k, v in kept.items(): found[k]['peak_mib'] = v
    for k, v in far.items(): levers.setdefault(k, dict(alone=found[k]['ratio'], kind='algorithm'))['off_by'] = v
    console.print(step_table(found, kept, s))
    word = 'no verdict' if speed['met'] is None else '[green]met[/]' if speed['met'] else '[red]not met[/]'
    console.print(f"fast to plain {span(speed)}, target {TARGET}: {word}")
    console.print(lever_table(levers, found, kept, far))
    for k, w in KINDS.items(): console.print(f'{k}: {w}.')
    settings = {k: getattr(a, k) for k in FULL} | dict(tiny=a.tiny, gamma=GAMMA, lr=GAN_LR, native_bf16=native_bf16(), device=s.device, kinds=KINDS, order=chain(found), loss='logistic', mixing=.9)
    return dict(now(began, load), settings=settings, speed=speed, arms=found, levers=levers)


if __name__ == '__main__':
    try: main()
    except UserError as e: sys.exit(f'error: {e}')
