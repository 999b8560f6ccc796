"The 386 items: each with a status, and cited where it is called done."
import re

import pandas as pd
import pytest

from skinrepro.companion.checklist import CHECKLIST_FIELDS, STATUS, check_checklist, cited, deviations, load_checklist, progress, progress_line
from skinrepro.companion.claims import load_claims
from skinrepro.companion.published import PAPERS, load_published

COUNTS = dict(P0=81, P1=70, P2=54, P3=72, P4=109)


@pytest.fixture
def items(): # of the five papers; one that came later has tests of its own
    df = load_checklist()
    return df[df.id.str[:2].isin(COUNTS)].reset_index(drop=True)


def test_every_item_once_and_in_order(items):
    assert list(items.columns) == list(CHECKLIST_FIELDS)
    assert list(items.id) == [f'{p}-{k:02d}' for p, n in COUNTS.items() for k in range(1, n + 1)]
    assert items.statement.str.len().between(8, 300).all() and not items.statement.duplicated().any()


def test_tags_are_known(items):
    assert items.tags.map(lambda t: set(t.split()) <= {*'MEDSHTFC?!', 'computed'} and bool(t)).all()


def test_registry_agrees_with_the_notebooks(items, root):
    assert check_checklist(items, root/'nbs') == []


def test_a_built_paper_is_cited(items): # what this repository says it has built
    assert (items.status[items.id.str.startswith('P0')] == 'done').sum() > 30


@pytest.mark.parametrize('change, says', [
    (dict(status=''), 'has no status'), (dict(status='finished'), "has no status ('finished')"), (dict(status='done', where=''), 'nowhere'),
    (dict(status='done', where='papers/60_gan_ssl'), 'does not cite it'), (dict(status='done', where='papers/69_none'), 'no notebook'),
    (dict(status='deviation', resolution='', tags='M'), 'without a reason'), (dict(status='not applicable', resolution='', tags='M'), 'without a reason'),
    (dict(tags='?', resolution=''), 'no resolution'), (dict(statement=''), 'no statement')])
def test_faults_are_named(items, root, change, says):
    bad = items.copy()
    k = bad.index[bad.id == 'P2-11'][0]
    for c, v in change.items(): bad.loc[k, c] = v
    found = check_checklist(bad, root/'nbs')
    assert len(found) == 1 and found[0].startswith('P2-11 ') and says in found[0]


def test_unknown_field_and_duplicate(items, root):
    bad = items.copy(); bad.loc[bad.id == 'P0-46', 'field'] = 'epoch'
    assert check_checklist(bad, root/'nbs') == ["P0-46 names epoch, which is no field of its paper's Config: correct the field"]
    assert 'appears twice' in check_checklist(pd.concat([items, items.iloc[[5]]]), root/'nbs')[-1]


def test_citation_removed_is_found(items, root, tmp_path):
    "The check reads the notebooks: take one id out of one, and its item fails."
    import shutil
    shutil.copytree(root/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*'))
    page = tmp_path/'nbs'/'papers'/'60_gan_ssl.ipynb'
    page.write_text(re.sub(r'P0-54', 'P0-xx', page.read_text()).replace('P0-53 to P0-58', 'P0-58').replace('P0-53 to P0-55', 'P0-55'))
    assert any(f.startswith('P0-54 ') for f in check_checklist(items, tmp_path/'nbs'))


def test_ranges():
    assert cited('P0-46 to P0-49') == cited('P0-46 to 49') == cited('P0-46–49') == {f'P0-{k}' for k in (46, 47, 48, 49)}
    assert cited('P4-104 and P3-7, SHAPE P2-x') == {'P4-104'}


def test_every_claim_item_is_a_claim(items):
    c = set(items.id[items.tags.str.split().map(lambda t: 'C' in t)])
    assert c <= set(load_claims()['item']) <= set(load_checklist().id)


def test_every_table_item_has_values(items):
    t = items[items.tags.str.split().map(lambda t: 'T' in t)]
    assert set(t.id) <= set(load_published()['item'])


def test_published_items_exist(items): assert set(load_published()['item']) <= set(items.id)


def test_progress(items):
    t = progress(items)
    assert t.sum(axis=1).to_dict() == COUNTS and list(t.columns) == list(STATUS)
    whole = progress() # with papers that came later
    assert f"{whole['open'].sum()} open" in progress_line() and progress_line().startswith(f'checklist: {len(load_checklist())} items')


@pytest.mark.parametrize('paper', PAPERS)
def test_deviations_cover_what_is_open_or_contradictory(items, paper):
    d = deviations(paper)
    mine = items[items.id.str.startswith(PAPERS[paper]) & items.tags.str.contains(r'[?!]')]
    assert set(mine.id) <= set(d.id) and (d['what we do'][d.id.isin(mine.id)] != '').all()


def test_deviations_read_the_code():
    "The value beside an item is the Config's, protocol by protocol."
    d = deviations('P0').set_index('id')
    assert 'transductive = True' in d.paper['P0-07'] and 'transductive = False' in d.strict['P0-07'] and 'temperature = 0.07' in d.paper['P0-17']
