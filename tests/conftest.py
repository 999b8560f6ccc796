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
