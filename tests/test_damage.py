"Records that are damaged, foreign, older, or written by two processes at once: named and left out, and nothing else lost."
import json
import shutil
import subprocess
import sys

import pytest
from lab import call

from skinrepro.companion.records import SCHEMA, code_hash, scan
from skinrepro.companion.runner import plan, state
from skinrepro.companion.tables import report, rows
from skinrepro.core import write_json

NAMES = ('accuracy', 'balanced_accuracy', 'macro_f1', 'majority_share')


def made_up(cell, value, **changes):
    "A record of a run that never was."
    spec = dict(paper=cell.paper, dataset=cell.cfg.dataset, arm=cell.cfg.arm, protocols=list(cell.protocols), preset=cell.preset, seed=cell.cfg.seed, config=cell.cfg.to_dict())
    r = dict(schema=SCHEMA, id=cell.id, spec=spec, state='done', inputs={}, code=code_hash(cell.paper), data=dict(manifest=''), machine=dict(cpu='none', threads=1), seconds=1, start='', end='',
             metrics=[dict(name=n, value=value, n=100, split='test') for n in NAMES]) | changes
    write_json(cell.folder/'run.json', {k: v for k, v in r.items() if v is not None})
    return cell.folder/'run.json'


@pytest.fixture
def three(tmp_path, monkeypatch):
    "Three good records of one arm."
    monkeypatch.setenv('SKINREPRO_RESULTS', str(tmp_path/'results'))
    cells = plan(preset='small', arms=['random'], seeds=(0, 1, 2))
    return [(c, made_up(c, .5 + .1*c.cfg.seed)) for c in cells]


def accuracy(): return rows(preset='small', protocols=['paper']).set_index(['arm', 'metric']).loc[('random', 'accuracy')]


def truncate(f): f.write_text(f.read_text()[:200])
def empty(f): f.write_text('')
def binary(f): f.write_bytes(b'\x00\xff\xfe' * 50)
def foreign(f): f.write_text('{"model": "other", "score": 1}')
def a_list(f): f.write_text('[1, 2]')
def older(f): write_json(f, json.loads(f.read_text()) | dict(schema=SCHEMA - 1))
def newer(f): write_json(f, json.loads(f.read_text()) | dict(schema=SCHEMA + 1))
def unnumbered(f): write_json(f, {k: v for k, v in json.loads(f.read_text()).items() if k != 'schema'})
def other_config(f): r = json.loads(f.read_text()); r['spec']['config']['lr'] = 9.; write_json(f, r)
def not_finite(f): f.write_text(f.read_text().replace('0.7', 'NaN', 1))
def no_metrics(f): write_json(f, json.loads(f.read_text()) | dict(metrics=[]))
def twice_one_metric(f): r = json.loads(f.read_text()); r['metrics'] *= 2; write_json(f, r)
def unfinished(f): write_json(f, json.loads(f.read_text()) | dict(state='running'))
def unknown_paper(f): r = json.loads(f.read_text()); r['spec']['paper'] = 'other'; write_json(f, r)
def a_folder(f): f.unlink(); f.mkdir()
def spec_is_text(f): write_json(f, json.loads(f.read_text()) | dict(spec='x'))


@pytest.mark.parametrize('spoil', [truncate, empty, binary, foreign, a_list, older, newer, unnumbered, other_config, not_finite, no_metrics, twice_one_metric, unfinished, unknown_paper, a_folder, spec_is_text], ids=lambda f: f.__name__)
def test_spoilt_record_is_named_and_left_out(three, spoil, tmp_path):
    assert accuracy()['runs'] == 3 and accuracy()['mean'] == pytest.approx(.6)
    cell, f = three[2]
    spoil(f)
    good, out = scan()
    assert len(good) == 2 and [x['file'] for x in out] == [str(f.relative_to(tmp_path/'results'))] and out[0]['why']
    a = rows(preset='small', protocols=['paper'], seeds=(0, 1, 2)).set_index(['arm', 'metric']).loc[('random', 'accuracy')]
    assert a['runs'] == 2 and a['mean'] == pytest.approx(.55) and 'not run (its run.json' in a.state
    said = report(preset='small')[2].read_text()
    assert f'Left out: {out[0]["file"]}' in said and cell.id not in said.split('Left out')[0]


def test_one_run_twice_counts_once(three, tmp_path):
    f = three[0][1]
    shutil.copytree(f.parent, f.parent.with_name('strict-' + f.parent.name))
    good, out = scan()
    assert len(good) == 3 and len(out) == 1 and 'is the same run as' in out[0]['why'] and accuracy()['runs'] == 3


def test_a_second_making_of_weights_is_told(three, tmp_path):
    from skinrepro.companion.records import mark, read_run
    from skinrepro.companion.tables import remade
    evaluate = plan(preset='small', arms=['simclr'], protocols=('paper',))[0]; need = evaluate.needs['encoder']
    first = read_run(made_up(need, .5, artefacts={'encoder.pt': 'a'*64}))
    made_up(evaluate, .7, inputs={'encoder': need.id}, took={'encoder': mark(first)})
    assert remade('gan_ssl') == [] and 'made twice' not in report()[2].read_text()
    made_up(need, .5, artefacts={'encoder.pt': 'b'*64}) # the same seed, other bits
    said, = remade('gan_ssl'); assert evaluate.id in said and need.id in said and said in report()[2].read_text() and remade('semi_gan') == remade('gan_ssl', dataset='bcn20000') == []


def test_copy_in_another_place_is_left_out(three, tmp_path):
    f = three[0][1]
    shutil.copytree(f.parent, f.parent.with_name('paper-seed7-01234567'))
    shutil.copytree(f.parents[3], tmp_path/'results'/'semi_gan')
    good, out = scan()
    assert len(good) == 3 and len(out) == 1 + 4 and all("another's place" in x['why'] for x in out)


def test_table_command_reports(three, tmp_path):
    truncate(three[1][1])
    status, out, err = call(tmp_path, tmp_path/'cache', 'table')
    assert (status, err) == (0, '') and f"Left out: {three[1][1].relative_to(tmp_path/'results')} is not whole JSON" in out and '(2)' in out


def test_damaged_figures_are_named_beside_the_verdict(three, monkeypatch):
    "A cut npz takes no number with it: verdicts come from run.json."
    from skinrepro.companion.tables import verdicts
    for c in plan(preset='small', arms=['simclr'], seeds=(0, 1, 2)): made_up(c, .7 + .01*c.cfg.seed)
    (three[0][1].with_name('figures.npz')).write_bytes(b'PK\x03\x04 cut')
    v = verdicts(protocols=['paper']).set_index('claim').loc['P0-72/simclr']
    assert v.n == [3, 3] and v['diff'] is not None


def test_refused_record_is_kept_when_the_run_is_done_again(three, monkeypatch, tmp_path):
    from skinrepro.companion import runner
    cell, f = three[0]
    truncate(f); broken = f.read_text()
    assert state(cell)[0] == 'not run'
    work = cell.work; work.mkdir(parents=True)
    write_json(work/'record.json', dict(config=cell.cfg.to_dict(), metrics=[dict(name='accuracy', value=.9, n=1, split='test')], seconds=1, data=dict(manifest=''), machine={}, artefacts={}))
    (work/'sheet.part.ipynb').write_text('{}'); (work/'figures.npz').write_bytes(b'')
    runner._finish(cell, 'then', 'later', 1)
    assert state(cell) == ('done', '') and f.with_name('run.json.refused').read_text() == broken and len(scan()[0]) == 3


WRITER = '''
import sys; from test_damage import made_up; from skinrepro.companion.runner import plan
who, n = int(sys.argv[1]), int(sys.argv[2])
cells = plan(preset='small', arms=['random'], seeds=tuple(range(n)))
for c in cells:
    if c.cfg.seed % 3 in (who, 2): made_up(c, .5 + .001*c.cfg.seed) # every third is written by both
'''


def test_two_writers_lose_nothing(tmp_path, root, monkeypatch):
    "Two processes write 60 records, a third of them both, while this one reads: never a half record, and all there at the end."
    import os
    monkeypatch.setenv('SKINREPRO_RESULTS', str(tmp_path/'results'))
    env = dict(os.environ, PYTHONPATH=f'{root}:{root/"tests"}')
    two = [subprocess.Popen([sys.executable, '-c', WRITER, str(k), '60'], env=env, cwd=tmp_path) for k in (0, 1)]
    seen = []
    while any(p.poll() is None for p in two):
        good, out = scan(); seen.append(len(good))
        assert not out, out
    assert [p.returncode for p in two] == [0, 0] and seen == sorted(seen)
    a = rows(preset='small', protocols=['paper']).set_index(['arm', 'metric']).loc[('random', 'accuracy')]
    assert len(scan()[0]) == 60 and a['runs'] == 60 and a['mean'] == pytest.approx(.5 + .001*29.5)
    assert not list((tmp_path/'results').rglob('*.tmp'))
