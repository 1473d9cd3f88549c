"""Training of the small model's vision encoder: what do the six views roughly look like?

The published model's encoder is CLIP's, which knew what pictures show before any view was learnt. A random
one learns too little through a denoiser: after 2000 steps it told colours, and not where the animal faces.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pseudolabels.zero123plus.averaged import Averaged
from pseudolabels.zero123plus.pipeline import Zero123PlusPipeline
from pseudolabels.zero123plus.small_coarse import (
    coarse_item,
    coarse_loss,
    coarse_scale,
    coarse_views,
    explained,
)
from pseudolabels.zero123plus.small_latents import RingLatents
from pseudolabels.zero123plus.small_training import CpuClock, TaskConfig, embed

_BATCH = 128  # of evaluations
_HIDDEN = 512
_PATCH_STD = 0.04  # patches then weigh about as much as their places
_SHARPER = 1.5  # queries and keys


class VisionTask:
    """The vision encoder, from a picture to its six views' latents, coarsely, through a head of its own.

    Args:
        pipeline: Whose vision encoder is trained, from new weights; the head is kept in the checkpoint
            alone.
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
        self._scale = coarse_scale(train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            start_anew(encoder)
            head: nn.Module = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, _HIDDEN), nn.GELU(),
                nn.Linear(_HIDDEN, self._scale.mean.numel()),
            )  # fmt: skip
        self.model = Averaged(nn.ModuleDict({"vision_encoder": encoder, "head": head})).to(config.device)
        self._mean = self._scale.mean.to(config.device)
        self.optimizer = torch.optim.AdamW(self.model.network.parameters(), lr=config.lr, weight_decay=0.05)
        self._clock = CpuClock()

    def __len__(self) -> int:
        return len(self._train)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An input of an animal, and its coarse views."""
        return coarse_item(self._train, index, rng)

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """`coarse_loss` of the coarse views."""
        if step:
            self.model.update()
        predicted = self.predict(self.model.network, batch["image"])
        return coarse_loss(predicted, batch["views"], self._scale), self._clock.scalars()

    def predict(self, networks: Any, images: Tensor) -> Tensor:
        """Coarse views float32 [B, 6, D] of pictures RGB uint8 [B, S, S, 3]."""
        found = networks["head"](embed(networks["vision_encoder"], images))
        return found.float().unflatten(1, self._mean.shape) + self._mean

    @cached_property
    def _val_items(self) -> tuple[Tensor, Tensor]:
        count = len(self._val)
        items = [self._val.item(number, first, first % 2) for number in range(count) for first in range(6)]
        images = torch.from_numpy(np.stack([item["image"] for item in items]))
        return images, torch.from_numpy(np.stack([coarse_views(item["grid"]) for item in items]))

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Shares of the validation views' variance that the averaged weights explain."""
        images, views = self._val_items
        found = [
            self.predict(self.model.mean, batch.to(self._config.device)).cpu()
            for batch in images.split(_BATCH)
        ]
        return explained(torch.cat(found), views)


@torch.no_grad()
def start_anew(encoder: Any) -> None:
    """Give a `CLIPVisionModelWithProjection` new weights from which a small one learns where things are.

    With the library's own all patches look alike to the embedding's token at first, wherever they lie, and
    it takes several times the steps until it tells left from right.
    """
    encoder.load_state_dict(type(encoder)(encoder.config).state_dict())
    vision = encoder.vision_model
    embeddings = vision.embeddings
    side = encoder.config.image_size // encoder.config.patch_size
    embeddings.position_embedding.weight[1:] = waves(side, encoder.config.hidden_size)
    nn.init.normal_(embeddings.class_embedding)
    nn.init.normal_(embeddings.patch_embedding.weight, std=_PATCH_STD)
    for layer in vision.encoder.layers:
        attention = layer.self_attn
        linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
        for module in (*linear, layer.mlp.fc1, layer.mlp.fc2):
            nn.init.xavier_uniform_(module.weight)
        for module in linear[:2]:
            module.weight.mul_(_SHARPER)


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of the places of a square's patches, row by row: [side ** 2, width]."""
    count = width // 4
    rates = math.pi / 2 * 100.0 ** (-torch.arange(count) / count)
    places = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in places]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
