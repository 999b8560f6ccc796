"The image store: two builders, a killed builder, replaced and damaged files."
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from skinrepro.core import UserError
from skinrepro.data.lesions import LesionSet, decode, manifest

BUILD = """
import sys, time
import numpy as np
from skinrepro.data.lesions import store
def fill(out, i, j):
    time.sleep(.05); out[i:j] = np.arange(i, j)[:, None]
    with open(sys.argv[1] + '/filled', 'a') as f: f.write('x')
print(int(store('k', (40, 3), fill, cache=sys.argv[1], chunk=2, workers=1)[:, 0].astype(int).sum()))
"""


def build(folder): return subprocess.Popen([sys.executable, '-c', BUILD, str(folder)], stdout=subprocess.PIPE, text=True)


def test_two_processes_build_once(tmp_path):
    a, b = build(tmp_path), build(tmp_path)
    assert [p.communicate(timeout=60)[0].split()[-1] for p in (a, b)] == ['780', '780']
    assert (tmp_path/'filled').read_text() == 'x'*20  # 20 chunks, each once
    assert sorted(p.name for p in tmp_path.iterdir()) == ['filled', 'k.lock', 'k.npy']


def test_killed_builder_leaves_nothing_that_is_used(tmp_path):
    p = build(tmp_path)
    while not (tmp_path/'filled').exists(): time.sleep(.01)
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (tmp_path/'k.npy').exists()
    assert build(tmp_path).communicate(timeout=60)[0].split()[-1] == '780'
    assert not list(tmp_path.glob('.k.*.part'))  # swept up


@pytest.fixture
def folder(tmp_path):
    for i in range(4): Image.fromarray(np.random.default_rng(i).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(tmp_path/f'{i}.jpg', quality=92)
    return tmp_path


def lesions(folder): return LesionSet('toy', manifest(dict(image_id=list('0123'), label=['a', 'b', 'a', 'b'], path=[f'{folder}/{i}.jpg' for i in range(4)])), ('a', 'b'))


def test_replaced_image_is_decoded_again(folder):
    before, name = np.array(lesions(folder).images(16)), lesions(folder).hash
    Image.new('RGB', (80, 60), (255, 0, 0)).save(folder/'2.jpg')
    after = lesions(folder)
    assert after.hash != name
    assert (after.images(16)[2] != before[2]).any() and (after.images(16)[1] == before[1]).all()


@pytest.mark.parametrize('keep', [0, 10, 300, -2])
def test_cut_short_is_one_sentence_with_the_file(folder, keep):
    raw = (folder/'3.jpg').read_bytes(); (folder/'3.jpg').write_bytes(raw[:keep])
    with pytest.raises(UserError, match=r'3\.jpg cannot be decoded .*replace the file'): lesions(folder).images(16)
    assert not list(folder.glob('**/*.npy'))


def test_not_an_image(folder):
    (folder/'1.jpg').write_text('hello')
    with pytest.raises(UserError, match=r'1\.jpg cannot be decoded \(not an image\)'): decode(f'{folder}/1.jpg', 16)


def test_second_start_does_not_decode(folder, monkeypatch):
    lesions(folder).images(16)
    monkeypatch.setattr('skinrepro.data.lesions.decode', lambda *a: pytest.fail('decoded again'))
    assert lesions(folder).images(16).shape == (4, 16, 16, 3)


@pytest.mark.data
def test_ham10000_at_64(data_dir):
    from skinrepro.data.archives import open_dataset
    began = time.perf_counter(); x = open_dataset('ham10000', data_dir).images(64); first = time.perf_counter() - began
    began = time.perf_counter(); again = open_dataset('ham10000', data_dir).images(64); second = time.perf_counter() - began
    assert x.shape == (10015, 64, 64, 3) and (again[::1000] == x[::1000]).all()
    print(f'built in {first:.1f} s, second start {second:.2f} s')  # shown with -s; time is never asserted
