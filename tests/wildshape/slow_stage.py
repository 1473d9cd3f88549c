"""A Map stage and a training that tests interrupt: `slow_stage.py map|fit FOLDER DELAY [PROBLEM]`."""

import errno
import os
import sys
import time
from pathlib import Path

import numpy as np

from wildshape.cli import guarded
from wildshape.stage import MapOptions, MapStage, Provenance, run_map
from wildshape.tables import Table

PROVENANCE = Provenance("toy", {"factor": 2}, {"rows": "abc"})


def instances(count):
    box = np.arange(count)[:, None] + np.array([0.0, 0, 10, 10])
    text = {name: [name] * count for name in ("image_id", "category", "source_id", "detector", "flags")}
    ids = [f"a{i:04d}" for i in range(count)]
    nothing = {"mask_rle": [None] * count, "score": np.ones(count)}
    return Table("instances", {**text, **nothing, "instance_id": ids, "box_xyxy": box})


class Doubler(MapStage):
    """Two keypoints an instance, from its box; writes a line a call to a log."""

    def __init__(self, log=None, delay=0.0, fail_at=None):
        self.log, self.delay, self.fail_at = log, delay, fail_at

    def prepare(self, row):
        return {"instance_id": row["instance_id"], "corner": row["box_xyxy"][:2]}

    def __call__(self, batch):
        if self.fail_at in list(batch["instance_id"]):
            raise RuntimeError("boom")
        if self.log is not None:
            with open(self.log, "a") as handle:
                handle.write(" ".join(batch["instance_id"]) + "\n")
        time.sleep(self.delay)
        xy = np.stack([batch["corner"] * 2, batch["corner"] + 0.1], axis=1)
        return {
            "instance_id": batch["instance_id"],
            "transform": ["none"] * len(xy),
            "xy": xy,
            "confidence": np.ones(xy.shape[:2]),
        }


def run(folder, stage=None, count=20, **options):
    options = MapOptions(**{"shard_size": 4, "batch_size": 3, **options})
    stage = stage or Doubler(folder / "calls.log")
    return run_map(
        lambda: stage,
        instances(count),
        folder / "out.parquet",
        "keypoints",
        PROVENANCE,
        options=options,
        meta={"skeleton": "two"},
    )


def run_fit(folder, delay):
    from toy_task import ToyTask, fit_toy

    class Slow(ToyTask):
        def loss(self, batch, step):
            time.sleep(delay)
            with open(folder / "calls.log", "a") as handle:
                handle.write(f"{step}\n")
            return super().loss(batch, step)

    fit_toy(Slow(), folder / "fit")


def main():
    what, folder, delay = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    if "full-disk" in sys.argv:

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.replace = full
    if what == "map":
        workers = 2 if "workers" in sys.argv else 0
        return guarded(lambda: run(folder, Doubler(folder / "calls.log", delay), workers=workers))
    return guarded(lambda: run_fit(folder, delay))


if __name__ == "__main__":
    sys.exit(main())
