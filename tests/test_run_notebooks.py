"Every notebook runs top to bottom, as a reader would run it; cells flagged slow or gpu are left out."
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(q.startswith(('.', '_')) for q in p.relative_to(ROOT).parts))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT/'nbs'))[:-6])
def test_runs(path, tmp_path):
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if c.cell_type == 'code' and not re.search(r'^#\|\s*(slow|gpu)\s*$', c.source, re.M)]
    os.environ['MPLBACKEND'] = 'agg'
    NotebookClient(nb, timeout=240, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()


def test_paper_page_takes_papermill_parameters(tmp_path):
    "Executed for a preset without records, the page says so instead of failing; names it does not know are not in its cell."
    import papermill
    out = tmp_path/'page.ipynb'
    papermill.execute_notebook(ROOT/'nbs'/'papers'/'60_gan_ssl.ipynb', out, dict(preset='smoke', dataset='phantom', results=str(tmp_path/'results')), kernel_name='python3', progress_bar=False, cwd=tmp_path)
    text = ''.join(str(o.get('data', {}).get('text/plain', '')) for c in nbformat.read(out, 4).cells for o in c.get('outputs', []))
    assert 'not run' in text and 'Claims of P0' in text
