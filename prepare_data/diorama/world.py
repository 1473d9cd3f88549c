"""A whole world on disk: labelled set, web, ground truth and metadata."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from prepare_data.diorama import listing
from prepare_data.diorama.anatomy import find_species
from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.copies import copy_picture
from prepare_data.diorama.lookup import write_lookup
from prepare_data.diorama.plan import Entry, plan_labelled, plan_web
from prepare_data.diorama.scene import Animal, Picture, render_picture
from prepare_data.diorama.viewpoint import fit_weak_perspective
from prepare_data.diorama.zoo import Zoo
from wildshape.crops import decode_image
from wildshape.errors import UserError
from wildshape.files import atomic_write, read_json, write_json
from wildshape.near_duplicates import clusters, phash
from wildshape.stage import Provenance, describe_change, fingerprint, progress
from wildshape.tables import Table, make_image_id, make_instance_id, make_record_id, write_table
from wildshape.workspace import Workspace

WORLD_VERSION = 2
DETECTOR = "diorama"
_LEAST_SEEN = 6  # keypoints of the main animal
_LEAST_AREA = 0.0016  # share of the picture below which an animal is scenery
ATTEMPTS = 12


@dataclass(frozen=True)
class Shot:
    """A finished picture: its file's bytes, decoded pixels' hash and truth."""

    entry: Entry
    data: bytes
    picture: Picture
    phash: str

    @property
    def image_id(self) -> str:
        """Id of the file's bytes."""
        return make_image_id(self.data)


class Studio:
    """Renders the entries of one world; safe to use from several threads.

    Args:
        config: the world's settings.
        workspace: tells category, skeleton and template.
    """

    def __init__(self, config: DioramaConfig, workspace: Workspace) -> None:
        from acsm.template import template_for

        self.config, self.category = config, workspace.category
        self.species = str(self.category.diorama.get("species", self.category.name))
        find_species(self.species)
        self.zoo = Zoo(config.seed, self.category.skeleton.keypoints, config.variety)
        template = template_for(self.category)
        self.template_points = template.vertices[template.keypoint_vertices]

    def picture(self, entry: Entry, first_attempt: int = 0) -> Picture:
        """The original picture of an entry; drawn anew until its main animal can be made out."""
        for attempt in range(first_attempt, first_attempt + ATTEMPTS):
            picture = render_picture(
                self.zoo, self.config, self.species, entry.stream, entry.index, entry.cast, attempt
            )
            if entry.cast == "empty" or self._clear(picture):
                break
        return picture

    def _clear(self, picture: Picture) -> bool:
        if not picture.animals:
            return False
        lead = picture.animals[0]
        seen = (lead.visible == 2).sum()
        return bool(seen >= _LEAST_SEEN and lead.mask.sum() > 2 * _LEAST_AREA * lead.mask.size)

    def shoot(self, entry: Entry, first_attempt: int = 0) -> Shot:
        """Renders, copies and encodes one entry."""
        picture = self.picture(entry, first_attempt)
        salt = [self.config.seed, entry.stream, entry.index, 77, entry.copy]
        rng = np.random.default_rng(salt)
        quality = int(rng.integers(78, 96))
        if entry.copy:
            picture, quality = copy_picture(picture, rng), int(rng.integers(68, 90))
        bgr = cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR)
        data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        # A world is held in memory until it is written: without meshes.
        return Shot(entry, data, replace(picture, surface=None), phash(decode_image(data)))

    def label(self, shot: Shot, animal: Animal) -> dict[str, Any]:
        """One row of kind labels for an animal of a picture."""
        native = animal.species == self.species
        box = animal.box_xyxy
        rle = coco_mask.encode(np.asfortranarray(animal.mask.astype(np.uint8)))
        camera = None
        if native:
            camera = fit_weak_perspective(self.template_points, animal.xy_image, animal.rotation)
        flags = [*animal.flags, *(["copy"] if shot.entry.copy else [])]
        return {
            "instance_id": make_instance_id(shot.image_id, DETECTOR, box),
            "image_id": shot.image_id,
            "category": self.category.name if native else animal.species,
            "source_id": shot.entry.key,
            "box_xyxy": box,
            "score": 1.0,
            "detector": DETECTOR,
            "mask_rle": json.dumps({"size": rle["size"], "counts": rle["counts"].decode("ascii")}),
            "flags": ",".join(flags),
            "split": shot.entry.split or "test",
            "skeleton": self.category.skeleton.name,
            "xy": np.where(animal.visible[:, None] > 0, animal.xy_image, 0.0),
            "visible": animal.visible,
            "camera": camera,
        }

    def labels(self, shots: Sequence[Shot], main_only: bool) -> Table:
        """Table of kind labels; animals that are scarcely seen are left out."""
        rows = []
        for shot in shots:
            animals = [
                animal
                for animal in shot.picture.animals[: 1 if main_only else None]
                if main_only or animal.mask.sum() > _LEAST_AREA * animal.mask.size
            ]
            rows += [self.label(shot, animal) for animal in animals]
        skeleton = self.category.skeleton
        return Table.from_rows("labels", rows, num_keypoints=skeleton.num_keypoints, skeleton=skeleton.name)


def render_all(studio: Studio, entries: Sequence[Entry], threads: int, title: str) -> list[Shot]:
    """Renders all entries in order, in threads."""
    shots: list[Shot] = []
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for shot in progress(pool.map(studio.shoot, entries), title, total=len(entries), unit="picture"):
            shots.append(shot)
    return shots


def part_splits(studio: Studio, shots: list[Shot]) -> list[Shot]:
    """Draws pictures anew that by chance look like one of another split."""
    for round_ in range(1, 6):
        ids = clusters([shot.phash for shot in shots])
        home: dict[int, str] = {}
        redo = {
            (shot.entry.stream, shot.entry.index)
            for shot, cluster in zip(shots, ids)
            if home.setdefault(int(cluster), shot.entry.split) != shot.entry.split
        }
        if not redo:
            break
        shots = [
            studio.shoot(shot.entry, ATTEMPTS * round_)
            if (shot.entry.stream, shot.entry.index) in redo
            else shot
            for shot in shots
        ]
    return shots


def images_table(shots: Sequence[Shot], paths: Sequence[str], source: str, base_url: str) -> Table:
    """Table of kind images of finished pictures."""
    rows = []
    for shot, path in zip(shots, paths):
        height, width = shot.picture.image.shape[:2]
        photo = listing.photo_of(shot.entry.key)
        rows.append(
            {
                "record_id": make_record_id(source, shot.entry.key),
                "image_id": shot.image_id,
                "path": path,
                "url": f"{base_url}{photo.path}" if base_url else None,
                "source": source,
                "source_id": shot.entry.key,
                "width": width,
                "height": height,
                "phash": shot.phash,
                "license": photo.license_name if base_url else "Apache-2.0",
                "author": photo.nickname if base_url else "diorama",
                "page_url": photo.page_url if base_url else None,
                "status": "ok",
            }
        )
    return Table.from_rows("images", rows)


def world_dir(workspace: Workspace) -> Path:
    """Where a category's synthetic web lies."""
    return workspace.data_dir / "diorama"


def _finished(workspace: Workspace, provenance: Provenance, overwrite: bool) -> bool:
    marker = world_dir(workspace) / "world.json"
    if marker.exists():
        stored = read_json(marker)["provenance"]
        if fingerprint(stored) == provenance.fingerprint:
            return True
        if not overwrite:
            change = describe_change(stored, provenance.as_dict())
            raise UserError(
                f"{world_dir(workspace)} was made with other settings ({change}); add --overwrite"
            )
    elif workspace.table_path("labels").exists() and not overwrite:
        detectors = set(_read_detectors(workspace))
        if detectors - {DETECTOR}:
            raise UserError(
                f"expected no labels for {workspace.category.name} yet; found "
                f"{workspace.table_path('labels')}, not made by the diorama; choose another "
                "--data-root or add --overwrite"
            )
    return False


def _read_detectors(workspace: Workspace) -> list[str]:
    return [str(value) for value in workspace.load("labels")["detector"]]


def build_world(
    config: DioramaConfig,
    workspace: Workspace,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    latency: float = 0.0,
) -> dict[str, Any]:
    """Makes a world: labelled set, web folder, metadata and ground truth.

    Writes the tables labels, labelled_images, truth and truth_images, the labelled pictures, the
    metadata file, and under ``data/<category>/diorama`` what `prepare_data.diorama.server` serves.

    Args:
        config: the world's settings.
        workspace: where it goes, and which category it is about.
        overwrite: replace a world of other settings.
        threads: pictures rendered at once; by default the processors there are.
        latency: seconds that the server waits before it answers, recorded for it.

    Returns:
        Counts of what was made.

    Raises:
        UserError: for a category without a body plan, or a world of other settings.
    """  # fmt: skip
    settings = {
        **asdict(config),
        "world_version": WORLD_VERSION,
        "category": workspace.category.name,
    }
    provenance = Provenance("make_diorama", settings)
    if _finished(workspace, provenance, overwrite):
        return dict(read_json(world_dir(workspace) / "world.json")["counts"], done_before=True)
    folder = world_dir(workspace)
    studio = Studio(config, workspace)
    (folder / "world.json").unlink(missing_ok=True)
    if (folder / "web").exists():  # of a world that was left unfinished, or is to be replaced
        shutil.rmtree(folder / "web")
    threads = threads or (os.cpu_count() or 1)
    labelled_plan = plan_labelled(config)
    labelled = part_splits(studio, render_all(studio, labelled_plan, threads, "labelled photos"))
    web = render_all(studio, plan_web(config, labelled_plan), threads, "web pictures")

    labelled_paths = []
    for shot in labelled:
        path = workspace.labelled_images_dir / f"{shot.entry.key}.jpg"
        _write(path, shot.data)
        labelled_paths.append(workspace.relative(path))
    site = listing.write_site(folder, [(s.entry.key, s.data) for s in web], config)
    base_url = listing.choose_address(folder)
    counts = listing.write_metadata(workspace, site, config, base_url)
    web_files = [folder / f"web{listing.photo_of(shot.entry.key).path}" for shot in web]
    web_paths = [workspace.relative(path) for path in web_files]
    write_lookup(folder, web)
    record = provenance.as_dict()
    for table, name in (
        (images_table(labelled, labelled_paths, "diorama", ""), "labelled_images"),
        (studio.labels(labelled, main_only=True), "labels"),
        (images_table(web, web_paths, "yfcc100m", base_url), "truth_images"),
        (studio.labels(web, main_only=False), "truth"),
    ):
        write_table(table, workspace.table_path(name), record)
        counts[name] = len(table)
    counts["leaks"] = sum(shot.entry.leak for shot in web)
    counts["web_copies"] = sum(shot.entry.copy > 0 and not shot.entry.leak for shot in web)
    world = {"provenance": record, "base_url": base_url, "latency": latency, "counts": counts}
    write_json(folder / "world.json", world)
    return counts


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as handle:
        handle.write(data)
