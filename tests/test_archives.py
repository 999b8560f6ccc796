"Readers, check and fetch: fake official folders, a local server, and the real files where they are."
import hashlib, io, json, shutil, socket, threading, warnings, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinrepro.core import UserError
from skinrepro.data import archives as A

CLASSES = list(A.OFFICIAL['ham10000']['counts'])
ISIC_CLASSES = list(A.OFFICIAL['isic2019_all']['counts'])


def picture(k, kind='JPEG'):
    pixels = np.random.default_rng(k).integers(0, 255, (12, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    f = io.BytesIO(); Image.fromarray(pixels if kind == 'JPEG' else pixels[..., 0]).save(f, kind); return f.getvalue()


def pack(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as z:
        for name, raw in members.items(): z.writestr(name, raw)
    return path


IDS = [f'ISIC_{24306 + k:07d}' for k in range(6)] + [f'ISIC_{29306 + k:07d}' for k in range(6)]


def ham_table(ids=IDS):
    return pd.DataFrame(dict(lesion_id=[f'HAM_{k//2:07d}' for k in range(len(ids))], image_id=ids, dx=[CLASSES[k % 7] for k in range(len(ids))],
                             dx_type='histo', age=['50.0', '']*(len(ids)//2), sex=['male', 'unknown']*(len(ids)//2), localization='back'))


def ham_folder(folder, masks=True):
    "Official zips only."
    folder.mkdir(parents=True, exist_ok=True)
    ham_table().to_csv(folder/'HAM10000_metadata.csv', index=False)
    for part in (1, 2):
        members = {f'{i}.jpg': picture(k) for k, i in enumerate(IDS) if A.ham_part(i).endswith(f'{part}.zip')}
        pack(folder/f'HAM10000_images_part_{part}.zip', members)
    if masks: pack(folder/'HAM10000_segmentations_lesion_tschandl.zip', {f'HAM10000_segmentations_lesion_tschandl/{i}_segmentation.png': picture(k, 'PNG') for k, i in enumerate(IDS)})
    return folder


def isic_folder(folder, bcn=3, msk=2, none=2):
    ids = IDS + [f'ISIC_{53454 + k:07d}' for k in range(bcn)] + [f'ISIC_{k:07d}_downsampled' for k in range(msk + none)]
    lesions = list(ham_table().lesion_id) + [f'BCN_{k:07d}' for k in range(bcn)] + [f'MSK4_{k:07d}' for k in range(msk)] + ['']*none
    hot = pd.DataFrame(np.eye(9)[[k % 8 for k in range(len(ids))]], columns=[c.upper() for c in ISIC_CLASSES] + ['UNK'])
    folder.mkdir(parents=True, exist_ok=True)
    hot.insert(0, 'image', ids); hot.to_csv(folder/A.TRUTH, index=False)
    pd.DataFrame(dict(image=ids, age_approx=55, anatom_site_general='', lesion_id=lesions, sex='female')).to_csv(folder/A.META, index=False)
    return ids


def pad_table(n=4):
    return pd.DataFrame(dict(patient_id=[f'PAT_{k//2}' for k in range(n)], lesion_id=[7]*n, age=40 + np.arange(n), fitspatrick=['', '3.0']*(n//2), gender=['FEMALE', '']*(n//2), region='NOSE',
                             diagnostic=(['BCC', 'MEL', 'NEV', 'ACK']*n)[:n], img_id=[f'PAT_{k//2}_7_{k}.png' for k in range(n)]))


# ---- reading ----

def unpack(zip_path):
    with zipfile.ZipFile(zip_path) as z: z.extractall(zip_path.with_suffix(''))
    zip_path.unlink()


@pytest.mark.parametrize('unpacked', [(), (1,), (2,), (1, 2)])
def test_ham_zip_and_folder_mixtures(tmp_path, unpacked):
    home = ham_folder(tmp_path/'HAM10000')
    for p in unpacked: unpack(home/f'HAM10000_images_part_{p}.zip')
    s = A.open_dataset('ham10000', tmp_path)
    assert s.manifest.image_id.tolist() == IDS and s.classes == tuple(CLASSES)
    assert (s.manifest['mask'] != '').all() and not s.dropped
    assert s.manifest.sex.tolist()[:2] == ['male', ''] and np.isnan(s.manifest.age[1]) and s.manifest.source.eq('HAM10000').all()
    assert s.images(16).shape == (12, 16, 16, 3)
    first = np.asarray(Image.open(io.BytesIO(picture(0))))
    assert np.array_equal(A.decode(s.manifest.path[0]), first)


def test_ham_part_zip_partly_unpacked(tmp_path):
    home = ham_folder(tmp_path)
    with zipfile.ZipFile(home/'HAM10000_images_part_1.zip') as z:
        for name in z.namelist()[:2]: z.extract(name, tmp_path/'HAM10000_images_part_1')
    s = A.read_ham10000(tmp_path)
    assert len(s) == 12 and sum('!' not in p for p in s.manifest.path) == 2


def test_ham_flat_folder_tab_table_no_masks(tmp_path):
    home = ham_folder(tmp_path/'x', masks=False)
    ham_table().to_csv(home/'HAM10000_metadata.tab', index=False, sep='\t'); (home/'HAM10000_metadata.csv').unlink()
    s = A.read_ham10000(tmp_path)
    assert len(s) == 12 and (s.manifest['mask'] == '').all()


@pytest.mark.parametrize('part', [1, 2])
def test_one_zip_missing_or_broken(tmp_path, part):
    home = ham_folder(tmp_path)
    path = home/f'HAM10000_images_part_{part}.zip'; raw = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=rf'HAM10000_images_part_{part}.zip is missing: 6 of 12 images not found, e.g. ISIC_00'): A.open_dataset('ham10000', tmp_path)
    path.write_bytes(raw[:len(raw)//2])
    with pytest.raises(UserError, match=rf'HAM10000_images_part_{part}.zip is not a whole zip: 6 of 12'): A.open_dataset('ham10000', tmp_path)


def test_partial_is_said(tmp_path):
    (ham_folder(tmp_path)/'HAM10000_images_part_2.zip').unlink()
    with pytest.warns(UserWarning, match='only 6 of 12'): s = A.open_dataset('ham10000', tmp_path, partial=True)
    assert len(s) == 6 and s.dropped == tuple(IDS[6:])


@pytest.mark.parametrize('change, words', [
    (lambda t: t.drop(columns='dx'), "has no column 'dx' .*found: lesion_id"),
    (lambda t: t.iloc[:7], 'the table is cut short'),
    (lambda t: t.assign(dx=['wart'] + list(t.dx[1:])), "unknown class 'wart'"),
    (lambda t: t.assign(dx=[''] + list(t.dx[1:])), 'line 2: no dx'),
    (lambda t: pd.concat([t, t.iloc[:1]]), 'appears more than once'),
    (lambda t: t.iloc[:0], 'no rows')])
def test_bad_ham_tables(tmp_path, change, words):
    home = ham_folder(tmp_path)
    change(ham_table()).to_csv(home/'HAM10000_metadata.csv', index=False)
    with pytest.raises(UserError, match=words): A.open_dataset('ham10000', tmp_path)


def test_missing_folder_and_table(tmp_path, monkeypatch):
    monkeypatch.delenv('SKINREPRO_DATA', raising=False)
    with pytest.raises(UserError, match='SKINREPRO_DATA'): A.open_dataset('ham10000')
    with pytest.raises(UserError, match='does not exist'): A.open_dataset('ham10000', tmp_path/'none')
    with pytest.raises(UserError, match="'HAM10000_metadata.csv' is not in"): A.open_dataset('ham10000', tmp_path)
    with pytest.raises(UserError, match="did you mean 'isic2019_bcn'"): A.open_dataset('isic2019_bnc', tmp_path)
    with pytest.raises(UserError, match='takes no column names'): A.open_dataset('ham10000', tmp_path, label='dx')


def test_isic_parts_are_disjoint_sets(tmp_path):
    ham_folder(tmp_path/'HAM10000'); ids = isic_folder(tmp_path/'ISIC2019')
    ham = A.open_dataset('isic2019_ham', tmp_path)
    assert ham.manifest.image_id.tolist() == IDS and ham.manifest.path.tolist() == A.open_dataset('ham10000', tmp_path).manifest.path.tolist()
    with pytest.raises(UserError, match=r'isic2019_bcn: ISIC_2019_Training_Input.zip is missing: 3 of 3'): A.open_dataset('isic2019_bcn', tmp_path)
    with pytest.raises(UserError, match=r'isic2019_all: ISIC_2019_Training_Input.zip is missing: 7 of 19'): A.open_dataset('isic2019_all', tmp_path)
    pack(tmp_path/'ISIC2019'/'ISIC_2019_Training_Input.zip', {f'ISIC_2019_Training_Input/{i}.jpg': picture(k) for k, i in enumerate(ids)})
    everything, bcn = A.open_dataset('isic2019_all', tmp_path), A.open_dataset('isic2019_bcn', tmp_path)
    assert len(everything) == 19 and len(bcn) == 3 and everything.classes == tuple(ISIC_CLASSES)
    m = everything.manifest
    assert m.source.value_counts().to_dict() == {'HAM10000': 12, 'BCN_20000': 3, 'MSK': 2, 'other': 2}
    assert (m.lesion_id[m.source == 'other'] == m.image_id[m.source == 'other']).all() # a group of their own
    assert m.path.is_unique and m.path[m.source == 'HAM10000'].str.contains('HAM10000_images').all()


@pytest.mark.parametrize('file, change, words', [
    (A.TRUTH, lambda t: t.drop(columns='SCC'), "no column 'SCC'"), (A.TRUTH, lambda t: t.iloc[:-3], 'do not list the same images'),
    (A.META, lambda t: t.iloc[:-3], 'do not list the same images'), (A.META, lambda t: t.drop(columns='lesion_id'), "no column 'lesion_id'"),
    (A.TRUTH, lambda t: t.assign(MEL=1.0), 'not exactly one class'), (A.TRUTH, lambda t: pd.concat([t, t.iloc[:1]]), 'twice')])
def test_bad_isic_tables(tmp_path, file, change, words):
    ham_folder(tmp_path); isic_folder(tmp_path)
    change(pd.read_csv(tmp_path/file)).to_csv(tmp_path/file, index=False)
    with pytest.raises(UserError, match=words): A.open_dataset('isic2019_ham', tmp_path)


def test_pad(tmp_path):
    pad_table().to_csv(tmp_path/'metadata.csv', index=False)
    (tmp_path/'boxes_normalised.csv').write_text('img_id,x0,y0,x1,y1\nPAT_0_7_0.png,0.1,0.2,0.5,0.6\nPAT_0_7_1.png,0.9,0.2,0.5,0.6\n')
    pack(tmp_path/'imgs_part_1.zip', {f'imgs_part_1/PAT_{k//2}_7_{k}.png': picture(k, 'PNG') for k in range(2)})
    with pytest.raises(UserError, match='2 of 4 images not found'): A.open_dataset('pad_ufes_20', tmp_path) # an official part is missing
    (tmp_path/'imgs_part_1.zip').rename(tmp_path/'imgs.zip')
    with pytest.warns(UserWarning, match='only 2 of 4'), zipfile.ZipFile(tmp_path/'imgs.zip') as _: # a reduced copy
        shutil.move(tmp_path/'imgs.zip', tmp_path/'old.zip')
        pack(tmp_path/'imgs.zip', {f'PAT_{k//2}_7_{k}.jpg': picture(k) for k in range(2)}); (tmp_path/'old.zip').unlink()
        s = A.open_dataset('pad_ufes_20', tmp_path)
    assert s.manifest.image_id.tolist() == ['PAT_0_7_0', 'PAT_0_7_1'] and s.dropped == ('PAT_1_7_2', 'PAT_1_7_3')
    assert s.manifest.box.tolist() == [((0.1, 0.2, 0.5, 0.6),), ()] and s.manifest.lesion_id.tolist() == ['PAT_0_7']*2
    assert pd.isna(s.manifest.skin_type[0]) and s.manifest.skin_type[1] == 3 and s.manifest.sex.tolist() == ['female', '']
    with pytest.raises(UserError, match='2 of 4'): A.open_dataset('pad_ufes_20', tmp_path, partial=False)
    unpacked = tmp_path/'imgs'; unpacked.mkdir()
    for k in (2, 3): (unpacked/f'PAT_1_7_{k}.png').write_bytes(picture(k, 'PNG'))
    s = A.open_dataset('pad_ufes_20', tmp_path, partial=False) # zip and folder, jpg and png
    assert len(s) == 4 and s.manifest.lesion_id.nunique() == 2 # lesion number 7 of two patients


def test_zip_in_zip_is_said(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, 'w') as z: z.writestr('PAT_0_7_0.png', picture(0, 'PNG'))
    pack(tmp_path/'pad.zip', {'images/imgs_part_1.zip': inner.getvalue(), 'metadata.csv': pad_table().to_csv(index=False)})
    with pytest.raises(UserError, match='zips inside pad.zip are not read: unpack it once'): A.open_dataset('pad_ufes_20', tmp_path)


def own(tmp_path, names=('a.jpg', 'b.png', 'sub/c.jpg')):
    for k, n in enumerate(names):
        (tmp_path/n).parent.mkdir(exist_ok=True, parents=True); (tmp_path/n).write_bytes(picture(k, 'PNG' if n.endswith('png') else 'JPEG'))
    table = pd.DataFrame(dict(photo=names, what=['x', 'y', 'x'], who=[1, 1, 2], years=[30, '', 50]))
    table.to_csv(tmp_path/'t.csv', index=False); return table


def test_folder(tmp_path):
    own(tmp_path)
    s = A.open_dataset('folder', tmp_path, csv='t.csv', image='photo', label='what', patient='who', age='years')
    assert s.manifest.image_id.tolist() == ['a', 'b', 'sub/c'] and s.classes == ('x', 'y') and s.y.tolist() == [0, 1, 0]
    assert s.manifest.patient_id.tolist() == ['1', '1', '2'] and s.manifest.columns.tolist() == list(A.manifest(dict(image_id=['a'], label=['x'])).columns)
    assert A.open_dataset(str(tmp_path), image='photo', label='what', classes='y,x').y.tolist() == [1, 0, 1]
    assert s.images(8).shape == (3, 8, 8, 3)


def test_folder_same_name_in_two_places(tmp_path):
    own(tmp_path, ('benign/1.jpg', 'malignant/1.jpg', 'malignant/2.jpg'))
    s = A.read_folder(tmp_path, image='photo', label='what')
    assert [Path(p).parent.name for p in s.manifest.path] == ['benign', 'malignant', 'malignant'] and s.manifest.image_id[0] == 'benign/1'
    pd.DataFrame(dict(photo=['1', '2'], what=['x', 'y'])).to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(UserError, match="'1' could be 2 files"): A.read_folder(tmp_path, image='photo', label='what')


@pytest.mark.parametrize('kw, words', [
    (dict(label='what'), "no column 'image_id' .found: photo, what, who, years"), (dict(image='photo'), "no column 'label'"),
    (dict(image='photo', label='what', lesion='wound'), "no column 'wound'"), (dict(image='photo', label='what', classes=['x', 'z']), "line 3: unknown class 'y'"),
    (dict(image='photo', label='what', csv='none.csv'), 'none.csv'), (dict(image='photo', label='what', partiall=1), 'partial')])
def test_bad_folder(tmp_path, kw, words):
    own(tmp_path)
    with pytest.raises(UserError, match=words): A.open_dataset('folder', tmp_path, **kw)


def test_folder_missing_image_and_duplicate(tmp_path):
    table = own(tmp_path); (tmp_path/'b.png').unlink()
    with pytest.raises(UserError, match='1 of 3 images not found, e.g. b'): A.read_folder(tmp_path, image='photo', label='what')
    pd.concat([table, table.iloc[:1]]).to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(UserError, match="'a' appears more than once"): A.read_folder(tmp_path, image='photo', label='what')


def test_subset_is_seeded(tmp_path):
    ham_folder(tmp_path)
    a, b, c = (A.open_dataset('ham10000', tmp_path, n=6, seed=s).manifest.image_id.tolist() for s in (0, 0, 1))
    assert a == b != c and a == sorted(a) and len(a) == 6
    with pytest.raises(UserError, match='has 12 images, not 13'): A.open_dataset('ham10000', tmp_path, n=13)


def test_unreadable_tables_are_sentences(tmp_path):
    home = ham_folder(tmp_path)
    for raw in (b'', b'\xff\xfe\x00\x01', b'image_id,dx\n"cut'):
        (home/'HAM10000_metadata.csv').write_bytes(raw)
        with pytest.raises(UserError, match='HAM10000_metadata.csv'): A.open_dataset('ham10000', tmp_path)


# ---- check ----

def test_check_whole(tmp_path):
    ham_folder(tmp_path/'data'/'HAM10000'); isic_folder(tmp_path/'data'/'ISIC2019')
    r = A.check(tmp_path/'data', progress=False)
    assert r.ok and r.decoded == 24 and not len(r.damaged) and 'no image of BCN_20000 (3) is here' in str(r)
    c = r.counts.set_index(['set', 'class'])
    assert c.loc[('ham10000', 'nv')].tolist() == [1, 6705] and c.loc[('isic2019_bcn', 'mel'), 'images'] == 0
    assert not A.quarantine_file().exists() # nothing to write


def damage(home, how):
    "Damage one image and give its id."
    if how == 'loose': # an unpacked image cut short
        unpack(home/'HAM10000_images_part_1.zip'); f = home/'HAM10000_images_part_1'/f'{IDS[1]}.jpg'; f.write_bytes(f.read_bytes()[:-100]); return f
    path = home/'HAM10000_images_part_1.zip'
    with zipfile.ZipFile(path) as z: members = {n: z.read(n) for n in z.namelist()}
    if how == 'member': pack(path, members | {f'{IDS[1]}.jpg': members[f'{IDS[1]}.jpg'][:-100]})
    if how == 'crc':
        raw = bytearray(path.read_bytes()); at = raw.find(members[f'{IDS[1]}.jpg'][1000:1040]); assert at > 0; raw[at:at+4] = b'\0\1\2\3'; path.write_bytes(raw)
    if how == 'deflate':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
            for n, m in members.items(): z.writestr(n, m)
        with zipfile.ZipFile(path) as z: at = z.getinfo(f'{IDS[1]}.jpg').header_offset + 60
        raw = bytearray(path.read_bytes()); raw[at:at+30] = b'\xff'*30; path.write_bytes(raw)
    if how == 'empty': pack(path, members | {f'{IDS[1]}.jpg': b''})
    return path


@pytest.mark.parametrize('how', ['loose', 'member', 'crc', 'deflate', 'empty'])
def test_check_quarantines_and_replacing_mends(tmp_path, how):
    home = ham_folder(tmp_path/'data'); spare = ham_folder(tmp_path/'spare')
    path = damage(home, how)
    r = A.check(tmp_path/'data', progress=False)
    assert not r.ok and len(r.damaged) == 1 and IDS[1] in r.damaged.path[0] and IDS[1] in str(r)
    table = pd.read_csv(A.quarantine_file())
    assert table.columns.tolist() == ['path', 'reason', 'fingerprint'] and table.path.tolist() == r.damaged.path.tolist()
    assert r.counts.set_index(['set', 'class']).loc[('ham10000', 'bcc'), 'images'] == 1 # of 2
    s = A.open_dataset('ham10000', tmp_path/'data')
    assert s.dropped == (IDS[1],) and len(s) == 11 and len(s.images(16)) == 11
    if how == 'loose':
        with zipfile.ZipFile(spare/'HAM10000_images_part_1.zip') as z: path.write_bytes(z.read(f'{IDS[1]}.jpg'))
    else: shutil.copy(spare/path.name, path)
    assert len(A.open_dataset('ham10000', tmp_path/'data')) == 12 # a replaced file is used again
    assert A.check(tmp_path/'data', progress=False).ok and not len(pd.read_csv(A.quarantine_file()))


def test_check_damaged_mask_leaves_the_image(tmp_path):
    home = ham_folder(tmp_path/'data'); path = home/'HAM10000_segmentations_lesion_tschandl.zip'
    with zipfile.ZipFile(path) as z: members = {n: z.read(n) for n in z.namelist()}
    name = next(n for n in members if IDS[2] in n); pack(path, members | {name: members[name][:60]})
    assert not A.check(tmp_path/'data', progress=False).ok
    s = A.open_dataset('ham10000', tmp_path/'data')
    assert len(s) == 12 and s.manifest['mask'].eq('').sum() == 1 and not s.dropped


def test_check_missing_and_broken_archives(tmp_path):
    home = ham_folder(tmp_path/'data'); zip2 = home/'HAM10000_images_part_2.zip'; raw = zip2.read_bytes()
    zip2.unlink(); r = A.check(tmp_path/'data', progress=False)
    assert not r.ok and 'HAM10000_images_part_2.zip is missing: 6 of 12' in str(r)
    zip2.write_bytes(raw[:-40]); r = A.check(tmp_path/'data', progress=False)
    assert not r.ok and r.damaged.path.tolist() == [str(zip2)]
    zip2.write_bytes(raw); (home/'HAM10000_metadata.csv').unlink(); r = A.check(tmp_path/'data', progress=False)
    assert not r.ok and "'HAM10000_metadata.csv' is not in" in str(r)


def test_check_other_folders(tmp_path):
    with pytest.raises(UserError, match='holds no image'): A.check(tmp_path, progress=False)
    own(tmp_path); (tmp_path/'a.jpg').write_bytes(b'<html>'); assert A.check(tmp_path, progress=False).damaged.reason.tolist() == ['not an image file']
    (tmp_path/'a.jpg').write_bytes(picture(0)[:-80])
    r = A.check(tmp_path, progress=False)
    assert not r.ok and [Path(p).name for p in r.damaged.path] == ['a.jpg']
    (tmp_path/'more').mkdir(); ham_folder(tmp_path/'more')
    assert A.check(tmp_path/'more', progress=False).ok and len(A.quarantined()) == 1 # another folder's entries stay


# ---- fetch ----

class Site:
    "A loopback server whose files can be served whole, cut short, or refused."
    def __init__(self, files):
        self.files, self.cut, self.hits, self.json = files, set(), [], {}
        site = self
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path, _, query = self.path.partition('?'); name = path.rsplit('/', 1)[-1]; site.hits.append(self.path)
                raw = site.json.get(path) or site.files.get(name)
                if raw is None: self.send_error(404); return
                self.send_response(200); self.send_header('Content-Length', str(len(raw))); self.end_headers()
                self.wfile.write(raw[:len(raw)//2] if name in site.cut else raw)
                self.close_connection = True
            def log_message(self, *args): pass
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site(tmp_path):
    home = ham_folder(tmp_path/'origin')
    s = Site({f.name: f.read_bytes() for f in home.iterdir()})
    yield s
    s.server.shutdown(); s.server.server_close()


def md5s(files): return {n: 'md5:' + hashlib.md5(raw).hexdigest() for n, raw in files.items()}


HAM_TINY = dict(counts=ham_table().dx.value_counts().to_dict(), licence='CC BY-NC 4.0')


def get(site, target, registry=True, said=None, **kw):
    said = [] if said is None else said
    kw = dict(base_url=site.url, registry=md5s(site.files) if registry is True else registry, official=HAM_TINY, progress=False) | kw
    return A.fetch('ham10000', target, echo=said.append, **kw)


def tree(folder): return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob('*')) if Path(folder).exists() else []


def test_fetch_whole_then_already_there(tmp_path, site):
    said, target = [], tmp_path/'t'
    got = get(site, target, said=said)
    assert (got.state == 'fetched').all() and (got.checked_by == 'checksum').all()
    assert 'licence CC BY-NC 4.0' in said[0] and 'GB' in said[0] and str(target) in said[0] and 'published checksums' in said[1]
    assert {f.name: f.read_bytes() for f in (target/'HAM10000').iterdir()} == site.files
    assert len(A.open_dataset('ham10000', target)) == 12
    hits = len(site.hits); again = get(site, target)
    assert (again.state == 'already there').all() and len(site.hits) == hits
    for f in (target/'HAM10000').iterdir(): f.rename(target/f.name) # directly in the target: found as well
    (target/'HAM10000').rmdir()
    assert (get(site, target).state == 'already there').all() and len(site.hits) == hits


def test_fetch_by_ids_when_no_checksums(tmp_path, site):
    said = []; got = get(site, tmp_path/'t', registry=None, said=said)
    assert (got.checked_by == 'ids and counts').all() and 'official id list and counts' in said[1]
    assert (get(site, tmp_path/'t', registry=None).state == 'already there').all()


@pytest.mark.parametrize('registry', [True, None])
def test_fetch_cut_short(tmp_path, site, registry):
    site.cut.add('HAM10000_images_part_1.zip')
    with pytest.raises(UserError, match=r'HAM10000_images_part_1.zip .* was cut short on the way; nothing was kept'): get(site, tmp_path/'t', registry=registry)
    assert tree(tmp_path/'t') == ['HAM10000', 'HAM10000/HAM10000_metadata.csv']
    site.cut.clear(); got = get(site, tmp_path/'t', registry=registry)
    assert got.state.tolist() == ['already there', 'fetched', 'fetched', 'fetched']


def test_fetch_wrong_content(tmp_path, site):
    good = md5s(site.files); site.files['HAM10000_images_part_2.zip'] = b'<html>log in</html>'
    with pytest.raises(UserError, match='HAM10000_images_part_2.zip .* is not the official file .its md5 differs'): get(site, tmp_path/'t', registry=good)
    with pytest.raises(UserError, match='HAM10000_images_part_2.zip .* is not the official file .it is not a whole zip'): get(site, tmp_path/'t', registry=None)
    assert not [p for p in tree(tmp_path/'t') if 'part_2' in p or 'skinrepro' in p]


@pytest.mark.parametrize('change, words', [
    (lambda m: dict(list(m.items())[:-1]), 'it holds 5 of the 6 official images'), (lambda m: m | {'ISIC_0000001.jpg': picture(99)}, 'and 1 others')])
def test_fetch_wrong_ids(tmp_path, site, change, words):
    members = {f'{i}.jpg': picture(k) for k, i in enumerate(IDS[:6])}
    site.files['HAM10000_images_part_1.zip'] = pack(tmp_path/'x.zip', change(members)).read_bytes()
    with pytest.raises(UserError, match=words): get(site, tmp_path/'t', registry=None)


def test_fetch_wrong_counts(tmp_path, site):
    site.files['HAM10000_metadata.csv'] = ham_table(IDS[:10]).to_csv(index=False).encode()
    with pytest.raises(UserError, match='HAM10000_metadata.csv .*counts are not the official ones'): get(site, tmp_path/'t', registry=None)
    assert tree(tmp_path/'t') == ['HAM10000']


def test_fetch_replaces_a_damaged_file_only_when_whole(tmp_path, site):
    get(site, tmp_path/'t'); path = tmp_path/'t'/'HAM10000'/'HAM10000_images_part_1.zip'; path.write_bytes(b'cut'); good = md5s(site.files)
    site.cut.add(path.name)
    with pytest.raises(UserError, match='cut short'): get(site, tmp_path/'t')
    assert path.read_bytes() == b'cut'
    site.cut.clear()
    assert get(site, tmp_path/'t', registry=good).state.tolist() == ['already there', 'replaced', 'already there', 'already there']


def test_fetch_unpacked_already(tmp_path, site):
    get(site, tmp_path/'t'); unpack(tmp_path/'t'/'HAM10000'/'HAM10000_images_part_1.zip'); hits = len(site.hits)
    assert (get(site, tmp_path/'t').state == 'already there').all() and len(site.hits) == hits


def closed_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


def test_fetch_offline_says_what_and_where(tmp_path):
    said = []
    with pytest.raises(UserError, match='cannot be reached: download HAM10000_metadata.csv, HAM10000_images_part_1.zip.* by hand from https://doi.org/10.7910/DVN/DBW86T and put them into '):
        A.fetch('ham10000', tmp_path/'t', base_url=f'http://127.0.0.1:{closed_port()}', progress=False, echo=said.append)
    text = '\n'.join(said)
    assert all(f in text for f in A.SOURCES['ham10000']['files']) and str(tmp_path/'t'/'HAM10000') in text and 'skinrepro data check' in text
    assert tree(tmp_path/'t') == ['HAM10000']


def test_fetch_404_and_bad_names(tmp_path, site, monkeypatch):
    del site.files['HAM10000_images_part_2.zip']
    with pytest.raises(UserError, match='refused by the server .status 404'): get(site, tmp_path/'t', registry=None)
    with pytest.raises(UserError, match="did you mean 'ham10000'"): A.fetch('ham1000', tmp_path)
    monkeypatch.delenv('SKINREPRO_DATA', raising=False)
    with pytest.raises(UserError, match='no target folder'): A.fetch('ham10000')
    (tmp_path/'f').write_text('')
    with pytest.raises(UserError, match='cannot be made'): get(site, tmp_path/'f'/'x')


def dataverse(site, monkeypatch, files, md5=None):
    "Let the loopback server imitate the part of Dataverse's API that pooch reads."
    import pooch.downloaders as D
    listed = [{'dataFile': {'id': n, 'filename': 'HAM10000_metadata.tab' if n == 'HAM10000_metadata.csv' else n, 'md5': (md5 or {}).get(n) or hashlib.md5(raw).hexdigest()}} for n, raw in files.items()]
    site.json['/api/datasets/:persistentId'] = json.dumps({'data': {'latestVersion': {'files': listed}}}).encode()
    monkeypatch.setattr(D, 'doi_to_url', lambda doi, **kw: f'{site.url}/dataset.xhtml')


def test_fetch_through_dataverse_registry(tmp_path, site, monkeypatch):
    "pooch's own load_registry_from_doi and DataverseRepository, against imitated JSON; the table's MD5 is that of another form."
    dataverse(site, monkeypatch, site.files, md5={'HAM10000_metadata.csv': '0'*32})
    said = []; got = A.fetch('ham10000', tmp_path/'t', official=HAM_TINY, progress=False, echo=said.append) if shutil.disk_usage(tmp_path).free > 3e9 else pytest.skip('needs 3 GB of room')
    assert got.checked_by.tolist() == ['ids and counts'] + ['checksum']*3 and 'MD5 checksums of the archive itself' in said[1]
    assert any('datafile/HAM10000_metadata.csv?format=original' in h for h in site.hits) and len(A.open_dataset('ham10000', tmp_path/'t')) == 12


def test_fetch_dataverse_wrong_md5_and_offline(tmp_path, site, monkeypatch):
    if shutil.disk_usage(tmp_path).free < 3e9: pytest.skip('needs 3 GB of room')
    dataverse(site, monkeypatch, site.files, md5={'HAM10000_images_part_1.zip': '0'*32})
    with pytest.raises(UserError, match='HAM10000_images_part_1.zip .*its md5 differs'): A.fetch('ham10000', tmp_path/'t', official=HAM_TINY, progress=False, echo=lambda s: None)
    import pooch.downloaders as D, requests
    def offline(*a, **k): raise requests.exceptions.ConnectionError('no network')
    monkeypatch.setattr(D, 'doi_to_url', offline); said = []
    with pytest.raises(UserError, match='cannot be read .ConnectionError.: download HAM10000'): A.fetch('ham10000', tmp_path/'u', progress=False, echo=said.append)
    assert 'To do it by hand' in '\n'.join(said) and tree(tmp_path/'u') == []


def test_fetch_isic(tmp_path):
    ids = isic_folder(tmp_path/'o'); truth = pd.read_csv(tmp_path/'o'/A.TRUTH)
    pack(tmp_path/'o'/'ISIC_2019_Training_Input.zip', {f'ISIC_2019_Training_Input/{i}.jpg': picture(k) for k, i in enumerate(ids)})
    site = Site({f.name: f.read_bytes() for f in (tmp_path/'o').iterdir()})
    official = dict(counts={c: int(truth[c.upper()].sum()) for c in ISIC_CLASSES}, licence='CC BY-NC 4.0')
    kw = dict(base_url=site.url, official=official, progress=False, echo=lambda s: None)
    assert A.fetch('isic2019_bcn', tmp_path/'t', **kw).checked_by.tolist() == ['ids and counts']*3
    assert len(A.open_dataset('isic2019_all', tmp_path/'t')) == 19
    site.files[A.META] = pd.read_csv(io.BytesIO(site.files[A.META])).iloc[:-1].to_csv(index=False).encode()
    with pytest.raises(UserError, match='does not list the images of'): A.fetch('isic2019', tmp_path/'u', **kw)
    site.server.shutdown(); site.server.server_close()


def test_fetch_pad_zip_of_zips(tmp_path):
    def inner(ks):
        f = io.BytesIO()
        with zipfile.ZipFile(f, 'w') as z:
            for k in ks: z.writestr(f'imgs_part/PAT_{k//2}_7_{k}.png', picture(k, 'PNG'))
        return f.getvalue()
    whole = {'zr7vgbcyr2-1/images/imgs_part_1.zip': inner((0, 1)), 'zr7vgbcyr2-1/images/imgs_part_2.zip': inner((2, 3)), 'zr7vgbcyr2-1/metadata.csv': pad_table().to_csv(index=False)}
    name = 'zr7vgbcyr2-1.zip'; site = Site({name: pack(tmp_path/'a.zip', whole).read_bytes()})
    official = dict(counts=dict(bcc=1, mel=1, nev=1, ack=1), licence='CC BY 4.0')
    kw = dict(base_url=site.url, official=official, progress=False, echo=lambda s: None)
    assert A.fetch('pad_ufes_20', tmp_path/'t', **kw).state.tolist() == ['fetched']
    assert tree(tmp_path/'t/PAD-UFES-20') == ['imgs_part_1.zip', 'imgs_part_2.zip', 'metadata.csv'] and len(A.open_dataset('pad_ufes_20', tmp_path/'t')) == 4
    assert A.fetch('pad_ufes_20', tmp_path/'t', **kw).state.tolist() == ['already there'] and len(site.hits) == 1
    A.fetch('pad_ufes_20', tmp_path/'r', registry=md5s(site.files), **kw)
    whole.pop('zr7vgbcyr2-1/images/imgs_part_2.zip'); site.files[name] = pack(tmp_path/'a.zip', whole).read_bytes()
    with pytest.raises(UserError, match='holds 2 of the 4 official images'): A.fetch('pad_ufes_20', tmp_path/'u', **kw)
    assert tree(tmp_path/'u') == ['PAD-UFES-20']
    site.server.shutdown(); site.server.server_close()


def test_progress_lines(tmp_path, site, capfd):
    get(site, tmp_path/'t', progress=True)
    assert 'HAM10000_images_part_1.zip: ' in capfd.readouterr().err


def test_no_torch_at_import():
    import subprocess, sys
    code = "import sys, skinrepro.data.archives; assert not {'torch', 'pooch', 'fastai'} & set(sys.modules), sorted(sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0


# ---- the real files ----

@pytest.mark.data
def test_real_ham(data_dir):
    s = A.open_dataset('ham10000', data_dir)
    assert s.counts().to_dict() == A.OFFICIAL['ham10000']['counts'] == dict(nv=6705, mel=1113, bkl=1099, bcc=514, akiec=327, vasc=142, df=115)
    assert len(s) == 10015 and s.manifest.lesion_id.nunique() == 7470 and (s.manifest['mask'] != '').all() and not s.dropped
    assert A.decode(s.manifest['mask'][0], mode='L').shape == A.decode(s.manifest.path[0]).shape[:2]


@pytest.mark.data
def test_real_isic(data_dir):
    s = A.open_dataset('isic2019_ham', data_dir)
    assert s.counts().to_dict() == A.OFFICIAL['isic2019_ham']['counts'] and s.counts()['ak'] == 130 and s.counts()['scc'] == 197
    assert set(s.manifest.image_id) == set(A.open_dataset('ham10000', data_dir).manifest.image_id)
    if not any('ISIC_2019_Training_Input' in p for p in map(str, data_dir.rglob('*'))):
        with pytest.raises(UserError, match='12,413 of 12,413 images not found'): A.open_dataset('isic2019_bcn', data_dir)
        with pytest.raises(UserError, match='15,316 of 25,331 images not found'): A.open_dataset('isic2019_all', data_dir)


@pytest.mark.data
def test_real_isic_tables(data_dir):
    rows = A._isic_rows(A.find_files(data_dir))
    for part, source in A.ISIC_PARTS.items():
        d = rows if source is None else rows[rows.source == source]
        assert d.label.value_counts().to_dict() == A.OFFICIAL[part]['counts'] and d.lesion_id[d.lesion_id != ''].nunique() == A.OFFICIAL[part]['lesions']
    assert (rows.lesion_id == '').sum() == 2084 and (rows.source == 'MSK').sum() == 819


@pytest.mark.data
def test_real_pad(data_dir):
    table = A._pad_rows(A.find_files(data_dir))
    assert table.label.value_counts().to_dict() == A.OFFICIAL['pad_ufes_20']['counts'] and table.patient_id.nunique() == 1373
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); s = A.open_dataset('pad_ufes_20', data_dir)
    assert len(s) + len(s.dropped) == 2298
    if len(s) == 742:
        assert s.manifest.patient_id.nunique() == 581 and s.manifest.skin_type.value_counts().to_dict() == {1: 50, 2: 254, 3: 131, 4: 27, 5: 3, 6: 1}
        assert (s.manifest.box.map(len) == 1).mean() > .95


@pytest.mark.data
def test_real_mixture_and_store(data_dir, tmp_path):
    home = tmp_path/'HAM10000'; home.mkdir()
    for f in (data_dir/'HAM10000').iterdir(): (home/f.name).symlink_to(f)
    with zipfile.ZipFile(home/'HAM10000_images_part_1.zip') as z:
        for n in z.namelist()[:20]: z.extract(n, home/'HAM10000_images_part_1')
    s = A.open_dataset('ham10000', tmp_path)
    assert len(s) == 10015 and sum('!' not in p for p in s.manifest.path) == 20
    whole, few = A.open_dataset('ham10000', data_dir), 300
    x = A.subset(whole, few).images(64)
    assert x.shape == (few, 64, 64, 3) and len(np.unique(x[:, ::8, ::8].reshape(few, -1), axis=0)) == few
    (home/'HAM10000_images_part_2.zip').unlink()
    with pytest.raises(UserError, match='HAM10000_images_part_2.zip is missing: 5,015 of 10,015 images not found'): A.open_dataset('ham10000', tmp_path)


@pytest.mark.data
def test_real_store_64(data_dir):
    x = A.open_dataset('ham10000', data_dir).images(64)
    assert x.shape == (10015, 64, 64, 3) and 100 < x[::50].mean() < 220
