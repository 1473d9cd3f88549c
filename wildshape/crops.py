"""Reading images, and finding the file of an image by its id."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from wildshape.errors import UserError
from wildshape.tables import Table
from wildshape.workspace import Workspace

BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, LookupError, TypeError, ArithmeticError,
    struct.error,
)  # fmt: skip
"""What Pillow's decoders raise, each its own, for files that are no whole image."""


class ImageError(UserError):
    """An image that cannot be read."""


def decode_image(data: bytes, origin: str = "the image") -> np.ndarray:
    """Decode the bytes of an image file to RGB uint8 [H, W, 3], as a viewer shows it (see `shown`).

    Raises:
        ImageError: if the bytes are not a whole image of at least one pixel.
    """
    # OpenCV is the fast path for whole JPEG files without an orientation; Pillow knows the rest.
    turned = b"Exif" in data[:64] or b"tiff:Orientation" in data
    if data[:2] == b"\xff\xd8" and data.rstrip(b"\0")[-2:] == b"\xff\xd9" and not turned:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    from io import BytesIO

    try:
        with Image.open(BytesIO(data)) as opened:
            return np.array(shown(opened).convert("RGB"))  # a copy, since Pillow's own is read-only
    except Image.DecompressionBombError as error:
        raise ImageError(f"expected an image of a sane size in {origin}; {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"expected an image in {origin}; found {data[:8]!r} ... in place of one") from None
    except BROKEN as error:
        raise ImageError(f"expected an image in {origin}; found {error}") from None


def shown(image: Image.Image) -> Image.Image:
    """An opened picture as a viewer shows it, of mode RGB or L; the one that is given may be changed.

    It is turned as its EXIF, or XMP, says, has 8 bits, and is white where it is transparent. Of an
    animation or of several pages it is the first.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as RGB uint8 [H, W, 3], as a viewer shows it (see `shown`).

    Raises:
        ImageError: naming the file, if it is missing, empty or not an image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"expected an image at {path}; {error.strerror}") from None
    if not data:
        raise ImageError(f"expected an image in {path}; found an empty file")
    return decode_image(data, str(path))


class ImageReader:
    """`read_image` that remembers: rows of one image that stand close together decode it once.

    Args:
        kept: how many images are remembered, the oldest going first.
    """

    def __init__(self, kept: int = 8) -> None:
        self._images: dict[Path, np.ndarray] = {}
        self._kept = kept

    def __call__(self, path: Path) -> np.ndarray:
        """RGB uint8 [H, W, 3], not to be written to.

        Raises:
            ImageError: as `read_image`.
        """
        if path not in self._images:
            if len(self._images) >= self._kept:
                del self._images[next(iter(self._images))]
            self._images[path] = read_image(path)
        return self._images[path]


def image_paths(images: Table | Sequence[Table], workspace: Workspace) -> dict[str, Path]:
    """File of every image that has one, by image id."""
    tables = [images] if isinstance(images, Table) else images
    return {
        image_id: workspace.image_file(path)
        for table in tables
        for image_id, path in zip(table["image_id"], table["path"])
        if image_id is not None and path is not None
    }


def instance_problem(
    row: Mapping[str, Any], paths: Mapping[str, Path], read: Callable[[Path], Any]
) -> str | None:
    """Why an instance cannot be cropped from its image, or None if it can.

    Args:
        row: A row of an instances table.
        paths: File of each image id.
        read: Reads an image file, raising UserError if that cannot be done.
    """
    path, box = paths.get(row["image_id"]), row["box_xyxy"]
    if path is None:
        return f"no file of image {row['image_id']}"
    if not (box[2:] > box[:2]).all():
        return "a box of no area"
    try:
        read(path)
    except UserError as error:
        return str(error)
    return None


def vary_colour(crop: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """A picture with brightness, contrast and each channel changed at random.

    Args:
        crop: RGB uint8 [H, W, 3].
        reach: Largest relative change; 0 returns the picture itself.
        rng: All randomness comes from it.
    """
    if not reach:
        return crop
    gain = 1 + rng.uniform(-reach, reach) + rng.uniform(-reach, reach, 3) / 2
    bias = 127.5 * rng.uniform(-reach, reach) + 127.5 * (1 - gain)
    table = (np.arange(256)[:, None] * gain + bias).clip(0, 255).astype(np.uint8)
    return cv2.LUT(crop, table[:, None])
