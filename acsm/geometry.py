"""Rotations and weak-perspective cameras in PyTorch.

Quaternions are ``wxyz`` and unit length. A camera is ``[scale, tx, ty, qw, qx, qy, qz]``:
``xy_ndc = scale * (R(q) X)_xy + (tx, ty)`` with the camera frame x right, y down, z away. The
template frame is x to the animal's left, z up, head towards -y. Every function broadcasts over
leading dimensions and keeps dtype and device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DEPTH_OFFSET = 5.0
"""Added to the scaled depth, so that everything lies in front of the image plane."""

UPRIGHT_QUATERNION = (math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0)
"""Takes template up (z) to image up (-y) with the animal's head towards the viewer (-z)."""


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product ``a b`` of quaternions [..., 4] (turn by ``b`` first, then by ``a``)."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        dim=-1,
    )


def quat_conjugate(q: Tensor) -> Tensor:
    """The inverse turn of unit quaternions [..., 4]."""
    return torch.cat((q[..., :1], -q[..., 1:]), dim=-1)


def quat_to_matrix(q: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4]; ``R @ x`` is ``q x q*``.

    The homogeneous form: a quaternion of length n scales by n squared, exactly as the product does.
    """
    w, x, y, z = q.unbind(-1)
    ww, xx, yy, zz = w * w, x * x, y * y, z * z
    rows = (
        ww + xx - yy - zz, 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), ww - xx + yy - zz, 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), ww - xx - yy + zz,
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quat_rotate(q: Tensor, points: Tensor) -> Tensor:
    """Turn points [..., N, 3] by unit quaternions [..., 4]."""
    return points @ quat_to_matrix(q).transpose(-1, -2)


def quat_from_axis_angle(axis: Tensor, angle: Tensor) -> Tensor:
    """Quaternions [..., 4] turning by ``angle`` [...] radians about unit axes [..., 3]."""
    half = 0.5 * angle[..., None]
    axis = axis.expand(*half.shape[:-1], 3)
    return torch.cat((half.cos(), half.sin() * axis), dim=-1)


def quat_from_azimuth_elevation(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Turn by ``azimuth`` about y, then by ``elevation`` about x (radians) -> [..., 4]."""
    zero = torch.zeros_like(azimuth)
    around_y = torch.stack(((azimuth / 2).cos(), zero, (azimuth / 2).sin(), zero), dim=-1)
    around_x = torch.stack(((elevation / 2).cos(), (elevation / 2).sin(), zero, zero), dim=-1)
    return quat_multiply(around_x, around_y)


def geodesic_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Angle in degrees of the turn between unit quaternions [..., 4], in [0, 180] (q = -q)."""
    # atan2 keeps its precision near zero, where acos of the dot product loses half the digits.
    relative = quat_multiply(quat_conjugate(a), b)
    return torch.rad2deg(2 * torch.atan2(relative[..., 1:].norm(dim=-1), relative[..., 0].abs()))


def mirror_quaternion(q: Tensor) -> Tensor:
    """The same turn seen in the mirror x -> -x: (w, x, -y, -z)."""
    return q * q.new_tensor((1.0, 1.0, -1.0, -1.0))


def mirror_camera(camera: Tensor) -> Tensor:
    """Camera [..., 7] under which the mirrored template gives the mirrored image."""
    return camera * camera.new_tensor((1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0))


def mirror_part_transforms(transforms: Tensor, part_mirror: Tensor) -> Tensor:
    """Part transforms [..., P, 8] of the mirrored animal.

    Parts swap sides by ``part_mirror`` [P] (long), turns mirror to (w, x, -y, -z) and translations
    to (-x, y, z).
    """
    signs = transforms.new_tensor((1.0, -1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0))
    return transforms[..., part_mirror, :] * signs


def project(points: Tensor, camera: Tensor) -> Tensor:
    """Weak-perspective image positions [..., N, 2] of points [..., N, 3] under cameras [..., 7]."""
    rotation = quat_to_matrix(camera[..., 3:])[..., :2, :] * camera[..., 0, None, None]
    return points @ rotation.transpose(-1, -2) + camera[..., None, 1:3]


def project_with_depth(points: Tensor, camera: Tensor, offset: float = DEPTH_OFFSET) -> Tensor:
    """As `project`, with the scaled depth + ``offset`` as third coordinate -> [..., N, 3]."""
    scaled = quat_rotate(camera[..., 3:], points) * camera[..., 0, None, None]
    shift = torch.nn.functional.pad(camera[..., 1:3], (0, 1), value=offset)
    return scaled + shift[..., None, :]


def view_angles(q: Tensor) -> Tensor:
    """Where the viewer looks along, in the template frame: (azimuth, elevation) radians [..., 2].

    Azimuth 0 looks along +y (into the animal's face), pi/2 along +x (onto its right side); a
    positive elevation looks down on it. Divided by (pi, pi / 2) these are the published angles.
    """
    away = quat_to_matrix(q)[..., 2, :]
    azimuth = torch.atan2(away[..., 0], away[..., 1])
    return torch.stack((azimuth, torch.asin((-away[..., 2]).clamp(-1, 1))), dim=-1)
