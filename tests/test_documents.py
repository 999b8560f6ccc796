"DATA.md and MODEL_CARD.md: every number against the official files, the package and the records."
import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from skinrepro.companion import runner
from skinrepro.companion.published import load_published
from skinrepro.companion.records import scan
from skinrepro.data.archives import OFFICIAL, official_images

ROOT = Path(__file__).resolve().parents[1]
DATA, CARD = ((ROOT/f).read_text(encoding='utf-8') for f in ('DATA.md', 'MODEL_CARD.md'))


def n(text): return f'{text:,}'


def listed(): # name -> cells of its row
    return {m[1]: [c.strip() for c in m[2].split('|')] for m in re.finditer(r'(?m)^\| `(\w+)` \|(.*)\|$', DATA)}


def test_sets_are_listed_with_their_counts_and_licences():
    rows = listed()
    assert set(rows) == {*OFFICIAL, 'phantom'}
    for name, official in OFFICIAL.items():
        what, images, licence, source = rows[name]
        assert images.startswith(n(official_images(name))) and licence == official['licence'], name
        assert f"{len(official['counts'])} classes" in what or name in ('isic2019_bcn', 'isic2019_ham')
    assert f"{n(OFFICIAL['ham10000']['lesions'])} lesions" in rows['ham10000'][1]


def test_private_photographs():
    published = load_published().set_index('id').value
    assert f"P1's {published['P1-01/all/images']:,.0f} and P3's {published['P3-01/all/images']:,.0f} clinical photographs" in DATA


@pytest.fixture
def table(data_dir): return lambda *parts: list(csv.DictReader(data_dir.joinpath(*parts).open(encoding='utf-8')))


@pytest.mark.data
def test_ham10000(table):
    rows = table('HAM10000', 'HAM10000_metadata.csv'); lesions, by = Counter(r['lesion_id'] for r in rows), Counter(r['dx_type'] for r in rows)
    assert f"{n(len(rows) - len(lesions))} images more than lesions; {n(sum(v for v in lesions.values() if v > 1))} of its images share their lesion" in DATA
    assert f"{n(by['histo'])} of HAM10000's are confirmed by histology, {n(by['follow_up'])} by follow-up, {by['consensus']} by consensus, {by['confocal']} by confocal microscopy" in DATA
    assert not {'skin_type', 'fitspatrick', 'fitzpatrick'} & set(rows[0])


@pytest.mark.data
def test_isic2019(table):
    rows = table('ISIC2019', 'ISIC_2019_Training_Metadata.csv')
    assert f"{n(sum(not r['lesion_id'] for r in rows))} images of ISIC 2019 have no lesion id" in DATA and not any('itz' in c or 'skin' in c for c in rows[0])
    for name, start in (('isic2019_bcn', 'BCN'), ('isic2019_ham', 'HAM')): assert listed()[name][1] == n(sum(r['lesion_id'].startswith(start) for r in rows))
    assert listed()['isic2019_all'][1] == n(len(rows))


@pytest.mark.data
def test_pad_ufes_20(table):
    rows = table('PAD-UFES-20', 'metadata.csv'); types = Counter(r['fitspatrick'].removesuffix('.0') for r in rows); empty = types.pop('')
    assert listed()['pad_ufes_20'][1] == f"{n(len(rows))} of {n(len({r['patient_id'] for r in rows}))} patients"
    assert f"the Fitzpatrick type of {n(len(rows) - empty)} images ({', '.join(f'{name} {types[str(k)]}' for k, name in enumerate(('I', 'II', 'III', 'IV', 'V', 'VI'), 1))})" in DATA
    assert f"{n(sum(r['biopsed'] == 'True' for r in rows))} of PAD-UFES-20's by biopsy" in DATA


@pytest.mark.data
@pytest.mark.slow
def test_masks(data_dir):
    import io
    import zipfile
    from PIL import Image
    with zipfile.ZipFile(data_dir/'HAM10000'/'HAM10000_segmentations_lesion_tschandl.zip') as z:
        share = [sum((h := Image.open(io.BytesIO(z.read(f))).convert('L').histogram())[128:])/sum(h) for f in z.namelist() if f.endswith('.png')]
    assert f'{sum(s > .95 for s in share)} cover more than 95 % of the frame and {sum(s < .01 for s in share)} less than 1 %' in DATA


def test_card_says_what_the_records_say():
    small = {c.size for p in runner.PAPERS if p != 'toy_six' for a, c in runner.paper_module(p).arms('small').items() if a in runner.paper_module(p).MAIN and hasattr(c, 'size')}
    assert small <= {32, 64} and '32 or 64 pixels' in CARD
    judged = [r for r in scan(ROOT/'results')[0] if {'accuracy', 'recall_df'} <= {m['name'] for m in r['metrics']} and r['spec']['paper'] == 'gan_ssl']
    if not judged: pytest.skip('no record of P0')
    for r in judged:
        m = {x['name']: x for x in r['metrics']}
        assert {'accuracy', 'majority_share', 'balanced_accuracy', 'macro_f1'} <= set(m) and all({f'recall_{c}', f'precision_{c}'} <= set(m) and m[f'recall_{c}']['n'] > 0 for c in r['data']['classes'])
    rare = [x for r in judged for x in r['metrics'] if x['name'].startswith('recall_') and x['n'] < 60]
    assert rare and min(x['n'] for x in rare) < 100 and any(x['value'] == 0 for x in rare) # 'tens of test images or fewer', 'recalls of zero'
    for r in scan(ROOT/'results')[0]: # 'carry a manifest', 'how near they come'
        if r['spec']['paper'] == 'gan_ssl' and r['spec']['config']['stage'] == 'gan': assert 'generated.json' in r['artefacts']
        if r['spec']['paper'] == 'gan_ssl' and r['spec']['arm'] == 'stylegan' and r['spec']['config']['stage'] == 'evaluate': assert 'memorised_feature' in {m['name'] for m in r['metrics']}


def test_licence_of_code_is_apart_from_that_of_data():
    assert (ROOT/'LICENSE').read_text().startswith('MIT License') and 'skinrepro is code, MIT' in DATA
    tracked = [p for p in ROOT.rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg') and not {'.venv', '.git', 'artefacts', 'data'} & set(p.relative_to(ROOT).parts)]
    assert not tracked # no photograph
