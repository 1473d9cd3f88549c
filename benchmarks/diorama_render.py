"""How many pictures of the synthetic world are rendered in a second.

    python -m benchmarks diorama_render
    python -m benchmarks.diorama_render --count 400 --threads 2 --out diorama_render.json

Pictures are 256 x 256, JPEG encoding and perceptual hash included, as when a world is made. Building
the individuals and the first call's compilation are timed apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import save
from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.plan import plan_web
from prepare_data.diorama.world import Studio, render_all
from wildshape.workspace import Workspace

LEAST = 60  # pictures a second on two cores


def measure(category: str, count: int, threads: int, identities: int = 16) -> dict[str, object]:
    """Seconds and pictures a second for one category."""
    config = DioramaConfig(num_web=count, identities=identities, aspect_jitter=False)
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(config, Workspace(folder, category))
        entries = plan_web(config, [])
        start = time.perf_counter()
        for number in range(identities):
            studio.zoo.body(studio.species, number)
        built = time.perf_counter() - start
        start = time.perf_counter()
        render_all(studio, entries, threads, category)
        first = time.perf_counter() - start
        start, cpu = time.perf_counter(), time.process_time()
        render_all(studio, entries, threads, category)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "category": category,
        "pictures": count,
        "threads": threads,
        "pictures_per_s": round(count / seconds, 1),
        "cpu_ms_per_picture": round(1000 * cpu / count, 2),
        "first_pass_s": round(first, 2),
        "ms_per_individual": round(1000 * built / identities, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--categories", nargs="+", default=["horse", "sheep"])
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args(argv)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # other work on the machine
    results = [measure(c, arguments.count, arguments.threads) for c in arguments.categories]
    for row in results:
        print(
            f"{row['category']:>8}: {row['pictures_per_s']} pictures/s on {row['threads']} threads "
            f"({row['cpu_ms_per_picture']} ms of processor time each; "
            f"{row['ms_per_individual']} ms per individual)"
        )
    print(
        save(
            "diorama_render",
            {"least_pictures_per_s": LEAST, "load_before": load, "results": results},
            arguments.out,
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
