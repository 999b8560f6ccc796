"The embedded data: deterministic, consistent, imbalanced like HAM10000, and learnable in principle."
import numpy as np
import pytest

from skinrepro.core import UserError
from skinrepro.data.phantom import CLASSES, TRAITS, ita, phantom, phantom_masks, prevalence, quota


@pytest.fixture(scope='module')
def data(): return phantom(600)


def test_same_seed_same_pixels(data):
    a, b = data.render(32, 0, 60), phantom(600).render(32, 0, 60)
    assert a.shape == (60, 32, 32, 3) and a.dtype == np.uint8 and (a == b).all()


def test_other_seed_other_pixels_and_names(data):
    other = phantom(600, seed=1)
    assert (data.render(32, 0, 20) != other.render(32, 0, 20)).any((1, 2, 3)).all()
    assert data.render_key != other.render_key and data.content != other.content and data.hash != other.hash


@pytest.mark.parametrize('size', [33, 64, 200])
def test_rows_do_not_depend_on_the_range_asked_for(data, size):
    whole = data.render(size, 0, 24)
    parts = np.concatenate([data.render(size, i, j) for i, j in ((0, 1), (1, 8), (8, 24))])
    assert (whole == parts).all()
    masks = phantom_masks(data, size, 0, 24)
    assert (masks[5:9] == phantom_masks(data, size, 5, 9)).all()


def test_a_larger_set_only_appends(data):
    small = phantom(80)
    assert small.manifest.equals(data.manifest.head(80))
    assert (small.render(32, 40, 80) == data.render(32, 40, 80)).all()


def test_store_holds_what_render_draws(data, tmp_path):
    few = phantom(50)
    assert (few.images(32, cache=tmp_path) == few.render(32)).all()


@pytest.mark.parametrize('n', [80, 133, 600, 2000])
def test_every_class_has_four_lesions(n):
    m = phantom(n).manifest
    lesions = m.drop_duplicates('lesion_id').label.value_counts()
    assert set(lesions.index) == set(CLASSES) and lesions.min() >= 4
    assert len(m) == n and m.label.mode()[0] == 'nv'


def test_imbalance_of_ham10000():
    d = phantom(10000)
    assert np.abs(d.counts().to_numpy()/len(d) - prevalence()).max() < .01
    assert (quota(300) >= 0).all() and (quota(300).sum(1) == 15).all()
    assert abs(len(d)/d.manifest.lesion_id.nunique() - 10015/7470) < .02


def test_groups_nest(data):
    m = data.manifest
    for group, what in (('lesion_id', 'patient_id'), ('lesion_id', 'label'), ('lesion_id', 'site'), ('patient_id', 'skin_type'), ('patient_id', 'age'), ('patient_id', 'sex')):
        assert (m.groupby(group)[what].nunique() == 1).all(), (group, what)
    views, patients = m.groupby('lesion_id').size(), m.groupby('patient_id').lesion_id.nunique()
    assert set(views) == {1, 2, 3} and set(patients) >= {1, 2, 3}
    assert set(m.skin_type) == set(range(1, 7)) and m.age.between(5, 85).all() and set(m.sex) == {'male', 'female'} and (m.site != '').all()


def test_views_differ_but_show_one_lesion(data):
    views = [g.index.to_numpy() for _, g in data.manifest.groupby('lesion_id') if len(g) > 1]
    x = data.render(16).astype(float)
    same = np.array([np.abs(x[g[0]] - x[g[1]]).mean() for g in views])
    other = np.array([np.abs(x[g[0]] - x[h[0]]).mean() for g, h in zip(views, views[1:])])
    assert same.min() > 1 and same.mean() < .75*other.mean()


def test_boxes_fit_the_masks(data):
    size = 128; masks = phantom_masks(data, size); two = 0
    for boxes, mask in zip(data.manifest.box, masks):
        assert set(np.unique(mask)) == {0, 1} and 0 < mask.mean() < .95
        b = np.array(boxes); two += len(b) == 2
        assert (b >= 0).all() and (b <= 1).all() and (b[:, 2:] - b[:, :2] > .05).all()
        inside = np.zeros_like(mask); yy, xx = np.nonzero(mask)
        for x0, y0, x1, y1 in b:
            inside[max(0, int(y0*size)-1):int(np.ceil(y1*size))+1, max(0, int(x0*size)-1):int(np.ceil(x1*size))+1] = 1
        assert (mask <= inside).all()
        union = np.array([b[:, 0].min(), b[:, 1].min(), b[:, 2].max(), b[:, 3].max()])
        found = np.array([xx.min(), yy.min(), xx.max()+1, yy.max()+1])/size
        assert np.abs(union - found).max() <= 2/size
    assert 5 < two < 60


def test_sizes_show_the_same_picture(data):
    big = data.render(128, 0, 40).reshape(40, 32, 4, 32, 4, 3).mean((2, 4))
    small = data.render(32, 0, 40)
    assert np.abs(big - small).mean() < 8
    masks = phantom_masks(data, 128, 0, 40).reshape(40, 32, 4, 32, 4).mean((2, 4))
    assert np.abs(masks - phantom_masks(data, 32, 0, 40)).mean() < .02


def test_skin_darkens_with_type(data):
    x, inside = data.render(32)/255, phantom_masks(data, 32)
    skin = np.stack([np.median(a[k == 0], 0) for a, k in zip(x, inside)])
    t = data.manifest.skin_type.to_numpy(int)
    angle = [np.median(ita(skin)[t == k]) for k in range(1, 7)]
    light = [skin[t == k].mean() for k in range(1, 7)]
    assert (np.diff(angle) < -4).all() and (np.diff(light) < 0).all()


def test_lesions_are_drawn_on_skin_not_noise(data):
    x, inside = data.render(32, 0, 200).astype(float).mean(-1), phantom_masks(data, 32, 0, 200)
    darker = np.array([np.median(a[k == 0]) - a[k == 1].mean() for a, k in zip(x, inside)])
    assert (darker > 0).mean() > .9
    step = np.abs(np.diff(x, axis=2)).mean(); shuffled = np.abs(np.diff(np.random.default_rng(0).permuted(x, axis=2), axis=2)).mean()
    assert step < .5*shuffled


@pytest.mark.parametrize('trait, cls', [('irregularity', 'mel'), ('colours', 'mel'), ('veil', 'mel'), ('network', 'nv'), ('vessels', 'bcc'),
    ('cysts', 'bkl'), ('patch', 'df'), ('lacunae', 'vasc'), ('dots', 'scc'), ('scale', 'ak')])
def test_traits_lead_in_their_class_and_overlap(trait, cls):
    ph = phantom(6000).render; y = ph.plan['label']; x = ph.lesion[trait]; k = CLASSES.index(cls)
    means = np.array([x[y == c].mean() for c in range(8)])
    assert means.argmax() == k and TRAITS[trait].to_numpy().argmax() == k
    assert np.quantile(x[y == k], .05) < np.quantile(x[y != k], .95)


@pytest.mark.parametrize('n', [0, -3, 2.5, '600'])
def test_wrong_n_is_said(n):
    with pytest.raises(UserError, match='ask for 1 or more'): phantom(n)


def test_one_image_works(): assert phantom(1).render(8).shape == (1, 8, 8, 3) and phantom(1).render(224).shape == (1, 224, 224, 3)
