"""A tiny world for the pose room: pictures with coloured dots for keypoints, and its tables."""

import cv2
import numpy as np

from wildshape.category import load_category
from wildshape.tables import Table, make_image_id, make_instance_id, make_record_id, write_table
from wildshape.workspace import Workspace

SKELETON = load_category("cow").skeleton
KEYPOINTS = SKELETON.num_keypoints
COLOURS = np.random.default_rng(7).integers(60, 256, (KEYPOINTS, 3))
# Settings of the smallest training.
SMALL = {
    "category": "cow",
    "backbone": "resnet18",
    "head_channels": 16,
    "image_size": 64,
    "batch_size": 4,
    "steps": 4,
    "eval_every": 2,
    "imagenet": False,
    "precision": "float32",
    "device": "cpu",
}


def picture(rng, animals=1, width=120, height=90):
    """RGB uint8 image, boxes [A,4] and keypoints [A,K,2]."""
    image = np.full((height, width, 3), 40, np.uint8)
    boxes, points = [], []
    for i in range(animals):
        left = 10 + i * (width - 20) // animals
        box = np.array([left, 12.5, left + (width - 30) / animals, 75.5])
        xy = rng.uniform(box[:2] + 4, box[2:] - 4, (KEYPOINTS, 2))
        for colour, (x, y) in zip(COLOURS, xy):
            cv2.circle(image, (round(x * 16), round(y * 16)), 40, colour.tolist(), -1, cv2.LINE_AA, 4)
        boxes.append(box)
        points.append(xy)
    return image, np.array(boxes), np.array(points)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def make_world(root, *, splits=(("train", 12), ("val", 4), ("test", 4)), web=(1, 2, 1, 3), seed=0):
    """A workspace with labels, labelled images, web images and their instances."""
    workspace = Workspace(root, "cow")
    workspace.mark()
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for split, count in splits:
        for i in range(count):
            image, boxes, points = picture(rng)
            path = save(image, workspace.labelled_images_dir / f"{split}{i}.png")
            images.append(_image_row(workspace, path, image))
            row = _instance_row(images[-1], boxes[0], "manual")
            visible = rng.choice([0, 1, 2], KEYPOINTS, p=[0.1, 0.1, 0.8])
            labels.append(
                row | {"split": split, "skeleton": SKELETON.name, "xy": points[0], "visible": visible}
            )
    write_table(Table.from_rows("images", images), workspace.table_path("labelled_images"))
    write_table(Table.from_rows("labels", labels, num_keypoints=KEYPOINTS), workspace.table_path("labels"))
    images, instances = [], []
    for i, animals in enumerate(web):
        image, boxes, _ = picture(rng, animals, width=120 + 8 * i)
        path = save(image, workspace.images_dir / f"web{i}.jpg")
        images.append(_image_row(workspace, path, image))
        instances += [_instance_row(images[-1], box, "test") for box in boxes]
    write_table(Table.from_rows("images", images), workspace.table_path("images"))
    write_table(Table.from_rows("instances", instances), workspace.table_path("instances"))
    return workspace


def _image_row(workspace, path, image):
    return {
        "record_id": make_record_id("test", path.name),
        "image_id": make_image_id(path.read_bytes()),
        "path": workspace.relative(path),
        "source": "test",
        "width": image.shape[1],
        "height": image.shape[0],
        "status": "ok",
    }


def _instance_row(image, box, detector):
    return {
        "instance_id": make_instance_id(image["image_id"], detector, box),
        "image_id": image["image_id"],
        "category": "cow",
        "box_xyxy": box,
        "score": 1.0,
        "detector": detector,
        "flags": "",
    }
