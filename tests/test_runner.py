"Grids through the real command: what a record holds, and what happens when a run is killed, interrupted, stale or made twice at once."
import json
import signal

import nbformat
import numpy as np
import pytest
from lab import ONE, PROBE, SIZE, alive, call, copy_results, finish, records, sentence, sets, start, tree, wait_for

from skinrepro.companion import grid, runner
from skinrepro.companion.records import code_hash, load_encoder, mark
from skinrepro.core import UserError, sha256_file
from skinrepro.methods.train import load_state, save_state

GRID = ('run', '--arms', 'random,simclr', *sets(SIZE, PROBE, ONE))
FAST = 'import sys, time\nif "ipykernel_launcher" in sys.orig_argv:\n    real = time.monotonic\n    time.monotonic = lambda: 40*real()\n'


@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def lab(cache, tmp_path_factory):
    "One grid, done by two processes at once: a random encoder, a SimCLR encoder, and its evaluation."
    home = tmp_path_factory.mktemp('lab')
    two = [start(home, cache, *GRID) for _ in range(2)]
    ends = [finish(p) for p in two]
    assert [e[0] for e in ends] == [0, 0], ends
    runs = {(r['spec']['arm'], r['spec']['config']['stage']): r for r in (json.loads(p.read_text()) for p in records(home))}
    return dict(home=home, runs=runs, said=[e[1] for e in ends])


@pytest.fixture
def at_lab(lab, cache, own_home, monkeypatch):
    monkeypatch.setenv('SKINREPRO_HOME', str(lab['home'])); monkeypatch.setenv('SKINREPRO_CACHE', str(cache))


def ids(lab): return {'random': lab['runs']['random', 'evaluate']['id'], 'simclr': lab['runs']['simclr', 'evaluate']['id'], 'encoder': lab['runs']['simclr', 'pretrain']['id']}


def test_two_processes_do_each_run_once(lab):
    assert len(records(lab['home'])) == 3 and [r['attempts'] for r in lab['runs'].values()] == [1, 1, 1]
    said = '\n'.join(lab['said'])
    for name in ('random, phantom', 'simclr (pretraining), phantom', 'simclr, phantom'): assert sum('done     ' + name in line for line in said.splitlines()) == 1, said
    assert not alive(lab['home'])


def test_record_has_every_field(lab):
    for (arm, stage), r in lab['runs'].items():
        assert set(r['spec']) == {'paper', 'dataset', 'arm', 'protocols', 'preset', 'seed', 'config'} and (r['spec']['paper'], r['spec']['preset']) == ('gan_ssl', 'smoke')
        assert r['state'] == 'done' and r['start'] < r['end'] and r['attempts'] == 1 and r['peak_mib'] > 100 and r['seconds'] > 0 and r['images_per_s'] > 0
        assert all(set(m) >= {'name', 'value', 'n', 'split'} and np.isfinite(m['value']) and m['n'] > 0 for m in r['metrics'])
        assert set(r) >= {'commit', 'dirty', 'notebook', 'machine'} and r['skinrepro'] == '0.1.0' and r['code'] == code_hash('gan_ssl')
        assert set(r['data']) >= {'manifest', 'split', 'counts', 'dropped'} and len(r['data']['manifest']) == len(r['data']['split']) == 64
        assert r['data']['counts']['train'] + r['data']['counts']['test'] == 64
        assert set(r['machine']) >= {'python', 'platform', 'cpu', 'gpu', 'deterministic', 'packages'} and {'torch', 'fastai'} <= set(r['machine']['packages'])
        assert all(sha256_file(lab['home']/'artefacts'/'runs'/r['id']/a) == h for a, h in r['artefacts'].items())
    assert lab['runs']['simclr', 'evaluate']['took'] == {'encoder': mark(lab['runs']['simclr', 'pretrain'])} and lab['runs']['simclr', 'pretrain']['took'] == {}
    assert lab['runs']['simclr', 'evaluate']['inputs'] == {'encoder': ids(lab)['encoder']} and list(lab['runs']['simclr', 'pretrain']['artefacts']) == ['encoder.pt']
    names = {m['name'] for m in lab['runs']['random', 'evaluate']['metrics']}
    assert names >= {'accuracy', 'balanced_accuracy', 'macro_f1', 'majority_share'}


def test_figures_can_be_redrawn(lab):
    for p in records(lab['home']):
        assert p.with_name('figures.npz').stat().st_size <= 300_000
        r, f = json.loads(p.read_text()), np.load(p.with_name('figures.npz'))
        if 'y' in f: assert {m['name']: m['value'] for m in r['metrics']}['accuracy'] == pytest.approx((f['pred'] == f['y']).mean())


def test_protocols_of_one_config_are_one_run(lab, at_lab):
    assert all(r['spec']['protocols'] == ['paper', 'strict'] for r in lab['runs'].values())
    assert len(runner.plan(arms=['simclr'], protocols=('paper', 'strict'))) == 2
    assert len(runner.plan(arms=['simclr'], protocols=('paper', 'strict'), overrides=dict(group='image', transductive=True, step_matched=False))) == 1


def test_second_run_skips_all(lab, cache):
    before = tree(lab['home']/'results'/'smoke'/'gan_ssl')
    status, out, err = call(lab['home'], cache, *GRID)
    assert (status, err) == (0, '') and '2 skipped' in out and 'done     ' not in out
    assert tree(lab['home']/'results'/'smoke'/'gan_ssl') == before


def test_table_shows_the_runs_of_set(lab, cache):
    table = next((lab['home']/'results'/'smoke'/'tables').glob('*.csv')).read_text()
    assert all(i in table for i in (ids(lab)['random'], ids(lab)['simclr'])) and ids(lab)['encoder'] not in table


@pytest.mark.slow
def test_killed_driver_leaves_nothing_and_resumes(lab, cache, tmp_path):
    "The kernel's clock runs 40 times faster, so that checkpoints come every half second and not every 20 s."
    home, hook = tmp_path/'lab', tmp_path/'hook'
    home.mkdir(); hook.mkdir(); (hook/'sitecustomize.py').write_text(FAST)
    words = ('run', '--arms', 'simclr', *sets(SIZE, PROBE, ONE)) # its encoder comes first
    work, key = home/'artefacts'/'runs'/ids(lab)['encoder'], ids(lab)['encoder']
    driver = start(home, cache, *words, PYTHONPATH=str(hook))
    wait_for((work/'checkpoint-0.pt.sha256').exists, driver)
    driver.send_signal(signal.SIGKILL); driver.wait(); driver.communicate()
    wait_for(lambda: not alive(home), seconds=10)
    assert not records(home) and not (work/'record.json').exists()
    states = {k: s['step'] for k in (0, 1) if (s := load_state(work/f'checkpoint-{k}.pt'))}
    newest = max(states, key=states.get)
    assert 0 < states[newest] < 24
    marked = load_state(work/f'checkpoint-{newest}.pt'); marked['curve']['loss'][0] = 77.
    save_state(work/f'checkpoint-{newest}.pt', marked)
    status, out, err = call(home, cache, *words)
    assert status == 0, err
    file = next(f for f in records(home) if f.parent.name.endswith(key))
    again, whole = json.loads(file.read_text()), lab['runs']['simclr', 'pretrain']
    assert len(records(home)) == 2 and again['attempts'] == 2 and whole['attempts'] == 1
    assert again['metrics'] == whole['metrics'] and again['artefacts'] == whole['artefacts'] # weights by sha256
    assert np.load(file.with_name('figures.npz'))['loss'][0] == 77 # resumed: starting anew would have lost the mark
    assert not [*work.glob('checkpoint-*')] # a finished run has no use for them


def test_interrupt(cache, tmp_path):
    driver = start(tmp_path, cache, 'run', '--arms', 'random', *sets(SIZE, PROBE, ONE))
    wait_for(lambda: len(alive(tmp_path)) > 1, driver)
    driver.send_signal(signal.SIGINT)
    status, out, err = finish(driver, 30)
    assert status == 130 and 'interrupted' in sentence(err)
    wait_for(lambda: not alive(tmp_path), seconds=10)
    assert not records(tmp_path)


def test_half_written_record(lab, cache, tmp_path):
    "A table names it and leaves it out; a grid makes it again and keeps what was there."
    home = copy_results(lab['home'], tmp_path/'lab')
    path = next(p for p in records(home) if ids(lab)['random'] in str(p))
    half = path.read_bytes()[:200]; path.write_bytes(half)
    status, out, err = call(home, cache, 'table', '--preset', 'smoke', *sets(SIZE, PROBE, ONE))
    assert (status, err) == (0, '') and f'Left out: {path.relative_to(home/"results"/"smoke")} is not whole JSON' in out and path.read_bytes() == half
    status, out, err = call(home, cache, 'run', '--arms', 'random', *GRID[3:])
    assert status == 0 and 'done     random' in out and json.loads(path.read_text())['id'] == ids(lab)['random'] and path.with_name('run.json.refused').read_bytes() == half


def test_stale(lab, cache, tmp_path):
    home = copy_results(lab['home'], tmp_path/'lab', *ids(lab).values())
    by = {json.loads(p.read_text())['id']: p for p in records(home)}
    r = json.loads(by[ids(lab)['random']].read_text()); r['code'] = '0'*12; by[ids(lab)['random']].write_text(json.dumps(r))
    d = json.loads(by[ids(lab)['simclr']].read_text()); d['data']['manifest'] = '0'*64; by[ids(lab)['simclr']].write_text(json.dumps(d))
    words = ('--preset', 'smoke', *sets(SIZE, PROBE, ONE))
    status, out, err = call(home, cache, 'table', *words)
    import pandas as pd
    rows = pd.read_csv(next((home/'results'/'smoke'/'tables').glob('*.csv'))).query('protocol == "paper" and metric == "accuracy"').set_index('arm')
    value = {m['name']: m['value'] for m in r['metrics']}['accuracy']
    assert 'stale (code changed' in rows.state['random'] and f'{100*value:.2f}' in rows.state['random'] and 'stale (data changed' in rows.state['simclr']
    assert rows.loc[['random', 'simclr'], ['mean', 'low', 'sd']].isna().all(axis=None) and (rows.runs == 0).all()
    before = tree(home/'results'/'smoke'/'gan_ssl')
    status, out, err = call(home, cache, *GRID)
    assert status == 0 and '2 stale' in out and '--stale' in out and tree(home/'results'/'smoke'/'gan_ssl') == before


@pytest.mark.slow
def test_stale_is_run_again_when_asked(lab, cache, tmp_path):
    home = copy_results(lab['home'], tmp_path/'lab', *ids(lab).values())
    path = next(p for p in records(home) if ids(lab)['random'] in str(p))
    old = json.loads(path.read_text()); path.write_text(json.dumps(dict(old, code='0'*12)))
    status, out, err = call(home, cache, 'run', '--stale', '--arms', 'random', *sets(SIZE, PROBE, ONE))
    fresh = json.loads(path.read_text())
    assert (status, err) == (0, '') and 'done     random' in out
    assert fresh['code'] == code_hash('gan_ssl') and fresh['metrics'] == old['metrics'] and len(records(home)) == 3


def test_sheet_without_tag_is_refused(at_lab, tmp_path, monkeypatch):
    nb = nbformat.read(runner.sheet_path('gan_ssl'), 4)
    cell = next(c for c in nb.cells if 'parameters' in c.metadata.get('tags', []))
    cell.metadata.pop('tags'); nbformat.write(nb, tmp_path/'bare.ipynb')
    monkeypatch.setenv('SKINREPRO_HOME', str(tmp_path/'home')); monkeypatch.setattr(runner, 'sheet_path', lambda paper: tmp_path/'bare.ipynb')
    with pytest.raises(UserError, match='0 cells tagged'): grid.Here().start(grid.Job(runner.plan(arms=['random'])[0], True))
    assert not records(tmp_path/'home')
    cell.metadata['tags'] = ['parameters']; cell.source = cell.source.replace('dataset =', 'data_set ='); nbformat.write(nb, tmp_path/'bare.ipynb')
    with pytest.raises(UserError, match="unknown parameter 'dataset'.*data_set"): grid.Here().start(grid.Job(runner.plan(arms=['random'])[0], True))
    nb.cells.append(nbformat.v4.new_code_cell('x = 1', metadata=dict(tags=['parameters']))); nbformat.write(nb, tmp_path/'bare.ipynb')
    with pytest.raises(UserError, match='2 cells tagged'): grid.Here().start(grid.Job(runner.plan(arms=['random'])[0], True))


def test_load_encoder(lab, at_lab):
    import torch
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): f = {k: load_encoder(i)(x) for k, i in ids(lab).items()}
    assert f['encoder'].shape == (4, 512) and torch.equal(f['encoder'], f['simclr']) and not torch.allclose(f['encoder'], f['random'])
    with torch.no_grad(): assert torch.equal(load_encoder(ids(lab)['simclr'])(x), f['simclr']) and torch.equal(load_encoder(ids(lab)['random'])(x), f['random'])
    assert not load_encoder(ids(lab)['simclr']).training
    with pytest.raises(UserError, match='no record'): load_encoder('ffffffff')


def test_changed_weights_are_refused(lab, tmp_path, own_home, monkeypatch):
    home = copy_results(lab['home'], tmp_path/'lab', ids(lab)['encoder'])
    monkeypatch.setenv('SKINREPRO_HOME', str(home))
    file = home/'artefacts'/'runs'/ids(lab)['encoder']/'encoder.pt'
    raw = bytearray(file.read_bytes()); raw[len(raw)//2] ^= 1; file.write_bytes(raw)
    file.with_name('encoder.pt.sha256').write_text(sha256_file(file)) # a forger's touch
    for i in (ids(lab)['simclr'], ids(lab)['encoder']):
        with pytest.raises(UserError, match='is not what run'): load_encoder(i)
    file.unlink()
    with pytest.raises(UserError, match='not on this machine'): load_encoder(ids(lab)['simclr'])
