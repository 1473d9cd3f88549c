"""From a species' plan to one individual: bones, joints and the primitives of its implicit surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prepare_data.diorama.species import (
    BARE,
    EAR,
    EYE,
    HOOF,
    MANE,
    NOSE,
    SKIN,
    SPECIES,
    UDDER,
    WOOL,
    Species,
    with_floppy_ears,
)
from wildshape.errors import UserError

LEGS = ("fl", "fr", "bl", "br")
_SEGMENTS = ("upper", "lower", "cannon", "foot")
_SPINE = {
    "barrel": None, "chest": "barrel", "rump": "barrel", "neck1": "chest", "neck2": "neck1",
    "neck3": "neck2", "head": "neck3", "ear_l": "head", "ear_r": "head", "tail1": "rump",
    "tail2": "tail1", "tail3": "tail2",
}  # fmt: skip
BONE_NAMES: tuple[str, ...] = (*_SPINE, *(f"{leg}_{s}" for leg in LEGS for s in _SEGMENTS))
BONE = {name: i for i, name in enumerate(BONE_NAMES)}


def _parent(name: str) -> int:
    if name in _SPINE:
        above = _SPINE[name]
        return -1 if above is None else BONE[above]
    leg, segment = name.split("_")
    if segment == "upper":
        return BONE["chest" if leg[0] == "f" else "rump"]
    return BONE[f"{leg}_{_SEGMENTS[_SEGMENTS.index(segment) - 1]}"]


BONE_PARENT = np.array([_parent(name) for name in BONE_NAMES])


@dataclass(frozen=True)
class Anatomy:
    """One individual at rest; frame x left, y backwards, z up, unit: the species' withers height.

    Attributes:
        species: the plan it was drawn from, as sampled (ears may differ).
        pivots: [B, 3], where each bone turns.
        start, end: [N, 3], axis of each primitive.
        radii: [N, 2] at start and end; flat: [N, 2] lateral radius / radius.
        blend: [N] smoothing length; bone: [N]; material: [N].
        landmarks: keypoint name -> (bone, position [3]) before it is put on the surface.
        factors: the sampled proportions, by name.
    """

    species: Species
    pivots: np.ndarray
    start: np.ndarray
    end: np.ndarray
    radii: np.ndarray
    flat: np.ndarray
    blend: np.ndarray
    bone: np.ndarray
    material: np.ndarray
    landmarks: dict[str, tuple[int, np.ndarray]]
    factors: dict[str, float]


_SPREAD = {
    "trunk": 0.07, "girth": 0.08, "width": 0.08, "leg": 0.09, "leg_girth": 0.11, "neck": 0.09,
    "neck_girth": 0.10, "head": 0.08, "muzzle": 0.10, "ear": 0.16, "tail": 0.16,
}  # fmt: skip


def find_species(name: str) -> Species:
    """The plan called ``name``; UserError lists those there are."""
    if name not in SPECIES:
        raise UserError(
            f"expected a diorama species, one of {', '.join(sorted(SPECIES))}; found {name!r}; "
            "set `diorama: {species: ...}` in the category file"
        )
    return SPECIES[name]


def _rotate(points: np.ndarray, centre: np.ndarray, angle: float) -> np.ndarray:
    """Turns (u, z) points [N, 2] nose-up by ``angle`` about ``centre``."""
    c, s = np.cos(angle), np.sin(angle)
    d = points - centre
    return centre + np.stack([c * d[:, 0] - s * d[:, 1], s * d[:, 0] + c * d[:, 1]], 1)


class _Collector:
    """Gathers primitives and turns plan coordinates (u, x, z) into (x, y, z)."""

    def __init__(self) -> None:
        self.rows: list[tuple] = []

    def add(self, bone, start, end, radii, flat, material=SKIN, blend=0.04) -> None:
        flats = (flat, flat) if np.isscalar(flat) else flat
        self.rows.append((self.xyz(start), self.xyz(end), radii, flats, blend, BONE[bone], material))

    @staticmethod
    def xyz(point) -> tuple[float, float, float]:
        u, x, z = point
        return (x, -u, z)

    def columns(self) -> list[np.ndarray]:
        return [np.asarray(column, dtype=np.float64) for column in zip(*self.rows)]


def sample_anatomy(species: Species, rng: np.random.Generator, spread: float = 1.0) -> Anatomy:
    """Draws one individual of ``species``; ``spread`` scales how far proportions stray."""
    f = {
        name: float(np.exp(np.clip(rng.normal(0, s), -2 * s, 2 * s) * spread * species.spread))
        for name, s in _SPREAD.items()
    }
    carriage = float(rng.normal(0, 0.10)) * spread * species.neck_free
    if species.name == "dog" and rng.random() < 0.5:
        species = with_floppy_ears(species)
    keep = {b: rng.random() < b.probability for b in species.extras}
    horned = rng.random()

    def kept(blob) -> bool:
        # one draw decides over all blobs of a probability below one, so that horns stay whole
        return keep[blob] if blob.material == UDDER else horned < blob.probability

    trunk = np.array(species.trunk)
    trunk[:, 0] *= f["trunk"]
    trunk[:, 2] *= f["girth"]
    trunk[:, 3] *= f["width"]
    neck = np.array(species.neck)
    head = np.array(species.head)
    neck_base = neck[0, :2].copy()
    new_base = neck_base * [f["trunk"], 1.0]
    poll = head[0, :2].copy()

    def on_neck(uz: np.ndarray) -> np.ndarray:
        moved = new_base + (np.atleast_2d(uz) - neck_base) * f["neck"]
        return _rotate(moved, new_base, carriage)

    new_poll = on_neck(poll)[0]
    axis = head[-1, :2] - poll
    axis /= np.linalg.norm(axis)

    def on_head(uz: np.ndarray) -> np.ndarray:
        d = np.atleast_2d(uz) - poll
        along = d @ axis
        d = d + np.clip(along, 0, None)[:, None] * axis * (f["muzzle"] - 1)
        return _rotate(new_poll + d * f["head"], new_poll, 0.3 * carriage)

    out = _Collector()
    wool = WOOL if species.wool else SKIN
    _add_trunk(out, trunk, wool)
    _add_neck(out, on_neck(neck[:, :2]), neck[:, 2:] * [f["neck_girth"], 1.0], trunk, wool)
    _add_head(out, species, head, on_head, f["head"])
    landmarks: dict[str, tuple[int, np.ndarray]] = {}
    pivots = np.zeros((len(BONE_NAMES), 3))

    def put(name: str, point) -> None:
        pivots[BONE[name]] = out.xyz(point)

    def mark(name: str, bone: str, point) -> None:
        landmarks[name] = (BONE[bone], np.array(out.xyz(point)))

    # trunk joints sit in the spine, above the middle of the sections
    for bone, left, right in (("rump", 1, 2), ("chest", 3, 4)):
        u, z, r = (trunk[left, :3] + trunk[right, :3]) / 2
        put(bone, (u, 0.0, z + 0.5 * r))
    put("barrel", (trunk[2:4, 0].mean(), 0.0, trunk[2:4, 1].mean() + 0.1))
    placed = on_neck(neck[:, :2])
    for i in range(3):
        put(f"neck{i + 1}", (placed[i, 0], 0.0, placed[i, 1]))
    put("head", (new_poll[0], 0.0, new_poll[1]))

    _add_ears(out, species, on_head, f, put, mark)
    _add_tail(out, species, f, put, mark)
    lift = _add_legs(out, species, f, trunk, put, mark)
    for blob in species.extras:
        if not kept(blob):
            continue
        ends = [np.array(blob.start), np.array(blob.end)]
        uz = np.array([[e[0], e[2]] for e in ends])
        scale = 1.0
        if blob.bone == "head":
            uz, scale = on_head(uz), f["head"]
        elif blob.bone.startswith("neck"):
            uz, scale = on_neck(uz), 0.5 + 0.5 * f["neck"]
        elif blob.bone.startswith("tail"):
            base = np.array(species.tail[0][:2])
            uz = base * [f["trunk"], 1] + (uz - base) * f["tail"]
        else:
            uz = uz * [f["trunk"], 1.0]
            uz[:, 1] += (f["girth"] - 1) * (uz[:, 1] - 0.72)
        for side in (1, -1) if ends[0][1] or ends[1][1] else (1,):
            a, b = ((uz[i, 0], side * ends[i][1] * scale, uz[i, 1]) for i in (0, 1))
            radii = tuple(r * scale for r in blob.radii)
            out.add(blob.bone, a, b, radii, blob.flat, blob.material, blob.blend)

    # the withers stand over the shoulders, the throat under the head on the neck
    top = trunk[-2]
    mark("Withers", "chest", (top[0] - 0.02, 0.0, top[1] + top[2] + 0.06))
    under = placed[-1] + (placed[-2] - placed[-1]) * 0.35
    normal = np.array([axis_v := placed[-1, 1] - placed[-2, 1], -(placed[-1, 0] - placed[-2, 0])])
    normal = normal / np.linalg.norm([axis_v, placed[-1, 0] - placed[-2, 0]])
    throat = under + normal * neck[-1, 2] * 1.15
    mark("Throat", "neck3", (throat[0], 0.0, throat[1]))
    tip = on_head(head[-1:, :2] + axis * head[-1, 2] * 0.8)[0]
    mark("Nose", "head", (tip[0], 0.0, tip[1] + 0.01))

    start, end, radii, flat, blend, bone, material = out.columns()
    for array in (start, end, pivots):
        array[:, 2] += lift
    landmarks = {k: (b, p + [0, 0, lift]) for k, (b, p) in landmarks.items()}
    return Anatomy(
        species, pivots, start, end, radii, flat, blend, bone.astype(np.int64),
        material.astype(np.int64), landmarks, {**f, "carriage": carriage},
    )  # fmt: skip


def _add_trunk(out: _Collector, trunk: np.ndarray, material: int) -> None:
    bones = ("rump", "rump", "barrel", "chest", "chest")
    for i, bone in enumerate(bones):
        a, b = trunk[i], trunk[i + 1]
        out.add(bone, (a[0], 0, a[1]), (b[0], 0, b[1]), (a[2], b[2]), (a[3], b[3]), material, 0.09)


def _add_neck(out, uz, shape, trunk, material) -> None:
    for i in range(3):
        out.add(
            f"neck{i + 1}", (uz[i, 0], 0, uz[i, 1]), (uz[i + 1, 0], 0, uz[i + 1, 1]),
            (shape[i, 0], shape[i + 1, 0]), (shape[i, 1], shape[i + 1, 1]), material,
            0.10 if i == 0 else 0.05,
        )  # fmt: skip
    # shoulder mass between the breast and the neck, so that no notch stays
    breast = trunk[-1]
    out.add(
        "chest", (breast[0], 0, breast[1]), (uz[0, 0], 0, uz[0, 1]),
        (breast[2] * 0.95, shape[0, 0]), (breast[3], shape[0, 1]), material, 0.08,
    )  # fmt: skip


def _add_head(out, species: Species, head, on_head, scale) -> None:
    uz = on_head(head[:, :2])
    material = BARE if species.wool else SKIN
    for i in range(len(head) - 1):
        out.add(
            "head", (uz[i, 0], 0, uz[i, 1]), (uz[i + 1, 0], 0, uz[i + 1, 1]),
            (head[i, 2] * scale, head[i + 1, 2] * scale), (head[i, 3], head[i + 1, 3]),
            material, 0.05,
        )  # fmt: skip
    # the bare tip of the muzzle
    direction = uz[-1] - uz[-2]
    direction /= np.linalg.norm(direction)
    r = head[-1, 2] * scale
    tip = uz[-1] + direction * r * 0.42
    out.add("head", (tip[0], 0, tip[1] + r * 0.15), (tip[0], 0, tip[1]), (r * 0.72, r * 0.7),
            head[-1, 3], NOSE, 0.02)  # fmt: skip
    u, z, x, r = species.eye
    eye = on_head(np.array([[u, z]]))[0]
    for side in (1, -1):
        centre = (eye[0], side * x * scale, eye[1])
        out.add("head", centre, centre, (r * scale, r * scale), 1.0, EYE, 0.006)


def _add_ears(out, species: Species, on_head, f, put, mark) -> None:
    (bu, bx, bz), (tu, tx, tz), r0, r1, flat = species.ear
    base, tip = on_head(np.array([[bu, bz], [tu, tz]]))
    size = f["ear"] * f["head"]
    tip = base + (tip - base) * f["ear"]
    for side, name in ((1, "l"), (-1, "r")):
        a = (base[0], side * bx * f["head"], base[1])
        b = (tip[0], side * (bx * f["head"] + (tx - bx) * size), tip[1])
        out.add(f"ear_{name}", a, b, (r0 * size, r1 * size), flat, EAR, 0.02)
        put(f"ear_{name}", a)
        mark(f"{name.upper()}_ear", "head", a)
        u, z, x, r = species.eye
        eye = on_head(np.array([[u, z]]))[0]
        mark(f"{name.upper()}_eye", "head", (eye[0], side * (x + r) * f["head"], eye[1]))


def _add_tail(out, species: Species, f, put, mark) -> None:
    tail = np.array(species.tail)
    base = tail[0, :2] * [f["trunk"], 1.0]
    uz = base + (tail[:, :2] - tail[0, :2]) * f["tail"]
    material = MANE if species.tail_tuft else (WOOL if species.wool else SKIN)
    for i in range(3):
        out.add(
            f"tail{i + 1}", (uz[i, 0], 0, uz[i, 1]), (uz[i + 1, 0], 0, uz[i + 1, 1]),
            (tail[i, 2], tail[i + 1, 2]), 0.85, material, 0.03,
        )  # fmt: skip
        put(f"tail{i + 1}", (uz[i, 0], 0.0, uz[i, 1]))
    # a root inside the rump, so that the tail never floats off a slim body
    rump = np.array(species.trunk[0]) * [f["trunk"], 1, f["girth"], 1]
    out.add("tail1", (rump[0] + 0.06, 0, rump[1] + 0.3 * rump[2]), (uz[0, 0], 0, uz[0, 1]),
            (tail[0, 2] * 1.5, tail[0, 2]), 0.85, SKIN if material == MANE else material,
            0.05)  # fmt: skip
    mark("Tail", "rump", (uz[0, 0], 0.0, uz[0, 1] + tail[0, 2]))


def _add_legs(out, species: Species, f, trunk, put, mark) -> float:
    """Adds four legs; returns the lift that puts the lower pair of feet on the ground."""
    lowest = []
    for leg in LEGS:
        front, side = leg[0] == "f", 1 if leg[1] == "l" else -1
        plan = np.array(species.front if front else species.hind)
        x_top, x_foot = species.front_x if front else species.hind_x
        top = plan[0, :2] * [f["trunk"], 1.0]
        uz = top + (plan[:, :2] - plan[0, :2]) * f["leg"]
        x = np.interp(np.arange(5), [0, 1, 4], [x_top, x_top, x_foot]) * side * f["width"]
        r = plan[:, 2] * np.array([f["girth"], *[f["leg_girth"]] * 4])
        points = [(uz[i, 0], x[i], uz[i, 1]) for i in range(5)]
        for i, segment in enumerate(_SEGMENTS):
            name = f"{leg}_{segment}"
            put(name, points[i])
            material = WOOL if species.wool and i == 0 else (BARE if species.wool else SKIN)
            flat = (0.62, species.limb_flat) if i == 0 else species.limb_flat
            if i == 3:
                material = HOOF if species.hooves else SKIN
                flat = 1.05
            out.add(name, points[i], points[i + 1], (r[i], r[i + 1]), flat, material,
                    0.06 if i == 0 else 0.025)  # fmt: skip
        pair = f"{'L' if side > 0 else 'R'}_{'F' if front else 'B'}"
        outwards = side * r[1] * species.limb_flat
        mark(f"{pair}_elbow", f"{leg}_lower", (uz[1, 0], x[1] + outwards, uz[1, 1]))
        knee = x[2] + side * r[2] * species.limb_flat
        mark(f"{pair}_knee", f"{leg}_cannon", (uz[2, 0], knee, uz[2, 1]))
        mark(f"{pair}_paw", f"{leg}_foot", (uz[4, 0], x[4] + side * r[4] * 0.6, uz[4, 1]))
        if not species.hooves:
            toe = points[4]
            out.add(f"{leg}_foot", toe, (toe[0] + 0.03, toe[1], toe[2] - 0.01),
                    (r[4], r[4] * 0.75), 1.2, SKIN, 0.02)  # fmt: skip
        lowest.append(uz[4, 1] - r[4])
    return -min(lowest)
