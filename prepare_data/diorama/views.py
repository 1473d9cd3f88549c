"""Small pictures of one animal: with a caption, and from all around, for training an image model.

A camera's azimuth is that of `look_at_rotation`: 0 sees the animal's left side, 90 its back, and it grows
anticlockwise as seen from above. Its elevation is absolute. The world frame is that of `Subject`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from acsm.renderer import rasterize
from prepare_data.diorama.backdrop import paint_backdrop, sample_weather
from prepare_data.diorama.body import bounds, vertex_normals
from prepare_data.diorama.paint import draw_mesh, image_window, light_vertices, to_window_ndc
from prepare_data.diorama.subjects import PARTS, Subject
from prepare_data.diorama.viewpoint import Viewpoint, look_at_rotation

GREY = 127  # value of the plain background under RGBA pictures
FIELD_OF_VIEW = 30.0  # degrees, as Zero123Plus v1.2
RING_AZIMUTHS = tuple(range(0, 360, 60))  # relative to the ring's first
RING_ELEVATIONS = (20.0, -10.0)
_OVERSAMPLE = 2  # on top of what draw_mesh does
_PLAIN = {"white": 255, "grey": GREY, "black": 20}
_FACING = ("left", "back left", "back", "back right", "right", "front right", "front", "front left")
_LEAST_VERTICES = 0.01  # share of an animal's, from which a part is pictured close up
_LEAST_SHARE = 0.004  # of the picture that a part must cover to be named


@dataclass(frozen=True)
class Light:
    """Colours [3] of sun, sky and the ground's light, and where the sun stands, a unit vector [3]."""

    sun: np.ndarray
    sky: np.ndarray
    bounce: np.ndarray
    direction: np.ndarray


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture and what can be said of it.

    Attributes:
        image: RGB uint8 [S, S, 3].
        parts: uint8 [S, S], 0 for the background, else 1 + position in `PARTS`.
        title: What it shows, in words.
        phrases: Further true phrases, in any order.
    """

    image: np.ndarray
    parts: np.ndarray
    title: str
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Ring:
    """Pictures of one animal from all around, over `GREY`.

    Attributes:
        inputs: RGBA uint8 [6, S, S, 4]; input j looks from 30 degrees before `RING_AZIMUTHS[j]`, from any
            elevation, the animal filling more or less of the picture.
        targets: RGBA uint8 [2, 6, S, S, 4] by `RING_ELEVATIONS` and `RING_AZIMUTHS`, all from one distance.
        azimuth: Of the first target, degrees.
    """

    inputs: np.ndarray
    targets: np.ndarray
    azimuth: float


def studio_light(rng: np.random.Generator) -> Light:
    """Soft light from above that is fixed in the world."""
    turn, height = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(45, 80))
    direction = np.array([np.cos(turn) * np.cos(height), np.sin(turn) * np.cos(height), np.sin(height)])
    return Light(np.full(3, 0.5), np.full(3, 0.72), np.full(3, 0.5), direction)


def orbit_view(
    subject: Subject, azimuth: float, elevation: float, side: int, fill: float = 1.0
) -> Viewpoint:
    """A camera on a sphere about an animal, which stays in the picture from everywhere.

    Args:
        subject: The animal.
        azimuth: Degrees.
        elevation: Degrees.
        side: Of the picture, pixels.
        fill: Radius of the animal's bounding sphere relative to half the picture.
    """
    low, high = bounds(subject.vertices)
    centre = (low + high) / 2
    radius = float(np.linalg.norm(subject.vertices - centre, axis=1).max())
    half = np.deg2rad(FIELD_OF_VIEW / 2)
    rotation = look_at_rotation(azimuth, elevation, 0.0)
    position = centre - radius / (fill * np.sin(half)) * rotation[2]
    return Viewpoint(rotation, position, side / 2 / np.tan(half), np.full(2, (side - 1) / 2))


def framed_view(
    view: Viewpoint, points: np.ndarray, side: int, fill: float, place: np.ndarray
) -> Viewpoint:
    """The camera turned and zoomed so that points fill a share of the picture.

    Args:
        view: A camera.
        points: [N, 3], in the world.
        side: Of the picture, pixels.
        fill: Longer side of the points' box relative to the picture.
        place: [2], where in the room that is left the box lies, 0 to 1.
    """
    flat = Viewpoint(view.rotation, view.position, 1.0, np.zeros(2)).project(points)[:, :2]
    low, high = bounds(flat)
    focal = fill * side / float((high - low).max())
    corner = (side - (high - low) * focal) * place - 0.5
    return Viewpoint(view.rotation, view.position, focal, corner - low * focal)


def draw_subject(
    subject: Subject, view: Viewpoint, background: np.ndarray, light: Light
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an animal over a background.

    Args:
        subject: The animal.
        view: The camera.
        background: float32 [S, S, 3] in [0, 1].
        light: On the animal.

    Returns:
        RGB uint8 [S, S, 3], and the share of every pixel that shows the animal, float32 [S, S].
    """
    side = len(background)
    large = side * _OVERSAMPLE
    canvas = cv2.resize(background, (large, large), interpolation=cv2.INTER_LINEAR)
    projected = view.project(subject.vertices)
    projected[:, :2] = (projected[:, :2] + 0.5) * _OVERSAMPLE - 0.5
    colours = light_vertices(
        subject.albedo, vertex_normals(subject.vertices, subject.faces), subject.openness, light.sun,
        light.sky, light.bounce, light.direction, -view.rotation[2], 0.03,
    )  # fmt: skip
    drawn = draw_mesh(canvas, projected, subject.faces, colours)
    alpha = np.zeros((large, large), np.float32) if drawn is None else drawn[0]
    canvas, alpha = (cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA) for x in (canvas, alpha))
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8), alpha


def part_map(subject: Subject, view: Viewpoint, side: int) -> np.ndarray:
    """Which part each pixel's centre shows: uint8 [S, S], 0 for none, else 1 + position in `PARTS`."""
    return surface_parts(view.project(subject.vertices), subject.faces, subject.part, (side, side))


def surface_parts(
    projected: np.ndarray, faces: np.ndarray, part: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Which part of a mesh each pixel's centre shows: uint8 [H, W], 0 for none, else 1 + the part.

    Args:
        projected: [V, 3], xy_image and depth.
        faces: int64 [F, 3].
        part: int64 [V].
        size: H and W.
    """
    height, width = size
    out = np.zeros(size, np.uint8)
    window = image_window(projected[:, :2], height, width)
    if window is None:
        return out
    left, top, side = window
    seen = rasterize(to_window_ndc(projected, window)[None], faces, side).face_ids[0]
    shown = np.where(seen >= 0, part[faces[seen, 0]] + 1, 0)
    inside = shown[: height - top, : width - left]
    out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out


def facing(azimuth: float) -> str:
    """Where the animal looks, as seen by a camera at an azimuth in degrees: "left", "front right", ..."""
    return _FACING[int(np.rint(azimuth / 45)) % 8]


def _height_phrase(elevation: float) -> str:
    if elevation > 15:
        return "from above"
    return "from below" if elevation < -2 else "level"


def sample_picture(
    subject: Subject, rng: np.random.Generator, side: int, close_share: float = 0.15
) -> CaptionedPicture:
    """Draw a picture of an animal, whole or of one part close up, over a plain ground or a landscape.

    Args:
        subject: The animal.
        rng: The picture's generator.
        side: Pixels.
        close_share: How often it is a close-up.
    """
    azimuth, elevation = float(rng.uniform(0, 360)), float(rng.uniform(-12, 35))
    view = orbit_view(subject, azimuth, elevation, side)
    counts = np.bincount(subject.part, minlength=len(PARTS))
    large = np.flatnonzero(counts >= _LEAST_VERTICES * len(subject.part))  # a bear has next to no tail
    close = int(rng.choice(large)) if rng.random() < close_share else None
    place = rng.uniform(0.3, 0.7, 2)
    if close is None:
        view = framed_view(view, subject.vertices, side, rng.uniform(0.7, 0.98), place)
    else:
        view = framed_view(
            view, subject.vertices[subject.part == close], side, rng.uniform(0.5, 0.95), place
        )
    plain = str(rng.choice(list(_PLAIN))) if rng.random() < 0.65 else None
    if plain is not None:
        light, ground = studio_light(rng), f"on {plain}"
        background = np.full((side, side, 3), _PLAIN[plain] / 255, np.float32)
    else:
        weather = sample_weather(rng, 0.3, azimuth)
        light = Light(weather.sun, weather.sky, weather.bounce, weather.direction)
        ground = f"in {weather.season}"
        horizon = float(rng.uniform(0.05, 0.5)) * side
        background = paint_backdrop(side, side, horizon, 0.0, weather, rng, 0.3).astype(np.float32)
    image, _ = draw_subject(subject, view, background, light)
    parts = part_map(subject, view, side)
    seen = np.bincount(parts.ravel(), minlength=len(PARTS) + 1)[1:] > _LEAST_SHARE * side**2
    phrases = [f"facing {facing(azimuth)}", _height_phrase(elevation), ground]
    phrases += [
        f"{subject.colours[name]} {name}"
        for name, there in zip(PARTS, seen)
        if there and name in subject.colours
    ]
    title = subject.title
    if close is not None:
        title = f"close {PARTS[close]} of a {subject.pattern} {subject.species}"
    return CaptionedPicture(image, parts, title, tuple(phrases))


def sample_ring(subject: Subject, rng: np.random.Generator, side: int) -> Ring:
    """Picture an animal from all around.

    Args:
        subject: The animal.
        rng: The ring's generator.
        side: Pixels.
    """
    first, light = float(rng.uniform(0, 360)), studio_light(rng)
    background = np.full((side, side, 3), GREY / 255, np.float32)

    def draw(view: Viewpoint) -> np.ndarray:
        image, alpha = draw_subject(subject, view, background, light)
        return np.dstack([image, np.rint(alpha * 255).astype(np.uint8)])

    targets = [
        [draw(orbit_view(subject, first + turn, elevation, side)) for turn in RING_AZIMUTHS]
        for elevation in RING_ELEVATIONS
    ]
    inputs = []
    for turn in RING_AZIMUTHS:
        view = orbit_view(subject, first + turn - 30, float(rng.uniform(-10, 35)), side)
        place = rng.uniform(0.4, 0.6, 2)
        inputs.append(draw(framed_view(view, subject.vertices, side, rng.uniform(0.75, 0.95), place)))
    return Ring(np.stack(inputs), np.array(targets), first)
