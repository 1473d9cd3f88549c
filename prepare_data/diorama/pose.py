"""Poses: ball-joint rotations per bone, and the skinning that applies them.

Angles are degrees about the rest axes: x pitches (positive turns a leg back, a neck down), y rolls,
z yaws. Every joint is a ball joint: to the pitch of a gait each gets a small turn about all three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np

from prepare_data.diorama.anatomy import BONE, BONE_NAMES, BONE_PARENT
from prepare_data.diorama.body import Body, bounds
from prepare_data.diorama.species import Species

POSES = ("stand", "walk", "run", "graze", "lie", "sit")
_ORDER = np.array(sorted(range(len(BONE_NAMES)), key=lambda b: b))  # parents come first


@dataclass(frozen=True)
class Pose:
    """One pose of one animal.

    Attributes:
        kind: a name in `POSES`.
        rotations: [B, 3, 3], local turn of each bone about its pivot, relative to its parent.
        scales: [B], size of each bone's flesh and of the way to its children.
        level: how far the lowest points of front and back are put on one ground, 0 to 1.
    """

    kind: str
    rotations: np.ndarray
    scales: np.ndarray
    level: float


def rotation_xyz(degrees: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] turning about x first, then y, then z (degrees [..., 3])."""
    a = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    cx, cy, cz = np.moveaxis(np.cos(a), -1, 0)
    sx, sy, sz = np.moveaxis(np.sin(a), -1, 0)
    rows = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def sample_pose(
    species: Species, rng: np.random.Generator, variety: float = 1.0, kind: str | None = None
) -> Pose:
    """Draws a pose; ``variety`` scales the amplitudes, ``kind`` fixes what the animal does."""
    names = list(species.poses)
    shares = np.array([species.poses[name] for name in names])
    drawn = str(rng.choice(names, p=shares / shares.sum()))
    kind = kind or drawn
    angles = np.zeros((len(BONE_NAMES), 3))

    def turn(bone: str, pitch: float = 0.0, roll: float = 0.0, yaw: float = 0.0) -> None:
        angles[BONE[bone]] += (pitch, roll, yaw)

    free = species.neck_free
    # what every animal does a little: look about, bend, swing the tail and the ears
    yaw = rng.normal(0, 16) + (rng.choice([-1, 1]) * rng.uniform(25, 75) if rng.random() < 0.3 else 0)
    pitch = rng.normal(0, 14) * free
    for bone, share in (("neck1", 0.25), ("neck2", 0.25), ("neck3", 0.2), ("head", 0.3)):
        turn(bone, pitch * share, 0, yaw * share * (0.5 + 0.5 * free))
    turn("head", rng.normal(0, 9), rng.normal(0, 7), rng.normal(0, 8))
    bend = rng.normal(0, 9)
    turn("chest", rng.normal(0, 3), rng.normal(0, 3), bend)
    turn("rump", rng.normal(0, 3), rng.normal(0, 3), -bend)
    for i in (1, 2, 3):
        turn(f"tail{i}", rng.normal(-4 if i == 1 else 0, 12), 0, rng.normal(0, 16))
    for ear in ("ear_l", "ear_r"):
        turn(ear, rng.normal(0, 14), rng.normal(0, 12), rng.normal(0, 14))

    {"stand": _stand, "walk": _walk, "run": _run, "graze": _graze, "lie": _lie, "sit": _sit}[kind](
        turn, rng, species
    )
    jitter = rng.normal(0, 2.2, angles.shape)
    jitter[[BONE[b] for b in ("barrel",)]] = 0
    angles = (angles + jitter) * (1.0 if kind in ("lie", "sit", "graze") else variety)
    scales = np.ones(len(BONE_NAMES))
    for bones, spread in (
        (("head", "ear_l", "ear_r"), 0.05),
        (("neck1", "neck2", "neck3"), 0.05),
        (tuple(f"{leg}_{s}" for leg in ("fl", "fr", "bl", "br")
               for s in ("lower", "cannon", "foot")), 0.05),
        (("chest", "rump", "barrel"), 0.03),
    ):  # fmt: skip
        size = np.exp(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread) * variety)
        scales[[BONE[b] for b in bones]] = size
    level = {"stand": 1.0, "walk": 1.0, "graze": 1.0, "lie": 0.6}.get(kind, 0.0)
    return Pose(kind, rotation_xyz(angles), scales, level)


def _stand(turn, rng, species) -> None:
    for leg in ("fl", "fr", "bl", "br"):
        swing = rng.normal(0, 6)
        turn(f"{leg}_upper", swing, rng.normal(0, 2), rng.normal(0, 3))
        turn(f"{leg}_lower", -0.4 * swing)
    if rng.random() < 0.25:  # a resting hind leg
        leg = rng.choice(["bl", "br"])
        turn(f"{leg}_upper", -14)
        turn(f"{leg}_lower", 20)
        turn(f"{leg}_cannon", -16)
        turn(f"{leg}_foot", 22)


def _gait(turn, phases, amplitude, knee, hock) -> None:
    for leg, phase in phases.items():
        swing = np.sin(phase)
        lifted = max(np.cos(phase), 0.0)  # the leg comes forward while it is off the ground
        front = leg[0] == "f"
        turn(f"{leg}_upper", -amplitude * swing * (0.8 if front else 1.0))
        if front:
            turn(f"{leg}_lower", -0.45 * knee * lifted - 0.25 * amplitude * swing)
            turn(f"{leg}_cannon", 1.25 * knee * lifted)
            turn(f"{leg}_foot", 0.5 * knee * lifted)
        else:
            turn(f"{leg}_lower", 0.7 * hock * lifted + 0.2 * amplitude * swing)
            turn(f"{leg}_cannon", -1.0 * hock * lifted)
            turn(f"{leg}_foot", 0.6 * hock * lifted)


def _walk(turn, rng, species) -> None:
    t = rng.uniform(0, 2 * np.pi)
    quarter = np.pi / 2
    lateral = rng.uniform(0.8, 1.2)
    phases = {"bl": t, "fl": t - quarter * lateral, "br": t + 2 * quarter,
              "fr": t + 2 * quarter - quarter * lateral}  # fmt: skip
    _gait(turn, phases, rng.uniform(15, 26), rng.uniform(24, 44), rng.uniform(20, 36))


def _run(turn, rng, species) -> None:
    t = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:  # trot: diagonal pairs
        phases = {"bl": t, "fr": t + 0.2, "br": t + np.pi, "fl": t + np.pi + 0.2}
        _gait(turn, phases, rng.uniform(24, 34), rng.uniform(55, 80), rng.uniform(40, 58))
    else:  # gallop: hind pair after front pair, the spine bows along
        phases = {"bl": t, "br": t + 0.5, "fl": t + 2.4, "fr": t + 3.0}
        _gait(turn, phases, rng.uniform(32, 46), rng.uniform(60, 90), rng.uniform(45, 65))
        bow = 9 * np.sin(t)
        turn("rump", -bow)
        turn("chest", bow)
    for bone in ("neck1", "neck2", "neck3"):
        turn(bone, rng.uniform(2, 9))
    turn("tail1", rng.uniform(-45, -10))


def _graze(turn, rng, species) -> None:
    _stand(turn, rng, species)
    depth = rng.uniform(0.75, 1.0)
    reach = {"giraffe": 105, "bear": 55, "dog": 85, "sheep": 92, "cow": 82, "horse": 108}
    total = reach.get(species.name, 90) * depth
    for bone, share in (("neck1", 0.42), ("neck2", 0.3), ("neck3", 0.18)):
        turn(bone, total * share)
    turn("chest", 6 * depth)
    turn("head", -0.08 * total + rng.normal(0, 6))
    if species.name == "giraffe":  # it must straddle to reach the grass
        for leg, side in (("fl", 1), ("fr", -1)):
            turn(f"{leg}_upper", -8, -26 * side)
            turn(f"{leg}_lower", 0, 4 * side)


def _lie(turn, rng, species) -> None:
    soft = 1.0 if species.hooves else 0.92
    for leg, side in (("fl", 1), ("fr", -1)):
        if species.hooves:
            turn(f"{leg}_upper", rng.normal(14, 6), rng.uniform(-14, -4) * side)
            turn(f"{leg}_lower", -rng.uniform(78, 96))
            fold = rng.uniform(120, 158) if rng.random() < 0.75 else rng.uniform(0, 25)
            turn(f"{leg}_cannon", fold)
            turn(f"{leg}_foot", 0.12 * fold)
        else:
            turn(f"{leg}_upper", rng.normal(22, 5), -4 * side)
            turn(f"{leg}_lower", -rng.uniform(88, 104))
            turn(f"{leg}_cannon", rng.normal(-2, 8))
    for leg, side in (("bl", 1), ("br", -1)):
        turn(f"{leg}_upper", -rng.uniform(38, 56) * soft, rng.uniform(-24, -8) * side)
        turn(f"{leg}_lower", rng.uniform(92, 112))
        turn(f"{leg}_cannon", -rng.uniform(104, 122))
        turn(f"{leg}_foot", rng.normal(28, 5))
    turn("barrel", 0, rng.normal(0, 9))
    turn("tail1", 24)


def _sit(turn, rng, species) -> None:
    rise = rng.uniform(30, 46)
    turn("barrel", -rise)
    turn("rump", -10)
    turn("chest", -4)
    for leg, side in (("fl", 1), ("fr", -1)):
        turn(f"{leg}_upper", rise * 0.72 + rng.normal(0, 4), 2 * side)
        turn(f"{leg}_lower", rise * 0.25 + rng.normal(0, 3))
    for leg, side in (("bl", 1), ("br", -1)):
        turn(f"{leg}_upper", -rng.uniform(22, 34), rng.uniform(-26, -12) * side)
        turn(f"{leg}_lower", rng.uniform(94, 108))
        turn(f"{leg}_cannon", -rng.uniform(54, 66) + rise * 0.3)
        turn(f"{leg}_foot", 14)
    for bone, share in (("neck1", 0.3), ("neck2", 0.2), ("head", 0.35)):
        turn(bone, rise * share)
    turn("tail1", 30 + rise * 0.5)


@nb.njit(cache=True, nogil=True, fastmath=True)
def _skin(vertices, bones, weights, linear, offset):
    out = np.empty(vertices.shape)
    for i in range(vertices.shape[0]):
        x = y = z = 0.0
        for n in range(bones.shape[1]):
            b, w = bones[i, n], weights[i, n]
            if w < 1e-4:
                continue
            p, q, r = vertices[i, 0], vertices[i, 1], vertices[i, 2]
            x += w * (linear[b, 0, 0] * p + linear[b, 0, 1] * q + linear[b, 0, 2] * r + offset[b, 0])
            y += w * (linear[b, 1, 0] * p + linear[b, 1, 1] * q + linear[b, 1, 2] * r + offset[b, 1])
            z += w * (linear[b, 2, 0] * p + linear[b, 2, 1] * q + linear[b, 2, 2] * r + offset[b, 2])
        out[i, 0], out[i, 1], out[i, 2] = x, y, z
    return out


def bone_motions(pivots: np.ndarray, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World turns [B, 3, 3], and the affine motion (linear [B, 3, 3], offset [B, 3]) of each bone."""
    count = len(BONE_NAMES)
    world = np.empty((count, 3, 3))
    linear = np.empty((count, 3, 3))
    offset = np.empty((count, 3))
    for b in _ORDER:
        parent = BONE_PARENT[b]
        if parent < 0:
            world[b], pivot = pose.rotations[b], pivots[b]
        else:
            world[b] = world[parent] @ pose.rotations[b]
            pivot = linear[parent] @ pivots[b] + offset[parent]
        linear[b] = world[b] * pose.scales[b]
        offset[b] = pivot - linear[b] @ pivots[b]
    return world, linear, offset


_FEET = {
    end: np.array([BONE[f"{leg}_foot"] for leg in legs])
    for end, legs in (("front", ("fl", "fr")), ("back", ("bl", "br")))
}
_TRUNK = np.array([BONE[name] for name in ("barrel", "chest", "rump")])
_TRUNK_ENDS = {"front": np.array([BONE["chest"]]), "back": np.array([BONE["rump"]])}


def apply_pose(body: Body, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Poses a body on the ground z = 0.

    Returns:
        vertices [V, 3] in units of the rest body, the trunk's middle over x = y = 0; and the
        trunk's turn [3, 3] from rest (mean of chest and rump), the body's true orientation.
    """
    world, linear, offset = bone_motions(body.anatomy.pivots, pose)
    vertices = _skin(body.vertices, body.bones, body.weights, linear, offset)
    if pose.level:
        lowest = []
        for end in ("front", "back"):
            # a lying animal rests on its trunk, the others on their feet
            part = _FEET[end] if pose.level == 1 else _TRUNK_ENDS[end]
            there = np.flatnonzero(np.isin(body.bones[:, 0], part))
            lowest.append(vertices[there[vertices[there, 2].argmin()]])
        front, back = lowest
        angle = pose.level * np.arctan2(front[2] - back[2], back[1] - front[1])
        tilt = rotation_xyz(np.array([np.rad2deg(np.clip(angle, -0.3, 0.3)), 0, 0]))
        vertices = vertices @ tilt.T
        world = tilt @ world
    u, _, vt = np.linalg.svd(world[BONE["chest"]] + world[BONE["rump"]] + world[BONE["barrel"]])
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    centre = linear[BONE["barrel"]] @ body.anatomy.pivots[BONE["barrel"]] + offset[BONE["barrel"]]
    if pose.level:
        centre = tilt @ centre
    floor = bounds(vertices)[0][2]
    if pose.kind == "lie":
        # the belly touches the ground; folded legs under it are pressed flat, as in grass
        trunk = np.isin(body.bones[:, 0], _TRUNK)
        floor = 0.25 * floor + 0.75 * vertices[trunk, 2].min()
        below = vertices[:, 2] < floor
        vertices[below, 2] = floor + 0.1 * (vertices[below, 2] - floor)
        floor = bounds(vertices)[0][2]
    return vertices - [centre[0], centre[1], floor], turn
