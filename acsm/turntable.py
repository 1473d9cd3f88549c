"""Turntables: a textured shape turned once round, as GIF and as MP4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from acsm.drawing import turned
from acsm.renderer import interpolate, rasterize, render_shaded
from acsm.texture import Atlas
from wildshape.errors import UserError
from wildshape.files import atomic_path

FRAMES_PER_SECOND = 20
_SUPERSAMPLE = 2


def render_textured(
    vertices_ndc: np.ndarray, faces: np.ndarray, atlas: Atlas, texture: np.ndarray, size: int
) -> np.ndarray:
    """A textured mesh, softly shaded, on white: uint8 [size, size, 3].

    Args:
        vertices_ndc: [V, 3].
        faces: [F, 3].
        atlas: where the texture has the faces.
        texture: RGB uint8 of the atlas's size.
        size: of the picture, pixels.
    """
    corners = np.arange(3 * len(faces)).reshape(-1, 3)
    fragments = rasterize(np.asarray(vertices_ndc)[None], faces, size * _SUPERSAMPLE)
    uv = interpolate(atlas.uv.reshape(-1, 2), corners, fragments)[0]
    xy = uv * np.float32([atlas.width, atlas.height]) - np.float32(0.5)
    albedo = cv2.remap(texture, xy, None, cv2.INTER_LINEAR).astype(np.float32) / 255
    seen = fragments.mask[0].astype(np.float32)[..., None]
    total = cv2.resize(albedo * seen, (size, size), interpolation=cv2.INTER_AREA)
    cover = cv2.resize(seen, (size, size), interpolation=cv2.INTER_AREA)[..., None]
    white = np.ones((len(vertices_ndc), 3), np.float32)
    lit, coverage = render_shaded(vertices_ndc, faces, size, white, background=(0.0, 0.0, 0.0))
    # The photo has its own light: soften ours.
    light = 0.55 * coverage[..., None] + 0.45 * lit.astype(np.float32) / 255
    picture = total / np.maximum(cover, 1e-6) * light + 1 - coverage[..., None]
    return np.rint(picture.clip(0, 1) * 255).astype(np.uint8)


def turntable(
    vertices: np.ndarray, faces: np.ndarray, atlas: Atlas, texture: np.ndarray, size: int, frames: int
) -> list[np.ndarray]:
    """Pictures of a shape turned once round, the first from its left side.

    Args:
        vertices: [V, 3] in the template frame.
        faces: [F, 3].
        atlas: where the texture has the faces.
        texture: RGB uint8 of the atlas's size.
        size: of the pictures, pixels.
        frames: how many.
    """
    pictures = []
    for number in range(frames):
        seen = turned(vertices, 90 + 360 * number / frames)
        reach = 1.05 * np.linalg.norm(seen, axis=1).max()
        pictures.append(render_textured(seen / reach, faces, atlas, texture, size))
    return pictures


def write_gif(path: Path, frames: Sequence[np.ndarray], fps: int = FRAMES_PER_SECOND) -> None:
    """Write pictures uint8 [H, W, 3] as a GIF that repeats for ever, whole or not at all."""
    from PIL import Image

    # One palette for all frames: colours that change from frame to frame flicker.
    strip = Image.fromarray(np.concatenate(list(frames)[:: max(1, len(frames) // 8)]))
    palette = strip.quantize(255, method=Image.Quantize.MEDIANCUT)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
        )


def write_mp4(path: Path, frames: Sequence[np.ndarray], fps: int = FRAMES_PER_SECOND) -> str:
    """Write pictures uint8 [H, W, 3] as a film, whole or not at all.

    H.264 with imageio-ffmpeg (the extra ``video``), which every player knows; else OpenCV's VP9, which
    browsers and VLC play, or MPEG-4 part 2, which VLC plays and browsers do not.

    Returns:
        The codec.

    Raises:
        UserError: nothing installed here can write a film.
    """
    height, width = (-(-n // 2) * 2 for n in frames[0].shape[:2])  # chroma comes in blocks of 2 x 2
    padding = ((0, height - frames[0].shape[0]), (0, width - frames[0].shape[1]), (0, 0))
    padded = [np.ascontiguousarray(np.pad(frame, padding, mode="edge")) for frame in frames]
    with atomic_path(path) as temporary:
        return _h264(temporary, padded, fps) or _opencv(temporary, padded, fps)


def _h264(path: Path, frames: Sequence[np.ndarray], fps: int) -> str | None:
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="libx264", quality=8, macro_block_size=2
    )
    writer.send(None)
    for frame in frames:
        writer.send(frame)
    writer.close()
    return "H.264"


def _opencv(path: Path, frames: Sequence[np.ndarray], fps: int) -> str:
    height, width = frames[0].shape[:2]
    for code, name in (("vp09", "VP9"), ("mp4v", "MPEG-4 part 2")):
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (width, height))
        if writer.isOpened():
            for frame in frames:
                writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            writer.release()
            return name
    raise UserError("--turntable: expected a film encoder; run: pip install 'wildshape[video]'")
