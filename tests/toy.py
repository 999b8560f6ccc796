"A sixth paper that needs no torch, in a copy of the package: what the tests of grids run, in real processes."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

import skinrepro

MODULE = '''
from dataclasses import dataclass
from typing import Literal
from skinrepro import core

@dataclass(frozen=True)
class Config(core.Config):
    arm:str = 'a' # ours
    stage:Literal['evaluate', 'pretrain'] = 'evaluate' # ours
    dataset:str = 'phantom' # ours
    seed:int = 0 # ours
    steps:int = 20 # ours
    pause:float = .1 # ours
    trouble:str = '' # ours

PRESETS, PROTOCOLS, ARMS, MAIN, STAGES = dict(smoke={}, small={}, paper={}), dict(paper={}), dict(a={}, b={}), ('a', 'b'), dict(evaluate='', pretrain='pretraining')
def arms(preset='smoke', protocol='paper'): return {k: Config(arm=k) for k in ARMS}
def inputs(cfg): return dict(encoder=cfg.but(stage='pretrain')) if cfg.arm == 'b' and cfg.stage == 'evaluate' else {}
'''

SHEET = ["""arm, stage, preset, protocol, dataset, seed, overrides, inputs, data, out = 'a', 'evaluate', 'smoke', 'paper', 'phantom', 0, {}, {}, None, None""",
"""import io, json, os, time
from pathlib import Path
import numpy as np
from skinrepro.core import UserError, atomic, write_json
from skinrepro.papers.toy import arms
cfg, out = arms(preset, protocol)[arm].but(stage=stage, dataset=dataset, seed=seed, **overrides), Path(out)
for w in inputs.values(): assert (Path(w)/'encoder.pt').is_file()
with open(out/'log.jsonl', 'a') as f: f.write(json.dumps(dict(pid=os.getpid(), gpu=os.environ.get('CUDA_VISIBLE_DEVICES'), threads=os.environ.get('OMP_NUM_THREADS'))) + chr(10))
first = not (out/'second').exists(); (out/'second').touch()
if cfg.trouble == 'mend': raise UserError('lr=9 is too large: lower it')
if cfg.trouble == 'code': raise ValueError('a bug')
if cfg.trouble == 'memory' and first: raise MemoryError('no more')
if cfg.trouble == 'full': raise OSError(28, 'No space left on device')
file = out/'at.json' # a checkpoint
at = json.loads(file.read_text()) if file.is_file() else 0
while at < cfg.steps:
    time.sleep(cfg.pause); at += 1
    write_json(file, at); write_json(out/'progress.json', dict(step=at, steps=cfg.steps))""",
"""(out/'encoder.pt').write_bytes(b'weights')
with atomic(out/'figures.npz', 'wb') as f: np.savez(f, y=np.arange(3))
write_json(out/'record.json', dict(config=cfg.to_dict(), metrics=[dict(name='accuracy', value=.5 + seed/100, n=10, split='test')], seconds=cfg.steps*cfg.pause, images_per_s=1., peak_mib=1,
    data=dict(name='phantom', manifest='0'*64, split='0'*64, images=10, counts={}, classes=[], dropped=[], licence=''), artefacts={'encoder.pt': '0'*64} if stage == 'pretrain' else {}, machine=dict(threads=1)))"""]


def library(folder): # a copy of the package with the toy in it; put it on PYTHONPATH
    lib = Path(folder)/'lib'
    shutil.copytree(Path(skinrepro.__file__).parent, lib/'skinrepro', ignore=shutil.ignore_patterns('__pycache__'))
    for name, old, new in (('runner', "PAPERS = ('gan_ssl',", "PAPERS = ('toy', 'gan_ssl',"), ('published', "PAPERS = dict(gan_ssl='P0'", "PAPERS = dict(toy='P9', gan_ssl='P0'")):
        file = lib/'skinrepro'/'companion'/f'{name}.py'; text = file.read_text()
        assert text.count(old) == 1, name
        file.write_text(text.replace(old, new))
    (lib/'skinrepro'/'papers'/'toy.py').write_text(MODULE)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s, metadata=dict(tags=['parameters'] if k == 0 else [])) for k, s in enumerate(SHEET)], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    (lib/'skinrepro'/'runs').mkdir(exist_ok=True)
    nbformat.write(nb, lib/'skinrepro'/'runs'/'toy.ipynb')
    return lib


DRIVER = '''
import json, sys
from skinrepro.companion import grid
from skinrepro.companion.runner import plan
a = json.loads(sys.argv[1])
cells = plan('toy', arms=a.get('arms'), seeds=range(a.get('seeds', 6)), overrides=a.get('set'))
if a.get('cluster'):
    with grid.cluster(a['cluster'], None, a.get('workers')) as pool: print(json.dumps(grid.run_grid(cells, pool=pool)))
else: print(json.dumps(grid.run_grid(cells, workers=a.get('workers', 3), gpus=a.get('gpus'))))
'''


def drive(lib, home, words, **more): # a driver of its own process
    home.mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ('SKINREPRO_DATA', 'SKINREPRO_RESULTS', 'OMP_NUM_THREADS')} | dict(PYTHONPATH=str(lib), SKINREPRO_HOME=str(home), SKINREPRO_CACHE=str(lib.parent/'cache'), PYTHONWARNINGS='ignore') | more
    return subprocess.Popen([sys.executable, '-c', DRIVER, words], cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
