"What names a run and its code, and how records are read: fast ways must say what slow ways say."
import ast
import json
from pathlib import Path

import pytest

import skinrepro
from skinrepro.companion import records
from skinrepro.companion.grid import _copy, _empty
from skinrepro.companion.tables import SHOWN, _beside
from skinrepro.core import UserError, digest

SOURCES = sorted(f for f in Path(skinrepro.__file__).parent.rglob('*.py') if f.name[0] != '_')


@pytest.mark.parametrize('file', SOURCES, ids=lambda f: f.stem)
def test_a_walk_through_statements_finds_what_a_walk_through_everything_finds(file):
    text, kinds = file.read_text(), (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    where = lambda nodes: sorted((n.lineno, n.col_offset) for n in nodes if isinstance(n, kinds))
    assert where(records._tree(text)) == where(ast.walk(ast.parse(text))) != []


NESTED = '''
try: import skinrepro.core
except ImportError:
    import skinrepro.data.splits
else:
    if 1: pass
    elif 2: import skinrepro.data.views
finally:
    for _ in (): pass
    else:
        with open('f'):
            while 0:
                match 1:
                    case 1: from skinrepro.companion import claims
'''

def test_imports_are_found_wherever_they_stand():
    got = records._imported(NESTED, 'skinrepro.papers.x')
    assert {'skinrepro.core', 'skinrepro.data.splits', 'skinrepro.data.views', 'skinrepro.companion.claims'} <= got


CONFIGS = [dict(seed=0, lr=1e-5, big=1e22, tiny=5e-324), dict(seed=3, name='é "quoted" \\ \n', betas=[.9, .999], none=None, yes=True), dict(lr=.1, seed=10**15),
           dict(seed=-1, deep=dict(b=1, a=[1, 1.0, '1'])), dict(seed=0, x=1), dict(seed=0, x=1.), dict(seed=0, x='seed')]

@pytest.mark.parametrize('config', CONFIGS, ids=range(len(CONFIGS)))
def test_the_quick_id_is_the_id(config):
    for seed in (config['seed'], 7, 7): assert records._id('gan_ssl', dict(config, seed=seed)) == digest(['gan_ssl', dict(config, seed=seed)], 8)


def test_configurations_that_no_run_has_get_nobodys_id():
    sly = dict(seed=0, x=records._SEED)
    assert records._id('gan_ssl', sly) != records._id('gan_ssl', dict(sly, seed=1)) and records._id('gan_ssl', dict(x=1)) != digest(['gan_ssl', dict(x=1)], 8)


@pytest.mark.parametrize('text', ['{"a": NaN', '', '{"a": 1,}', '\xff'])
def test_what_is_no_json_is_named(tmp_path, text):
    f = tmp_path/'run.json'; f.write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError, match='run.json.*not whole JSON'): records.read_run(f)


def test_numbers_that_json_does_not_know_are_read_as_python_writes_them(tmp_path):
    f = tmp_path/'run.json'; f.write_text(json.dumps(dict(schema=records.SCHEMA, spec={}, x=float('nan'))))
    with pytest.raises(UserError, match='is not a record'): records.read_run(f)


def test_copies_are_whole_and_never_over_something(tmp_path):
    a, b = tmp_path/'a', tmp_path/'b'
    a.write_bytes(bytes(range(256))*10_000) # more than one piece
    _copy(a, b); assert b.read_bytes() == a.read_bytes()
    with pytest.raises(FileExistsError): _copy(a, b)


def test_a_new_folder_is_empty_whatever_was_there(tmp_path):
    f = tmp_path/'deep'/'er'
    _empty(str(f)); (f/'junk').mkdir(); _empty(str(f))
    assert f.is_dir() and not list(f.iterdir())


def test_only_so_many_pairs_are_compared_image_by_image(tmp_path):
    import numpy as np
    def runs(arm, n):
        for seed in range(n):
            folder = tmp_path/f'{arm}{seed}'; folder.mkdir()
            np.savez(folder/'figures.npz', y=np.arange(20) % 2, pred=np.arange(20) % (2 if arm == 'a' else 3) % 2)
            yield dict(id=f'{arm}{seed}', folder=folder, spec=dict(seed=seed))
    claim = dict(contrast='simclr - random', metric='accuracy')
    said = _beside(claim, [list(runs('a', SHOWN + 2)), list(runs('b', SHOWN + 3))])
    assert f'seed {SHOWN - 1},' in said and f'seed {SHOWN},' not in said and said.endswith('; and 2 more seeds.')
