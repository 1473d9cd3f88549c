"""Training of the small model's vision encoder: what do the six views roughly look like?

The published model's encoder is CLIP's, which knew what pictures show before any view was learnt. A random
one learns too little through a denoiser: after 2000 steps it told colours, and not where the animal faces.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pseudolabels.zero123plus.averaged import Averaged
from pseudolabels.zero123plus.pipeline import Zero123PlusPipeline
from pseudolabels.zero123plus.small_latents import RingLatents
from pseudolabels.zero123plus.small_model import clip_pixels
from pseudolabels.zero123plus.small_training import CpuClock, TaskConfig

_BATCH = 128  # of evaluations
_HIDDEN = 512
_CELL = 4  # latents a side that are averaged


class VisionTask:
    """The vision encoder, from a picture to its six views' latents, coarsely, through a head of its own.

    Args:
        pipeline: Whose vision encoder is trained; the head is kept in the checkpoint alone.
        train: Rings to train on: latents and inputs.
        val: The same, to validate on.
        config: Settings.
    """

    def __init__(
        self, pipeline: Zero123PlusPipeline, train: RingLatents, val: RingLatents, config: TaskConfig
    ) -> None:
        self._train, self._val, self._config = train, val, config
        encoder = pipeline.vision_encoder.train()
        width = encoder.config.projection_dim
        outputs = coarse(train.item(0, 0, 0)["grid"]).size
        torch.manual_seed(config.seed)
        head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, outputs)
        )
        self.model = Averaged(nn.ModuleDict({"vision_encoder": encoder, "head": head})).to(config.device)
        self.optimizer = torch.optim.AdamW(self.model.network.parameters(), lr=config.lr, weight_decay=0.05)
        self._clock = CpuClock()

    def __len__(self) -> int:
        return len(self._train)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An input of an animal, and its coarse views."""
        item = self._train.item(index, int(rng.integers(6)), int(rng.integers(2)))
        return {"image": item["image"], "views": coarse(item["grid"])}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the coarse views."""
        if step:
            self.model.update()
        error = predict(self.model.network, batch["image"]) - batch["views"]
        return error.square().mean(), self._clock.scalars()

    @cached_property
    def _val_items(self) -> tuple[Tensor, Tensor]:
        count = len(self._val)
        items = [self._val.item(number, first, first % 2) for number in range(count) for first in range(6)]
        images = torch.from_numpy(np.stack([item["image"] for item in items]))
        return images, torch.from_numpy(np.stack([coarse(item["grid"]) for item in items]))

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Share of the validation views' variance that the averaged weights explain: 1 is all of it."""
        images, views = self._val_items
        found = [
            predict(self.model.mean, batch.to(self._config.device)).cpu() for batch in images.split(_BATCH)
        ]
        missed = (torch.cat(found) - views).square().sum()
        return {"explained": float(1 - missed / (views - views.mean(0)).square().sum())}


def coarse(grid: np.ndarray) -> np.ndarray:
    """Latents of six views [C, 3 H, 2 W], averaged over cells: float32 [C * 3 H / 4 * 2 W / 4]."""
    channels, height, width = grid.shape
    cells = grid.reshape(channels, height // _CELL, _CELL, width // _CELL, _CELL)
    return cells.mean((2, 4), dtype=np.float32).reshape(-1)


def predict(networks: Any, images: Tensor) -> Tensor:
    """Coarse views float32 [B, D] of pictures RGB uint8 [B, S, S, 3]."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return networks["head"](networks["vision_encoder"](clip_pixels(pixels)).image_embeds).float()
