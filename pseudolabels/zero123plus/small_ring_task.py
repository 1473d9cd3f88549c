"""What the stages that teach the small model's denoiser views have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from pseudolabels.zero123plus.averaged import Averaged
from pseudolabels.zero123plus.pipeline import Zero123PlusPipeline, ramped
from pseudolabels.zero123plus.small_latents import PictureLatents, RingLatents
from pseudolabels.zero123plus.small_rehearsal import Rehearsal
from pseudolabels.zero123plus.small_training import CpuClock, TaskConfig, embed


@dataclass(frozen=True)
class RingData:
    """What views are learnt from.

    Attributes:
        train: Rings to train on: latents and inputs.
        val: The same, to validate on.
        captions: Captioned pictures to rehearse.
    """

    train: RingLatents
    val: RingLatents
    captions: PictureLatents


class RingTask:
    """The denoiser and the vision encoder, on rings of views; captions are rehearsed.

    Args:
        pipeline: Whose networks are trained; its text encoder stays as it is.
        data: What is learnt from.
        config: Settings.
        heads: Networks that are trained with them, by name.

    Attributes:
        model: All networks that are trained, and their average.
        noise: Schedule.
        empty: Tokens of an empty prompt [1, L, D].
    """

    def __init__(
        self,
        pipeline: Zero123PlusPipeline,
        data: RingData,
        config: TaskConfig,
        **heads: nn.Module,
    ) -> None:
        self._train, self._val, self._config = data.train, data.val, config
        trained = {"unet": pipeline.unet, "vision_encoder": pipeline.vision_encoder, **heads}
        self.model = Averaged(nn.ModuleDict(trained)).to(config.device, memory_format=torch.channels_last)
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._rehearsal = Rehearsal(pipeline, data.captions, self.noise, config.device)
        self._ramp = pipeline.config.ramping_coefficients
        with torch.no_grad():
            self.empty = pipeline.encode_prompt([""])
        self._clock = CpuClock()

    def __len__(self) -> int:
        return len(self._train)

    def tokens(self, networks: nn.ModuleDict, images: Tensor, shown: Tensor | None = None) -> Tensor:
        """The empty prompt's tokens with pictures' embeddings added: [B, L, D].

        Args:
            networks: Those that are trained, or their average.
            images: RGB uint8 [B, S, S, 3].
            shown: Which pictures are not left out, bool [B]; default: all.
        """
        added = ramped(embed(networks["vision_encoder"], images), self._ramp)
        if shown is not None:
            added = added * shown.to(added.dtype)[:, None, None]
        return self.empty + added
