"""A localhost web server for a synthetic world, with the failures that real servers have.

Addresses answer as ``server.json`` says: a picture; 429 with Retry-After at the first request and the
picture later; a body cut short; a page in place of a picture; 404 for anything else.

    python -m prepare_data.diorama.server WORLD [PORT] [LATENCY]
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from prepare_data.diorama.listing import CUT, PAGE, RATE_LIMITED, TRUNCATED, change_address
from prepare_data.diorama.world import world_dir
from wildshape.cli import say
from wildshape.errors import UserError
from wildshape.files import read_json, write_json
from wildshape.workspace import Workspace

RETRY_AFTER = 1
_KEEP = 0.4  # share of a file that a cut body still holds
_PAGE = b"<!DOCTYPE html><html><title>This photo is no longer available</title></html>"
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 429: "Too Many Requests"}


class DioramaServer:
    """Serves one world from a thread of its own.

    Attributes:
        base_url: where it listens.
        requests: how often each path was asked for; statuses: how often each code was answered.
    """

    def __init__(self, folder: Path, port: int = 0, latency: float = 0.0) -> None:
        if not (folder / "server.json").is_file():
            raise UserError(f"expected a synthetic world in {folder}; run: wildshape make-diorama")
        self._folder, self._latency = folder, latency
        self._routes = read_json(folder / "server.json")
        self._refused: set[str] = set()
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self._loop = asyncio.new_event_loop()
        started: list[asyncio.Server] = []
        problem: list[OSError] = []
        ready = threading.Event()

        def work() -> None:
            asyncio.set_event_loop(self._loop)
            try:
                serving = asyncio.start_server(self._client, "127.0.0.1", port, backlog=512)
                started.append(self._loop.run_until_complete(serving))
            except OSError as error:
                problem.append(error)
            ready.set()
            if started:
                self._loop.run_forever()

        self._thread = threading.Thread(target=work, name="diorama-server", daemon=True)
        self._thread.start()
        ready.wait()
        if problem:
            self._loop.close()
            raise UserError(f"expected port {port} to be free; found it taken ({problem[0].strerror})")
        self._server = started[0]
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Stops listening, drops open connections and ends the thread."""

        async def stop() -> None:
            self._server.close()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ValueError,
        ):
            pass  # the client has gone or talks nonsense: nothing is owed to it
        except asyncio.CancelledError:
            pass  # the server closes
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *headers = head.split("\r\n")
        method, target, version = first.split(" ", 2)
        names = {line.partition(":")[0].strip().lower(): line.partition(":")[2].strip() for line in headers}
        keep = names.get("connection", "").lower() != "close" and version == "HTTP/1.1"
        if self._latency:
            await asyncio.sleep(self._latency)
        path = urlsplit(target).path
        self.requests[path] += 1
        code, kind, extra, body, sent = self._answer(path)
        if method not in ("GET", "HEAD"):
            code, kind, extra, body, sent = 405, "text/plain", "", b"", None
        self.statuses[code] += 1
        keep = keep and sent is None
        lines = [
            f"HTTP/1.1 {code} {_REASONS[code]}", f"Content-Type: {kind}",
            f"Content-Length: {len(body)}", f"Connection: {'keep-alive' if keep else 'close'}",
        ]  # fmt: skip
        writer.write(("\r\n".join(lines) + extra + "\r\n\r\n").encode("latin-1"))
        if method != "HEAD":
            writer.write(body if sent is None else body[:sent])
        await writer.drain()
        return keep

    def _answer(self, path: str) -> tuple[int, str, str, bytes, int | None]:
        """Status, content type, extra header lines, body, and how much of it is sent (None: all)."""
        route = self._routes.get(path)
        if route is None:
            return 404, "text/html", "", _PAGE, None
        kind = route["kind"]
        if kind == PAGE:
            return 200, "text/html", "", _PAGE, None
        if kind == RATE_LIMITED and path not in self._refused:
            self._refused.add(path)
            return 429, "text/plain", f"\r\nRetry-After: {RETRY_AFTER}", b"slow down", None
        body = (self._folder / route["file"]).read_bytes()
        if kind == TRUNCATED:
            body = body[: int(_KEEP * len(body))]
        return 200, "image/jpeg", "", body, int(_KEEP * len(body)) if kind == CUT else None


@contextlib.contextmanager
def serve(folder: Path, port: int = 0, latency: float = 0.0) -> Iterator[DioramaServer]:
    """Serves the world in ``folder`` (``data/<category>/diorama``) while the block runs.

    Args:
        folder: the world.
        port: where to listen; 0 for any free port.
        latency: seconds before each answer, for tests and measurements.

    Raises:
        UserError: if there is no world, or the port is taken.
    """
    server = DioramaServer(Path(folder), port, latency)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def serving(workspace: Workspace, latency: float | None = None) -> Iterator[DioramaServer]:
    """Serves a workspace's world at the address that its metadata names.

    If that port is taken, another one is used and written into the metadata; photo ids, and with them
    record ids, do not change.
    """
    folder = world_dir(workspace)
    marker = folder / "world.json"
    if not marker.is_file():
        raise UserError(
            f"expected a synthetic world in {folder}; "
            f"run: wildshape make-diorama --category {workspace.category.name}"
        )
    world = read_json(marker)
    latency = float(world.get("latency", 0.0)) if latency is None else latency
    try:
        server = DioramaServer(folder, urlsplit(world["base_url"]).port or 0, latency)
    except UserError:
        server = DioramaServer(folder, 0, latency)
        say(f"diorama: {world['base_url']} is taken; the metadata now says {server.base_url}")
        change_address(workspace, world["base_url"], server.base_url)
        write_json(marker, {**world, "base_url": server.base_url})
    try:
        yield server
    finally:
        server.close()


def main(argv: list[str] | None = None) -> int:
    """Serves until it is stopped."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        print("usage: python -m prepare_data.diorama.server WORLD [PORT] [LATENCY]", file=sys.stderr)
        return 2
    port = int(arguments[1]) if len(arguments) > 1 else 0
    latency = float(arguments[2]) if len(arguments) > 2 else 0.0
    try:
        with serve(Path(arguments[0]), port, latency) as server:
            say(server.base_url)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
