"Changes of code that leave results as they are: what the list says is followed, and what differs is found."
import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from skinrepro.companion import records
from skinrepro.companion.records import code_hash, same_code
from skinrepro.companion.runner import PAPERS, why_stale

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'bench'))
import same_code as bench


def test_a_chain_is_followed_and_a_circle_ends(monkeypatch):
    today = code_hash('gan_ssl')
    monkeypatch.setattr(records, '_same', lambda: {('gan_ssl', 'a'): 'b', ('gan_ssl', 'b'): today, ('gan_ssl', 'x'): 'y', ('gan_ssl', 'y'): 'x', ('semi_gan', 'c'): today})
    assert all(same_code('gan_ssl', c) for c in (today, 'a', 'b'))
    assert not any(same_code('gan_ssl', c) for c in ('x', 'y', 'c', 'unknown'))


def test_a_record_of_listed_code_is_fresh_and_another_stale(monkeypatch):
    monkeypatch.setattr(records, '_same', lambda: {('gan_ssl', 'a'): code_hash('gan_ssl')})
    record = lambda code: dict(code=code, spec=dict(paper='gan_ssl'), data=dict(manifest='0'))
    assert why_stale(record('a')) == '' and why_stale(record('b')) == 'code changed' and why_stale(record('a'), '1') == 'data changed'


def test_the_list_names_its_runs():
    rows = list(csv.DictReader(bench.LIST.open(encoding='utf-8', newline='')))
    assert len({(r['paper'], r['before']) for r in rows}) == len(rows)
    for r in rows: assert r['paper'] in PAPERS and re.fullmatch(r'[0-9a-f]{12}', r['before']) and re.fullmatch(r'[0-9a-f]{12}', r['after']) and re.match(r'[1-9]\d* runs at smoke, seeds \d', r['runs']) and r['change']


@pytest.fixture
def pair(tmp_path): # one run, made twice
    def made(name):
        folder = tmp_path/name; folder.mkdir()
        np.savez(folder/'figures.npz', loss=np.array([1., np.nan], 'float32'), y=np.arange(3))
        return {'00000000': dict(metrics=[dict(name='accuracy', value=.5)], artefacts={'encoder.pt': '1'}, spec=dict(arm='a', seed=0), inputs={}, folder=folder)}
    return made('before'), made('after')


def test_equal_runs_are_equal(pair): assert bench.differences(*pair) == []


def another_metric(r): r['metrics'][0]['value'] += 1e-12
def another_weight(r): r['artefacts']['encoder.pt'] = '2'
def another_array(r): np.savez(r['folder']/'figures.npz', loss=np.array([1. + 1e-6, np.nan], 'float32'), y=np.arange(3))
def another_type(r): np.savez(r['folder']/'figures.npz', loss=np.array([1., np.nan]), y=np.arange(3))
def one_array_less(r): np.savez(r['folder']/'figures.npz', y=np.arange(3))


@pytest.mark.parametrize('change, what', [(another_metric, 'metrics'), (another_weight, 'artefacts'), (another_array, 'array loss'), (another_type, 'array loss'), (one_array_less, 'array loss')])
def test_what_differs_is_named(pair, change, what):
    change(pair[1]['00000000'])
    assert bench.differences(*pair) == [f'a, seed 0: {what}']


def test_a_speed_is_no_difference(pair):
    for r, speed in zip(pair, (10., 11.)): r['00000000']['metrics'].append(dict(name='test_images_per_s', value=speed))
    assert bench.differences(*pair) == []


def test_other_runs_are_no_proof(pair): assert bench.differences(pair[0], {}) == ['the runs themselves']
