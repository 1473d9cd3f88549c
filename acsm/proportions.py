"""What a procedural quadruped is made of: proportions, read from a category's YAML file.

All lengths are in trunk lengths (breast to rump is 1), angles in degrees, heights above the ground.
Depths are measured top to bottom in the side view, widths from left to right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wildshape.errors import UserError


@dataclass(frozen=True)
class Trunk:
    """The barrel between the limbs.

    Attributes:
        withers: height of the top of the shoulders.
        back: height of the top of the back, half-way.
        croup: height of the top of the hips.
        chest_depth: depth at the shoulders.
        chest_width: width at the shoulders.
        belly_depth: depth half-way.
        belly_width: width half-way.
        rump_depth: depth at the hips.
        rump_width: width at the hips.
        hump: height of a hump above the shoulders (0: none).
        udder: radius of an udder (0: none).
    """

    withers: float = 1.0
    back: float = 0.95
    croup: float = 0.98
    chest_depth: float = 0.44
    chest_width: float = 0.28
    belly_depth: float = 0.42
    belly_width: float = 0.34
    rump_depth: float = 0.38
    rump_width: float = 0.30
    hump: float = 0.0
    udder: float = 0.0


@dataclass(frozen=True)
class Neck:
    """From the shoulders to the back of the skull.

    Attributes:
        length: from the shoulders to the skull.
        rise: angle above the horizontal.
        arch: how far the middle bows upwards.
        base_depth: depth at the shoulders.
        base_width: width at the shoulders.
        top_depth: depth at the skull.
        top_width: width at the skull.
        mane: height of a crest along the top (0: none).
    """

    length: float = 0.55
    rise: float = 45.0
    arch: float = 0.02
    base_depth: float = 0.34
    base_width: float = 0.18
    top_depth: float = 0.18
    top_width: float = 0.11
    mane: float = 0.0


@dataclass(frozen=True)
class Head:
    """Skull, muzzle, ears and horns.

    Attributes:
        length: from the back of the skull to the nose.
        pitch: angle of the brow's line below the horizontal.
        skull_depth: depth at the eyes.
        skull_width: width at the eyes.
        muzzle_depth: depth of the muzzle.
        muzzle_width: width of the muzzle.
        muzzle_start: where the muzzle begins, as a part of the length.
        stop: how far the muzzle's top lies below the brow's line.
        ear_length: from root to tip.
        ear_width: at the widest.
        ear_out: angle between the ear and straight up, to the side (above 90: hanging).
        ear_tip: width of the tip, as a part of the width.
        horn_length: from root to tip (0: no horns).
        horn_radius: at the root.
        horn_out: angle between the horn's root and straight up, to the side.
        horn_tip: radius of the tip, as a part of the root's (above 1: knobs).
    """

    length: float = 0.40
    pitch: float = 50.0
    skull_depth: float = 0.19
    skull_width: float = 0.15
    muzzle_depth: float = 0.11
    muzzle_width: float = 0.10
    muzzle_start: float = 0.6
    stop: float = 0.0
    ear_length: float = 0.12
    ear_width: float = 0.06
    ear_out: float = 20.0
    ear_tip: float = 0.35
    horn_length: float = 0.0
    horn_radius: float = 0.02
    horn_out: float = 60.0
    horn_tip: float = 0.5


@dataclass(frozen=True)
class Tail:
    """Behind the croup.

    Attributes:
        length: along its curve.
        start: angle of its root above the horizontal (below 0: down).
        end: angle of its tip above the horizontal.
        base: radius at the root.
        tip: radius at the tip.
        tuft: largest radius of the hair (0: none).
        tuft_start: where the hair begins, as a part of the length.
    """

    length: float = 0.5
    start: float = -35.0
    end: float = -88.0
    base: float = 0.035
    tip: float = 0.02
    tuft: float = 0.0
    tuft_start: float = 0.65


@dataclass(frozen=True)
class Leg:
    """A front or a hind leg.

    Attributes:
        place: of the foot, ahead of the trunk's middle (hind: behind it).
        stance: distance of the foot from the middle plane.
        top_depth: depth (fore and aft) of the shoulder or thigh.
        top_width: its thickness from side to side.
        elbow_drop: how far below the belly's line the limb leaves the body (may be negative).
        elbow: radius there.
        knee_height: height of the knee or hock.
        knee: radius of the knee or hock.
        shin: radius below it.
        foot: radius of the hoof or paw.
        toes: how far a paw reaches ahead of the ankle (0: a hoof).
        bend: how far the elbow lies behind (hind: the knee ahead of) the foot's plumb line, and the
            hock behind it.
    """

    place: float = 0.3
    stance: float = 0.10
    top_depth: float = 0.22
    top_width: float = 0.12
    elbow_drop: float = -0.04
    elbow: float = 0.065
    knee_height: float = 0.28
    knee: float = 0.036
    shin: float = 0.025
    foot: float = 0.045
    toes: float = 0.0
    bend: float = 0.02


@dataclass(frozen=True)
class Proportions:
    """A whole animal; ``template: {procedural: {...}}`` holds these names, all optional.

    Attributes:
        trunk: see :class:`Trunk`.
        neck: see :class:`Neck`.
        head: see :class:`Head`.
        tail: see :class:`Tail`.
        front: the front legs, see :class:`Leg`.
        hind: the hind legs, see :class:`Leg`.
        vertices: about how many the mesh has.
    """

    trunk: Trunk = field(default_factory=Trunk)
    neck: Neck = field(default_factory=Neck)
    head: Head = field(default_factory=Head)
    tail: Tail = field(default_factory=Tail)
    front: Leg = field(default_factory=Leg)
    hind: Leg = field(default_factory=lambda: Leg(top_depth=0.30, bend=0.06, elbow_drop=-0.02))
    vertices: int = 1800


MOST = 10.0
"""Beyond which no proportion of an animal is, in trunk lengths or as a share."""
_ANGLES = ("rise", "pitch", "ear_out", "horn_out", "start", "end")
_THICK = (
    "_width",
    "_depth",
    "_radius",
    ".base",
    ".tip",
    ".elbow",
    ".knee",
    ".shin",
    ".foot",
    "head.length",
)
_LONG = ("length", "knee_height")
T = TypeVar("T")


def _in_range(name: str, value: float, where: str) -> None:
    """Raises UserError where no animal has such a proportion."""
    if name == "vertices":
        return  # has limits of its own
    angle, path = name in _ANGLES, f"{where}.{name}"
    most = 360.0 if angle else MOST
    least = 0.0 if path.endswith((*_THICK, *_LONG)) else -most
    # Without length there is no such part; without thickness there is no mesh.
    if not least <= value <= most or (value == 0 and path.endswith(_THICK)):
        above = "more than 0" if path.endswith(_THICK) else f"{least:g}"
        raise UserError(f"{path}: expected {above} to {most:g}{' degrees' * angle}; found {value:g}")


def _section(default: T, node: Any, where: str) -> T:
    if not isinstance(node, Mapping):
        raise UserError(f"{where}: expected a mapping of proportions; found {node!r}")
    known = {f.name for f in dataclasses.fields(default)}  # type: ignore[arg-type]
    unknown = sorted(set(map(str, node)) - known)
    if unknown:
        raise UserError(f"{where}: expected among {sorted(known)}; found {unknown}")
    values: dict[str, Any] = {}
    for name, value in node.items():
        old = getattr(default, name)
        if dataclasses.is_dataclass(old):
            values[name] = _section(old, value, f"{where}.{name}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}.{name}: expected a number; found {value!r}")
        else:
            _in_range(name, value, where)
            values[name] = type(old)(value)
    return dataclasses.replace(default, **values)  # type: ignore[type-var]


def read_proportions(node: Mapping[str, Any]) -> Proportions:
    """Proportions from a YAML node; what it leaves out is a horse-like default.

    Raises:
        UserError: for a name that is no proportion, or a value that is no number or beyond any animal's.
    """
    proportions = _section(Proportions(), node, "template.procedural")
    if not 1000 <= proportions.vertices <= 2500:
        raise UserError(
            f"template.procedural.vertices: expected 1000 to 2500; found {proportions.vertices}"
        )
    return proportions
