"Trains a tiny StyleGAN or PGGAN through a fade; imported by test_gan.py, and run by it as the process that is killed."
import sys
import time
from pathlib import Path

import numpy as np
import torch

from skinrepro.data.phantom import phantom
from skinrepro.methods.gan import AUGMENT, fit_gan
from skinrepro.methods.pggan import Growth, ProgressiveGAN, pggan
from skinrepro.methods.stylegan import stylegan
from skinrepro.methods.train import StepLoader

IMAGES, BATCH, EVERY, STEPS, SIZE = 40, 8, 3, 14, 8 # 5 steps an epoch; 4 px until step 3, a fade until step 11
MAKE = dict(pggan=pggan, stylegan=stylegan)


class Slow(ProgressiveGAN):
    pause = 0.
    def g_loss(self, batch, step): time.sleep(self.pause); return super().g_loss(batch, step)


def game(kind, fmap=8, seed=0, **kw):
    G, D = MAKE[kind](SIZE, fmap, 12, seed=seed)
    return Slow(G, D, Growth(SIZE, 1., .024, .064), BATCH, augment=tuple(AUGMENT), r1_every=2, flip=True, **kw)


def train(kind, folder=None, pause=0., seed=0, steps=STEPS, made=None, **kw): # fit_gan's result
    torch.set_num_threads(1)
    g = made or game(kind, seed=seed); g.pause = pause
    loader = StepLoader(phantom(IMAGES).render(SIZE), np.arange(IMAGES), BATCH, steps, seed)
    return fit_gan(g, loader, folder, seed, seconds=1e9, device='cpu', **dict(dict(every=EVERY, sheet_every=5), **kw))


def plain(result): # what must be equal, bit for bit
    return dict(game=result['game'].state_dict(), G=result['G'].state_dict(), curve={k: torch.tensor(v) for k, v in result['curve'].items()})


if __name__ == '__main__':
    kind, folder, pause = sys.argv[1:]
    torch.save(plain(train(kind, folder, float(pause))), Path(folder)/'final.pt')
