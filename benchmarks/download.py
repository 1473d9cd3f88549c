"""How fast download_images is, beside a serial loop and img2dataset, from a server with 100 ms latency.

    python -m benchmarks download
    python -m benchmarks.download --images 3000 --img2dataset VENV/bin/python

All read the same photo-like JPEG files of 500 x 375 pixels from a server in a process of its own.
The loop is `urllib.request.urlretrieve`, which only saves what comes; download_images also decodes
every image fully, hashes it, writes it atomically and keeps its journal. The time of the latter is
the whole command's: tables, near-duplicates and all.

img2dataset, in an environment of its own, is set to the same result: files as they came, decoded to see
that they can be (resize_mode no, skip_reencode), their SHA-256, a least side, no EXIF. It is run once for
each of several numbers of processes and threads, and counts with the best of them, for each measure its
own; and once more without decoding (disable_all_reencoding). Processor seconds are those of all
processes of a way, without the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import save
from benchmarks.run_img2dataset import cpu_seconds

LEAST_RATIO = 30
SETTINGS = ((1, 64), (1, 256), (2, 64), (2, 128))
_SIZE = (500, 375)
_DISTINCT = 64


def photos(count: int) -> list[bytes]:
    """JPEG files of textured pictures, each with a comment that makes its bytes its own."""
    rng = np.random.default_rng(0)
    bodies = []
    for _ in range(min(count, _DISTINCT)):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=85)
        bodies.append(out.getvalue())
    result = []
    for number in range(count):
        note = f"{number:08d}".encode()
        comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
        body = bodies[number % len(bodies)]
        head = 4 + int.from_bytes(body[4:6], "big")  # the JFIF segment stays the first
        result.append(body[:head] + comment + body[head:])
    return result


def serve(count: int, latency: float, port: Connection) -> None:
    """Serve `/<number>.jpg` until killed; sends its port through a pipe."""
    from aiohttp import web

    bodies = photos(count)

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(latency)
        return web.Response(body=bodies[int(request.match_info["number"])], content_type="image/jpeg")

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/{number}.jpg", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


@dataclass(frozen=True)
class Timing:
    """Seconds of the clock and of the processor that a way took for so many images."""

    images: int
    seconds: float
    cpu_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For the file of figures."""
        return {
            "images": self.images,
            "images_per_second": round(self.images / self.seconds, 1),
            "images_per_cpu_second": round(self.images / self.cpu_seconds, 1),
        }


def time_serial(urls: Sequence[str], folder: Path) -> Timing:
    """The loop."""
    start, used = time.perf_counter(), cpu_seconds()
    for number, url in enumerate(urls):
        urllib.request.urlretrieve(url, folder / f"{number}.jpg")
    return Timing(len(urls), time.perf_counter() - start, cpu_seconds() - used)


def time_wildshape(urls: Sequence[str], root: Path, concurrency: int) -> Timing:
    """The command, all of it."""
    from prepare_data import download_images, search_metadata
    from wildshape.workspace import Workspace

    workspace = Workspace(root, "cow")
    listed = root / "urls.txt"
    listed.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
    search_metadata.run(search_metadata.Config(category="cow", metadata=(listed,)), workspace)
    config = download_images.Config(category="cow", concurrency=concurrency)
    start, used = time.perf_counter(), cpu_seconds()
    metrics = download_images.run(config, workspace)
    timing = Timing(len(urls), time.perf_counter() - start, cpu_seconds() - used)
    got = metrics["by_status"].get("ok", 0) + metrics["by_status"].get("duplicate", 0)
    if got != len(urls):
        raise RuntimeError(f"expected {len(urls)} images, found {metrics['by_status']}")
    return timing


def time_img2dataset(
    interpreter: Path, urls: Sequence[str], folder: Path, processes: int, threads: int, decode: bool
) -> Timing:
    """img2dataset, without the time to import it."""
    folder.mkdir()
    listed = folder / "urls.txt"
    listed.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
    settings = {
        "url_list": str(listed),
        "output_folder": str(folder / "out"),
        "output_format": "files",
        "processes_count": processes,
        "thread_count": threads,
        "number_sample_per_shard": math.ceil(len(urls) / processes),
        "resize_mode": "no",
        "skip_reencode": True,
        "disable_all_reencoding": not decode,
        "min_image_size": 64,
        "extract_exif": False,
    }
    script = Path(__file__).with_name("run_img2dataset.py")
    command = [str(interpreter), str(script), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{interpreter} {script.name} failed: {done.stderr[-2000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    files = list((folder / "out").glob("*/*.jpg"))
    sizes = {len(body) for body in photos(_DISTINCT)}
    if len(files) != len(urls) or not {file.stat().st_size for file in files} <= sizes:
        raise RuntimeError(f"expected {len(urls)} files as they came; found {len(files)} in {folder}")
    shutil.rmtree(folder)
    return Timing(len(urls), figures["seconds"], figures["cpu_seconds"])


def compare_img2dataset(interpreter: Path, urls: Sequence[str], root: Path) -> dict[str, Any]:
    """img2dataset with each of `SETTINGS`, and with the fastest of them without decoding."""
    command = [str(interpreter), "-c", "import importlib.metadata as m; print(m.version('img2dataset'))"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    rows = []
    for processes, threads in SETTINGS:
        timing = time_img2dataset(interpreter, urls, root / "rival", processes, threads, True)
        rows.append({"processes": processes, "threads": threads, **timing.as_dict()})
        print(f"   img2dataset: {rows[-1]}", flush=True)
    best = max(rows, key=lambda row: row["images_per_second"])
    timing = time_img2dataset(interpreter, urls, root / "rival", best["processes"], best["threads"], False)
    undecoded = {"processes": best["processes"], "threads": best["threads"], **timing.as_dict()}
    return {"version": version, "settings": rows, "best": best, "without_decoding": undecoded}


def measure(
    images: int, serial: int, latency: float, concurrency: int, img2dataset: Path | None = None
) -> dict[str, Any]:
    """Images a second of all ways."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(images, latency, theirs), daemon=True
    )
    server.start()
    figures: dict[str, Any] = {
        "images": images,
        "image_bytes": int(np.mean([len(body) for body in photos(min(images, _DISTINCT))])),
        "latency_seconds": latency,
        "concurrency": concurrency,
    }
    try:
        port = ours.recv()
        urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(images)]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            loop = time_serial(urls[:serial], root).as_dict()
            runs = []
            # Ours before and after the other, for the machine may be busier at one time than at another.
            for number in range(1 if img2dataset is None else 2):
                (root / f"root{number}").mkdir()
                runs.append(time_wildshape(urls, root / f"root{number}", concurrency).as_dict())
                if img2dataset is not None and number == 0:
                    figures["img2dataset"] = compare_img2dataset(img2dataset, urls, root)
    finally:
        server.terminate()
        server.join()
    command = max(runs, key=lambda run: run["images_per_second"])
    figures |= {
        "load_average": round(os.getloadavg()[0], 2),  # what else ran: every image costs processor time
        "serial_urlretrieve": loop,
        "download_images": command,
        "download_images_runs": runs,
        "ratio": round(command["images_per_second"] / loop["images_per_second"], 1),
        "least_ratio": LEAST_RATIO,
    }
    if img2dataset is not None:
        rows = figures["img2dataset"]["settings"]  # for each measure its best settings
        for kind in ("images_per_second", "images_per_cpu_second"):
            best = max(row[kind] for row in rows)
            figures["img2dataset"][f"{kind}_ratio"] = round(command[kind] / best, 2)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--serial", type=int, default=50, help="images that the serial loop fetches")
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument(
        "--img2dataset", type=Path, default=None, help="an interpreter that has img2dataset"
    )
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    rival = options.img2dataset
    if rival is None:
        print("   without img2dataset; to compare with it: --img2dataset VENV/bin/python")
    figures = measure(options.images, options.serial, options.latency, options.concurrency, rival)
    path = save("download", figures, options.out)
    print(
        f"serial {figures['serial_urlretrieve']['images_per_second']} images/s, download_images "
        f"{figures['download_images']['images_per_second']} images/s: {figures['ratio']} times "
        f"(wanted: {LEAST_RATIO}); {path}"
    )
    if rival is not None:
        found = figures["img2dataset"]
        print(f"download_images: {figures['download_images']}")
        print(f"img2dataset {found['version']}: {found['best']}, not decoding {found['without_decoding']}")
        print(
            f"download_images: {found['images_per_second_ratio']} times as many images a second, "
            f"{found['images_per_cpu_second_ratio']} times as many a second of a core"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
