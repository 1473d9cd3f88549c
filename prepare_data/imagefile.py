"""Is this an image? Decode bytes fully and say what they are, or why they are none."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from wildshape.crops import BROKEN, shown
from wildshape.near_duplicates import phash
from wildshape.tables import make_image_id

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif",
             "BMP": ".bmp", "TIFF": ".tif"}  # fmt: skip
_MAX_PIXELS = 100_000_000


class BadImage(Exception):
    """Bytes that are not a usable image.

    Attributes:
        status: `truncated`, `not_image`, `too_small` or `too_large`.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class ImageFacts:
    """What decoding tells: size in pixels as shown (EXIF orientation applied), id, hash, suffix."""

    image_id: str
    width: int
    height: int
    phash: str
    suffix: str


def _is_cut_webp(data: bytes) -> bool:
    """Whether a WebP file is shorter than its header says; Pillow takes that for any other mistake."""
    riff = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return riff and len(data) < 8 + int.from_bytes(data[4:8], "little")


def inspect_image(data: bytes, min_side: int = 1) -> ImageFacts:
    """Decode an image fully, the first picture of an animation.

    Args:
        data: The file's bytes.
        min_side: Least length in pixels of the shorter side.

    Raises:
        BadImage: if the bytes are empty, no image, cut short, or of an unsuitable size.
    """
    if not data:
        raise BadImage("not_image", "expected an image; found 0 bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            suffix = _SUFFIXES.get(image.format or "", ".img")
            if image.width * image.height > _MAX_PIXELS:
                raise BadImage("too_large", f"{image.width} x {image.height} pixels")
            image.load()
            picture = shown(image)
            pixels = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except UnidentifiedImageError:
        start = data[:16].decode("ascii", errors="replace").strip()
        raise BadImage("not_image", f"expected an image; found bytes {start!r}") from None
    except Image.DecompressionBombError as error:
        raise BadImage("too_large", str(error)) from None
    except BROKEN as error:
        # Pillow tells a cut file only by its words: "image file is truncated (n bytes not
        # processed)", "broken data stream when reading image file", "Truncated File Read"
        words = str(error).lower()
        cut = isinstance(error, EOFError) or any(w in words for w in ("truncat", "broken data"))
        cut = cut or _is_cut_webp(data)
        raise BadImage("truncated" if cut else "not_image", str(error) or "cut short") from None
    height, width = pixels.shape[:2]
    if min(height, width) < min_side:
        raise BadImage("too_small", f"{width} x {height} pixels; expected at least {min_side}")
    return ImageFacts(make_image_id(data), width, height, phash(pixels), suffix)
