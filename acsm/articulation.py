"""Articulation: a template's vertices moved by a tree of parts.

A part transform is ``[scale, tx, ty, tz, qw, qx, qy, qz]``: a turn about the part's own rotation
centre, then a translation, in the template frame at rest. The scale is carried in the layout but
never applied: parts are rigid. A vertex is the average of where its parts take it, weighted by
membership (linear blend skinning).

Two orders compose a part's move with its ancestors'. ``chain`` applies own, parent, ..., root: a
kinematic chain, in which a foot follows its knee and the knee follows the hip. ``published`` applies
own, root, ..., parent, as the released code did; the two agree while a part has one ancestor.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from acsm.geometry import quat_rotate, quat_to_matrix

Order = Literal["chain", "published"]


def identity_transforms(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Part transforms [*shape, 8] that move nothing (scale 1, qw 1)."""
    transforms = torch.zeros(*shape, 8, dtype=dtype)
    transforms[..., 0] = transforms[..., 4] = 1.0
    return transforms


@functools.lru_cache(maxsize=64)
def tree_levels(parents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Parts grouped by depth, roots (parent -1) first.

    Raises:
        ValueError: a parent is out of range or the parents form a cycle.
    """
    depth: list[int] = []
    for part in range(len(parents)):
        steps, ancestor = 0, parents[part]
        while ancestor >= 0:
            if ancestor >= len(parents) or steps > len(parents):
                raise ValueError(f"part_parents {parents} is not a tree (at part {part})")
            steps, ancestor = steps + 1, parents[ancestor]
        depth.append(steps)
    return tuple(
        tuple(p for p in range(len(parents)) if depth[p] == level)
        for level in range(max(depth, default=-1) + 1)
    )


def part_affines(transforms: Tensor, centres: Tensor) -> Tensor:
    """Each part's own move as a matrix [..., P, 3, 4], from transforms [..., P, 8], centres [P, 3]."""
    linear = quat_to_matrix(transforms[..., 4:])
    shift = centres - (linear @ centres[..., None]).squeeze(-1) + transforms[..., 1:4]
    return torch.cat((linear, shift[..., None]), dim=-1)


def _after(outer: Tensor, inner: Tensor) -> Tensor:
    """The move [..., 3, 4] that applies ``inner`` and then ``outer``."""
    product = outer[..., :3] @ inner
    return torch.cat((product[..., :3], product[..., 3:] + outer[..., 3:]), dim=-1)


def composed_affines(
    transforms: Tensor, centres: Tensor, parents: Sequence[int], order: Order = "chain"
) -> Tensor:
    """Every part's move with its ancestors' [..., P, 3, 4], computed level by level of the tree."""
    parents = tuple(int(p) for p in parents)
    own = part_affines(transforms, centres)
    levels = tree_levels(parents)
    if len(levels) <= 1:
        return own
    # `ancestry` is what a part's children inherit: the moves of the part and of all above it.
    ancestry: list[Tensor] = [own[..., p, :, :] for p in range(len(parents))]
    composed = list(ancestry)
    for level in levels[1:]:
        inherited = torch.stack([ancestry[parents[p]] for p in level], dim=-3)
        mine = own[..., list(level), :, :]
        down = _after(inherited, mine)
        up = down if order == "chain" else _after(mine, inherited)
        for i, part in enumerate(level):
            composed[part] = down[..., i, :, :]
            ancestry[part] = up[..., i, :, :]
    return torch.stack(composed, dim=-3)


def articulate(
    vertices: Tensor,
    membership: Tensor,
    transforms: Tensor,
    centres: Tensor,
    parents: Sequence[int],
    order: Order = "chain",
) -> Tensor:
    """Move a template by its parts.

    Args:
        vertices: template vertices [V, 3] or a batch [..., V, 3].
        membership: share of each vertex in each part [V, P], rows summing to one.
        transforms: part transforms [..., P, 8].
        centres: rotation centres [P, 3] at rest.
        parents: parent of each part, -1 for a root.
        order: ``chain`` (own, parent, ..., root) or ``published`` (own, root, ..., parent).

    Returns:
        Moved vertices [..., V, 3].
    """
    moves = composed_affines(transforms, centres, parents, order)
    # Blending the matrices before applying them needs one product of [V, P] and [P, 12] a sample,
    # where moving the vertices by every part would build [P, V, 3].
    blended = (membership @ moves.flatten(-2)).unflatten(-1, (3, 4))
    moved = (blended[..., :3] * vertices[..., None, :]).sum(-1)
    return moved + blended[..., 3]


def articulate_reference(
    vertices: Tensor,
    membership: Tensor,
    transforms: Tensor,
    centres: Tensor,
    parents: Sequence[int],
    order: Order = "chain",
) -> Tensor:
    """Readable twin of `articulate`: walks each part's ancestors and moves all vertices by each."""

    def ancestors(part: int) -> list[int]:
        parent = int(parents[part])
        return [] if parent < 0 else [parent, *ancestors(parent)]

    def move(points: Tensor, part: int) -> Tensor:
        transform, centre = transforms[..., part, :], centres[part]
        return quat_rotate(transform[..., 4:], points - centre) + centre + transform[..., None, 1:4]

    total = torch.zeros_like(vertices)
    for part in range(len(parents)):
        above = ancestors(part)
        points = vertices
        for step in [part, *(above if order == "chain" else reversed(above))]:
            points = move(points, step)
        total = total + membership[:, part, None] * points
    return total
