"""A localhost server that misbehaves on request, and small photos to serve."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


def photo(seed: int, width: int = 96, height: int = 80, format: str = "JPEG") -> bytes:
    """A picture of blurred noise: every seed has its own perceptual hash."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, format, **({"quality": 90} if format == "JPEG" else {}))
    return out.getvalue()


class Server:
    """Serves what `pages` says; counts requests by path.

    A page is bytes, or a list of steps answered in turn (the last one for ever): each step bytes or
    a mapping with `code`, `headers`, `body`, `cut` (bytes really sent), `delay` (seconds), `drop`.
    """

    def __init__(self, latency: float = 0.0) -> None:
        self.pages: dict[str, object] = {}
        self.hits: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        self.agents: set[str] = set()
        self.latency = latency
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 256

            def handle_error(self, request: object, address: object) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        with self._lock:
            count = self.hits[path]
            self.hits[path] += 1
            self.times.setdefault(path, []).append(time.monotonic())
            self.agents.add(handler.headers.get("User-Agent", ""))
        page = self.pages.get(path, {"code": 404})
        step = page[min(count, len(page) - 1)] if isinstance(page, list) else page
        step = {"body": step} if isinstance(step, bytes) else dict(step)
        time.sleep(self.latency + step.get("delay", 0.0))
        handler.close_connection = True
        if step.get("drop"):
            return
        body = step.get("body", b"")
        handler.send_response(step.get("code", 200))
        headers = {"Content-Length": str(len(body)), "Connection": "close"}
        for name, value in {**headers, **step.get("headers", {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[: step.get("cut", len(body))])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
