"""Pictures and files to look at: turning animals, 3D files, points of a diffusion model."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from wildshape.report.analysis import Analysis
from wildshape.report.blocks import Block, Files, Gallery, Heading, Link, Note, Picture, Section
from wildshape.report.pictures import Budget, embed_file, shrunk
from wildshape.workspace import Workspace

POINTS = "zero123plus_points"
KINDS = {".gif": "turning (GIF)", ".mp4": "film (MP4)", ".glb": "3D file (GLB)"}
POSTER = 560
"""Pixels that the first picture of a film is wide at most."""


def gallery(analysis: Analysis, budget: Budget) -> Section | None:
    """What lies in the pictures folder beside contact sheets; None if there is nothing."""
    workspace = analysis.inputs.workspace
    blocks: list[Block] = []
    points = [path for path in analysis.inputs.pictures if path.stem == POINTS]
    shown = [picture for path in points if (picture := embed_file(path, _points_words(), budget))]
    if shown:
        blocks += [Heading("Points of the diffusion model"), Gallery(shown, size="wide")]
    titles = {f"acsm_{arm.name}": arm.title for arm in analysis.arms}
    linked = False
    for folder in sorted(path for path in workspace.pictures_dir.glob("*") if path.is_dir()):
        animals = _animals(folder)
        if not animals:
            continue
        linked = True
        arm, _, split = folder.name.rpartition("_")
        trained = f"3D model trained on {titles[arm]}, {split} animals" if arm in titles else folder.name
        posters, plain = [], []
        for name, files in animals.items():
            links = tuple(Link(KINDS[path.suffix], _address(path, workspace)) for path in files)
            poster = _poster(files, name, links, budget)
            if poster is None:
                plain.append((name, links))
            else:
                posters.append(poster)
        blocks.append(Heading(f"Animals to turn: {trained}"))
        blocks += [Gallery(posters, size="half")] if posters else []
        blocks += [Files(tuple(plain))] if plain else []
    if linked:
        blocks.append(
            Note(
                "Photo, predicted shape over it, and the shape turning. Links lead to files in the folder "
                "pictures beside this page, and want it there. 3D files open in a glTF viewer or in "
                "Blender."
            )
        )
    return Section("gallery", "Pictures and 3D files", blocks) if blocks else None


def _points_words() -> str:
    return (
        "Keypoints that a diffusion model found without labels, named by a regression on the labelled "
        "photos, on detected animals."
    )


def _animals(folder: Path) -> dict[str, list[Path]]:
    """Files to turn by animal, in the order of `KINDS`."""
    animals: dict[str, list[Path]] = {}
    for suffix in KINDS:
        for path in sorted(folder.glob(f"*{suffix}")):
            animals.setdefault(path.stem, []).append(path)
    return dict(sorted(animals.items()))


def _address(path: Path, workspace: Workspace) -> str:
    """From the page to a file below the run's folder."""
    return quote(path.relative_to(workspace.report_path.parent).as_posix())


def _poster(files: list[Path], name: str, links: tuple[Link, ...], budget: Budget) -> Picture | None:
    """The first picture of an animal's GIF; None without one, or where it cannot be read or has no room."""
    films = [path for path in files if path.suffix == ".gif"]
    if not films:
        return None
    try:
        with Image.open(films[0]) as film:
            first = np.asarray(film.convert("RGB"))
    except OSError:
        return None
    return budget.embed(shrunk(first, POSTER), name, links=links)
