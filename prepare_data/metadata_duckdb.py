"""Scan metadata with DuckDB: all cores, bounded memory, files larger than it.

DuckDB passes over the lines that are clearly photos without the words, and notes the videos. All others,
those in which a word may stand and those that look odd, go through the code of `prepare_data.metadata`, the
readable twin, in the file's order. Rows stream through; nothing is kept of those that were passed over.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from prepare_data import metadata
from prepare_data.metadata import Photo, ScanCounts
from prepare_data.query import Query
from wildshape.errors import UserError
from wildshape.stage import progress

if TYPE_CHECKING:
    import duckdb

TEMPORARY = ".search_"
_BLOCK = 4 << 20
_BATCH = 2000
_MEMORY = re.compile(r"\d+(\.\d+)?\s*(KB|MB|GB|TB|KiB|MiB|GiB|TiB)", re.IGNORECASE)
# What a scan finds a row to be.
_NO_WORD, _VIDEO, _LOOK = range(3)
# Names of columns in tables made from the dataset (Parquet, SQLite), without signs and case.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "photo_id": ("photoid", "id"),
    "user_nsid": ("usernsid", "uid"),
    "user_nickname": ("usernickname", "unickname"),
    "date_taken": ("datetaken",),
    "title": ("title",),
    "description": ("description",),
    "user_tags": ("usertags",),
    "machine_tags": ("machinetags",),
    "longitude": ("longitude",),
    "latitude": ("latitude",),
    "page_url": ("pageurl",),
    "download_url": ("downloadurl", "photodownloadurl"),
    "license_name": ("licensename", "license"),
    "license_url": ("licenseurl",),
    "marker": ("marker", "photovideomarker", "markers"),
}
_NEEDED = ("photo_id", "download_url", "title", "user_tags")


@dataclass(frozen=True)
class ScanOptions:
    """What a scan may take of the machine.

    Attributes:
        memory: Most memory that DuckDB takes, such as "2GB".
        threads: Threads; None takes all cores.
        temporary: Folder for what does not fit into memory.
    """

    memory: str = "2GB"
    threads: int | None = None
    temporary: Path | None = None

    def __post_init__(self) -> None:
        if not _MEMORY.fullmatch(self.memory.strip()):
            raise UserError(f"--memory: expected a size such as 2GB; found {self.memory}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads: expected at least 1; found {self.threads}")


def scan(path: Path, query: Query, counts: ScanCounts, options: ScanOptions) -> Iterator[Photo]:
    """Yield the photos of one file that `query` selects, in the file's order.

    Takes what `prepare_data.metadata.scan` takes, and tables made from the dataset besides: Parquet and
    SQLite with columns named like the dataset's.

    Raises:
        UserError: if the file is missing, damaged, or has not the columns that it needs.
    """
    if not path.is_file():
        raise UserError(f"expected a metadata file at {path}; found none")
    with open(path, "rb") as handle:
        magic = handle.read(16)
    if magic[:4] == b"PAR1":
        yield from _scan_parquet(path, query, counts, options)
    elif magic == b"SQLite format 3\0":
        yield from _scan_sqlite(path, query, counts)
    elif _sniffed(path) == "tsv":
        yield from _scan_lines(path, query, counts, options)
    else:
        yield from metadata.scan(path, query, counts)


def _sniffed(path: Path) -> str:
    try:
        return metadata.sniff(path)
    except (EOFError, OSError):
        return "tsv"


@contextmanager
def _connection(options: ScanOptions, path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=options.temporary) as folder:
        settings: dict[str, Any] = {"memory_limit": options.memory, "temp_directory": folder}
        if options.threads is not None:
            settings["threads"] = options.threads
        with duckdb.connect(config=settings) as connection:
            connection.execute("set enable_progress_bar = false")  # DuckDB's own goes to stdout
            try:
                yield connection
            except duckdb.OutOfMemoryException as error:
                raise UserError(f"{path}: --memory {options.memory} is too little: {error}") from None
            except duckdb.Error as error:
                found = str(error).splitlines()[0]
                raise UserError(f"{path}: expected a readable file; found {found}") from None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class _Lines:
    """The lines of a file as a stream of Arrow batches: `number`, from 1, and `line`, with its end.

    DuckDB's own CSV reader stops at bytes that are not of its encoding, takes a lone carriage return for a
    line's end, and unpacks no bzip2. Arrow does not check its strings: these hold any bytes.

    Attributes:
        count: Lines read so far.
        error: Why the file could not be read to its end, if it could not.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._path = path
        self._threads = threads
        self.count = 0
        self.error: Exception | None = None

    def reader(self) -> Any:
        """The stream; it can be read once."""
        import pyarrow as pa

        schema = pa.schema([("number", pa.int64()), ("line", pa.large_string())])

        def batches() -> Iterator[Any]:
            for block in self._blocks():
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
                if not len(ends) or ends[-1] < len(block):
                    ends = np.append(ends, len(block))
                offsets = np.concatenate([[0], ends]).astype(np.int64)
                numbers = pa.array(np.arange(self.count + 1, self.count + len(ends) + 1))
                buffers = pa.py_buffer(offsets), pa.py_buffer(block)
                lines = pa.LargeStringArray.from_buffers(len(ends), *buffers)
                self.count += len(ends)
                yield pa.record_batch([numbers, lines], schema=schema)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def _blocks(self) -> Iterator[bytes]:
        """Some megabytes of whole lines each."""
        size = self._path.stat().st_size
        title = f"search {self._path.name}"
        rest: list[bytes] = []
        try:
            with (
                open(self._path, "rb") as raw,
                _unpacked(self._path, raw, self._threads) as handle,
                progress(title=title, total=size // 10**6, unit="MB") as bar,
            ):
                while block := _read(handle):
                    bar.update(max(0, _position(handle, raw) // 10**6 - bar.n))
                    cut = block.rfind(b"\n") + 1
                    if cut:
                        yield b"".join([*rest, block[:cut]])
                        rest = []
                    rest.append(block[cut:])
                if last := b"".join(rest):
                    yield last
        except Exception as error:
            self.error = error
            raise


def _unpacked(path: Path, raw: IO[bytes], threads: int | None) -> Any:
    """`metadata.unpacked`; bzip2 on several cores if the package indexed_bzip2 is installed."""
    magic = raw.read(3)
    raw.seek(0)
    if magic == b"BZh":
        with suppress(ImportError):
            import indexed_bzip2

            return indexed_bzip2.open(str(path), parallelization=threads or 0)
    return metadata.unpacked(raw)


def _read(handle: Any) -> bytes:
    try:
        return handle.read(_BLOCK)  # type: ignore[no-any-return]
    except (RuntimeError, ValueError) as error:  # indexed_bzip2's words for a damaged file
        raise OSError(f"damaged data: {error}") from None


def _position(handle: Any, raw: IO[bytes]) -> int:
    """Bytes of the packed file read so far."""
    return handle.tell_compressed() // 8 if hasattr(handle, "tell_compressed") else raw.tell()


def _scan_lines(path: Path, query: Query, counts: ScanCounts, options: ScanOptions) -> Iterator[Photo]:
    words = f"regexp_matches(line, {_quoted(query.prefilter)})" if query.prefilter else "true"
    lines = _Lines(path, options.threads)
    sql = f"""
        select number, case kind when {_LOOK} then encode(line) end
        from (select number, line, case
            when strlen(line) - strlen(replace(line, '\t', '')) not in (22, 24) then {_LOOK}
            when {_ends("0")} then case when {words} then {_LOOK} else {_NO_WORD} end
            when {_ends("1")} then {_VIDEO}
            else {_LOOK} end as kind
        from lines)
        where kind <> {_NO_WORD}
        """
    with _connection(options, path) as connection:
        connection.register("lines", lines.reader())
        try:
            for number, line in _looked_at(connection, sql, counts, lambda: lines.count):
                photo = metadata.photo_of_line(line, f"{path.name}:{number}", query, counts)
                if photo is not None:
                    yield photo
        except Exception as error:
            if isinstance(lines.error, (EOFError, OSError)):
                raise UserError(f"{path}: expected a readable file; found {lines.error}") from None
            raise (lines.error or error) from None


def _ends(marker: str) -> str:
    """SQL for a line whose last column is `marker`; an odd end of a line is left to the twin."""
    return "(" + " or ".join(f"ends_with(line, '\t{marker}{end}')" for end in ("\n", "\r\n", "")) + ")"


def _looked_at(
    connection: duckdb.DuckDBPyConnection, sql: str, counts: ScanCounts, total: Callable[[], int]
) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and content of the rows that want a look, in order, while the scan goes on.

    Videos, which have no content, and the rows that the query passed over are counted.
    """

    def pass_over(until: int) -> None:
        counts.lines += until - last - 1
        counts.no_word += until - last - 1

    last = 0
    rows = connection.execute(sql)
    while batch := rows.fetchmany(_BATCH):
        for number, content in batch:
            pass_over(number)
            last = number
            if content is None:
                counts.lines += 1
                counts.videos += 1
            else:
                yield number, content
    pass_over(total() + 1)


def _columns(names: list[str], path: Path) -> dict[str, str]:
    """The file's name of each of the dataset's columns."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in names}
    found = {
        column: next((plain[alias] for alias in aliases if alias in plain), "")
        for column, aliases in _ALIASES.items()
    }
    if missing := [name for name in _NEEDED if not found[name]]:
        raise UserError(
            f"{path}: expected the dataset's columns; found none for {', '.join(missing)} among "
            f"{', '.join(names)[:200] or 'nothing'}"
        )
    return found


def _scan_parquet(path: Path, query: Query, counts: ScanCounts, options: ScanOptions) -> Iterator[Photo]:
    with _connection(options, path) as connection:
        source = f"read_parquet({_quoted(str(path))}, file_row_number=true)"
        described = connection.execute(f"describe select * from {source}").fetchall()
        names = _columns([str(row[0]) for row in described], path)
        chosen = ", ".join(
            (f"coalesce(\"{name}\"::varchar, '')" if name else "''") + f" as {column}"
            for column, name in names.items()
        )
        text = "concat_ws('\t', title, description, user_tags, machine_tags)"
        words = f"regexp_matches({text}, {_quoted(query.prefilter)})" if query.prefilter else "true"
        sql = f"""
            select number, case kind when {_LOOK} then photo end
            from (select number, {{{", ".join(f"'{column}': {column}" for column in names)}}} as photo, case
                when lower(marker) in ('1', '1.0', 'true') then {_VIDEO}
                when {words} then {_LOOK} else {_NO_WORD} end as kind
            from (select file_row_number + 1 as number, {chosen} from {source}))
            where kind <> {_NO_WORD}
            """
        (rows,) = connection.execute(
            f"select num_rows from parquet_file_metadata({_quoted(str(path))})"
        ).fetchone()
        with progress(title=f"search {path.name}", total=rows, unit="row") as bar:
            for number, row in _looked_at(connection, sql, counts, lambda: rows):
                bar.update(number - bar.n)
                counts.lines += 1
                photo = metadata.photo_of_row(row, f"{path.name}:{number}", query, counts)
                if photo is not None:
                    yield photo


def _scan_sqlite(path: Path, query: Query, counts: ScanCounts) -> Iterator[Photo]:
    """DuckDB reads SQLite by an extension that it would have to download: the standard library does."""
    import sqlite3

    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        tables = [
            row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")
        ]
        if not tables:
            raise UserError(f"{path}: expected a table of photos; found none")
        sizes = {
            name: [str(row[1]) for row in connection.execute(f'pragma table_info("{name}")')]
            for name in tables
        }
        table = max(sizes, key=lambda name: len(sizes[name]))
        names = _columns(sizes[table], path)
        chosen = ", ".join(f'"{name}"' if name else "''" for name in names.values())
        number = 0
        for number, values in enumerate(
            progress(
                connection.execute(f'select {chosen} from "{table}"'), f"search {path.name}", unit="row"
            ),
            1,
        ):
            counts.lines += 1
            row = {key: "" if value is None else str(value) for key, value in zip(names, values)}
            if row["marker"] in ("1", "1.0"):
                counts.videos += 1
                continue
            text = "\t".join(row[key] for key in ("title", "description", "user_tags", "machine_tags"))
            if not query.may_match(text.encode()):
                counts.no_word += 1
                continue
            photo = metadata.photo_of_row(row, f"{path.name}:{number}", query, counts)
            if photo is not None:
                yield photo
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path}: expected a readable SQLite file; found {error}") from None
    finally:
        connection.close()
