"What can be known of the website without Quarto: the configuration, its pages, its links."
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT/'_quarto.yml').read_text())


def pages(items): return [p for i in items for p in (pages(i['contents']) if isinstance(i, dict) else [i])]


LISTED = pages(CONFIG['website']['sidebar']['contents'])
FOUND = sorted(str(p.relative_to(ROOT/'nbs')) for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def test_sidebar_lists_every_notebook_once():
    assert sorted(LISTED) == FOUND


def test_outputs_are_stored_not_executed():
    assert CONFIG['execute']['enabled'] is False


@pytest.mark.parametrize('page', FOUND)
def test_links_resolve(page):
    for cell in nbformat.read(ROOT/'nbs'/page, 4).cells:
        if cell.cell_type != 'markdown': continue
        for target in re.findall(r'\]\(([^)#\s]+)', cell.source):
            if not re.match(r'https?:', target): assert ((ROOT/'nbs'/page).parent/target).is_file(), f'{page} links to {target}'


def test_readme_is_the_index():
    "README.md is what `make readme` makes of nbs/index.ipynb."
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    c = Config(); c.TagRemovePreprocessor.enabled = True; c.TagRemovePreprocessor.remove_cell_tags = {'hide'}; c.TagRemovePreprocessor.remove_input_tags = {'hide-input'}
    body, _ = MarkdownExporter(config=c).from_filename(str(ROOT/'nbs'/'index.ipynb'))
    assert (ROOT/'README.md').read_text().strip() == body.strip()


def test_nbdev_can_process_the_pages(tmp_path):
    "nbdev's own preparation of the notebooks for Quarto runs."
    copy = tmp_path/'site'
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.venv', '.git', 'artefacts', 'results', '_proc'))
    shutil.copy(copy/'_quarto.yml', copy/'nbs'/'_quarto.yml')
    r = subprocess.run(['python', '-c', 'from nbdev.serve import proc_nbs; print(proc_nbs(n_workers=0))'], cwd=copy, capture_output=True, text=True, env=_env())
    assert r.returncode == 0, r.stderr[-2000:]


def _env():
    import os
    import sys
    return dict(os.environ, PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')


@pytest.mark.quarto
def test_renders(tmp_path):
    copy = tmp_path/'site'
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.venv', '.git', 'artefacts', '_proc'))
    shutil.copy(copy/'_quarto.yml', copy/'nbs'/'_quarto.yml')
    assert subprocess.run(['nbdev-docs'], cwd=copy, env=_env()).returncode == 0
