"""How a stage runs: shards, resume, progress, and the refusal to mix settings.

A Map stage turns rows into rows, shard by shard; a Reduce stage turns whole tables into one. (The third
kind, Train, is in `wildshape.training`.)
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wildshape.errors import UserError
from wildshape.files import file_hash, read_json, write_json
from wildshape.tables import SCHEMAS, Table, concat, read_facts, read_table, table_hash, write_table


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("wildshape")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True)
class Provenance:
    """What makes an artefact what it is.

    Attributes:
        stage: The command's name.
        config: Settings that change the result, JSON-able.
        inputs: Content hash of every input, by its path relative to the data root.
    """

    stage: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As stored beside and inside the artefact, with the package's version."""
        plain = json.loads(json.dumps([dict(self.config), dict(self.inputs)], default=str))
        return {
            "stage": self.stage,
            "config": plain[0],
            "inputs": plain[1],
            "version": package_version(),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of stage, configuration and inputs (not of the package's version)."""
        return fingerprint(self.as_dict())


def fingerprint(provenance: Mapping[str, Any]) -> str:
    """Hash of a stored provenance, its version left out."""
    parts = [provenance.get(key) for key in ("stage", "config", "inputs")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def input_hashes(root: Path, *paths: Path) -> dict[str, str]:
    """Content hash of files by path relative to `root`; tables by content, others by bytes."""
    hashes = {}
    for path in paths:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        hashes[name] = table_hash(path) if path.suffix == ".parquet" else file_hash(path)
    return hashes


def describe_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In a few words, how two provenances differ."""
    if old.get("stage") != new.get("stage"):
        return f"made by {old.get('stage')}, now {new.get('stage')}"
    changes = []
    before, after = old.get("config") or {}, new.get("config") or {}
    for key in sorted(set(before) | set(after)):
        if before.get(key) != after.get(key):
            changes.append(f"{key}={before.get(key)} then, {after.get(key)} now")
    before, after = old.get("inputs") or {}, new.get("inputs") or {}
    for key in sorted(set(before) | set(after)):
        if before.get(key) != after.get(key):
            changes.append(f"{key} has changed since")
    return "; ".join(changes) or "made by an older layout"


def progress(
    items: Iterable[Any] | None = None,
    title: str = "",
    *,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
) -> tqdm:
    """A progress bar with rate and time left, silent when stderr is no terminal."""
    return tqdm(
        items,
        desc=title,
        total=total,
        unit=unit,
        initial=initial,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    )


class MapStage:
    """Rows in, 0..n rows out each. Built once per worker.

    `prepare` does one row's work that needs no model (read, decode, crop) and may run in loader
    processes; `__call__` takes a batch of prepared rows as columns and returns columns of the output
    table. Columns whose cells differ in shape are object arrays.
    """

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """One prepared row; by default the row itself."""
        return row

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Columns of the output table for a batch of prepared rows."""
        raise TypeError(f"{type(self).__name__} defines no __call__")


@dataclass(frozen=True)
class MapOptions:
    """How to run a Map stage; none of this changes its result.

    Attributes:
        shard_size: Rows a shard: what a killed stage may have to do again.
        batch_size: Rows a call.
        workers: Loader processes that run `prepare`; 0 runs it in this one.
        overwrite: Whether a table made with other settings may be replaced.
        title: Shown by the progress bar.
    """

    shard_size: int = 256
    batch_size: int = 32
    workers: int = 0
    overwrite: bool = False
    title: str = ""


def up_to_date(out: Path, provenance: Provenance, *, overwrite: bool = False) -> bool:
    """Whether `out` is there and was made with this provenance.

    Raises:
        UserError: if it was made with another one and may not be overwritten.
    """
    if not out.exists():
        return False
    old = read_facts(out)["provenance"]
    same = fingerprint(old) == provenance.fingerprint
    if not same and not overwrite:
        # What lies under data/ is shared by all runs of a root.
        elsewhere = "--name for another run" if "runs" in out.parts else "--data-root for another place"
        raise UserError(
            f"{out.name} exists with other settings ({describe_change(old, provenance.as_dict())}); "
            f"add --overwrite to replace it, or {elsewhere}"
        )
    return same and not overwrite


def _manifest_path(out: Path) -> Path:
    return out.with_suffix(".manifest.json")


def publish(table: Table, out: Path, provenance: Provenance) -> Table:
    """Write a finished table and, beside it, the manifest that people read."""
    write_table(table, out, provenance.as_dict())
    write_json(_manifest_path(out), {**provenance.as_dict(), "rows": len(table), "table": out.name})
    return table


def run_reduce(
    function: Callable[[], Table], out: Path, provenance: Provenance, *, overwrite: bool = False
) -> Table:
    """Run a Reduce stage: whole tables in, a table out; skipped when it is up to date.

    Raises:
        UserError: if `out` was made with other settings.
    """
    if up_to_date(out, provenance, overwrite=overwrite):
        return read_table(out, read_facts(out)["kind"])
    return publish(function(), out, provenance)


def run_map(
    factory: Callable[[], MapStage],
    rows: Table,
    out: Path,
    kind: str,
    provenance: Provenance,
    *,
    options: MapOptions = MapOptions(),
    meta: Mapping[str, Any] | None = None,
) -> Table:
    """Run a Map stage over a table.

    Finished shards lie in `<out>.parts/`; a run that was killed continues after the last of them. At the
    end they are joined, moved to `out`, and removed.

    Args:
        factory: Makes the stage; called only if there is work.
        rows: The input table.
        out: The output table's path.
        kind: The output table's kind.
        provenance: What the result depends on.
        options: How to run.
        meta: Facts stored with the output table.

    Returns:
        The output table, in the order of the input rows.

    Raises:
        UserError: if `out`, or an unfinished run of it, was made with other settings.
    """
    parts = out.with_suffix(".parts")
    resuming = _same_unfinished(parts, provenance, options.overwrite)
    if not resuming and up_to_date(out, provenance, overwrite=options.overwrite):
        return read_table(out, kind)
    parts.mkdir(parents=True, exist_ok=True)
    if resuming:  # shards that exist keep their size, whatever is asked for now
        options = replace(options, shard_size=read_json(parts / "manifest.json")["shard_size"])
    else:
        write_json(parts / "manifest.json", {**provenance.as_dict(), "shard_size": options.shard_size})
    starts = list(range(0, len(rows), options.shard_size))
    names = {start: parts / f"shard-{start:09d}.parquet" for start in starts}
    todo = [start for start in starts if not names[start].exists()]
    if todo:
        _fill_shards(factory(), rows, todo, names, kind, dict(meta or {}), options)
    tables = [read_table(names[start], kind) for start in starts]
    table = concat(tables) if tables else Table.empty(kind, **dict(meta or {}))
    publish(table, out, provenance)
    _drop(parts)
    return table


def _drop(parts: Path) -> None:
    # The manifest goes first: without it, what a kill in here leaves is no unfinished run.
    (parts / "manifest.json").unlink()
    shutil.rmtree(parts)


def _same_unfinished(parts: Path, provenance: Provenance, overwrite: bool) -> bool:
    manifest = parts / "manifest.json"
    if not manifest.exists():
        shutil.rmtree(parts, ignore_errors=True)
        return False
    old = read_json(manifest)
    if fingerprint(old) == provenance.fingerprint:
        return True
    if not overwrite:
        raise UserError(
            f"an unfinished {parts.stem}.parquet exists with other settings "
            f"({describe_change(old, provenance.as_dict())}); add --overwrite to drop it"
        )
    _drop(parts)
    return False


def _fill_shards(
    stage: MapStage,
    rows: Table,
    todo: Sequence[int],
    names: Mapping[int, Path],
    kind: str,
    meta: Mapping[str, Any],
    options: MapOptions,
) -> None:
    batches: list[tuple[int, list[int]]] = []
    for start in todo:
        stop = min(start + options.shard_size, len(rows))
        for first in range(start, stop, options.batch_size):
            batches.append((start, list(range(first, min(first + options.batch_size, stop)))))
    collected: list[Table] = []
    bar = progress(title=options.title, total=len(rows), unit="row", initial=len(rows) - _rows_in(batches))
    prepared = _prepared_batches(stage, rows, [index for _, index in batches], options.workers)
    with bar:
        for number, ((start, index), batch) in enumerate(zip(batches, prepared)):
            columns = stage(batch)
            if len(columns[next(iter(SCHEMAS[kind]))]):
                collected.append(Table(kind, columns, meta))
            bar.update(len(index))
            last = number + 1 == len(batches) or batches[number + 1][0] != start
            if last:
                shard = concat(collected) if collected else Table(kind, columns, meta)
                write_table(shard, names[start])
                collected = []


def _rows_in(batches: Sequence[tuple[int, list[int]]]) -> int:
    return sum(len(index) for _, index in batches)


def _row(rows: Table, index: int) -> dict[str, Any]:
    return {name: column[index] for name, column in rows.columns.items()}


def as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows to columns; cells that are arrays of one shape are stacked, others become objects."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        shapes = {np.shape(value) for value in values}
        uniform = len(shapes) == 1 and all(
            isinstance(value, np.ndarray | np.generic | int | float) for value in values
        )
        if uniform:
            columns[name] = np.stack([np.asarray(value) for value in values])
        else:
            columns[name] = np.empty(len(values), dtype=object)
            for position, value in enumerate(values):
                columns[name][position] = value
    return columns


class _Rows:
    """Rows as a map-style dataset whose items are prepared."""

    def __init__(self, stage: MapStage, rows: Table) -> None:
        self.stage, self.rows = stage, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        try:
            return self.stage.prepare(_row(self.rows, index))
        except UserError as error:  # the loader would wrap its message in a traceback
            return error


def _join(rows: Sequence[Any]) -> Any:
    return next((row for row in rows if isinstance(row, UserError)), None) or as_columns(rows)


def _prepared_batches(
    stage: MapStage, rows: Table, batches: Sequence[list[int]], workers: int
) -> Iterator[dict[str, np.ndarray]]:
    if workers == 0:
        for index in batches:
            yield as_columns([stage.prepare(_row(rows, i)) for i in index])
        return
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _Rows(stage, rows),  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_join,
        prefetch_factor=4,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
