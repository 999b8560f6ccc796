"Do results stay as they are when code changes? Runs made by the code of a commit and by today's, compared bit by bit; if they are equal, the change is listed and older records count as today's."
import argparse, csv, io, os, subprocess, sys, tarfile, tempfile
from pathlib import Path

import numpy as np

from skinrepro.core import UserError, atomic, read_json

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT/'skinrepro'/'companion'/'same_code.csv'
SAY = "import sys; from skinrepro.companion.records import code_hash; print(code_hash(sys.argv[1]))"
CALL = "import sys; from skinrepro.companion.cli import main; sys.argv[0] = 'skinrepro'; main()"


def at(commit, folder): # the sources of a commit
    got = subprocess.run(['git', '-C', str(ROOT), 'archive', commit, 'skinrepro', 'nbs/runs', 'settings.ini'], capture_output=True)
    if got.returncode: raise UserError(f"no commit '{commit}' here: {got.stderr.decode().strip()}")
    tarfile.open(fileobj=io.BytesIO(got.stdout)).extractall(folder, filter='data')

def python(code, lib, home, *words): # output
    env = {**os.environ, 'PYTHONPATH': str(lib), 'SKINREPRO_HOME': str(home), 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    env.pop('SKINREPRO_RESULTS', None)
    done = subprocess.run([sys.executable, '-c', code, *words], env=env, cwd=home, stdout=subprocess.PIPE, text=True)
    if done.returncode: raise UserError(f"the runs with the code of '{lib}' ended with status {done.returncode}: nothing is listed")
    return done.stdout.strip()

def made(lib, home, paper, words): # (code hash, id -> record with its folder)
    home.mkdir()
    print(python(CALL, lib, home, 'run', '--paper', paper, '--preset', 'smoke', *words), flush=True)
    runs = {f.parent.name[-8:]: dict(read_json(f), folder=f.parent) for f in home.glob('results/smoke/*/*/*/*/run.json')}
    return python(SAY, lib, home, paper), runs

def _told(v): # without speeds among metrics, which are the clock's
    return [m for m in v if not m['name'].endswith('_per_s')] if isinstance(v, list) else v

def differences(a, b): # names of what differs
    if a.keys() != b.keys(): return ['the runs themselves']
    out = []
    for i in a:
        x, y = np.load(a[i]['folder']/'figures.npz'), np.load(b[i]['folder']/'figures.npz')
        name = f"{a[i]['spec']['arm']}, seed {a[i]['spec']['seed']}"
        out += [f'{name}: {k}' for k in ('metrics', 'artefacts', 'spec', 'inputs') if _told(a[i][k]) != _told(b[i][k])]
        out += [f'{name}: array {k}' for k in sorted({*x, *y}) if not (k in x and k in y and x[k].dtype == y[k].dtype and np.array_equal(x[k], y[k], equal_nan=x[k].dtype.kind == 'f'))]
    return out

def main(argv=None):
    "Compare, and list."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('commit', help='with the code before')
    parser.add_argument('--paper', required=True, help='whose records are to stay')
    parser.add_argument('--change', required=True, help='what has changed, in a sentence')
    parser.add_argument('--arms', default=None, help="default: the paper's main ones")
    parser.add_argument('--seeds', default='0')
    parser.add_argument('--set', action='append', default=[], help='field=value, for every run')
    a = parser.parse_args(argv)
    words = ['--seeds', a.seeds, *(['--arms', a.arms] if a.arms else []), *(w for s in a.set for w in ('--set', s))]
    with tempfile.TemporaryDirectory() as d:
        old = Path(d)/'before'; old.mkdir(); at(a.commit, old)
        (before, x), (after, y) = made(old, Path(d)/'a', a.paper, words), made(ROOT, Path(d)/'b', a.paper, words)
        off = differences(x, y)
        arms = sorted({r['spec']['arm'] for r in x.values()})
    if not x: raise UserError('no runs were made: nothing is listed')
    if off: raise UserError(f"{len(off)} results differ ({'; '.join(off[:5])}): the records of {a.paper} are stale, run them again")
    if before == after: return print(f'{a.paper} has the code {after} before and after: nothing to list')
    with LIST.open(encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))
    row = dict(paper=a.paper, before=before, after=after, runs=f"{len(x)} runs at smoke, seeds {a.seeds}: {', '.join(arms)}", change=a.change)
    rows = [r for r in rows if (r['paper'], r['before']) != (a.paper, before)] + [row]
    with atomic(LIST) as f:
        w = csv.DictWriter(f, list(row), lineterminator='\n'); w.writeheader(); w.writerows(rows)
    print(f"{before} -> {after}: {row['runs']}: all equal; listed in {LIST.name}")


if __name__ == '__main__':
    try: main()
    except UserError as e: sys.exit(f'error: {e}')
