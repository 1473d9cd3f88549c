"""From the pixels of a web picture back to which picture it is, for the simulated detector."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wildshape.crops import decode_image
from wildshape.errors import UserError
from wildshape.files import atomic_path

if TYPE_CHECKING:
    from prepare_data.diorama.world import Shot

_THUMB = 16
_NEAR = 2.5  # grey levels by which two decoders of one file may differ on average


def pixel_hash(image: np.ndarray) -> str:
    """Hash of decoded pixels, RGB uint8 [H, W, 3]."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()[:24]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Colour thumbnail float32 [768] for pictures whose pixels differ by a decoder's rounding."""
    small = cv2.resize(image, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32).ravel()


def write_lookup(folder: Path, shots: Sequence[Shot]) -> None:
    """Stores hash, thumbnail and size of every web picture."""
    images = [decode_image(shot.data) for shot in shots]
    with atomic_path(folder / "lookup.npz") as path:
        np.savez_compressed(
            path,
            image_id=np.array([shot.image_id for shot in shots], dtype=np.str_),
            pixels=np.array([pixel_hash(image) for image in images], dtype=np.str_),
            thumbs=np.array([thumbnail(image) for image in images]).reshape(-1, 3 * _THUMB**2),
            sizes=np.array([image.shape[:2] for image in images]).reshape(-1, 2),
        )


class Lookup:
    """Finds a web picture by its decoded pixels.

    Raises:
        UserError: if the folder holds no world.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "lookup.npz"
        if not path.is_file():
            raise UserError(f"expected a synthetic world in {folder}; run: wildshape make-diorama")
        with np.load(path) as stored:
            self._ids = stored["image_id"]
            self._rows = {str(key): row for row, key in enumerate(stored["pixels"])}
            self._thumbs, self._sizes = stored["thumbs"], stored["sizes"]

    def find(self, image: np.ndarray) -> str | None:
        """Image id of RGB uint8 [H, W, 3], or None for a picture that is not of this world."""
        row = self._rows.get(pixel_hash(image))
        if row is None and len(self._ids):
            gap = np.abs(self._thumbs - thumbnail(image)).mean(1)
            gap[(self._sizes != image.shape[:2]).any(1)] = np.inf
            best = int(gap.argmin())
            row = best if gap[best] < _NEAR else None
        return None if row is None else str(self._ids[row])
