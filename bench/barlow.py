"""Time and memory of the Barlow Twins loss, beside lightly's. Prints a table and writes results/bench/barlow.json.

    python bench/barlow.py

Loss and gradient of two projections of N images and D units, float32, with lambda 1/8192, in one process and in turns whose order is turned round each round:

ours     `barlow_twins_loss` through the N x N Gram matrices, the default where D >= 2N
direct   the same loss with the D x D matrix of correlations
lightly  `lightly.loss.BarlowTwinsLoss`; skipped where it is not installed

Target at N = 128, D = 8192: at least 20 times lightly's speed (median over rounds of the ratio within one round), with under 50 MB of memory beyond the inputs and their gradients.
Memory is the rise of the process's highest resident set (of CUDA's peak on a GPU) during a round; where the system does not tell, it is null.
"""
import argparse, os, statistics, sys, time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from skinrepro.companion.records import machine
from skinrepro.core import UserError, default_device, home, write_json
from skinrepro.methods.barlow_twins import barlow_twins_loss, contest

ROUNDS, LAMBDA = 3, 1/8192
FASTER, EXTRA_MB = 20., 50. # the targets
LABELS = dict(ours='skinrepro, Gram matrices', direct='skinrepro, direct', lightly='lightly')


def losses()->dict: # name -> function of (za, zb)
    "The contestants; lightly only where it is installed."
    found = dict(ours=lambda a, b: barlow_twins_loss(a, b, LAMBDA), direct=lambda a, b: barlow_twins_loss(a, b, LAMBDA, gram=False))
    try:
        from lightly.loss import BarlowTwinsLoss
        found['lightly'] = BarlowTwinsLoss(lambda_param=LAMBDA)
    except ImportError: pass
    return found

def measure(n, d, rounds, device)->dict: # contestant -> numbers
    "All contestants, after a warm-up at a small size."
    made = losses()
    contest(made, min(n, 16), min(d, 64), 1, device) # kernels are chosen, modules loaded
    out = contest(made, n, d, rounds, device)
    for name, c in out.items():
        ratio = [t/o for t, o in zip(c['ms'], out['ours']['ms'])] # of the same round
        c.update(ms_median=statistics.median(c['ms']), times_ours=dict(median=statistics.median(ratio), min=min(ratio), max=max(ratio)))
    return out

def targets(found, n, d, rounds)->dict: # target -> met: True, False, or None where it was not tested
    "The two promises, at the size for which they were made."
    if (n, d) != (128, 8192) or rounds < ROUNDS: return dict(faster=None, memory=None)
    extra = found['ours']['extra_mb']
    return dict(faster=found['lightly']['times_ours']['median'] >= FASTER if 'lightly' in found else None, memory=None if extra is None else extra < EXTRA_MB)

def table(found, n, d)->Table:
    "For the eye."
    t = Table(title=f'Barlow Twins loss and gradient, N = {n}, D = {d}, float32', title_justify='left')
    for head in ('', 'ms, median', 'extra MB', r'times ours, median \[range]', 'loss'): t.add_column(head, justify='left' if not head else 'right')
    for name, label in LABELS.items():
        if name not in found: t.add_row(label, 'skipped', '', 'not installed', ''); continue
        c, r = found[name], found[name]['times_ours']
        t.add_row(label, f"{c['ms_median']:.1f}", '?' if c['extra_mb'] is None else f"{c['extra_mb']:.1f}", '' if name == 'ours' else f"{r['median']:.1f} \\[{r['min']:.1f}-{r['max']:.1f}]", f"{c['loss']:.2f}")
    return t

def arguments(argv=None):
    "The command line, checked."
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--n', type=int, default=128, help='images a batch')
    p.add_argument('--d', type=int, default=8192, help='units of a projection')
    p.add_argument('--rounds', type=int, default=ROUNDS, help=f'fewer than {ROUNDS} give no verdict')
    p.add_argument('--out', type=Path, help='default results/bench/barlow.json')
    a = p.parse_args(argv)
    if min(a.n - 1, a.d, a.rounds) < 1: raise UserError('--n must be 2 or more, --d and --rounds 1 or more')
    return a

def main(argv=None):
    "Measure, print, and write the numbers."
    a, console = arguments(argv), Console()
    if not console.is_terminal: console = Console(width=110)
    device, began, load = default_device(), time.perf_counter(), os.getloadavg()[0]
    found = measure(a.n, a.d, a.rounds, device)
    met = targets(found, a.n, a.d, a.rounds)
    console.print(table(found, a.n, a.d))
    for name, what in (('faster', f"at least {FASTER:.0f} times lightly's speed"), ('memory', f'under {EXTRA_MB:.0f} MB extra')):
        console.print(f"{what}: {'not tested' if met[name] is None else 'met' if met[name] else 'not met'}")
    packages = {}
    for p in ('skinrepro', 'lightly'):
        try: packages[p] = version(p)
        except PackageNotFoundError: pass
    out = a.out or home()/'results'/'bench'/'barlow.json'
    write_json(out, dict(date=datetime.now(timezone.utc).isoformat(timespec='seconds'), seconds=round(time.perf_counter() - began, 1), machine=machine(), versions=packages, load=[load, os.getloadavg()[0]],
        settings=dict(n=a.n, d=a.d, rounds=a.rounds, lambd=LAMBDA, threads=torch.get_num_threads(), device=device.type), targets=dict(faster=FASTER, extra_mb=EXTRA_MB, met=met), contestants=found))
    console.print(f'Written to {out.name}; load {load:.1f} before, {os.getloadavg()[0]:.1f} after (a busy machine blurs ratios).')


if __name__ == '__main__':
    try: main()
    except UserError as e: sys.exit(f'error: {e}')
