"""Training of the small denoiser's middle: where in the grid does what stand, seen from nothing but noise?

At the highest noise levels neither the noisy views nor the noisy reference tell anything: the denoiser must
lay six different views out from the picture's embedding and from where in the grid it is. A whole denoising
step teaches little of that for its cost. Here the outer level runs once for all animals of a batch, on pure
noise, and the middle alone learns, through heads that are thrown away.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pseudolabels.zero123plus.pipeline import GRID, Zero123PlusPipeline
from pseudolabels.zero123plus.small_coarse import (
    CELL,
    coarse_grid,
    coarse_item,
    coarse_loss,
    coarse_scale,
    coarse_views,
    explained,
)
from pseudolabels.zero123plus.small_ring_task import RingData, RingTask
from pseudolabels.zero123plus.small_training import TaskConfig, quick_attention

_BATCH = 16  # of evaluations
_HIDDEN = 256
_NOISIEST = 0.9  # timesteps from here on, as a share of all
_PLACE = 0.1  # weight of telling which of the six views a place belongs to
_HEADS_LR = 2.5  # times the denoiser's
_FEWER = 4  # captioned pictures are rehearsed for a quarter of a batch


class LayoutTask(RingTask):
    """The denoiser's middle and the vision encoder, from one picture and noise to six coarse views.

    Captions are rehearsed by the whole denoiser.

    Args:
        pipeline: Whose networks are trained; its text encoder stays as it is, the heads are kept in the
            checkpoint alone.
        data: What is learnt from.
        config: Settings.
    """

    def __init__(self, pipeline: Zero123PlusPipeline, data: RingData, config: TaskConfig) -> None:
        self._scale = coarse_scale(data.train)
        self._shape = data.train.item(0, 0, 0)["grid"].shape
        unet = pipeline.unet
        width, channels = unet.config.block_out_channels[-1], unet.config.out_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            heads = nn.ModuleDict(
                {
                    "views": nn.Sequential(
                        nn.Conv2d(width, _HIDDEN, 1), nn.GELU(), nn.Conv2d(_HIDDEN, channels, 1)
                    ),
                    "place": nn.Conv2d(width, GRID[0] * GRID[1], 1),
                }
            )
        super().__init__(pipeline, data, config, heads=heads)
        network = self.model.network
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [*network["unet"].parameters(), *network["vision_encoder"].parameters()]},
                {"params": [*network["heads"].parameters()], "lr": _HEADS_LR * config.lr},
            ],
            lr=config.lr,
            weight_decay=1e-3,
        )

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An input, its coarse views, noise for a batch, and a captioned picture to rehearse."""
        last = self.noise.config.num_train_timesteps
        return {
            **coarse_item(self._train, index, rng),
            "noise": rng.standard_normal(self._shape, dtype=np.float32),
            "timestep": rng.integers(int(_NOISIEST * last), last),
            **self._rehearsal.sample(rng),
        }

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """`coarse_loss` of the coarse views, cross-entropy of the place, squared error of rehearsed v."""
        if step:
            self.model.update()
        networks = self.model.network
        views, places = self.predict(networks, batch)
        layout = coarse_loss(views, batch["views"], self._scale)
        true = place_of(places.shape[-2:]).to(places.device).expand(len(places), -1, -1)
        place = nn.functional.cross_entropy(places, true)
        few = max(len(views) // _FEWER, 1)
        captions = self._rehearsal.error(networks["unet"], {name: of[:few] for name, of in batch.items()})
        figures = {"layout": layout, "place": place, "captions": captions}
        return layout + _PLACE * place + self._config.replay * captions, {
            **{name: float(value.detach()) for name, value in figures.items()},
            **self._clock.scalars(),
        }

    def predict(self, networks: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Coarse views [B, 6, D], and logits of the view that a place belongs to [B, 6, h, w]."""
        with quick_attention(batch["image"].device):
            tokens = self.tokens(networks, batch["image"])
            noise, step = batch["noise"][:1], batch["timestep"][:1]
            features = middle(networks["unet"], noise, step, tokens, self.empty)
            factor = features.shape[-1] * CELL // noise.shape[-1]
            views = networks["heads"]["views"](nn.functional.avg_pool2d(features, factor))
            places = networks["heads"]["place"](features)
        return coarse_grid(views.float()), places.float()

    @cached_property
    def _val_items(self) -> dict[str, Tensor]:
        items = [self._val.item(number, number % 6, number % 2) for number in range(len(self._val))]
        rng = np.random.default_rng([self._config.seed, 5])
        noise = rng.standard_normal((len(items), *items[0]["grid"].shape), dtype=np.float32)
        return {
            "image": torch.from_numpy(np.stack([item["image"] for item in items])),
            "views": torch.from_numpy(np.stack([coarse_views(item["grid"]) for item in items])),
            "noise": torch.from_numpy(noise),
            "timestep": torch.full((len(items),), self.noise.config.num_train_timesteps - 1),
        }

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Shares of the validation views' variance that the averaged weights explain from pure noise."""
        items = self._val_items
        found = []
        for start in range(0, len(self._val), _BATCH):
            batch = {name: of[start : start + _BATCH].to(self._config.device) for name, of in items.items()}
            found.append(self.predict(self.model.mean, batch)[0].cpu())
        return explained(torch.cat(found), items["views"])


def place_of(size: tuple[int, int] | torch.Size) -> Tensor:
    """Which of the six views each place of a grid of this height and width belongs to: int64 [H, W]."""
    rows, columns = GRID
    row, column = (torch.arange(length) * count // length for length, count in zip(size, (rows, columns)))
    return row[:, None] * columns + column


def middle(unet: Any, noise: Tensor, timestep: Tensor, tokens: Tensor, empty: Tensor) -> Tensor:
    """What a U-Net's middle block gives for one noise and many pictures' tokens.

    Args:
        unet: A `UNet2DConditionModel`. Its outer levels on the way down run once, without gradient and
            without the pictures.
        noise: [1, C, H, W].
        timestep: [1].
        tokens: [B, L, D].
        empty: Tokens of no picture [1, L, D].

    Returns:
        Features [B, C', H', W'].
    """
    *outer, inner = unet.down_blocks
    with torch.no_grad():
        time = unet.time_embedding(unet.time_proj(timestep).to(noise.dtype))
        hidden = unet.conv_in(noise)
        for block in outer:
            hidden = _downwards(block, hidden, time, empty)
    time = time.expand(len(tokens), -1)
    hidden = _downwards(inner, hidden.expand(len(tokens), -1, -1, -1), time, tokens)
    return unet.mid_block(hidden, time, encoder_hidden_states=tokens)


def _downwards(block: Any, hidden: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
    given = {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}
    return block(hidden, time, **given)[0]
