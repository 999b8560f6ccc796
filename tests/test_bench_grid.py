"The benchmark of the grid runs and writes whole numbers; how fast anything is, is not tested."
import importlib.util
import json

import pytest

from skinrepro.core import UserError


@pytest.fixture
def bench(root): # there is a module `grid` of ours, too
    spec = importlib.util.spec_from_file_location('bench_grid', root/'bench'/'grid.py')
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module


def test_bench_grid(bench, tmp_path, capsys):
    out = tmp_path/'grid.json'
    bench.main(['--records', '60', '--runs', '1', '--rounds', '1', '--out', str(out)])
    got, said = json.loads(out.read_text(encoding='utf-8')), capsys.readouterr().out
    assert set(got['rounds']) == {'papermill', 'grid', 'collect', 'table'} and all(r['seconds'] > 0 and r['cpu'] > 0 for v in got['rounds'].values() for r in v)
    assert got['medians']['run']['cpu'] == pytest.approx(got['rounds']['grid'][0]['cpu'] - got['rounds']['papermill'][0]['cpu'])
    assert got['targets']['met']['collect'] is got['targets']['met']['table'] is None and said.count('not tested') == 2 and len(got['load']) == 2


def test_a_verdict_needs_its_size_and_can_fail(bench):
    def met(s, n=10_000): return bench.targets({k: dict(seconds=s) for k in bench.TARGETS}, n)
    assert met(1.) == dict(run=True, collect=True, table=True) and met(6.) == dict(run=False, collect=False, table=False)
    assert met(1., 9_999) == dict(run=True, collect=None, table=None)
    with pytest.raises(UserError, match='must be 1 or more'): bench.arguments(['--records', '0'])


def test_the_made_records_count(bench, tmp_path):
    from skinrepro.companion.records import scan
    assert bench.make_records(tmp_path, 70) == 70
    found, out = scan(tmp_path)
    assert len(found) == 70 == len({r['id'] for r in found}) and not out
