"The stand-in source domain: stateless, balanced, the same in every process, and named by form, not by colour."
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from skinrepro.core import UserError
from skinrepro.data.lesions import COLUMNS
from skinrepro.data.textures import CLASSES, FAMILIES, SHAPES, SLOTS, labels, textures

CHILD = "import hashlib; from skinrepro.data.textures import textures; print(hashlib.sha256(textures(400, seed=3).render(32, 100, 220).tobytes()).hexdigest())"


@pytest.fixture(scope='module')
def data(): return textures(2000)


@pytest.fixture(scope='module')
def x(data): return data.render(32)


def test_two_processes_draw_equal_bytes():
    found = {subprocess.run([sys.executable, '-c', CHILD], capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)}
    assert found == {hashlib.sha256(textures(400, seed=3).render(32, 100, 220).tobytes()).hexdigest()}


def test_no_image_depends_on_n(data, x):
    for n in (1, 41, 300):
        small = textures(n)
        assert (small.render(32) == x[:n]).all() and (small.y == data.y[:n]).all()
        assert small.manifest.equals(data.manifest.head(n))


@pytest.mark.parametrize('size', [17, 32, 90])
def test_no_image_depends_on_the_range_asked_for(data, size):
    whole = data.render(size, 40, 100)
    parts = np.concatenate([data.render(size, i, j) for i, j in ((40, 41), (41, 49), (49, 100))])
    assert whole.shape == (60, size, size, 3) and whole.dtype == np.uint8 and (whole == parts).all()


def test_other_seed_other_pictures(data, x):
    other = textures(2000, seed=1)
    assert (other.render(32, 0, 50) != x[:50]).any((1, 2, 3)).all() and (other.y != data.y).mean() > .9
    assert len({d.content for d in (data, other, textures(1999))}) == 3 and other.hash != data.hash


def test_no_picture_twice(x): assert len({a.tobytes() for a in x}) == len(x)


@pytest.mark.parametrize('n', [40, 400, 2000, 12000])
def test_counts_are_exact(n):
    assert set(np.bincount(labels(n), minlength=40)) == {n//40}


def test_counts_between_blocks():
    c = np.bincount(labels(130), minlength=40)
    assert c.sum() == 130 and set(c) == {3, 4}
    first = labels(400).reshape(10, 40)
    assert len({tuple(r) for r in first}) == 10 # shuffled anew in each block


def test_classes_are_family_times_shape(data):
    assert len(CLASSES) == len(set(CLASSES)) == 40 and data.classes == CLASSES
    assert [CLASSES[k] for k in (0, 7, 39)] == [f'{FAMILIES[0]}-{SHAPES[0]}', f'{FAMILIES[1]}-{SHAPES[2]}', f'{FAMILIES[-1]}-{SHAPES[-1]}']


def test_is_a_lesion_set_of_single_images(data, tmp_path):
    m = data.manifest
    assert list(m) == list(COLUMNS) and m.image_id.is_unique and (m.lesion_id == m.image_id).all() and (m.patient_id == m.image_id).all()
    few = textures(60)
    assert (few.images(16, cache=tmp_path) == few.render(16)).all()
    assert 'imagenet' not in (data.name + data.licence + data.render_key + ' '.join(CLASSES)).lower()


def test_sizes_show_the_same_picture(data, x):
    big = data.render(128, 0, 200).reshape(200, 32, 4, 32, 4, 3).mean((2, 4))
    small = x[:200].astype(float)
    assert np.abs(big - small).mean() < 6
    r = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(big, small)]
    assert np.median(r) > .98 and np.quantile(r, .05) > .85


def test_colour_says_nothing_of_the_class(data, x):
    "The ridge classifier of mean colour is at chance, for class, family and shape."
    f = x.reshape(len(x), -1, 3).mean(1)/255; f = np.column_stack([f, np.ones(len(f))])
    for y, k in ((data.y, 40), (data.y//5, 8), (data.y % 5, 5)):
        w = np.linalg.lstsq(f[:1000], np.eye(k)[y[:1000]], rcond=None)[0]
        right = ((f[1000:] @ w).argmax(1) == y[1000:]).mean()
        assert right < 1/k + 4*(1/k*(1 - 1/k)/1000)**.5


def test_form_does(data):
    "Without nuisance of place, turn or colour, a picture's inside and texture are what the label says."
    from skinrepro.data.textures import _draw, _uniform
    rows = np.arange(400); u = _uniform(0, 'image', rows, SLOTS['camera'].stop)
    p = {k: u[:, s] for k, s in SLOTS.items()}
    p['pose'] = np.full_like(p['pose'], .5); c = ((np.arange(64) + .5)/32 - 1).astype(np.float32)
    tex, inside = _draw(p, data.y[rows], c[None, None], c[None, :, None], np.float32(1/32))
    assert tex.min() >= 0 and tex.max() <= 1.001 and (tex.std((1, 2)) > .05).all()
    area, middle = inside.mean((1, 2)), inside[:, 31:33, 31:33].mean((1, 2)); shape = data.y[rows] % 5
    assert (area > .05).all() and (area < .85).all()
    assert (middle[shape == SHAPES.index('ring')] == 0).all() and (middle[shape != SHAPES.index('ring')] == 1).all()
    def long(a): # length to width, from second moments
        d = np.stack([c[None].repeat(64, 0)[a > .5], c[:, None].repeat(64, 1)[a > .5]]); w = np.linalg.eigvalsh(np.cov(d))
        return (w[1]/w[0])**.5
    ratio = np.array([long(a) for a in inside])
    assert ratio[shape == SHAPES.index('bar')].min() > 1.7 and ratio[shape == SHAPES.index('disc')].max() < 1.5


def test_a_picture_shows_something(x):
    spread = x.reshape(len(x), -1, 3).std(1).max(1)
    assert np.quantile(spread, .02) > 8 and spread.min() > 3
    assert (((x == 0) | (x == 255)).mean((1, 2, 3)) < .6).all() # not burnt out


@pytest.mark.parametrize('wrong', [dict(n=0), dict(n=-3), dict(n=2.5), dict(n='600'), dict(n=True), dict(seed=-1), dict(seed=.5)])
def test_wrong_arguments_are_said(wrong):
    with pytest.raises(UserError, match='whole number from'): textures(**wrong)


def test_wrong_size_is_said(data):
    with pytest.raises(UserError, match='size=0'): data.render(0)


def test_smallest_and_largest(): assert textures(1).render(1).shape == (1, 1, 1, 3) and textures(1).render(512).shape == (1, 512, 512, 3)
