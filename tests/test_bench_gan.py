"The GAN's benchmark runs and writes whole, finite numbers; how fast anything is, is not tested."
import importlib, json, logging, math, os, subprocess, sys

import pytest
from test_bench import numbers

from skinrepro.core import UserError, write_json

LEVERS = {'fold', 'layout', 'fused', 'share', 'lazy', 'bf16'}


def tiny(root, out, *words):
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1')
    return subprocess.run([sys.executable, str(root/'bench'/'gan.py'), '--tiny', '--out', str(out), *words], capture_output=True, text=True, timeout=240, env=env)


def test_bench_gan(root, tmp_path):
    out = tmp_path/'gan.json'
    done = tiny(root, out)
    assert done.returncode == 0, done.stderr
    got = json.loads(out.read_text(encoding='utf-8'))
    assert [p.name for p in tmp_path.iterdir() if p.suffix in ('.json', '.tmp')] == ['gan.json'] # written whole, nothing left over
    assert all(math.isfinite(v) for v in numbers(got)) and 'Traceback' not in done.stdout + done.stderr
    arms, levers, q = got['arms'], got['levers'], got['quality']
    native = got['settings']['native_bf16']
    assert not any(arms['plain'][k] for k in ('fold', 'layout', 'fused', 'share', 'bf16')) and arms['plain']['every'] == 1
    assert all(arms['fast'][k] for k in ('fold', 'layout', 'fused', 'share')) and arms['fast']['every'] == 4 and arms['fast']['bf16'] == native
    for name, c in arms.items():
        assert min(c['images_per_s']) > 0 and min(c['cpu_ms_per_image']) > 0
        assert c['ratio']['rounds'] == [c['images_per_s'][0]/arms['plain']['images_per_s'][0]]
    assert all(0 <= arms[k]['peak_mib']['training'] < arms[k]['peak_mib']['process'] for k in ('plain', 'fast'))
    assert got['speed']['target'] == 1.5 and got['speed']['met'] is None # one round is no verdict
    assert LEVERS <= set(levers) and (native or levers['bf16']['skipped'] == 'not run: no native bf16' in done.stdout)
    run = [levers[k] for k in ('fold', 'layout', 'fused', 'share', 'lazy')] + ([levers['bf16']] if native else [])
    assert math.isclose(math.prod(v['added']['median'] for v in run), got['speed']['median'], rel_tol=1e-9) # one round: the levers make up the whole
    for k, v in levers.items(): # those that claim to be exact are, and the others are not
        if 'skipped' not in v: assert (max(v['off_by'].values()) < 1e-3) == (v['kind'] == 'exact'), k
    assert len(q['runs']) == 1 and q['images'] == 32
    for which in ('plain', 'fast'):
        words = q['runs'][0][which]['kid']['protocol']
        assert 'resnet18 SimCLR 64 pairs of 80 phantom images sha256:' in words and 'generated n=32, held-out n=32' in words
    assert q['floor']['value'] < q['runs'][0]['plain']['kid']['value'] # after 32 images nobody passes for real
    assert got['machine']['packages']['torch'] and len(got['load']) == 2 and got['versions']['torch-fidelity']
    write_json(out, dict(got, arms=dict(got['arms'], mark=1))) # KID alone is measured anew, the speeds stay
    again = tiny(root, out, '--rounds', '0', '--images', '16')
    assert again.returncode == 0, again.stderr
    new = json.loads(out.read_text(encoding='utf-8'))
    assert new['arms']['mark'] == 1 and new['date'] == got['date'] < new['quality']['date'] and new['quality']['images'] == 16


def test_bench_gan_refuses_what_it_cannot_measure(root, monkeypatch):
    for k, v in dict(GOMP_SPINCOUNT='0', OMP_WAIT_POLICY='PASSIVE').items(): monkeypatch.setenv(k, v) # what importing it sets ends with this test
    monkeypatch.syspath_prepend(str(root/'bench'))
    bench = importlib.import_module('gan'); logging.captureWarnings(False)
    for name in ('gan', 'simclr'): monkeypatch.delitem(sys.modules, name)
    for words, says in ((['--size', '48'], 'size=48 is not a power of two from 4 up: choose 64'), (['--steps', '10'], 'choose 8'),
                        (['--images', '5'], 'less than two steps of --batch 16'), (['--batch', '1'], '--batch 2 or more'), (['--rounds', '0', '--images', '0'], 'leave nothing to measure')):
        with pytest.raises(UserError, match=says): bench.arguments(words)
