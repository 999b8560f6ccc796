"A run that is killed in the middle of an epoch ends with the same bits as one that was not."
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lab import environment, finish, wait_for
from resume_child import EVERY, STEPS, train

from skinrepro.methods.train import load_state

METHODS = ('simclr', 'byol')


@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')


@pytest.fixture
def shared_cache(cache, own_home, monkeypatch): monkeypatch.setenv('SKINREPRO_CACHE', str(cache))


def child(method, folder, cache, pause):
    return subprocess.Popen([sys.executable, str(Path(__file__).with_name('resume_child.py')), method, str(folder), str(pause)],
                            env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def whole(cache):
    "The run that nobody disturbed, per method."
    was, threads = os.environ.get('SKINREPRO_CACHE'), torch.get_num_threads()
    os.environ['SKINREPRO_CACHE'] = str(cache)
    try: return {m: train(m) for m in METHODS}
    finally:
        os.environ.pop('SKINREPRO_CACHE') if was is None else os.environ.update(SKINREPRO_CACHE=was)
        torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def killed(cache, whole, tmp_path_factory):
    "Folders of processes killed after their second checkpoint, at step 6 of 4 steps an epoch."
    folders, procs = {m: tmp_path_factory.mktemp(m) for m in METHODS}, {}
    for m in METHODS:
        procs[m] = child(m, folders[m], cache, .3)
        wait_for((folders[m]/'checkpoint-1.pt.sha256').exists, procs[m])
        procs[m].send_signal(signal.SIGKILL)
        assert procs[m].wait() == -signal.SIGKILL and not (folders[m]/'final.pt').exists()
    return folders


def same(a, b): # bit for bit
    assert a['loss'] == b['loss'] and len(a['loss']) == STEPS
    assert a['model'].keys() == b['model'].keys() and all(torch.equal(v, b['model'][k]) for k, v in a['model'].items())
    assert all(torch.equal(v, b['opt'][i][k]) for i, s in a['opt'].items() for k, v in s.items())


@pytest.fixture
def after(killed, tmp_path, shared_cache): # a copy that a test may damage
    def copy(method): return Path(shutil.copytree(killed[method], tmp_path/'run'))
    return copy


@pytest.mark.parametrize('method', METHODS)
def test_killed_process_resumes_bit_for_bit(method, killed, after, whole, cache):
    steps = [load_state(killed[method]/f'checkpoint-{k}.pt')['step'] for k in (0, 1)]
    assert steps == [EVERY, 2*EVERY] and steps[1] % 4 # in the middle of an epoch
    proc = child(method, folder := after(method), cache, 0)
    assert finish(proc)[0] == 0
    end = torch.load(folder/'final.pt', weights_only=True)
    assert end['first'] == 2*EVERY
    same(whole[method], end)


@pytest.mark.parametrize('method', METHODS)
def test_truncated_checkpoint_falls_back(method, after, whole):
    newest = (folder := after(method))/'checkpoint-1.pt'
    newest.write_bytes(newest.read_bytes()[:-1000])
    end = train(method, folder)
    assert end['first'] == EVERY
    same(whole[method], end)


@pytest.mark.parametrize('method', METHODS)
def test_no_whole_checkpoint_starts_anew(method, after, whole):
    folder = after(method)
    for k in (0, 1):
        raw = bytearray((folder/f'checkpoint-{k}.pt').read_bytes()); raw[len(raw)//2] ^= 1
        (folder/f'checkpoint-{k}.pt').write_bytes(raw)
    end = train(method, folder)
    assert end['first'] == 0
    same(whole[method], end)


def test_target_is_compared_and_moves(whole):
    "The comparison above has something to compare: target and online weights differ, so do runs and methods."
    m = whole['byol']['model']
    pairs = [(k, k.replace('target.', 'online.')) for k in m if k.startswith('target.') and k.endswith('weight')]
    assert pairs and any(not torch.equal(m[a], m[b]) for a, b in pairs)
    assert len(set(whole['byol']['loss'])) == STEPS and whole['byol']['loss'] != whole['simclr']['loss']


def test_another_seed_is_another_run(whole, shared_cache): assert train('simclr', seed=1)['loss'] != whole['simclr']['loss']
