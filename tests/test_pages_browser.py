"The notebooks' own HTML in headless Chromium, at desktop and at phone width: no console error, no table wider than its place, no missing picture, words for every picture."
import functools
import http.server
import json
import re
import threading
from html import escape
from pathlib import Path

import nbformat
import pytest
from test_dermgan_browser import CHROMIUM, Page, wait

from skinrepro.companion.site import alt_of

ROOT = Path(__file__).resolve().parents[1]
FOUND = sorted(str(p.relative_to(ROOT/'nbs'))[:-6] for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
FIRST = ('index', 'papers/60_gan_ssl', 'results/90_scoreboard') # the others are slow: make test SLOW=1 runs them
SIZES = dict(desktop=(1280, 900), phone=(390, 844))


def html(page):
    "As nbconvert writes it, with our style and our words for pictures, without what it would fetch from elsewhere."
    from nbconvert import HTMLExporter
    nb = nbformat.read(ROOT/'nbs'/f'{page}.ipynb', 4)
    words = iter([alt_of(c.source) for c in nb.cells for o in c.get('outputs', []) if 'image/png' in o.get('data', {})])
    text, _ = HTMLExporter(template_name='lab').from_notebook_node(nb)
    text = re.sub(r'<script\b[^>]*\bsrc="https?:[^>]*>\s*</script>', '', text)
    text = re.sub(r'alt="No description[^"]*"', lambda m: f'alt="{escape(w)}"' if (w := next(words)) else m[0], text) # nbconvert's lab template knows no words
    text = re.sub(r'<script type="module">.*?</script>', '', text, flags=re.S) # a drawing library from elsewhere
    return text.replace('</head>', f"<link rel=\"icon\" href=\"data:,\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{(ROOT/'nbs'/'styles.css').read_text()}</style></head>", 1)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


class Browser(Page):
    "A page that keeps what its console says."
    def listen(self):
        self.said = []
        for domain in ('Runtime', 'Log', 'Page'): self.send(f'{domain}.enable')

    def send(self, method, **params):
        self.sent += 1; self.ws.send(json.dumps(dict(id=self.sent, method=method, params=params)))
        while (got := json.loads(self.ws.recv())).get('id') != self.sent:
            p = got.get('params', {})
            if got.get('method') == 'Runtime.exceptionThrown' or got.get('method') == 'Runtime.consoleAPICalled' and p['type'] == 'error' or got.get('method') == 'Log.entryAdded' and p['entry']['level'] == 'error': self.said.append(str(p)[:400])
        return got.get('result', {})


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not CHROMIUM: pytest.skip('no Chromium: apt-get install chromium')
    pytest.importorskip('websocket', reason='websocket-client is not installed'); pytest.importorskip('nbconvert', reason='nbconvert is not installed')
    folder = tmp_path_factory.mktemp('pages')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (folder/'start.html').write_text('<!doctype html><link rel="icon" href="data:,"><title>start</title>')
    url = f'http://127.0.0.1:{server.server_port}'
    page = Browser(tmp_path_factory.mktemp('chromium'), f'{url}/start.html'); page.listen()
    yield folder, url, page
    page.close(); server.shutdown()


LOOK = '''(async () => {
    for (const d of document.querySelectorAll('details')) d.open = true;
    const wide = innerWidth, held = e => { for (let p = e; p; p = p.parentElement) if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX) && p.getBoundingClientRect().right <= wide + 1) return true; return false; };
    const images = [...document.querySelectorAll('img')];
    await Promise.all(images.map(i => i.decode().catch(() => 0)));
    return {page: document.documentElement.scrollWidth - wide, tables: [...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > wide + 1 && !held(t)).length, n: document.querySelectorAll('table').length,
            missing: images.filter(i => !i.complete || !i.naturalWidth).length, mute: images.filter(i => !i.alt || i.alt.startsWith('No description')).length, pictures: images.length,
            over: images.filter(i => i.getBoundingClientRect().right > wide + 1 && !held(i)).length, title: document.title};
})()'''


def look(page, url, size):
    width, height = SIZES[size]
    page.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=size == 'phone')
    page.said.clear(); page.send('Page.navigate', url=url)
    wait(lambda: page.js(f"document.readyState === 'complete' && location.href === {json.dumps(url)}"), url)
    return page.js(LOOK)


@pytest.mark.parametrize('name', [pytest.param(p, marks=[] if p in FIRST else pytest.mark.slow) for p in FOUND])
def test_page(name, browser):
    folder, url, page = browser
    file = name.replace('/', '-') + '.html'; (folder/file).write_text(html(name), encoding='utf-8')
    for size in SIZES:
        seen = look(page, f'{url}/{file}', size)
        assert not page.said, (size, page.said)
        assert seen['page'] <= 1 and not seen['tables'] and not seen['over'] and not seen['missing'] and not seen['mute'], (size, seen)
    drawn = sum('image/png' in o.get('data', {}) for c in nbformat.read(ROOT/'nbs'/f'{name}.ipynb', 4).cells for o in c.get('outputs', []))
    assert seen['pictures'] >= drawn


def test_faults_are_found(browser):
    "The look sees what it looks for."
    folder, url, page = browser
    (folder/'bad.html').write_text('<!doctype html><link rel="icon" href="data:,"><table style="width:3000px"><tr><td>x</table><img src="gone.png"><script>console.error("no")</script>')
    seen = look(page, f'{url}/bad.html', 'phone')
    assert seen['tables'] == seen['missing'] == seen['mute'] == 1 and seen['page'] > 1000 and any('no' in s for s in page.said)
