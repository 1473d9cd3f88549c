"""The tables that stages exchange: what columns each kind has, reading, writing, checking.

In memory a table is a set of NumPy columns; on disk it is one Parquet file. Nulls are None in text
columns, NaN in float columns and -1 in integer columns.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wildshape.errors import UserError
from wildshape.files import atomic_path
from wildshape.schemas import KEYS, SCHEMAS, SPLITS, STATUSES, TRANSFORMS, Column

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "KEYS", "SCHEMAS", "SPLITS", "STATUSES", "TRANSFORMS", "Column", "Table", "TableError",
    "concat", "content_hash", "make_image_id", "make_instance_id", "make_record_id",
    "read_facts", "read_table", "table_hash", "write_table",
]  # fmt: skip


class TableError(UserError):
    """A table whose columns do not fit its kind."""


def _check(kind: str, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if kind not in SCHEMAS:
        raise ValueError(f"expected a kind of table among {sorted(SCHEMAS)}, found {kind}")
    schema = SCHEMAS[kind]
    later = [name for name, column in schema.items() if column.annotation and name not in columns]
    if later and next(iter(schema)) in columns:
        length = len(columns[next(iter(schema))])
        columns = {**columns, **{name: _nulls(schema[name], length) for name in later}}
    missing, extra = sorted(set(schema) - set(columns)), sorted(set(columns) - set(schema))
    if missing or extra:
        raise TableError(f"table {kind}: missing columns {missing}, unknown columns {extra}")
    checked: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    length = len(columns[next(iter(schema))])
    for name, column in schema.items():
        array = _as_array(columns[name], name, column)
        if len(array) != length:
            raise TableError(f"table {kind}: expected {length} rows in {name}, found {len(array)}")
        if array.ndim != 1 + len(column.shape):
            raise TableError(
                f"table {kind}: expected {name} of shape {['N', *column.shape]}, found {list(array.shape)}"
            )
        for expected, found in zip(column.shape, array.shape[1:]):
            wanted = sizes.setdefault(expected, found) if isinstance(expected, str) else expected
            if wanted != found:
                raise TableError(f"table {kind}: expected {wanted} ({expected}) in {name}, found {found}")
        if not column.nullable:
            _refuse_nulls(kind, name, array)
        array.flags.writeable = False
        checked[name] = array
    if kind == "labels":
        _refuse_labelled_nan(checked["xy"], checked["visible"])
    return checked


def _nulls(column: Column, length: int) -> np.ndarray:
    if column.dtype == "str":
        return np.full(length, None, dtype=object)
    shape = tuple(0 if isinstance(size, str) else size for size in column.shape)
    return np.full((length, *shape), -1 if column.dtype == "int64" else np.nan)


def _refuse_labelled_nan(xy: np.ndarray, visible: np.ndarray) -> None:
    bad = (visible > 0) & ~np.isfinite(xy).all(-1)
    if bad.any():
        row, keypoint = np.argwhere(bad)[0]
        raise TableError(
            f"table labels: expected positions of labelled keypoints, found NaN or infinity in row "
            f"{row}, keypoint {keypoint}"
        )


def _as_array(values: Any, name: str, column: Column) -> np.ndarray:
    if column.dtype == "str":
        array = np.empty(len(values), dtype=object)
        array[:] = [None if value is None else str(value) for value in values]
        return array
    shape = tuple(0 if isinstance(size, str) else size for size in column.shape)
    array = np.asarray(values)
    if array.size == 0 and array.ndim != 1 + len(column.shape):
        array = np.zeros((0, *shape))
    if column.dtype == "float64":
        array = np.array(array, dtype=np.float64)
        array[np.isnan(array)] = np.nan  # one NaN of the many, so that the content's hash is stable
        return array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise TableError(f"expected whole numbers in {name}, found NaN or infinity (null is -1)")
    return np.array(array, dtype=column.dtype)


def _refuse_nulls(kind: str, name: str, array: np.ndarray) -> None:
    if array.dtype == object:
        bad = np.array([value is None for value in array], dtype=bool)
    elif array.dtype.kind == "f":
        bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    else:
        return
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        found = "null" if array.dtype == object else "NaN or infinity"
        raise TableError(f"table {kind}: expected values in {name}, found {found} in row {row}")


@dataclass(frozen=True)
class Table:
    """One table, read-only.

    Attributes:
        kind: A name in `SCHEMAS`.
        columns: Array [N, ...] for each column of the schema; annotations that are absent become null.
        meta: Small facts about the whole table, such as `{"skeleton": "quadruped16"}`.

    Raises:
        TableError: if the columns do not fit the kind.
    """

    kind: str
    columns: Mapping[str, np.ndarray]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = _check(self.kind, self.columns)
        key = KEYS.get(self.kind)
        if key is not None and len(set(checked[key])) != len(checked[key]):
            values, counts = np.unique(checked[key].astype(str), return_counts=True)
            raise TableError(
                f"table {self.kind}: expected distinct {key}, found {values[counts > 1][0]} twice"
            )
        object.__setattr__(self, "columns", MappingProxyType(checked))
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta or {})))

    @classmethod
    def empty(cls, kind: str, *, num_keypoints: int = 0, num_parts: int = 0, **meta: Any) -> Table:
        """A table without rows."""
        sizes = {"K": num_keypoints, "P": num_parts}
        columns = {
            name: np.zeros(
                (0, *(sizes[s] if isinstance(s, str) else s for s in column.shape)),
                dtype=object if column.dtype == "str" else column.dtype,
            )
            for name, column in SCHEMAS[kind].items()
        }
        return cls(kind, columns, meta)

    @classmethod
    def from_rows(
        cls, kind: str, rows: Sequence[Mapping[str, Any]], *, num_keypoints: int = 0, **meta: Any
    ) -> Table:
        """A table from one mapping a row; absent nullable columns become null."""
        if not rows:
            return cls.empty(kind, num_keypoints=num_keypoints, **meta)
        schema = SCHEMAS[kind]
        columns: dict[str, Any] = {}
        for name, column in schema.items():
            values = [row.get(name) if column.nullable else row[name] for row in rows]
            if column.dtype != "str" and any(value is None for value in values):
                shapes = [np.shape(value) for value in values if value is not None]
                sizes = (num_keypoints if isinstance(s, str) else s for s in column.shape)
                fill = -1 if column.dtype == "int64" else np.nan
                null = np.full(shapes[0] if shapes else tuple(sizes), fill)
                values = [null if value is None else value for value in values]
            columns[name] = values
        return cls(kind, columns, meta)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def take(self, index: Any) -> Table:
        """The rows that an index array, a boolean mask or a slice chooses, in its order."""
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.size == 0:
                index = index.astype(np.int64)
        return Table(self.kind, {k: v[index] for k, v in self.columns.items()}, self.meta)

    def with_columns(self, **columns: Any) -> Table:
        """The same table with some columns replaced."""
        return Table(self.kind, {**self.columns, **columns}, self.meta)

    def with_meta(self, **meta: Any) -> Table:
        """The same table with some facts about it replaced."""
        return Table(self.kind, self.columns, {**self.meta, **meta})

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping a row."""
        names = list(self.columns)
        for values in zip(*(self.columns[name] for name in names)):
            yield dict(zip(names, values))

    def lookup(self, column: str | None = None) -> dict[str, int]:
        """Row by value of a column (by default the id); the last row wins, nulls are left out."""
        name = column or KEYS.get(self.kind, "instance_id")
        return {value: row for row, value in enumerate(self.columns[name]) if value is not None}

    def to_pandas(self) -> pd.DataFrame:
        """A data frame; cells of array columns are arrays."""
        import pandas as pd

        return pd.DataFrame(
            {k: v if v.ndim == 1 else list(v) for k, v in self.columns.items()},
        )


def concat(tables: Sequence[Table]) -> Table:
    """The rows of several tables of one kind, in order; facts are those of the first.

    Raises:
        ValueError: if there is no table or the kinds differ.
    """
    kinds = {table.kind for table in tables}
    if len(kinds) != 1:
        raise ValueError(f"expected tables of one kind, found {sorted(kinds)}")
    full = [table for table in tables if len(table)] or list(tables[:1])
    columns = {k: np.concatenate([t.columns[k] for t in full]) for k in full[0].columns}
    return Table(full[0].kind, columns, tables[0].meta)


def _to_arrow(array: np.ndarray, column: Column) -> pa.Array:
    if column.dtype == "str":
        return pa.array(array.tolist(), type=pa.string())
    flat = np.ascontiguousarray(array).reshape(-1)
    mask = None
    if column.nullable:
        mask = flat == -1 if column.dtype == "int64" else np.isnan(flat)
    values = pa.array(flat, mask=mask)
    if not column.shape:
        return values
    width = int(np.prod(array.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(values, max(width, 1)) if width else pa.nulls(len(array))


def _from_arrow(chunked: pa.ChunkedArray, column: Column, shape: Sequence[int]) -> np.ndarray:
    array = chunked.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no rows
        array = array.chunk(0) if array.num_chunks else pa.array([], type=chunked.type)
    if column.dtype == "str":
        out = np.empty(len(array), dtype=object)
        out[:] = array.to_pylist()
        return out
    length = len(array)
    if column.shape:
        array = array.flatten() if length and int(np.prod(shape)) else pa.array([], pa.float64())
    fill = -1 if column.dtype == "int64" else float("nan")
    if array.null_count:
        array = array.fill_null(fill)
    values = array.to_numpy(zero_copy_only=False)
    return values.astype(column.dtype, copy=False).reshape(length, *shape)


def content_hash(table: Table) -> str:
    """Hash of a table's columns, annotations left out, and facts, whatever wrote it."""
    digest = hashlib.sha256(table.kind.encode())
    digest.update(json.dumps(dict(table.meta), sort_keys=True, default=str).encode())
    for name, column in SCHEMAS[table.kind].items():
        if column.annotation:
            continue
        array = table[name]
        digest.update(f"{name}{array.shape}".encode())
        if array.dtype == object:
            digest.update(json.dumps(array.tolist()).encode())
        else:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]


def write_table(
    table: Table,
    path: str | os.PathLike[str],
    provenance: Mapping[str, Any] | None = None,
    *,
    group_rows: int | None = None,
    content: str | None = None,
) -> None:
    """Write a table as Parquet, whole or not at all.

    Args:
        table: The table.
        path: Where to.
        provenance: What made it (stage, configuration, inputs, version), stored in the file.
        group_rows: Rows of each of its row groups, which `read_table` can read alone.
        content: The content hash to store; by default the table's.
    """
    schema = SCHEMAS[table.kind]
    arrow = pa.table({name: _to_arrow(table[name], column) for name, column in schema.items()})
    facts = {
        "kind": table.kind,
        "meta": dict(table.meta),
        "content": content or content_hash(table),
        "shapes": {name: list(table[name].shape[1:]) for name in schema},
        "provenance": dict(provenance or {}),
    }
    arrow = arrow.replace_schema_metadata({"wildshape": json.dumps(facts, default=str)})
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd", row_group_size=group_rows)


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a table's file says of itself: kind, meta, content hash, shapes, provenance.

    Raises:
        UserError: if the file is missing or is not a table of ours.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[b"wildshape"])
    except FileNotFoundError:
        raise UserError(f"expected a table at {path}; found none") from None
    except (KeyError, json.JSONDecodeError, pa.ArrowInvalid, OSError) as error:
        raise UserError(f"expected a wildshape table in {path}; found {error}") from None


def read_table(path: str | os.PathLike[str], kind: str, *, group: int | None = None) -> Table:
    """Read a table, or one row group of it; a nullable column that an older file lacks is null.

    Raises:
        UserError: if the file is missing, unreadable, or a table of another kind.
    """
    facts = read_facts(path)
    if facts["kind"] != kind:
        raise UserError(f"expected a table of kind {kind} in {path}; found {facts['kind']}")
    try:
        arrow = pq.read_table(path) if group is None else _read_group(path, group)
        columns = {
            name: _from_arrow(arrow[name], column, facts["shapes"][name])
            if name in arrow.column_names or not column.nullable
            else _nulls(column, arrow.num_rows)
            for name, column in SCHEMAS[kind].items()
        }
        return Table(kind, columns, facts["meta"])
    except (KeyError, TypeError, ValueError, pa.ArrowInvalid, OSError) as error:
        raise UserError(f"expected columns of kind {kind} in {Path(path)}; found {error}") from None


def _read_group(path: str | os.PathLike[str], group: int) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group)


def table_hash(path: str | os.PathLike[str]) -> str:
    """The content hash stored in a table's file."""
    return str(read_facts(path)["content"])


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def make_record_id(source: str, source_id_or_url: str) -> str:
    """Id of an images row: a hash of where it was found."""
    return "r" + _short_hash(source, source_id_or_url)


def make_image_id(data: bytes) -> str:
    """Id of an image: a hash of the file's bytes."""
    return "i" + hashlib.sha256(data).hexdigest()[:16]


def make_instance_id(image_id: str, detector: str, box_xyxy: np.ndarray) -> str:
    """Id of an instance: a hash of image, detector and box (to a tenth of a pixel)."""
    box = ",".join(f"{value:.1f}" for value in np.asarray(box_xyxy, dtype=np.float64) + 0.0)
    return "a" + _short_hash(image_id, detector, box)
