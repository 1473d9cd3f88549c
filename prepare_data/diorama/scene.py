"""One picture: animals on a ground before a camera, with everything that is known about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from prepare_data.diorama.anatomy import SPECIES, find_species
from prepare_data.diorama.backdrop import Weather, paint_backdrop, sample_weather
from prepare_data.diorama.body import bounds, vertex_normals
from prepare_data.diorama.clutter import paint_occluder
from prepare_data.diorama.coat import sample_coat
from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.noise import sensor_noise
from prepare_data.diorama.paint import SUPERSAMPLE, cast_shadow, draw_mesh, light_vertices
from prepare_data.diorama.pose import apply_pose, rotation_xyz, sample_pose
from prepare_data.diorama.subjects import BONE_PART
from prepare_data.diorama.viewpoint import Viewpoint, look_at_rotation, sample_azimuth
from prepare_data.diorama.zoo import Zoo, stranger_count

LABELLED, WEB = 1, 2  # streams of random numbers
_ASPECTS = (1.0, 4 / 3, 3 / 2, 3 / 4)


@dataclass(frozen=True)
class Animal:
    """What is known of one animal in a picture.

    Attributes:
        species: its category.
        identity: its number in the zoo.
        pose, coat: names.
        xy_image: [K, 2], also of keypoints out of view.
        visible: int64 [K]: 2 seen, 1 hidden, 0 out of the picture.
        rotation: [3, 3], from the frame x left, y back, z up of its trunk to the camera's.
        box_xyxy: [4], of the silhouette in view, hidden parts included.
        mask: bool [H, W], the pixels that show it.
        flags: "occluded", "truncated".
    """

    species: str
    identity: int
    pose: str
    coat: str
    xy_image: np.ndarray
    visible: np.ndarray
    rotation: np.ndarray
    box_xyxy: np.ndarray
    mask: np.ndarray
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Surface:
    """An animal's mesh as the camera sees it.

    Attributes:
        projected: [V, 3], xy_image and depth.
        faces: int64 [F, 3].
        part: int64 [V], position in `subjects.PARTS`.
    """

    projected: np.ndarray
    faces: np.ndarray
    part: np.ndarray


@dataclass(frozen=True)
class Picture:
    """A rendered picture: RGB uint8 [H, W, 3] and its animals, the one it was taken for first.

    ``surface`` is the first animal's; it is not kept with the world.
    """

    image: np.ndarray
    animals: tuple[Animal, ...]
    season: str
    surface: Surface | None = None


@dataclass
class _Actor:
    """An animal on its way into a picture."""

    species: str
    identity: int
    pose: str
    coat: str
    faces: np.ndarray
    keypoints: np.ndarray
    vertices: np.ndarray  # [V, 3] in the world, metres
    rotation: np.ndarray  # rest to world
    albedo: np.ndarray
    openness: np.ndarray
    part: np.ndarray
    projected: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    alpha: np.ndarray | None = None
    seen: np.ndarray | None = None  # keypoints that the animal itself does not hide


def render_picture(
    zoo: Zoo,
    config: DioramaConfig,
    category: str,
    stream: int,
    index: int,
    cast: str = "animal",
    attempt: int = 0,
) -> Picture:
    """Renders picture ``index`` of a stream; the same arguments give the same pixels.

    Args:
        zoo: the individuals.
        config: the world's settings.
        category: species that the world is about.
        stream: `LABELLED` or `WEB`.
        index: number of the picture in its stream.
        cast: "animal" (the category, perhaps with company), "stranger" (other species only) or
            "empty".
        attempt: another number draws another picture for the same index.
    """  # fmt: skip
    rng = np.random.default_rng([config.seed, stream, index, attempt])
    difficulty = config.difficulty
    height, width = _picture_size(config, rng)
    azimuth = sample_azimuth(rng, config.variety)
    weather = sample_weather(rng, difficulty, azimuth)
    elevation = float(np.clip(rng.normal(7, 4 + 8 * config.variety), -10, 32))
    rotation = look_at_rotation(azimuth, elevation, rng.normal(0, 2.5))
    strangers = [name for name in sorted(SPECIES) if name != category]
    lead = category if cast != "stranger" else str(rng.choice(strangers))
    actors = [_hire(zoo, config, lead, rng, np.zeros(2), 0.0, lead == category)]
    view = _frame(actors[0], rotation, height, width, rng, config)
    if cast == "empty":
        actors = []
    else:
        actors += _company(zoo, config, category, cast, strangers, actors[0], view, rng)
    horizon, slope = view.horizon()
    if rng.random() < 0.6:  # hills rise above the true horizon of a plane
        horizon = max(horizon, height * rng.uniform(0.02, 0.35))
    if actors:
        # a plane seen from so low would end at the feet: the ground rises a little behind them
        rows = view.project(actors[0].vertices)[:, 1]
        feet = float(rows[actors[0].vertices[:, 2] < 0.05].min())
        horizon = min(horizon, feet - rng.uniform(0.08, 0.40) * float(np.ptp(rows)))
    picture = paint_backdrop(height, width, horizon, slope, weather, rng, difficulty)
    owner = _draw_actors(picture, actors, view, weather, rng)
    if actors and actors[0].alpha is not None and rng.random() < config.occluder_share * difficulty:
        hidden = paint_occluder(picture, _alpha_box(actors[0].alpha), weather, rng)
        owner[hidden > 0.5] = -1
    image = _develop(picture, rng, difficulty)
    animals = [_describe(actor, i, owner, view) for i, actor in enumerate(actors)]
    surface = None
    if actors and animals[0] is not None:
        surface = Surface(actors[0].projected, actors[0].faces, actors[0].part)
    return Picture(image, tuple(a for a in animals if a is not None), weather.season, surface)


def _picture_size(config: DioramaConfig, rng: np.random.Generator) -> tuple[int, int]:
    aspect = float(rng.choice(_ASPECTS, p=[0.2, 0.4, 0.25, 0.15]))
    if not config.aspect_jitter:
        aspect = 1.0
    return round(config.image_size / aspect**0.5), round(config.image_size * aspect**0.5)


def _hire(zoo, config, species, rng, ground, yaw, native) -> _Actor:
    count = config.identities if native else stranger_count(config.identities)
    identity = int(rng.integers(count))
    body = zoo.body(species, identity)
    pose = sample_pose(find_species(species), rng, 0.55 + 0.75 * config.variety)
    vertices, turn = apply_pose(body, pose)
    albedo, coat = sample_coat(body, rng)
    size = find_species(species).height * float(np.exp(np.clip(rng.normal(0, 0.10), -0.25, 0.2)))
    spin = rotation_xyz(np.array([0.0, 0.0, yaw]))
    placed = (vertices * size) @ spin.T + [ground[0], ground[1], 0.0]
    return _Actor(
        species, identity, pose.kind, coat, body.faces.astype(np.int64), body.keypoint_vertices,
        placed, spin @ turn, albedo, body.openness, BONE_PART[body.bones[:, 0]],
    )  # fmt: skip


def _frame(actor, rotation, height, width, rng, config) -> Viewpoint:
    """Puts the camera so that the animal takes a chosen place in the picture."""
    low, high = bounds(actor.vertices)
    centre, reach = (low + high) / 2, np.linalg.norm(high - low)
    distance = reach * rng.uniform(3.0, 8.0)
    view = Viewpoint(rotation, centre - distance * rotation[2], 1.0, np.zeros(2))
    flat = view.project(actor.vertices)[:, :2]
    low, high = bounds(flat)
    cut = rng.random() < config.truncation_share * config.difficulty
    fill = rng.uniform(0.85, 1.25) if cut else rng.uniform(0.42, 0.90)
    focal = fill * float(min(np.array([width, height]) / (high - low)))
    box = (high - low) * focal
    spare = np.array([width, height]) - box
    place = rng.uniform(0.15, 0.85, 2)
    corner = spare * place - 0.5
    if cut:  # slide the animal over one border
        side = rng.uniform(0.08, 0.33) * box[0]
        corner[0] = -side - 0.5 if rng.random() < 0.5 else width - box[0] + side - 0.5
    return Viewpoint(rotation, view.position, focal, corner - low * focal)


def _company(zoo, config, category, cast, strangers, lead, view, rng) -> list[_Actor]:
    wanted: list[str] = []
    several, other = rng.random() < config.several_share, rng.random() < config.distractor_share
    if several:
        herd = category if cast == "animal" else lead.species
        wanted += [herd] * int(rng.integers(1, 5))
    if other:
        wanted += [str(rng.choice(strangers))] * int(rng.integers(1, 3))
    forward, right = view.rotation[2], view.rotation[0, :2]
    away = forward[:2] / np.linalg.norm(forward[:2])
    near = -0.5 * float(view.position @ forward)  # no nearer than half the way to the camera
    radius = np.linalg.norm(lead.vertices[:, :2], axis=1).max()
    taken = [(np.zeros(2), radius)]
    out = []
    for species in wanted:
        size = 0.9 * find_species(species).height
        for _ in range(8):
            in_front = rng.random() < 0.08
            depth = -rng.uniform(1.2, 2.0) * size if in_front else rng.uniform(-0.3, 7.0) * radius
            ground = away * depth + right * rng.normal(0, 1.6) * radius
            if np.array([*ground, 0.0]) @ forward - view.position @ forward < near + size:
                continue
            if all(np.linalg.norm(ground - p) > 0.75 * (r + size) for p, r in taken):
                taken.append((ground, size))
                out.append(
                    _hire(zoo, config, species, rng, ground, rng.uniform(0, 360), species == category)
                )
                break
    return out


def _draw_actors(picture, actors, view, weather: Weather, rng) -> np.ndarray:
    """Draws shadows and animals from far to near; returns whose each pixel is, int32 [H, W]."""
    owner = np.full(picture.shape[:2], -1, np.int32)
    sun = weather.direction
    hard = float(np.clip(weather.sun.mean() / 0.9, 0, 1))
    for actor in actors:
        actor.projected = view.project(actor.vertices)
        fall = sun / max(sun[2], 0.45)
        flattened = actor.vertices - actor.vertices[:, 2:] * fall
        low, high = bounds(actor.vertices)
        middle = np.array([*(low[:2] + high[:2]) / 2, 0.0])
        ground = view.raised(middle, 7.0).project(flattened)
        if ground[:, 2].min() < 0.3 * actors[0].projected[:, 2].mean():
            continue  # a long shadow that runs past the camera
        scale = min(np.ptp(actor.projected[:, 0]) / 100, 4.0)
        cast_shadow(picture, ground, actor.faces, 0.30 + 0.28 * hard, scale * (1.2 + 5 * (1 - hard)))
    order = sorted(range(len(actors)), key=lambda i: -actors[i].projected[:, 2].mean())
    for i in order:
        actor = actors[i]
        towards_eye = -view.rotation[2]
        normals = vertex_normals(actor.vertices, actor.faces)
        gloss = 0.10 if actor.species in ("horse", "dog", "cow") else 0.02
        colours = light_vertices(
            actor.albedo, normals, actor.openness, weather.sun, weather.sky, weather.bounce,
            sun, towards_eye, gloss,
        )  # fmt: skip
        depth = actor.projected[:, 2].mean()
        fog = np.float32(np.clip((depth / actors[0].projected[:, 2].mean() - 1) * 0.06, 0, 0.3))
        colours += (weather.haze.astype(np.float32) - colours) * fog
        drawn = draw_mesh(picture, actor.projected, actor.faces, colours)
        if drawn is None:
            continue
        actor.alpha, window, nearest = drawn
        actor.seen = _self_visible(actor, window, nearest)
        owner[actor.alpha > 0.5] = i
    return owner


def _self_visible(actor: _Actor, window, nearest: np.ndarray) -> np.ndarray:
    """Keypoints [K] that no other part of the animal hides, within a small neighbourhood."""
    points = actor.projected[actor.keypoints]
    left, top, _ = window
    column = np.rint((points[:, 0] - left + 0.5) * SUPERSAMPLE - 0.5).astype(int)
    row = np.rint((points[:, 1] - top + 0.5) * SUPERSAMPLE - 0.5).astype(int)
    slack = 0.035 * find_species(actor.species).height
    size = nearest.shape[0]
    seen = np.zeros(len(points), bool)
    for k in range(len(points)):
        patch = nearest[max(row[k] - 2, 0) : row[k] + 3, max(column[k] - 2, 0) : column[k] + 3]
        if patch.size and 0 <= row[k] < size and 0 <= column[k] < size:
            depths = patch[np.isfinite(patch)]
            seen[k] = bool((depths >= points[k, 2] - slack).any()) if depths.size else False
    return seen


def _develop(picture: np.ndarray, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    """Exposure, white balance, lens blur and sensor noise; RGB uint8."""
    exposure = np.exp(rng.normal(0, 0.06 + 0.14 * difficulty))
    balance = rng.normal(1, 0.03, 3)
    picture = picture * (exposure * balance).astype(np.float32)
    picture = np.float32(0.5) + (picture - np.float32(0.5)) * np.float32(rng.uniform(0.85, 1.15))
    sigma = rng.uniform(0, 0.5 + 0.7 * difficulty) * picture.shape[0] / 256
    if sigma > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    noise = rng.uniform(0, 0.012 + 0.03 * difficulty)
    picture = picture + sensor_noise(rng, *picture.shape[:2]) * np.float32(noise)
    return cv2.convertScaleAbs(np.clip(picture, 0, 1), alpha=255)


def _alpha_box(alpha: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero((alpha > 0.5).any(1)), np.flatnonzero((alpha > 0.5).any(0))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5])


def _describe(actor: _Actor, index: int, owner: np.ndarray, view: Viewpoint) -> Animal | None:
    if actor.alpha is None or not (actor.alpha > 0.5).any():
        return None
    height, width = owner.shape
    xy = actor.projected[actor.keypoints, :2]
    column, row = np.rint(xy).astype(int).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    mine = owner == index
    shown = np.zeros(len(xy), bool)
    for k in np.flatnonzero(inside & actor.seen):
        shown[k] = mine[max(row[k] - 1, 0) : row[k] + 2, max(column[k] - 1, 0) : column[k] + 2].any()
    flags = []
    if mine.sum() < 0.93 * (actor.alpha > 0.5).sum():
        flags.append("occluded")
    low, high = bounds(actor.projected[:, :2])
    if (low < -1.5).any() or (high > [width + 0.5, height + 0.5]).any():
        flags.append("truncated")
    return Animal(
        actor.species, actor.identity, actor.pose, actor.coat, xy,
        np.where(shown, 2, np.where(inside, 1, 0)), view.rotation @ actor.rotation,
        _alpha_box(actor.alpha), mine, tuple(flags),
    )  # fmt: skip
