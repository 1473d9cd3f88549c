"""What a Map stage is, and the local way to run one, in this process and loader processes of it.

`wildshape.stage.run_map` decides which shards are to be filled; `fill_shards` fills them here, and
`wildshape.engine_ray` on the workers of a cluster.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.files import atomic_write
from wildshape.processes import is_first_process
from wildshape.tables import SCHEMAS, Table, concat, write_table


def progress(
    items: Iterable[Any] | None = None,
    title: str = "",
    *,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
) -> tqdm:
    """A progress bar with rate and time left, silent when stderr is no terminal.

    Of processes that train together the first shows it.
    """
    return tqdm(
        items,
        desc=title,
        total=total,
        unit=unit,
        initial=initial,
        disable=not (sys.stderr.isatty() and is_first_process()),
        dynamic_ncols=True,
        leave=False,
    )


class MapStage:
    """Rows in, 0..n rows out each. Built once per worker.

    `prepare` does one row's work that needs no model (read, decode, crop) and may run in loader
    processes; `__call__` takes a batch of prepared rows as columns and returns columns of the output
    table. Columns whose cells differ in shape are object arrays.

    `__call__` may `note` what belongs in no column of the table.

    Attributes:
        key: Column of the input that the output, and every noted record, repeats; distinct in the input.
            A stage that names it may be given rows in another order (see `MapOptions.batch_by`).
    """

    key: str | None = None

    def note(self, record: Mapping[str, Any]) -> None:
        """Note a JSON-able record; all of them end as lines of `<out>.log.jsonl`, in the rows' order."""
        self.__dict__.setdefault("_records", []).append(dict(record))

    def drain_notes(self) -> list[dict[str, Any]]:
        """What was noted since the last call."""
        records: list[dict[str, Any]] = self.__dict__.pop("_records", [])
        return records

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
        workers: Loader processes that run `prepare`, for each worker of Ray; 0 runs it in a thread, one
            batch ahead; None leaves it to the engine (0 where it is local).
        overwrite: Whether a table made with other settings may be replaced.
        title: Shown by the progress bar.
        batch_by: Columns by which a shard's rows are sorted before they are put in batches, such as an
            image's width and height; the output is in the rows' order all the same.
        engine: Where the stage runs.
        device: Where its network computes (auto, cpu or cuda), which tells what a Ray worker needs.
    """

    shard_size: int = 256
    batch_size: int = 32
    workers: int | None = 0
    overwrite: bool = False
    title: str = ""
    batch_by: tuple[str, ...] = ()
    engine: EngineOptions = EngineOptions()
    device: str = "cpu"


def log_path(shard: Path) -> Path:
    """Where the records of a shard lie."""
    return shard.with_suffix(".jsonl")


def fill_shards(
    stage: MapStage,
    rows: Table,
    todo: Sequence[int],
    names: Mapping[int, Path],
    kind: str,
    meta: Mapping[str, Any],
    options: MapOptions,
) -> None:
    """Run a stage over the rows of some shards and write each when it is whole.

    Args:
        stage: The stage.
        rows: The whole input table.
        todo: First rows of the shards to fill, rising.
        names: Each shard's file by its first row.
        kind: The output table's kind.
        meta: Facts stored with it.
        options: How to run.
    """
    if options.batch_by and stage.key is None:
        raise ValueError(
            f"expected a key of {type(stage).__name__}, whose rows are batched by another order"
        )
    batches: list[tuple[int, list[int]]] = []
    for start in todo:
        order = _order(rows, range(start, min(start + options.shard_size, len(rows))), options.batch_by)
        for first in range(0, len(order), options.batch_size):
            batches.append((start, order[first : first + options.batch_size]))
    collected: list[Table] = []
    bar = progress(title=options.title, total=len(rows), unit="row", initial=len(rows) - _rows_in(batches))
    prepared = _prepared_batches(stage, rows, [index for _, index in batches], options.workers or 0)
    with bar:
        for number, ((start, index), batch) in enumerate(zip(batches, prepared)):
            columns = stage(batch)
            if len(columns[next(iter(SCHEMAS[kind]))]):
                collected.append(Table(kind, columns, meta))
            bar.update(len(index))
            last = number + 1 == len(batches) or batches[number + 1][0] != start
            if last:
                shard = concat(collected) if collected else Table(kind, columns, meta)
                records = stage.drain_notes()
                if options.batch_by:
                    keys = rows[str(stage.key)][start : start + options.shard_size]
                    shard = _in_order(shard, records, str(stage.key), keys)
                _write_log(log_path(names[start]), records)
                write_table(shard, names[start])
                collected = []


def _order(rows: Table, shard: range, columns: Sequence[str]) -> list[int]:
    return sorted(shard, key=lambda row: tuple(rows[column][row] for column in columns))


def _in_order(shard: Table, records: list[dict[str, Any]], key: str, keys: np.ndarray) -> Table:
    """A shard's output in its rows' order; the records are sorted in place."""
    place = {value: row for row, value in enumerate(keys)}
    records.sort(key=lambda record: place[record[key]])
    return shard.take(np.argsort([place[value] for value in shard[key]], kind="stable"))


def _write_log(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    if records:
        with atomic_write(path, "w") as handle:
            for record in records:
                handle.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


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


def _prepared_ahead(
    prepare: Callable[[list[int]], dict[str, np.ndarray]], batches: Sequence[list[int]]
) -> Iterator[dict[str, np.ndarray]]:
    """Each batch, prepared while the one before it is with the stage; decoding runs beside Python."""
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[dict[str, np.ndarray]] | None = None
        for index in batches:
            ready, ahead = ahead, pool.submit(prepare, index)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()


def _prepared_batches(
    stage: MapStage, rows: Table, batches: Sequence[list[int]], workers: int
) -> Iterator[dict[str, np.ndarray]]:
    if workers == 0:
        yield from _prepared_ahead(
            lambda index: as_columns([stage.prepare(_row(rows, i)) for i in index]), batches
        )
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
