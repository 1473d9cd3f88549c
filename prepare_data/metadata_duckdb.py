"""Scan metadata with DuckDB: all cores, bounded memory, files larger than it.

DuckDB counts and classifies the lines and keeps those in which a word may stand; the few that are left go
through the same code as in `prepare_data.metadata`, the readable twin.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepare_data import metadata
from prepare_data.metadata import Photo, ScanCounts
from prepare_data.query import Query
from wildshape.errors import UserError
from wildshape.stage import progress

if TYPE_CHECKING:
    import duckdb

TEMPORARY = ".search_"
_BLOCK = 32 << 20
_BATCH = 10_000
_MEMORY = re.compile(r"\d+(\.\d+)?\s*(KB|MB|GB|TB|KiB|MiB|GiB|TiB)", re.IGNORECASE)
# Codes of a line in the table that the scan leaves behind.
_BLANK, _COLUMNS, _MARKER, _VIDEO, _NO_WORD, _CANDIDATE = range(6)
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
        # A table in a file, so that it may outgrow the memory.
        with duckdb.connect(str(Path(folder) / "lines.duckdb"), config=settings) as connection:
            connection.execute("set enable_progress_bar = true; set enable_progress_bar_print = false")
            try:
                yield connection
            except duckdb.OutOfMemoryException as error:
                raise UserError(f"{path}: --memory {options.memory} is too little: {error}") from None
            except duckdb.Error as error:
                found = str(error).splitlines()[0]
                raise UserError(f"{path}: expected a readable file; found {found}") from None


def _execute(connection: duckdb.DuckDBPyConnection, sql: str, title: str) -> None:
    """Run a long statement with a progress bar."""
    done = threading.Event()

    def watch() -> None:
        with progress(title=title, total=100, unit="%") as bar:
            while not done.wait(0.5):
                with suppress(Exception):
                    bar.update(max(0, round(connection.query_progress(), 1) - bar.n))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        connection.execute(sql)
    finally:
        done.set()
        watcher.join()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _lines_source(path: Path, connection: duckdb.DuckDBPyConnection) -> str:
    """SQL for a table with one column, `line`, of the bytes of each line as Latin-1 characters."""
    with open(path, "rb") as handle:
        head = handle.read(1 << 16)
    if head[:3] == b"BZh":
        connection.register("blocks", _blocks(path))
        return "blocks"
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        with suppress(EOFError, OSError), metadata.open_plain(path) as handle:
            head = handle.read(1 << 16)
    ends = r"\r\n" if b"\r\n" in head else r"\n"
    # Latin-1 takes every byte: fields that are not UTF-8 must not stop the scan.
    return (
        f"read_csv({_quoted(str(path))}, auto_detect=false, header=false, columns={{'line': 'VARCHAR'}}, "
        rf"delim='\x1e', quote='', escape='', new_line='{ends}', encoding='latin-1', strict_mode=false, "
        f"max_line_size={_BLOCK}, compression='{'gzip' if packed else 'none'}')"
    ).replace(r"\x1e", "\x1e")


def _blocks(path: Path) -> Any:
    """An Arrow reader over the lines of a bzip2 file, which DuckDB does not unpack."""
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = pa.schema([("line", pa.large_string())])

    def read() -> Iterator[Any]:
        rest = b""
        with metadata.open_plain(path) as handle:
            while True:
                block = handle.read(_BLOCK)
                whole, ends, tail = (rest + block).rpartition(b"\n") if block else (rest, b"", b"")
                rest = tail
                if whole or ends:
                    text = pa.array([whole.decode("latin-1")], pa.large_string())
                    lines = pc.split_pattern(text, "\n").flatten()
                    yield pa.record_batch([pc.utf8_rtrim(lines, "\r")], schema=schema)
                if not block:
                    return

    return pa.RecordBatchReader.from_batches(schema, read())


def _scan_lines(path: Path, query: Query, counts: ScanCounts, options: ScanOptions) -> Iterator[Photo]:
    words = f"regexp_matches(lower(line), {_quoted(query.prefilter)})" if query.prefilter else "true"
    with _connection(options, path) as connection:
        source = _lines_source(path, connection)
        _execute(
            connection,
            f"""
            create table lines as
            select kind, case kind
                when {_COLUMNS} then tabs::varchar
                when {_MARKER} then right(line, 21)
                when {_CANDIDATE} then line end as line
            from (select line, tabs, case
                when line is null or trim(line, ' \t\r\f\v') = '' then {_BLANK}
                when tabs not in (22, 24) then {_COLUMNS}
                when ends_with(line, '\t1') then {_VIDEO}
                when not ends_with(line, '\t0') then {_MARKER}
                when {words} then {_CANDIDATE}
                else {_NO_WORD} end::utinyint as kind
            from (select line, strlen(line) - strlen(replace(line, '\t', '')) as tabs from {source}))
            """,
            f"search {path.name}",
        )
        _count(connection, counts)
        late = ScanCounts(explain=counts.explain)
        early = [
            (number + 1, _reason(kind, text))
            for number, kind, text in connection.execute(
                f"select rowid, kind, line from lines where kind in ({_COLUMNS}, {_MARKER}) "
                f"order by rowid limit {metadata.MALFORMED_KEPT}"
            ).fetchall()
        ]
        rows = connection.execute(f"select rowid, line from lines where kind = {_CANDIDATE} order by rowid")
        while batch := rows.fetchmany(_BATCH):
            for number, line in batch:
                photo = metadata.photo_of_line(line.encode("latin-1"), str(number + 1), query, late)
                if photo is not None:
                    yield photo
        _add(counts, late, early, path)


def _reason(kind: int, text: str) -> str:
    if kind == _COLUMNS:
        return metadata.wrong_columns(int(text) + 1)
    return metadata.wrong_marker(text.encode("latin-1").rpartition(b"\t")[2][:20])


def _count(connection: duckdb.DuckDBPyConnection, counts: ScanCounts) -> None:
    by_kind = dict(connection.execute("select kind, count(*) from lines group by kind").fetchall())
    counts.lines += sum(by_kind.values()) - by_kind.get(_BLANK, 0)
    counts.malformed += by_kind.get(_COLUMNS, 0) + by_kind.get(_MARKER, 0)
    counts.videos += by_kind.get(_VIDEO, 0)
    counts.no_word += by_kind.get(_NO_WORD, 0)


def _add(counts: ScanCounts, late: ScanCounts, early: list[tuple[int, str]], path: Path) -> None:
    """Add what the second look found; the malformed lines that are shown are the first of both."""
    late_lines = [text.partition(": ")[::2] for text in late.malformed_lines]
    shown = sorted([*early, *((int(number), reason) for number, reason in late_lines)])
    room = metadata.MALFORMED_KEPT - len(counts.malformed_lines)
    counts.malformed_lines += [f"{path.name}:{number}: {reason}" for number, reason in shown[:room]]
    for name in ("malformed", "no_word", "excluded", "license"):
        setattr(counts, name, getattr(counts, name) + getattr(late, name))
    for name in ("by_word", "only_word", "by_exclude", "only_exclude"):
        getattr(counts, name).update(getattr(late, name))


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
        source = f"read_parquet({_quoted(str(path))})"
        described = connection.execute(f"describe select * from {source}").fetchall()
        names = _columns([str(row[0]) for row in described], path)
        chosen = ", ".join(
            (f"coalesce(\"{name}\"::varchar, '')" if name else "''") + f" as {column}"
            for column, name in names.items()
        )
        text = "concat_ws('\t', title, description, user_tags, machine_tags)"
        words = f"regexp_matches(lower({text}), {_quoted(query.prefilter)})" if query.prefilter else "true"
        video = "lower(marker) in ('1', '1.0', 'true')"
        _execute(
            connection,
            f"""
            create table lines as
            select kind, case kind when {_CANDIDATE} then photo end as photo
            from (select {{{", ".join(f"'{column}': {column}" for column in names)}}} as photo, case
                when {video} then {_VIDEO} when {words} then {_CANDIDATE} else {_NO_WORD}
                end::utinyint as kind
            from (select {chosen} from {source}))
            """,
            f"search {path.name}",
        )
        _count(connection, counts)
        late = ScanCounts(explain=counts.explain)
        rows = connection.execute(
            f"select rowid, photo from lines where kind = {_CANDIDATE} order by rowid"
        )
        while batch := rows.fetchmany(_BATCH):
            for number, row in batch:
                photo = metadata.photo_of_row(row, str(number + 1), query, late)
                if photo is not None:
                    yield photo
        _add(counts, late, [], path)


def _scan_sqlite(path: Path, query: Query, counts: ScanCounts) -> Iterator[Photo]:
    """DuckDB reads SQLite by an extension that it would have to download: the standard library does."""
    import sqlite3

    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
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
