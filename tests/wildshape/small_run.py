"""A run in small, as the stages leave it: tables, metrics, curves and pictures of made-up animals."""

import json
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from wildshape.files import write_json
from wildshape.stage import Provenance, publish
from wildshape.tables import TRANSFORMS, Table, make_image_id, make_instance_id, make_record_id
from wildshape.workspace import Workspace

# A standing quadruped seen from its left, in units of its box, in the order of quadruped16.
SIDE_VIEW = np.array(
    [
        [0.08, 0.22], [0.12, 0.22], [0.14, 0.10], [0.19, 0.11], [0.01, 0.33], [0.19, 0.42], [0.97, 0.27],
        [0.30, 0.20], [0.27, 0.58], [0.33, 0.58], [0.83, 0.56], [0.88, 0.56], [0.25, 0.97], [0.33, 0.97],
        [0.81, 0.97], [0.90, 0.97],
    ]
)  # fmt: skip
SIZE = 160


@dataclass(frozen=True)
class World:
    """What was made: true keypoints [N, 16, 2] by instance, and noise [N] that spoilt the pseudo-labels."""

    workspace: Workspace
    instance_ids: np.ndarray
    xy_true: np.ndarray
    noise: np.ndarray


def draw_animal(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture [H, W, 3], the box [4] and the keypoints [16, 2] of one animal."""
    ground = tuple(int(c) for c in rng.integers(90, 190, 3))
    picture = Image.new("RGB", (SIZE + 40, SIZE), ground)
    draw = ImageDraw.Draw(picture)
    side = rng.uniform(90, 130)
    corner = rng.uniform([10, 10], [SIZE + 30 - side, SIZE - 10 - 0.75 * side])
    box = np.array([*corner, corner[0] + side, corner[1] + 0.75 * side])
    shape = SIDE_VIEW + rng.normal(0, 0.012, SIDE_VIEW.shape)
    if rng.random() < 0.5:
        shape[:, 0] = 1 - shape[:, 0]
    xy = box[:2] + shape * (box[2:] - box[:2])
    coat = tuple(int(c) for c in rng.integers(20, 240, 3))
    body = np.concatenate([xy[[7, 6]].min(0), xy[[8, 11]].max(0)])
    body[[0, 2]] = sorted((xy[7, 0], xy[6, 0]))
    draw.ellipse(body.tolist(), fill=coat)
    for a, b, width in ((7, 4, 18), (8, 12, 7), (9, 13, 7), (10, 14, 7), (11, 15, 7), (2, 0, 5)):
        draw.line([*xy[a], *xy[b]], fill=coat, width=width)
    grain = rng.normal(0, 6, (SIZE, SIZE + 40, 1))
    return np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8), box, xy


def make_web(workspace: Workspace, animals: int, rng: np.random.Generator) -> World:
    """Candidates, downloads, images and instances: every fourth address fails or repeats another."""
    failures = (
        "not_found", "duplicate", "truncated", "not_found", "rate_limited", "in_labels", "not_image",
    )  # fmt: skip
    candidates, rows, instances, truths = [], [], [], []
    workspace.images_dir.mkdir(parents=True, exist_ok=True)
    number = 0
    while len(instances) < animals:
        url = f"http://localhost/{number}.jpg"
        row = {
            "record_id": make_record_id("yfcc100m", url), "url": url, "source": "yfcc100m",
            "source_id": str(number), "width": -1, "height": -1, "image_id": None, "path": None,
            "status": "pending",
        }  # fmt: skip
        candidates.append(row)
        status = failures[number // 4 % len(failures)] if number % 4 == 3 else "ok"
        row = {**row, "status": status}
        if status in ("ok", "duplicate", "in_labels"):
            picture, box, xy = draw_animal(rng)
            path = workspace.images_dir / f"{number}.jpg"
            Image.fromarray(picture).save(path, quality=80)
            image_id = make_image_id(path.read_bytes())
            row |= {
                "path": workspace.relative(path), "image_id": image_id,
                "width": picture.shape[1], "height": picture.shape[0],
            }  # fmt: skip
            if status == "ok" and number % 13:
                instances.append(
                    {
                        "instance_id": make_instance_id(image_id, "simulated", box), "image_id": image_id,
                        "category": "cow", "box_xyxy": box, "score": float(rng.uniform(0.95, 1)),
                        "detector": "simulated",
                        "flags": ("", "truncated", "crowd", "crowd,small")[number % 4],
                    }
                )  # fmt: skip
                truths.append(xy)
        rows.append(row)
        number += 1
    pending = [{**row, "status": "pending"} for row in candidates]
    tables = {
        "candidates": Table.from_rows("images", pending),
        "images": Table.from_rows("images", rows),
        "instances": Table.from_rows("instances", instances),
    }
    stages = {"candidates": "search_metadata", "images": "download_images", "instances": "save_boxes"}
    for name, table in tables.items():
        settings = {"score_threshold": 0.95} if name == "instances" else {}
        publish(table, workspace.table_path(name), Provenance(stages[name], settings))
    boxes = {"kept": len(instances), "low_score": 41, "other_label": 23}
    workspace.write_metrics("save_boxes", {"instances": len(instances), "boxes": boxes})
    lines = 40 * len(rows)
    found = {"lines": lines, "malformed": 3, "no_word": lines - len(rows) - 20, "excluded": 17}
    workspace.write_metrics("search_metadata", found)
    ids = tables["instances"]["instance_id"]
    noise = rng.gamma(1.5, 0.035, len(ids))
    return World(workspace, ids, np.array(truths), noise)


def make_labels(workspace: Workspace, rng: np.random.Generator) -> None:
    """Labelled animals in three splits."""
    rows = []
    for number, split in enumerate(["train"] * 12 + ["val"] * 6 + ["test"] * 9):
        rows.append(
            {
                "instance_id": f"label{number}", "image_id": f"photo{number}", "category": "cow",
                "box_xyxy": [0, 0, 100, 75], "score": 1.0, "detector": "labels", "flags": "",
                "split": split, "skeleton": "quadruped16", "xy": SIDE_VIEW * [100, 75],
                "visible": rng.choice([0, 1, 2, 2], 16), "camera": np.full(7, 1.0),
            }
        )  # fmt: skip
    table = Table.from_rows("labels", rows, num_keypoints=16)
    publish(table, workspace.table_path("labels"), Provenance("import"))


def make_keypoints(world: World, rng: np.random.Generator) -> None:
    """Pseudo-labels of four sources whose disagreement tells, in part, how wrong they are; the truth."""
    count, workspace = len(world.instance_ids), world.workspace

    def write(
        source: str, xy: np.ndarray, confidence: np.ndarray, transforms: list[str], ids: np.ndarray
    ) -> None:
        columns = {"instance_id": ids, "transform": transforms, "xy": xy, "confidence": confidence}
        table = Table("keypoints", columns, {"skeleton": "quadruped16"})
        publish(table, workspace.keypoints_path(source), Provenance("pose-generate-pl", {"source": source}))

    def spoilt(scale: np.ndarray) -> np.ndarray:
        error = rng.normal(0, 1, world.xy_true.shape)
        return world.xy_true + error * (scale * 110 * world.noise)[:, None, None]

    blur = rng.lognormal(0, 0.5, (4, count))  # what no source knows of its own error
    sure = np.exp(-9 * world.noise * blur[0])
    confidence = np.clip(sure[:, None] + rng.normal(0, 0.12, (count, 16)), 0.02, 1)
    pose, plain, ids = spoilt(np.ones(count)), ["none"] * count, world.instance_ids
    write("pose", pose, confidence, plain, ids)
    write("pose_aux", spoilt(1.2 * blur[1]), confidence, plain, ids)
    write("acsm", spoilt(2.5 * blur[2]), confidence, plain, ids)
    write("truth", world.xy_true[3:], (rng.random((count - 3, 16)) > 0.2).astype(float), plain[3:], ids[3:])
    wobble = (70 * world.noise * blur[3])[:, None, None]
    turned = [pose + rng.normal(0, 1, pose.shape) * wobble for _ in TRANSFORMS[1:]]
    names = [name for name in TRANSFORMS[1:] for _ in range(count)]
    repeats = len(turned)
    write(
        "pose_mt", np.concatenate(turned), np.tile(confidence, (repeats, 1)), names, np.tile(ids, repeats)
    )


def make_selections(world: World, count: int) -> None:
    """The selections of four criteria and a random one, made by the script that makes them."""
    from prepare_data.data_selection import Config, run

    for name in ("kpconf", "cf_mt", "cf_cm", "cf_cm2", "random"):
        run(Config(category="cow", filter=name, selection_num=count), world.workspace)


def make_models(workspace: Workspace, rng: np.random.Generator, count: int) -> None:
    """Curves, manifests, metrics and pictures of the pose networks and of the three arms."""
    thresholds = [0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1]
    names = workspace.category.skeleton.keypoints
    for model, top in (("pose", 0.86), ("pose_aux", 0.8)):
        curve = [top * (1 - np.exp(-t / 0.035)) for t in thresholds]
        by_keypoint = {
            name: {"count": int(rng.integers(20, 300)), "pck": [v * rng.uniform(0.6, 1.1) for v in curve]}
            for name in names[:-1]
        }
        by_keypoint[names[-1]] = {"count": 0, "pck": [None] * len(curve)}
        facts = {
            "model": model, "split": "test", "instances": 312, "keypoints": 3744, "thresholds": thresholds,
            "pck": curve, "pck_low": [v - 0.02 for v in curve], "pck_high": [v + 0.02 for v in curve],
            "per_keypoint": by_keypoint,
        }  # fmt: skip
        workspace.write_metrics(f"{model}_test", facts)
        write_curve(workspace, model, {"steps": 160, "arch": "resnet18", "image_size": 128}, 160, rng, top)
    web = {"use_web_images": True, "filter": "cf_cm", "web_images_num": count}
    arms = {
        "labels": (61.2, 34.1, {"use_web_images": False}),
        "cf_cm": (66.9, 30.2, {**web, "pl_source": "pose"}),
        "ceiling": (74.8, 24.4, {**web, "pl_source": "truth"}),
    }
    for arm, (auc, camera, config) in arms.items():
        facts = {
            "arm": arm, "split": "test", "instances": 312, "keypoints": 3744, "auc": auc,
            "auc_interval": [auc - 2.1, auc + 2.0],
            "pck": {f"{t:.2f}": auc + 300 * (t - 0.08) for t in (0.06, 0.07, 0.08, 0.09, 0.1)},
            "auc_by_keypoint": {name: auc + rng.normal(0, 6) for name in names},
            "median_error_percent": 5.1, "cameras": 312, "camera_error_deg": camera,
            "camera_error_deg_interval": [camera - 2.4, camera + 2.5],
            "camera_error_deg_median": camera - 6, "camera_error_deg_published": camera,
            "published": {"auc": auc - 0.4, "camera_error_deg": camera},
        }  # fmt: skip
        workspace.write_metrics(f"acsm_{arm}_test", facts)
        write_curve(workspace, f"acsm/{arm}", config, 1000, rng, auc / 100)
    seconds = {
        "search metadata": 0.4, "download": 12.1, "detect": 8.0, "train pose network": 171.0,
        "measure pose network": 2.1, "label with pose network": 14.2, "train second pose network": 165.0,
        "train 3D model, labels": 92.0, "select by cf_cm": 0.2, "train 3D model, cf_cm": 95.5,
        "train 3D model, ceiling": 94.0, "draw": 3.0,
    }  # fmt: skip
    workspace.write_metrics("timings", seconds)
    make_encoders(workspace)


def make_encoders(workspace: Workspace) -> None:
    """The pose networks that went on learning from two arms' animals."""
    measured = json.loads(workspace.metrics_path("pose_test").read_text(encoding="utf-8"))
    for arm, top in (("labels", 0.87), ("cf_cm", 0.91)):
        model = f"pose_{arm}"
        pck = [value * top / 0.86 for value in measured["pck"]]
        workspace.write_metrics(f"{model}_test", measured | {"model": model, "pck": pck})
        write_curve(workspace, model, {"steps": 100}, 100, np.random.default_rng(5), top)


def write_curve(
    workspace: Workspace, model: str, config: dict, steps: int, rng: np.random.Generator, top: float
) -> None:
    """metrics.jsonl and manifest.json of one model."""
    folder = workspace.checkpoint_dir(model)
    folder.mkdir(parents=True)
    lines = []
    for step in range(10, steps + 1, 10):
        fall = float(np.exp(-4 * step / steps))
        loss = 0.2 + fall + rng.normal(0, 0.03)
        lines.append({"step": step, "loss": loss, "lr": 1e-4, "seconds": step / 10})
        if step % (steps // 10) == 0:
            key = "val_auc" if model.startswith("acsm") else "val_pck@0.1"
            lines.append({"step": step, key: 100 * top * (1 - fall), "seconds": step / 10})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 5, "lo', encoding="utf-8")
    manifest = Provenance("train", config).as_dict() | {"step": steps, "steps": steps, "best": {"auc": top}}
    write_json(folder / "manifest.json", manifest)


def make_picture(workspace: Workspace, rng: np.random.Generator) -> None:
    """A contact sheet as acsm/visualize leaves it."""
    workspace.pictures_dir.mkdir(parents=True, exist_ok=True)
    tiles = [draw_animal(rng)[0] for _ in range(4)]
    Image.fromarray(np.concatenate(tiles, axis=1)).save(workspace.pictures_dir / "acsm_cf_cm_test.png")


def make_run(workspace: Workspace, animals: int = 60, selected: int = 20, seed: int = 0) -> World:
    """Everything."""
    rng = np.random.default_rng(seed)
    world = make_web(workspace, animals, rng)
    make_labels(workspace, rng)
    make_keypoints(world, rng)
    make_selections(world, selected)
    make_models(workspace, rng, selected)
    make_picture(workspace, rng)
    return world
