"""Rehearsal of captions, so that the small model's denoiser keeps what it learnt from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from pseudolabels.zero123plus.small_latents import PictureLatents
from pseudolabels.zero123plus.small_training import DROPPED, WordIds, caption_error


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
        text = "" if rng.random() < DROPPED else self._captions.captions[number].sample(rng)
        latents = self._captions.latents[number].astype(np.float32)
        return {
            "rehearsal": latents,
            "rehearsal_noise": rng.standard_normal(latents.shape, dtype=np.float32),
            "rehearsal_timestep": rng.integers(self._noise.config.num_train_timesteps),
            "ids": self._ids(text),
        }

    def error(self, unet: Any, batch: dict[str, Tensor]) -> Tensor:
        """Mean squared error of v."""
        items = {
            "latents": batch["rehearsal"],
            "noise": batch["rehearsal_noise"],
            "timestep": batch["rehearsal_timestep"],
            "ids": batch["ids"],
        }
        return caption_error(unet, self._text_encoder, self._noise, items).mean()
