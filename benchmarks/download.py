"""How fast download_images is, beside a serial loop, from a localhost server with 100 ms latency.

    python -m benchmarks download
    python benchmarks/download.py --images 3000 --latency 0.1

Both read the same photo-like JPEG files of 500 x 375 pixels from a server in a process of its own.
The loop is `urllib.request.urlretrieve`, which only saves what comes; download_images also decodes
every image fully, hashes it, writes it atomically and keeps its journal. The time of the latter is
the whole command's: tables, near-duplicates and all.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import save

LEAST_RATIO = 30
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
        result.append(body[:2] + comment + body[2:])
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


def time_serial(urls: Sequence[str], folder: Path) -> float:
    """Seconds of the loop."""
    start = time.perf_counter()
    for number, url in enumerate(urls):
        urllib.request.urlretrieve(url, folder / f"{number}.jpg")
    return time.perf_counter() - start


def time_wildshape(urls: Sequence[str], root: Path, concurrency: int) -> float:
    """Seconds of the command, all of it."""
    from prepare_data import download_images, search_metadata
    from wildshape.workspace import Workspace

    workspace = Workspace(root, "cow")
    listed = root / "urls.txt"
    listed.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
    search_metadata.run(search_metadata.Config(category="cow", metadata=(listed,)), workspace)
    config = download_images.Config(category="cow", concurrency=concurrency)
    start = time.perf_counter()
    metrics = download_images.run(config, workspace)
    seconds = time.perf_counter() - start
    got = metrics["by_status"].get("ok", 0) + metrics["by_status"].get("duplicate", 0)
    if got != len(urls):
        raise RuntimeError(f"expected {len(urls)} images, found {metrics['by_status']}")
    return seconds


def measure(images: int, serial: int, latency: float, concurrency: int) -> dict[str, Any]:
    """Images a second of both."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(images, latency, theirs), daemon=True
    )
    server.start()
    try:
        port = ours.recv()
        urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(images)]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "root").mkdir()
            loop = serial / time_serial(urls[:serial], root)
            command = images / time_wildshape(urls, root / "root", concurrency)
    finally:
        server.terminate()
        server.join()
    return {
        "images": images,
        "image_bytes": int(np.mean([len(body) for body in photos(min(images, _DISTINCT))])),
        "latency_seconds": latency,
        "concurrency": concurrency,
        "load_average": round(os.getloadavg()[0], 2),  # what else ran: every image costs processor time
        "serial_urlretrieve_images_per_second": round(loop, 2),
        "download_images_per_second": round(command, 1),
        "ratio": round(command / loop, 1),
        "least_ratio": LEAST_RATIO,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--serial", type=int, default=50, help="images that the serial loop fetches")
    parser.add_argument("--latency", type=float, default=0.1)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args(argv)
    figures = measure(arguments.images, arguments.serial, arguments.latency, arguments.concurrency)
    path = save("download", figures, arguments.out)
    print(
        f"serial {figures['serial_urlretrieve_images_per_second']} images/s, download_images "
        f"{figures['download_images_per_second']} images/s: {figures['ratio']} times "
        f"(wanted: {LEAST_RATIO}); {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
