"Grids: what is run when, what is tried again, and what is left when processes are killed."
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import toy
from lab import alive, finish, records, wait_for

from skinrepro.companion import grid
from skinrepro.companion.grid import Job, advance, collect, exposed, left, outlook, read_grid, seeds_of, survey
from skinrepro.companion.records import run_id
from skinrepro.companion.runner import Cell, Lease, plan
from skinrepro.companion.sheet import kind_of
from skinrepro.core import UserError, read_json, write_json


@pytest.fixture(scope='module')
def lib(tmp_path_factory): return toy.library(tmp_path_factory.mktemp('toy'))


def go(lib, home, **words):
    proc = toy.drive(lib, home, json.dumps(words))
    status, out, err = finish(proc, 900)
    return status, out, err


def process(home, what): # the first process of a grid whose command line holds a word
    for pid in alive(home):
        try:
            if what in Path(f'/proc/{pid}/cmdline').read_bytes().decode().replace('\0', ' '): return pid
        except OSError: pass


def whole(home, n): # n records, each once, and nothing half written
    found = [read_json(p) for p in records(home)]
    assert len(found) == n == len({r['id'] for r in found}) and all(r['state'] == 'done' for r in found)
    litter = [p for p in Path(home).rglob('*') if p.is_file() and (p.name.startswith('.') or p.name in ('lease.json', 'record.json.tmp'))]
    assert not litter
    return found


# what is run when

class Fake:
    "A pool in which runs end when the test says so."
    def __init__(self, workers): self.workers, self.free, self.started, self.ends = workers, [None]*workers, [], {}
    def start(self, job):
        if job.cell.cfg.arm in getattr(self, 'held', ()): return False
        self.free.pop(); self.started.append(job.cell.cfg.arm); job.at = type('At', (), dict(seconds=1.)); return True
    def look(self, job):
        if not (end := self.ends.pop(job.cell.cfg.arm, None)): return None
        self.free.append(None); return end
    def stop(self, jobs): pass


def jobs_of(**needs): # name -> names it needs
    from types import SimpleNamespace
    made = {}
    for name, wants in needs.items():
        cell = SimpleNamespace(id=name, cfg=SimpleNamespace(arm=name, dataset='x', stage='evaluate'), needs={w: made[w].cell for w in wants}, name=name, paper='x', preset='smoke')
        made[name] = Job(cell, True)
    return made


DONE = dict(state='done')


def lost(kind='lost'): return dict(state='failed', error='it happened', kind=kind)


def test_what_is_needed_comes_first_and_slots_are_not_exceeded():
    jobs, pool, said = jobs_of(e=[], a=['e'], b=['e'], c=[]), Fake(2), []
    advance(jobs, pool, said.append); assert pool.started == ['e', 'c']
    pool.ends = dict(c=DONE); advance(jobs, pool, said.append); assert pool.started == ['e', 'c'] and len(pool.free) == 1
    pool.ends = dict(e=DONE); advance(jobs, pool, said.append); assert pool.started == ['e', 'c', 'a', 'b']
    pool.ends = dict(a=DONE, b=DONE); advance(jobs, pool, said.append)
    assert [j.state for j in jobs.values()] == ['done']*4 and said[-1].startswith('[4/4] done') and len(said) == 4


def test_what_was_lost_is_tried_again_and_a_bug_is_not():
    jobs, pool, said = jobs_of(a=[], b=['a'], c=[]), Fake(2), []
    for _ in range(3): advance(jobs, pool, said.append); pool.ends = dict(a=lost(), c=lost('code'))
    advance(jobs, pool, said.append)
    assert pool.started.count('a') == 3 and pool.started.count('c') == 1 and jobs['a'].state == jobs['c'].state == 'failed'
    advance(jobs, pool, said.append)
    assert jobs['b'].state == 'failed' and 'needs a, which is failed' in jobs['b'].why and sum(s.startswith('again') for s in said) == 2


def test_a_run_without_memory_goes_by_itself():
    jobs, pool, said = jobs_of(a=[], b=[], c=[]), Fake(2), []
    advance(jobs, pool, said.append); pool.ends = dict(a=lost('memory'))
    advance(jobs, pool, said.append); assert pool.started == ['a', 'b', 'c'] and 'by itself' in said[-1]
    pool.ends = dict(b=DONE); advance(jobs, pool, said.append); assert pool.started.count('a') == 1 # c still runs
    pool.ends = dict(c=DONE); advance(jobs, pool, said.append); assert pool.started == ['a', 'b', 'c', 'a']
    pool.ends = dict(a=lost('memory')); advance(jobs, pool, said.append); assert jobs['a'].state == 'failed'


def test_what_somebody_else_runs_is_waited_for_without_a_slot(monkeypatch):
    jobs, pool = jobs_of(a=[], b=[]), Fake(1); pool.held = ('a',)
    advance(jobs, pool, print); assert pool.started == ['b'] and jobs['a'].why == 'another process runs it'
    pool.held, pool.ends, jobs['a'].later = (), dict(b=DONE), 0.
    advance(jobs, pool, print); assert pool.started == ['b', 'a']


def test_time_left():
    jobs = jobs_of(e=[], a=['e'], f=[], b=['f'])
    for k, j in enumerate(jobs.values()): j.seconds = 60.*(k + 1)
    assert left(jobs, 1) == 600 and left(jobs, 2) == 420 and left(jobs, 9) == 420
    jobs['a'].state = 'done'; jobs['b'].seconds = None
    assert left(jobs, 1) == 240 and 'about 4 min' in outlook(jobs) and 'no time is known' in outlook(jobs)


# words and files

@pytest.mark.parametrize('text, want', [('0-34', tuple(range(35))), ('3', (3,)), ([1, 2], (1, 2)), (5, (5,)), ('0,0,1', (0, 1))])
def test_seeds(text, want): assert seeds_of(text) == want


@pytest.mark.parametrize('text', ['', 'a', '1-', '-1', '1.5', '3-1', '0,,1'])
def test_seeds_that_are_none(text):
    with pytest.raises(UserError, match='seeds'): seeds_of(text)


@pytest.mark.parametrize('text, why', [('x = ', 'not TOML'), ('seed = 1', "did you mean 'seeds'"), ('[grid]\narms = ["a"]', 'double brackets'), ('[[grid]]\nworkers = 2', "unknown word 'workers'")])
def test_grid_files_that_are_wrong(tmp_path, text, why):
    (tmp_path/'g.toml').write_text(text)
    with pytest.raises(UserError, match=why): read_grid(tmp_path/'g.toml')
    with pytest.raises(UserError, match='cannot be read'): read_grid(tmp_path/'none.toml')


def test_command_line_wins(tmp_path):
    (tmp_path/'g.toml').write_text('seeds = "0-2"\nset = {epochs = 3, lr = 0.1}\n[[grid]]\narms = ["simclr"]\nset = {epochs = 4}\n')
    grids, house = read_grid(tmp_path/'g.toml', seeds='1', set=dict(lr=.2), workers=None)
    assert grids == [dict(seeds='1', arms=['simclr'], set=dict(epochs=4, lr=.2))] and house == {}


@pytest.mark.parametrize('name, text, want', [('UserError', 'x', 'mendable'), ('OSError', '[Errno 28] No space left on device', 'mendable'), ('OSError', '[Errno 2] No such file', 'code'), ('MemoryError', '', 'memory'),
    ('OutOfMemoryError', 'CUDA out of memory. Tried', 'memory'), ('RuntimeError', "DefaultCPUAllocator: can't allocate memory", 'memory'), ('ValueError', 'a bug', 'code')])
def test_kinds_of_failure(name, text, want): assert kind_of(name, text) == want


@pytest.mark.parametrize('address, want', [('tcp://127.0.0.1:1', False), ('tcp://[::1]:1', False), ('tcp://10.1.2.3:8786', True), ('tls://10.1.2.3:8786', False), ('tcp://gpu-box:8786', True), ('tcp://[fd00::1]:1', True)])
def test_who_is_warned(address, want): assert exposed(address) == want


# leases

def test_lease_on_one_machine(tmp_path):
    a, b = Lease(tmp_path), Lease(tmp_path)
    assert a.take() and not b.take()
    a.free(); assert b.take() and not a.take()


def test_lease_of_another_machine_is_watched_by_our_own_clock(tmp_path, monkeypatch):
    import skinrepro.companion.runner as runner
    now = [1000.]; monkeypatch.setattr(runner.time, 'monotonic', lambda: now[0])
    there = dict(machine='another', host='there', pid=1, token='x', count=1)
    write_json(tmp_path/'lease.json', there)
    os.utime(tmp_path/'lease.json', (0, 0)) # its clock says 1970
    me = Lease(tmp_path)
    assert not me.take(); now[0] += runner.LEASE - 1; assert not me.take()
    write_json(tmp_path/'lease.json', dict(there, count=2)); now[0] += 30
    assert not me.take() # it lives
    now[0] += runner.LEASE + 1
    assert me.take() and read_json(tmp_path/'lease.json')['token'] == me.token


def test_who_lost_a_lease_is_told(tmp_path):
    from skinrepro.companion.runner import Lost
    me = Lease(tmp_path); assert me.take()
    write_json(tmp_path/'lease.json', dict(machine='another', host='there', pid=1, token='x', count=1)); me.beaten = -1e9
    with pytest.raises(Lost): me.beat()
    me.free(); assert (tmp_path/'lease.json').exists() # it is not ours to remove


def test_half_a_lease_does_not_stop_a_run_for_ever(tmp_path, monkeypatch):
    import skinrepro.companion.runner as runner
    now = [0.]; monkeypatch.setattr(runner.time, 'monotonic', lambda: now[0])
    (tmp_path/'lease.json').write_text('{"mach'); me = Lease(tmp_path)
    assert not me.take(); now[0] = runner.LEASE + 1; assert me.take()


# real processes

def test_grid_of_twelve_survives_kills(lib, tmp_path):
    "kill -9 of a kernel, of papermill's process and of the driver, in the middle; the second driver ends it."
    home = tmp_path/'home'
    driver = toy.drive(lib, home, json.dumps(dict(set=dict(steps=15, pause=.1))))
    seen = lambda: len(list(home.glob('artefacts/runs/*/progress.json')))
    for what in ('ipykernel_launcher', 'execute(sys.argv[1])'):
        wait_for(lambda: seen() and process(home, what), driver)
        os.kill(process(home, what), signal.SIGKILL); time.sleep(1)
    wait_for(lambda: records(home), driver)
    driver.send_signal(signal.SIGKILL); driver.wait(); _, said = driver.communicate()
    wait_for(lambda: not alive(home), seconds=60)
    done = {p: p.read_bytes() for p in records(home)}
    status, out, err = go(lib, home, set=dict(steps=15, pause=.1))
    assert status == 0 and json.loads(out.splitlines()[-1]).keys() <= {'done', 'skipped'}, (out, err)
    found = whole(home, 12) # 8 that were asked for, and 4 encoders
    assert all(p.read_bytes() == b for p, b in done.items()) and not alive(home)
    assert sum(r['attempts'] > 1 for r in found) >= 2


def test_two_drivers_share_a_grid(lib, tmp_path):
    two = [toy.drive(lib, tmp_path, json.dumps(dict(seeds=2, workers=2, set=dict(steps=3)))) for _ in range(2)]
    ends = [finish(p, 900) for p in two]
    assert [e[0] for e in ends] == [0, 0], ends
    assert all(r['attempts'] == 1 for r in whole(tmp_path, 6))
    logs = [p.read_text().splitlines() for p in tmp_path.glob('artefacts/runs/*/log.jsonl')]
    assert all(len(log) == 1 for log in logs)


def test_slots_have_gpus_and_threads(lib, tmp_path):
    status, out, err = go(lib, tmp_path, seeds=2, arms=['a'], workers=2, gpus=['0', '1'], set=dict(steps=10))
    assert status == 0, err
    logs = [json.loads(p.read_text()) for p in tmp_path.glob('artefacts/runs/*/log.jsonl')]
    assert {l['gpu'] for l in logs} == {'0', '1'} and {l['threads'] for l in logs} == {str(max(1, len(os.sched_getaffinity(0))//2))}


def test_what_fails_and_what_is_tried_again(lib, tmp_path):
    words = {t: dict(seeds=1, arms=['a'], set=dict(trouble=t, steps=1)) for t in ('mend', 'code', 'memory', 'full')}
    said = {t: go(lib, tmp_path/t, **w)[1] for t, w in words.items()}
    assert 'lower it' in said['mend'] and 'ValueError: a bug' in said['code'] and 'No space left' in said['full']
    assert all('"failed": 1' in said[t] and 'again    ' not in said[t] for t in ('mend', 'code', 'full'))
    assert 'once more, by itself' in said['memory'] and '"done": 1' in said['memory']


@pytest.fixture
def small_disk(tmp_path): # a file system of its own, 2 MB
    at = tmp_path/'disk'; at.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(at)], capture_output=True).returncode: pytest.skip('this user may not mount a file system')
    yield at
    subprocess.run(['umount', '-l', str(at)], check=True)


def test_full_disk_is_one_sentence_and_the_run_goes_on_later(lib, small_disk):
    home, words = small_disk/'home', dict(seeds=1, arms=['a'], set=dict(steps=40, pause=.1))
    driver = toy.drive(lib, home, json.dumps(words))
    at = wait_for(lambda: next(iter(home.glob('artefacts/runs/*/progress.json')), None), driver)
    with open(small_disk/'ballast', 'wb', buffering=0) as f:
        try:
            while True: f.write(b'0'*4096)
        except OSError: pass
    status, out, err = finish(driver, 900)
    lines = [line for line in (out + err).splitlines() if 'no space left' in line.lower()]
    assert len(lines) == 1 and 'make room' in lines[0] and 'Traceback' not in out + err and not records(home), (out, err)
    wait_for(lambda: not alive(home), seconds=60)
    done = read_json(at.with_name('at.json')) # the checkpoint, whole
    (small_disk/'ballast').unlink()
    status, out, err = go(lib, home, **words)
    assert status == 0 and whole(home, 1)[0]['attempts'] == 2 and 0 < done < 40, (out, err)


def test_read_only_results_are_said_before_anything_starts(lib, small_disk):
    home, words = small_disk/'home', dict(seeds=1, arms=['a'], set=dict(steps=1))
    home.mkdir()
    remount = lambda how: subprocess.run(['mount', '-o', f'remount,{how}', str(small_disk)], check=True, capture_output=True)
    remount('ro')
    status, out, err = go(lib, home, **words)
    assert status == 2 and out == '' and len(err.splitlines()) == 1 and 'cannot be written (read-only file system)' in err, (out, err)
    remount('rw')
    assert go(lib, home, **words)[0] == 0 and whole(home, 1)[0]['attempts'] == 1


JUMP = """
#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>
#include <stdlib.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t id, struct timespec *t) { /* the wall clock goes 400 days ahead while the file is there */
    int r = syscall(SYS_clock_gettime, id, t); char *f = getenv("JUMP");
    if (!r && id == CLOCK_REALTIME && f && !access(f, F_OK)) t->tv_sec += 400*86400;
    return r;
}
time_t time(time_t *p) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); if (p) *p = t.tv_sec; return t.tv_sec; }
"""


def test_a_clock_that_jumps(lib, tmp_path):
    import shutil
    if not shutil.which('gcc'): pytest.skip('no C compiler to bend the clock with')
    (tmp_path/'jump.c').write_text(JUMP); flag, so = tmp_path/'flag', tmp_path/'jump.so'
    subprocess.run(['gcc', '-shared', '-fPIC', '-o', str(so), str(tmp_path/'jump.c')], check=True, capture_output=True)
    bent = dict(LD_PRELOAD=str(so), JUMP=str(flag))
    now = lambda: float(subprocess.run([sys.executable, '-c', 'import time; print(time.time())'], env=os.environ | bent, capture_output=True, text=True).stdout)
    flag.touch(); ahead = now(); flag.unlink()
    assert 399 < (ahead - now())/86400 < 401 # it can be bent
    home = tmp_path/'home'
    driver = toy.drive(lib, home, json.dumps(dict(seeds=2, arms=['a'], workers=1, set=dict(steps=40))), **bent)
    wait_for(lambda: list(home.glob('artefacts/runs/*/progress.json')), driver)
    flag.touch() # ahead, in the middle of the first run
    wait_for(lambda: records(home), driver)
    flag.unlink() # and back, in the middle of the second
    status, out, err = finish(driver, 900)
    assert status == 0 and json.loads(out.splitlines()[-1]) == dict(done=2), (out, err)
    for r in whole(home, 2):
        took = (datetime.fromisoformat(r['end']) - datetime.fromisoformat(r['start'])).total_seconds()
        assert r['attempts'] == 1 and 0 <= took < 3600 # never 400 days


def test_folders_that_cannot_be_written(tmp_path):
    blocked = tmp_path/'file'; blocked.write_text('')
    with pytest.raises(UserError, match='cannot be written'): grid.check_folders(blocked/'runs')


def test_a_stale_record_is_made_again_once(lib, tmp_path):
    "Its data have changed, or those of what it needs; two drivers that are asked at once make it again once."
    words = dict(seeds=1, arms=['b'], set=dict(steps=1))
    assert go(lib, tmp_path, **words)[0] == 0
    paths = records(tmp_path)
    for p in paths:
        if 'b-pretrain' in str(p): r = read_json(p); r['data']['manifest'] = '1'*64; r['start'] = '2000-01-01T00:00:00+00:00'; write_json(p, r)
        else: write_json(p, dict(read_json(p), start='2000-01-01T00:00:00+00:00'))
    status, out, err = go(lib, tmp_path, **words)
    assert json.loads(out.splitlines()[-1]) == dict(stale=1) and 'encoder: data changed' in out
    status, out, err = go(lib, tmp_path, **words, stale=True)
    assert status == 0 and json.loads(out.splitlines()[-1]) == dict(done=1), (out, err)
    assert all(r['start'] > '2001' and r['attempts'] == 2 for r in whole(tmp_path, 2))


# records from elsewhere

def test_collect(lib, tmp_path, monkeypatch):
    status, out, err = go(lib, tmp_path/'there', seeds=2, set=dict(steps=1))
    assert status == 0, err
    script = 'import sys, json\nfrom skinrepro.companion.grid import collect\nprint(json.dumps(collect(sys.argv[2:], sys.argv[1] == "weights")))'
    def merge(*folders, what='records'):
        env = dict(os.environ, PYTHONPATH=str(lib), SKINREPRO_HOME=str(tmp_path/'here'))
        r = subprocess.run([sys.executable, '-c', script, what, *map(str, folders)], cwd=tmp_path, env=env, capture_output=True, text=True)
        return json.loads(r.stdout.splitlines()[-1]), r.stdout
    assert merge(tmp_path/'there')[0] == dict(new=6, known=0, refused=0)
    assert merge(tmp_path/'there'/'results')[0] == dict(new=0, known=6, refused=0)
    a, b = (sorted((tmp_path/w/'results').rglob('run.json')) for w in ('there', 'here'))
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    weights = sorted((tmp_path/'there'/'artefacts'/'runs').glob('*/encoder.pt')); named = [f for f in weights if 'b-pretrain' in str(next((tmp_path/'here'/'results').rglob(f'*-{f.parent.name}')))]
    assert len(named) == 2 and not (tmp_path/'here'/'artefacts').exists() # records alone travel
    named[0].write_bytes(b'other weights')
    tally, said = merge(tmp_path/'there', what='weights')
    brought = list((tmp_path/'here'/'artefacts').rglob('encoder.pt'))
    assert tally['known'] == 6 and [f.parent.name for f in brought] == [named[1].parent.name] and 'its encoder.pt is not what the run recorded' in said
    other = read_json(a[0]); other['metrics'][0]['value'] = .1; a[0].write_text(json.dumps(other)); a[1].write_text('{')
    tally, said = merge(tmp_path/'there')
    assert tally == dict(new=0, known=4, refused=2) and 'another run under the same id' in said and 'not whole JSON' in said
    assert b[0].read_bytes() != a[0].read_bytes() and json.loads(b[1].read_text())


def test_what_a_killed_collect_left_is_no_record(lib, tmp_path, monkeypatch):
    from test_damage import made_up
    monkeypatch.setenv('SKINREPRO_RESULTS', str(tmp_path/'there'/'results'))
    (cell,) = plan(preset='small', arms=['random'], protocols=('paper',))
    f = made_up(cell, .5); half = f.parent.with_name(f'.{f.parent.name}.part'); half.mkdir(); (half/'run.json').write_text('{')
    monkeypatch.setenv('SKINREPRO_RESULTS', str(tmp_path/'here'/'results'))
    target = cell.folder; left = target.with_name(f'.{target.name}.part'); left.mkdir(parents=True); (left/'junk').write_text('')
    assert collect([tmp_path/'there']) == dict(new=1, known=0, refused=0)
    assert [p.name for p in target.parent.iterdir()] == [target.name] and (target/'run.json').read_bytes() == f.read_bytes()


# a cluster

def test_a_worker_with_two_gpus_gives_each_run_its_own(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,7')
    with grid._one_gpu() as a, grid._one_gpu() as b: assert [a, b] == [dict(CUDA_VISIBLE_DEVICES='4'), dict(CUDA_VISIBLE_DEVICES='7')]
    with grid._one_gpu() as c: assert c == a


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


@pytest.fixture
def dask(lib, tmp_path):
    "A scheduler and two workers, as on two hosts; each worker is a process with a nanny."
    pytest.importorskip('distributed')
    home, port = tmp_path/'home', free_port(); home.mkdir()
    env = dict(os.environ, PYTHONPATH=str(lib), SKINREPRO_CACHE=str(lib.parent/'cache'), PYTHONWARNINGS='ignore'); env.pop('OMP_NUM_THREADS', None)
    command = lambda *w: subprocess.Popen([sys.executable, '-m', 'distributed.cli.' + w[0], *w[1:]], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    procs = [command('dask_scheduler', '--host', '127.0.0.1', '--port', str(port), '--no-dashboard')]
    procs += [command('dask_worker', f'tcp://127.0.0.1:{port}', '--nthreads', '2', '--no-dashboard', '--local-directory', str(tmp_path/f'w{k}')) for k in range(2)]
    yield home, f'tcp://127.0.0.1:{port}', procs
    for p in procs:
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        p.wait()


@pytest.mark.slow
@pytest.mark.slow
def test_cluster_survives_a_killed_worker_and_driver(lib, dask):
    home, address, procs = dask
    words = dict(cluster=address, set=dict(steps=15, pause=.1))
    driver = toy.drive(lib, home, json.dumps(words))
    wait_for(lambda: process(home, 'ipykernel_launcher'), driver, 300)
    os.killpg(procs[1].pid, signal.SIGKILL) # a host is gone, with all that ran there
    wait_for(lambda: len(records(home)) > 3, driver, 600)
    driver.send_signal(signal.SIGKILL); driver.wait(); driver.communicate()
    status, out, err = go(lib, home, **words)
    assert status == 0 and json.loads(out.splitlines()[-1]).keys() <= {'done', 'skipped'}, (out, err)
    whole(home, 12)
    wait_for(lambda: not any(process(home, what) for what in ('ipykernel_launcher', 'execute(sys.argv[1])')), seconds=60) # the remaining worker is the cluster's own


def documented(language): # the fenced blocks of the notebook, in that language
    import re
    text = '\n'.join(''.join(c['source']) for c in read_json(Path(__file__).parents[1]/'nbs'/'companion'/'55_grid.ipynb')['cells'] if c['cell_type'] == 'markdown')
    return re.findall(rf'```{language}\n(.*?)```', text, re.S)


@pytest.mark.slow
def test_tls_as_documented(lib, tmp_path):
    "The very lines of the notebook; and nobody gets in without the certificate."
    import shutil
    pytest.importorskip('distributed')
    if not shutil.which('openssl'): pytest.skip('no openssl to make certificates with')
    certificates, servers = documented('bash')
    subprocess.run(certificates, shell=True, check=True, cwd=tmp_path, capture_output=True)
    port = free_port()
    here = lambda t: t.replace('head-node', '127.0.0.1').replace('8786', str(port)).replace('0.0.0.0', '127.0.0.1')
    env = dict(os.environ, PYTHONPATH=str(lib), SKINREPRO_CACHE=str(lib.parent/'cache'), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    procs = [subprocess.Popen('exec ' + here(line), shell=True, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) for line in servers.splitlines()]
    try:
        (tmp_path/'cluster.toml').write_text(here(next(t for t in documented('toml') if '[tls]' in t)))
        home = tmp_path/'home'
        wait_for(lambda: not socket.socket().connect_ex(('127.0.0.1', port)), procs[0])
        status, out, err = go(lib, home, cluster=str(tmp_path/'cluster.toml'), seeds=1, arms=['a'], set=dict(steps=1))
        assert status == 0 and 'warning' not in out and len(whole(home, 1)) == 1, (out, err)
        status, out, err = go(lib, tmp_path/'other', cluster=f'tcp://127.0.0.1:{port}', seeds=1, arms=['a'], set=dict(steps=1))
        assert status == 2 and 'no scheduler answers' in err and not records(tmp_path/'other'), (out, err)
    finally:
        for p in procs: os.killpg(p.pid, signal.SIGKILL); p.wait()


@pytest.mark.slow
def test_a_real_slurm(lib, tmp_path):
    "One node, its own configuration, two jobs that run Dask workers; 6 runs, and no job is left."
    import slurm
    pytest.importorskip('dask_jobqueue')
    if why := slurm.why_not(): pytest.skip(why)
    with slurm.one_node(tmp_path/'slurm') as env:
        (tmp_path/'cluster.toml').write_text(f"""[slurm]
jobs = 2
queue = "main"
cores = 1
processes = 1
memory = "1GB"
walltime = "00:30:00"
interface = "lo"
log_directory = "{tmp_path}"
scheduler_options = {{dashboard_address = ":0"}}
""")
        home = tmp_path/'home'
        driver = toy.drive(lib, home, json.dumps(dict(cluster=str(tmp_path/'cluster.toml'), seeds=2, set=dict(steps=3))), **{k: env[k] for k in ('SLURM_CONF', 'PATH')})
        status, out, err = finish(driver, 900)
        queue = lambda *words: subprocess.run(['squeue', *words], env=env, capture_output=True, text=True).stdout
        log = '\n'.join(line for line in (tmp_path/'slurm'/'slurmctld.log').read_text().splitlines() if any(w in line for w in ('sched: Allocate', '_slurm_rpc_submit', 'job_complete', 'KILL')))
        print(out, log, sep='\n') # with -s: what the notebook shows
        assert status == 0 and json.loads(out.splitlines()[-1]) == dict(done=4), (out, err, [f.read_text()[-1500:] for f in tmp_path.glob('*.err')], log)
        whole(home, 6)
        wait_for(lambda: not queue('-h'), seconds=60)
