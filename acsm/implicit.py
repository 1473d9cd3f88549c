"""Solids given by a signed field: smooth unions of chains of tapered, flattened capsules.

A chain runs through stations, each with a radius and a half-thickness along one fixed direction
(an ellipse for a cross-section). Fields are negative inside and near the surface close to the
distance from it. The smooth union is the quadratic one: where two fields differ by less than
``blend``, the surface bulges to join them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FAR = 1e3


@dataclass(frozen=True)
class Station:
    """A point of a chain's axis and the cross-section there.

    Attributes:
        position: (x, y, z).
        radius: half the section's extent across the chain's flat direction.
        thickness: half its extent along the flat direction.
    """

    position: tuple[float, float, float]
    radius: float
    thickness: float


@dataclass(frozen=True)
class Chain:
    """Tapered capsules through stations, belonging to one part.

    Attributes:
        part: the part's name.
        stations: at least one.
        blend: width of the smooth union with what came before.
        flat: unit vector along which ``thickness`` is measured.
        detail: edge lengths on it are multiplied by this; below 1 is finer.
    """

    part: str
    stations: tuple[Station, ...]
    blend: float
    flat: tuple[float, float, float] = (1.0, 0.0, 0.0)
    detail: float = 1.0

    def mirrored(self, part: str) -> Chain:
        """The chain on the other side of x = 0, for another part."""

        def flip(v: tuple[float, float, float]) -> tuple[float, float, float]:
            return (-v[0], v[1], v[2])

        stations = tuple(replace(s, position=flip(s.position)) for s in self.stations)
        return replace(self, part=part, stations=stations, flat=flip(self.flat))

    def bounds(self, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner [3] of a box about the chain."""
        positions = np.array([s.position for s in self.stations])
        reach = np.array([max(s.radius, s.thickness) for s in self.stations])[:, None] + margin
        return (positions - reach).min(axis=0), (positions + reach).max(axis=0)


def smooth_min(a: np.ndarray, b: np.ndarray, blend: float | np.ndarray) -> np.ndarray:
    """Minimum of two fields, rounded where they differ by less than ``blend``."""
    overlap = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * np.maximum(blend, 1e-9))


def _capsule(
    points: np.ndarray, start: Station, end: Station, flat: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Field [N] of one tapered capsule, and the mean radius [N] at the nearest axis point."""
    a = np.asarray(start.position)
    axis = np.asarray(end.position) - a
    # Sums of products, not matrix products: those round by the number of threads, and the mesh must
    # be the same everywhere.
    along = np.einsum("nc,c->n", points - a, axis) / max(float((axis * axis).sum()), 1e-12)
    t = np.clip(along, 0, 1)
    offset = points - a - t[:, None] * axis
    across = np.einsum("nc,c->n", offset, flat)
    beside2 = np.maximum(np.einsum("nc,nc->n", offset, offset) - across**2, 0)
    radius = start.radius + t * (end.radius - start.radius)
    thickness = start.thickness + t * (end.thickness - start.thickness)
    # A first-order distance to an ellipse: value over gradient of its implicit equation.
    value = np.sqrt((across / thickness) ** 2 + beside2 / radius**2)
    slope = np.sqrt((across / thickness**2) ** 2 + beside2 / radius**4)
    distance = np.where(
        value > 1e-6, value * (value - 1) / np.maximum(slope, 1e-9), -np.minimum(radius, thickness)
    )
    return distance, np.sqrt(radius * thickness)


def chain_field(points: np.ndarray, chain: Chain) -> tuple[np.ndarray, np.ndarray]:
    """Field [N] of a chain at points [N, 3], and its mean radius [N] there."""
    flat = np.asarray(chain.flat)
    stations = chain.stations
    field, size = _capsule(points, stations[0], stations[min(1, len(stations) - 1)], flat)
    for start, end in zip(stations[1:-1], stations[2:]):
        other, other_size = _capsule(points, start, end, flat)
        size = np.where(other < field, other_size, size)
        joint = 0.35 * min(start.radius, start.thickness)
        field = smooth_min(field, other, joint)
    return field, size


def solid_field(points: np.ndarray, chains: Sequence[Chain], floor: float) -> np.ndarray:
    """Field [N] of the union of chains above the plane z = ``floor``."""
    field = np.full(len(points), FAR)
    for chain in chains:
        field = smooth_min(field, chain_field(points, chain)[0], chain.blend)
    return np.maximum(field, floor - points[:, 2])


def solid_grid(axes: Sequence[np.ndarray], chains: Sequence[Chain], floor: float) -> np.ndarray:
    """The solid's field on a grid with ticks ``axes`` = (x, y, z); exact near the surface only.

    Each chain is evaluated in a box about it, beyond which it cannot matter.
    """
    field = np.full([len(axis) for axis in axes], FAR)
    spacing = max(float(axis[1] - axis[0]) for axis in axes)
    for chain in chains:
        low, high = chain.bounds(chain.blend + 3 * spacing)
        box = tuple(slice(*np.searchsorted(axis, [low[k], high[k]])) for k, axis in enumerate(axes))
        block = field[box]
        if not block.size:
            continue
        ticks = [axis[part] for axis, part in zip(axes, box)]
        points = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1).reshape(-1, 3)
        values = chain_field(points, chain)[0].reshape(block.shape)
        field[box] = smooth_min(block, values, chain.blend)
    return np.maximum(field, floor - axes[2][None, None, :])


def gradient(points: np.ndarray, chains: Sequence[Chain], floor: float) -> np.ndarray:
    """The solid field's gradient [N, 3] by central differences."""
    step = 1e-4
    slopes = np.empty_like(points)
    for k in range(3):
        ahead = solid_field(points + step * np.eye(3)[k], chains, floor)
        behind = solid_field(points - step * np.eye(3)[k], chains, floor)
        slopes[:, k] = (ahead - behind) / (2 * step)
    return slopes


def local_size(points: np.ndarray, chains: Sequence[Chain]) -> np.ndarray:
    """Mean radius [N] of the chain nearest to each point, times the chain's ``detail``."""
    nearest = np.full(len(points), np.inf)
    size = np.ones(len(points))
    for chain in chains:
        field, own = chain_field(points, chain)
        closer = field < nearest
        nearest = np.where(closer, field, nearest)
        size = np.where(closer, own * chain.detail, size)
    return size
