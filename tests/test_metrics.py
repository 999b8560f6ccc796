"The scores beside every accuracy, against scikit-learn, torchmetrics and closed forms."
import json
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from skinrepro.core import UserError
from skinrepro.evaluation.metrics import METRICS, accuracy, balanced_accuracy, bootstrap, confusion, macro_f1, mean_sd, per_class, scores

CLASSES = ['AKIEC', 'BCC', 'BKL', 'DF', 'NV', 'MEL', 'VASC']


def sample(seed, n=3000, k=7, right=.6):
    g = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), g.choice(k, n - k, p=g.dirichlet(np.ones(k)))]) # every class occurs
    return y, np.where(g.random(n) < right, y, g.integers(0, k, n))


def named(y, pred, classes=CLASSES): return {r['name']: r for r in scores(y, pred, classes)}


@pytest.mark.parametrize('seed', range(5))
def test_scores_equal_sklearn(seed):
    y, pred = sample(seed)
    got = named(y, pred)
    assert got['accuracy']['value'] == pytest.approx(sk.accuracy_score(y, pred), abs=1e-12)
    assert got['balanced_accuracy']['value'] == pytest.approx(sk.balanced_accuracy_score(y, pred), abs=1e-12)
    assert got['macro_f1']['value'] == pytest.approx(sk.f1_score(y, pred, average='macro', labels=np.unique(y), zero_division=0), abs=1e-12)
    assert got['majority_share']['value'] == pytest.approx(np.bincount(y).max()/len(y), abs=1e-12)
    p, r, f, n = sk.precision_recall_fscore_support(y, pred, labels=range(7), zero_division=0)
    for i, c in enumerate(CLASSES):
        assert got[f'precision_{c}']['value'] == pytest.approx(p[i], abs=1e-12)
        assert got[f'recall_{c}']['value'] == pytest.approx(r[i], abs=1e-12)
        assert got[f'f1_{c}']['value'] == pytest.approx(f[i], abs=1e-12)
        assert got[f'recall_{c}']['n'] == n[i]


@pytest.mark.parametrize('seed', range(3))
def test_scores_equal_torchmetrics(seed):
    pytest.importorskip('torchmetrics')
    import torch
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall
    y, pred = sample(seed); got = named(y, pred); t, p = torch.tensor(y), torch.tensor(pred)
    for name, ref in (('balanced_accuracy', MulticlassRecall(7, average='macro')), ('balanced_accuracy', MulticlassAccuracy(7, average='macro')),
                      ('accuracy', MulticlassAccuracy(7, average='micro')), ('macro_f1', MulticlassF1Score(7, average='macro'))):
        assert got[name]['value'] == pytest.approx(ref(p, t).item(), abs=1e-6)


def test_absent_class_has_no_row_and_does_not_dilute():
    y, pred = [0, 0, 1, 1], [0, 2, 1, 1] # class 2 is predicted, never true
    got = named(y, pred, ['a', 'b', 'c'])
    with warnings.catch_warnings(action='ignore'): assert got['balanced_accuracy']['value'] == sk.balanced_accuracy_score(y, pred) == .75
    assert got['macro_f1']['value'] == pytest.approx((2/3 + 1)/2)
    assert not [name for name in got if name.endswith('_c')]
    assert np.isnan(per_class(confusion(y, pred, 3))['recall'][2])


def test_class_never_predicted_scores_zero():
    got = named([0, 1], [0, 0], ['a', 'b'])
    assert got['precision_b']['value'] == got['recall_b']['value'] == got['f1_b']['value'] == 0


def test_majority_vote():
    y = np.repeat([0, 1, 2], [70, 20, 10]); got = named(y, np.zeros(100, int), ['a', 'b', 'c'])
    assert got['accuracy']['value'] == got['majority_share']['value'] == .7
    assert got['balanced_accuracy']['value'] == pytest.approx(1/3)


def test_rows_are_plain_json_with_prefix():
    rows = scores(*sample(0), CLASSES, prefix='val_')
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert {r['name'] for r in rows} >= {'val_' + m for m in METRICS} | {'val_recall_NV'}
    assert all(0 <= r['value'] <= 1 and set(r) == {'name', 'value', 'n'} for r in rows)


@pytest.mark.parametrize('y, pred, k, says', [
    ([], [], 2, 'no test images'), ([0], [0, 1], 2, '1 labels and pred 2'), ([0, 2], [0, 1], 2, 'y holds class 2'),
    ([0, 1], [0, 5], 2, 'pred holds class 5'), ([0, -1], [0, 1], 2, 'class -1'), ([0, 1], [.5, .5], 2, 'integer'), ([0, 1], [[0, 1]], 2, 'one class index')])
def test_bad_input_is_named(y, pred, k, says):
    with pytest.raises(UserError, match=says): confusion(y, pred, k)
    with pytest.raises(UserError, match=says): scores(y, pred, list(range(k)))


@pytest.mark.parametrize('metric', ['accuracy', 'balanced_accuracy', 'macro_f1'])
def test_bootstrap_equals_redrawing_images(metric):
    y, pred = sample(1, n=400); g = np.random.default_rng(1)
    draws = [METRICS[metric](confusion(y[i], pred[i], 7)) for i in g.integers(0, 400, (2000, 400))]
    assert bootstrap(y, pred, metric, n_boot=4000) == pytest.approx(np.quantile(draws, [.025, .975]), abs=.01)


def test_bootstrap_of_accuracy_equals_the_binomial():
    y, pred = sample(2, n=2000); p = (y == pred).mean()
    assert bootstrap(y, pred, n_boot=5000) == pytest.approx(stats.binom(2000, p).ppf([.025, .975])/2000, abs=.003)


def test_bootstrap_repeats_itself_and_is_fast():
    y, pred = sample(3, n=10_000); start = time.perf_counter()
    first = [bootstrap(y, pred, m) for m in METRICS]
    assert time.perf_counter() - start < 3
    assert first == [bootstrap(y, pred, m) for m in METRICS]
    assert bootstrap(y, pred, seed=1) != first[0]
    low, high = bootstrap(y, pred, level=.5); assert first[0][0] < low < high < first[0][1]


def test_bootstrap_survives_a_class_of_one_image():
    y = np.array([0]*99 + [1]); pred = y.copy(); pred[:10] = 1
    low, high = bootstrap(y, pred, 'balanced_accuracy')
    assert 0 < low < high <= 1
    low, high = bootstrap(y, pred, lambda C: per_class(C)['recall'][..., 1]) # undefined on a third of the redraws
    assert (low, high) == (1, 1)
    with pytest.raises(UserError, match="unknown metric 'acc'"): bootstrap(y, pred, 'acc')


def test_bootstrap_covers():
    truth, hits = .7, 0
    for s in range(200):
        right = np.random.default_rng(s).random(300) < truth
        low, high = bootstrap(np.zeros(300, int), (~right).astype(int), n_boot=400, seed=s)
        hits += low <= truth <= high
    assert .90 <= hits/200 <= .99


def test_stacked_matrices_equal_one_by_one():
    Cs = np.random.default_rng(0).integers(0, 5, (20, 4, 4)) + np.eye(4, dtype=int)
    for f in (accuracy, balanced_accuracy, macro_f1): assert f(Cs) == pytest.approx([f(C) for C in Cs], abs=1e-15)


def test_mean_sd():
    v = [.71, .72, .73, .72, .70]; r = mean_sd(v)
    assert (r['mean'], r['sd'], r['n']) == pytest.approx((np.mean(v), np.std(v, ddof=1), 5))
    ci = stats.ttest_1samp(v, 0).confidence_interval(.95); assert (r['low'], r['high']) == pytest.approx(tuple(ci))
    assert mean_sd([.1]*3)['sd'] == 0 and np.isnan(mean_sd([.1])['low'])
    with pytest.raises(UserError, match='no runs'): mean_sd([])
    with pytest.raises(UserError, match='run 1'): mean_sd([.1, float('nan')])


def test_import_needs_no_torch():
    code = 'import sys, skinrepro.evaluation.metrics; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
