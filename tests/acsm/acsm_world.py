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
    labelled, shared = train + val + test, {"category": "stick", "score": 1.0, "flags": ""}
    images = [_photo(workspace, i, xy_ndc[i], affine, i < labelled) for i in range(count)]
    rows = [
        {
            **shared, "instance_id": f"i{i}", "image_id": f"m{i}", "box_xyxy": boxes[i],
            "detector": "labels" if i < labelled else "toy",
        }
        for i in range(count)
    ]  # fmt: skip
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    labels = [
        {
            **rows[i], "split": splits[i], "skeleton": "quadruped16", "xy": xy[i],
            "visible": np.full(16, 2), "camera": cameras[i],
        }
        for i in range(labelled)
    ]  # fmt: skip
    put = workspace.table_path
    write_table(Table.from_rows("labels", labels, num_keypoints=16), put("labels"))
    write_table(Table.from_rows("images", images[:labelled]), put("labelled_images"))
    write_table(Table.from_rows("images", images[labelled:]), put("images"))
    write_table(Table.from_rows("instances", rows[labelled:]), put("instances"))
    ids = [row["instance_id"] for row in rows[labelled:]]
    keypoints = [
        {"instance_id": i, "transform": "none", "xy": p, "confidence": np.full(16, 0.5)}
        for i, p in zip(ids, xy[labelled:])
    ]
    table = Table.from_rows("keypoints", keypoints, num_keypoints=16, skeleton="quadruped16")
    write_table(table, workspace.keypoints_path("pose"))
    chosen = [
        {"instance_id": i, "criterion": "kpconf", "value": 1.0, "rank": rank}
        for rank, i in enumerate(reversed(ids))
    ]
    write_table(Table.from_rows("selections", chosen), workspace.selection_path("kpconf", len(ids)))
    return workspace


def _photo(workspace, index, xy_ndc, affine: Affine2D, labelled):
    folder = workspace.labelled_images_dir if labelled else workspace.images_dir
    folder.mkdir(parents=True, exist_ok=True)
    photo = np.full((SIZE + 12, SIZE + 20, 3), 128, np.uint8)
    x, y = np.round(affine.inverse().apply(np.zeros(2))).astype(int)
    photo[y : y + SIZE, x : x + SIZE] = acsm_toy.picture(xy_ndc, SIZE)
    path = folder / f"{index}.png"
    Image.fromarray(photo).save(path)
    return {
        "record_id": f"r{index}", "image_id": f"m{index}", "path": workspace.relative(path),
        "source": "toy", "width": photo.shape[1], "height": photo.shape[0], "status": "ok",
    }  # fmt: skip
