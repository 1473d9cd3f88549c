"""Training of the small model's denoiser with captions: here it learns to be steered by tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from pseudolabels.zero123plus.attention import Recorder, cross_attention_layers, recording
from pseudolabels.zero123plus.averaged import Averaged
from pseudolabels.zero123plus.pipeline import Zero123PlusPipeline
from pseudolabels.zero123plus.small_latents import PictureLatents
from pseudolabels.zero123plus.small_training import (
    CpuClock,
    TaskConfig,
    WordIds,
    caption_error,
)

_LOOKING = 150  # timestep at which attention is measured: the picture shows through the noise
_BATCH = 64  # of evaluations


class CaptionTask:
    """The denoiser and the text encoder, from noise to captioned pictures.

    Args:
        pipeline: Whose networks are trained.
        train: Latents and captions to train on.
        val: The same, to validate on.
        parts: Names of the parts whose words' attention is measured.
        config: Settings.
    """

    def __init__(
        self,
        pipeline: Zero123PlusPipeline,
        train: PictureLatents,
        val: PictureLatents,
        parts: Sequence[str],
        config: TaskConfig,
    ) -> None:
        networks = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
        self.model = Averaged(networks).to(config.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.network.parameters(), lr=config.lr, weight_decay=1e-3)
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.ids = WordIds(pipeline.tokenizer)
        self._train, self._val, self._parts, self._config = train, val, tuple(parts), config
        self._clock = CpuClock()

    def __len__(self) -> int:
        return len(self._train.captions)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Latents, noise, timestep and caption of a picture."""
        return self._train.sample(index, self.ids, self.noise.config.num_train_timesteps, rng)

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of v."""
        if step:
            self.model.update()
        return self.error(self.model.network, batch).mean(), self._clock.scalars()

    def error(self, networks: Any, batch: dict[str, Tensor]) -> Tensor:
        """Squared error of v by item: [B]."""
        return caption_error(networks["unet"], networks["text_encoder"], self.noise, batch)

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Losses with the right, with others' and without captions, and where the words of parts look."""
        captions = self._val.captions
        ids = np.stack([self.ids(caption.full) for caption in captions])
        half = len(ids) // 2  # pictures of one animal stand side by side
        empty = np.broadcast_to(self.ids(""), ids.shape)
        found = {
            "loss": self._loss_with(ids),
            "loss_shuffled": self._loss_with(np.roll(ids, half, 0)),
            "loss_without": self._loss_with(empty),
        }
        networks = self.model.mean
        ratios = part_attention(networks["unet"], networks["text_encoder"], self, ids)
        return {**found, **ratios}

    def _loss_with(self, ids: np.ndarray) -> float:
        found = [self.error(self.model.mean, batch) for batch in self.val_batches(ids)]
        return float(torch.cat(found).mean())

    def val_batches(self, ids: np.ndarray, timestep: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Validation batches with given captions; noise and timesteps are the same each time."""
        rng = np.random.default_rng([self._config.seed, 3])
        latents = self._val.latents.astype(np.float32)
        noise = rng.standard_normal(latents.shape, dtype=np.float32)
        steps = rng.integers(self.noise.config.num_train_timesteps, size=len(ids))
        if timestep is not None:
            steps = np.full_like(steps, timestep)
        columns = {"latents": latents, "ids": np.array(ids), "noise": noise, "timestep": steps}
        for start in range(0, len(ids), _BATCH):
            yield {
                name: torch.from_numpy(column[start : start + _BATCH]).to(self._config.device)
                for name, column in columns.items()
            }

    def part_masks(self, side: int) -> Tensor:
        """Share of each cell that shows a part, of the validation pictures: [N, parts, side, side]."""
        parts = torch.from_numpy(self._val.parts)
        each = torch.stack([parts == number + 1 for number in range(len(self._parts))], 1).float()
        return nn.functional.adaptive_avg_pool2d(each, side)

    @property
    def part_ids(self) -> dict[str, int]:
        """Token of each part's word."""
        return {name: self.ids.known[name] for name in self._parts if name in self.ids.known}


def part_attention(unet: Any, text_encoder: Any, task: CaptionTask, ids: np.ndarray) -> dict[str, float]:
    """How much more the word of a part looks at that part than at chance, by part and on average.

    A part counts in a picture whose caption names it and which shows it on at least one cell of the maps.
    """
    ratios: dict[str, list[Tensor]] = {name: [] for name in task.part_ids}
    start = 0
    side = int(unet.config.sample_size)
    recorder = Recorder(side, side, side, layers=len(cross_attention_layers(unet)), stop=False)
    for batch in task.val_batches(ids, _LOOKING):
        with recording(unet, recorder):
            caption_error(unet, text_encoder, task.noise, batch)
        attention = torch.stack(recorder.maps).mean(0)
        masks = task.part_masks(side)[start : start + len(attention)].to(attention)
        start += len(attention)
        for number, (name, token) in enumerate(task.part_ids.items()):
            at, place = torch.nonzero(batch["ids"] == token, as_tuple=True)
            mask = masks[at, number]
            shown = mask.sum((1, 2)) >= 1
            found = attention[at, place]
            ratios[name].append(mass_ratio(found[shown], mask[shown]))
    means = {f"attention_{name}": float(torch.cat(found).mean()) for name, found in ratios.items()}
    return {**means, "attention": float(np.mean(list(means.values()))) if means else float("nan")}


def mass_ratio(attention: Tensor, mask: Tensor) -> Tensor:
    """How much more of a token's attention falls into a region than if it were spread evenly.

    Args:
        attention: [..., H, W], not negative.
        mask: [..., H, W] in 0 to 1, not empty.

    Returns:
        [...]: 1 is chance, 1 / (area of the region) all of it.
    """
    inside = (attention * mask).sum((-1, -2)) / attention.sum((-1, -2))
    return inside / mask.mean((-1, -2))
