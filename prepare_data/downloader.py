"""The download stage: addresses in, image files and a status for each address out."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from prepare_data.fallbacks import COMMONS, fallbacks
from prepare_data.fetch import FetchConfig, Fetched, Fetcher
from prepare_data.imagefile import BadImage, inspect_image
from prepare_data.journal import Journal, read_journal, rewrite_journal
from wildshape.files import atomic_path
from wildshape.stage import MapStage

_AHEAD = 4096
_STORING = 16  # threads: they wait for the disk more than they decode
_RESULT = ("image_id", "path", "width", "height", "phash", "fetched_url", "status", "error")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.\w+")
_HEADER, _HEEDED = "settings", "robots_tag_heeded"
# The photo is gone from its address, rather than slow, limited or forbidden.
_GONE = ("not_found", "http_error", "connection", "placeholder")
_PLACEHOLDER = re.compile(r"(photo|image)[_-]?(un|not[_-]?)available", re.IGNORECASE)


@dataclass(frozen=True)
class StoreConfig:
    """Where images go, and which.

    Attributes:
        root: The data root, which paths in the table are relative to.
        images_dir: Folder of the images: `<ab>/<image_id>.<suffix>` in it.
        journal: File that records every finished address.
        min_side: Least length in pixels of an image's shorter side.
        fallbacks: Which other addresses to try for a photo whose own is dead (`fallbacks.KINDS`).
        commons_base: Address of the mirror among them.
        heed_robots_tag: Whether images that X-Robots-Tag forbids are left out.
    """

    root: Path
    images_dir: Path
    journal: Path
    min_side: int = 64
    fallbacks: tuple[str, ...] = ()
    commons_base: str = COMMONS
    heed_robots_tag: bool = True


def store(
    record_id: str, fetched: Fetched, config: StoreConfig, journal: Journal, fetched_url: str | None = None
) -> dict[str, Any]:
    """Verify an image, write it and record it; returns its result columns.

    `fetched_url` is its address, where it is not the photo's own.

    The record goes before the file's final name: a file that is there is always on record, so a
    kill at any point never leads to fetching an image again whose file is there.
    """
    try:
        facts = inspect_image(fetched.body, config.min_side)
    except BadImage as error:
        return _record(journal, record_id, _failure(error.status, str(error)))
    name = f"{facts.image_id}{facts.suffix}"
    path = config.images_dir / facts.image_id[1:3] / name
    result = {
        "image_id": facts.image_id,
        "path": path.relative_to(config.root).as_posix(),
        "width": facts.width,
        "height": facts.height,
        "phash": facts.phash,
        "fetched_url": fetched_url,
        "status": "ok",
        "error": None,
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(fetched.body)
        _record(journal, record_id, result)
    return result


def _record(journal: Journal, record_id: str, result: dict[str, Any]) -> dict[str, Any]:
    journal.append({"record_id": record_id, **result})
    return result


def _failure(status: str, error: str | None) -> dict[str, Any]:
    return {
        "image_id": None,
        "path": None,
        "width": -1,
        "height": -1,
        "phash": None,
        "fetched_url": None,
        "status": status,
        "error": error,
    }


def resume(
    config: StoreConfig,
    settings: str,
    finished: Iterable[Mapping[str, Any]] = (),
    retried: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Results that need not be fetched again, by record id; starts the journal with them.

    Kept are images whose file is there, from an unfinished run or from a finished table, and the
    failures of an unfinished run with the same settings. Nothing is kept of a run that took images which
    X-Robots-Tag forbids if this one leaves them out. The journals of a run's workers are joined with the
    one they belong to.

    Args:
        config: Where images and the journal are.
        settings: Fingerprint of the run's settings.
        finished: Rows of an earlier downloads table.
        retried: Statuses of it that are to be fetched again; None means all failures.
    """
    old: dict[str, dict[str, Any]] = {}
    current: set[str] = set()  # of these settings
    parts = sorted(config.journal.parent.glob(f"{config.journal.stem}-*{config.journal.suffix}"))
    for journal in (config.journal, *parts):
        records = read_journal(journal, "record_id")
        header = records.pop("", {})
        if config.heed_robots_tag and not header.get(_HEEDED, True):
            continue
        if header.get(_HEADER) == settings:
            current |= records.keys()
        old |= records
    rows = [{"record_id": row["record_id"], **{k: row[k] for k in _RESULT}} for row in finished]
    known: dict[str, dict[str, Any]] = {}
    for row in [*rows, *old.values()]:
        row = {key: int(value) if key in ("width", "height") else value for key, value in row.items()}
        if row["status"] == "ok":
            small = min(row["width"], row["height"]) < config.min_side
            keep = not small and _is_there(config.root / str(row["path"]))
        else:
            settled = retried is not None and row["status"] not in retried
            keep = settled or row["record_id"] in current
        if keep:
            known[row["record_id"]] = row
    header = {"record_id": "", _HEADER: settings, _HEEDED: config.heed_robots_tag}
    rewrite_journal(config.journal, [header, *known.values()])
    for part in parts:
        part.unlink()
    return {key: {name: row.get(name) for name in _RESULT} for key, row in known.items()}


def journal_part(journal: Path, number: int) -> Path:
    """The journal of one of a run's workers."""
    return journal.with_name(f"{journal.stem}-{number:04d}{journal.suffix}")


def _is_there(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def sweep(images_dir: Path) -> int:
    """Remove the half-written files that a killed run left; returns how many."""
    left = [path for path in images_dir.glob("*/.*") if _TEMPORARY.fullmatch(path.name)]
    for path in left:
        path.unlink()
    return len(left)


def is_placeholder(fetched: Fetched) -> bool:
    """Whether a server answered with its picture for photos that are gone (Flickr redirects to one)."""
    name = urlsplit(fetched.url or "").path.rpartition("/")[2]
    return fetched.status == "ok" and _PLACEHOLDER.search(name) is not None


class DownloadStage(MapStage):
    """Images rows with an address in, the same rows with a status and, for images, a file out.

    Requests run in a thread of their own, ahead of the batch that is asked for, so that a slow
    address holds up no others.

    Args:
        fetch: How to fetch.
        config: Where to store.
        known: Results that are there already, by record id.
        ahead: All rows that will come, in their order; without it, only the batch's own requests
            run at once.
    """

    def __init__(
        self,
        fetch: FetchConfig,
        config: StoreConfig,
        known: Mapping[str, Mapping[str, Any]] | None = None,
        ahead: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._fetch, self._config, self._known = fetch, config, known or {}
        self._ahead = ahead
        self._places = {row["record_id"]: place for place, row in enumerate(ahead)}
        self._next = 0
        self._pending: dict[str, Future[dict[str, Any]]] = {}
        self._journal = Journal(config.journal)
        self._pool = ThreadPoolExecutor(_STORING, thread_name_prefix="store")
        self._loop = asyncio.new_event_loop()
        self._fetcher: Fetcher | None = None
        self._bodies = 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.fetched = 0
        self.bytes = 0

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The batch's rows, done."""
        rows = list(zip(batch["record_id"], batch["url"]))
        for record_id, url in rows:
            self._submit(record_id, url)
        self._submit_ahead(rows[-1][0])
        results = [self._pending.pop(record_id).result() for record_id, _ in rows]
        return {**batch, **{name: [result[name] for result in results] for name in _RESULT}}

    def _submit_ahead(self, last: str) -> None:
        self._next = max(self._next, self._places.get(last, len(self._ahead)) + 1)
        while self._next < len(self._ahead) and len(self._pending) < _AHEAD:
            row = self._ahead[self._next]
            self._submit(row["record_id"], row["url"])
            self._next += 1

    def _submit(self, record_id: str, url: str | None) -> None:
        if record_id in self._pending:
            return
        if record_id in self._known:
            future: Future[dict[str, Any]] = Future()
            future.set_result(dict(self._known[record_id]))
        else:
            future = asyncio.run_coroutine_threadsafe(self._one(record_id, url), self._loop)
        self._pending[record_id] = future

    async def _one(self, record_id: str, url: str | None) -> dict[str, Any]:
        if self._fetcher is None:
            self._room = asyncio.Event()
            self._room.set()
            self._fetcher = await Fetcher(self._fetch, self._room.wait).__aenter__()
        if url is None:
            return _record(self._journal, record_id, _failure("http_error", "expected an address"))
        fetched = await self._get(url)
        found = None
        if fetched.status in _GONE:
            for other in fallbacks(url, self._config.fallbacks, self._config.commons_base):
                again = await self._get(other)
                if again.status == "ok":
                    fetched, found = again, other
                    break
        if fetched.status != "ok":
            return _record(self._journal, record_id, _failure(fetched.status, fetched.error))
        arguments = (record_id, fetched, self._config, self._journal, found)
        self._count_bodies(1)
        try:
            return await self._loop.run_in_executor(self._pool, store, *arguments)
        finally:
            self._count_bodies(-1)

    def _count_bodies(self, more: int) -> None:
        """What is fetched and not yet decoded stays in memory: with so much, no request starts."""
        self._bodies += more
        if self._bodies < 4 * self._fetch.concurrency:
            self._room.set()
        else:
            self._room.clear()

    async def _get(self, url: str) -> Fetched:
        assert self._fetcher is not None
        fetched = await self._fetcher.get(url)
        self.fetched += 1
        self.bytes += len(fetched.body)
        if is_placeholder(fetched):
            return replace(fetched, status="placeholder", body=b"", error=f"answered by {fetched.url}")
        return fetched

    def close(self) -> None:
        """Stop all requests; what is being written is finished."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._pool.shutdown(wait=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._journal.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._fetcher is not None:
            await self._fetcher.__aexit__(None, None, None)
