"""Animals to be pictured alone: posed, coated, and their parts known by name and by colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prepare_data.diorama.anatomy import BONE_NAMES, LEGS, find_species
from prepare_data.diorama.body import Body, bone_share
from prepare_data.diorama.coat import sample_coat
from prepare_data.diorama.pose import apply_pose, sample_pose
from prepare_data.diorama.zoo import Zoo

PARTS = ("head", "neck", "body", "legs", "tail")

# Albedo by name. Blue and green are no animal's: they are there so that a colour tells no species.
COLOURS = {
    "black": (0.12, 0.11, 0.10),
    "white": (0.86, 0.84, 0.80),
    "grey": (0.48, 0.48, 0.47),
    "brown": (0.38, 0.21, 0.12),
    "tan": (0.68, 0.54, 0.34),
    "yellow": (0.82, 0.66, 0.14),
    "red": (0.62, 0.12, 0.09),
    "blue": (0.14, 0.26, 0.62),
    "green": (0.15, 0.45, 0.20),
}
_NATURAL = ("black", "white", "grey", "brown", "tan")
_UNIFORM = 0.14  # spread of a part's albedo up to which its colour has one name
_POSE_WORDS = {
    "stand": "standing", "walk": "walking", "run": "running", "graze": "grazing", "lie": "lying",
    "sit": "sitting",
}  # fmt: skip


def _part_of(bone: str) -> str:
    for start, part in (("head", "head"), ("ear", "head"), ("neck", "neck"), ("tail", "tail")):
        if bone.startswith(start):
            return part
    # Shoulders and hips belong to the trunk; a leg is what stands out of it.
    return "legs" if bone.split("_")[0] in LEGS and not bone.endswith("upper") else "body"


BONE_PART = np.array([PARTS.index(_part_of(name)) for name in BONE_NAMES])


@dataclass(frozen=True)
class Subject:
    """An animal on the ground z = 0, the middle of its trunk over x = y = 0, its head towards -y.

    Attributes:
        species: Its category.
        pose: What it does, as a word.
        pattern: Of its coat.
        colours: Parts of one colour, by that colour's name.
        vertices: [V, 3], in withers heights of the species.
        faces: int64 [F, 3].
        albedo: [V, 3], 0 to 1.
        openness: [V], how little of the body shades a vertex.
        part: int64 [V], position in `PARTS`.
    """

    species: str
    pose: str
    pattern: str
    colours: dict[str, str]
    vertices: np.ndarray
    faces: np.ndarray
    albedo: np.ndarray
    openness: np.ndarray
    part: np.ndarray

    @property
    def title(self) -> str:
        """Coat, species and pose in words."""
        return f"a {self.pattern} {self.species} {self.pose}"


def sample_subject(
    zoo: Zoo, species: str, identity: int, rng: np.random.Generator, painted_share: float = 0.5
) -> Subject:
    """Draw a pose and a coat for an individual.

    Args:
        zoo: The individuals.
        species: Category.
        identity: Number in the zoo.
        rng: The subject's generator.
        painted_share: How often its parts are painted, each in a colour of its own. Natural coats tie the
            colours of parts to one another and to the species; what is learnt from painted ones does not.
    """
    body = zoo.body(species, identity)
    pose = sample_pose(find_species(species), rng)
    vertices, _ = apply_pose(body, pose)
    albedo, pattern = sample_coat(body, rng)
    part = BONE_PART[body.bones[:, 0]]
    if rng.random() < painted_share:
        albedo, colours = _paint(body, albedo, rng)
        pattern = "painted"
    else:
        colours = _name_colours(albedo, part)
    return Subject(
        species, _POSE_WORDS[pose.kind], pattern, colours, vertices, body.faces.astype(np.int64),
        albedo, body.openness, part,
    )  # fmt: skip


def _paint(body: Body, albedo: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, str]]:
    light = albedo.mean(1)
    out = np.zeros_like(albedo)
    colours = {}
    for number, name in enumerate(PARTS):
        colour = str(rng.choice(list(COLOURS)))
        colours[name] = colour
        share = bone_share(body.bones, body.weights, number == BONE_PART)
        mean = float((light * share).sum() / max(share.sum(), 1e-6))
        texture = np.clip(light / max(mean, 0.05), 0.8, 1.25)  # a little of the coat's own
        tone = np.array(COLOURS[colour]) * np.exp(rng.normal(0, 0.06, 3))
        out += share[:, None] * tone * texture[:, None]
    return np.clip(out, 0.02, 0.98), colours


def _name_colours(albedo: np.ndarray, part: np.ndarray) -> dict[str, str]:
    names = {}
    palette = np.array([COLOURS[name] for name in _NATURAL])
    for number, name in enumerate(PARTS):
        mine = albedo[part == number]
        if len(mine) and float(mine.mean(1).std()) < _UNIFORM:
            names[name] = _NATURAL[int(((palette - mine.mean(0)) ** 2).sum(1).argmin())]
    return names
