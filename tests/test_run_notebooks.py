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
