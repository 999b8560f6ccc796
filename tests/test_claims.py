"The arithmetic of verdicts, against scipy, closed forms and simulation."
import json
import math

import numpy as np
import pytest
from scipy import stats

from skinrepro.companion.claims import CLAIMS, judge, mcnemar, paired_bootstrap, tost, verdict, welch, welch_from_stats
from skinrepro.companion.published import paper_column, published_for
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
                       (lambda: welch(A, B, 95), 'pass .95'), (lambda: welch([.1], B), 'two runs'), (lambda: tost(A, B, 0), 'positive'), (lambda: judge('P0-72/x', A, B, 'paper', 'ham10000'), 'unknown claim')):
        with pytest.raises(UserError, match=says): call()
    with pytest.raises(TypeError): verdict(A, B) # where the runs were made is never guessed


def test_claims():
    assert {c['id'] for c in CLAIMS} >= {'P0-72/simclr', 'P0-72/byol'}
    for c in CLAIMS:
        assert set(c) >= {'id', 'paper', 'sentence', 'metric', 'arm', 'baseline', 'direction'} and c['id'].startswith(c['item'])
        for d in c['datasets']:
            x, y = (published_for(c['paper'], r, paper_column(c['paper'], d), c['metric']) for r in (c['arm'], c['baseline']))
            assert welch_from_stats(x.value, x.spread, x.n, y.value, y.spread, y.n)['low'] > 0 # the paper's own numbers say so
        assert judge(c['id'], A, B, 'paper', 'isic2019_all')['verdict'] == 'reproduced'
        assert judge(c, A, B, 'paper', 'isic2019_bcn')['verdict'] == 'holds here (paper, isic2019_bcn)'
        assert f"{c['arm']} minus random" in judge(c['id'], A, B, 'small', 'ham10000')['sentence']


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
