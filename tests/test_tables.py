"Tables: the published ones by name, ours beside them, computed bold, gaps with their state, four formats, one scoreboard."
import html
import json
import re
from html.parser import HTMLParser

import nbformat
import numpy as np
import pandas as pd
import pytest
from lab import call
from test_damage import made_up

from skinrepro.companion.published import PAPERS, TABLES, printed_rows, table_names
from skinrepro.companion.runner import plan
from skinrepro.companion.tables import (all_verdicts, compute_spent, one_sentence, paper_cells, paper_table, pretty, report, report_table, rows, scoreboard, tally, verdicts)
from skinrepro.core import UserError

VALUE = dict(random=.50, simclr=.70, byol=.60)


@pytest.fixture
def grid(tmp_path, monkeypatch):
    "Records of all arms, three seeds, both protocols, with a spread of one point."
    monkeypatch.setenv('SKINREPRO_RESULTS', str(tmp_path/'results'))
    cells = plan(preset='small', protocols=('paper', 'strict'), arms=list(VALUE), seeds=(0, 1, 2))
    return {(c.cfg.arm, c.protocols, c.cfg.seed): made_up(c, VALUE[c.cfg.arm] + .01*c.cfg.seed) for c in cells}


@pytest.mark.parametrize('name', TABLES)
def test_every_published_table_has_its_shape(name):
    cells = paper_cells(name)
    text, best = paper_table(cells)
    printed = printed_rows(name)
    own = text[text.source == 'published']
    assert list(own['']) == list(printed.row.unique()) and list(text.columns[2:]) == list(printed.column.unique()) and best.shape == (len(text), text.shape[1] - 2)
    assert set(text.source) == {'published', 'ours, paper', 'ours, strict'} or any('ours, released' == s for s in text.source)
    for r in printed.itertuples(): # every printed value is where the paper has it
        assert own[own[''] == r.row][r.column].iloc[0].startswith(f'{r.value:.{r.places}f}')
    gaps = text[text.source != 'published'].drop(columns=['', 'source']).to_numpy().ravel()
    assert all(g and not g.isspace() or g == '' for g in gaps) and set(gaps) & {'not run', '–'} or name.startswith('P0')


def test_ours_stand_under_theirs(grid):
    text, best = paper_table(paper_cells('P0-T1', protocols=['paper']))
    assert text.HAM10000.tolist() == ['67.87 ± 0.38', '51.00 ± 1.00 (3)', '71.84 ± 0.23', '71.00 ± 1.00 (3)', '71.37 ± 0.36', '61.00 ± 1.00 (3)']
    assert all('not run' in t for t in text.BCN20000[1::2])


def test_best_is_computed(grid):
    text, best = paper_table(paper_cells('P0-T1', protocols=['paper']))
    ham = list(text.columns).index('HAM10000') - 2
    assert best[:, ham].tolist() == [False, False, True, True, False, False]
    assert not best[1::2, 1 - ham].any() # nobody wins a column without runs
    f = grid['simclr', ('paper',), 0]
    r = json.loads(f.read_text())
    for seed in range(3): grid['simclr', ('paper',), seed].unlink()
    assert not paper_table(paper_cells('P0-T1', protocols=['paper']))[1][1::2, ham].any() and r['id']


def test_ties_share_the_bold():
    text, best = paper_table(paper_cells('P1-T1a'))
    own = text[text.source == 'published'].reset_index(drop=True)
    marks = best[(text.source == 'published').to_numpy()]
    tied = [k for k in range(len(own)) if marks[k].sum() > 3]
    assert tied # erysipelas at 10 %: IN and SS .80 [P1-70]
    for k in range(len(own)): assert marks[k].sum() >= 3


def test_fid_is_best_when_low():
    text, best = paper_table(paper_cells('P3-T1'))
    assert text[text.source == 'published'].columns[2:][best[0]].tolist() == ['DermGAN'] # real data is a floor, not a rival


def test_long_table_has_every_column(grid):
    df = rows()
    assert {'paper', 'dataset', 'arm', 'metric', 'published', 'mean', 'sd', 'runs', 'low', 'high', 'difference', 'state', 'ids'} <= set(df.columns)
    r = df.query('arm == "simclr" and protocol == "paper" and metric == "accuracy"').iloc[0]
    assert (round(r['mean'], 9), round(r.sd, 9), r.runs, r.published) == (.71, .01, 3, .7184) and r.difference == pytest.approx(-.0084)
    assert (r.low, r.high) == pytest.approx((.71 - 4.302652730*.01/3**.5, .71 + 4.302652730*.01/3**.5)) and r.state == '3 done' and len(r.ids.split()) == 3
    assert df[df.best].groupby(['protocol', 'metric']).arm.agg(list).map(lambda a: a == ['simclr']).all()
    assert 'majority share' in pretty(df)


class Page(HTMLParser):
    def __init__(self): super().__init__(); self.links, self.cells, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == 'a': self.links.append(dict(attrs)['href'])
        if tag not in ('meta', 'br', 'link'): self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data): self.cells.append(data.strip())


def test_four_formats_say_the_same(grid):
    df, v, path = report()
    md, page, tex, numbers = path.read_text(), Page(), path.with_suffix('.tex').read_text(), pd.read_csv(path.with_suffix('.csv'))
    page.feed(path.with_suffix('.html').read_text()); assert not page.open
    assert numbers['mean'].to_numpy() == pytest.approx(df['mean'].to_numpy(), nan_ok=True)
    for text in (md, ' '.join(page.cells), tex.replace(r'$\pm$', '±')): assert text.count('71.00 ± 1.00 (3)') >= 2
    assert '**71.00 ± 1.00 (3)**' in md and r'\textbf' in tex.replace('bfseries', 'textbf') and r'\toprule' in tex and tex.count(r'\begin{tabular}') == tex.count(r'\end{tabular}') == 1
    assert not re.search(r'(?<!\\)[_%#](?![^\n]*$)', '\n'.join(l for l in tex.splitlines() if not l.startswith('%')).replace('\n', ' ')) or r'\_' in tex
    linked = {(path.parent/l).resolve() for l in page.links}
    assert linked == {f.resolve() for f in grid.values()} # every number leads to its runs
    assert {(path.parent/l).resolve() for l in re.findall(r'\]\(([^)]+run\.json)\)', md)} == linked
    assert 'Not a medical device' in md and any('Not a medical device' in c for c in page.cells)


def test_published_table_files(grid):
    text, bold, path = report_table('P0-T1')
    assert {p.suffix for p in path.parent.glob(f'{path.stem}.*')} == {'.md', '.csv', '.html', '.tex'}
    long = pd.read_csv(path.with_suffix('.csv'))
    assert set(long.source) == {'published', 'ours, paper', 'ours, strict'} and 'run.json)' in path.read_text()
    page = Page(); page.feed(path.with_suffix('.html').read_text())
    assert {(path.parent/l).resolve() for l in page.links} == {f.resolve() for f in grid.values()} and '](' not in ' '.join(page.cells)


def test_stale_is_shown_never_averaged(grid):
    f = grid['simclr', ('paper',), 2]
    r = json.loads(f.read_text()); r['code'] = '0'*12; f.write_text(json.dumps(r))
    row = rows().query('arm == "simclr" and protocol == "paper" and metric == "accuracy"').iloc[0]
    assert row.runs == 2 and row['mean'] == pytest.approx(.705) and row.state == '2 done, 1 stale (code changed; seed 2: 72.00)'
    assert '70.50 ± 0.71 (2) 2 done, 1 stale (code changed; seed 2: 72.00)' in paper_table(paper_cells('P0-T1', protocols=['paper']))[0].HAM10000.tolist()


def test_names(): 
    assert table_names('p1-t1') == ['P1-T1a', 'P1-T1b'] and table_names('P2-T2') == ['P2-T2']
    for bad in ('P2-T3', 'P9-T1', 'T1', ''):
        with pytest.raises(UserError, match='no published table'): table_names(bad)


@pytest.mark.parametrize('words, says', [(['P2-T1'], 'VASC'), (['p4-t4'], 'weighted'), (['P1-T1'], 'larva'), (['P3'], 'dermgan'), (['double_pretraining'], 'barlow'), ([], 'simclr')], ids=str)
def test_command(tmp_path, words, says):
    status, out, err = call(tmp_path, tmp_path/'cache', 'table', *words)
    assert (status, err) == (0, '') and says.lower() in out.lower() and 'not run' in out and 'Not a medical device' in out
    made = {p.suffix for p in (tmp_path/'results'/'tables').iterdir()}
    assert made == {'.md', '.csv', '.html', '.tex'}


@pytest.mark.parametrize('words, says', [(['P2-T7'], "no published table 'P2-T7'"), (['P2', '--protocol', 'strikt'], "did you mean 'strict'?"), (['P7'], "no published table 'P7'"), (['P0', '--preset', 'smal'], "unknown preset")], ids=str)
def test_command_refuses(tmp_path, words, says):
    status, out, err = call(tmp_path, tmp_path/'cache', 'table', *words)
    assert status == 2 and says in err and len(err.strip().splitlines()) == 1 and not (tmp_path/'results').exists()


# verdicts from records

def test_verdicts_stand_side_by_side(grid):
    v = verdicts().set_index(['claim', 'protocol'])
    assert v.verdict['P0-72/simclr', 'paper'] == 'holds here (small, ham10000)' and v.verdict['P0-72/simclr', 'strict'] == 'holds here (small, strict, ham10000)'
    board = scoreboard(all_verdicts(['gan_ssl'])).set_index('item')
    assert board.paper['P0-72'] == board.strict['P0-72'] == 'holds here (2 of 2 parts decided)' and board.place['P0-72'] == 'ham10000, small'


def test_other_way_round(grid):
    for (arm, protocols, seed), f in grid.items():
        if arm == 'simclr': r = json.loads(f.read_text()); r['metrics'][0]['value'] = .3 + .01*seed; f.write_text(json.dumps(r))
    v = verdicts().set_index(['claim', 'protocol'])
    assert v.verdict['P0-72/simclr', 'paper'] == 'does not hold here (small, ham10000)'
    assert scoreboard(all_verdicts(['gan_ssl'])).set_index('item').paper['P0-72'] == 'does not hold here (2 of 2 parts decided)' # one part is not enough


def test_a_second_place_speaks_only_where_it_has_runs(grid):
    alone = scoreboard(all_verdicts(['gan_ssl'])); counted = tally(alone)
    for c in plan(preset='small', dataset='bcn20000', protocols=('paper',), arms=list(VALUE), seeds=(0,)): made_up(c, .5)
    board = scoreboard(all_verdicts(['gan_ssl'])); two = board[board['item'].duplicated(keep=False)]
    assert {*two['item']} >= {'P0-72'} and two.place.tolist() == ['bcn20000, small', 'ham10000, small']*(len(two)//2) and two.paper.str.startswith(('too few', 'holds', 'inconclusive')).all()
    assert tally(board).equals(counted) and set(board['item']) == set(alone['item']) # an answer counts, not a pilot


def test_two_seeds_are_no_verdict(grid):
    for p in (('paper',), ('strict',)): grid['random', p, 1].unlink()
    v = verdicts().set_index(['claim', 'protocol'])
    assert (v.loc[['P0-72/simclr', 'P0-72/byol']].verdict == 'too few seeds').all()


def test_without_records(tmp_path, monkeypatch):
    monkeypatch.setenv('SKINREPRO_RESULTS', str(tmp_path))
    df = all_verdicts()
    assert set(df.verdict.str.split(' (', regex=False).str[0]) == {'not run', 'cannot be tested here'} and df['diff'].isna().all()
    assert set(df['item'].str[:2]) >= {'P0', 'P1', 'P2', 'P3', 'P4'} and compute_spent().empty
    assert tally(scoreboard(df)).to_numpy().sum() == df['item'].nunique()
    assert 'not run' in one_sentence(df[df.paper == 'gan_ssl'], 'P0')


def test_beside_never_decides(grid):
    "McNemar and the paired bootstrap speak of the images of one seed; the verdict does not change with them."
    before = verdicts().set_index(['claim', 'protocol']).verdict['P0-72/simclr', 'paper']
    y = np.zeros(100, np.uint8)
    for (arm, _, _), f in grid.items(): # the images say the opposite of the metrics
        pred = np.where(np.arange(100) < (90 if arm == 'random' else 10), 0, 1).astype(np.uint8)
        np.savez_compressed(f.with_name('figures.npz'), y=y, pred=pred[None])
    r = verdicts().set_index(['claim', 'protocol']).loc[('P0-72/simclr', 'paper')]
    assert r.verdict == before and 'seed 0, n = 100: -80.00' in r.beside and 'McNemar p = ' in r.beside


def test_compute_spent(grid):
    t = compute_spent().reset_index()
    assert t.runs.sum() == 18 and t.hours.sum() == pytest.approx(18/3600) and (t.paper == 'P0').all()


def test_a_claim_that_needs_weights(grid, monkeypatch):
    "An arm that should start from pretrained weights and did not cannot test the claim."
    from skinrepro.companion import tables
    claims = tables.load_claims()
    k = claims.index[claims.id == 'P0-72/simclr'][0]
    claims.loc[k, 'requires'] = 'pretrained weights'
    monkeypatch.setattr(tables, 'load_claims', lambda paper=None: claims[claims.paper == paper] if paper else claims)
    assert verdicts().set_index(['claim', 'protocol']).verdict['P0-72/simclr', 'paper'] == 'cannot be tested here (no pretrained weights)'
    def made(*names): return [dict(spec=dict(config=dict(weights=n))) for n in names]
    assert tables._has_weights(made('imagenet', 'none')) and not tables._has_weights(made('none', 'none')) # one arm of the two starts from them
    assert not tables._has_weights(made('imagenet', 'textures')) # a stand-in is not what the claim is about


def test_readme_scoreboard_is_that_of_the_records(root, monkeypatch):
    "README is drawn from the records: computed again here, it says the same."
    from skinrepro.companion.tables import decided, markdown
    monkeypatch.setenv('SKINREPRO_RESULTS', str(root/'results'))
    found = all_verdicts(); board = scoreboard(found); readme = (root/'README.md').read_text()
    assert markdown(tally(board).reset_index()) in readme and markdown(decided(board)) in readme
    page = nbformat.read(root/'nbs'/'results'/'90_scoreboard.ipynb', 4)
    shown = html.unescape(' '.join(d for c in page.cells for o in c.get('outputs', []) for d in (o.get('data', {}).get('text/html'), o.get('data', {}).get('text/markdown')) if d))
    for r in found.itertuples(): assert not r.n or r.sentence in shown, r.claim


def test_committed_tables_are_those_of_the_records(root, tmp_path, monkeypatch):
    import shutil
    shutil.copytree(root/'results', tmp_path/'results')
    monkeypatch.setenv('SKINREPRO_RESULTS', str(tmp_path/'results'))
    for made in (tmp_path/'results'/'tables').glob('*-small.md'):
        before = made.read_text()
        paper, dataset = made.stem.removesuffix('-small').split('-', 1)
        if paper in PAPERS: report(paper, dataset=dataset)
        else: report_table(f'{paper}-{dataset}')
        assert made.read_text() == before, made.name
