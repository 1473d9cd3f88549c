"""How fast the selection criteria are, against a loop over one dict an instance, in one run.

    python -m benchmarks criteria
    python -m benchmarks.criteria --instances 1000000 --out criteria.json

The loop is what label files suggest: a dict of lists for each instance. It runs on a subsample and its
time is scaled to all instances. Times are the least of the repeats.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save
from pseudolabels.criteria import cf_mt, keypoint_distance, kp_conf, rank

KEYPOINTS, TRANSFORMS = 16, 7
LIMITS = {"kpconf": 0.3, "cf_cm": 1.0, "cf_mt": 3.0}


def make_data(count: int, seed: int = 0) -> dict[str, Any]:
    """Random float64 keypoints, as tables hold them."""
    rng = np.random.default_rng(seed)
    box = rng.uniform(0, 300, (count, 4))
    box[:, 2:] += box[:, :2] + 20
    xy = np.empty((count, TRANSFORMS, KEYPOINTS, 2))
    xy[:] = rng.random((count, 1, KEYPOINTS, 2)) + 0.01 * np.arange(TRANSFORMS)[:, None, None]
    xy *= 300
    return {
        "ids": np.array([f"a{number:09d}" for number in range(count)], dtype=object),
        "box": box,
        "xy": xy,
        "confidence": rng.random((count, KEYPOINTS)),
    }


def records_of(data: dict[str, Any], count: int) -> dict[str, dict[str, Any]]:
    """The first `count` instances as label files hold them: lists of [x, y, confidence]."""
    records = {}
    for row in range(count):
        confidence = data["confidence"][row].tolist()
        records[data["ids"][row]] = {
            "box": data["box"][row].tolist(),
            "joints": [
                [[x, y, c] for (x, y), c in zip(points, confidence)] for points in data["xy"][row].tolist()
            ],
        }
    return records


def loop_kp_conf(records: dict[str, dict[str, Any]]) -> list[str]:
    """KP-Conf one instance at a time."""
    value = {name: sum([joint[-1] for joint in record["joints"][0]]) for name, record in records.items()}
    return sorted(value, key=lambda name: -value[name])


def loop_distance(records: dict[str, dict[str, Any]], multi: bool) -> list[str]:
    """CF-CM, or with `multi` CF-MT, one instance at a time."""
    value = {}
    for name, record in records.items():
        x0, y0, x1, y1 = record["box"]
        scale = np.array([256 / (x1 - x0), 256 / (y1 - y0)])
        first = np.array(record["joints"][0])[:, :2]
        other = np.array(record["joints"][1])[:, :2]
        if multi:
            others = [np.array(points)[:, :2] for points in record["joints"][1:]]
            other = np.zeros_like(first)
            for points in others:
                other += points / len(others)
        value[name] = np.sqrt((((first - other) * scale) ** 2).sum(axis=-1)).mean()
    return sorted(value, key=value.__getitem__)


def least(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(count: int, sample: int, repeats: int) -> dict[str, Any]:
    """Seconds of criterion and ranking, and of the loop scaled to `count` instances."""
    data = make_data(count)
    ids, box, xy = data["ids"], data["box"], data["xy"]
    first, second = np.ascontiguousarray(xy[:, 0]), np.ascontiguousarray(xy[:, 1])
    values: dict[str, tuple[Callable[[], np.ndarray], bool]] = {
        "kpconf": (lambda: kp_conf(data["confidence"]), True),
        "cf_cm": (lambda: keypoint_distance(first, second, box), False),
        "cf_mt": (lambda: cf_mt(xy[:, 0], xy[:, 1:], box), False),
    }
    records = records_of(data, min(sample, count))
    loops: dict[str, Callable[[], list[str]]] = {
        "kpconf": lambda: loop_kp_conf(records),
        "cf_cm": lambda: loop_distance(records, multi=False),
        "cf_mt": lambda: loop_distance(records, multi=True),
    }
    results = {}
    for name, (function, descending) in values.items():
        value_seconds = least(function, repeats)
        value = function()
        rank_seconds = least(lambda value=value, down=descending: rank(value, ids, down), repeats)
        loop_seconds = least(loops[name], repeats) * count / len(records)
        total = value_seconds + rank_seconds
        results[name] = {
            "value_seconds": round(value_seconds, 4),
            "rank_seconds": round(rank_seconds, 4),
            "seconds": round(total, 4),
            "limit_seconds": LIMITS[name] * count / 1e6,
            "loop_seconds_scaled": round(loop_seconds, 2),
            "loop_sample": len(records),
            "times_faster": round(loop_seconds / total, 1),
            "times_faster_value_only": round(loop_seconds / value_seconds, 1),
        }
    return {"instances": count, "keypoints": KEYPOINTS, "results": results}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=5_000, help="instances that the loop runs on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args(argv)
    report = measure(arguments.instances, arguments.sample, arguments.repeats)
    print(f"{report['instances']} instances x {KEYPOINTS} keypoints; the loop ran on {arguments.sample}")
    print("criterion  value s  rank s  limit s  loop s (scaled)  times faster (value only)")
    for name, row in report["results"].items():
        print(
            f"{name:9}  {row['value_seconds']:7.3f} {row['rank_seconds']:7.3f} {row['limit_seconds']:8.2f}"
            f"  {row['loop_seconds_scaled']:15.1f}  {row['times_faster']:.0f}"
            f" ({row['times_faster_value_only']:.0f})"
        )
    print(save("criteria", report, arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
