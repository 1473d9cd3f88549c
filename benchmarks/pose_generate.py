"""How long pseudo-labels take, beside the network's forward passes alone, in one run.

    python -m benchmarks pose_generate
    python -m benchmarks.pose_generate --images 300 --backbone resnet18 --image_size 128 --transforms mt

The whole time is that of the command: tables, reading, cropping, forward passes, decoding of heatmaps and
the finished table. The forward time is the same network on the same crops in the same batches, ready
normalised in memory. Images are photo-like JPEG files of 500 x 375 pixels, two thirds with two animals;
forward and whole are timed in turns, and the ratio is that of the sums.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import save
from pose.model import PoseNet
from pose.predict import normalise
from pose.pseudo_labels import TRANSFORMS, LabelOptions, PosePseudoLabels, label_instances, load_predictor
from wildshape.category import load_category
from wildshape.crops import image_paths
from wildshape.tables import Table, make_image_id, make_instance_id, make_record_id, write_table
from wildshape.training import save_checkpoint
from wildshape.workspace import Workspace

LIMIT = 1.2
_SIZE = (500, 375)


def make_workspace(root: Path, images: int, arch: dict[str, Any], image_size: int) -> Workspace:
    """A workspace of photo-like images, their instances and a checkpoint of random weights."""
    import cv2

    workspace = Workspace(root, "cow")
    workspace.mark()
    rng = np.random.default_rng(0)
    width, height = _SIZE
    image_rows, rows = [], []
    workspace.images_dir.mkdir(parents=True)
    for number in range(images):
        coarse = rng.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        photo = cv2.resize(coarse, _SIZE, interpolation=cv2.INTER_CUBIC).astype(np.int16)
        photo = (photo + rng.normal(0, 6, photo.shape)).clip(0, 255).astype(np.uint8)
        path = workspace.images_dir / f"{number:05d}.jpg"
        cv2.imwrite(str(path), photo, [cv2.IMWRITE_JPEG_QUALITY, 88])
        image_id = make_image_id(path.read_bytes())
        image_rows.append(
            {
                "record_id": make_record_id("benchmark", path.name),
                "image_id": image_id,
                "path": workspace.relative(path),
                "source": "benchmark",
                "width": width,
                "height": height,
                "status": "ok",
            }
        )
        for _ in range(1 + (number % 3 > 0)):
            corner, size = rng.uniform(0, 200, 2), rng.uniform(120, 280, 2)
            box = np.concatenate([corner, corner + size])
            rows.append(
                {
                    "instance_id": make_instance_id(image_id, "benchmark", box),
                    "image_id": image_id,
                    "category": "cow",
                    "box_xyxy": box,
                    "score": 1.0,
                    "detector": "benchmark",
                    "flags": "",
                }
            )
    write_table(Table.from_rows("images", image_rows), workspace.table_path("images"))
    write_table(Table.from_rows("instances", rows), workspace.table_path("instances"))
    skeleton = load_category("cow").skeleton
    extra = {
        "kind": "pose",
        "category": "cow",
        "skeleton": skeleton.name,
        "keypoints": list(skeleton.keypoints),
        "flip": list(skeleton.flip),
        "arch": {"num_keypoints": skeleton.num_keypoints, **arch},
        "image_size": image_size,
        "published": False,
    }
    model = PoseNet(**extra["arch"])
    path = workspace.checkpoint_dir("pose") / "best.pt"
    save_checkpoint(path, {"model": model.state_dict(), "extra": extra})
    return workspace


def time_forward(workspace: Workspace, transforms: Sequence[str], batch_size: int) -> tuple[float, int]:
    """Seconds of the network alone on all crops, and the number of crops."""
    predictor = load_predictor(workspace, "pose", batch_size=batch_size)
    stage = PosePseudoLabels(predictor, image_paths(workspace.load("images"), workspace), transforms)
    rows = list(workspace.load("instances").rows())
    seconds, crops = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            prepared = np.concatenate(
                [stage.prepare(row)["crops"] for row in rows[start : start + batch_size]]
            )
            for first in range(0, len(prepared), batch_size):
                batch = torch.from_numpy(prepared[first : first + batch_size]).to(predictor.device)
                images = normalise(batch)
                if not crops:  # the first pass also chooses kernels
                    predictor.model(images)
                _wait()
                began = time.perf_counter()
                predictor.model(images)
                _wait()
                seconds += time.perf_counter() - began
                crops += len(images)
    return seconds, crops


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_whole(workspace: Workspace, transforms: Sequence[str], batch_size: int) -> float:
    """Seconds of the command from its tables to its table."""
    began = time.perf_counter()
    label_instances(
        workspace,
        LabelOptions("pose", "pose", tuple(transforms), batch_size=batch_size, overwrite=True),
    )
    return time.perf_counter() - began


def measure(
    images: int,
    backbone: str,
    head_channels: int,
    image_size: int,
    transforms: str,
    batch_size: int,
    turns: int,
) -> dict[str, Any]:
    """Times of both, and their ratio."""
    names = tuple(TRANSFORMS) if transforms == "mt" else ("none",)
    arch = {"backbone": backbone, "head_channels": head_channels}
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder), images, arch, image_size)
        forward, whole, crops = [], [], 0
        for _ in range(turns):
            seconds, crops = time_forward(workspace, names, batch_size)
            forward.append(seconds)
            whole.append(time_whole(workspace, names, batch_size))
    ratio = sum(whole) / sum(forward)
    return {
        "images": images,
        "crops": crops,
        "backbone": backbone,
        "head_channels": head_channels,
        "image_size": image_size,
        "transforms": transforms,
        "batch_size": batch_size,
        "forward_seconds": [round(s, 3) for s in forward],
        "whole_seconds": [round(s, 3) for s in whole],
        "crops_per_second": round(turns * crops / sum(whole), 1),
        "ratio": round(ratio, 3),
        "limit": LIMIT,
        "holds": ratio <= LIMIT,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--head_channels", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--transforms", choices=["none", "mt"], default="none")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    out = options.out
    figures = measure(**{name: value for name, value in vars(options).items() if name != "out"})
    path = save("pose_generate", figures, out)
    print(
        f"pose_generate: {figures['crops']} crops, forward {sum(figures['forward_seconds']):.2f} s, whole "
        f"{sum(figures['whole_seconds']):.2f} s, ratio {figures['ratio']:.3f} (limit {LIMIT}); {path}"
    )
    return 0 if figures["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
