"A sixth paper in a copy of the repository: written, green with everything that looks at all papers, and run to its table."
import csv
import os
import subprocess
import sys

import pytest

ROOT = __import__('pathlib').Path(__file__).resolve().parents[1]
LOOK = """tests/test_toy_six.py tests/test_checklist.py tests/test_published.py tests/test_claims.py
tests/test_site.py::test_sidebar_lists_every_notebook_once tests/test_site.py::test_links_resolve tests/test_site.py::test_equations_are_numbered_and_referred_to tests/test_site.py::test_pictures_have_words
tests/test_site.py::test_a_paper_opens_on_colab_and_installs_itself tests/test_site.py::test_workflows_know_every_paper tests/test_notebooks.py
tests/test_run_notebooks.py::test_runs[papers/65_toy_six] tests/test_run_notebooks.py::test_runs[runs/toy_six]""".split()


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The files that git knows or would take, without the records of others, and `skinrepro new-paper` run in it."
    import shutil
    copy = tmp_path_factory.mktemp('sixth')/'copy'
    listed = subprocess.run(['git', '-C', str(ROOT), 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    for name in filter(None, listed.stdout.split('\0')):
        if (ROOT/name).is_file() and not name.startswith('results/gan'): (copy/name).parent.mkdir(parents=True, exist_ok=True); shutil.copy2(ROOT/name, copy/name)
    status, out = call(copy, 'new-paper', 'toy_six', '--title', 'A toy')
    assert status == 0, out
    return copy, out


def env(copy): return {k: v for k, v in os.environ.items() if k not in ('SKINREPRO_HOME', 'SKINREPRO_DATA', 'SKINREPRO_RESULTS')} | dict(PYTHONPATH=str(copy), SKINREPRO_CACHE=str(copy.parent/'cache'), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', MPLBACKEND='agg')


def call(copy, *words, program=('-c', 'from skinrepro.companion.cli import main; main()')):
    r = subprocess.run([sys.executable, *program, *words], cwd=copy, env=env(copy), capture_output=True, text=True, timeout=1200)
    return r.returncode, r.stdout + r.stderr


def test_everything_is_written(copy):
    folder, out = copy
    files = out.split('Try it')[0].split()
    assert len(files) == 9 and all((folder/f).is_file() for f in files)
    import nbformat
    heads = [c.source.split('\n')[0] for c in nbformat.read(folder/'nbs'/'papers'/'65_toy_six.ipynb', 4).cells if c.source.startswith('## ')]
    assert [h[3] for h in heads] == list('123456789') # the nine sections


def test_it_is_written_once(copy):
    folder, _ = copy
    before = {p: p.read_bytes() for p in (folder/'skinrepro'/'companion').iterdir() if p.is_file()}
    status, out = call(folder, 'new-paper', 'toy_six')
    assert status == 2 and "there is a paper 'toy_six' already" in out and 'Traceback' not in out
    (folder/'nbs'/'runs'/'toy_seven.ipynb').write_text('mine')
    status, out = call(folder, 'new-paper', 'toy_seven')
    (folder/'nbs'/'runs'/'toy_seven.ipynb').unlink()
    assert status == 2 and "'nbs/runs/toy_seven.ipynb' exists already" in out
    assert before == {p: p.read_bytes() for p in before}


@pytest.mark.parametrize('name, says', [('My-Paper', 'cannot be the name of a module'), ('class', 'cannot be the name of a module'), ('gan_ssl', 'there is a paper')])
def test_bad_names_are_refused(copy, name, says):
    status, out = call(copy[0], 'new-paper', name)
    assert status == 2 and says in out and 'Traceback' not in out


@pytest.mark.slow
def test_all_green(copy):
    "Its own tests, and those that look at every paper, notebook and page."
    status, out = call(copy[0], *LOOK, '-x', '-p', 'no:cacheprovider', program=('-m', 'pytest'))
    assert status == 0, out[-3000:]


def test_its_own_tests_are_green(copy):
    status, out = call(copy[0], 'tests/test_toy_six.py', '-p', 'no:cacheprovider', program=('-m', 'pytest'))
    assert status == 0 and '[100%]' in out, out[-3000:]


def test_it_runs_to_its_table(copy):
    "Three seeds of both arms under one protocol: records, a table with numbers, and a verdict on its claim."
    folder, _ = copy
    status, out = call(folder, 'run', '--paper', 'toy_six', '--seeds', '0-2', '--protocol', 'strict')
    assert status == 0 and '6 done' in out, out[-2000:]
    table = list(csv.DictReader((folder/'results'/'smoke'/'tables'/'toy_six-phantom-smoke.csv').open()))
    got = {r['arm']: r for r in table if r['protocol'] == 'strict' and r['metric'] == 'accuracy'}
    assert set(got) == {'colour', 'pixels'} and all(float(r['runs']) == 3 and 0 < float(r['mean']) <= 1 for r in got.values())
    assert 'Claims of P5' in out and 'P5-01/pixels (strict)' in out and 'Not a medical device' in out
    assert len(list(folder.glob('results/smoke/toy_six/phantom/*/*/run.json'))) == 6
