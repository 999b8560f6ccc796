"The arithmetic of verdicts, against scipy, closed forms and simulation."
import json
import math

import numpy as np
import pytest
from scipy import stats

from skinrepro.companion.claims import (check_claims, contrast, decide, judge, load_claims, mcnemar, paired_bootstrap, spread_ratio, terms, tost, verdict, welch, welch_from_stats, whole)
from skinrepro.companion.published import published_for
from skinrepro.core import UserError
from skinrepro.evaluation.metrics import METRICS

HOME = dict(preset='paper', dataset='ham10000', paper_dataset=('ham10000', 'isic2019_all'))
A, B = [.712, .725, .718, .709, .721], [.688, .702, .679, .695, .684]


@pytest.mark.parametrize('seed', range(10))
def test_welch_equals_scipy(seed):
    g = np.random.default_rng(seed); a, b = g.normal(.7, .02, g.integers(2, 9)), g.normal(.68, .005, g.integers(2, 9))
    w, ref = welch(a, b, .9), stats.ttest_ind(a, b, equal_var=False); ci = ref.confidence_interval(.9)
    assert (w['t'], w['p'], w['df'], w['low'], w['high']) == pytest.approx((ref.statistic, ref.pvalue, ref.df, ci.low, ci.high), rel=1e-10)
    assert welch_from_stats(a.mean(), a.std(ddof=1), len(a), b.mean(), b.std(ddof=1), len(b), .9) == pytest.approx(w)


@pytest.mark.parametrize('arm, base', [('simclr_da', 'simclr'), ('byol_da', 'byol')])
@pytest.mark.parametrize('column', ['BCN20000', 'HAM10000'])
def test_printed_welch(arm, base, column):
    x, y = published_for('gan_ssl', arm, column), published_for('gan_ssl', base, column)
    w = welch_from_stats(x.value, x.spread, x.n, y.value, y.spread, y.n)
    assert w['t'] == pytest.approx(published_for('gan_ssl', arm, column, 'welch_t').value, abs=.05)
    ref = stats.ttest_ind_from_stats(x.value, x.spread, 5, y.value, y.spread, 5, equal_var=False)
    assert (w['t'], w['p']) == pytest.approx((ref.statistic, ref.pvalue))


def test_no_spread_is_no_nan():
    for a, b, t in (([.5]*3, [.4]*3, math.inf), ([.4]*3, [.5]*3, -math.inf), ([.1]*3, [.1]*3, 0)):
        w = welch(a, b)
        assert w['t'] == t and w['low'] == w['high'] == w['diff'] and not any(math.isnan(v) for v in w.values())
    assert welch([.1]*3, [.2, .3, .25])['df'] == pytest.approx(2)
    assert verdict([.5]*3, [.4]*3, **HOME)['verdict'] == 'reproduced'
    assert verdict([.5]*3, [.5]*3, **HOME)['verdict'] == 'inconclusive'


def test_verdicts():
    assert verdict(A, B, **HOME)['verdict'] == 'reproduced'
    assert verdict(B, A, **HOME)['verdict'] == 'not reproduced'
    assert verdict(B, A, 'less', **HOME)['verdict'] == 'reproduced'
    assert verdict(A, B, 'less', **HOME)['verdict'] == 'not reproduced'
    assert verdict([.6, .8, .7], B, **HOME)['verdict'] == 'inconclusive'
    assert verdict(A, B, margin=.05, **HOME)['verdict'] == 'not reproduced'
    assert verdict(A, B, margin=.03, **HOME)['verdict'] == 'inconclusive'


@pytest.mark.parametrize('n', [0, 1, 2])
def test_too_few_seeds(n):
    for v in (verdict(A[:n], B, **HOME), verdict(A, B[:n], **HOME)):
        assert v['verdict'] == 'too few seeds' and v['low'] is v['high'] is v['p'] is None
        assert (v['diff'] is None) == (n == 0)


@pytest.mark.parametrize('change, where', [(dict(preset='small'), 'small, ham10000'), (dict(preset='smoke', dataset='phantom'), 'smoke, phantom'),
                                           (dict(dataset='isic2019_bcn'), 'paper, isic2019_bcn'), (dict(protocol='strict'), 'paper, strict, ham10000'),
                                           (dict(paper_dataset=()), 'paper, ham10000'), (dict(paper_dataset=None), 'paper, ham10000')])
def test_elsewhere_nothing_is_reproduced(change, where):
    got = [verdict(a, b, **{**HOME, **change})['verdict'] for a, b in ((A, B), (B, A), ([.6, .8, .7], B))]
    assert got == [f'holds here ({where})', f'does not hold here ({where})', f'inconclusive here ({where})']


def test_dataset_names_are_not_matched_by_part():
    assert 'here' in verdict(A, B, preset='paper', dataset='ham', paper_dataset='ham10000')['verdict']


def test_verdict_is_plain_json():
    for v in (verdict(A, B, **HOME), verdict([.5]*3, [.4]*3, **HOME), verdict(A[:1], B, **HOME), verdict(A, B, 'equal', **HOME)):
        assert json.loads(json.dumps(v, allow_nan=False)) == v
    assert verdict(A, B, **HOME)['sentence'].startswith('Reproduced: the arm minus its baseline is +2.74 points')


def test_equality():
    near = np.array(B) + .001
    assert verdict(near, B, 'equal', **HOME)['verdict'] == 'reproduced'
    assert verdict(A, B, 'equal', **HOME)['verdict'] == 'inconclusive'
    assert verdict(A, B, 'equal', .005, **HOME)['verdict'] == 'not reproduced'
    assert tost([.5]*3, [.5]*3)['equal'] and not tost([.5]*3, [.6]*3)['equal']


@pytest.mark.parametrize('seed', range(20))
def test_tost_equals_two_scipy_tests(seed):
    g = np.random.default_rng(seed); a, b = g.normal(.7, .01, 5), g.normal(.7, .02, 4); r = tost(a, b)
    p = max(stats.ttest_ind(a + .02, b, equal_var=False, alternative='greater').pvalue, stats.ttest_ind(a - .02, b, equal_var=False, alternative='less').pvalue)
    assert r['p'] == pytest.approx(p) and r['equal'] == (p < .05)


def test_equal_arms_are_rarely_told_apart():
    g = np.random.default_rng(0)
    words = [verdict(g.normal(.7, .02, 5), g.normal(.7, .02, 5), **HOME)['verdict'] for _ in range(1000)]
    assert words.count('reproduced') < 45 and words.count('not reproduced') < 45


def test_bad_input():
    for call, says in ((lambda: verdict(A, B, 'up', **HOME), 'unknown direction'), (lambda: verdict(A, B, margin=-1, **HOME), 'negative'), (lambda: verdict(A, [.1, None, .2], **HOME), 'arm b'),
                       (lambda: welch(A, B, 95), 'pass .95'), (lambda: welch([.1], B), 'two runs'), (lambda: tost(A, B, 0), 'positive'), (lambda: judge('P0-72/x', {}, 'paper', 'ham10000'), 'unknown claim'), (lambda: terms('a - '), 'cannot be read')):
        with pytest.raises(UserError, match=says): call()
    with pytest.raises(TypeError): verdict(A, B) # where the runs were made is never guessed


def runs(arms, dataset='ham10000', metric='accuracy'): return {(arm, dataset): [{metric: v} for v in values] for arm, values in arms.items()}


def test_claims_are_whole():
    df = load_claims()
    assert df.id.is_unique and len(df) > 80 and {'P0-72/simclr', 'P0-72/byol'} <= set(df.id)
    for c in df[df['item'] == 'P0-72'].itertuples(): # the paper's own numbers say so
        arm, base = c.contrast.split(' - ')
        for column in ('HAM10000', 'BCN20000'):
            x, y = published_for('gan_ssl', arm, column), published_for('gan_ssl', base, column)
            assert welch_from_stats(x.value, x.spread, x.n, y.value, y.spread, y.n)['low'] > 0


@pytest.mark.parametrize('column, value, says', [('direction', 'up', "direction 'up'"), ('contrast', 'a b', 'cannot be read'), ('contrast', '', 'either a contrast or a reason'), ('requires', 'people', 'either a contrast or a reason'),
                                                 ('published', 'P0-99/x', 'unknown published value'), ('item', 'P0-73', 'another item'), ('paper', 'dermgan', 'another item or paper'), ('sentence', '', 'lacks its sentence')])
def test_bad_claims_are_named(root, column, value, says):
    import pandas as pd
    df = pd.read_csv(root/'skinrepro'/'companion'/'claims.csv', dtype=str, keep_default_na=False)
    df.loc[df.id == 'P0-72/simclr', column] = value
    with pytest.raises(UserError, match=says) as e: check_claims(df)
    assert 'P0-72/simclr' in str(e.value) or "'a b'" in str(e.value)


def test_judge():
    for c, arm in (('P0-72/simclr', 'simclr'), ('P0-72/byol', 'byol')):
        assert judge(c, runs({arm: A, 'random': B}, 'isic2019_all'), 'paper', 'isic2019_all')['verdict'] == 'reproduced'
        assert judge(c, runs({arm: B, 'random': A}, 'ham10000'), 'paper', 'ham10000')['verdict'] == 'not reproduced'
        assert judge(c, runs({arm: A, 'random': B}, 'isic2019_bcn'), 'paper', 'isic2019_bcn')['verdict'] == 'holds here (paper, isic2019_bcn)'
        assert f'{arm} minus random' in judge(c, runs({arm: A, 'random': B}), 'small', 'ham10000')['sentence']
        assert judge(c, runs({arm: A}), 'small', 'ham10000')['verdict'] == 'not run'
        assert judge(c, runs({arm: A[:2], 'random': B}), 'small', 'ham10000')['verdict'] == 'too few seeds'


@pytest.mark.parametrize('claim', load_claims().id)
def test_every_claim_can_be_judged_both_ways(claim):
    "Feed each testable claim runs on its side, then on the other: it must be able to hold and to fail."
    c = load_claims().set_index('id').loc[claim]
    if not c.contrast:
        assert judge(claim, {}, 'paper', 'ham10000')['verdict'].startswith('cannot be tested here (') and c.requires
        return
    g = np.random.default_rng(0); home = c.datasets[0] if c.datasets else 'ham10000'
    def verdict_at(value): # runs whose contrast is `value`
        out = {}
        for k, (w, arm, metric, where) in enumerate(terms(c.contrast)):
            noise = g.normal(0, .02 if c.direction == 'steadier' and (k == 0) != (value > 0) else 1e-4, 30 if c.direction == 'steadier' else 4)
            cell = out.setdefault((arm, where or home), [{} for _ in noise])
            for run, e in zip(cell, noise): run[metric or c.metric] = (value/w if k == 0 and c.direction != 'steadier' else 0) + e
        return judge(claim, out, 'paper', home)['verdict'].split(' (')[0]
    yes, no = {'greater': (c.offset + .5, c.offset - .5), 'less': (c.offset - .5, c.offset + .5), 'equal': (c.offset, c.offset + .5), 'steadier': (1, -1)}[c.direction]
    if any(m for _, _, m, _ in terms(c.contrast)) and c.offset: pass
    assert verdict_at(yes) in ('reproduced', 'holds here') and verdict_at(no) in ('not reproduced', 'does not hold here')
    assert (verdict_at(yes) == 'reproduced') == bool(c.datasets) # private data are never reproduced


def test_contrast_of_one_two_and_four_groups():
    one, ref = contrast([A]), stats.ttest_1samp(A, 0)
    assert (one['t'], one['low']) == pytest.approx((ref.statistic, ref.confidence_interval().low))
    two, w = contrast([A, np.negative(B)]), welch(A, B)
    assert [two[k] for k in ('diff', 'low', 'high', 't', 'df', 'p')] == pytest.approx([w[k] for k in ('diff', 'low', 'high', 't', 'df', 'p')])
    g = np.random.default_rng(1); hit = 0
    for _ in range(1500):
        c = contrast([s*g.normal(0, sd, 3) for s, sd in ((1, 1), (-1, .2), (-1, 2), (1, .5))]); hit += c['low'] <= 0 <= c['high']
    assert .93 < hit/1500 < .985


def test_offset_moves_the_claim():
    at = dict(HOME); gain = np.mean(A) - np.mean(B)
    assert decide([np.array(A), np.negative(B)], 'equal', gain, .02, **at)['verdict'] == 'reproduced'
    assert decide([np.array(A), np.negative(B)], 'equal', gain + .08, .02, **at)['verdict'] == 'not reproduced'
    assert decide([np.array(A)], 'greater', .5, **at)['verdict'] == 'reproduced'


def test_steadier_is_the_f_test():
    g = np.random.default_rng(3); a, b = g.normal(0, 1, 12), g.normal(0, 3, 9); r = spread_ratio(a, b)
    f = a.var(ddof=1)/b.var(ddof=1)
    assert r['p'] == pytest.approx(2*stats.f(11, 8).cdf(f)) and (r['high'] < 1) == (r['p'] < .05) and r['low'] < r['diff'] < r['high']
    hit = sum((lambda r: r['low'] <= 1 <= r['high'])(spread_ratio(g.normal(0, 1, 4), g.normal(5, 1, 3))) for _ in range(1500))
    assert .93 < hit/1500 < .97
    assert spread_ratio([1, 1, 1], [1, 1, 1])['p'] == 1


def test_whole():
    for parts, want in ((['reproduced', 'reproduced'], 'reproduced'), (['reproduced', 'not reproduced', 'not run'], 'not reproduced'), (['reproduced', 'not run'], 'not run'),
                        (['holds here (x)', 'inconclusive here (x)'], 'inconclusive here (x)'), (['holds here (x)', 'cannot be tested here (y)'], 'holds here (x)'), (['cannot be tested here (y)'], 'cannot be tested here (y)'), (['holds here (x)'], 'holds here (x)')):
        assert whole(parts) == whole(parts[::-1]) == want


def test_mcnemar():
    y = np.zeros(50, int); a, b = y.copy(), y.copy(); a[:4] = 1; b[4:16] = 1; a[40:] = b[40:] = 1
    r = mcnemar(y, a, b)
    assert (r['only_a'], r['only_b'], r['n']) == (12, 4, 50)
    assert r['p'] == pytest.approx(2*stats.binom(16, .5).cdf(4))
    assert mcnemar(y, a, a)['p'] == 1
    with pytest.raises(UserError, match='pred 49'): mcnemar(y, a, b[1:])


@pytest.mark.parametrize('metric', ['accuracy', 'balanced_accuracy', 'macro_f1'])
def test_paired_bootstrap_equals_redrawing_images(metric):
    from skinrepro.evaluation.metrics import confusion
    g = np.random.default_rng(0); n, k = 300, 4
    y = g.integers(0, k, n); a, b = (np.where(g.random(n) < r, y, g.integers(0, k, n)) for r in (.7, .5)); f = METRICS[metric]
    draws = [f(confusion(y[i], a[i], k)) - f(confusion(y[i], b[i], k)) for i in g.integers(0, n, (1500, n))]
    r = paired_bootstrap(y, a, b, metric, n_boot=4000)
    assert (r['low'], r['high']) == pytest.approx(np.quantile(draws, [.025, .975]), abs=.015)
    assert r['diff'] == pytest.approx(f(confusion(y, a, k)) - f(confusion(y, b, k))) and r['n'] == n
    assert r == paired_bootstrap(y, a, b, metric, n_boot=4000)
    assert paired_bootstrap(y, a, a, metric)['high'] == 0


def test_pairing_narrows_the_interval():
    from skinrepro.evaluation.metrics import bootstrap
    g = np.random.default_rng(1); y = g.integers(0, 4, 1000)
    a = np.where(g.random(1000) < .6, y, (y + 1) % 4); b = a.copy(); b[:20] = (y[:20] + 2) % 4
    paired = paired_bootstrap(y, a, b); low, high = bootstrap(y, a)
    assert paired['high'] - paired['low'] < (high - low)/2
