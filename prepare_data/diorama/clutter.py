"""What stands between the camera and the animals: bushes, grass, rocks, posts, fences."""

from __future__ import annotations

import cv2
import numpy as np

from prepare_data.diorama.backdrop import LOOK, Weather, draw_fence, leaf_blob
from prepare_data.diorama.noise import noise_patch

KINDS = ("bush", "grass", "rock", "post", "fence")


def paint_occluder(
    picture: np.ndarray,
    box_xyxy: np.ndarray,
    weather: Weather,
    rng: np.random.Generator,
    kind: str | None = None,
) -> np.ndarray:
    """Paints one occluder over part of an animal, in place.

    Args:
        picture: float32 [H, W, 3] in [0, 1].
        box_xyxy: the animal's box, pixels.
        weather: season and light.
        rng: the picture's generator.
        kind: a name in `KINDS`; drawn if None.

    Returns:
        alpha float32 [H, W] of what was painted.
    """  # fmt: skip
    kind = kind or str(rng.choice(KINDS, p=[0.26, 0.30, 0.14, 0.15, 0.15]))
    alpha = np.zeros(picture.shape[:2], np.float32)
    light = np.float32(np.clip(weather.sun.mean() * weather.direction[2] + weather.sky.mean(), 0.5, 1.2))
    {"bush": _bush, "grass": _grass, "rock": _rock, "post": _post, "fence": _front_fence}[kind](
        picture, alpha, np.asarray(box_xyxy, dtype=np.float64), weather, light, rng
    )
    return alpha


def _tones(weather: Weather) -> list[np.ndarray]:
    return [np.array(c, np.float32) for c in LOOK[weather.season][:4]]


def _bush(picture, alpha, box, weather, light, rng) -> None:
    _, _, tree1, tree2 = _tones(weather)
    w, h = box[2] - box[0], box[3] - box[1]
    x = box[0] + w * rng.uniform(0.0, 1.0)
    reach = h * rng.uniform(0.15, 0.34)
    for _ in range(int(rng.integers(2, 5))):
        centre = (x + rng.normal(0, 0.6 * reach), box[3] + reach * rng.uniform(-0.15, 0.5))
        radii = (reach * rng.uniform(0.6, 1.1), reach * rng.uniform(0.6, 1.1))
        leaf_blob(picture, centre, radii, tree1, tree2, light, rng, alpha)


def _grass(picture, alpha, box, weather, light, rng) -> None:
    ground1, ground2, _, _ = _tones(weather)
    height, width = picture.shape[:2]
    top = box[3] - (box[3] - box[1]) * rng.uniform(0.05, 0.24)
    blade = (box[3] - box[1]) * rng.uniform(0.06, 0.14)
    rows = np.arange(height, dtype=np.float32)[:, None]
    strokes = noise_patch("grain", rng, 24, width, 1.0)
    edge = strokes[0] * blade
    body = cv2.resize(strokes, (width, height), interpolation=cv2.INTER_LINEAR)
    cover = np.clip((rows - (top + edge)[None]) / 2, 0, 1)
    cover *= np.clip((body - 0.5) * 5 + (rows - top) / max(blade, 1) * 1.2, 0, 1)
    tone = (ground1 * 0.7 + (ground2 * 1.1 - ground1 * 0.7) * body[..., None]) * light
    picture += (tone - picture) * cover[..., None]
    np.maximum(alpha, cover, out=alpha)


def _rock(picture, alpha, box, weather, light, rng) -> None:
    height, width = picture.shape[:2]
    w, h = box[2] - box[0], box[3] - box[1]
    centre = np.array([box[0] + w * rng.uniform(0, 1), box[3] + 0.05 * h])
    angles = np.sort(rng.uniform(0, 2 * np.pi, 11))
    size = np.array([rng.uniform(0.14, 0.3) * w, rng.uniform(0.12, 0.28) * h])
    outline = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * size * rng.uniform(0.8, 1.1, (11, 1))
    shape = np.zeros((height, width), np.float32)
    cv2.fillPoly(shape, [np.int32(outline * 16)], 1.0, cv2.LINE_AA, 4)
    tone = np.array([0.50, 0.48, 0.45], np.float32) * np.float32(rng.uniform(0.6, 1.2)) * light
    texture = noise_patch("rough", rng, height, width, 0.8)
    up = np.clip((centre[1] - np.arange(height, dtype=np.float32)) / size[1], -1, 1)[:, None]
    shade = (0.72 + 0.25 * up + 0.6 * (texture - 0.5))[..., None]
    picture += (tone * shade - picture) * shape[..., None]
    np.maximum(alpha, shape, out=alpha)


def _post(picture, alpha, box, weather, light, rng) -> None:
    height, width = picture.shape[:2]
    w = box[2] - box[0]
    x, thick = box[0] + w * rng.uniform(0.05, 0.95), max(w * rng.uniform(0.05, 0.13), 3)
    lean = rng.normal(0, 0.04) * height
    foot = box[3] + rng.uniform(0.02, 0.3) * (box[3] - box[1])
    top = -5.0 if rng.random() < 0.6 else box[1] + rng.uniform(-0.2, 0.3) * (box[3] - box[1])
    outline = np.array([[x - thick / 2, foot], [x + thick / 2, foot],
                        [x + lean + thick * 0.4, top], [x + lean - thick * 0.4, top]])  # fmt: skip
    shape = np.zeros((height, width), np.float32)
    cv2.fillPoly(shape, [np.int32(outline * 16)], 1.0, cv2.LINE_AA, 4)
    bark = np.array([0.34, 0.27, 0.21], np.float32) * np.float32(rng.uniform(0.6, 1.4)) * light
    grain = noise_patch("rough", rng, height, width, 0.6)
    across = np.clip((np.arange(width, dtype=np.float32) - x) / thick, -0.6, 0.6)[None]
    side = 1 if rng.random() < 0.5 else -1
    shade = (0.8 + 0.6 * (grain - 0.5) + 0.5 * side * across)[..., None]
    picture += (bark * shade - picture) * shape[..., None]
    np.maximum(alpha, shape, out=alpha)


def _front_fence(picture, alpha, box, weather, light, rng) -> None:
    width = picture.shape[1]
    tall = (box[3] - box[1]) * rng.uniform(0.5, 0.9)
    foot = np.full(width, box[3] + rng.uniform(0.02, 0.12) * (box[3] - box[1]))
    foot += np.linspace(0, rng.normal(0, 0.04) * width, width)
    draw_fence(picture, foot, tall, light, rng, alpha)
