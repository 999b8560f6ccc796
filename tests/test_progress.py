"Progress in its three homes: a terminal gets bars that leave no trace, a log gets plain lines, Jupyter gets a bar of its own, and papermill's log stays readable."
import os
import re
import subprocess
import sys

import nbformat
import pytest

WATCH = '''
import sys, time
from types import SimpleNamespace as S
from skinrepro.companion import grid
grid.step_of = lambda job: 'step 40 of 152'
job = S(state='running', over=False, cell=S(name='simclr, phantom, strict, seed 0', needs={}, id='a'), at=S(seconds=61.), seconds=300., why='', wanted=True)
done = S(state='done', over=True, cell=S(name='random', needs={}, id='b'), at=None, seconds=None, why='3 s', wanted=True)
with grid.Watch(dict(a=job, b=done), S(workers=1), print) as watch:
    watch.said -= 20 # a quarter of a minute has passed
    for _ in range(3): watch(); time.sleep(.2)
    watch.say('[1/2] done     random: 3 s')
print('end')
'''


def test_a_log_gets_plain_lines():
    r = subprocess.run([sys.executable, '-c', WATCH], capture_output=True, text=True, timeout=200)
    assert r.returncode == 0 and r.stderr == '', r.stderr
    assert r.stdout.splitlines() == ['[1/2] running  simclr, phantom, strict, seed 0: step 40 of 152, 61 s, about 4 min left', '[1/2] done     random: 3 s', 'end']
    assert not re.search(r'[\x00-\x09\x0b-\x1f]', r.stdout) # no control characters


def test_a_terminal_gets_bars_that_go_away():
    import pty
    main, side = pty.openpty()
    proc = subprocess.Popen([sys.executable, '-c', WATCH], stdout=side, stderr=side, env=dict(os.environ, TERM='xterm', COLUMNS='120'))
    os.close(side); got = b''
    while True:
        try: part = os.read(main, 65536)
        except OSError: break
        if not part: break
        got += part
    assert proc.wait(100) == 0
    text = got.decode()
    assert '━' in text and 'step 40 of 152' in text and '1 of 2 runs, about 4 min left' in text
    assert 'running  simclr' not in text # bars, no lines
    assert '\x1b[2K' in text.split('[1/2] done')[-1] and text.rstrip().endswith('end') # erased


BAR = """import torch
from types import SimpleNamespace as S
from skinrepro.methods.train import Progress
p = Progress(bar=True); p.learn = S(steps=4, step=0, loss=torch.tensor(.5))
p.before_fit()
for k in range(1, 5): p.shown = 0.; p.learn.step = k; p.after_batch()
p.after_fit()"""


def test_jupyter_gets_a_bar(tmp_path):
    "While it runs the bar is HTML; when it has ended nothing of it is stored, so that notebooks stay as they were."
    from nbclient import NotebookClient
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BAR)])
    shown = []
    class Client(NotebookClient):
        def process_message(self, msg, *a, **k): shown.append(msg); return super().process_message(msg, *a, **k)
    Client(nb, timeout=240, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    html = [m['content']['data']['text/html'] for m in shown if m['msg_type'] in ('display_data', 'update_display_data') and 'text/html' in m['content'].get('data', {})]
    assert any('<progress' in h and 'loss 0.500' in h for h in html)
    assert not any('<progress' in o.get('data', {}).get('text/html', '') for o in nb.cells[0].outputs)


@pytest.mark.slow
def test_papermills_log_stays_readable(tmp_path):
    "A lab sheet, executed as the runner does it, draws no bar into papermill's log."
    from skinrepro.companion.runner import sheet_path
    r = subprocess.run([sys.executable, '-m', 'papermill', str(sheet_path('gan_ssl')), str(tmp_path/'out.ipynb'), '-k', 'python3', '-p', 'arm', 'random', '-p', 'protocol', 'strict', '--log-output', '--no-progress-bar'], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert r.returncode == 0 and not re.search(r'[\x00-\x08\x0b-\x1f█]', r.stderr.replace('\t', '')), r.stderr[-2000:]
