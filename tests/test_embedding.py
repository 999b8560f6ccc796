"t-SNE panels: numbers against scikit-learn and by hand, rules stated in the notebook, errors that say how to mend them."
import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from skinrepro.core import UserError
from skinrepro.evaluation.embedding import measure, most_predicted, neighbour_numbers, panels, perplexity_for, prediction_histogram, tsne


def clouds(apart, n=120, d=16, seed=0):
    g = np.random.default_rng(seed); y = g.permutation(n) % 3
    return g.normal(size=(n, d)) + apart*np.eye(d)[y], y


@pytest.mark.parametrize('k', [1, 5])
def test_neighbours_equal_a_plain_loop(k):
    f, y = clouds(2); d = ((f[:, None] - f[None])**2).sum(-1); np.fill_diagonal(d, np.inf)
    near = y[d.argsort(1)[:, :k]]
    got = neighbour_numbers(f, y, k)
    for c in range(3): assert got['purity'][c] == pytest.approx((near == c).mean(1)[y == c].mean())
    if k == 1: assert got['knn_accuracy'] == pytest.approx((near[:, 0] == y).mean())
    sure = np.array([np.sort(np.bincount(r, minlength=3))[-1] > np.sort(np.bincount(r, minlength=3))[-2] for r in near])
    hits = (np.array([np.bincount(r, minlength=3).argmax() for r in near]) == y)[sure].sum()
    assert hits <= round(got['knn_accuracy']*len(y)) <= hits + (~sure).sum()


def test_a_tie_goes_to_the_nearer_class():
    f = np.array([[0.], [1.], [3.], [50.], [51.]]); y = np.array([0, 0, 1, 1, 1])
    # neighbours of point 0: class 0 at 1, class 1 at 3: a tie for the nearer, right; of point 2: class 0 twice, wrong
    assert neighbour_numbers(f, y, 2)['knn_accuracy'] == pytest.approx(4/5)


def test_measure_is_of_both_spaces():
    f, y = clouds(3); p = tsne(f)
    m = measure(f, p, y, 7)
    assert m.silhouette['features'] == pytest.approx(silhouette_score(f.astype('float32'), y), abs=1e-5) and m.silhouette['plane'] == pytest.approx(silhouette_score(p, y), abs=1e-5)
    assert m.trustworthiness['plane'] == pytest.approx(trustworthiness(f.astype('float32'), p, n_neighbors=7), abs=1e-6) and np.isnan(m.trustworthiness['features'])
    assert m.knn_accuracy['plane'] != m.knn_accuracy['features'] or m.silhouette['plane'] != m.silhouette['features']
    assert measure(f, f[:, :2], np.zeros(len(f), int)).silhouette.isna().all()


def test_shuffled_labels_fall_to_chance():
    f, y = clouds(6); z = np.random.default_rng(1).permutation(y)
    assert neighbour_numbers(f, y)['knn_accuracy'] == 1
    assert neighbour_numbers(f, z)['knn_accuracy'] < .6


def test_tsne_is_fixed_by_its_seed_and_keeps_neighbours():
    f, y = clouds(4, n=90)
    a, b = tsne(f), tsne(f)
    assert (a == b).all() and a.shape == (90, 2) and trustworthiness(f, a, n_neighbors=7) > .8
    assert KNeighborsClassifier(5).fit(a[::2], y[::2]).score(a[1::2], y[1::2]) > .9


def test_perplexity_rule():
    assert perplexity_for(1000) == 30 and perplexity_for(31) == 10 and perplexity_for(7) == 2
    with pytest.raises(UserError, match='too few'): perplexity_for(6)
    with pytest.raises(UserError, match='at most 13'): tsne(np.zeros((40, 3)), 14)


def test_panels_share_their_settings(monkeypatch):
    import matplotlib
    matplotlib.use('agg')
    from skinrepro.evaluation import embedding
    seen = []
    monkeypatch.setattr(embedding, 'tsne', lambda f, p, s: seen.append((p, s)) or np.asarray(f)[:, :2])
    fig, m = panels({'big': clouds(3, n=200), 'small': clouds(3, n=40)}, 'abc', k=5)
    assert seen == [(13., 0), (13., 0)] and list(m.index) == [(t, s) for t in ('big', 'small') for s in ('features', 'plane')]
    with pytest.raises(UserError, match='no panels'): panels({}, 'abc')


@pytest.mark.parametrize('f,y,says', [(np.zeros(5), None, r'pass \(N, D\)'), (np.full((9, 2), np.inf), np.zeros(9), 'row 0'), (np.zeros((9, 2)), np.zeros(3), '9 features and 3 labels')])
def test_bad_features_are_named(f, y, says):
    with pytest.raises(UserError, match=says): neighbour_numbers(f, y, 2)


def test_prediction_histogram():
    y, pred = [0, 0, 1, 1, 1, 2], [1, 1, 1, 1, 0, 1]
    h = prediction_histogram(y, pred, ['a', 'b', 'c', 'd'])
    assert h.true.tolist() == [2, 3, 1, 0] and h.predicted.tolist() == [1, 5, 0, 0] and h.predicted_share.sum() == pytest.approx(1)
    assert h.ratio[:3].tolist() == pytest.approx([.5, 5/3, 0]) and np.isnan(h.ratio['d'])
    assert most_predicted(y, pred, ['a', 'b', 'c', 'd']) == {'class': 'b', 'predicted_share': pytest.approx(5/6), 'true_share': .5, 'never_predicted': ['c']}
    for bad in (([0], [0, 1]), ([], []), ([0, 3], [0, 0])):
        with pytest.raises(UserError): prediction_histogram(*bad, ['a', 'b'])
