"Fixtures for the whole-repository tests."
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def data_dir():
    "The folder of official data files, or a skip that says how to name one."
    folder = Path(os.environ.get('SKINREPRO_DATA') or ROOT.parent/'shared'/'data')
    if not folder.is_dir(): pytest.skip(f'no real data: set SKINREPRO_DATA (looked in {folder.name})')
    return folder.resolve()


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    "No test writes into the checkout: home and cache are temporary."
    monkeypatch.setenv('SKINREPRO_HOME', str(tmp_path/'home'))
    monkeypatch.setenv('SKINREPRO_CACHE', str(tmp_path/'cache'))


def pytest_collection_modifyitems(items):
    "Skip what this machine cannot do, with its reason; keep each file on one worker, notebooks apart."
    import shutil
    gpu = None
    for item in items:
        if item.get_closest_marker('slow') and not os.environ.get('SKINREPRO_SLOW'):
            item.add_marker(pytest.mark.skip(reason='slow: make test SLOW=1 runs it'))
        if item.get_closest_marker('quarto') and not shutil.which('quarto'):
            item.add_marker(pytest.mark.skip(reason='quarto is not on PATH'))
        if item.get_closest_marker('gpu'):
            if gpu is None:
                import torch
                gpu = torch.cuda.is_available()
            if not gpu: item.add_marker(pytest.mark.skip(reason='no CUDA device'))
        if item.path.name != 'test_run_notebooks.py': item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_terminal_summary(terminalreporter):
    "How much of the papers is built, at the end of every test run."
    from skinrepro.companion.checklist import progress_line
    terminalreporter.write_line(progress_line())
