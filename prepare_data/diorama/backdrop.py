"""Backgrounds: sky, far hills, trees, ground in perspective and fences, by season."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numba as nb
import numpy as np

from prepare_data.diorama.noise import TILE, noise_patch, noise_tile

SEASONS = ("spring", "summer", "autumn", "winter", "savanna", "arid", "overcast")
# ground colours (two tones), tree colours (two tones), haze
LOOK: dict[str, tuple[tuple, tuple, tuple, tuple, tuple]] = {
    "spring": (
        (0.36, 0.44, 0.19), (0.50, 0.55, 0.29),
        (0.20, 0.34, 0.12), (0.42, 0.54, 0.22), (0.72, 0.78, 0.80),
    ),
    "summer": (
        (0.31, 0.38, 0.17), (0.44, 0.46, 0.24),
        (0.12, 0.24, 0.09), (0.26, 0.38, 0.14), (0.66, 0.74, 0.80),
    ),
    "autumn": (
        (0.44, 0.38, 0.18), (0.52, 0.42, 0.22),
        (0.36, 0.20, 0.07), (0.68, 0.42, 0.12), (0.76, 0.72, 0.66),
    ),
    "winter": (
        (0.66, 0.69, 0.74), (0.78, 0.80, 0.83),
        (0.22, 0.22, 0.22), (0.50, 0.52, 0.54), (0.80, 0.83, 0.87),
    ),
    "savanna": (
        (0.62, 0.50, 0.26), (0.72, 0.60, 0.34),
        (0.26, 0.30, 0.13), (0.44, 0.44, 0.20), (0.80, 0.76, 0.68),
    ),
    "arid": (
        (0.56, 0.42, 0.30), (0.66, 0.54, 0.40),
        (0.34, 0.34, 0.20), (0.52, 0.46, 0.30), (0.82, 0.76, 0.70),
    ),
    "overcast": (
        (0.30, 0.37, 0.18), (0.38, 0.44, 0.24),
        (0.16, 0.22, 0.12), (0.28, 0.34, 0.18), (0.70, 0.71, 0.72),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Weather:
    """Season and light of a picture.

    Attributes:
        season: a name in `SEASONS`.
        sun: [3] colour of direct light; sky: [3] ambient from above; bounce: [3] from the ground.
        direction: [3] unit vector in the world from the ground towards the sun.
        haze: [3] colour of distance.
    """

    season: str
    sun: np.ndarray
    sky: np.ndarray
    bounce: np.ndarray
    direction: np.ndarray
    haze: np.ndarray


def sample_weather(rng: np.random.Generator, difficulty: float, azimuth: float = 0.0) -> Weather:
    """Draws a season and its light; the sun mostly stands behind a camera at ``azimuth`` degrees."""
    season = str(rng.choice(SEASONS, p=[0.17, 0.22, 0.14, 0.10, 0.13, 0.08, 0.16]))
    height = np.deg2rad(rng.uniform(18, 70))
    turn = np.deg2rad(azimuth) + rng.normal(0, 0.6 + 0.8 * difficulty)
    direction = np.array([np.cos(turn) * np.cos(height), np.sin(turn) * np.cos(height), np.sin(height)])
    strength = rng.uniform(0.15, 0.45) if season == "overcast" else rng.uniform(0.55, 1.0)
    warm = np.interp(np.rad2deg(height), [18, 60], [1.0, 0.0]) * rng.uniform(0.3, 1)
    sun = strength * (np.array([1.0, 0.97, 0.92]) - warm * np.array([0.0, 0.10, 0.26]))
    sky = np.array([0.58, 0.62, 0.68]) * rng.uniform(0.75, 1.15) * (1.35 if season == "overcast" else 1)
    sky *= 1 - 0.35 * difficulty * rng.random()
    ground = np.array(LOOK[season][0])
    return Weather(season, sun, sky, ground * rng.uniform(0.4, 0.7), direction, np.array(LOOK[season][4]))


def paint_backdrop(
    height: int,
    width: int,
    horizon: float,
    slope: float,
    weather: Weather,
    rng: np.random.Generator,
    difficulty: float,
) -> np.ndarray:
    """Paints a background float32 [H, W, 3] in [0, 1].

    Args:
        height: rows of the picture.
        width: columns of the picture.
        horizon: row of the horizon in the middle column; may lie outside the picture.
        slope: rows that the horizon falls per column.
        weather: season and light.
        rng: the picture's generator.
        difficulty: 0 to 1, more clutter and less blur as it rises.
    """  # fmt: skip
    tone1, tone2, tree1, tree2, _ = (np.array(c, np.float32) for c in LOOK[weather.season])
    haze = weather.haze.astype(np.float32)
    light = np.float32(np.clip(weather.sun.mean() * weather.direction[2] + weather.sky.mean(), 0.5, 1.25))
    picture = _sky(height, width, horizon, weather, rng)
    columns = np.arange(width, dtype=np.float32)
    skyline = horizon + slope * (columns - width / 2)
    if horizon > -0.1 * height:
        for layer in range(int(rng.integers(0, 4))):
            _hills(picture, skyline, layer, tree1, tree2, haze, light, rng)
        if rng.random() < 0.75:
            _tree_line(picture, skyline, tree1, tree2, haze, light, rng)
    _ground(picture, skyline, horizon, tone1, tone2, haze, light, rng)
    if horizon > -0.05 * height:
        for _ in range(int(rng.poisson(0.5 + 1.0 * difficulty))):
            _tree(picture, skyline, tree1, tree2, light, rng)
        if rng.random() < 0.08:
            _barn(picture, skyline, light, rng)
        if rng.random() < 0.28:
            _fence(picture, skyline, light, rng)
    _tufts(picture, skyline, tone1, tone2, light, rng)
    if rng.random() < 0.55:
        sigma = rng.uniform(0.3, 2.6 - 1.4 * difficulty)
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    return picture


def _mix(picture, colour, alpha) -> None:
    picture += (colour - picture) * alpha[..., None]


def _sky(height, width, horizon, weather, rng) -> np.ndarray:
    if weather.season == "overcast":
        top = np.array([0.66, 0.68, 0.71]) * rng.uniform(0.85, 1.15)
    else:
        top = np.array([0.34, 0.52, 0.80]) * rng.uniform(0.75, 1.2) + rng.uniform(-0.04, 0.04, 3)
    rows = np.linspace(0, 1, height, dtype=np.float32) * height / max(horizon, height * 0.4)
    fade = np.clip(rows, 0, 1)[:, None, None] ** 1.5
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = top.astype(np.float32) * (1 - fade) + weather.haze.astype(np.float32) * fade
    if rng.random() < 0.7:
        cloud = noise_patch("cloud", rng, height, width, rng.uniform(0.6, 1.6))
        low = rng.uniform(0.35, 0.65)
        _mix(picture, np.float32(rng.uniform(0.86, 0.98)), np.clip((cloud - low) * 2.6, 0, 0.9))
    return picture


def _profile(width, rng, roughness) -> np.ndarray:
    tile = noise_tile(roughness, int(rng.integers(4)))
    row = tile[int(rng.integers(TILE))]
    start, stretch = rng.integers(TILE), rng.uniform(0.4, 1.6)
    at = (start + np.arange(width) * stretch) % (TILE - 1)
    return np.interp(at, np.arange(TILE), row).astype(np.float32)


def _band(first: float, last: float, height: int) -> slice:
    """Rows from ``first`` to ``last`` of a picture, with a margin: nothing is painted outside them."""
    return slice(int(np.clip(first - 1, 0, height)), int(np.clip(last + 3, 0, height)))


def _hills(picture, skyline, layer, tree1, tree2, haze, light, rng) -> None:
    height, width = picture.shape[:2]
    tall = height * rng.uniform(0.05, 0.28) / (1 + layer)
    top = skyline - tall * _profile(width, rng, "cloud")
    share = np.float32(np.clip(rng.uniform(0.35, 0.85) - 0.2 * layer, 0.1, 0.9))
    tone = (tree1 + (tree2 - tree1) * np.float32(rng.random())) * light
    band = _band(top.min(), skyline.max(), height)  # below it the ground will lie
    texture = noise_patch("rough", rng, height, width)[band, :, None] * 0.35 + 0.82
    rows = np.arange(height, dtype=np.float32)[band, None]
    alpha = np.clip(rows - top[None], 0, 1)
    part = picture[band]
    part += (((tone * (1 - share) + haze * share) * texture) - part) * alpha[..., None]


def _tree_line(picture, skyline, tree1, tree2, haze, light, rng) -> None:
    height, width = picture.shape[:2]
    tall = height * rng.uniform(0.03, 0.22)
    top = skyline - tall * (0.35 + 0.65 * _profile(width, rng, "rough"))
    leaves = noise_patch("rough", rng, height, width, rng.uniform(0.7, 1.5))
    band = _band(top.min() - 6, skyline.max() + 3, height)
    leaves = leaves[band]
    rows = np.arange(height, dtype=np.float32)[band, None]
    alpha = np.clip((rows - top[None]) * 0.5 + (leaves - 0.5) * 6, 0, 1)
    alpha *= np.clip((skyline[None] + 3 - rows) * 0.5, 0, 1)
    deep = np.clip((leaves - 0.25) * 1.5, 0, 1)[..., None]
    share = np.float32(rng.uniform(0, 0.4))
    part = picture[band]
    part += ((tree1 + (tree2 - tree1) * deep) * light * (1 - share) + haze * share - part) * alpha[
        ..., None
    ]


def _ground(picture, skyline, horizon, tone1, tone2, haze, light, rng) -> None:
    height, width = picture.shape[:2]
    rows = np.arange(height, dtype=np.float32)[:, None]
    below = rows - skyline[None]
    alpha = np.clip(below, 0, 1)
    if not alpha.any():
        return
    # texture coordinates shrink with the distance below the horizon, as on a plane
    near = np.maximum(below, 1.0) / height
    depth = rng.uniform(14, 30) / (near + 0.12)
    kind = str(rng.choice(["rough", "grass", "grass", "rough", "grain"]))
    tile = noise_tile(kind, int(rng.integers(4)))
    columns = np.arange(width, dtype=np.float32)[None] - width / 2
    map_x = (columns * (depth / 60) * rng.uniform(0.7, 1.4) + rng.integers(TILE)).astype(np.float32)
    map_y = (depth * rng.uniform(2, 4) + rng.integers(TILE)).astype(np.float32)
    map_x, map_y = np.broadcast_arrays(map_x, map_y)
    texture = cv2.remap(
        tile, map_x, np.ascontiguousarray(map_y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    patches = noise_patch("cloud", rng, height, width, rng.uniform(0.5, 1.5))
    tint = rng.normal(1, 0.07, 3)
    contrast = rng.uniform(0.2, 0.65)
    earth, bare = np.zeros(3), patches
    threshold = 2.0
    if rng.random() < 0.25:  # bare earth, a path, mud
        earth = np.array([0.42, 0.34, 0.25]) * float(light) * rng.uniform(0.7, 1.2)
        bare = noise_patch("cloud", rng, height, width, 1.2)
        threshold = rng.uniform(0.3, 0.6)
    _mix_ground(
        picture, skyline, texture, patches, bare, tone1 * tint * light, tone2 * tint * light,
        contrast, earth, threshold, haze * 0.8,
    )  # fmt: skip


@nb.njit(cache=True, nogil=True, fastmath=True)
def _mix_ground(picture, skyline, texture, patches, bare, tone1, tone2, contrast, earth, threshold, haze):
    """Colours the ground below the skyline [W] from its textures [H, W], in place."""
    height, width = picture.shape[0], picture.shape[1]
    for y in range(height):
        for x in range(width):
            below = y - skyline[x]
            if below <= 0:
                continue
            alpha = min(below, 1.0)
            t = texture[y, x]
            mix = 1.3 * min(max(0.5 * t + 0.5 * patches[y, x], 0.0), 1.0)
            grain = 1 + contrast * (t - 0.5)
            soil = min(max((bare[y, x] - threshold) * 5, 0.0), 1.0)
            far = 0.5 * np.exp(-below / (0.10 * height))
            for c in range(3):
                v = (tone1[c] + (tone2[c] - tone1[c]) * mix) * grain
                v += (earth[c] * (0.8 + 0.4 * t) - v) * soil
                v += (haze[c] - v) * far
                picture[y, x, c] += (v - picture[y, x, c]) * alpha


def _tree(picture, skyline, tree1, tree2, light, rng) -> None:
    height, width = picture.shape[:2]
    x = rng.uniform(-0.05, 1.05) * width
    foot = skyline[int(np.clip(x, 0, width - 1))] + rng.uniform(0, 0.10) * height
    tall = rng.uniform(0.15, 0.6) * height
    w = max(int(rng.uniform(0.02, 0.05) * tall * 2), 2)
    bark = np.array([0.26, 0.20, 0.15], np.float32) * light * np.float32(rng.uniform(0.6, 1.3))
    x0, x1 = int(max(x - w / 2, 0)), int(min(x + w / 2 + 1, width))
    y0, y1 = int(max(foot - 0.6 * tall, 0)), int(min(foot, height))
    if x1 > x0 and y1 > y0:
        grain = noise_patch("grain", rng, y1 - y0, x1 - x0, 2.0)[..., None]
        picture[y0:y1, x0:x1] = bark * (0.7 + 0.6 * grain)
    radius = tall * rng.uniform(0.25, 0.5)
    leaf_blob(
        picture,
        (x, foot - 0.75 * tall),
        (radius, radius * rng.uniform(0.6, 1.1)),
        tree1,
        tree2,
        light,
        rng,
    )


def leaf_blob(picture, centre, radii, tone1, tone2, light, rng, alpha_out=None) -> None:
    """Paints a ragged ellipse of leaves in place; adds its alpha [H, W] to ``alpha_out``."""
    height, width = picture.shape[:2]
    x0, x1 = (
        int(max(centre[0] - 1.4 * radii[0], 0)),
        int(min(centre[0] + 1.4 * radii[0] + 1, width)),
    )
    y0, y1 = (
        int(max(centre[1] - 1.4 * radii[1], 0)),
        int(min(centre[1] + 1.4 * radii[1] + 1, height)),
    )
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    yy = (np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(centre[1])) / np.float32(radii[1])
    xx = (np.arange(x0, x1, dtype=np.float32)[None] - np.float32(centre[0])) / np.float32(radii[0])
    leaves = noise_patch("rough", rng, y1 - y0, x1 - x0, rng.uniform(0.8, 1.8))
    alpha = np.clip((1.0 - (xx * xx + yy * yy) + (leaves - 0.5) * 1.8) * 5, 0, 1)
    # lit from above, dark inside
    tone = np.clip(0.55 - 0.45 * yy + (leaves - 0.5) * 1.6, 0, 1)[..., None]
    window = picture[y0:y1, x0:x1]
    window += ((tone1 * 0.7 + (tone2 - tone1 * 0.7) * tone) * light - window) * alpha[..., None]
    if alpha_out is not None:
        np.maximum(alpha_out[y0:y1, x0:x1], alpha, out=alpha_out[y0:y1, x0:x1])


def _barn(picture, skyline, light, rng) -> None:
    height, width = picture.shape[:2]
    w, h = rng.uniform(0.15, 0.5) * width, rng.uniform(0.1, 0.3) * height
    x = rng.uniform(-0.1, 0.9) * width
    foot = skyline[int(np.clip(x, 0, width - 1))] + 0.03 * height
    palette = ([0.45, 0.20, 0.15], [0.55, 0.50, 0.44], [0.35, 0.28, 0.22], [0.75, 0.73, 0.70])
    wall = np.array(palette[int(rng.integers(4))]) * float(light)
    box = np.array([[x, foot], [x, foot - h], [x + w, foot - h], [x + w, foot]])
    roof = np.array(
        [
            [x - 4, foot - h],
            [x + w * 0.2, foot - 1.5 * h],
            [x + w * 0.8, foot - 1.5 * h],
            [x + w + 4, foot - h],
        ]
    )
    cv2.fillPoly(picture, [np.int32(box * 16)], wall.tolist(), cv2.LINE_AA, 4)
    cv2.fillPoly(picture, [np.int32(roof * 16)], (wall * 0.6).tolist(), cv2.LINE_AA, 4)
    for i in range(int(rng.integers(0, 4))):
        left = x + w * (0.1 + 0.22 * i)
        cv2.rectangle(
            picture,
            (int(left), int(foot - 0.7 * h)),
            (int(left + w * 0.08), int(foot - 0.3 * h)),
            (wall * 0.35).tolist(),
            -1,
        )


def _fence(picture, skyline, light, rng) -> None:
    offset = rng.uniform(0.0, 0.12) * picture.shape[0]
    draw_fence(picture, skyline + offset, rng.uniform(10, 34), light, rng)


def draw_fence(picture, foot, tall, light, rng, alpha_out=None) -> None:
    """Draws a rail or wire fence whose posts stand on row ``foot`` [W], in place."""
    width = picture.shape[1]
    wood = np.array([[0.42, 0.34, 0.26], [0.62, 0.58, 0.52], [0.85, 0.84, 0.82]][int(rng.integers(3))])
    wood = (wood * float(light) * rng.uniform(0.7, 1.1)).tolist()
    wire = rng.random() < 0.4
    thick = max(int(tall * (0.03 if wire else 0.09)), 1)
    gap = tall * rng.uniform(1.1, 2.2)

    def line(a, b, thickness) -> None:
        points = tuple(int(v * 16) for v in a), tuple(int(v * 16) for v in b)
        cv2.line(picture, *points, wood, thickness, cv2.LINE_AA, 4)
        if alpha_out is not None:
            cv2.line(alpha_out, *points, 1.0, thickness, cv2.LINE_AA, 4)

    left, right = float(foot[0]), float(foot[-1])
    for rail in range(int(rng.integers(2, 4))):
        up = tall * (0.35 + 0.28 * rail)
        line((0, left - up), (width, right - up), thick)
    x = rng.uniform(0, gap)
    while x < width:
        base = float(np.interp(x, [0, width - 1], [left, right]))
        line((x, base), (x, base - tall), max(int(tall * 0.11), 1))
        x += gap * rng.uniform(0.92, 1.08)


def _tufts(picture, skyline, tone1, tone2, light, rng) -> None:
    """Stones, flowers and tufts on the ground."""
    height, width = picture.shape[:2]
    palette = np.array(
        [tone2 * 1.25, tone1 * 0.6, [0.55, 0.53, 0.50], [0.85, 0.80, 0.35], [0.85, 0.85, 0.88]]
    )
    for _ in range(int(rng.integers(0, 26))):
        x = rng.uniform(0, width)
        low = max(skyline[int(x)], 0) + 3
        if low >= height - 1:
            continue
        y = rng.uniform(low, height)
        size = max(0.6, 4.5 * (y - low) / height) * rng.uniform(0.5, 1.5)
        colour = (palette[int(rng.integers(len(palette)))] * float(light)).tolist()
        cv2.ellipse(
            picture,
            (int(x), int(y)),
            (max(int(size * 1.3), 1), max(int(size * 0.7), 1)),
            0,
            0,
            360,
            colour,
            -1,
            cv2.LINE_AA,
        )
