"""Coats: colours painted on the rest body, so that a pattern sticks to the skin in every pose."""

from __future__ import annotations

import numpy as np

from prepare_data.diorama.anatomy import BONE, BONE_NAMES, LEGS
from prepare_data.diorama.body import Body, bone_share
from prepare_data.diorama.noise import cell_noise, fractal_noise
from prepare_data.diorama.species import (
    BARE,
    EAR,
    EYE,
    HOOF,
    HORN,
    MANE,
    NOSE,
    UDDER,
    WOOL,
)

PATTERNS = ("plain", "patched", "spotted", "striped", "reticulated")

_BLACK, _WHITE, _CREAM = (0.16, 0.145, 0.135), (0.88, 0.86, 0.82), (0.82, 0.72, 0.54)
_BAY, _CHESTNUT, _TAN = (0.40, 0.22, 0.12), (0.50, 0.26, 0.13), (0.66, 0.48, 0.29)
_GREY, _DARK, _GOLD = (0.60, 0.59, 0.57), (0.22, 0.15, 0.10), (0.72, 0.52, 0.26)
_RED = (0.45, 0.17, 0.09)

# species -> rows (weight, pattern, base colour, second colour, colour of mane and lower legs)
_COATS: dict[str, tuple[tuple[float, str, tuple, tuple, tuple], ...]] = {
    "horse": (
        (3.0, "plain", _BAY, _BAY, _BLACK),
        (2.5, "plain", _CHESTNUT, _CHESTNUT, _CHESTNUT),
        (1.5, "plain", _BLACK, _BLACK, _BLACK),
        (1.2, "plain", _WHITE, _WHITE, _CREAM),
        (1.0, "plain", _GOLD, _GOLD, _WHITE),
        (1.0, "spotted", _GREY, _WHITE, _DARK),
        (1.5, "patched", _WHITE, _CHESTNUT, _WHITE),
        (1.0, "patched", _WHITE, _BLACK, _BLACK),
        (0.4, "striped", _TAN, _BAY, _BLACK),
    ),
    "cow": (
        (3.0, "patched", _WHITE, _BLACK, _WHITE),
        (1.8, "patched", _WHITE, _RED, _WHITE),
        (1.6, "plain", _RED, _RED, _RED),
        (1.6, "plain", _TAN, _TAN, _DARK),
        (1.6, "plain", _BLACK, _BLACK, _BLACK),
        (1.0, "plain", _CREAM, _CREAM, _CREAM),
        (0.6, "spotted", _WHITE, _BLACK, _WHITE),
        (0.5, "striped", _CHESTNUT, _DARK, _DARK),
    ),
    "sheep": (
        (3.0, "plain", _WHITE, _WHITE, _BLACK),
        (3.0, "plain", _WHITE, _WHITE, _WHITE),
        (1.0, "plain", _CREAM, _CREAM, _TAN),
        (0.8, "plain", _DARK, _DARK, _BLACK),
        (0.8, "patched", _WHITE, _DARK, _DARK),
    ),
    "giraffe": (
        (3.0, "reticulated", _CREAM, _CHESTNUT, _CREAM),
        (2.0, "reticulated", _CREAM, _BAY, _CREAM),
        (1.5, "reticulated", _CREAM, (0.58, 0.36, 0.18), _CREAM),
    ),
    "bear": (
        (3.0, "plain", _BAY, _BAY, _DARK),
        (2.0, "plain", _BLACK, _BLACK, _BLACK),
        (1.5, "plain", _DARK, _DARK, _DARK),
        (1.0, "plain", _TAN, _TAN, _BAY),
        (0.8, "plain", _WHITE, _WHITE, _WHITE),
        (0.4, "patched", _WHITE, _BLACK, _BLACK),
    ),
    "dog": (
        (2.0, "plain", _GOLD, _GOLD, _GOLD),
        (1.6, "plain", _BLACK, _BLACK, _BLACK),
        (1.6, "plain", _CHESTNUT, _CHESTNUT, _CHESTNUT),
        (1.2, "plain", _WHITE, _WHITE, _WHITE),
        (1.6, "patched", _WHITE, _CHESTNUT, _WHITE),
        (1.6, "patched", _WHITE, _BLACK, _WHITE),
        (1.0, "spotted", _WHITE, _BLACK, _WHITE),
        (1.0, "striped", _TAN, _DARK, _TAN),
    ),
}
_FEET = np.array([BONE[f"{leg}_{s}"] for leg in LEGS for s in ("cannon", "foot")])


def sample_coat(body: Body, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Paints one coat; returns albedo [V, 3] in [0, 1] and the pattern's name."""
    species = body.anatomy.species
    rows = _COATS[species.name]
    weights = np.array([row[0] for row in rows])
    _, pattern, base, second, points = rows[int(rng.choice(len(rows), p=weights / weights.sum()))]
    rest = body.vertices
    seed = int(rng.integers(1 << 20))
    mottle = fractal_noise(rest, 3.1, 2, seed)
    second_share = _pattern(pattern, rest, mottle, rng, seed)
    base, second, points = (_vary(colour, rng) for colour in (base, second, points))
    colour = base + (second - base) * second_share[:, None]

    head, head_share = body.anatomy.pivots[BONE["head"]], _share(body, [BONE["head"]])
    feet = _share(body, _FEET)
    normals = body.normals
    if pattern in ("plain", "striped"):
        reach = np.clip(feet * rng.uniform(0.7, 1.3), 0, 1)[:, None]
        colour += (points - colour) * reach
        if rng.random() < 0.4:  # white socks, each leg for itself
            for leg in LEGS:
                if rng.random() < 0.6:
                    sock = _share(body, [BONE[f"{leg}_cannon"], BONE[f"{leg}_foot"]])[:, None]
                    colour += (np.array(_WHITE) - colour) * np.clip(sock * 1.2 - 0.2, 0, 1)
    elif species.name in ("cow", "dog", "horse"):
        colour += (points - colour) * feet[:, None] * 0.8
    if rng.random() < (0.12 if species.name == "bear" else 0.4):  # a blaze down the face
        width = rng.uniform(0.015, 0.05)
        blaze = np.exp(-((rest[:, 0] / width) ** 2)) * head_share * (normals[:, 1] < 0.1)
        colour += (np.array(_WHITE) - colour) * np.clip(1.6 * blaze, 0, 1)[:, None]
    if rng.random() < 0.55:  # muzzle darker or lighter than the face
        tone = np.array(_CREAM if rng.random() < 0.4 else _DARK)
        depth = (head[1] - rest[:, 1]) / max(float((head[1] - rest[:, 1]).max()), 1e-6)
        muzzle = np.clip((depth - 0.6) * 4, 0, 1) * head_share * 0.75
        colour += (tone - colour) * muzzle[:, None]
    belly = np.clip(-normals[:, 2], 0, 1) * (1 - feet)
    countershade = rng.uniform(-0.25, 0.45)
    colour *= (1 + countershade * belly)[:, None]
    colour *= 1 + 0.22 * (mottle - 0.5)[:, None]
    _paint_materials(colour, body.material, points, rng)
    grain = rng.normal(0, 0.07 if species.wool else 0.05, len(rest))
    return np.clip(colour * (1 + grain[:, None]), 0.02, 0.98), pattern


def _vary(colour, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(colour) * rng.normal(1, 0.10) * rng.normal(1, 0.03, 3), 0.03, 0.95)


def _share(body: Body, bones) -> np.ndarray:
    wanted = np.zeros(len(BONE_NAMES), bool)
    wanted[np.asarray(bones)] = True
    return bone_share(body.bones, body.weights, wanted)


def _pattern(pattern, rest, mottle, rng, seed) -> np.ndarray:
    """Share [V] of the second colour."""
    if pattern == "patched":
        coarse = fractal_noise(rest + 7.0, rng.uniform(2.2, 3.8), 2, seed + 50)
        return np.clip((coarse - rng.uniform(0.40, 0.60)) * 40, 0, 1)
    if pattern == "spotted":
        cells = cell_noise(rest, rng.uniform(6.0, 11.0), seed + 60)[:, 0]
        return np.clip((rng.uniform(0.33, 0.45) - cells) * 14, 0, 1)
    if pattern == "reticulated":
        cells = cell_noise(rest + 0.03 * (mottle[:, None] - 0.5), rng.uniform(6.5, 9.5), seed + 70)
        low = np.clip((rest[:, 2] - 0.22) / 0.2, 0, 1)
        return np.clip((cells[:, 1] - cells[:, 0] - rng.uniform(0.06, 0.14)) * 14, 0, 1) * low
    if pattern == "striped":
        wave = np.sin((rest[:, 1] + 0.12 * (mottle - 0.5)) * rng.uniform(38, 60) + 3 * rest[:, 2])
        return np.clip(wave * 2.2 - 0.2, 0, 1) * rng.uniform(0.6, 1.0)
    return np.clip((mottle - 0.5) * 2, 0, 1)


def _paint_materials(colour, material, points, rng) -> None:
    pink = rng.random() < 0.3
    fixed = {
        MANE: points,
        HORN: np.array([0.62, 0.55, 0.42]) * rng.uniform(0.5, 1.15),
        HOOF: np.array([0.16, 0.13, 0.11]) * rng.uniform(0.7, 2.0),
        NOSE: np.array([0.66, 0.45, 0.42]) if pink else np.array([0.10, 0.08, 0.08]),
        BARE: points,
        EYE: np.array([0.03, 0.02, 0.02]),
        UDDER: np.array([0.80, 0.58, 0.52]),
    }
    for name, tone in fixed.items():
        at = material == name
        mix = 0.8 if name in (BARE, MANE) else 1.0
        colour[at] += (tone - colour[at]) * mix
    ear = material == EAR
    colour[ear] *= rng.uniform(0.55, 1.05)
    wool = material == WOOL
    colour[wool] *= rng.uniform(0.94, 1.04)
