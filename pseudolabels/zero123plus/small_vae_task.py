"""Training of the small model's autoencoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pseudolabels.zero123plus.averaged import Averaged
from pseudolabels.zero123plus.pipeline import IMAGE_STD, Zero123PlusPipeline
from pseudolabels.zero123plus.small_model import vae_pixels
from pseudolabels.zero123plus.small_training import CpuClock, TaskConfig, psnr, to_pixels

_BATCH = 64  # of evaluations


class VaeTask:
    """The autoencoder: squared error and a little of the latents' divergence from normal.

    Args:
        pipeline: Whose autoencoder is trained.
        train: RGB uint8 [N, S, S, 3].
        val: The same, to validate on.
        config: Settings.
    """

    def __init__(
        self, pipeline: Zero123PlusPipeline, train: np.ndarray, val: np.ndarray, config: TaskConfig
    ) -> None:
        self.model = Averaged(pipeline.vae).to(config.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.network.parameters(), lr=config.lr, weight_decay=1e-4)
        self._train, self._val, self._config = train, val, config
        self._clock = CpuClock()

    def __len__(self) -> int:
        return len(self._train)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A picture, mirrored or not, and the noise of its latents."""
        image = self._train[index]
        if rng.random() < 0.5:
            image = image[:, ::-1]
        vae = self.model.network
        side = len(image) // 2 ** (len(vae.config.block_out_channels) - 1)
        noise = rng.standard_normal((vae.config.latent_channels, side, side), dtype=np.float32)
        return {"image": image, "noise": noise}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """Squared error of pixels, and the divergence."""
        if step:
            self.model.update()
        vae = self.model.network
        pixels = vae_pixels(batch["image"].permute(0, 3, 1, 2).float() / 255)
        latents = vae.encode(pixels).latent_dist
        drawn = latents.mean + latents.std * batch["noise"]
        error = nn.functional.mse_loss(vae.decode(drawn).sample.float(), pixels)
        mean, logvar = latents.mean.float(), latents.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        scalars = {"mse": float(error.detach()), "kl": float(divergence.detach()), **self._clock.scalars()}
        return error + self._config.kl_weight * divergence, scalars

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """PSNR in decibels of the averaged weights on the validation pictures."""
        found = []
        for start in range(0, len(self._val), _BATCH):
            pixels = to_pixels(self._val[start : start + _BATCH], self._config.device)
            found.append(psnr(reconstruct(self.model.mean, pixels), pixels))
        return {"psnr": float(torch.cat(found).mean())}


def reconstruct(vae: Any, pixels: Tensor) -> Tensor:
    """Pictures in 0 to 1 [B, 3, S, S] through an autoencoder and back."""
    latents = vae.encode(vae_pixels(pixels)).latent_dist.mode()
    return (vae.decode(latents).sample * IMAGE_STD + 0.5).clamp(0, 1)
