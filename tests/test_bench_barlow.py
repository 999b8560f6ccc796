"The benchmark of the Barlow Twins loss runs and writes whole numbers; how fast anything is, is not tested."
import importlib
import json
import math
import sys

import pytest

from skinrepro.core import UserError


@pytest.fixture
def bench(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root/'bench'))
    module = importlib.import_module('barlow'); monkeypatch.delitem(sys.modules, 'barlow')
    return module


def test_bench_barlow(bench, tmp_path, capsys):
    out = tmp_path/'barlow.json'
    bench.main(['--n', '8', '--d', '64', '--rounds', '2', '--out', str(out)])
    got, said = json.loads(out.read_text(encoding='utf-8')), capsys.readouterr().out
    found = got['contestants']
    assert {'ours', 'direct'} <= set(found) <= set(bench.LABELS) and got['settings']['d'] == 64 and got['machine']['packages']['torch']
    assert all(len(c['ms']) == 2 and min(c['ms']) > 0 and math.isclose(c['loss'], found['ours']['loss'], rel_tol=1e-4) for c in found.values()) # the contestants compute one thing
    assert found['ours']['times_ours'] == dict(median=1., min=1., max=1.) and found['direct']['times_ours']['max'] == max(d/o for d, o in zip(found['direct']['ms'], found['ours']['ms']))
    assert got['targets']['met'] == dict(faster=None, memory=None) and said.count('not tested') == 2 # no promise was made for this size


def test_a_verdict_needs_its_size_and_can_fail(bench):
    def met(times, extra, n=128, rounds=3): return bench.targets(dict(ours=dict(extra_mb=extra), lightly=dict(times_ours=dict(median=times))), n, 8192, rounds)
    assert met(20., 49.) == dict(faster=True, memory=True) and met(19., 51.) == dict(faster=False, memory=False)
    assert set(met(30., 1., n=64).values()) == set(met(30., 1., rounds=2).values()) == {None}
    assert bench.targets(dict(ours=dict(extra_mb=None)), 128, 8192, 3) == dict(faster=None, memory=None) # neither lightly nor a memory meter
    with pytest.raises(UserError, match='--n must be 2 or more'): bench.arguments(['--n', '1'])
