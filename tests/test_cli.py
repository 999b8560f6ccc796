"The command line: quick without torch, one sentence for every mistake, nothing written when nothing was done."
import json
import subprocess
import sys

import pytest
from lab import call, environment, sentence, tree

from skinrepro.companion import cli

BAD = {
    'unknown preset': (['run', '--preset', 'smok'], "unknown preset 'smok': did you mean 'smoke'"),
    'unknown paper': (['run', '--paper', 'gan_sl'], "unknown paper 'gan_sl': did you mean 'gan_ssl'"),
    'unknown arm': (['run', '--arms', 'simclr,byl'], "unknown arm 'byl' of gan_ssl: did you mean 'byol'"),
    'unknown protocol': (['run', '--protocol', 'strct'], "unknown protocol 'strct': did you mean 'strict'"),
    'unknown data set': (['run', '--dataset', 'ham1000'], "unknown data set 'ham1000': did you mean 'ham10000'"),
    'unknown parameter': (['run', '--set', 'epoch=3'], "unknown parameter 'epoch': did you mean 'epochs'"),
    'mistyped value': (['run', '--set', 'epochs=abc'], "epochs='abc' is not int"),
    'fraction for a count': (['run', '--set', 'epochs=1.5'], 'epochs=1.5 is not int'),
    'not a choice': (['run', '--set', 'group=image2'], "'image' or 'lesion' or 'patient'"),
    'set without value': (['run', '--set', 'epochs'], '--set epochs: write name=value'),
    'bad seeds': (['run', '--seeds', '0,x'], "seeds 'x': give whole numbers"),
    'no such grid file': (['run', 'none.toml'], "the grid file 'none.toml' cannot be read"),
    'no worker': (['run', '--workers', '0'], '--workers 0: give 1 or more'),
    'no address': (['run', '--scheduler', '10.0.0.1:8786'], "'10.0.0.1:8786' is no address of a scheduler"),
    'no cluster file': (['run', '--scheduler', 'none.toml'], "'none.toml' cannot be read"),
    'nothing to collect': (['collect', 'nowhere'], "'nowhere' is no folder"),
    'too many images': (['run', '--set', 'n_images=601', '--arms', 'random'], 'n_images=601, but phantom has 600 images'),
    'missing folder': (['run', '--dataset', 'ham10000', '--data', 'nowhere'], "the data folder 'nowhere' does not exist"),
    'no folder': (['run', '--dataset', 'ham10000'], 'no data folder given: pass --data DIR'),
    'empty folder': (['run', '--dataset', 'ham10000', '--data', '.'], 'HAM10000_metadata'),
    'unknown command': (['rum'], "No such command 'rum'"),
    'unknown option': (['run', '--epochs', '3'], 'No such option'),
    'table of an unknown preset': (['table', '--preset', 'smok'], "unknown preset 'smok'"),
    'table of an unknown paper': (['table', '--paper', 'x'], "unknown paper 'x'"),
    'check of a missing folder': (['data', 'check', 'nowhere'], "the data folder 'nowhere' does not exist"),
    'fetch of an unknown set': (['data', 'fetch', 'ham1000'], "nothing to fetch under 'ham1000': did you mean 'ham10000'"),
}

FORK = '''
import json, os, sys, traceback
from skinrepro.companion import cli, grid, runner, tables
import skinrepro.data.archives, skinrepro.data.phantom
for folder, words in json.load(sys.stdin):
    if not (pid := os.fork()):
        code = 99
        try:
            os.chdir(folder + '/here')
            for fd, name in ((1, 'out'), (2, 'err')): os.dup2(os.open(f'{folder}/{name}', os.O_CREAT | os.O_WRONLY), fd)
            sys.argv = ['skinrepro', *words]
            cli.main()
            code = 0
        except SystemExit as e: code = e.code or 0
        except BaseException: traceback.print_exc()
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)
    with open(folder + '/status', 'w') as f: f.write(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
'''


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    "Every mistake in a process and an empty folder of its own; the processes are forks of one that has imported everything."
    base = tmp_path_factory.mktemp('bad')
    folders = {k: base/str(i) for i, k in enumerate(BAD)}
    for f in folders.values(): (f/'here').mkdir(parents=True)
    subprocess.run([sys.executable, '-c', FORK], input=json.dumps([(str(folders[k]), w) for k, (w, _) in BAD.items()]), text=True, env=environment(base/'cache'), check=True, timeout=200)
    return folders


@pytest.mark.parametrize('case', BAD)
def test_mistake_is_one_sentence(case, answers):
    folder, (words, said) = answers[case], BAD[case]
    assert said in sentence((folder/'err').read_text())
    assert (folder/'status').read_text() == '2' and (folder/'out').read_text() == '' and not list((folder/'here').iterdir())


def test_mistake_through_the_installed_command(tmp_path):
    status, out, err = call(tmp_path, tmp_path/'cache', 'run', '--set', 'epoch=3')
    assert (status, out, sentence(err)) == (2, '', "skinrepro: unknown parameter 'epoch': did you mean 'epochs'?") and not list(tmp_path.iterdir())


WITHOUT = '''
import sys
sys.argv = ['skinrepro', *sys.argv[1:]]
from skinrepro.companion.cli import main
try: main()
except SystemExit as e: print('status', e.code)
print('loaded', sorted({'torch', 'fastai', 'torchvision', 'timm', 'papermill'} & set(sys.modules)))
'''


@pytest.mark.parametrize('words, says', [(['--help'], 'table'), (['run', '--help'], '--preset'), (['table', '--preset', 'smoke'], 'not run'), (['data', 'check', 'set'], ''), (['run', '--dry-run'], 'random, phantom')], ids=' '.join)
def test_no_torch(words, says, tmp_path):
    from PIL import Image
    (tmp_path/'set').mkdir()
    for k in range(2): Image.new('RGB', (8, 8), (99*k, 0, 0)).save(tmp_path/'set'/f'{k}.png')
    (tmp_path/'set'/'labels.csv').write_text('image_id,label\n0,a\n1,b\n')
    r = subprocess.run([sys.executable, '-c', WITHOUT, *words], cwd=tmp_path, env=environment(tmp_path/'cache'), capture_output=True, text=True, timeout=100)
    assert r.stdout.strip().endswith('loaded []') and says in r.stdout and 'Traceback' not in r.stderr, r.stderr


def test_import_is_light():
    code = "import sys, skinrepro; print(sorted({'torch', 'pandas', 'fastai', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_dry_run_writes_nothing(tmp_path):
    status, out, err = call(tmp_path, tmp_path/'cache', 'run', '--dry-run', '--preset', 'paper', '--seeds', '0,1')
    *runs, whole = out.splitlines()
    assert (status, err) == (0, '') and all('to do' in line for line in runs) and len(runs) >= 20 and not list(tmp_path.iterdir())
    wanted = sum('(needed)' not in line for line in runs)
    assert whole == f'{wanted} runs: 0 done, 0 stale, {wanted} to do, and {len(runs) - wanted} more that they need; no earlier runs say how long'


def test_failed_run_is_status_1(monkeypatch):
    "Scripts can trust the exit status: a run that failed is not a success."
    from skinrepro.companion import grid
    monkeypatch.setattr(grid, 'run_grid', lambda *_, **__: dict(failed=1)); monkeypatch.setattr(cli, 'table', lambda **_: None)
    monkeypatch.setattr(sys, 'argv', ['skinrepro', 'run', '--arms', 'random'])
    with pytest.raises(SystemExit) as e: cli.main()
    assert e.value.code == 1
    monkeypatch.setattr(grid, 'run_grid', lambda *_, **__: dict(done=1))
    with pytest.raises(SystemExit) as e: cli.main()
    assert e.value.code == 0


def test_interrupt_is_status_130(monkeypatch, capsys):
    from skinrepro.companion import grid
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(grid, 'run_grid', stop); monkeypatch.setattr(sys, 'argv', ['skinrepro', 'run'])
    with pytest.raises(SystemExit) as e: cli.main()
    assert e.value.code == 130 and 'interrupted' in sentence(capsys.readouterr().err)


@pytest.mark.data
def test_ham10000_without_one_archive(data_dir, tmp_path):
    gone, home = 'HAM10000_images_part_2.zip', tmp_path/'home'
    home.mkdir(); (tmp_path/'set').mkdir()
    for f in (data_dir/'HAM10000').iterdir():
        if f.name != gone: (tmp_path/'set'/f.name).symlink_to(f)
    status, out, err = call(home, tmp_path/'cache', 'run', '--preset', 'small', '--dataset', 'ham10000', '--data', str(tmp_path/'set'))
    assert status == 2 and 'HAM10000_images_part_2' in sentence(err) and out == '' and not tree(home)
