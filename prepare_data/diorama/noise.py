"""Value noise in three dimensions and tileable noise pictures, deterministic from a seed."""

from __future__ import annotations

from functools import cache

import cv2
import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True, inline="always")
def _hash(ix: int, iy: int, iz: int, seed: int) -> float:
    h = (ix * 374761393 + iy * 668265263 + iz * 2147483647 + seed * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = (h ^ (h >> 16)) & 0xFFFFFFFF
    return h / 4294967295.0


@nb.njit(cache=True, nogil=True)
def value_noise(x: float, y: float, z: float, seed: int) -> float:
    """Smooth noise in [0, 1] on the unit lattice at one point."""
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    ix, iy, iz = int(fx), int(fy), int(fz)
    tx, ty, tz = x - fx, y - fy, z - fz
    tx, ty, tz = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty), tz * tz * (3 - 2 * tz)
    total = 0.0
    for a in range(2):
        wa = tx if a else 1 - tx
        for b in range(2):
            wb = ty if b else 1 - ty
            for c in range(2):
                wc = tz if c else 1 - tz
                total += wa * wb * wc * _hash(ix + a, iy + b, iz + c, seed)
    return total


@nb.njit(cache=True, nogil=True)
def fractal_noise(points: np.ndarray, frequency: float, octaves: int, seed: int) -> np.ndarray:
    """Sum of octaves of value noise at points [N, 3], in [0, 1] about .5, float64 [N]."""
    out = np.empty(points.shape[0])
    for i in range(points.shape[0]):
        f, amplitude, total, norm = frequency, 1.0, 0.0, 0.0
        for o in range(octaves):
            total += amplitude * value_noise(points[i, 0] * f, points[i, 1] * f, points[i, 2] * f, seed + o)
            norm += amplitude
            amplitude *= 0.5
            f *= 2.0
        out[i] = total / norm
    return out


@nb.njit(cache=True, nogil=True)
def cell_noise(points: np.ndarray, frequency: float, seed: int) -> np.ndarray:
    """Worley noise at points [N, 3]: the two nearest feature distances [N, 2] in lattice units."""
    out = np.empty((points.shape[0], 2))
    for i in range(points.shape[0]):
        x, y, z = points[i, 0] * frequency, points[i, 1] * frequency, points[i, 2] * frequency
        ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
        d1, d2 = 1e9, 1e9
        for a in range(-1, 2):
            for b in range(-1, 2):
                for c in range(-1, 2):
                    jx, jy, jz = ix + a, iy + b, iz + c
                    dx = jx + _hash(jx, jy, jz, seed) - x
                    dy = jy + _hash(jx, jy, jz, seed + 1) - y
                    dz = jz + _hash(jx, jy, jz, seed + 2) - z
                    d = dx * dx + dy * dy + dz * dz
                    if d < d1:
                        d1, d2 = d, d1
                    elif d < d2:
                        d2 = d
        out[i, 0] = np.sqrt(d1)
        out[i, 1] = np.sqrt(d2)
    return out


TILE = 512


@cache
def noise_tile(kind: str, variant: int) -> np.ndarray:
    """A tileable float32 noise picture [512, 512] in [0, 1] with flat histogram tails cut.

    ``kind``: "cloud" (spectrum 1/f^2), "rough" (1/f), "grass" (upright strokes), "grain" (fine).
    """
    rng = np.random.default_rng([variant, {"cloud": 1, "rough": 2, "grass": 3, "grain": 4}[kind]])
    fy = np.fft.fftfreq(TILE)[:, None] * TILE
    fx = np.fft.rfftfreq(TILE)[None, :] * TILE
    if kind == "grass":
        fy = fy * 5.0
    frequency = np.sqrt(fx * fx + fy * fy)
    frequency[0, 0] = 1.0
    power = {"cloud": 1.7, "rough": 1.05, "grass": 0.75, "grain": 0.45}[kind]
    spectrum = frequency**-power
    spectrum[0, 0] = 0.0
    phase = rng.uniform(0, 2 * np.pi, frequency.shape)
    picture = np.fft.irfft2(spectrum * np.exp(1j * phase), s=(TILE, TILE))
    low, high = np.quantile(picture, [0.01, 0.99])
    return np.clip((picture - low) / (high - low), 0, 1).astype(np.float32)


def noise_patch(
    kind: str, rng: np.random.Generator, height: int, width: int, zoom: float = 1.0
) -> np.ndarray:
    """A random window of a noise tile, float32 [height, width]; ``zoom`` > 1 enlarges features."""
    tile = noise_tile(kind, int(rng.integers(4)))
    h = int(np.clip(np.ceil(height / zoom), 2, TILE))
    w = int(np.clip(np.ceil(width / zoom), 2, TILE))
    top, left = int(rng.integers(TILE - h + 1)), int(rng.integers(TILE - w + 1))
    patch = tile[top : top + h, left : left + w]
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    if patch.shape != (height, width):
        patch = cv2.resize(np.ascontiguousarray(patch), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(patch)


@cache
def _sensor_tile() -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.standard_normal((TILE, 2 * TILE, 3)).astype(np.float32)


def sensor_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """White Gaussian noise float32 [height, width, 3], cut from a fixed tile at a random place."""
    tile = _sensor_tile()
    if height > tile.shape[0] // 2 or width > tile.shape[1] // 2:
        return rng.standard_normal((height, width, 3), np.float32)
    top = int(rng.integers(tile.shape[0] - height + 1))
    left = int(rng.integers(tile.shape[1] - width + 1))
    return tile[top : top + height, left : left + width]
