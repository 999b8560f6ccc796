"What the tests of the command line share: tiny runs, in real processes, in folders of their own."
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

COMMAND = str(Path(sys.executable).parent/'skinrepro')
SIZE = dict(n_images=64, batch=16, epochs=6, size=16, store_size=32, knn_every=1000)
PROBE = dict(probe_epochs=2, heads=2)
ONE = dict(group='image', transductive='true', step_matched='false') # makes both protocols one configuration


def sets(*bundles): return [w for b in bundles for k, v in b.items() for w in ('--set', f'{k}={v}')]


def environment(cache, **more): # without SKINREPRO_HOME: home is the folder that a command starts in
    return {k: v for k, v in os.environ.items() if k not in ('SKINREPRO_HOME', 'SKINREPRO_DATA')} | dict(
        SKINREPRO_CACHE=str(cache), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', MPLBACKEND='agg') | more


def start(home, cache, *words, command=(COMMAND,), **more):
    return subprocess.Popen([*command, *words], cwd=home, env=environment(cache, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(proc, seconds=600): # (status, stdout, stderr)
    try: out, err = proc.communicate(timeout=seconds)
    except subprocess.TimeoutExpired: proc.kill(); raise
    return proc.returncode, out, err


def call(home, cache, *words, **more): return finish(start(home, cache, *words, **more))


def wait_for(ready, proc=None, seconds=240):
    "Poll until `ready()` is true; fail if the process ends before."
    end = time.monotonic() + seconds
    while not (got := ready()):
        assert time.monotonic() < end, 'waited in vain'
        assert proc is None or proc.poll() is None, f'ended early: {proc.communicate()}'
        time.sleep(.02)
    return got


def alive(home): # processes that a driver in this folder has started
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if f'SKINREPRO_HOME={home}'.encode() in (p/'environ').read_bytes().split(b'\0') and b') Z ' not in (p/'stat').read_bytes(): found.append(int(p.name))
        except OSError: pass
    return found


def tree(folder): # file -> content hash
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def sentence(err): # the one line that a command says
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('skinrepro: ') and 'Traceback' not in err, err
    return lines[0]


def records(home): return sorted(Path(home).glob('results/**/run.json'))


def copy_results(source, target, *ids): # its records, and the work folders of some runs
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source/'results', target/'results')
    for i in ids: shutil.copytree(source/'artefacts'/'runs'/i, target/'artefacts'/'runs'/i, ignore=shutil.ignore_patterns('checkpoint-*'))
    return target
