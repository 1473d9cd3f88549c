"""Downloading on a Ray cluster: every host belongs to one worker, which keeps to its limits.

Each worker runs the `DownloadStage` over its hosts' addresses and records what it finished in a journal of
its own. `resume` joins the journals, and the table is made from them as after a resumed download.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from prepare_data.downloader import DownloadStage, StoreConfig, journal_part, resume
from prepare_data.fetch import FetchConfig
from wildshape.engine import EngineOptions
from wildshape.stage import progress
from wildshape.tables import Table, read_table, write_table

_BATCH = 16


@dataclass(frozen=True)
class Fleet:
    """What is to be fetched, and how.

    Attributes:
        fetch: How each worker fetches.
        place: Where images and the journal are.
        settings: Fingerprint of the run's settings.
        engine: The cluster and its workers.
        scratch: A folder for the run's inputs that all workers see.
    """

    fetch: FetchConfig
    place: StoreConfig
    settings: str
    engine: EngineOptions
    scratch: Path


@dataclass(frozen=True)
class Fetches:
    """How many requests were made, and how many bytes came."""

    fetched: int = 0
    bytes: int = 0


def host_of(url: str | None) -> str:
    """The host of an address, as limits count it; "" for what is no address."""
    try:
        return urlsplit(url or "").netloc
    except ValueError:
        return ""


def by_host(urls: Sequence[str | None], count: int) -> list[np.ndarray]:
    """Places of addresses in at most `count` parts of about equal size, all of one host in one part.

    Args:
        urls: Addresses; None where there is none.
        count: How many parts.

    Returns:
        For each part the places [n] of its addresses, rising; none is empty.
    """
    hosts: dict[str, list[int]] = {}
    for place, url in enumerate(urls):
        hosts.setdefault(host_of(url), []).append(place)
    parts: list[list[int]] = [[] for _ in range(min(count, len(hosts)))]
    for _, places in sorted(hosts.items(), key=lambda item: (-len(item[1]), item[0])):
        min(parts, key=len).extend(places)
    return [np.array(sorted(part)) for part in parts]


@dataclass(frozen=True)
class PartWork:
    """Downloads one part after another, in a worker.

    Attributes:
        fleet: What is to be fetched, and how.
        tell: Called with the number of addresses that were finished since the last call.
    """

    fleet: Fleet
    tell: Callable[[int], Any] | None = None

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Download the rows of one part, but those that a worker that died has finished."""
        table = read_table(job["rows"], "images")
        place = replace(self.fleet.place, journal=Path(job["journal"]))
        known = resume(place, self.fleet.settings)
        stage = DownloadStage(self.fleet.fetch, place, known, list(table.rows()))
        try:
            for start in range(0, len(table), _BATCH):
                batch = {name: table[name][start : start + _BATCH] for name in ("record_id", "url")}
                stage(batch)
                if self.tell is not None:
                    self.tell(len(batch["url"]))
        finally:
            stage.close()
        return {"fetched": stage.fetched, "bytes": stage.bytes}


@dataclass(frozen=True)
class PartFactory:
    """Makes the `PartWork` of a worker; `counter` is the actor that counts for the progress bar."""

    fleet: Fleet
    counter: Any = None

    def __call__(self) -> PartWork:
        """Build it."""
        counter = self.counter
        return PartWork(self.fleet, None if counter is None else lambda count: counter.add.remote(count))


class Counter:
    """A sum that workers add to."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, count: int) -> None:
        """Add to it."""
        self._total += count

    def total(self) -> int:
        """The sum."""
        return self._total


@contextmanager
def _counted(ray: Any, total: int) -> Iterator[Any]:
    """A progress bar that shows what an actor counts; without a terminal there is neither."""
    with progress(title="download_images", total=total, unit="row") as bar:
        if bar.disable:
            yield None
            return
        counter = ray.remote(num_cpus=0)(Counter).remote()
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(1.0):
                bar.update(min(ray.get(counter.total.remote()), total) - bar.n)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield counter
        finally:
            stop.set()
            thread.join()
            ray.kill(counter)


def fetch_on_workers(rows: Table, fleet: Fleet) -> Fetches:
    """Download rows on the workers of a cluster; the results lie in the journals beside the fleet's.

    Raises:
        UserError: if there is no such cluster, or a worker does not see the data root.
    """
    from wildshape import engine_ray

    fetch = fleet.fetch
    with engine_ray.connected(fleet.engine) as ray, engine_ray.scratch_folder(fleet.scratch) as scratch:
        workers = engine_ray.choose_workers(ray.cluster_resources(), fleet.engine, "cpu")
        count = workers.count
        if "commons" in fleet.place.fallbacks:  # a host that every worker may ask
            count = min(count, fetch.host_concurrency or count)
        parts = by_host(list(rows["url"]), count)
        if "commons" in fleet.place.fallbacks:
            shared = (host_of(fleet.place.commons_base),)
            fleet = replace(fleet, fetch=replace(fetch, shared_hosts=shared, sharers=len(parts)))
        jobs = []
        for number, part in enumerate(parts):
            path = scratch / f"part-{number:04d}.parquet"
            write_table(rows.take(part), path)
            jobs.append(
                {
                    "key": number,
                    "title": f"part {number} of the addresses",
                    "rows": str(path),
                    "journal": str(journal_part(fleet.place.journal, number)),
                }
            )
        fetched = received = 0
        with _counted(ray, len(rows)) as counter:
            make = PartFactory(fleet, counter)
            for result in engine_ray.run_jobs(ray, make, jobs, replace(workers, count=count), scratch):
                fetched += result["fetched"]
                received += result["bytes"]
    return Fetches(fetched, received)
