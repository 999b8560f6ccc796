"The papers' numbers as data: refused slips, a second reading, and the paper lint."
import csv
import hashlib
import re

import numpy as np
import pandas as pd
import pytest
from second_reading import SECOND

from skinrepro.companion.published import (FIELDS, PAPERS, STANDS_FOR, TABLES, check_published, lint, load_published, number, paper_dataset, paper_key,
                                           pixels_only, printed_rows, printed_table, published_for, table_names)
from skinrepro.core import UserError

REVIEWED = '18e1938b5f140b39' # of the values as last read against the papers: after a deliberate change, read the changed rows again and put the new digest here

# what the papers contradict, by checklist item; everything else must agree
CONTRADICTIONS = set('''P0-02/bcn
P0-03
P0-24/wording_10k
P0-24/wording_20k
P0-59/highest/BCN20000
P1-35/rosacea
P1-35/urticaria
P1-67
P2-36/balanced_accuracy
P3-08/pool
P3-09/pool
P3-38/fpr
P4-61/vasc/f1/twice
P4-62
P4-87/support'''.split())


@pytest.fixture
def df(): return load_published()


@pytest.fixture
def raw(root): return list(csv.DictReader((root/'skinrepro'/'companion'/'published.csv').open(encoding='utf-8')))


def reviewed(raw): return hashlib.sha256('\n'.join('|'.join(r[c] for c in FIELDS if c != 'note') for r in raw).encode()).hexdigest()[:16]


def test_file_is_whole(raw, df):
    assert list(raw[0]) == list(FIELDS) and 600 < len(raw) <= len(df)
    assert all(None not in r and None not in r.values() for r in raw) # no stray or missing comma
    assert df.value.dtype == float and df.id.is_unique and set(df.paper) <= set(PAPERS)


def test_file_is_the_one_that_was_reviewed(raw):
    assert reviewed(raw) == REVIEWED, f'published.csv changed: read the changed rows against the papers, then set REVIEWED to {reviewed(raw)!r}'


@pytest.mark.parametrize('name', SECOND)
def test_tables_hold_what_a_second_reading_found(name):
    "Typed apart from the file, from another source: every number of every printed table."
    rows = printed_rows(name)
    got = [[x for c in rows[rows.row == r].itertuples() for x in (c.value, c.spread) if not np.isnan(x)] for r in rows.row.unique()]
    want = [[float(x) for x in line.split()[1:]] for line in SECOND[name].strip().splitlines()]
    assert got == want


def test_every_printed_table_has_a_second_reading(): assert set(SECOND) == set(TABLES)


@pytest.mark.data
@pytest.mark.parametrize('paper', PAPERS)
def test_printed_numbers_stand_in_the_text(raw, data_dir, paper):
    "Every printed value's digits occur in the paper."
    found = sorted((data_dir.parent/'papers').glob(f'{PAPERS[paper]}_*.md'))
    if not found: pytest.skip("the papers' texts are not beside the data")
    text = re.sub(r'(?<=\d)[,\u2009\u00a0 ](?=\d{3}\b)', '', found[0].read_text(encoding='utf-8')) # 34 665 and 10,015
    text = re.sub(r'\b(\d+)k\b', r'\g<1>000', text, flags=re.I)
    numbers = set(re.findall(r'\d*\.?\d+', text)) | set(re.findall(r'\d+', text))
    words = dict(zip('one two three four five six seven eight nine ten'.split(), map(str, range(1, 11)))) | {'single': '1'}
    numbers |= {d for w, d in words.items() if re.search(rf'\b{w}\b', text, re.I)}
    known = {float(n) for n in numbers}
    missing = [r['id'] for r in raw if r['paper'] == paper and r['provenance'] == 'printed' and abs(float(r['value'])) not in known]
    assert not missing, missing


def test_lint_finds_the_contradictions_and_no_others():
    found = lint()
    assert set(found[~found.agree].id) == CONTRADICTIONS, found[~found.agree & ~found.id.isin(CONTRADICTIONS)]


def test_lint_covers_what_the_checklist_marks():
    want = 'P0-24 P0-59 P0-62 P0-81 P1-04 P1-29 P1-32 P1-35 P1-70 P2-34 P2-36 P3-08 P3-10 P3-38 P3-68 P4-02 P4-03 P4-62 P4-64 P4-65 P4-66 P4-67 P4-68 P4-85 P4-88 P4-89'.split()
    assert set(want) <= {i.split('/')[0] for i in lint().id}
    assert list(lint().columns) == ['id', 'paper', 'stated', 'follows', 'agree', 'sentence'] and lint().map(bool).drop(columns='agree').all(axis=None)


def test_lint_notices_most_slips(df):
    "Change one value at a time by a fifth: how many of the values take part in some check?"
    before = lint().set_index('id')[['agree', 'follows']]
    at = np.linspace(0, len(df) - 1, 60).astype(int)
    def noticed(k):
        after = lint(df.assign(value=df.value.where(df.index != k, df.value*1.2 + .01))).set_index('id')
        return not after.agree.equals(before.agree)
    assert np.mean([noticed(k) for k in at]) > .5


@pytest.mark.parametrize('id', ['P0-60/random/HAM10000', 'P0-61/byol_da/BCN20000', 'P0-62/byol_da/HAM10000', 'P0-81/simclr_da/BCN20000'])
def test_lint_catches_a_slip(df, id):
    slipped = lint(df.assign(value=df.value*np.where(df.id == id, 1.02, 1)))
    assert set(slipped[~slipped.agree].id) - CONTRADICTIONS


def test_lint_names_a_lost_row(df):
    with pytest.raises(UserError, match="needs the published value 'P0-61/byol_da/BCN20000'"): lint(df[df.id != 'P0-61/byol_da/BCN20000'])


@pytest.mark.parametrize('column, value, says', [
    ('id', 'P0-60/random/BCN20000', 'appears twice'), ('paper', 'gan', "unknown paper 'gan'"), ('unit', '', 'has no unit'), ('value', '34,73', "value '34,73'"),
    ('value', '', 'must be a number'), ('value', 'inf', 'must be a number'), ('spread', 'x', "spread 'x'"), ('spread_kind', '', 'no kind'), ('n', 'five', "n 'five'"), ('low', 'x', "low 'x'"),
    ('provenance', 'guess', "provenance 'guess'"), ('item', 'P1-60', 'must belong'), ('item', 'P0-61', 'must start with its item'), ('column', '', 'has no column')])
def test_slips_are_named(raw, column, value, says):
    bad = pd.DataFrame(raw); bad.loc[2, column] = value
    with pytest.raises(UserError, match=says) as e: check_published(bad)
    assert (value if column == 'id' else raw[2]['id']) in str(e.value)


def test_missing_column_is_named(raw):
    with pytest.raises(UserError, match="no column 'unit'"): check_published(pd.DataFrame(raw).drop(columns='unit'))


def test_lookup():
    assert published_for('gan_ssl', 'byol_da', 'BCN20000').value == 46.88
    assert published_for('gan_ssl', 'simclr_da', 'HAM10000', 'accuracy_gain').value == .68
    assert published_for('gan_ssl', 'byol_da', 'BCN20000', 'macro_f1') is None
    assert published_for('gan_ssl', 'byol_da', paper_dataset('gan_ssl', 'phantom')) is None
    assert (published_for('P4', 'supervised', 'ISIC-2019').value, published_for('P4', 'supervised', 'ISIC-2019', 'f1_vasc').value) == (.663, .35) # the later and the more exact one [P4-62]
    with pytest.raises(UserError, match='unknown paper'): published_for('gan', 'simclr', 'HAM10000')


def test_reader_cannot_spoil_the_file():
    for paper in (None, 'gan_ssl'):
        mine = load_published(paper); mine.loc[0, 'value'] = -1
    assert load_published().value[0] == 26.05


def test_datasets(df):
    assert set(df.dataset) - {''} <= set(STANDS_FOR)
    assert paper_dataset('gan_ssl', 'isic2019_all') == paper_dataset('gan_ssl', 'isic2019_bcn') == 'BCN20000'
    assert paper_dataset('semi_gan', 'ham10000') == 'ISIC-2018' and paper_dataset('dermgan', 'ham10000') is None and paper_dataset('label_fraction', 'ham10000') is None


def test_names():
    assert paper_key('p3') == paper_key('dermgan') == 'dermgan' and table_names('P4-T7') == ['P4-T7']
    assert printed_table('P4-T3').shape == (3, 2) and number(.9, 2) == '0.90' and number(float('nan')) == '–'


def test_pixels_stay_pixels(df):
    assert set(pixels_only()['item'].str[:2]) >= {'P0', 'P1', 'P2', 'P3', 'P4'}
    for q in (1, 3, 5, 7):
        for extra in ('0', '10k', '20k'): assert (published_for('gan_ssl', f'simclr_{q}k_{extra}', 'BCN20000') is None) == ((q, extra) not in ((5, '0'), (5, '20k')))
    assert not len(df[(df.metric == 'accuracy') & (df.arm == 'moco_50')]) # P1-69


@pytest.mark.data
def test_counts_are_those_of_the_files(df, data_dir):
    if not (data_dir/'ISIC2019'/'ISIC_2019_Training_GroundTruth.csv').is_file() or not (data_dir/'HAM10000'/'HAM10000_metadata.csv').is_file():
        pytest.skip('the ISIC 2019 or HAM10000 label file is absent')
    p0 = df[df.paper == 'gan_ssl']
    def stated(dataset, metric): return {i.split('/')[1]: int(v) for i, v in p0[(p0.dataset == dataset) & (p0.metric == metric)][['id', 'value']].itertuples(index=False) if '/all/' not in i}
    ham = pd.read_csv(data_dir/'HAM10000'/'HAM10000_metadata.csv').dx.str.upper().value_counts().to_dict()
    assert stated('HAM10000', 'images_in_files') == ham
    truth = pd.read_csv(data_dir/'ISIC2019'/'ISIC_2019_Training_GroundTruth.csv', index_col='image').drop(columns='UNK')
    assert stated('BCN20000', 'images_in_files') == truth.sum().astype(int).to_dict()
    meta = pd.read_csv(data_dir/'ISIC2019'/'ISIC_2019_Training_Metadata.csv', index_col='image')
    bcn = truth[meta.lesion_id.reindex(truth.index).fillna('').str.startswith('BCN')]
    assert stated('BCN20000', 'images_in_bcn_part') == bcn.sum().astype(int).to_dict()
