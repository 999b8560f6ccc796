"Notebooks are the source of truth: well formed, clean, exported, and imported downhill only."
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
FOUND = sorted(p for p in NBS.rglob('*.ipynb') if not any(q.startswith(('.', '_')) for q in p.relative_to(NBS).parts))
NAMES = [str(p.relative_to(NBS)) for p in FOUND]
BOOKS = {n: nbformat.read(p, 4) for n, p in zip(NAMES, FOUND)}
MACHINE = re.compile(r'(?<![\w.:/])/(?:root|home|work|tmp|Users|usr|opt|var)/\w')


def exports(nb): return next((m.group(1) for c in nb.cells if c.cell_type == 'code' and (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c.source, re.M))), None)
def exported(nb): return [c.source for c in nb.cells if c.cell_type == 'code' and re.search(r'^#\|\s*exporti?\b', c.source, re.M)]


@pytest.mark.parametrize('name', NAMES)
def test_well_formed(name):
    nb = BOOKS[name]
    nbformat.validate(nb)
    ids = [c.id for c in nb.cells]
    assert len(ids) == len(set(ids)) and nb.nbformat == 4 and nb.nbformat_minor >= 5
    assert nb.cells[0].cell_type == 'markdown' and re.fullmatch(r'# [^\n]+\n\n> [^\n]+', nb.cells[0].source.strip())


@pytest.mark.parametrize('name', NAMES)
def test_stored_outputs(name):
    for c in BOOKS[name].cells:
        for o in c.get('outputs', []):
            assert o.output_type != 'error', o
            text = o.text if o.output_type == 'stream' else '\n'.join(str(v) for k, v in o.data.items() if k.startswith('text/'))
            assert not MACHINE.search(text) and not (o.output_type == 'stream' and o.name == 'stderr'), text[:300]


def test_parameters_cells():
    sheets = [n for n in NAMES if n.startswith('runs/')]
    assert sheets
    for n in sheets:
        assert sum('parameters' in c.metadata.get('tags', []) for c in BOOKS[n].cells) == 1, n
        assert not exported(BOOKS[n]) and exports(BOOKS[n]) is None


def normal(text): return re.sub(r'(File to edit: |^# %% )\S*nbs/', r'\1nbs/', text, flags=re.M)


def test_package_is_what_the_notebooks_export(tmp_path, monkeypatch):
    from nbdev.export import nb_export
    made = {}
    monkeypatch.chdir(tmp_path) # imports become relative to the name `skinrepro`
    for name, path in zip(NAMES, FOUND):
        if not (module := exports(BOOKS[name])): continue
        nb_export(path, lib_path='skinrepro')
        made[module.replace('.', '/') + '.py'] = name
    assert len(made) > 15
    for file, name in made.items(): assert normal((tmp_path/'skinrepro'/file).read_text()) == normal((ROOT/'skinrepro'/file).read_text()), f'skinrepro/{file} is not what {name} exports: run nbdev-export'
    here = {str(p.relative_to(ROOT/'skinrepro')) for p in (ROOT/'skinrepro').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py')}
    assert here == set(made)


def test_clean_keeps_tags(tmp_path):
    "nbdev-clean, with the repository's settings, changes no source and keeps papermill's tags."
    shutil.copytree(NBS, tmp_path/'nbs', ignore=shutil.ignore_patterns('.*', '_*'))
    for f in ('pyproject.toml', 'settings.ini'): shutil.copy(ROOT/f, tmp_path/f)
    r = subprocess.run([Path(sys.executable).parent/'nbdev-clean'], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-1000:]
    key = lambda nb: [(c.id, c.source, c.metadata.get('tags', [])) for c in nb.cells]
    for n in NAMES: assert key(nbformat.read(tmp_path/'nbs'/n, 4)) == key(BOOKS[n]), n
    assert any('parameters' in t for n in NAMES for *_, t in key(BOOKS[n]))


def number(name): return int(m.group(1)) if (m := re.match(r'(\d\d)_', Path(name).name)) else None


def named(sources): # skinrepro modules that exported cells import, inside functions too
    for source in sources:
        for node in ast.walk(ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.M))):
            if isinstance(node, ast.Import): yield from (a.name for a in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module: yield node.module; yield from (f'{node.module}.{a.name}' for a in node.names)


def test_imports_only_from_lower_numbers():
    numbers = {f'skinrepro.{m}': number(n) for n in NAMES if (m := exports(BOOKS[n])) and number(n) is not None}
    assert len(numbers) > 15 and len(set(numbers.values())) == len(numbers)
    seen = 0
    for n in NAMES:
        if number(n) is None: continue
        for m in named(exported(BOOKS[n])):
            if m in numbers: seen += 1; assert numbers[m] < number(n), f'{n} imports {m}'
    assert seen > 20


def test_no_star_imports(): assert not [n for n in NAMES for s in exported(BOOKS[n]) if re.search(r'^\s*from\s+skinrepro\S*\s+import\s+\*', s, re.M)]
