"""Find photos of a category in metadata files: the first step from a name to images.

Reads YFCC100M-style tab-separated files (23 or 25 columns; plain, gzip or bzip2), tables made from them
(Parquet, SQLite) and lists of addresses (txt, csv, jsonl), and writes the candidates table, status
`pending`.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare_data.metadata import Photo, ScanCounts
from prepare_data.metadata_duckdb import TEMPORARY, ScanOptions, scan
from prepare_data.query import Query
from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.files import distinct
from wildshape.stage import Provenance, run_reduce
from wildshape.tables import Table, make_record_id
from wildshape.workspace import Workspace

_HASHED_WHOLE = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Search metadata files for photos of a category."""

    metadata: tuple[Path, ...] = ()
    """Metadata files or folders of them; by default all in data/<category>/metadata."""
    limit: int | None = None
    """Keep at most so many photos, the first ones found."""
    sample: int | None = None
    """Keep so many photos, drawn evenly from all that are found."""
    seed: int = 0
    """Seed of the sample."""
    machine_tags: bool = False
    """Look for the words in machine tags too."""
    licenses: tuple[str, ...] = ()
    """Creative Commons licences to keep, such as by by-sa cc0; by default all."""
    explain: bool = False
    """Show what each word brought and took away."""
    memory: str = "2GB"
    """Most memory that the scan of a large file takes."""
    threads: int | None = None
    """Threads of the scan; by default all cores."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("limit", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}: expected at least 1; found {value}")
        if self.limit is not None and self.sample is not None:
            raise UserError("--sample draws from all that is found: give it or --limit, not both")


@dataclass(frozen=True)
class Choice:
    """Which of the photos found are kept, and whether words are counted; as in `Config`."""

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    explain: bool = False


def metadata_files(paths: tuple[Path, ...], workspace: Workspace) -> list[Path]:
    """The files to search, folders expanded, in the order of their names.

    Raises:
        UserError: if there is none.
    """
    files: list[Path] = []
    for path in paths or (workspace.metadata_dir,):
        path = path.expanduser()
        if path.is_dir():
            files += sorted(p for p in path.iterdir() if p.is_file() and p.name[0] not in "._")
        else:
            files.append(path)
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        found = (
            f"no {missing[0]}"
            if missing
            else f"none in {', '.join(map(str, paths or (workspace.metadata_dir,)))}"
        )
        raise UserError(
            f"expected metadata files to search; found {found}; "
            "run: python prepare_data/search_metadata.py "
            f"--category {workspace.category.name} --metadata FILE"
        )
    return files


def fingerprint(path: Path) -> str:
    """A hash that changes with the file: of its content; of size, ends and time if it is huge."""
    stat = path.stat()
    digest = hashlib.sha256(str(stat.st_size).encode())
    with open(path, "rb") as handle:
        if stat.st_size <= _HASHED_WHOLE:
            digest.update(handle.read())
        else:
            digest.update(str(stat.st_mtime_ns).encode() + handle.read(1 << 20))
            handle.seek(-(1 << 20), 2)
            digest.update(handle.read())
    return digest.hexdigest()[:24]


def photo_row(photo: Photo, record_id: str) -> dict[str, Any]:
    """A photo as a row of kind images, not fetched yet."""
    return {
        "record_id": record_id,
        "url": photo.url,
        "source": photo.source,
        "source_id": photo.source_id,
        "width": -1,
        "height": -1,
        "license": photo.license,
        "author": photo.author,
        "page_url": photo.page_url,
        "taken": photo.taken,
        "latitude": photo.latitude,
        "longitude": photo.longitude,
        "status": "pending",
    }


def search(
    files: list[Path], query: Query, choice: Choice, options: ScanOptions
) -> tuple[Table, ScanCounts]:
    """Photos that `query` selects, as a table of kind images with status `pending`.

    The same photo in two files, or on two lines, is taken once.
    """
    counts = ScanCounts(explain=choice.explain)
    rows: dict[str, dict[str, Any]] = {}
    urls: set[str] = set()
    for path in files:
        for photo in scan(path, query, counts, options):
            # Ids in lists of addresses may be anything: numbers within a file, observations of many photos.
            own = None if photo.source == "urls" else photo.source_id
            record_id = make_record_id(photo.source, own or photo.url)
            if record_id in rows or photo.url in urls:
                counts.repeated += 1
                continue
            urls.add(photo.url)
            rows[record_id] = photo_row(photo, record_id)
            if len(rows) == choice.limit:
                break
        if len(rows) == choice.limit:
            break
    counts.selected = len(rows)
    if choice.sample is not None and len(rows) > choice.sample:
        order = sorted(rows, key=lambda name: hashlib.sha256(f"{choice.seed}/{name}".encode()).digest())
        kept = set(order[: choice.sample])
        rows = {name: row for name, row in rows.items() if name in kept}
    return Table.from_rows("images", list(rows.values())), counts


def explanation(counts: ScanCounts, query: Query) -> str:
    """What each word brought, and what each excluding word took away, as text."""
    width = max(len(word) for word in ("word", *query.words, *query.exclude))
    lines = [f"  {'word':<{width}} {'photos':>9} {'by it alone':>12}"]
    lines += [
        f"  {word:<{width}} {counts.by_word[word]:>9} {counts.only_word[word]:>12}" for word in query.words
    ]
    if query.exclude:
        lines.append(f"  {'without':<{width}} {'ruled out':>9} {'by it alone':>12}")
        lines += [
            f"  {word:<{width}} {counts.by_exclude[word]:>9} {counts.only_exclude[word]:>12}"
            for word in query.exclude
        ]
    return "\n".join(lines)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Search, write the candidates table, and return the counts.

    Raises:
        UserError: if there is no metadata, or nothing in it fits the category.
    """
    files = metadata_files(config.metadata, workspace)
    query = Query.of(workspace.category, machine_tags=config.machine_tags, licenses=config.licenses)
    choice = Choice(config.limit, config.sample, config.seed, config.explain)
    workspace.data_dir.mkdir(parents=True, exist_ok=True)
    for left in workspace.data_dir.glob(f"{TEMPORARY}*"):  # of a search that was killed
        shutil.rmtree(left, ignore_errors=True)
    options = ScanOptions(config.memory, config.threads, workspace.data_dir)
    provenance = Provenance(
        "search_metadata",
        {
            "words": query.words,
            "exclude": query.exclude,
            "machine_tags": query.machine_tags,
            "licenses": query.licenses,
            "limit": config.limit,
            **({} if config.sample is None else {"sample": config.sample, "seed": config.seed}),
        },
        dict(zip(distinct([path.name for path in files], "{name} ({number})"), map(fingerprint, files))),
    )
    metrics: dict[str, Any] = {}

    def reduce() -> Table:
        began = time.perf_counter()
        table, counts = search(files, query, choice, options)
        if not len(table):
            raise UserError(
                f"expected photos of {workspace.category.name} ({', '.join(query.words)}); found "
                f"none in {counts.lines} lines of {len(files)} files ({counts.malformed} "
                f"malformed, {counts.excluded} excluded, {counts.license} of other licences); add words to "
                f"{workspace.category.path}"
            )
        seconds = time.perf_counter() - began
        metrics.update({"files": [path.name for path in files], **counts.as_dict()})
        metrics.update({"kept": len(table), "not_sampled": counts.selected - len(table)})
        metrics["seconds"] = round(seconds, 2)
        if config.explain:
            say(explanation(counts, query))
        return table

    out = workspace.table_path("candidates")
    table = run_reduce(reduce, out, provenance, overwrite=config.overwrite)
    if not metrics:
        say(f"search_metadata: {len(table)} photos of {workspace.category.name} (done before)")
        return {"selected": len(table)}
    workspace.write_metrics("search_metadata", metrics)
    parts = ", ".join(
        f"{metrics[key]} {word}"
        for key, word in (
            ("no_word", "without its words"),
            ("excluded", "excluded"),
            ("license", "of other licences"),
            ("videos", "videos"),
            ("repeated", "repeated"),
            ("malformed", "malformed"),
        )
        if metrics[key]
    )
    sampled = f", a sample of {metrics['selected']}," if metrics["selected"] > len(table) else ""
    rate = metrics["lines"] / max(metrics["seconds"], 1e-9)
    summary = f"search_metadata: {len(table)} photos{sampled} of {metrics['lines']} lines"
    say(f"{summary} ({parts})" if parts else summary)
    if metrics["seconds"] > 1:
        say(f"  {metrics['seconds']:.1f} s, {rate:,.0f} lines/s")
    for line in metrics["malformed_lines"]:
        say(f"  malformed: {line}")
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    return script_main(Config, run, argv, prog="wildshape search-metadata")


if __name__ == "__main__":
    sys.exit(main())
