"""Download the photos that were found, verify them, and drop near-duplicates.

Writes the downloads table (a status for every address) and from it the images table (in which
near-duplicates and images of the labelled set are marked).
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare_data.download_ray import Fetches, Fleet, fetch_on_workers
from prepare_data.downloader import DownloadStage, StoreConfig, resume, sweep
from prepare_data.fallbacks import COMMONS, check_kinds
from prepare_data.fetch import USER_AGENT, FetchConfig
from prepare_data.pool import make_pool
from wildshape.cli import CommonConfig, say, script_main
from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.files import atomic_write
from wildshape.near_duplicates import CANDIDATE_DISTANCE, MAX_DISTANCE
from wildshape.stage import (
    MapOptions,
    Provenance,
    fingerprint,
    input_hashes,
    run_map,
    run_reduce,
)
from wildshape.tables import STATUSES, Table, read_facts, read_table
from wildshape.workspace import Workspace

FAILURES = tuple(s for s in STATUSES if s not in ("pending", "ok", "duplicate", "in_labels"))

_IGNORED = "ignore_robots_tag"


@dataclass(frozen=True, kw_only=True)
class Config(EngineOptions, CommonConfig):
    """Download the photos that search_metadata found."""

    concurrency: int = 64
    """Requests in flight at once, of each worker of --engine ray."""
    host_concurrency: int | None = None
    """Of these, requests to one host; by default as many."""
    host_rate: float | None = None
    """Requests a second that one host is asked at most; by default no limit."""
    timeout: float = 30.0
    """Seconds for one attempt at an address."""
    connect_timeout: float = 10.0
    """Seconds to connect."""
    retries: int = 4
    """Further attempts at an address that fails for a passing reason."""
    max_retry_after: float = 120.0
    """Longest wait in seconds that a server may ask for with Retry-After."""
    max_megabytes: float = 32.0
    """Largest file to accept."""
    min_side: int = 64
    """Least length in pixels of an image's shorter side."""
    max_distance: int = MAX_DISTANCE
    """Bits of the perceptual hash, out of 64, by which near-duplicates may differ."""
    user_agent: str = USER_AGENT
    """How to introduce ourselves to servers; say here how you can be reached."""
    ignore_robots_tag: bool = False
    """Also keep images whose X-Robots-Tag header says noai or noindex."""
    fallbacks: tuple[str, ...] = ()
    """Other addresses for photos that are gone: flickr (its other sizes), commons (the mirror)."""
    commons_base: str = COMMONS
    """Address of the mirror."""
    retry_failed: tuple[str, ...] | None = None
    """Fetch the failures of an earlier run again: all, or those of some statuses."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        least = {"concurrency": 1, "retries": 0, "timeout": 0.001, "min_side": 1, "max_distance": 0}
        least |= {"host_concurrency": 1, "host_rate": 0.001, "connect_timeout": 0.001}
        for name, value in least.items():
            found = getattr(self, name)
            if found is not None and not found >= value:
                raise UserError(f"--{name}: expected at least {value}; found {found}")
        if self.engine == "local" and self.num_workers is not None:
            raise UserError(
                "--num_workers: expected together with --engine ray; found the local engine, which has "
                "--concurrency"
            )
        check_kinds(self.fallbacks)
        for status in self.retry_failed or ():
            if status != "all" and status not in FAILURES:
                raise UserError(
                    f"--retry_failed: expected all, or some of {', '.join(FAILURES)}; found {status}"
                )

    @property
    def fetch(self) -> FetchConfig:
        """How to fetch."""
        return FetchConfig(
            concurrency=self.concurrency,
            host_concurrency=self.host_concurrency,
            host_rate=self.host_rate,
            timeout=self.timeout,
            connect_timeout=self.connect_timeout,
            retries=self.retries,
            max_retry_after=self.max_retry_after,
            max_bytes=int(self.max_megabytes * 1e6),
            user_agent=self.user_agent,
            heed_robots_tag=not self.ignore_robots_tag,
        )

    @property
    def overwrites(self) -> bool:
        """Whether tables that other settings or failures left may be replaced."""
        return self.overwrite or self.retried is not None

    @property
    def retried(self) -> tuple[str, ...] | None:
        """Statuses to fetch again; None if that was not asked for."""
        if self.retry_failed is None:
            return None
        return FAILURES if not self.retry_failed or "all" in self.retry_failed else self.retry_failed


def differs(out: Path, provenance: Provenance) -> bool:
    """Whether a table is there that other settings made."""
    return out.exists() and fingerprint(read_facts(out)["provenance"]) != provenance.fingerprint


def finish_pool(downloads: Table, workspace: Workspace, max_distance: int, *, overwrite: bool) -> Table:
    """Write the images table: the downloads with near-duplicates and labelled images marked."""
    images = run_reduce(
        lambda: make_pool(downloads, workspace, max_distance),
        workspace.table_path("images"),
        pool_provenance(workspace, max_distance),
        overwrite=overwrite,
    )
    if (distance := images.meta["near_duplicates"]["pool_distance"]) < CANDIDATE_DISTANCE:
        say(
            f"near-duplicates: with {len(images)} images only those within {max(distance, max_distance)} "
            f"bits of another were looked for, not {CANDIDATE_DISTANCE}; those of labelled images all were"
        )
    return images


def pool_provenance(workspace: Workspace, max_distance: int) -> Provenance:
    """What the images table depends on."""
    labelled = workspace.table_path("labelled_images")
    inputs = [workspace.table_path("downloads"), *([labelled] if labelled.exists() else [])]
    hashes = input_hashes(workspace.root, *inputs)
    settings = {"max_distance": max_distance, "candidate_distance": CANDIDATE_DISTANCE}
    return Provenance("download_images", settings, hashes)


def write_attribution(images: Table, path: Path) -> int:
    """Write author, licence and page of every usable image as CSV, ready to publish; returns how many.

    A file that says the same already is left as it is.
    """
    rows = [row for row in images.rows() if row["status"] == "ok"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "author", "license", "page", "address", "source", "id"))
    for row in rows:
        page = row["page_url"] or row["url"]
        address = row["fetched_url"] or row["url"]
        writer.writerow(
            (row["path"], row["author"], row["license"], page, address, row["source"], row["source_id"])
        )
    data = text.getvalue().encode()
    if not path.exists() or path.read_bytes() != data:
        with atomic_write(path) as handle:
            handle.write(data)
    return len(rows)


def by_status(table: Table) -> dict[str, int]:
    """Rows by status, in the order of `STATUSES`."""
    counts = Counter(table["status"])
    return {status: counts[status] for status in STATUSES if counts[status]}


def download(config: Config, workspace: Workspace, provenance: Provenance) -> tuple[Table, Fetches | None]:
    """Run the download stage; returns the downloads table and, if there was work, how much."""
    engine = config.engine_options
    candidates = workspace.load("candidates", "download_images")
    out = workspace.table_path("downloads")
    place = StoreConfig(
        workspace.root,
        workspace.images_dir,
        out.with_suffix(".journal.jsonl"),
        config.min_side,
        config.fallbacks,
        config.commons_base,
        not config.ignore_robots_tag,
    )
    stages: list[DownloadStage] = []
    elsewhere = Fetches()

    def known_results() -> dict[str, dict[str, Any]]:
        finished = read_table(out, "images").rows() if out.exists() else ()
        if place.heed_robots_tag and out.exists() and read_facts(out)["provenance"]["config"].get(_IGNORED):
            finished = ()
        return resume(place, provenance.fingerprint, finished, config.retried)

    def factory() -> DownloadStage:
        nonlocal elsewhere
        sweep(place.images_dir)
        known = known_results()
        rest = candidates.take([row for row, key in enumerate(candidates["record_id"]) if key not in known])
        if engine.engine == "ray" and len(rest):
            scratch = out.with_suffix(".parts") / "ray"
            elsewhere = fetch_on_workers(
                rest, Fleet(config.fetch, place, provenance.fingerprint, engine, scratch)
            )
            known = known_results()
        stages.append(DownloadStage(config.fetch, place, known, list(candidates.rows())))
        return stages[0]

    # downloads that are as they should be are not made again when only the pool is out of date
    only_pool = (
        config.retried is None
        and out.exists()
        and not differs(out, provenance)
        and workspace.table_path("images").exists()
        and differs(workspace.table_path("images"), pool_provenance(workspace, config.max_distance))
    )
    options = MapOptions(overwrite=config.overwrites and not only_pool, title="download_images")
    try:
        table = run_map(factory, candidates, out, "images", provenance, options=options)
    finally:
        for stage in stages:
            stage.close()
    place.journal.unlink(missing_ok=True)
    if not stages:
        return table, None
    stage = stages[0]
    return table, Fetches(elsewhere.fetched + stage.fetched, elsewhere.bytes + stage.bytes)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Download, write the downloads and images tables, and return the counts by status.

    Raises:
        UserError: if nothing was searched, no address gave an image, or the tables were made with
            other settings.
    """
    candidates = workspace.require(
        workspace.table_path("candidates"), workspace.made_by("candidates"), "download_images"
    )
    settings: dict[str, Any] = {"min_side": config.min_side, "max_megabytes": config.max_megabytes}
    if config.ignore_robots_tag:
        settings[_IGNORED] = True
    if config.fallbacks:
        settings["fallbacks"] = sorted(config.fallbacks)
    if "commons" in config.fallbacks:
        settings["commons_base"] = config.commons_base
    provenance = Provenance("download_images", settings, input_hashes(workspace.root, candidates))
    start = time.perf_counter()
    downloads, work = download(config, workspace, provenance)
    seconds = time.perf_counter() - start
    images = finish_pool(downloads, workspace, config.max_distance, overwrite=config.overwrites)
    write_attribution(images, workspace.data_dir / "attribution.csv")
    metrics: dict[str, Any] = {"addresses": len(images), "by_status": by_status(images)}
    metrics["near_duplicates"] = images.meta["near_duplicates"]
    if work is not None:
        metrics |= {
            "fetched": work.fetched,
            "bytes": work.bytes,
            "seconds": round(seconds, 3),
            "addresses_per_second": round(work.fetched / seconds, 1),
        }
    workspace.write_metrics("download_images", metrics)
    counts = ", ".join(f"{count} {status}" for status, count in metrics["by_status"].items())
    rate = f"; {work.fetched} fetched in {seconds:.1f} s" if work else " (done before)"
    say(f"download_images: {len(images)} addresses: {counts}{rate}")
    if "ok" not in metrics["by_status"]:
        errors = Counter(error for error in images["error"] if error).most_common(1)
        raise UserError(
            f"expected images from {len(images)} addresses; found none ({counts}; most often: "
            f"{errors[0][0] if errors else 'no reason'}); try again with --overwrite"
        )
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    return script_main(Config, run, argv, prog="wildshape download-images")


if __name__ == "__main__":
    sys.exit(main())
