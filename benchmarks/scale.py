"""The plan of docs/scale.md: 100 million metadata rows and a million images, from measured figures.

    python -m benchmarks.scale          # prints the tables
    python -m benchmarks.scale --write  # and puts them into docs/scale.md

Figures come from benchmarks/results; what nobody measured here is in `ASSUMPTIONS`, to be replaced.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS
from wildshape.files import atomic_write, read_json

PAGE = RESULTS.parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- benchmarks.scale -->", "<!-- end -->"
ROWS, IMAGES, LABELLED = 100_000_000, 1_000_000, 150
PASSES = 9  # crops an animal: pose, pose_aux, and seven of pose_mt

# Name: what it is, file and place of what was measured.
MEASURED: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "search": ("metadata rows searched a second", "search", ("ways", "duckdb", "rows_per_s")),
    "searched": ("rows of that file", "search", ("rows",)),
    "file_mb": ("megabytes of that file", "search", ("file_mb",)),
    "download": (
        "images downloaded a second from localhost",
        "download",
        ("download_images", "images_per_second"),
    ),
    "hashes": ("seconds to link a million hashes", "near_duplicates", ("results", "2", "seconds")),
    "crops": ("crops labelled a second, ResNet-18", "pose_generate", ("crops_per_second",)),
    "starting": (
        "seconds until a Ray worker begins",
        "engine",
        ("engines", "ray_2", "starting_seconds", "0"),
    ),
    "images": ("bytes of an images row", "table_sizes", ("tables", "images", "bytes_per_row")),
    "instances": ("bytes of an instances row", "table_sizes", ("tables", "instances", "bytes_per_row")),
    "keypoints": ("bytes of a keypoints row", "table_sizes", ("tables", "keypoints", "bytes_per_row")),
    "shapes": ("bytes of a shapes row", "table_sizes", ("tables", "shapes", "bytes_per_row")),
}
ASSUMPTIONS: Mapping[str, tuple[str, float]] = {
    "photo": ("bytes of a photo", 150_000),
    "hosts": ("hosts that the photos lie on", 10),
    "host_rate": ("images a second from each (`--host_rate`)", 10),
    "animals": ("animals an image", 1.6),
    "gpus": ("GPUs", 4),
    "gpu_detect": ("images a second and GPU, Faster R-CNN", 20),
    "gpu_segment": ("animals a second and GPU, segmentation", 10),
    "gpu_crops": ("crops a second and GPU, ResNet-50", 1000),
    "gpu_shapes": ("animals a second and GPU, 3D model", 1000),
    "pair_ms": ("milliseconds to compare two pictures' pixels ([measured](prepare_data.md))", 0.4),
    "pair_share": (
        "part of the pairs with one of 150 labelled images that is compared (same place)",
        0.014,
    ),
    "gpu_price": ("dollars for an hour of a GPU and its machine", 2.5),
    "cpu_price": ("dollars for an hour of a machine with 2 cores", 0.1),
    "disk_price": ("dollars for a gigabyte of disk and month", 0.08),
}


def measured() -> dict[str, float]:
    """The figures, as they stand in benchmarks/results."""
    figures = {}
    for name, (_, file, keys) in MEASURED.items():
        found: Any = read_json(RESULTS / f"{file}.json")
        for key in keys:
            found = found[int(key)] if isinstance(found, list) else found[key]
        figures[name] = float(found)
    return figures


def stages(m: Mapping[str, float], a: Mapping[str, float]) -> list[tuple[str, str, float, float]]:
    """Each stage: name, arithmetic, hours, dollars."""
    animals = IMAGES * a["animals"]

    def cpu(seconds: float) -> tuple[float, float]:
        return seconds / 3600, seconds / 3600 * a["cpu_price"]

    def gpu(amount: float, rate: float) -> tuple[float, float]:
        hours = (amount / (rate * a["gpus"]) + m["starting"]) / 3600
        return hours, hours * a["gpus"] * a["gpu_price"]

    wire, pairs = a["hosts"] * a["host_rate"], IMAGES * LABELLED * a["pair_share"]
    rate = min(wire, m["download"])
    begins = f" + {m['starting']:.0f} s to start"

    def shared(amount: float, rate: float) -> str:
        return f"{amount:,.0f} / ({rate:g}/s x {a['gpus']:g}){begins}"

    return [
        ("search", f"{ROWS:,} / {m['search']:,.0f}/s", *cpu(ROWS / m["search"])),
        (
            "download",
            f"{IMAGES:,} / {rate:g}/s; {a['hosts']:g} hosts x {a['host_rate']:g}/s = {wire:g}/s, one "
            f"machine takes {m['download']:g}/s",
            *cpu(IMAGES / rate),
        ),
        (
            "near-duplicates",
            f"{m['hashes']:g} s for the hashes + {pairs:,.0f} pairs x {a['pair_ms']:g} ms",
            *cpu(m["hashes"] + pairs * a["pair_ms"] / 1000),
        ),
        ("detect", shared(IMAGES, a["gpu_detect"]), *gpu(IMAGES, a["gpu_detect"])),
        ("segment", shared(animals, a["gpu_segment"]), *gpu(animals, a["gpu_segment"])),
        (
            f"2D labels, {PASSES} crops an animal",
            shared(animals * PASSES, a["gpu_crops"]),
            *gpu(animals * PASSES, a["gpu_crops"]),
        ),
        ("3D labels", shared(animals, a["gpu_shapes"]), *gpu(animals, a["gpu_shapes"])),
    ]


def disk(m: Mapping[str, float], a: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """What lies on disk: name, arithmetic, gigabytes."""
    animals, line = IMAGES * a["animals"], m["file_mb"] * 1e6 / m["searched"]
    return [
        ("metadata, not compressed", f"{ROWS:,} x {line:.0f} B", ROWS * line / 1e9),
        ("photos", f"{IMAGES:,} x {a['photo']:,.0f} B", IMAGES * a["photo"] / 1e9),
        (
            "candidates, downloads, images",
            f"3 x {IMAGES:,} x {m['images']:g} B",
            3 * IMAGES * m["images"] / 1e9,
        ),
        ("instances", f"{animals:,.0f} x {m['instances']:g} B", animals * m["instances"] / 1e9),
        (
            "keypoints of 2D and 3D",
            f"{animals:,.0f} x {PASSES + 1} x {m['keypoints']:g} B",
            animals * (PASSES + 1) * m["keypoints"] / 1e9,
        ),
        ("shapes", f"{animals:,.0f} x {m['shapes']:g} B", animals * m["shapes"] / 1e9),
    ]


def _number(value: float) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def tables(m: Mapping[str, float], a: Mapping[str, float]) -> str:
    """Figures, assumptions, time and disk as Markdown."""
    lines = ["| measured | value | in `benchmarks/results/` |", "|---|---|---|"]
    for name, (title, file, keys) in MEASURED.items():
        lines.append(f"| {title} | {_number(m[name])} | `{file}.json`: {'.'.join(keys)} |")
    lines += ["", "| assumed: replace it by yours | value |", "|---|---|"]
    lines += [f"| {title} | {_number(a[name])} |" for name, (title, _) in ASSUMPTIONS.items()]
    lines += ["", "| stage | arithmetic | hours | dollars |", "|---|---|---|---|"]
    plan = stages(m, a)
    lines += [f"| {name} | {sum_} | {hours:.2f} | {cost:.2f} |" for name, sum_, hours, cost in plan]
    hours, cost = sum(row[2] for row in plan), sum(row[3] for row in plan)
    lines.append(f"| all, one after another | | {hours:.1f} | {cost:.0f} |")
    crops = IMAGES * a["animals"] * PASSES
    alone = f"{crops:,.0f} / {_number(m['crops'])}/s = {crops / m['crops'] / 3600:.0f} hours"
    lines += [
        "",
        f"Without a GPU, on the 2 cores measured, the 2D labels alone would take {alone} with a ResNet-18.",
    ]
    lines += ["", "| on disk | arithmetic | GB |", "|---|---|---|"]
    kept = disk(m, a)
    lines += [f"| {name} | {sum_} | {size:.2f} |" for name, sum_, size in kept]
    size = sum(row[2] for row in kept)
    lines.append(f"| all: {size * a['disk_price']:.0f} dollars a month | | {size:.0f} |")
    return "\n".join(lines)


def section(page: str, text: str) -> str:
    """The page with the text between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    options = parser.parse_args(argv)
    text = tables(measured(), {name: value for name, (_, value) in ASSUMPTIONS.items()})
    print(text)
    if options.write:
        page = section(Path(PAGE).read_text(encoding="utf-8"), text)
        with atomic_write(PAGE, "w") as handle:
            handle.write(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
