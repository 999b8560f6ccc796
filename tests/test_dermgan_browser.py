"The forms of P3's page in a real browser: JupyterLab in headless Chromium, driven by mouse events; its answers on the disk, closed in the middle, and gone on with."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
CHROMIUM = next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)
PATIENCE = float(os.environ.get('SKINREPRO_PATIENCE', 240)) # seconds that a page may take


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


def wait(ask, what, seconds=PATIENCE):
    "What `ask` says once it says something."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if (got := ask()): return got
        except (OSError, ValueError): pass
        time.sleep(.3)
    raise AssertionError(f'{what}: not within {seconds:.0f} s')


class Page:
    "One page of a headless Chromium, by its debugging protocol."
    def __init__(self, folder, url):
        import websocket
        self.port, self.sent = free_port(), 0
        self.proc = subprocess.Popen([CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--window-size=1200,1600', f'--user-data-dir={folder}', f'--remote-debugging-port={self.port}',
                                      '--remote-allow-origins=*', url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        tabs = wait(lambda: [t for t in json.load(urllib.request.urlopen(f'http://127.0.0.1:{self.port}/json')) if t['type'] == 'page' and t['url'].startswith('http')], 'Chromium')
        self.ws = websocket.create_connection(tabs[0]['webSocketDebuggerUrl'], timeout=PATIENCE)

    def send(self, method, **params):
        self.sent += 1; self.ws.send(json.dumps(dict(id=self.sent, method=method, params=params)))
        while (got := json.loads(self.ws.recv())).get('id') != self.sent: pass
        return got.get('result', {})

    def js(self, text): return self.send('Runtime.evaluate', expression=text, returnByValue=True, awaitPromise=True).get('result', {}).get('value')

    def mouse(self, css, k=0):
        "A real click on the k-th element."
        at = wait(lambda: self.js(f"(() => {{ const e = document.querySelectorAll('{css}')[{k}]; if (!e) return null; e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); return [r.x + r.width/2, r.y + r.height/2]; }})()"), css)
        for kind in ('mousePressed', 'mouseReleased'): self.send('Input.dispatchMouseEvent', type=kind, x=at[0], y=at[1], button='left', clickCount=1)

    def shot(self, path):
        import base64
        Path(path).write_bytes(base64.b64decode(self.send('Page.captureScreenshot')['data']))

    def close(self): self.ws.close(); self.proc.kill(); self.proc.wait()


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab with two notebooks: the form of a study, and the one that draws."
    if not CHROMIUM: pytest.skip('no Chromium: apt-get install chromium')
    for need in ('ipywidgets', 'jupyterlab', 'websocket'): pytest.importorskip(need, reason=f'{need} is not installed')
    import nbformat
    from skinrepro.papers.dermgan import make_study
    x = lambda v: np.full((4, 32, 32, 3), v, np.uint8)
    make_study(tmp_path/'kit', dict(mel=(x(60), x(200)), nv=(x(90), x(230))), each=3, shown=6)
    cells = dict(study="from skinrepro.papers.dermgan import Rating, live, study_form\nassert live()\nstudy_form(Rating('kit', 'browser'))",
                 paint="from skinrepro.papers.dermgan import Painter, paint_form, unet\nG = unet(32, 4)\nfor w in G.parameters(): w.data *= 5 # initial weights are so small that every picture is grey\npaint_form(Painter(G, ['mel', 'nv'], 32))")
    for name, text in cells.items(): nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text)], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), tmp_path/f'{name}.ipynb')
    port, home = free_port(), tmp_path/'jupyter'
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get('PYTHONPATH', '')]), JUPYTER_CONFIG_DIR=str(home), JUPYTER_DATA_DIR=str(home/'data'), JUPYTER_RUNTIME_DIR=str(home/'run'))
    log = open(tmp_path/'lab.log', 'w')
    proc = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=', '--ServerApp.password=', '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
                            cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        wait(lambda: urllib.request.urlopen(f'http://127.0.0.1:{port}/api').status == 200, 'JupyterLab')
        yield tmp_path, lambda name, k: opened(tmp_path/f'chromium-{k}', f'http://127.0.0.1:{port}/lab/tree/{name}.ipynb?reset')
    finally: proc.terminate(); proc.wait(20); log.close()


def opened(folder, url):
    "A page with the notebook run."
    page = Page(folder, url)
    wait(lambda: page.js("!!(window.jupyterapp && jupyterapp.shell.currentWidget && jupyterapp.shell.currentWidget.content && jupyterapp.shell.currentWidget.sessionContext && jupyterapp.shell.currentWidget.sessionContext.session && jupyterapp.shell.currentWidget.sessionContext.session.kernel)"), 'the notebook')
    page.js("jupyterapp.commands.execute('notebook:run-all-cells')")
    return page


TILE, TOGGLE, ON = '.jp-OutputArea .widget-image', '.jp-OutputArea .widget-toggle-button', '.jp-OutputArea .widget-toggle-button.mod-active'
BUTTON = '.jp-OutputArea .widget-button:not(.widget-toggle-button)'


def test_a_rater_clicks_stops_and_goes_on(lab):
    from skinrepro.papers.dermgan import Rating, read_answers, score_study
    folder, browse = lab; answers = folder/'kit'/'answers'/'browser.json'; count = lambda page, css: page.js(f"document.querySelectorAll('{css}').length")
    page = browse('study', 1)
    wait(lambda: count(page, TOGGLE) == 6 and count(page, TILE) == 6, 'the form'); order = Rating(folder/'kit', 'browser').images
    shown = lambda: json.loads(answers.read_text())
    for k, at in enumerate((1, 4)): # saved after every click
        page.mouse(TOGGLE, at); wait(lambda: answers.exists() and shown()['clicks'] == k + 1, 'the click on the disk'); assert order[at] in shown()['chosen']
    if (keep := os.environ.get('SKINREPRO_SHOTS')): page.shot(Path(keep)/'study.png')
    page.mouse(TOGGLE, 4); wait(lambda: shown()['clicks'] == 3, 'taken back'); assert shown()['chosen'] == [order[1]]
    page.close() # in the middle of a page
    page = browse('study', 2)
    wait(lambda: count(page, TOGGLE) == 6 and count(page, ON) == 1, 'the same page, with its choice'); assert shown()['page'] == 0
    page.mouse(BUTTON, 1); wait(lambda: shown()['page'] == 1 and count(page, ON) == 0, 'the next page')
    page.mouse(TOGGLE, 0); wait(lambda: len(shown()['chosen']) == 2, 'a choice on page 2')
    page.mouse(BUTTON, 1); wait(lambda: 'Thank you' in (page.js('document.body.innerText') or ''), 'the end'); page.close()
    table = score_study(read_answers(folder/'kit'), 50)
    assert table.loc['micro', 'real_n'] == table.loc['micro', 'synthetic_n'] == 6 and round(6*(table.loc['micro', 'real'] + table.loc['micro', 'synthetic'])) == 2


def test_a_reader_moves_the_box(lab):
    folder, browse = lab; page = browse('paint', 3)
    sources = lambda: page.js("Array.from(document.querySelectorAll('.jp-OutputArea .widget-image')).map(e => e.src)") or []
    pixels = lambda: page.js("(async () => { const out = []; for (const e of document.querySelectorAll('.jp-OutputArea .widget-image')) out.push(Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer())).reduce((a, b) => (a*31 + b) % 1000000007, 7)); return out; })()")
    wait(lambda: len(sources()) == 2 and all(sources()), 'the form'); first = pixels()
    def choose(k, text): page.js(f"(() => {{ const e = document.querySelectorAll('.jp-OutputArea .widget-dropdown select')[{k}]; e.selectedIndex = Array.from(e.options).findIndex(o => o.text.trim() === '{text}'); e.dispatchEvent(new Event('change', {{bubbles: true}})); }})()")
    seen = [first]
    def changed(what): seen.append(wait(lambda: (now := pixels()) and now[0] != seen[-1][0] and now[1] != seen[-1][1] and now, what))
    choose(0, 'VI'); changed('a darker map and another picture'); assert 'nearly absent' in page.js('document.body.innerText')
    choose(1, 'nv'); changed('another condition')
    page.js("document.querySelectorAll('.jp-OutputArea .noUi-handle')[0].focus()")
    for _ in range(5): page.send('Input.dispatchKeyEvent', type='keyDown', key='ArrowLeft', code='ArrowLeft', windowsVirtualKeyCode=37); page.send('Input.dispatchKeyEvent', type='keyUp', key='ArrowLeft', code='ArrowLeft', windowsVirtualKeyCode=37)
    changed('the box, drawn wider by its handle')
    if (keep := os.environ.get('SKINREPRO_SHOTS')): page.shot(Path(keep)/'paint.png')
    def still(): now = pixels(); time.sleep(3); return now if pixels() == now else None
    map_, picture = wait(still, 'an end of the redrawing'); page.mouse(BUTTON, 0)
    wait(lambda: (now := pixels()) and now[0] == map_ and now[1] != picture, 'another draw of the same map'); page.close()
