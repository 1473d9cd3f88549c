"""Latents of the training pictures, encoded once: what the denoiser learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pseudolabels.zero123plus.pipeline import GRID
from pseudolabels.zero123plus.small_data import GREY, WHITE, Caption, ViewFolder, grid_places, over
from pseudolabels.zero123plus.small_model import vae_pixels
from pseudolabels.zero123plus.small_training import DROPPED, to_pixels
from wildshape.files import atomic_write
from wildshape.stage import progress

GROUNDS = (GREY, WHITE)  # that inputs are seen over; views are over grey
_BATCH = 64


@dataclass(frozen=True)
class PictureLatents:
    """Captioned pictures as the denoiser sees them.

    Attributes:
        latents: float16 [N, C, h, w], of unit variance.
        captions: N of them.
        parts: uint8 [N, S, S], 0 none, 1 the first part.
    """

    latents: np.ndarray
    captions: tuple[Caption, ...]
    parts: np.ndarray

    def sample(
        self, index: int, ids: Callable[[str], np.ndarray], timesteps: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Latents of a picture, a caption of it or none as `ids`, noise, and one of so many timesteps."""
        caption = self.captions[index].sample(rng)
        text = "" if rng.random() < DROPPED else caption
        latents = self.latents[index].astype(np.float32)
        return {
            "latents": latents,
            "ids": ids(text),
            "noise": rng.standard_normal(latents.shape, dtype=np.float32),
            "timestep": rng.integers(timesteps),
        }


@dataclass(frozen=True)
class RingLatents:
    """Animals from all around as the denoiser sees them.

    Attributes:
        inputs: float16 [N, 2, 6, C, h, w], over each of `GROUNDS`.
        targets: float16 [N, 2, 6, C, h, w], by elevation and azimuth.
        images: RGBA uint8 [N, 6, S, S, 4], the inputs.
    """

    inputs: np.ndarray
    targets: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    def item(self, index: int, first: int, ground: int) -> dict[str, np.ndarray]:
        """Input `first` of a ring over a ground, and its grid of views.

        Returns:
            image uint8 [S, S, 3], reference [C, h, w] and grid [C, 3 h, 2 w], float32.
        """
        views = np.stack([self.targets[index][place] for place in grid_places(first)])
        return {
            "image": over(self.images[index, first], GROUNDS[ground]),
            "reference": self.inputs[index, ground, first].astype(np.float32),
            "grid": grid_of(views.astype(np.float32)),
        }


def grid_of(views: np.ndarray) -> np.ndarray:
    """Six views [6, C, H, W] as a grid [C, 3 H, 2 W], row by row."""
    rows, columns = GRID
    _, channels, height, width = views.shape
    cells = views.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return cells.reshape(channels, rows * height, columns * width)


@torch.inference_mode()
def encode(vae: Any, images: np.ndarray) -> np.ndarray:
    """Latents float16 [..., C, h, w] of pictures RGB uint8 [..., S, S, 3]."""
    flat = images.reshape(-1, *images.shape[-3:])
    found = []
    for start in range(0, len(flat), _BATCH):
        pixels = to_pixels(flat[start : start + _BATCH], vae.device)
        found.append(vae.encode(vae_pixels(pixels)).latent_dist.mode().half().cpu().numpy())
    latents = np.concatenate(found)
    return latents.reshape(*images.shape[:-3], *latents.shape[1:])


def picture_file(vae: Any, data: Any) -> dict[str, np.ndarray]:
    """The latents of a file of captioned pictures."""
    return {"latents": encode(vae, data["image"])}


def ring_file(vae: Any, data: Any) -> dict[str, np.ndarray]:
    """The latents of a file of rings."""
    inputs = np.stack([over(data["inputs"], ground) for ground in GROUNDS], 1)
    return {"inputs": encode(vae, inputs), "targets": encode(vae, over(data["targets"], GREY))}


def write_latents(vae: Any, views: ViewFolder, folder: Path, late: Callable[[], bool]) -> bool:
    """Encode what is not yet encoded, file by file.

    Args:
        vae: The finished autoencoder.
        views: The pictures.
        folder: For the latents.
        late: Says when to stop.

    Returns:
        Whether all is encoded.
    """
    kinds = {"pictures-val": picture_file, "rings-val": ring_file}
    kinds |= {"pictures-train": picture_file, "rings-train": ring_file}
    todo = [(file, make) for kind, make in kinds.items() for file in views.files(kind)]
    for file, make in progress(todo, "latents", unit="file"):
        target = folder / file.name
        if target.exists():
            continue
        if late():
            return False
        with np.load(file, allow_pickle=False) as data, atomic_write(target) as handle:
            np.savez(handle, **make(vae, data))
    return True


def _read(views: ViewFolder, folder: Path, kind: str, name: str) -> np.ndarray:
    parts = []
    for file in views.files(kind):
        with np.load(folder / file.name, allow_pickle=False) as data:
            parts.append(data[name])
    return np.concatenate(parts)


def read_pictures(views: ViewFolder, folder: Path, split: str) -> PictureLatents:
    """Latents, captions and parts of the captioned pictures of a split."""
    pictures = views.pictures(split)
    return PictureLatents(
        _read(views, folder, f"pictures-{split}", "latents"), pictures.captions, pictures.parts
    )


def read_rings(views: ViewFolder, folder: Path, split: str) -> RingLatents:
    """Latents and inputs of the rings of a split."""
    kind = f"rings-{split}"
    return RingLatents(
        _read(views, folder, kind, "inputs"),
        _read(views, folder, kind, "targets"),
        views.ring_inputs(split),
    )
