"""Find photos of a category in metadata files: the first step from a name to images.

Reads YFCC100M-style tab-separated files (23 or 25 columns; plain, gzip or bzip2) and lists of
addresses (txt, csv, jsonl), and writes the candidates table, status `pending`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare_data.metadata import Query, ScanCounts, scan
from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
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
        found = f"no {missing[0]}" if missing else f"none in {workspace.metadata_dir}"
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


def search(files: list[Path], query: Query, limit: int | None = None) -> tuple[Table, ScanCounts]:
    """Photos that `query` selects, as a table of kind images with status `pending`.

    The same photo in two files, or on two lines, is taken once.
    """
    counts = ScanCounts()
    rows: dict[str, dict[str, Any]] = {}
    urls: set[str] = set()
    for path in files:
        for photo in scan(path, query, counts):
            record_id = make_record_id(photo.source, photo.source_id or photo.url)
            if record_id in rows or photo.url in urls:
                counts.repeated += 1
                continue
            urls.add(photo.url)
            rows[record_id] = {
                "record_id": record_id,
                "url": photo.url,
                "source": photo.source,
                "source_id": photo.source_id,
                "width": -1,
                "height": -1,
                "license": photo.license,
                "author": photo.author,
                "page_url": photo.page_url,
                "status": "pending",
            }
            if len(rows) == limit:
                break
        if len(rows) == limit:
            break
    counts.selected = len(rows)
    return Table.from_rows("images", list(rows.values())), counts


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Search, write the candidates table, and return the counts.

    Raises:
        UserError: if there is no metadata, or nothing in it fits the category.
    """
    if config.limit is not None and config.limit < 1:
        raise UserError(f"--limit: expected at least 1; found {config.limit}")
    files = metadata_files(config.metadata, workspace)
    query = Query.of(workspace.category)
    provenance = Provenance(
        "search_metadata",
        {"words": query.words, "exclude": query.exclude, "limit": config.limit},
        {path.name: fingerprint(path) for path in files},
    )
    metrics: dict[str, Any] = {}

    def reduce() -> Table:
        table, counts = search(files, query, config.limit)
        if not len(table):
            raise UserError(
                f"expected photos of {workspace.category.name} ({', '.join(query.words)}); found "
                f"none in {counts.lines} lines of {len(files)} files ({counts.malformed} "
                f"malformed, {counts.excluded} excluded); add words to {workspace.category.path}"
            )
        metrics.update({"files": [path.name for path in files], **counts.as_dict()})
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
            ("videos", "videos"),
            ("repeated", "repeated"),
            ("malformed", "malformed"),
        )
        if metrics[key]
    )
    summary = f"search_metadata: {len(table)} photos of {metrics['lines']} lines"
    say(f"{summary} ({parts})" if parts else summary)
    for line in metrics["malformed_lines"]:
        say(f"  malformed: {line}")
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    return script_main(Config, run, argv, prog="wildshape search-metadata")


if __name__ == "__main__":
    sys.exit(main())
