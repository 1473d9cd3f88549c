"""`wildshape acsm-visualize`: predicted shapes over their photos, turned, and as files for 3D viewers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from acsm.arms import load_arm
from acsm.drawing import contact_sheet, novel_view, overlay
from acsm.glb import write_glb
from acsm.label_sets import find_labels, masks_of
from acsm.mask_crops import mask_problem, tell_wrong_masks
from acsm.pixel_picture import pixel_pictures
from acsm.texture import make_atlas, surface_colours
from acsm.turntable import turntable, write_gif, write_mp4
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import image_paths, read_image
from wildshape.errors import UserError
from wildshape.files import atomic_path
from wildshape.formats.masks import decode_mask
from wildshape.geometry import Affine2D, crop_affine, warp_crop
from wildshape.records import tell_skipped

if TYPE_CHECKING:
    from pathlib import Path

    from acsm.predict import ShapePredictor
    from acsm.template import ArticulatedTemplate
    from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Draw predicted shapes over their photos and from other sides."""

    arm: str = "labels"
    """Which of the run's models."""
    opts: tuple[str, ...] = ()
    """MODEL.WEIGHTS FILE: draw with this checkpoint in place of the arm's."""
    vis_num: int = 12
    """How many animals."""
    split: Literal["train", "val", "test", "web"] = "test"
    """Which labelled animals, or web: the detected ones."""
    seed: int = 0
    """Seed of the choice of animals."""
    tile: int = 192
    """Side of each picture in pixels."""
    azimuths: tuple[float, ...] = (90.0, 0.0, 45.0)
    """Novel views, degrees: 0 from the front, 90 from the animal's left."""
    turntable: bool = False
    """Also write each animal turning, coloured from its photo, as GIF and MP4."""
    glb: bool = False
    """Also write each animal's shape in its pose, textured from its photo, as GLB (browsers, Blender)."""
    frames: int = 48
    """Pictures of a turntable; 20 are shown a second."""
    texture_size: int = 1024
    """Side of the texture in pixels, about."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name, least in (("vis_num", 1), ("frames", 2), ("texture_size", 64)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}: expected at least {least}; found {getattr(self, name)}")


@dataclass(frozen=True)
class Animals:
    """Animals to draw.

    Attributes:
        paths: N image files.
        box_xyxy: [N, 4] in image pixels.
        instance_ids: N names.
        masks: mask (run lengths) by name, of those that have one.
        skipped: id and reason of each animal that cannot be drawn.
    """

    paths: Sequence[Path]
    box_xyxy: np.ndarray
    instance_ids: Sequence[str]
    masks: Mapping[str, str]
    skipped: Sequence[tuple[str, str]] = ()


def _animals(config: Config, workspace: Workspace) -> Animals:
    if config.split == "web":
        instances = workspace.load("instances", "acsm-visualize")
        paths = image_paths(workspace.load("images", "acsm-visualize"), workspace)
        known = instances.take(np.array([image in paths for image in instances["image_id"]], bool))
        has_area = (known["box_xyxy"][:, 2:] > known["box_xyxy"][:, :2]).all(axis=1)
        empty = [(name, "a box of no area") for name in known["instance_id"][~has_area]]
        some = known.take(has_area)
        files = [paths[image] for image in some["image_id"]]
        return Animals(files, some["box_xyxy"], list(some["instance_id"]), masks_of(some), empty)
    labels = find_labels(workspace, config.split)
    records = labels.records
    return Animals(records.paths, records.box_xyxy, records.instance_ids, labels.masks)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Write pictures/acsm_<arm>_<split>.jpg, and files of each animal in the folder of that name.

    Returns:
        ``picture``, ``animals``, ``skipped``; ``files`` of the animals and the films' ``codec`` where asked
        for.

    Raises:
        UserError: the arm or the animals are missing, or --glb lacks trimesh.
    """
    from PIL import Image

    predictor, _ = load_arm(workspace, config.arm, config.opts, device=config.device)
    assert predictor.template is not None
    animals = _animals(config, workspace)
    files, boxes, ids = animals.paths, animals.box_xyxy, animals.instance_ids
    order = np.random.default_rng(config.seed).permutation(len(files))
    out = workspace.pictures_dir / f"acsm_{config.arm}_{config.split}.jpg"
    rows: list[list[np.ndarray]] = []
    skipped = list(animals.skipped)
    exporter = Exporter(out.with_suffix(""), predictor.template, config)
    for index in order:
        if len(rows) == config.vis_num:
            break
        try:
            image = read_image(files[index])
        except UserError as error:
            skipped.append((ids[index], str(error)))
            continue
        shapes = predictor.predict([image], boxes[index][None])
        # Draw on the tile, not on the photo: a large photo would cost much and show no more.
        affine = crop_affine(boxes[index], config.tile, scale=1.25)
        tile = warp_crop(image, affine, config.tile, 255)
        vertices = _in_tile(shapes.vertices_image[0], affine)
        views = [
            novel_view(shapes.vertices[0], predictor.template, azimuth, config.tile)
            for azimuth in config.azimuths
        ]
        drawn = overlay(tile, vertices, predictor.template)
        rows.append([tile, drawn, *_pixels(predictor, image, boxes[index], config.tile), *views])
        if config.turntable or config.glb:
            mask = animals.masks.get(ids[index])
            shape = (shapes.vertices[0], shapes.vertices_image[0])
            exporter.add(ids[index], image, shape, [tile, drawn], mask)
    if not rows:
        raise UserError(
            f"expected {config.split} animals with images for {workspace.category.name}; found none"
        )
    tell_skipped(skipped, len(order) + len(animals.skipped), "animals")
    # Two animals side by side: pages are wider than five pictures.
    paired = [sum(rows[i : i + 2], []) for i in range(0, len(rows), 2)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        Image.fromarray(contact_sheet(paired, config.tile)).save(temporary, quality=90)
    say(f"acsm-visualize: {len(rows)} animals -> {workspace.relative(out)}")
    facts: dict[str, Any] = {
        "picture": workspace.relative(out),
        "animals": len(rows),
        "skipped": len(skipped),
    }
    if exporter.files:
        facts |= {"files": [workspace.relative(file) for file in exporter.files], "codec": exporter.codec}
        film = f", films {exporter.codec}" if exporter.codec else ""
        say(f"  {len(exporter.files)} files of animals{film} -> {workspace.relative(exporter.folder)}/")
    workspace.write_metrics(f"visualize_{config.arm}_{config.split}", facts)
    return facts


def _pixels(predictor: ShapePredictor, image: np.ndarray, box: np.ndarray, tile: int) -> list[np.ndarray]:
    """Where a model that was trained with masks takes the pixels of an animal's crop; none, for others."""
    if not predictor.model.arch.pixel_map:
        return []
    crop = warp_crop(image, predictor.crop_affine(box), predictor.image_size, 255)
    return [
        cv2.resize(pixel_pictures(predictor, crop[None])[0], (tile, tile), interpolation=cv2.INTER_AREA)
    ]


class Exporter:
    """Writes animals' turntables and GLB files.

    Args:
        folder: where to.
        template: of all of them.
        config: what to write.
    """

    def __init__(self, folder: Path, template: ArticulatedTemplate, config: Config) -> None:
        self.folder, self.template, self.config = folder, template, config
        self.files: list[Path] = []
        self.codec: str | None = None
        if config.turntable or config.glb:
            self._atlas = make_atlas(len(template.faces), config.texture_size)

    def add(
        self,
        name: str,
        image: np.ndarray,
        shape: tuple[np.ndarray, np.ndarray],
        tiles: list[np.ndarray],
        mask_rle: str | None,
    ) -> None:
        """Write one animal.

        Args:
            name: of its files; what a file's name cannot hold becomes "_".
            image: RGB uint8 [H, W, 3].
            shape: vertices [V, 3] in the template frame and in the image.
            tiles: pictures that stand beside the turning animal, of the configured size.
            mask_rle: of the photo, or None.
        """
        vertices, vertices_image = shape
        mask = None
        if mask_rle is not None:
            problem = mask_problem(mask_rle, image.shape[1::-1])
            if problem is None:
                mask = decode_mask(mask_rle)
            else:
                tell_wrong_masks({name: problem}, "drawn")
        atlas, faces = self._atlas, self.template.faces
        colours, _ = surface_colours(image, vertices_image, self.template, atlas.surface, mask)
        texture = atlas.paint(colours)
        stem = self.folder / re.sub(r"[^\w.-]", "_", name)
        if self.config.glb:
            self._done(stem, ".glb", lambda path: write_glb(path, vertices, faces, atlas, texture))
        if self.config.turntable:
            size = self.config.tile
            turning = turntable(vertices, faces, atlas, texture, size, self.config.frames)
            frames = [contact_sheet([[*tiles, picture]], size) for picture in turning]
            self._done(stem, ".gif", lambda path: write_gif(path, frames))
            self.codec = self._done(stem, ".mp4", lambda path: write_mp4(path, frames))

    def _done(self, stem: Path, suffix: str, write: Callable[[Path], Any]) -> Any:
        path = stem.with_name(stem.name + suffix)
        written = write(path)
        self.files.append(path)
        return written


def _in_tile(vertices_image: np.ndarray, affine: Affine2D) -> np.ndarray:
    moved = np.array(vertices_image)
    moved[:, :2] = affine.apply(moved[:, :2])
    moved[:, 2] *= affine.scale
    return moved


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape acsm-visualize")


if __name__ == "__main__":
    sys.exit(main())
