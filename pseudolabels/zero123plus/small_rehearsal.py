"""Rehearsal of captions, so that the small model's denoiser keeps what it learnt from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from pseudolabels.zero123plus.small_latents import PictureLatents
from pseudolabels.zero123plus.small_training import WordIds, caption_error

_PREFIX = "rehearsal_"  # of columns in a batch that holds others as well


class Rehearsal:
    """Captioned pictures, which the denoiser goes on denoising while it learns something else.

    Args:
        pipeline: Whose text encoder reads the captions; it stays as it is.
        captions: The pictures.
        noise: Schedule.
        device: Where to compute.
    """

    def __init__(
        self, pipeline: Any, captions: PictureLatents, noise: DDPMScheduler, device: torch.device | str
    ) -> None:
        self._captions, self._noise = captions, noise
        self._ids = WordIds(pipeline.tokenizer)
        self._text_encoder = pipeline.text_encoder.to(device).requires_grad_(False).eval()

    def sample(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A picture, its caption, noise and a timestep."""
        number = int(rng.integers(len(self._captions.captions)))
        item = self._captions.sample(number, self._ids, self._noise.config.num_train_timesteps, rng)
        return {_PREFIX + name: value for name, value in item.items()}

    def error(self, unet: Any, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of v."""
        items = {name.removeprefix(_PREFIX): of for name, of in batch.items() if name.startswith(_PREFIX)}
        return caption_error(unet, self._text_encoder, self._noise, items).mean()
