"Trains a tiny SimCLR or BYOL; imported by test_resume.py, and run by it as the process that is killed."
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback

from skinrepro.data.phantom import phantom
from skinrepro.data.views import Views
from skinrepro.methods.byol import BYOL, BYOLModel
from skinrepro.methods.encoders import Projected, encoder, mlp
from skinrepro.methods.simclr import SimCLR
from skinrepro.methods.train import StepLoader, fit, learner

IMAGES, BATCH, EVERY, STEPS = 64, 16, 3, 10 # 4 steps an epoch, checkpoints at 3, 6, 9
NETS = dict(simclr='resnet18', byol='test_resnet') # the second is timm's, of half a million weights: a ResNet-18 with its target and optimiser is 180 MB a checkpoint


class Watch(Callback):
    "Notes the first step, and can wait after each."
    order = 99
    def __init__(self, pause): self.pause, self.first = pause, None
    def before_batch(self): self.first = self.learn.step if self.first is None else self.first
    def after_batch(self): time.sleep(self.pause)


def train(method, folder=None, pause=0., seed=0): # dict(model, opt, loss, first)
    torch.set_num_threads(1)
    net, views = encoder(NETS[method], seed), Views('gan_ssl', 16)
    if method == 'simclr': model, cb = Projected(net, mlp(net.num_features, 32, 16, seed=seed)), SimCLR(views, seed=seed)
    else: model, cb = BYOLModel(net, mlp(net.num_features, 32, 16, bn=True, seed=seed), mlp(16, 32, 16, bn=True, seed=seed)), BYOL(views, seed=seed)
    watch = Watch(pause)
    loader = StepLoader(phantom(n=IMAGES).images(24), np.arange(IMAGES), BATCH, STEPS, seed)
    learn = learner(model, loader, [cb, watch], 1e-3, 1e-4, seed=seed, folder=folder, seconds=1e9, device='cpu')
    if folder: learn.checkpoint.every = EVERY
    curve = fit(learn)
    return dict(model=model.state_dict(), opt=learn.opt.opt.state_dict()['state'], loss=curve['loss'], first=watch.first)


if __name__ == '__main__':
    method, folder, pause = sys.argv[1:]
    torch.save(train(method, folder, float(pause)), Path(folder)/'final.pt')
