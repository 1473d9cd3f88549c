"""A training of milliseconds, with dropout and augmentation, so that randomness shows."""

import numpy as np
import torch
from torch import nn

from wildshape.stage import Provenance
from wildshape.training import FitConfig, fit

EXTRA = {"kind": "pose", "category": "cow"}


class ToyTask:
    def __init__(self, items=10, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        rng = np.random.default_rng(7)
        self.x = rng.normal(size=(items, 3)).astype(np.float32)
        self.y = self.x.sum(1, keepdims=True)

    def __len__(self):
        return len(self.x)

    def sample(self, index, rng):
        noise = rng.normal(scale=0.01, size=3).astype(np.float32)
        return {"x": self.x[index] + noise, "y": self.y[index], "index": index}

    def loss(self, batch, step):
        error = (self.model(batch["x"]) - batch["y"]).abs().mean()
        return error, {"error": error.item()}

    def evaluate(self):
        with torch.no_grad():
            error = (self.model(torch.from_numpy(self.x)) - torch.from_numpy(self.y)).abs().mean()
        return {"auc": -float(error), "error": float(error)}


def fit_toy(task, folder, provenance=None, **options):
    config = FitConfig(**{"steps": 23, "batch_size": 4, "eval_every": 5, "log_every": 3, **options})
    settings = {"steps": config.steps, "seed": config.seed}
    return fit(task, config, folder, provenance or Provenance("toy-train", settings), EXTRA)
