"Every command of the front page and of the workflows is executed: as it stands, or as said here and why."
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from lab import environment, records

from skinrepro.companion import cli
from skinrepro.companion.site import ending, front, front_text, hardware, measured
from skinrepro.companion.tables import all_verdicts
from skinrepro.core import UserError

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT/'README.md').read_text(encoding='utf-8')
BIN = Path(sys.executable).parent
SHELL = [c for block in re.findall(r'```sh\n(.*?)```', README, re.S) for line in block.splitlines() if (c := line.split('  #')[0].split('    #')[0].strip())]
SHELL = [re.sub(r'\s+#.*', '', c) for c in SHELL]

# how each is tested; a command of README that is in no line here fails `test_every_command_is_accounted_for`
HOW = {
    'make test': 'this is it',
    'make run': 'test_make_run',
    'make lab': 'test_make_lab',
    'make run PAPER=gan_ssl PRESET=small SEEDS=0-2 DATA=data': 'test_make_run_hands_its_words_on',
    'skinrepro data fetch ham10000 data': 'test_fetch_without_network',
    'skinrepro data check data': 'test_check',
    'skinrepro run --paper gan_ssl --arms random --protocol strict --seeds 3': 'test_one_cell',
    'skinrepro run --paper gan_ssl --preset small --dataset ham10000 --seeds 0-2 --data data --dry-run': 'test_dry_runs',
    'skinrepro run --paper gan_ssl --preset small --dataset ham10000 --seeds 0-2 --data data': 'test_whole_grid_with_real_images',
    'skinrepro run --paper gan_ssl --preset paper --dataset ham10000 --seeds 0-2 --data data --gpus 0,1 --dry-run': 'test_dry_runs',
    'skinrepro run --paper gan_ssl --preset paper --dataset ham10000 --seeds 0-2 --data data --scheduler slurm.toml --dry-run': 'test_dry_runs',
    'skinrepro collect brought': 'test_collect',
    'skinrepro table': 'test_tables',
    'skinrepro table P2-T1': 'test_tables',
    'skinrepro new-paper my_paper --title "Its title"': 'tests/test_new_paper.py',
    'skinrepro run --paper my_paper': 'tests/test_new_paper.py'}


def test_every_command_is_accounted_for():
    assert set(SHELL) == set(HOW)
    assert all(how in globals() or how == 'this is it' or (ROOT/how).is_file() for how in HOW.values())


def say(capsys, words, status=0): # a command, in this process
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'argv', words)
        with pytest.raises(SystemExit) as e: cli.main()
    out = capsys.readouterr()
    assert e.value.code == status, out.err
    return out.out


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A folder with our records, where commands may write."
    monkeypatch.setenv('SKINREPRO_HOME', str(tmp_path)); monkeypatch.delenv('SKINREPRO_DATA', raising=False); monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT/'results'/'gan_ssl', tmp_path/'results'/'gan_ssl', ignore=shutil.ignore_patterns('*.npz'))
    return tmp_path


@pytest.mark.parametrize('command', [c for c, how in HOW.items() if how == 'test_dry_runs'], ids=lambda c: ' '.join(c.split()[-4:]))
def test_dry_runs(command, home, capsys):
    before = len(list(home.rglob('*')))
    out = say(capsys, command.split())
    assert re.search(r'\d+ runs: \d+ done, \d+ stale, \d+ to do', out.splitlines()[-1]) and len(list(home.rglob('*'))) == before
    if '--preset small' in command: assert ' done ' in out or ' stale ' in out # ours are on record


def board(): return front(all_verdicts(('gan_ssl',)), ('gan_ssl',))


def test_the_scoreboards_commands_name_its_records(home, capsys):
    "README's rows are computed; the command of a row lists, as done or stale, the very runs that the row links to."
    rows = board(); text = front_text(rows, home)
    assert len(rows) > 10
    for r, t in zip(rows.itertuples(), text.itertuples(index=False)): assert f'| {t[6]} | {t[7]} | {t[8]} | {t[9]} | {t[10]} |' in README, r.arm
    for r in rows.iloc[::5].itertuples():
        out = say(capsys, [*r.command.split(), '--dry-run'])
        for i, _ in r.links: assert re.search(rf'(?m)^{i}  (done|stale)', out)


def test_scoreboard_is_computed(home):
    "Take a seed away, and mean, n, command and links follow; take all away, and README says how to make the first."
    text = lambda: front_text(board(), home)
    whole = text().set_index(['arm', 'protocol']).loc[('simclr', 'paper')]
    shutil.rmtree(next((home/'results'/'gan_ssl'/'ham10000'/'simclr').glob('paper-seed2-*')))
    less = text().set_index(['arm', 'protocol']).loc[('simclr', 'paper')]
    assert whole['ours, mean ± sd (n)'].endswith('(3)') and less['ours, mean ± sd (n)'].endswith('(2)') and '--seeds 0-1 ' in less.command and less.runs.count('](') == 2
    assert whole.published == less.published and 'too few seeds' in less.verdict
    shutil.rmtree(home/'results')
    assert 'make run' in text().to_string() and len(hardware()) == 1


def test_times_are_measured():
    for c in ('make run', 'make test'):
        assert measured(c)['seconds'] > 0 and measured(c)['when'] and ending(c) in README


def test_times_are_kept_as_they_were(tmp_path):
    "bench/front.py runs make, and keeps seconds and last lines; a failure keeps nothing."
    for name in ('bench', 'results/bench', '.venv', 'bin'): (tmp_path/name).mkdir(parents=True)
    shutil.copy(ROOT/'bench'/'front.py', tmp_path/'bench'); (tmp_path/'.venv'/'.ready').touch()
    fake = tmp_path/'bin'/'make'; fake.write_text('#!/bin/sh\n[ "$1" = run ] || exit 1\necho "line of $1"; echo; echo last\n'); fake.chmod(0o755)
    go = lambda *w: subprocess.run([sys.executable, str(tmp_path/'bench'/'front.py'), *w], capture_output=True, text=True, env=dict(os.environ, PATH=f'{tmp_path/"bin"}:{os.environ["PATH"]}'))
    assert go('run').returncode == 0
    kept = json.loads((tmp_path/'results'/'bench'/'front.json').read_text())
    assert kept['make run']['last'] == ['line of run', 'last'] and kept['make run']['seconds'] >= 0 and set(kept) == {'make run'}
    assert 'nothing was written' in go('test').stderr and "'rum' is not measured" in go('rum').stderr
    assert json.loads((tmp_path/'results'/'bench'/'front.json').read_text()) == kept


def test_make_run():
    "`make run` is one command of ours, whose grid is planned."
    r = make('-n', 'run')
    assert r.stdout.split() == [f'{BIN}/skinrepro', *'run --paper gan_ssl --preset smoke --seeds 0 --protocol paper'.split()], r.stdout + r.stderr


def make(*words, **more): # not as a child of the make that runs the tests, which would say so
    env = {k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')}
    return subprocess.run(['make', '-o', '.venv/.ready', f'BIN={BIN}', f'PYTHON={sys.executable}', *words], cwd=ROOT, capture_output=True, text=True, env=env | more)


@pytest.mark.slow
def test_make_run_whole(tmp_path):
    r = make('run', SKINREPRO_HOME=str(tmp_path), SKINREPRO_CACHE=str(tmp_path/'cache'))
    assert r.returncode == 0 and r.stdout.strip().endswith('.tex') and len(records(tmp_path)) >= 7, r.stdout + r.stderr


def test_make_run_hands_its_words_on(home, capsys):
    words = make('-n', *'run PAPER=gan_ssl PRESET=small SEEDS=0-2 DATA=data'.split()).stdout.replace("'", '').split()
    assert words[1:] == 'run --paper gan_ssl --preset small --seeds 0-2 --data data'.split()
    assert 'to do' in say(capsys, [*words, '--dry-run'])


def test_make_help_lists_every_target():
    targets = re.findall(r'(?m)^([a-z-]+):.*##', (ROOT/'Makefile').read_text())
    out = make('help').stdout
    assert len(targets) > 10 and all(f'make {t} ' in out for t in targets)


def test_make_lab(tmp_path):
    "JupyterLab opens on the papers."
    pytest.importorskip('jupyterlab', reason='jupyterlab is not installed')
    import socket
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    (tmp_path/'jupyter_server_config.json').write_text(json.dumps(dict(ServerApp=dict(open_browser=False, port=port, port_retries=0, allow_root=True), IdentityProvider=dict(token=''), LabApp=dict(check_for_updates_class='jupyterlab.NeverCheckForUpdate', news_url=None))))
    env = dict(os.environ, JUPYTER_CONFIG_DIR=str(tmp_path), JUPYTER_DATA_DIR=str(tmp_path/'data'), JUPYTER_RUNTIME_DIR=str(tmp_path/'run'))
    with open(tmp_path/'log', 'w') as log: proc = subprocess.Popen(['make', '-o', '.venv/.ready', f'BIN={BIN}', f'PYTHON={sys.executable}', 'lab'], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 300
        while True:
            assert time.monotonic() < end and proc.poll() is None, (tmp_path/'log').read_text()[-2000:]
            try: found = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/api/contents')); break
            except OSError: time.sleep(.5)
        assert '60_gan_ssl.ipynb' in [f['name'] for f in found['content']]
    finally:
        import signal
        os.killpg(proc.pid, signal.SIGTERM); proc.wait(30)


def test_fetch_without_network(tmp_path):
    "Offline it says, in one sentence, what to download and where to put it."
    r = subprocess.run([BIN/'skinrepro', *'data fetch ham10000 data'.split()], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                       env=environment(tmp_path/'cache', **{k: 'http://127.0.0.1:9' for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY')}, no_proxy='', NO_PROXY=''))
    assert r.returncode == 2 and r.stderr.startswith('skinrepro: ') and 'HAM10000' in r.stderr and 'Traceback' not in r.stderr


def test_check(home, capsys):
    from PIL import Image
    (home/'data').mkdir()
    for k in range(4): Image.new('RGB', (8, 8), (60*k, 0, 0)).save(home/'data'/f'{k}.png')
    (home/'data'/'labels.csv').write_text('image_id,label\n' + ''.join(f'{k},{"ab"[k % 2]}\n' for k in range(4)))
    assert '4' in say(capsys, 'skinrepro data check data'.split())


def test_one_cell(tmp_path):
    "A run in seconds, its record and its table."
    command = next(c for c, how in HOW.items() if how == 'test_one_cell')
    r = subprocess.run([BIN/'skinrepro', *command.split()[1:]], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path/'cache'), timeout=900)
    assert r.returncode == 0 and '1 done' in r.stdout and len(records(tmp_path)) == 1, r.stdout + r.stderr
    assert json.loads(records(tmp_path)[0].read_text())['spec']['seed'] == 3 and 'Written to' in r.stdout


@pytest.mark.data
@pytest.mark.slow
def test_whole_grid_with_real_images(home, data_dir, capsys):
    "The command as it stands, but for one arm, whose runs are on record: data are opened and checked, runs are skipped, the table is drawn."
    (home/'data').symlink_to(data_dir)
    command = next(c for c, how in HOW.items() if how == 'test_whole_grid_with_real_images')
    out = say(capsys, [*command.split(), '--arms', 'random'])
    assert re.search(r'\d+ (skipped|stale)', out) and 'gan_ssl-ham10000-small' in out


def test_collect(home, capsys):
    (home/'results').rename(home/'brought')
    out = say(capsys, 'skinrepro collect brought'.split())
    assert f'{len(records(home))} new' in out and len(records(home)) > 50


@pytest.mark.parametrize('command', [c for c, how in HOW.items() if how == 'test_tables'])
def test_tables(command, home, capsys):
    out = say(capsys, command.split())
    assert 'Not a medical device' in out and len(list((home/'results'/'tables').iterdir())) == 4


def test_the_slurm_file_is_one(tmp_path):
    "README's TOML is what dask-jobqueue takes: a job script with its words."
    pytest.importorskip('dask_jobqueue', reason="dask-jobqueue is not installed: pip install 'skinrepro[cluster]'")
    import tomllib
    conf = tomllib.loads(re.search(r'```toml\n(.*?)```', README, re.S)[1])
    assert set(conf) == {'slurm'} and conf['slurm'].pop('jobs') == 4
    code = f'import json, sys\nfrom dask_jobqueue.slurm import SLURMJob\nprint(SLURMJob("tcp://127.0.0.1:1", name="x", **json.loads(sys.argv[1])).job_script())'
    r = subprocess.run([sys.executable, '-c', code, json.dumps(conf['slurm'])], capture_output=True, text=True, cwd=tmp_path)
    assert r.returncode == 0 and '--gres=gpu:1' in r.stdout and '08:00:00' in r.stdout, r.stderr


def test_the_encoder_of_readme(home):
    code = re.search(r'```python\n(.*?)```', README, re.S)[1]
    with pytest.raises(UserError, match="no record has the id 'RUN_ID'"): exec(code, {})


# ---- what the workflows do

FLOWS = {f.stem: yaml.safe_load(f.read_text())['jobs'] for f in (ROOT/'.github'/'workflows').glob('*.yml')}


def script(flow, job, name): return next(s['run'] for s in FLOWS[flow][job]['steps'] if s.get('name') == name)


def bash(text, home, **env): # with our programs where the workflow has its own
    (home/'.venv').mkdir(exist_ok=True)
    for part in (BIN, BIN.parent/'lib', BIN.parent/'pyvenv.cfg'): # what makes it a python with our packages
        if not (at := home/'.venv'/part.name).exists() and part.exists(): at.symlink_to(part)
    r = subprocess.run(['bash', '-euo', 'pipefail', '-c', text], cwd=home, capture_output=True, text=True, timeout=900, env=environment(home/'cache', SKINREPRO_HOME=str(home), GITHUB_STEP_SUMMARY=str(home/'summary.md'), **env))
    assert r.returncode == 0, r.stdout[-1500:] + r.stderr[-1500:]
    return r.stdout


def test_papers_workflow_plans_every_paper(home, capsys):
    from skinrepro.companion.runner import PAPERS
    command = script('papers', 'grid', 'Run the grid')
    assert command.startswith('.venv/bin/skinrepro run ')
    for paper in PAPERS:
        if paper == 'toy_six': continue
        words = command.replace('"$PAPER"', paper).replace('"$PRESET"', 'smoke').replace('"$SEED"', '1').split()
        assert 'to do' in say(capsys, [*words, '--dry-run'])


def test_papers_workflow_ends_in_tables(home):
    bash(script('papers', 'grid', "Table, on the job's page"), home, PAPER='gan_ssl', PRESET='small')
    assert (home/'summary.md').read_text().startswith('# gan_ssl, ham10000, small') and '(3)' in (home/'summary.md').read_text()


def test_papers_workflow_brings_seeds_together(home):
    "Every seed's job leaves an artefact of its own; the summary has them all."
    (home/'results').rename(home/'all')
    for k in range(3):
        for f in (home/'all').rglob(f'*-seed{k}-*/run.json'): (target := home/'brought'/f'records-gan_ssl-small-{k}'/'results'/f.relative_to(home/'all')).parent.mkdir(parents=True); shutil.copy(f, target)
    shutil.rmtree(home/'all')
    out = bash(script('papers', 'summary', "All seeds together, on the job's page"), home, PRESETS='small', PAPERS='gan_ssl')
    assert 'new' in out and '(3)' in (home/'summary.md').read_text()


@pytest.mark.slow
def test_papers_workflow_redraws_the_page(home):
    (home/'nbs').symlink_to(ROOT/'nbs')
    bash(script('papers', 'grid', "The paper's page, redrawn from the records"), home, PAPER='gan_ssl', PRESET='smoke', SEED='0')
    assert 'not run' in (home/'pages'/'gan_ssl-smoke-0.ipynb').read_text()


def test_clean_and_exported_as_the_workflow_asks():
    assert script('test', 'cpu', 'Notebooks are clean and exported').split() == 'make export .venv/bin/nbdev-clean git diff --exit-code'.split() # what tests/test_notebooks.py tests
    assert make('-n', 'export').stdout.split() == [f'{BIN}/nbdev-export', '&&', f'{BIN}/nbdev-clean']
