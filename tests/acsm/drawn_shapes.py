"""Shapes to draw, what supersampling says of them, and slopes by finite differences."""

import numpy as np
import torch
from scipy.spatial import ConvexHull

from acsm.articulation import articulate, identity_transforms
from acsm.geometry import project_with_depth, quat_from_axis_angle
from acsm.renderer import rasterize
from acsm.template import template_for
from wildshape.category import load_category

CUBE_FACES = np.array(
    [[0, 2, 1], [1, 2, 3], [4, 5, 6], [5, 7, 6], [0, 1, 4], [1, 5, 4]]
    + [[2, 6, 3], [3, 6, 7], [0, 4, 2], [2, 4, 6], [1, 3, 5], [3, 7, 5]]
)


def ndc(xy_edges, size):
    """Points counted in pixels from the picture's upper left corner, to NDC."""
    return np.asarray(xy_edges, float) * 2 / size - 1


def flat(xy_edges, size):
    """A batch of one flat mesh."""
    xy = ndc(xy_edges, size)
    return torch.tensor(np.concatenate([xy, np.zeros((len(xy), 1))], 1)[None])


def box(low, high, size):
    """Corners of a closed box, x, y in pixels from the picture's corner."""
    corners = [(x, y, z) for z in (0, 1) for y in (low[1], high[1]) for x in (low[0], high[0])]
    points = np.array(corners, float)
    points[:, :2] = ndc(points[:, :2], size)
    return points


def ball(count, seed=0):
    """A convex closed mesh of random points, faces anticlockwise seen from outside."""
    points = np.random.default_rng(seed).normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    faces = ConvexHull(points).simplices
    a, b, c = (points[faces[:, k]] for k in range(3))
    inward = np.einsum("fc,fc->f", np.cross(b - a, c - a), a) < 0
    faces[inward] = faces[inward][:, ::-1]
    return points, faces


def supersampled(vertices, faces, size, by=16):
    """Share of by x by samples of each pixel that see a face."""
    fine = np.stack([rasterize(v[None], faces, size * by).mask[0] for v in np.asarray(vertices)])
    return fine.reshape(len(fine), size, by, size, by).mean((2, 4))


def posed(category, count, seed=0, turn=0.6):
    """A category's template in random poses under random cameras, NDC."""
    template = template_for(load_category(category))
    rng = torch.Generator().manual_seed(seed)
    parts = identity_transforms(count, template.num_parts, dtype=torch.float64)
    axes = torch.nn.functional.normalize(
        torch.randn(count, template.num_parts, 3, generator=rng).double(), dim=-1
    )
    angles = turn * torch.randn(count, template.num_parts, generator=rng).double()
    parts[..., 4:] = quat_from_axis_angle(axes, angles)
    moved = articulate(
        torch.tensor(template.vertices), torch.tensor(template.membership), parts,
        torch.tensor(template.part_centres), template.part_parents,
    )  # fmt: skip
    camera = torch.zeros(count, 7, dtype=torch.float64)
    camera[:, 0] = 0.8
    camera[:, 3:] = torch.nn.functional.normalize(torch.randn(count, 4, generator=rng).double(), dim=-1)
    return project_with_depth(moved, camera), template.faces


def directional(function, x, seed=0, step=1e-7, count=4):
    """Derivatives along random directions: by central differences, and by autograd."""
    x = x.detach().clone().requires_grad_()
    function(x).backward()
    rng = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(count):
        d = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        with torch.no_grad():
            numeric = (function(x + step * d) - function(x - step * d)) / (2 * step)
        pairs.append((numeric.item(), (x.grad * d).sum().item()))
    return np.array(pairs).T
