"""How many bytes a row of each table takes on disk, and how fast tables are written and read.

    python -m benchmarks table_sizes

Rows are made up but as varied as real ones: ids, addresses, boxes and keypoints are random, so that they
compress no better than real ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save
from wildshape.tables import Table, read_table, write_table

_KEYPOINTS, _PARTS = 16, 14


def _names(prefix: str, count: int, rng: np.random.Generator) -> list[str]:
    return [f"{prefix}{value:016x}" for value in rng.integers(0, 2**64, count, dtype=np.uint64)]


def images(rows: int, rng: np.random.Generator) -> Table:
    """Found photos, as after their download."""
    ids, hashes = _names("i", rows, rng), _names("", rows, rng)
    numbers = rng.integers(10**9, 10**10, rows)
    columns: dict[str, Any] = {
        "record_id": _names("r", rows, rng),
        "image_id": ids,
        "path": [f"data/cow/images/{name[1:3]}/{name}.jpg" for name in ids],
        "url": [
            f"http://farm{n % 9}.staticflickr.com/{n % 8000}/{n}_{h[:10]}.jpg"
            for n, h in zip(numbers, hashes)
        ],
        "source": ["yfcc100m"] * rows,
        "source_id": [str(n) for n in numbers],
        "width": rng.choice([500, 375, 333], rows),
        "height": rng.choice([500, 375, 333], rows),
        "phash": hashes,
        "license": rng.choice(["by", "by-sa", "by-nc"], rows).tolist(),
        "author": [f"user {n % 200_000}" for n in numbers],
        "page_url": [f"http://www.flickr.com/photos/{n % 200_000}@N00/{n}/" for n in numbers],
        "status": ["ok"] * rows,
    }
    return Table.from_rows("images", [dict(zip(columns, values)) for values in zip(*columns.values())])


def instances(rows: int, rng: np.random.Generator) -> Table:
    """Detected animals, without masks."""
    corner = rng.uniform(0, 200, (rows, 2))
    columns = {
        "instance_id": _names("a", rows, rng),
        "image_id": _names("i", rows, rng),
        "category": ["cow"] * rows,
        "source_id": [str(n) for n in rng.integers(10**9, 10**10, rows)],
        "box_xyxy": np.concatenate([corner, corner + rng.uniform(50, 300, (rows, 2))], axis=1),
        "score": rng.uniform(0.95, 1, rows),
        "detector": ["torchvision"] * rows,
        "mask_rle": [None] * rows,
        "flags": [""] * rows,
    }
    return Table("instances", columns)


def keypoints(rows: int, rng: np.random.Generator) -> Table:
    """Predicted keypoints of as many animals."""
    columns = {
        "instance_id": _names("a", rows, rng),
        "transform": ["none"] * rows,
        "xy": rng.uniform(0, 500, (rows, _KEYPOINTS, 2)),
        "confidence": rng.uniform(0, 1, (rows, _KEYPOINTS)),
    }
    return Table("keypoints", columns, {"skeleton": "quadruped16"})


def shapes(rows: int, rng: np.random.Generator) -> Table:
    """Predicted shapes of as many animals."""
    columns = {
        "instance_id": _names("a", rows, rng),
        "crop_affine": rng.normal(size=(rows, 6)),
        "camera": rng.normal(size=(rows, 7)),
        "part_transforms": rng.normal(size=(rows, _PARTS, 8)),
    }
    return Table("shapes", columns)


def measure(rows: int) -> dict[str, Any]:
    """Bytes a row, and seconds for all of them, by table."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for make in (images, instances, keypoints, shapes):
            table = make(rows, np.random.default_rng(0))
            path = Path(folder) / f"{make.__name__}.parquet"
            began = time.perf_counter()
            write_table(table, path)
            written = time.perf_counter()
            read_table(path, table.kind)
            figures[make.__name__] = {
                "bytes_per_row": round(path.stat().st_size / rows, 1),
                "write_rows_per_second": round(rows / (written - began)),
                "read_rows_per_second": round(rows / (time.perf_counter() - written)),
            }
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    figures = measure(options.rows)
    for name, row in figures.items():
        print(
            f"   {name:<10} {row['bytes_per_row']:7.1f} bytes a row, {row['write_rows_per_second']:,} "
            f"rows/s written, {row['read_rows_per_second']:,} read"
        )
    sizes = {"rows": options.rows, "keypoints": _KEYPOINTS, "parts": _PARTS}
    print(save("table_sizes", {**sizes, "tables": figures}, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
