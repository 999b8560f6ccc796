"P0 as a whole: what needs what, who may see what, and generated images on their way into pretraining."
import json

import numpy as np
import pytest

from skinrepro.core import UserError, sha256_file
from skinrepro.data.phantom import phantom
from skinrepro.data.splits import groups
from skinrepro.papers.gan_ssl import ARMS, MAIN, PRESETS, PROTOCOLS, STAGES, Config, arms, encoder_of, gan_of, inputs, run, split_of, unseen, with_generated

TINY = dict(n_images=200, epochs=1, batch=40, probe_epochs=5, heads=2, knn_every=50, gan_width=8, gan_kimg=1., gan_phase_kimg=.1, gan_images=1., q_aug=1.)


@pytest.fixture(scope='module')
def ds(): return phantom(600)


def tiny(protocol='strict', arm='simclr_da', **more): return arms('smoke', protocol)[arm].but(**{**TINY, **more})


@pytest.fixture(scope='module')
def chain(ds, tmp_path_factory):
    "GAN, encoder, probe, and the judgement of the GAN, each from the one before."
    d, cfg = tmp_path_factory.mktemp('chain'), tiny()
    out = dict(gan=run(gan_of(cfg), ds, d/'gan'))
    out['encoder'] = run(encoder_of(cfg), ds, d/'encoder', dict(gan=d/'gan'))
    out['probe'] = run(cfg, ds, None, dict(encoder=d/'encoder'))
    out['judged'] = run(tiny(arm='stylegan'), ds, None, dict(gan=d/'gan', features=d/'encoder'))
    return dict(out, folder=d, cfg=cfg)


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_every_arm_is_a_config_and_names_what_it_needs(preset, protocol):
    made = arms(preset, protocol)
    assert list(made) == list(ARMS) and set(MAIN) <= set(made)
    for name, cfg in made.items():
        assert cfg.arm == name and cfg.stage == 'evaluate'
        for need in inputs(cfg).values():
            assert need.stage in STAGES and need.stage != 'evaluate' and need.arm in made
            for deeper in inputs(need).values(): assert deeper.stage == 'gan' and not inputs(deeper)


def test_what_does_not_matter_is_not_in_a_name():
    a = arms('small', 'paper')
    assert encoder_of(a['simclr'].but(heads=1, probe_lr=1.)) == encoder_of(a['simclr'].but(gan_kimg=99., label_share=.1)) == encoder_of(a['simclr'])
    assert gan_of(a['simclr_da'].but(epochs=9, temperature=.5)) == gan_of(a['byol_da']) == gan_of(a['stylegan'])
    assert encoder_of(a['simclr_da'].but(gan_kimg=99.)) != encoder_of(a['simclr_da'])
    assert gan_of(a['stylegan'].but(seed=3)).seed == 3 and gan_of(a['simclr_da'].but(seed=3, gan_seeds='one')).seed == 0
    assert gan_of(a['stylegan'].but(seed=3, gan_seeds='one')).seed == 3 # three judged GANs are three GANs


def test_protocols_differ_in_their_gans():
    paper, strict = (gan_of(arms('small', p)['stylegan']) for p in PROTOCOLS)
    assert paper.transductive and not strict.transductive and strict.group == 'lesion' and paper != strict


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_who_sees_what(ds, protocol):
    for arm in ('simclr', 'simclr_1k_20k', 'simclr_7k_0', 'stylegan'):
        cfg = tiny(protocol, arm, q_aug=0., q_raw=arms('smoke', protocol)[arm].q_raw)
        used, split = split_of(gan_of(cfg) if arm == 'stylegan' else encoder_of(cfg), ds)
        g = groups(ds, 'lesion')
        if protocol == 'strict': assert not set(g[used]) & set(g[split.rows['test']])
        elif cfg.q_raw >= 1: assert set(split.rows['test']) <= set(used)
        assert len(used) == round(cfg.q_raw*200*(1 if protocol == 'paper' else .8))


def test_too_many_raw_images(ds):
    with pytest.raises(UserError, match='choose a smaller q_raw'): split_of(tiny(q_raw=5.), ds)


def test_gan_on_the_full_set_still_avoids_test_lesions(ds):
    used, split = split_of(gan_of(tiny(gan_on='full')), ds)
    assert len(used) > 300 and not set(groups(ds, 'lesion')[used]) & set(groups(ds, 'lesion')[split.rows['test']])


def test_unseen_images_are_of_other_lesions(ds):
    cfg = tiny(arm='stylegan'); used, _ = split_of(gan_of(cfg), ds); g = groups(ds, 'lesion')
    rows = unseen(cfg, ds)
    assert len(rows) > 50 and not set(g[rows]) & set(g[used])


def test_manifest_leads_to_the_weights(chain):
    m = json.loads((chain['folder']/'gan'/'generated.json').read_text())
    x = np.load(chain['folder']/'gan'/'generated.npy')
    assert m['generator'] == sha256_file(chain['folder']/'gan'/'generator.pt') and (m['n'], m['size'], m['psi']) == (len(x), x.shape[1], 1.) == (200, 32, 1.)
    assert x.dtype == np.uint8 and x.std() > 1 and chain['gan']['artefacts'] == ['generator.pt', 'generated.npy', 'generated.json']


def test_any_generated_image_can_be_made_again(chain):
    from skinrepro.methods.pggan import sample
    from skinrepro.methods.train import load_state
    from skinrepro.papers.gan_ssl import gan
    cfg = gan_of(chain['cfg']); G = gan(cfg)[0].G
    G.load_state_dict(load_state(chain['folder']/'gan'/'generator.pt'))
    x = np.load(chain['folder']/'gan'/'generated.npy')
    assert np.array_equal(sample(G, 3, cfg.seed, cfg.gan_psi, start=150), x[150:153])


def test_generated_images_join_the_real_ones(chain, ds):
    cfg = encoder_of(chain['cfg']); used, _ = split_of(cfg, ds)
    x, rows = with_generated(cfg, ds.images(cfg.store_size), used, dict(gan=chain['folder']/'gan'))
    assert len(rows) == len(used) + 200 and np.array_equal(x[rows[-2:]], np.load(chain['folder']/'gan'/'generated.npy')[-2:]) and np.array_equal(x[rows[:2]], ds.images(cfg.store_size)[used[:2]])
    with pytest.raises(UserError, match='raise gan_images'): with_generated(cfg.but(q_aug=2.), ds.images(32), used, dict(gan=chain['folder']/'gan'))
    with pytest.raises(UserError, match='make them with'): with_generated(cfg, ds.images(32), used, {})


def test_equal_steps(chain, ds):
    "strict: as many steps with generated images as without; paper: as many epochs."
    def steps(c): return next(m['value'] for m in c['metrics'] if m['name'] == 'steps')
    assert steps(chain['encoder']) == 200//40 # of all 200 raw images, whatever may be seen
    paper = run(encoder_of(tiny('paper', gan_seeds='one')), ds, None, dict(gan=chain['folder']/'gan'))
    assert steps(paper) == (200 + 200)//40


def test_numbers_carry_their_protocol(chain):
    named = {m['name']: m for m in chain['judged']['metrics']}
    assert {'fid', 'kid', 'precision', 'recall', 'memorised_feature', 'memorised_pixel', 'diversity_real', 'diversity_generated'} <= set(named)
    for name in ('fid', 'kid', 'precision', 'recall', 'memorised_feature'): assert 'n=' in named[name]['protocol'] and 'SimCLR resnet18' in named[name]['protocol']
    assert all(np.isfinite(m['value']) and m['n'] > 0 and m['split'] for r in ('gan', 'encoder', 'probe', 'judged') for m in chain[r]['metrics'])
    assert len({m['name'] for m in chain['judged']['metrics']}) == len(chain['judged']['metrics'])


def test_figures_fit_beside_a_record(chain, tmp_path):
    for r in ('gan', 'encoder', 'probe', 'judged'):
        np.savez_compressed(tmp_path/f'{r}.npz', **chain[r]['figures'])
        assert (tmp_path/f'{r}.npz').stat().st_size <= 300_000


def test_fewer_labels(chain, ds):
    cfg = tiny(arm='simclr_da_f10')
    assert cfg.label_share == .1 and inputs(cfg)['encoder'] == inputs(chain['cfg'])['encoder']
    r = run(cfg, ds, None, dict(encoder=chain['folder']/'encoder'))
    assert {m['name'] for m in r['metrics']} >= {'accuracy', 'balanced_accuracy'}


def test_unknown_values_are_refused():
    for bad in (dict(gan='dcgan'), dict(gan_loss='hinge'), dict(method='moco'), dict(gan_size=3)):
        with pytest.raises(UserError): Config().but(**bad)
