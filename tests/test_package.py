"What is installed is what is here: versions, the wheel's content, and a run from the wheel alone."
import configparser
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from lab import ONE, PROBE, SIZE, call, environment, records, sets

import skinrepro


@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    "Built from a copy of the files that git knows or would take."
    base = tmp_path_factory.mktemp('wheel')
    listed = subprocess.run(['git', '-C', str(root), 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    for name in filter(None, listed.stdout.split('\0')):
        if (root/name).is_file(): (base/'copy'/name).parent.mkdir(parents=True, exist_ok=True); shutil.copy2(root/name, base/'copy'/name)
    r = subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', str(base/'dist'), str(base/'copy')], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    return next((base/'dist').glob('*.whl'))


def settings(root):
    p = configparser.ConfigParser(delimiters=['=']); p.read(root/'settings.ini', encoding='utf-8')
    return p['DEFAULT']


def test_versions_agree(root, wheel):
    assert settings(root)['version'] == skinrepro.__version__ == wheel.name.split('-')[1]
    assert tomllib.loads((root/'pyproject.toml').read_text())['project'].get('version') is None # dynamic: one place


def test_nbdev_keys(root):
    nbdev = tomllib.loads((root/'pyproject.toml').read_text())['tool']['nbdev']
    assert nbdev['allowed_cell_metadata_keys'] == ['tags'] and (nbdev['lib_path'], nbdev['nbs_path']) == ('skinrepro', 'nbs')


def test_wheel_holds_everything(root, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(root)) for p in (root/'skinrepro').rglob('*.py')}
    sheets = {f'skinrepro/runs/{p.name}' for p in (root/'nbs'/'runs').glob('*.ipynb')}
    assert len(modules) > 20 and sheets and modules <= names and sheets <= names and 'skinrepro/companion/published.csv' in names
    assert {n.split('/')[0] for n in names} == {'skinrepro', wheel.name.split('-')[0] + f'-{skinrepro.__version__}.dist-info'}


def test_wheel_metadata(root, wheel):
    z, info = zipfile.ZipFile(wheel), f'skinrepro-{skinrepro.__version__}.dist-info/'
    meta, entry = z.read(info + 'METADATA').decode(), z.read(info + 'entry_points.txt').decode()
    wanted = [l.strip() for l in settings(root)['requirements'].splitlines() if l.strip()]
    assert wanted and all(f'Requires-Dist: {w}' in meta for w in wanted) and 'skinrepro = skinrepro.companion.cli:main' in entry and 'skinrepro._modidx:d' in entry


@pytest.mark.slow
def test_run_from_the_wheel(wheel, tmp_path):
    site, home = tmp_path/'site', tmp_path/'home'
    home.mkdir()
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', str(site), str(wheel)], check=True, capture_output=True)
    where = subprocess.run([sys.executable, '-c', 'import skinrepro; print(skinrepro.__file__)'], cwd=home, env=environment(tmp_path/'cache', PYTHONPATH=str(site)), capture_output=True, text=True).stdout.strip()
    assert where == str(site/'skinrepro'/'__init__.py')
    status, out, err = call(home, tmp_path/'cache', 'run', '--arms', 'random', *sets(SIZE, PROBE, ONE), command=(str(site/'bin'/'skinrepro'),), PYTHONPATH=str(site))
    assert status == 0, err
    r = json.loads(records(home)[0].read_text())
    job = json.loads((home/'artefacts'/'runs'/r['id']/'job.json').read_text())
    assert job['sheet'] == str(site/'skinrepro'/'runs'/'gan_ssl.ipynb') and r['commit'] is None
