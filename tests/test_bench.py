"The benchmark runs and writes whole, finite numbers; how fast anything is, is not tested."
import json, math, os, subprocess, sys

import pytest

NAMES = {'ours', 'bare', 'lightly', 'lightly_tuned', 'self_supervised'}


def numbers(node):
    "Every number in nested JSON."
    if isinstance(node, dict): node = list(node.values())
    if isinstance(node, list): return [n for v in node for n in numbers(v)]
    return [node] if isinstance(node, (int, float)) else []


def bench(root, *args):
    return subprocess.run([sys.executable, str(root/'bench'/'simclr.py'), *args], capture_output=True, text=True, timeout=300, env=dict(os.environ, PYTHONPATH=str(root)))


@pytest.mark.slow
def test_bench_simclr(root, tmp_path):
    pytest.importorskip('lightly', reason='lightly is a development requirement')
    pytest.importorskip('self_supervised', reason='self_supervised is a development requirement')
    out = tmp_path/'simclr.json'
    done = bench(root, '--sizes', '32', '--rounds', '1', '--images', '16', '--batch', '8', '--seconds', '0.2', '--out', str(out))
    assert done.returncode == 0, done.stderr
    got = json.loads(out.read_text(encoding='utf-8'))
    found = got['sizes']['32']['contestants']
    assert set(found) == NAMES and not any('skipped' in c for c in found.values())
    assert all(math.isfinite(v) for v in numbers(got))
    for name, c in found.items():
        assert min(c['pairs_per_s']) > 0 and min(c['cpu_ms_per_pair']) >= 0 and c['steps'] >= 2
        if name != 'ours': assert c['ratio']['rounds'] == [found['ours']['pairs_per_s'][0]/c['pairs_per_s'][0]] and c['ratio']['met'] is None # one round is no verdict
    assert got['sizes']['32']['store']['seconds'] > 0 and got['machine']['packages']['torch']
    if not got['settings']['native_bf16']: assert 'no native bfloat16' in done.stdout
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.mark.slow
def test_bench_refuses_what_it_does_not_know(root):
    done = bench(root, '--sizes', '48')
    assert done.returncode == 1 and done.stderr.strip() == 'error: --sizes 48 is not measured: choose from 32, 64, 96'
