"""Settings of the small model's training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wildshape.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train the small Zero123Plus."""

    data: Path = Path("views")
    """Folder of prepare_data/make_views.py."""
    out: Path = Path("small_zero123plus")
    """Folder for checkpoints, figures and the pipeline."""
    start: Path | None = None
    """Folder of a pipeline to go on from in place of random weights; its autoencoder stays as it is."""
    vae_steps: int = 3000
    """Optimiser steps of the autoencoder."""
    vae_batch: int = 16
    """Pictures a step."""
    caption_steps: int = 12000
    """Optimiser steps of the denoiser with captions; with --start it may be 0."""
    caption_batch: int = 16
    """Pictures a step."""
    vision_steps: int = 6000
    """Optimiser steps of the vision encoder, from random weights, before views; 0: it begins as it is."""
    vision_batch: int = 64
    """Pictures a step."""
    layout_steps: int = 4000
    """Optimiser steps of the denoiser's middle, which lays six views out, before views; 0: none."""
    layout_batch: int = 16
    """Animals a step."""
    view_steps: int = 4000
    """Optimiser steps of the denoiser with views; 0: it ends with captions."""
    view_batch: int = 4
    """Animals a step."""
    lr: float = 8e-4
    """AdamW's learning rate, falling by a cosine to a hundredth; 2.5 times as much for the vision
    encoder before views, half of it with views."""
    eval_every: int = 500
    """Steps between evaluations; a kill loses no more than these."""
    animals: int = 48
    """Animals whose views are sampled for the figures."""
    sampling_steps: int = 28
    """Steps of that sampling."""
    guidance_scale: float = 2.0
    """Guidance of that sampling."""
    figures: bool = False
    """Sample views now, though the training has not ended."""
    seed: int = 0
    """Seed of weights, order and noise."""
    time_limit: float | None = None
    """Minutes after which to stop with the state saved; the same command continues."""
    threads: int = 2
    """Threads that compute."""
    num_workers: int = 1
    """Threads that prepare items ahead."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: str = "auto"
    """float32, bfloat16, or auto: bfloat16 where the hardware multiplies in it."""
    overwrite: bool = False
    """Replace a training with other settings."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        """Check what has few values."""
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UserError(f"--precision: expected auto, float32 or bfloat16; found {self.precision}")
        if self.caption_steps < 1 and (self.start is None or self.view_steps < 1):
            expected = "at least 1, or 0 with --start and --view_steps"
            raise UserError(f"--caption_steps: expected {expected}; found {self.caption_steps}")
