"""`wildshape predict` and `wildshape.load`: a trained model on photos of the user's own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import ImageError, read_image
from wildshape.errors import UserError
from wildshape.files import atomic_write, distinct, read_json, write_json
from wildshape.workspace import Workspace


@dataclass(frozen=True)
class Prediction:
    """What one animal looks like in 3D.

    Attributes:
        keypoints: [K, 2] reprojected keypoints, image pixels (pixel centres at whole numbers).
        keypoint_names: The K names.
        camera: [7] weak-perspective camera `[s, tx, ty, qw, qx, qy, qz]` in image pixels.
        part_transforms: [P, 8] scale, translation and quaternion of every part.
        vertices: [V, 3] articulated mesh in the template's frame.
        faces: [F, 3].
        vertices_image: [V, 3] the mesh in the image: x and y in pixels, z in pixels away from the viewer.
        box_xyxy: [4] the box that was looked at.
        overlay: uint8 [H, W, 3] the mesh drawn over the photo.
    """

    keypoints: np.ndarray
    keypoint_names: tuple[str, ...]
    camera: np.ndarray
    part_transforms: np.ndarray
    vertices: np.ndarray
    faces: np.ndarray
    vertices_image: np.ndarray
    box_xyxy: np.ndarray
    overlay: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """All but the picture and the mesh, JSON-able."""
        points = zip(self.keypoint_names, self.keypoints.round(3).tolist())
        return {
            "keypoints": dict(points),
            "camera": self.camera.tolist(),
            "part_transforms": self.part_transforms.tolist(),
            "box_xyxy": self.box_xyxy.tolist(),
        }

    def obj(self) -> str:
        """The articulated mesh as a Wavefront OBJ."""
        lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in self.vertices]
        lines += [f"f {a} {b} {c}" for a, b, c in np.asarray(self.faces) + 1]
        return "\n".join(lines) + "\n"


class Predictor:
    """A trained ACSM of one category.

    Args:
        workspace: Category, run and data root.
        arm: Which of the run's models; by default the one that was best on the validation split.
        device: Where to compute: auto, cpu or cuda.
    """

    def __init__(self, workspace: Workspace, arm: str | None = None, device: str = "auto") -> None:
        self.workspace, self.arm = workspace, arm or best_arm(workspace)
        checkpoint = workspace.checkpoint_dir(f"acsm/{self.arm}") / "best.pt"
        module = importlib.import_module("acsm.predict")
        self._shapes = module.ShapePredictor.from_checkpoint(checkpoint, workspace.category, device=device)

    def predict(self, image: np.ndarray, box_xyxy: np.ndarray | None = None) -> Prediction:
        """Predict the animal in an image.

        Args:
            image: RGB uint8 [H, W, 3].
            box_xyxy: [4] the animal's box in pixels; by default the whole image.

        Raises:
            UserError: for another kind of image, or a box that has no extent or lies outside.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"expected an image uint8 [H, W, 3]; found {image.dtype} {list(image.shape)}; to read a "
                "file, call wildshape.crops.read_image"
            )
        height, width = image.shape[:2]
        whole = np.array([-0.5, -0.5, width - 0.5, height - 0.5])
        box = whole if box_xyxy is None else np.asarray(box_xyxy, dtype=np.float64)
        if box.shape != (4,) or not np.isfinite(box).all() or not (box[2:] > box[:2]).all():
            raise UserError(f"--box: expected x1 y1 x2 y2 with x1 < x2 and y1 < y2; found {box.tolist()}")
        if (box[2:] <= 0).any() or (box[:2] >= (width, height)).any():
            raise UserError(f"--box: expected a part of {width} x {height} pixels; found {box.tolist()}")
        shape = self._shapes.predict([image], box[None])
        overlay = self._shapes.overlay(image, shape, 0)
        return Prediction(
            keypoints=shape.keypoints[0],
            keypoint_names=self.workspace.category.skeleton.keypoints,
            camera=shape.camera[0],
            part_transforms=shape.part_transforms[0],
            vertices=shape.vertices[0],
            faces=self._shapes.template.faces,
            vertices_image=shape.vertices_image[0],
            box_xyxy=box,
            overlay=overlay,
        )


def best_arm(workspace: Workspace) -> str:
    """The run's ACSM with the best AUC on the validation split.

    Models that saw true labels of web images (the ceiling) are for measuring and are left out.

    Raises:
        UserError: if none is trained.
    """
    scores: dict[str, float] = {}
    for manifest in workspace.checkpoint_dir("acsm").glob("*/manifest.json"):
        facts = read_json(manifest)
        if facts["config"].get("pl_source") != "truth" and (manifest.parent / "best.pt").exists():
            scores[manifest.parent.name] = float((facts.get("best") or {}).get("auc", -1.0))
    if not scores:
        raise UserError(
            f"expected a trained 3D model under {workspace.checkpoint_dir('acsm')}; found none; "
            f"run: wildshape run --category {workspace.category.name}"
        )
    return max(sorted(scores), key=lambda arm: scores[arm])


def load(
    category: str,
    *,
    name: str | None = None,
    arm: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Predictor:
    """Load the trained 3D model of a category.

    Args:
        category: The category.
        name: The run; by default the category's.
        arm: Which of the run's models; by default the best on the validation split.
        data_root: Folder that holds `runs/`; by default as for the commands.
        device: Where to compute: auto, cpu or cuda.

    Raises:
        UserError: if there is no such category or no trained model.
    """
    from wildshape.workspace import find_root

    return Predictor(Workspace(data_root or find_root(), category, name), arm, device)


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Predict keypoints, camera and 3D shape of the animal in photos."""

    photos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """The photos."""
    box: tuple[float, float, float, float] | None = None
    """The animal's box x1 y1 x2 y2 in pixels; by default every box that the detector finds."""
    detector: str | None = None
    """Detector that finds the animals (torchvision, detectron2, FILE.py:Class); none: the whole image."""
    score_threshold: float | None = None
    """Least score of a box; by default the detector's."""
    opts: tuple[str, ...] = ()
    """Pairs such as MODEL.WEIGHTS FILE for the detector."""
    arm: str | None = None
    """Which of the run's models; by default the best on the validation split."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = Path("predictions")
    """Folder for overlays (PNG), meshes (OBJ) and predictions.json."""


def _boxes(
    config: Config, predictor: Predictor, image: np.ndarray, detector: Any
) -> list[np.ndarray | None]:
    if config.box is not None:
        return [np.array(config.box)]
    if detector is None:
        return [None]
    save_boxes = importlib.import_module("prepare_data.save_boxes")
    rules = save_boxes.box_rules(predictor.workspace.category, detector, config.score_threshold)
    found = save_boxes.detect(detector, str(config.detector), [image])[0]
    chosen, _ = save_boxes.choose_boxes(*found, image.shape[:2], rules)
    return list(chosen.boxes)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Predict every photo; returns predictions by photo.

    Raises:
        UserError: no photo can be read, or the folder is not empty.
    """
    if not config.photos:
        raise UserError(
            f"expected photos; found none; run: wildshape predict --category {config.category} PHOTO..."
        )
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"--out: expected a folder; found a file at {config.out}")
    if config.out.exists() and any(config.out.iterdir()) and not config.overwrite:
        raise UserError(f"--out: {config.out} is not empty; add --overwrite or choose another folder")
    predictor = Predictor(workspace, config.arm, config.device)
    detector = None
    if config.detector is not None:
        detectors = importlib.import_module("prepare_data.detectors")
        detector = detectors.find_detector(config.detector, workspace, config.opts, config.device).make()
    results: dict[str, Any] = {}
    photos = list(dict.fromkeys(config.photos))
    unread = []
    for photo, name in zip(photos, distinct([photo.stem for photo in photos])):
        try:
            image = read_image(photo)
        except ImageError as error:
            unread.append(str(error))
            say(f"{photo}: left out: {error}")
            continue
        found = []
        for number, box in enumerate(_boxes(config, predictor, image, detector)):
            prediction = predictor.predict(image, box)
            stem = f"{name}_{number}"
            with atomic_write(config.out / f"{stem}.obj", "w") as handle:
                handle.write(prediction.obj())
            _write_png(config.out / f"{stem}.png", prediction.overlay)
            found.append({**prediction.as_dict(), "mesh": f"{stem}.obj", "overlay": f"{stem}.png"})
        results[str(photo)] = found
        say(f"{photo}: {len(found)} {workspace.category.name} predicted with model {predictor.arm}")
    if not results:
        raise UserError(unread[0])
    write_json(config.out / "predictions.json", results)
    left_out = f"; {len(unread)} could not be read" if unread else ""
    say(f"wrote {config.out}/predictions.json, overlays and meshes{left_out}")
    return results


def _write_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    with atomic_write(path) as handle:
        Image.fromarray(image).save(handle, format="PNG")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `wildshape predict`."""
    return script_main(Config, run, argv, prog="wildshape predict")
