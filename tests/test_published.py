"The papers' numbers as data: refused slips, and the paper lint."
import csv
import re

import numpy as np
import pandas as pd
import pytest

from skinrepro.companion.published import (BASELINE, FIELDS, PAPER_COLUMNS, PIXELS_ONLY, check_published, lint, load_published, paper_column,
                                           printed_table, published_for)
from skinrepro.core import UserError


@pytest.fixture
def df(): return load_published()


@pytest.fixture
def raw(root): return list(csv.DictReader((root/'skinrepro'/'companion'/'published.csv').open(encoding='utf-8')))


def test_file_is_whole(raw, df):
    assert list(raw[0]) == list(FIELDS) and len(raw) == len(df)
    assert all(None not in r and None not in r.values() for r in raw) # no stray or missing comma
    assert df.value.dtype == float and df.id.is_unique


# a second reading of Tables I and II, typed apart from the file
TABLES = {'Table I': '26.05 1.24 67.87 0.38 / 34.73 1.07 71.84 0.23 / 35.71 2.04 71.37 0.36',
          'Table II': '34.73 1.07 71.84 0.23 / 38.55 0.44 72.52 0.25 / 35.71 2.04 71.37 0.36 / 46.88 0.48 74.44 0.28'}


@pytest.mark.parametrize('table', TABLES)
def test_tables_hold_what_is_printed(table):
    got = printed_table('gan_ssl', table)[['BCN20000', 'HAM10000']].to_numpy()
    want = [re.findall(r'\S+ \S+', row) for row in TABLES[table].split(' / ')]
    assert [[c.replace(' ± ', ' ').removesuffix(' %') for c in row] for row in got] == want


def test_accuracies_carry_their_spread(df):
    acc = df[df.metric == 'accuracy']
    assert (acc.spread_kind == 'sd').all() and acc.spread.notna().all() and (acc.n == 5).all() and (acc.unit == '%').all()


def test_lint_finds_nothing():
    found = lint()
    assert found.ok.all(), found[~found.ok]
    assert {i.split('/')[0] for i in found.id} >= {'P0-01', 'P0-02', 'P0-03', 'P0-23', 'P0-61', 'P0-62', 'P0-69', 'P0-72', 'P0-81'}


@pytest.mark.parametrize('id', ['P0-60/random/HAM10000', 'P0-60/simclr/HAM10000', 'P0-61/byol_da/BCN20000', 'P0-61/simclr/BCN20000', 'P0-62/byol_da/HAM10000',
                                'P0-81/simclr_da/BCN20000', 'P0-02/NV/BCN20000', 'P0-03/DF/HAM10000', 'P0-05/pool/HAM10000', 'P0-23/simclr_7k_20k/BCN20000'])
def test_lint_catches_a_slip(df, id):
    assert not lint(df.assign(value=df.value*np.where(df.id == id, 1.02, 1))).ok.all()


def test_lint_catches_a_slipped_spread(df):
    assert not lint(df.assign(spread=df.spread.where(df.id != 'P0-61/byol_da/HAM10000', .82))).ok.all()


@pytest.mark.parametrize('column, value, says', [
    ('id', 'P0-60/random/BCN20000', 'appears twice'), ('paper', 'gan', "unknown paper 'gan'"), ('unit', '', 'has no unit'), ('value', '34,73', "value '34,73'"),
    ('value', '', 'must be a number'), ('value', 'inf', 'must be a number'), ('spread', 'x', "spread 'x'"), ('spread_kind', '', 'no kind'), ('n', 'five', "n 'five'"),
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
    assert published_for('gan_ssl', 'byol_da', paper_column('gan_ssl', 'phantom')) is None
    with pytest.raises(UserError, match='unknown paper'): published_for('gan', 'simclr', 'HAM10000')


def test_reader_cannot_spoil_the_file():
    for paper in (None, 'gan_ssl'):
        mine = load_published(paper); mine.loc[0, 'value'] = -1
    assert load_published().value[0] == 26.05


def test_every_paper_column_exists(df):
    for paper, columns in PAPER_COLUMNS.items(): assert set(columns.values()) == set(df[df.paper == paper].column)
    assert paper_column('gan_ssl', 'isic2019_all') == paper_column('gan_ssl', 'isic2019_bcn') == 'BCN20000'
    assert paper_column('dermgan', 'ham10000') is None


def test_pixels_stay_pixels():
    assert len(PIXELS_ONLY) == 10
    for p in PIXELS_ONLY: assert published_for(p['paper'], p['row'], p['column'], p['metric']) is None


def test_baselines_have_cells():
    for arm, base in BASELINE.items():
        for row in (arm, base): assert published_for('gan_ssl', row, 'HAM10000') is not None


@pytest.mark.data
def test_counts_are_those_of_the_files(df, data_dir):
    if not (data_dir/'ISIC2019'/'ISIC_2019_Training_GroundTruth.csv').is_file() or not (data_dir/'HAM10000'/'HAM10000_metadata.csv').is_file():
        pytest.skip('the ISIC 2019 or HAM10000 label file is absent')
    def stated(column, metric): return df[(df.column == column) & (df.metric == metric)].set_index('row').value.astype(int).drop('all', errors='ignore').to_dict()
    ham = pd.read_csv(data_dir/'HAM10000'/'HAM10000_metadata.csv').dx.str.upper().value_counts().to_dict()
    assert stated('HAM10000', 'images_in_files') == ham
    truth = pd.read_csv(data_dir/'ISIC2019'/'ISIC_2019_Training_GroundTruth.csv', index_col='image').drop(columns='UNK')
    assert stated('BCN20000', 'images_in_files') == truth.sum().astype(int).to_dict()
    meta = pd.read_csv(data_dir/'ISIC2019'/'ISIC_2019_Training_Metadata.csv', index_col='image')
    bcn = truth[meta.lesion_id.reindex(truth.index).fillna('').str.startswith('BCN')]
    assert stated('BCN20000', 'images_in_bcn_part') == bcn.sum().astype(int).to_dict()
