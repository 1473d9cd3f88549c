"""A workspace of the stick animal: its category, template, labelled photos, web photos and tables."""

import acsm_toy
import numpy as np
from PIL import Image

from wildshape.geometry import Affine2D, camera_to_image, crop_affine, xy_ndc_to_crop
from wildshape.tables import Table, write_table
from wildshape.workspace import Workspace

SIZE = 72


def build(root, *, train=6, val=3, test=3, web=5, name=None):
    folder = root / "categories"
    folder.mkdir(parents=True)
    acsm_toy.template().save(folder / "stick.npz")
    (folder / "stick.yaml").write_text("name: stick\ntemplate:\n  file: stick.npz\n")
    workspace = Workspace(root, "stick", name)
    count = train + val + test + web
    cameras, xy_ndc = acsm_toy.scenes(count, seed=3)
    boxes = np.array([[10.0, 5.0, 10 + SIZE, 5 + SIZE]] * count)
    affine = crop_affine(boxes[0], SIZE)
    xy = affine.inverse().apply(xy_ndc_to_crop(xy_ndc, SIZE))
    cameras = camera_to_image(cameras, affine, SIZE)
    animals = [
        {"photo": _photo(xy_ndc[i], affine), "box": boxes[i], "xy": xy[i], "camera": cameras[i]}
        for i in range(count)
    ]
    return write_tables(workspace, animals, ["train"] * train + ["val"] * val + ["test"] * test)


def write_tables(workspace, animals, splits):
    """Photos and tables of animals; the first ones are labelled, the others are web animals."""
    labelled, shared = len(splits), {"score": 1.0, "flags": "", "category": workspace.category.name}
    images = [_image(workspace, i, animal["photo"], i < labelled) for i, animal in enumerate(animals)]
    rows = [
        {
            **shared, "instance_id": f"i{i}", "image_id": f"m{i}", "box_xyxy": animal["box"],
            "detector": "labels" if i < labelled else "toy", "mask_rle": animal.get("mask"),
        }
        for i, animal in enumerate(animals)
    ]  # fmt: skip
    labels = [
        {
            **rows[i], "split": split, "skeleton": "quadruped16", "xy": animals[i]["xy"],
            "visible": np.full(16, 2), "camera": animals[i]["camera"],
        }
        for i, split in enumerate(splits)
    ]  # fmt: skip
    put = workspace.table_path
    write_table(Table.from_rows("labels", labels, num_keypoints=16), put("labels"))
    write_table(Table.from_rows("images", images[:labelled]), put("labelled_images"))
    write_table(Table.from_rows("images", images[labelled:]), put("images"))
    write_table(Table.from_rows("instances", rows[labelled:]), put("instances"))
    ids = [row["instance_id"] for row in rows[labelled:]]
    keypoints = [
        {"instance_id": i, "transform": "none", "xy": animal["xy"], "confidence": np.full(16, 0.5)}
        for i, animal in zip(ids, animals[labelled:])
    ]
    table = Table.from_rows("keypoints", keypoints, num_keypoints=16, skeleton="quadruped16")
    write_table(table, workspace.keypoints_path("pose"))
    chosen = [
        {"instance_id": i, "criterion": "kpconf", "value": 1.0, "rank": rank}
        for rank, i in enumerate(reversed(ids))
    ]
    write_table(Table.from_rows("selections", chosen), workspace.selection_path("kpconf", len(ids)))
    return workspace


def _photo(xy_ndc, affine: Affine2D):
    photo = np.full((SIZE + 12, SIZE + 20, 3), 128, np.uint8)
    x, y = np.round(affine.inverse().apply(np.zeros(2))).astype(int)
    photo[y : y + SIZE, x : x + SIZE] = acsm_toy.picture(xy_ndc, SIZE)
    return photo


def _image(workspace, index, photo, labelled):
    folder = workspace.labelled_images_dir if labelled else workspace.images_dir
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{index}.png"
    Image.fromarray(photo).save(path)
    return {
        "record_id": f"r{index}", "image_id": f"m{index}", "path": workspace.relative(path),
        "source": "toy", "width": photo.shape[1], "height": photo.shape[0], "status": "ok",
    }  # fmt: skip
