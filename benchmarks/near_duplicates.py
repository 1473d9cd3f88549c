"""Clustering the perceptual hashes of a million images: the index beside comparing all pairs, in one run.

    python -m benchmarks near_duplicates
    python -m benchmarks.near_duplicates --images 1000000

Hashes are of made-up pictures: random ones, and for a tenth a copy with up to 8 of the 64 bits turned over.
All pairs are compared on fewer hashes (their time grows with the square); both find the same clusters.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save
from wildshape import near_duplicates
from wildshape.near_duplicates import HASH_BITS, MAX_DISTANCE, clusters

MOST_SECONDS = 60
MOST_GB = 4


def make_hashes(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Hashes, and for each copy [C, 2] its place and its original's."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = rng.choice(count, (count // 10, 2), replace=False)
    for place, original in copies.tolist():
        turned = rng.choice(HASH_BITS, rng.integers(0, MAX_DISTANCE + 1), replace=False)
        values[place] = values[original] ^ np.uint64(sum(1 << int(bit) for bit in turned))
    return [f"{value:016x}" for value in values.tolist()], copies


def measure(count: int, indexed: bool) -> dict[str, Any]:
    """Cluster so many hashes once."""
    hashes, copies = make_hashes(count)
    near_duplicates._INDEX_FROM = 0 if indexed else count + 1
    began = time.perf_counter()
    found = clusters(hashes)
    seconds = time.perf_counter() - began
    recall = float((found[copies[:, 0]] == found[copies[:, 1]]).mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "images": count,
        "way": "index" if indexed else "all pairs",
        "seconds": round(seconds, 2),
        "recall": recall,
        "clusters": int(found.max()) + 1,
        "peak_gb": round(peak, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both ways; returns 1 if the largest run is over its limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--all_pairs", type=int, default=40_000, help="hashes for the slow way")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(argv)
    measure(20_000, True)  # compiles
    rows = []
    for count, indexed in ((options.all_pairs, True), (options.all_pairs, False), (options.images, True)):
        rows.append(measure(count, indexed))
        print("   {images:>9,} images, {way:<9}: {seconds:7.2f} s, recall {recall:.3f}".format(**rows[-1]))
    if rows[0]["clusters"] != rows[1]["clusters"]:
        raise AssertionError(f"expected the same clusters both ways; found {rows[:2]}")
    last = rows[-1]
    figures = {
        "results": rows,
        "ratio": round(rows[1]["seconds"] / rows[0]["seconds"], 1),
        "most_seconds": MOST_SECONDS,
        "most_gb": MOST_GB,
    }
    print(f"   {figures['ratio']} times as fast; peak memory {last['peak_gb']} GB")
    print(save("near_duplicates", figures, options.out))
    return int(last["seconds"] > MOST_SECONDS or last["peak_gb"] > MOST_GB)


if __name__ == "__main__":
    raise SystemExit(main())
