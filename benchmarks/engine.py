"""The local engine and --engine ray with one and two workers, on the same images, in one run.

    python -m benchmarks engine
    python -m benchmarks.engine --images 400 --folder /tmp

Times save_boxes with a stand-in for a detector that computes on one core for a given time an image, so
that what is compared is the engines: reading and decoding photos of 500 x 375 pixels, handing out work, and
the finished table. The detector notes when it begins: what comes before is starting, once a command. The
engines take turns; their tables must be equal.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.download import photos
from benchmarks.machine import save
from prepare_data import save_boxes
from wildshape.engine import EngineOptions
from wildshape.tables import Table, content_hash, make_image_id, make_record_id, write_table
from wildshape.workspace import Workspace

ENGINES = {
    "local": EngineOptions(),
    "ray_1": EngineOptions(engine="ray", num_workers=1),
    "ray_2": EngineOptions(engine="ray", num_workers=2),
}
DETECTOR = '''
"""A stand-in: computes for a while and finds one animal in the middle."""
import time

import numpy as np


class Busy:
    default_threshold = 0.5

    def __init__(self, seconds, log):
        self.seconds, self.log = seconds, log
        self.matrix = np.random.default_rng(0).normal(size=(128, 128))

    def __call__(self, images):
        with open(self.log, "a") as handle:
            handle.write(f"{time.time()}\\n")
        found = []
        for image in images:
            end = time.process_time() + self.seconds
            while time.process_time() < end:
                self.matrix @ self.matrix
            height, width = image.shape[:2]
            box = [width / 4, height / 4, width * 3 / 4, height * 3 / 4]
            found.append((np.array([box]), np.array([0.9]), ["cow"]))
        return found
'''


def make_workspace(root: Path, images: int) -> Workspace:
    """A workspace of photo-like images."""
    workspace = Workspace(root, "cow")
    workspace.mark()
    workspace.images_dir.mkdir(parents=True)
    rows = []
    for number, body in enumerate(photos(images)):
        path = workspace.images_dir / f"{number:06d}.jpg"
        path.write_bytes(body)
        rows.append(
            {
                "record_id": make_record_id("benchmark", path.name),
                "image_id": make_image_id(body),
                "path": workspace.relative(path),
                "source": "benchmark",
                "width": 500,
                "height": 375,
                "status": "ok",
            }
        )
    write_table(Table.from_rows("images", rows), workspace.table_path("images"))
    return workspace


def time_command(workspace: Workspace, engine: EngineOptions, busy: float) -> tuple[float, float, str]:
    """Seconds of the whole command, those before its first image, and its table's content."""
    detector, log = workspace.root / "busy.py", workspace.root / "calls.log"
    detector.write_text(DETECTOR, encoding="utf-8")
    log.unlink(missing_ok=True)
    config = save_boxes.Config(
        category="cow",
        detector=f"{detector}:Busy",
        opts=("seconds", str(busy), "log", str(log)),
        overwrite=True,
        **vars(engine),
    )
    began = time.time()
    save_boxes.run(config, workspace)
    seconds = time.time() - began
    first = min(float(line) for line in log.read_text().splitlines())
    return seconds, first - began, content_hash(workspace.load("instances"))


def measure(images: int, busy: float, turns: int, folder: Path | None) -> dict[str, Any]:
    """Times of each engine, and what they come to for its quickest turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ENGINES}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        workspace = make_workspace(Path(place), images)
        tables = set()
        for _ in range(turns):
            for name, engine in ENGINES.items():
                *taken, table = time_command(workspace, engine, busy)
                times[name].append((taken[0], taken[1]))
                tables.add(table)
    if len(tables) != 1:
        raise RuntimeError("expected the same table from every engine")
    figures = {}
    quickest = {name: min(taken) for name, taken in times.items()}
    for name, (whole, start) in quickest.items():
        figures[name] = {
            "seconds": [round(taken, 2) for taken, _ in times[name]],
            "starting_seconds": [round(taken, 2) for _, taken in times[name]],
            "images_per_second": round(images / whole, 2),
            "images_per_second_once_started": round(images / (whole - start), 2),
            "ratio": round(quickest["local"][0] / whole, 2),
        }
    alone, two = (figures[name]["images_per_second_once_started"] for name in ("ray_1", "ray_2"))
    return {
        "images": images,
        "detector_seconds": busy,
        "load_average": round(os.getloadavg()[0], 2),
        "engines": figures,
        "two_workers_to_one_once_started": round(two / alone, 2),
        "equal_tables": True,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--busy", type=float, default=0.05, help="seconds the detector computes an image")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="where the images lie meanwhile")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    figures = measure(options.images, options.busy, options.turns, options.folder)
    for name, row in figures["engines"].items():
        print(
            f"   {name:<6} {min(row['seconds']):6.1f} s, {min(row['starting_seconds']):5.1f} s to start: "
            f"{row['images_per_second']:6.1f} images/s, "
            f"{row['images_per_second_once_started']:.1f} once started; {row['ratio']} times local"
        )
    print(
        f"   two workers do {figures['two_workers_to_one_once_started']} times the work of one; "
        f"{save('engine', figures, options.out)}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
