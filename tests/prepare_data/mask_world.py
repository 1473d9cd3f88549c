"""A few pictures with red squares, as instances and as labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from wildshape.formats.masks import encode_mask
from wildshape.stage import Provenance, publish
from wildshape.tables import Table, make_image_id
from wildshape.workspace import Workspace

# Image, then the box's edges counted from the picture's edge. Pictures are 60 wide and 50 high; in each,
# red fills x in 10..29 and y in 20..39; in the second one also x in 40..49 and y in 5..14.
BOXES = [
    (0, (10, 20, 30, 40)),
    (1, (10, 20, 30, 40)),
    (1, (40, 5, 50, 15)),
    (2, (5, 20, 35, 40)),
    (3, (40, 5, 50, 15)),
]
CONFIG = Provenance("test_boxes", {"seed": 1})


def picture(number: int) -> np.ndarray:
    image = np.full((50, 60, 3), 90 + number, np.uint8)
    image[20:40, 10:30] = (255, 0, 0)
    if number == 1:
        image[5:15, 40:50] = (255, 0, 0)
    return image


def write_world(workspace: Workspace, boxes=BOXES) -> Table:
    """Writes images, instances, labels and labelled_images; returns the instances."""
    folder, images = workspace.images_dir, []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        path = folder / f"{number}.png"
        Image.fromarray(picture(number)).save(path)
        images.append(
            {
                "record_id": f"r{number}", "image_id": make_image_id(bytes([number])),
                "path": workspace.relative(path), "source": "folder", "source_id": f"{number}.png",
                "width": 60, "height": 50, "status": "ok",
            }
        )  # fmt: skip
    rows = [
        {
            "instance_id": f"a{number}", "image_id": images[image]["image_id"], "category": "cow",
            "source_id": f"{number}", "box_xyxy": np.array(box) - 0.5, "score": 0.9, "detector": "test",
            "flags": "",
        }
        for number, (image, box) in enumerate(boxes)
    ]  # fmt: skip
    table = Table.from_rows("images", images)
    instances = Table.from_rows("instances", rows)
    for name in ("images", "labelled_images"):
        publish(table, workspace.table_path(name), CONFIG)
    publish(instances, workspace.table_path("instances"), CONFIG)
    true = np.zeros((50, 60), bool)
    true[20:40, 10:20] = True  # the left half of the red square
    # Row 0: the square's corners, a point just outside, and one outside that is hidden.
    corners = [(9.5, 19.5), (29.4, 39.4), (9.4, 25.0), (50.0, 30.0)]
    xy = np.zeros((len(rows), workspace.category.skeleton.num_keypoints, 2))
    visible = np.zeros(xy.shape[:2], int)
    xy[:1, :4], visible[:1, :4] = corners, (2, 2, 2, 1)
    labels = [
        {
            **row, "split": "train", "skeleton": workspace.category.skeleton.name, "xy": xy[number],
            "visible": visible[number], "mask_rle": encode_mask(true) if number == 0 else None,
        }
        for number, row in enumerate(rows)
    ]  # fmt: skip
    meta = {"skeleton": workspace.category.skeleton.name}
    count = workspace.category.skeleton.num_keypoints
    publish(
        Table.from_rows("labels", labels, num_keypoints=count, **meta),
        workspace.table_path("labels"),
        CONFIG,
    )
    return instances


PLUG_IN = Path(__file__).with_name("mask_plug_in.py")
