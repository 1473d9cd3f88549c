"""Watching a training in a browser, with visdom. A server that dies, or never was, stops no training.

Imported when used: pip install "wildshape[visdom]". What is shown stands in metrics.jsonl too.
"""

from __future__ import annotations

import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wildshape.cli import say
from wildshape.errors import UserError
from wildshape.processes import is_first_process

_LOCAL = ("localhost", "127.0.0.1", "::1")
_MOST_WAITING = 256
_START_SECONDS = 20.0
_TRIES = 3
# The server's own entry point fetches scripts before it listens, and gives up where there is no network.
_SERVER = """
import sys
from visdom.server.build import download_scripts
try:
    download_scripts()
except Exception:
    pass  # no network: the page needs the scripts from the browser's cache
from visdom.server.run_server import start_server
port, folder = int(sys.argv[1]), sys.argv[2]
start_server(port=port, hostname="127.0.0.1", base_url="", bind_local=True, env_path=folder)
"""


class Monitor(Protocol):
    """What a training tells while it runs. Nothing in it may raise or wait."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Losses and metrics by name; those of the validation split start with `val_`."""

    def earlier(self, rows: Sequence[Mapping[str, float]]) -> None:
        """What a training that is resumed had told before: scalars, and the `step` of each row."""

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """RGB uint8 [H, W, 3] by title."""

    def close(self) -> None:
        """Send what is still waiting, for a short while."""


@dataclass(frozen=True, kw_only=True)
class MonitorOptions:
    """Flags of a training that can be watched; a command whose `Config` derives from it has them."""

    visdom: bool = False
    """Show losses, metrics and pictures in a visdom server, which is started if none runs here."""
    visdom_server: str = "localhost"
    """The machine on which it runs."""
    visdom_port: int = 8097
    """Its port."""

    def monitor(self, env: str, title: str, folder: Path) -> Monitor | None:
        """The monitor that the flags ask for; of processes that train together the first has it.

        Args:
            env: visdom's environment: the run's name.
            title: What the windows are called: the model's name.
            folder: Where a server that is started keeps what it shows.

        Raises:
            UserError: if visdom is not installed.
        """
        if not (self.visdom and is_first_process()):
            return None
        try:
            import visdom  # noqa: F401
        except ImportError as error:
            raise UserError('--visdom needs visdom; run: pip install "wildshape[visdom]"') from error
        return VisdomMonitor(self.visdom_server, self.visdom_port, env, title, folder)


class VisdomMonitor:
    """Sends to a visdom server from a thread of its own; what the server does not take is dropped.

    Args:
        server: Machine, with or without http://.
        port: Its port.
        env: visdom's environment.
        title: Prefix of the windows' titles.
        folder: Where a server that is started here keeps what it shows.
    """

    def __init__(self, server: str, port: int, env: str, title: str, folder: Path) -> None:
        self._host = server.removeprefix("http://").removeprefix("https://").rstrip("/")
        self._url = server if "://" in server else f"http://{server}"
        self._port, self._env, self._title, self._folder = port, env.replace("_", "-"), title, folder
        self._windows: set[str] = set()
        self._waiting: queue.Queue[Callable[[Any], Any] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="visdom", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Monitor`."""
        points = {name: [(step, value)] for name, value in values.items()}
        self._put(lambda server: self._curves(server, points))

    def earlier(self, rows: Sequence[Mapping[str, float]]) -> None:
        """See `Monitor`."""
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    curves.setdefault(name, []).append((int(row["step"]), value))
        self._put(lambda server: self._curves(server, curves))

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See `Monitor`."""
        copied = {name: np.ascontiguousarray(picture) for name, picture in pictures.items()}
        self._put(lambda server: self._images(server, step, copied))

    def close(self) -> None:
        """See `Monitor`."""
        self._put(None)
        self._thread.join(timeout=5.0)

    def _put(self, item: Callable[[Any], Any] | None) -> None:
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            if item is None:  # the end must be told: the oldest makes room
                self._waiting.get_nowait()
                self._waiting.put_nowait(None)

    def _work(self) -> None:
        server, failed = self._connect(), 0
        while (item := self._waiting.get()) is not None:
            if server is None:
                continue
            try:
                item(server)
                failed = 0
            except Exception as error:  # whatever the network, the server or visdom raises
                failed += 1
                if failed >= _TRIES:
                    self._tell(f"no longer answers ({type(error).__name__})")
                    server = None

    def _connect(self) -> Any:
        if not _answers(self._host, self._port):
            if self._host not in _LOCAL:
                self._tell("does not answer")
                return None
            if not start_server(self._port, self._folder):
                self._tell("could not be started")
                return None
            say(f"visdom: started at http://localhost:{self._port}; it goes on after the training")
        try:
            import visdom

            logging.getLogger("visdom").setLevel(logging.ERROR)
            server = visdom.Visdom(
                server=self._url, port=self._port, env=self._env, raise_exceptions=True,
                use_incoming_socket=False,
            )  # fmt: skip
        except Exception as error:
            self._tell(f"does not answer ({type(error).__name__})")
            return None
        return server

    def _tell(self, what: str) -> None:
        say(f"visdom: the server at {self._host}:{self._port} {what}; the training goes on without it")

    def _curves(self, server: Any, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        for name, points in curves.items():
            metric = name.removeprefix("val_")
            window = f"{self._title}: {'validation' if name != metric else 'training'}, {metric}"
            steps, values = zip(*points)
            server.line(
                X=np.array(steps),
                Y=np.array(values),
                win=window,
                update="append" if window in self._windows else None,
                opts={"title": window, "xlabel": "step"},
            )
            self._windows.add(window)

    def _images(self, server: Any, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        for name, picture in pictures.items():
            title = f"{self._title}: {name}"
            server.image(
                picture.transpose(2, 0, 1), win=title, opts={"title": title, "caption": f"step {step}"}
            )


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=3.0):
            return True
    except OSError:
        return False


def start_server(port: int, folder: Path) -> bool:
    """Start a visdom server on this machine that outlives the process, and wait until it answers.

    Args:
        port: Where it listens, on this machine alone.
        folder: Where it keeps what it shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port), str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    limit = time.monotonic() + _START_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        if _answers("127.0.0.1", port):
            return True
        time.sleep(0.1)
    return False
