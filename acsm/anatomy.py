"""From proportions to an animal's solid: chains of capsules, pivots and landmarks.

Built in the side view, (across, ahead, up) with the ground at 0 and the trunk's middle at ahead 0,
and turned to the template's directions (x left, y to the tail, z up) as each point is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from acsm.implicit import Chain, Station
from acsm.proportions import Leg, Proportions

PARTS = (
    "body", "neck", "head", "tail",
    "L_F_upper_leg", "L_F_lower_leg", "R_F_upper_leg", "R_F_lower_leg",
    "L_B_upper_leg", "L_B_lower_leg", "R_B_upper_leg", "R_B_lower_leg",
)  # fmt: skip
PARENTS = (-1, 0, 1, 0, 0, 4, 0, 6, 0, 8, 0, 10)
MIRROR = (0, 1, 2, 3, 6, 7, 4, 5, 10, 11, 8, 9)


@dataclass(frozen=True)
class Landmark:
    """Where a keypoint lies: near ``position``, on one of ``parts``; ``midline`` if x is 0."""

    position: tuple[float, float, float]
    parts: tuple[str, ...]
    midline: bool = False


@dataclass
class Anatomy:
    """Chains (both sides), pivots by part, landmarks by quadruped20's names (left and middle)."""

    chains: list[Chain] = field(default_factory=list)
    pivots: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    landmarks: dict[str, Landmark] = field(default_factory=dict)

    def add(self, chain: Chain) -> None:
        """Add a chain of the middle."""
        self.chains.append(chain)

    def add_pair(self, chain: Chain) -> None:
        """Add a left chain and its mirror image on the right."""
        part = chain.part.replace("L_", "R_", 1) if chain.part.startswith("L_") else chain.part
        self.chains += [chain, chain.mirrored(part)]


def _at(across: float, ahead: float, up: float) -> tuple[float, float, float]:
    return (across, -ahead, up)


def _side(ahead_up: np.ndarray, across: float = 0.0) -> tuple[float, float, float]:
    return _at(across, float(ahead_up[0]), float(ahead_up[1]))


def _direction(degrees: float) -> np.ndarray:
    """Unit (ahead, up) that rises by an angle."""
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    length = math.sqrt(x * x + y * y + z * z)
    return (x / length, y / length, z / length)


def build_anatomy(p: Proportions) -> Anatomy:
    """Lay out a standing animal, trunk first."""
    anatomy = Anatomy()
    shoulders, hips = _add_trunk(anatomy, p)
    _add_tail(anatomy, p, hips)
    poll = _add_neck(anatomy, p, shoulders)
    _add_head(anatomy, p, poll)
    t = p.trunk
    _add_leg(
        anatomy, "F", p.front, p.front.place, t.withers - 0.55 * t.chest_depth,
        t.withers - t.chest_depth, t.chest_width,
    )  # fmt: skip
    _add_leg(
        anatomy, "B", p.hind, -p.hind.place, t.croup - 0.42 * t.rump_depth,
        t.croup - t.rump_depth, t.rump_width,
    )  # fmt: skip
    return anatomy


def _add_trunk(anatomy: Anatomy, p: Proportions) -> tuple[np.ndarray, np.ndarray]:
    t = p.trunk
    front, back = 0.5 - t.chest_depth / 2, -0.5 + t.rump_depth / 2
    barrel = (
        Station(_at(0, front, t.withers - t.chest_depth / 2), t.chest_depth / 2, t.chest_width / 2),
        Station(_at(0, 0, t.back - t.belly_depth / 2), t.belly_depth / 2, t.belly_width / 2),
        Station(_at(0, back, t.croup - t.rump_depth / 2), t.rump_depth / 2, t.rump_width / 2),
    )
    anatomy.add(Chain("body", barrel, 0.05))
    if t.hump > 0:
        top = Station(_at(0, front - 0.02, t.withers + t.hump - 0.15), 0.15, t.chest_width * 0.3)
        slope = Station(_at(0, front - 0.2, t.withers - 0.12), 0.12, t.chest_width * 0.3)
        anatomy.add(Chain("body", (top, slope), 0.12))
    if t.udder > 0:
        low = t.croup - t.rump_depth + 0.2 * t.udder
        place = Station(_at(0, back + 0.12, low), t.udder, t.udder * 0.8)
        anatomy.add(Chain("body", (place,), 0.05))
    anatomy.pivots["body"] = _at(0, 0, t.back - t.belly_depth / 2)
    anatomy.landmarks["withers"] = Landmark(
        _at(0, front - 0.04, t.withers + t.hump), ("body", "neck"), midline=True
    )
    return np.array([front, t.withers]), np.array([back, t.croup])


def _add_neck(anatomy: Anatomy, p: Proportions, shoulders: np.ndarray) -> np.ndarray:
    n = p.neck
    along = _direction(n.rise)
    above = np.array([-along[1], along[0]])
    root = shoulders + [0.02, -0.48 * n.base_depth - 0.02]
    end = root + n.length * along
    middle = (root + end) / 2 + n.arch * above
    depth, width = (n.base_depth + n.top_depth) / 2, (n.base_width + n.top_width) / 2
    anatomy.add(
        Chain(
            "neck",
            (
                Station(_side(root), n.base_depth / 2, n.base_width / 2),
                Station(_side(middle), 0.95 * depth / 2, 0.95 * width / 2),
                Station(_side(end), n.top_depth / 2, n.top_width / 2),
            ),
            blend=0.35 * n.base_depth,
        )
    )
    if n.mane > 0:
        crest = tuple(
            Station(_side(at + above * (reach / 2 + 0.3 * n.mane)), 0.7 * n.mane, 0.022)
            for at, reach in (
                (root + 0.25 * (middle - root), n.base_depth),
                (middle, 0.95 * depth),
                (end - 0.02 * along, n.top_depth),
            )
        )
        anatomy.add(Chain("neck", crest, 0.03))
    anatomy.pivots["neck"] = _side(root + 0.18 * n.length * along)
    anatomy.pivots["head"] = _side(end)
    throat = root + 0.80 * (end - root) - above * 0.55 * n.top_depth
    anatomy.landmarks["throat"] = Landmark(_side(throat), ("neck", "head"), midline=True)
    # The brow's line touches the round end of the neck.
    brow = _direction(-p.head.pitch)
    forehead = np.array([-brow[1], brow[0]])
    return end + 0.46 * n.top_depth * forehead


def _add_head(anatomy: Anatomy, p: Proportions, poll: np.ndarray) -> None:
    h = p.head
    along = _direction(-h.pitch)
    below = np.array([along[1], -along[0]])  # from the brow to the jaw

    def section(part: float, depth: float, width: float, drop: float = 0.0) -> Station:
        centre = poll + part * h.length * along + (drop + depth / 2) * below
        return Station(_side(centre), depth / 2, width / 2)

    blend = h.muzzle_start
    start_depth = 0.45 * h.skull_depth + 0.55 * h.muzzle_depth
    start_width = 0.40 * h.skull_width + 0.60 * h.muzzle_width
    end = 1 - h.muzzle_depth / 2 / h.length
    stations = (
        section(0.10, 0.88 * h.skull_depth, 0.92 * h.skull_width, 0.01),
        section(0.33, h.skull_depth, h.skull_width),
        section(blend, start_depth, start_width, h.stop),
        section(end, h.muzzle_depth, h.muzzle_width, h.stop),
    )
    anatomy.add(Chain("head", stations, blend=0.3 * p.neck.top_depth, detail=0.75))

    eye = poll + 0.36 * h.length * along + 0.30 * h.skull_depth * below
    anatomy.landmarks["left_eye"] = Landmark(_side(eye, 0.47 * h.skull_width), ("head",))
    nose = poll + h.length * along + (h.stop + 0.40 * h.muzzle_depth) * below
    anatomy.landmarks["nose"] = Landmark(_side(nose), ("head",), midline=True)
    _add_ears(anatomy, p, poll, along, below)
    if h.horn_length > 0:
        _add_horns(anatomy, p, poll, along, below)


def _add_ears(
    anatomy: Anatomy, p: Proportions, poll: np.ndarray, along: np.ndarray, below: np.ndarray
) -> None:
    h = p.head
    angle = math.radians(h.ear_out)
    out, up = math.sin(angle), math.cos(angle)
    lean = -0.25 * along * abs(up)  # upright ears lean back a little
    root_side = poll + 0.10 * h.length * along + (0.12 + 0.20 * out**2) * h.skull_depth * below
    root = np.array(_side(root_side, (0.30 + 0.12 * out) * h.skull_width))
    axis = np.array(_unit(out, -lean[0], up + lean[1]))
    ahead = np.array(_at(0, *(along if h.ear_out <= 90 else (1.0, 0.0))))
    flat = ahead - (ahead @ axis) * axis
    if h.ear_out > 90:  # a hanging ear lies along the cheek
        flat = np.array([1.0, 0, 0]) - axis[0] * axis
    thickness = max(0.24 * h.ear_width, 0.014)
    half = h.ear_width / 2
    stations = tuple(
        Station(tuple(root + t * h.ear_length * axis), radius, thickness * thin)
        for t, radius, thin in (
            (0.0, 0.62 * half, 1.1), (0.45, half, 1.0), (0.92, h.ear_tip * half, 0.75)
        )
    )  # fmt: skip
    anatomy.add_pair(Chain("head", stations, 0.02, _unit(*flat), detail=0.85))
    surface = root + 0.14 * h.ear_length * axis + 0.4 * h.ear_width * np.array([abs(up), 0, 0])
    anatomy.landmarks["left_ear"] = Landmark(tuple(surface), ("head",))


def _add_horns(
    anatomy: Anatomy, p: Proportions, poll: np.ndarray, along: np.ndarray, below: np.ndarray
) -> None:
    h = p.head
    angle = math.radians(h.horn_out)
    root = np.array(
        _side(poll + 0.14 * h.length * along + 0.06 * h.skull_depth * below, 0.28 * h.skull_width)
    )
    first = np.array(_unit(math.sin(angle), -0.1, math.cos(angle)))
    bent = math.radians(max(h.horn_out - 55, h.horn_out * 0.4))
    second = np.array(_unit(math.sin(bent), -0.35, math.cos(bent)))
    middle = root + 0.55 * h.horn_length * first
    tip = middle + 0.45 * h.horn_length * second
    radii = (h.horn_radius, h.horn_radius * (0.5 + 0.5 * min(h.horn_tip, 1)), h.horn_radius * h.horn_tip)
    stations = tuple(Station(tuple(at), radius, radius) for at, radius in zip((root, middle, tip), radii))
    anatomy.add_pair(Chain("head", stations, 0.015))


def _add_tail(anatomy: Anatomy, p: Proportions, hips: np.ndarray) -> None:
    t = p.tail
    root = np.array([-0.485, hips[1] - 0.12 * p.trunk.rump_depth - t.base])
    at = root + [0.05, 0.0]
    pieces = 7
    stations = [Station(_side(at), t.base, t.base)]
    for k in range(pieces):
        forward = _direction(t.start + (t.end - t.start) * min(k / (pieces - 3), 1))
        at = at + t.length / pieces * np.array([-forward[0], forward[1]])
        part = (k + 1) / pieces
        radius = t.base + (t.tip - t.base) * part
        hair = (part - t.tuft_start) / (1.05 - t.tuft_start)
        if t.tuft > 0 and hair > 0:
            radius = max(radius, 2 * t.tuft * math.sqrt(hair * (1 - hair)))
        stations.append(Station(_side(at), radius, radius))
    anatomy.add(Chain("tail", tuple(stations), 0.6 * t.base))
    anatomy.pivots["tail"] = _side(root)
    top = root + [-0.03, 1.1 * t.base]
    anatomy.landmarks["tailbase"] = Landmark(_side(top), ("body", "tail"), midline=True)


def _add_leg(
    anatomy: Anatomy,
    end: str,
    leg: Leg,
    foot_ahead: float,
    top_height: float,
    belly: float,
    width: float,
) -> None:
    sign = 1.0 if end == "F" else -1.0
    upper, lower = f"L_{end}_upper_leg", f"L_{end}_lower_leg"
    inner = max(width / 2 - 0.62 * leg.top_width, 0.35 * width)

    def across(height: float) -> float:
        return leg.stance + (inner - leg.stance) * max(height / top_height, 0.0)

    elbow_height = belly - leg.elbow_drop
    elbow_ahead = foot_ahead - sign * leg.bend
    knee_ahead = foot_ahead + (0.2 * leg.bend if end == "F" else -leg.bend)
    top_ahead = foot_ahead + (0.0 if end == "F" else 0.01)
    fetlock_height = max(0.30 * leg.knee_height, 1.5 * leg.foot)
    top = _at(across(top_height), top_ahead, top_height)
    elbow = _at(across(elbow_height), elbow_ahead, elbow_height)
    knee = _at(across(leg.knee_height), knee_ahead, leg.knee_height)
    fetlock_ahead = foot_ahead + (knee_ahead - foot_ahead) * 0.5
    fetlock = _at(across(fetlock_height), fetlock_ahead, fetlock_height)
    anatomy.add_pair(
        Chain(
            upper,
            (
                Station(top, leg.top_depth / 2, leg.top_width / 2),
                Station(elbow, leg.elbow, 0.8 * leg.elbow),
                Station(knee, leg.knee, 0.9 * leg.knee),
            ),
            blend=0.5 * leg.top_width,
        )
    )
    shin = [
        Station(knee, leg.knee, 0.9 * leg.knee),
        Station(
            _at(
                across((leg.knee_height + fetlock_height) / 2),
                (knee_ahead + fetlock_ahead) / 2,
                (leg.knee_height + fetlock_height) / 2,
            ),
            leg.shin,
            leg.shin,
        ),
    ]
    if leg.toes > 0:
        heel = _at(leg.stance, foot_ahead, 0.85 * leg.foot)
        toes = _at(leg.stance, foot_ahead + leg.toes, 0.55 * leg.foot)
        shin += [Station(heel, 0.9 * leg.foot, 0.85 * leg.foot)]
        shin += [Station(toes, 0.8 * leg.foot, leg.foot)]
        paw = _at(leg.stance, foot_ahead + leg.toes + 0.6 * leg.foot, 0.5 * leg.foot)
    else:
        sole = _at(leg.stance, foot_ahead + 0.35 * leg.foot, 0.0)
        shin += [Station(fetlock, 1.22 * leg.shin, 1.15 * leg.shin)]
        shin += [Station(sole, leg.foot, 0.85 * leg.foot)]
        paw = _at(leg.stance, foot_ahead + 1.2 * leg.foot, 0.4 * leg.foot)
    anatomy.add_pair(Chain(lower, tuple(shin), blend=0.6 * leg.knee))
    anatomy.pivots[upper] = _at(
        across(top_height), (top_ahead + elbow_ahead) / 2, (2 * top_height + elbow_height) / 3
    )
    anatomy.pivots[lower] = knee
    name = "front" if end == "F" else "back"
    side = _at(elbow[0] + 0.8 * leg.elbow, elbow_ahead, elbow_height)
    anatomy.landmarks[f"left_{name}_elbow"] = Landmark(side, (upper, "body"))
    face = _at(knee[0] + 0.6 * leg.knee, knee_ahead + sign * 0.8 * leg.knee, leg.knee_height)
    anatomy.landmarks[f"left_{name}_knee"] = Landmark(face, (upper, lower))
    anatomy.landmarks[f"left_{name}_paw"] = Landmark(paw, (lower,))
