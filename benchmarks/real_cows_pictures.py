"""Pictures of the real-cow runs without the photos, which are not ours to show.

    python -m benchmarks.real_cows_pictures --root real --out docs/images

Writes real_cows_labels.png (pseudo-labels that agree best and worst) and real_cows_shapes.png (predicted
shapes of test animals from the best to the worst) of the first split of `benchmarks.real_cows`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from acsm.arms import load_arm
from acsm.drawing import novel_view, overlay
from wildshape.crops import read_image
from wildshape.files import atomic_path, read_json
from wildshape.geometry import Affine2D, crop_affine
from wildshape.report.drawing import contact_sheet, draw_keypoints
from wildshape.report.inputs import read_inputs
from wildshape.report.ranking import rank_all
from wildshape.training_data import labelled
from wildshape.workspace import Workspace

TILE = 192
PAPER = 244


def blank(box_xyxy: np.ndarray) -> tuple[np.ndarray, Affine2D]:
    """An empty tile about a box, the box drawn, and the map to it."""
    affine = crop_affine(box_xyxy, TILE, scale=1.25)
    tile = np.full((TILE, TILE, 3), PAPER, np.uint8)
    (x0, y0), (x1, y1) = np.round(affine.apply(box_xyxy.reshape(2, 2))).astype(int).tolist()
    cv2.rectangle(tile, (x0, y0), (x1, y1), (205, 205, 205), 1)
    return tile, affine


def label_picture(workspace: Workspace, each: int) -> np.ndarray:
    """The best and the worst pseudo-labels by CF-CM, with the second network's keypoints."""
    instances = workspace.load("instances")
    pose, aux = workspace.load_keypoints("pose"), workspace.load_keypoints("pose_aux")
    place, other = pose.lookup("instance_id"), aux.lookup("instance_id")
    skeleton = workspace.category.skeleton
    chosen = rank_all(read_inputs(workspace))["cf_cm"].ids
    boxes = instances.lookup("instance_id")
    tiles, captions = [], []
    for rank in [*range(each), *range(len(chosen) - each, len(chosen))]:
        name = chosen[rank]
        box = instances["box_xyxy"][boxes[name]]
        tile, affine = blank(box)
        xy, twin = affine.apply(pose["xy"][place[name]]), affine.apply(aux["xy"][other[name]])
        for a, b in zip(xy, twin):
            start, end = np.round(a).astype(int).tolist(), np.round(b).astype(int).tolist()
            cv2.line(tile, start, end, (200, 60, 40), 1, cv2.LINE_AA)
        tiles.append(draw_keypoints(tile, xy, pose["confidence"][place[name]], skeleton))
        captions.append(f"{rank + 1} of {len(chosen)}")
    return contact_sheet(tiles, each, captions, tile_size=TILE)


def shape_picture(workspace: Workspace, arm: str, count: int) -> np.ndarray:
    """Test animals from the best to the worst: true keypoints, shape as seen, shape from its left."""
    predictor, _ = load_arm(workspace, arm, ())
    assert predictor.template is not None
    records, _ = labelled(workspace, "test", workspace.category.skeleton)
    facts = read_json(workspace.metrics_path(f"acsm_{arm}_test"))["by_instance"]
    share = np.array(facts["keypoints_right"]) / np.maximum(facts["keypoints"], 1)
    order = np.argsort(-share, kind="stable")
    spread = order[np.round(np.linspace(0, len(order) - 1, count)).astype(int)]
    row_of = {name: row for row, name in enumerate(records.instance_ids)}
    columns: list[list[np.ndarray]] = [[], [], []]
    captions: list[str] = []
    for index in spread:
        row = row_of[facts["instance_id"][index]]
        box = records.box_xyxy[row]
        shapes = predictor.predict([read_image(records.paths[row])], box[None])
        tile, affine = blank(box)
        seen = np.where(records.weight[row][:, None] > 0, affine.apply(records.xy[row]), np.nan)
        columns[0].append(draw_keypoints(tile, seen, None, workspace.category.skeleton))
        vertices = np.array(shapes.vertices_image[0])
        vertices[:, :2] = affine.apply(vertices[:, :2])
        vertices[:, 2] *= affine.scale
        columns[1].append(overlay(tile, vertices, predictor.template))
        columns[2].append(novel_view(shapes.vertices[0], predictor.template, 90.0, TILE))
        captions.append(f"AUC {100 * share[index]:.0f}")
    blanks = [""] * count
    return contact_sheet(
        [tile for column in columns for tile in column],
        count,
        [*captions, *blanks, *blanks],
        tile_size=TILE,
    )


def main(argv: list[str] | None = None) -> int:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("real"))
    parser.add_argument("--name", default="pretrained", help="run: pretrained or scratch")
    parser.add_argument("--arm", default="cf_cm")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    options = parser.parse_args(argv)
    workspace = Workspace(options.root / "split_0", "cow", options.name)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, picture in (
        ("real_cows_labels", label_picture(workspace, 6)),
        ("real_cows_shapes", shape_picture(workspace, options.arm, 6)),
    ):
        with atomic_path(options.out / f"{name}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG", optimize=True)
        print(options.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
