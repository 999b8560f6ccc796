"""What the grid costs: a run beside papermill alone, collecting and tabulating many records. Prints a table and writes results/bench/grid.json.

    python bench/grid.py

run      the lab sheet of a toy paper (tests/toy.py: it waits, and writes a record), each in a process of its own: `papermill` alone, then the same through the grid
collect  `skinrepro collect` of 10,000 records, each with figures of 4 kB, into an empty folder
table    `skinrepro table` of those: rows, verdicts, and four files; their figures hold no predictions, or each pair of runs with one test set would be bootstrapped besides

Targets: under 2 s a run more than papermill alone, under 5 s to collect, under 2 s to tabulate.
Times are by the wall; beside them stands the processor time, which other work on the machine disturbs less.
"""
import argparse, json, os, resource, statistics, subprocess, sys, tempfile, time
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.table import Table

from skinrepro.companion.records import machine
from skinrepro.core import UserError, digest, home, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tests'))
import toy

RECORDS, RUNS, ROUNDS = 10_000, 4, 3
TARGETS = dict(run=2., collect=5., table=2.) # seconds
LABELS = dict(papermill='one run, papermill alone', grid='one run, through the grid', run='a run costs more by', collect='collect', table='table')

ALONE = 'import sys, json, papermill; papermill.execute_notebook(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), kernel_name="python3", progress_bar=False)'
GRID = """
import sys
from skinrepro.companion import grid
from skinrepro.companion.runner import plan
grid.data_hashes = lambda *_: {} # no images
grid.run_grid(plan('toy', arms=['a'], seeds=range(int(sys.argv[1])), overrides=dict(steps=1, pause=.01)), workers=1)
"""
COLLECT = 'from skinrepro.companion.grid import collect', 'got = collect([sys.argv[1]]); assert got["refused"] == 0, got'
TABLE = 'from skinrepro.companion.tables import report', 'df, *_ = report("gan_ssl", "small", "phantom"); assert df.runs.sum(), "no runs"'


def process(lib, at, code, *words)->str: # what it prints
    "Python code in a process with the toy library, at home in a folder."
    env = {k: v for k, v in os.environ.items() if k not in ('SKINREPRO_DATA', 'SKINREPRO_RESULTS')} | dict(PYTHONPATH=str(lib), SKINREPRO_HOME=str(at), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    Path(at).mkdir(parents=True, exist_ok=True)
    r = subprocess.run([sys.executable, '-c', code, *map(str, words)], env=env, cwd=at, capture_output=True, text=True)
    if r.returncode: raise UserError(f'the bench failed: {r.stderr.strip().splitlines()[-1]}')
    return r.stdout

def whole(lib, at, code, *words)->dict: # seconds, and processor seconds with those of its children
    "The time of a process from its start."
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before, began = used(), time.perf_counter()
    process(lib, at, code, *words)
    return dict(seconds=time.perf_counter() - began, cpu=used() - before)

def inside(lib, at, imports, call, *words)->dict: # seconds, processor seconds
    "The time of a call in a new process; imports are not counted, which take as long for ten records."
    code = f'import sys, time\n{imports}\nbegan, used = time.perf_counter(), time.process_time()\n{call}\nprint(time.perf_counter() - began, time.process_time() - used)'
    return dict(zip(('seconds', 'cpu'), map(float, process(lib, at, code, *words).split()[-2:])))

def of_runs(lib, base, runs, rounds)->dict: # contestant -> one dict a round, per run
    "Papermill alone and the grid, in turns; what a driver needs to start counts too, once."
    out = dict(papermill=[], grid=[])
    for r in range(rounds):
        for name in list(out)[::1 if r % 2 else -1]:
            at = base/f'{name}{r}'
            if name == 'grid': got = [whole(lib, at, GRID, runs)]
            else:
                sheet = lib/'skinrepro'/'runs'/'toy.ipynb'
                got = [whole(lib, at, ALONE, sheet, at/f'{k}.ipynb', json.dumps(dict(arm='a', stage='evaluate', preset='smoke', protocol='paper', dataset='phantom', seed=k, overrides=dict(steps=1, pause=.01), inputs={}, data=None, out=str(at)))) for k in range(runs)]
            out[name].append({k: sum(g[k] for g in got)/runs for k in ('seconds', 'cpu')})
    return out

def make_records(root, n)->int: # how many were made
    "Records as a grid leaves them: all arms of a paper, seed after seed, with today's code."
    from skinrepro.companion.records import SCHEMA, code_hash
    from skinrepro.companion.runner import plan
    import numpy as np
    cells, paper, made = plan('gan_ssl', 'small', 'phantom', ['paper', 'strict'], 'all'), 'gan_ssl', 0
    code, figures = code_hash(paper), root/'figures.npz'
    root.mkdir(parents=True, exist_ok=True)
    np.savez(figures, loss=np.arange(500.))
    raw = figures.read_bytes(); figures.unlink()
    with_seed = lambda cfg, seed: dict(cfg, seed=seed)
    base = [(c, c.cfg.to_dict(), {k: n.cfg.to_dict() for k, n in c.needs.items()}) for c in cells]
    for seed in range(n):
        for c, cfg, needs in base:
            if made == n: return made
            config, value = with_seed(cfg, seed), .7 + (seed*7919 % 100)/1000
            id = digest([paper, config], 8)
            metrics = [dict(name=m, value=value, n=1000, split='test') for m in ('accuracy', 'balanced_accuracy', 'macro_f1', 'majority_share')]
            run = dict(schema=SCHEMA, id=id, spec=dict(paper=paper, dataset='phantom', arm=c.cfg.arm, protocols=list(c.protocols), preset='small', seed=seed, config=config), state='done', metrics=metrics,
                       inputs={k: digest([paper, with_seed(v, seed)], 8) for k, v in needs.items()}, code=code, data=dict(manifest='0'*64, split='0'*64, counts={}), machine=dict(threads=1), seconds=60., start='2026-01-01T00:00:00+00:00', end='2026-01-01T00:01:00+00:00', attempts=1, artefacts={})
            folder = root/paper/'phantom'/c.cfg.arm/f"{'+'.join(c.protocols)}-seed{seed}-{id}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder/'run.json').write_text(json.dumps(run, indent=1, sort_keys=True)); (folder/'figures.npz').write_bytes(raw)
            made += 1
    return made

def of_records(lib, base, records, rounds)->dict: # what -> one dict a round
    "Collect and tabulate, in processes that start from nothing."
    made = make_records(base/'there'/'results', records)
    out = dict(collect=[], table=[])
    for r in range(rounds):
        out['collect'].append(inside(lib, base/f'here{r}', *COLLECT, base/'there'))
        if len(list((base/f'here{r}'/'results').rglob('run.json'))) != made: raise UserError('collect lost records')
        out['table'].append(inside(lib, base/f'here{r}', *TABLE))
    return out

def summary(found)->dict: # what -> dict(seconds, cpu), medians
    "One number each, and what a run costs more."
    out = {k: {w: statistics.median(r[w] for r in v) for w in ('seconds', 'cpu')} for k, v in found.items()}
    out['run'] = {w: statistics.median(g[w] - p[w] for g, p in zip(found['grid'], found['papermill'])) for w in ('seconds', 'cpu')}
    return out

def targets(got, records)->dict: # target -> met: True, False, or None where it was not tested
    "The three promises, at the size for which they were made."
    return {k: None if k != 'run' and records < RECORDS else got[k]['seconds'] < t for k, t in TARGETS.items()}

def arguments(argv=None):
    "The command line, checked."
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--records', type=int, default=RECORDS, help=f'fewer than {RECORDS:,} give no verdict')
    p.add_argument('--runs', type=int, default=RUNS, help='runs of a grid')
    p.add_argument('--rounds', type=int, default=ROUNDS, help='of everything; medians count')
    p.add_argument('--out', type=Path, help='default results/bench/grid.json')
    a = p.parse_args(argv)
    if min(a.records, a.runs, a.rounds) < 1: raise UserError('--records, --runs and --rounds must be 1 or more')
    return a

def main(argv=None):
    "Measure, print, and write the numbers."
    a, console = arguments(argv), Console()
    if not console.is_terminal: console = Console(width=110)
    began, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as d:
        base = Path(d); lib = toy.library(base)
        found = of_runs(lib, base, a.runs, a.rounds) | of_records(lib, base, a.records, a.rounds)
    got = summary(found); met = targets(got, a.records)
    t = Table(title=f'The grid, {a.records:,} records', title_justify='left')
    for head in ('', 's, median', 'processor s', 'target s', ''): t.add_column(head, justify='left' if not head else 'right')
    for name, label in LABELS.items():
        said = {True: 'met', False: 'not met', None: 'not tested'}[met[name]] if name in met else ''
        t.add_row(label, f"{got[name]['seconds']:.2f}", f"{got[name]['cpu']:.2f}", f'{TARGETS[name]:.0f}' if name in TARGETS else '', said)
    console.print(t)
    out = a.out or home()/'results'/'bench'/'grid.json'
    write_json(out, dict(date=datetime.now(timezone.utc).isoformat(timespec='seconds'), seconds=round(time.perf_counter() - began, 1), machine=machine(), load=[load, os.getloadavg()[0]],
        settings=dict(records=a.records, runs=a.runs, rounds=a.rounds), targets=dict(TARGETS, met=met), medians=got, rounds=found))
    console.print(f'Written to {out.name}; load {load:.1f} before, {os.getloadavg()[0]:.1f} after (a busy machine stretches the wall times).')


if __name__ == '__main__':
    try: main()
    except UserError as e: sys.exit(f'error: {e}')
