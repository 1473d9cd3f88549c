"""Training of the small model's denoiser with views: six of them from one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pseudolabels.zero123plus.pipeline import Zero123PlusPipeline, scale_latents
from pseudolabels.zero123plus.reference import add_reference_attention, predict_with_reference
from pseudolabels.zero123plus.small_model import SCALING
from pseudolabels.zero123plus.small_ring_task import RingData, RingTask
from pseudolabels.zero123plus.small_training import (
    DROPPED,
    TaskConfig,
    quick_attention,
    v_target,
)

_BATCH = 16  # of evaluations


class ViewsTask(RingTask):
    """The denoiser and the vision encoder, from one picture to the grid of six; captions are rehearsed.

    Args:
        pipeline: Whose networks are trained; its text encoder stays as it is.
        data: What is learnt from.
        config: Settings.
    """

    def __init__(self, pipeline: Zero123PlusPipeline, data: RingData, config: TaskConfig) -> None:
        super().__init__(pipeline, data, config)
        add_reference_attention(self.model.network["unet"])
        self.optimizer = torch.optim.AdamW(self.model.network.parameters(), lr=config.lr, weight_decay=1e-3)
        size = pipeline.config.view_size
        grey = torch.zeros((1, 3, size, size), device=pipeline.vae.device)
        with torch.no_grad():
            self.nothing = pipeline.encode_nothing(grey).to(config.device)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An input, its grid of views, and a captioned picture to rehearse."""
        first, ground = int(rng.integers(6)), int(rng.integers(2))
        item = self._train.item(index, first, ground)
        draws = {
            name: rng.standard_normal(item[of].shape, dtype=np.float32)
            for name, of in (("noise", "grid"), ("reference_noise", "reference"))
        }
        return {
            **item,
            **draws,
            "timestep": rng.integers(self.noise.config.num_train_timesteps),
            "dropped": np.bool_(rng.random() < DROPPED),
            **self._rehearsal.sample(rng),
        }

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """Mean squared errors of v, of views and of the rehearsed pictures."""
        if step:
            self.model.update()
        networks = self.model.network
        views = self.error(networks, batch).mean()
        captions = self._rehearsal.error(networks["unet"], batch)
        figures = {"views": float(views.detach()), "captions": float(captions.detach())}
        return views + self._config.replay * captions, {**figures, **self._clock.scalars()}

    def error(self, networks: Any, batch: dict[str, Tensor]) -> Tensor:
        """Squared error of v by grid: [B]."""
        clean = scale_latents(batch["grid"] * SCALING)
        steps, dropped = batch["timestep"], batch["dropped"]
        reference = torch.where(dropped[:, None, None, None], self.nothing, batch["reference"])
        with quick_attention(clean.device):
            predicted = predict_with_reference(
                networks["unet"],
                self.noise.add_noise(clean, batch["noise"], steps),
                steps,
                self.tokens(networks, batch["image"], ~dropped),
                self.noise.add_noise(reference, batch["reference_noise"], steps),
            ).float()
        return (predicted - v_target(self.noise, clean, batch["noise"], steps)).square().mean((1, 2, 3))

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Losses of the averaged weights with the right picture and with another animal's."""
        found: dict[str, list[Tensor]] = {"loss": [], "loss_shuffled": []}
        rng = np.random.default_rng([self._config.seed, 4])
        for start in range(0, len(self._val), _BATCH):
            items = [
                self._val.item(number, number % 6, number % 2)
                for number in range(start, min(start + _BATCH, len(self._val)))
            ]
            columns = {name: np.stack([item[name] for item in items]) for name in items[0]}
            for name in ("grid", "reference"):
                key = "noise" if name == "grid" else "reference_noise"
                columns[key] = rng.standard_normal(columns[name].shape, dtype=np.float32)
            columns["timestep"] = rng.integers(self.noise.config.num_train_timesteps, size=len(items))
            columns["dropped"] = np.zeros(len(items), bool)
            batch = {
                name: torch.from_numpy(value).to(self._config.device) for name, value in columns.items()
            }
            found["loss"].append(self.error(self.model.mean, batch))
            for name in ("image", "reference"):
                batch[name] = batch[name].roll(1, 0)
            found["loss_shuffled"].append(self.error(self.model.mean, batch))
        return {name: float(torch.cat(values).mean()) for name, values in found.items()}
