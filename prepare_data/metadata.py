"""Read photo metadata line by line: YFCC100M-style tab-separated files and plain lists of addresses.

`scan(path, query, counts)` yields the photos of one file that a query selects. It is the readable twin
of `prepare_data.metadata_duckdb`, which has to yield the same photos and the same counts.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from prepare_data.query import Query, decode
from wildshape.errors import UserError

# Thomee et al., "YFCC100M: The New Data in Multimedia Research" (2016), and its README. The later
# release puts a line number first and a hash after the photo's id.
_COLUMNS_23 = (
    "photo_id", "user_nsid", "user_nickname", "date_taken", "date_uploaded", "device", "title",
    "description", "user_tags", "machine_tags", "longitude", "latitude", "accuracy", "page_url",
    "download_url", "license_name", "license_url", "server", "farm", "secret", "secret_original",
    "extension", "marker",
)  # fmt: skip
_COLUMNS_25 = ("line", "photo_id", "hash", *_COLUMNS_23[1:])
COLUMNS = {len(columns): columns for columns in (_COLUMNS_23, _COLUMNS_25)}

_URL_KEYS = ("item_download_url", "download_url", "downloadurl", "url", "image_url", "photo_url")
_ID_KEYS = ("photo_id", "photoid", "item_id", "id")
_LICENSE_KEYS = ("license", "license_name", "licensename", "item_license")
_AUTHOR_KEYS = ("author", "user_nickname", "unickname", "owner")
_PAGE_KEYS = ("page_url", "pageurl", "item_page_url", "page")
MALFORMED_KEPT = 5


@dataclass(frozen=True)
class Photo:
    """One address worth downloading, and whom to thank for it."""

    source: str
    source_id: str | None
    url: str
    license: str | None = None
    author: str | None = None
    page_url: str | None = None
    taken: str | None = None
    latitude: float = math.nan
    longitude: float = math.nan


@dataclass
class ScanCounts:
    """What happened to the lines of the files that were read.

    With `explain`, also what each word brought: photos in which it stands, photos in which no other
    word stands, and by excluding word those that it ruled out, alone or with others.
    """

    lines: int = 0
    malformed: int = 0
    videos: int = 0
    no_word: int = 0
    excluded: int = 0
    license: int = 0
    repeated: int = 0
    selected: int = 0
    malformed_lines: list[str] = field(default_factory=list)
    explain: bool = False
    by_word: Counter[str] = field(default_factory=Counter)
    only_word: Counter[str] = field(default_factory=Counter)
    by_exclude: Counter[str] = field(default_factory=Counter)
    only_exclude: Counter[str] = field(default_factory=Counter)

    def add_malformed(self, where: str, reason: str) -> None:
        """Count a line that cannot be read; the first few are kept to be shown."""
        self.malformed += 1
        if len(self.malformed_lines) < MALFORMED_KEPT:
            self.malformed_lines.append(f"{where}: {reason}")

    def add_words(self, words: list[str], excluding: list[str]) -> None:
        """Note which words a photo that has some of them shows."""
        kinds = (self.by_exclude, self.only_exclude) if excluding else (self.by_word, self.only_word)
        found = excluding or words
        kinds[0].update(found)
        if len(found) == 1:
            kinds[1].update(found)

    def as_dict(self) -> dict[str, Any]:
        """For the metrics file."""
        facts = {name: value for name, value in vars(self).items() if name != "explain"}
        words = ("by_word", "only_word", "by_exclude", "only_exclude")
        for name in words:
            facts[name] = dict(facts[name])
        return facts if self.explain else {k: v for k, v in facts.items() if k not in words}


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


@contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, unpacked if it is gzip or bzip2."""
    with open(path, "rb") as raw, unpacked(raw) as handle:
        yield handle


def unpacked(raw: IO[bytes]) -> IO[bytes]:
    """A handle that reads the unpacked bytes of an open file; the file itself if it is not packed."""
    magic = raw.read(3)
    raw.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open(raw, "rb")  # type: ignore[return-value]
    return bz2.open(raw, "rb") if magic == b"BZh" else raw


def sniff(path: Path) -> str:
    """`tsv`, `jsonl`, `csv` or `txt`, by the first lines that have something in them."""
    votes: list[str] = []
    with open_plain(path) as handle:
        for line in handle:
            line = line.strip(b"\xef\xbb\xbf \r\n")
            if not line:
                continue
            if line.count(b"\t") >= 15:
                votes.append("tsv")
            elif line[:1] in (b"{", b'"') and line[-1:] in (b"}", b'"'):
                votes.append("jsonl")
            elif line[:4].lower() == b"http" and b"," not in line:
                votes.append("txt")
            elif b"," in line:
                votes.append("csv")
            else:
                votes.append("other")
            if len(votes) == 20:
                break
    header = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    if header.endswith(".csv"):
        return "csv"
    real = [vote for vote in votes if vote != "other"] or votes
    if not real:
        return "txt"
    best = max(dict.fromkeys(real), key=real.count)
    return "txt" if best == "other" else best


def scan(path: Path, query: Query, counts: ScanCounts) -> Iterator[Photo]:
    """Yield the photos of one file that `query` selects, in the file's order.

    Tab-separated metadata is searched by the query's words. A list of addresses has no words to
    search: somebody chose them, and all of them are taken. Lines that cannot be read are counted
    in `counts` and passed over.

    Raises:
        UserError: if the file is missing, or a compressed file is cut short or damaged.
    """
    if not path.is_file():
        raise UserError(f"expected a metadata file at {path}; found none")
    reader = {"tsv": _scan_tsv, "jsonl": _scan_jsonl, "csv": _scan_csv, "txt": _scan_txt}
    try:
        yield from reader[sniff(path)](path, query, counts)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(
            f"{path}: expected a readable file; found {error} after {counts.lines} lines"
        ) from None


def _scan_tsv(path: Path, query: Query, counts: ScanCounts) -> Iterator[Photo]:
    with open_plain(path) as handle:
        for number, line in enumerate(handle, 1):
            photo = photo_of_line(line, f"{path.name}:{number}", query, counts)
            if photo is not None:
                yield photo


def photo_of_line(line: bytes, where: str, query: Query, counts: ScanCounts) -> Photo | None:
    """The photo of a line of tab-separated metadata, if the query selects it; else it is counted.

    Args:
        line: The whole line, with or without its end.
        where: File and number of the line, to be shown if it cannot be read.
        query: What to select.
        counts: What became of the line is added here.
    """
    if not line.strip():
        return None
    counts.lines += 1
    tabs = line.count(b"\t")
    if tabs + 1 not in COLUMNS:
        counts.add_malformed(where, f"expected 23 or 25 columns, found {tabs + 1}")
        return None
    marker = line.rstrip(b"\r\n").rpartition(b"\t")[2]
    if marker not in (b"0", b"1"):
        counts.add_malformed(where, f"expected a marker of 0 or 1, found {marker[:20]!r}")
        return None
    if marker == b"1":
        counts.videos += 1
        return None
    if not query.may_match(line):
        counts.no_word += 1
        return None
    values = line.decode("utf-8", errors="replace").rstrip("\r\n").split("\t")
    return photo_of_row(dict(zip(COLUMNS[len(values)], values)), where, query, counts)


def photo_of_row(row: Mapping[str, str], where: str, query: Query, counts: ScanCounts) -> Photo | None:
    """The photo of a row of metadata, if the query selects it; else it is counted."""
    if not row["photo_id"].strip() or not _is_address(row["download_url"]):
        counts.add_malformed(where, "expected a photo id and an http address")
        return None
    text = query.text(row)
    verdict = query.verdict(text)
    if verdict == "selected" and not query.allows(row["license_name"], row["license_url"]):
        verdict = "license"
    if counts.explain and verdict in ("selected", "excluded"):
        counts.add_words(*query.standing(text))
    if verdict != "selected":
        setattr(counts, verdict, getattr(counts, verdict) + 1)
        return None
    return Photo(
        source="yfcc100m",
        source_id=row["photo_id"],
        url=row["download_url"],
        license=row["license_name"] or None,
        author=decode(row["user_nickname"]) or row["user_nsid"] or None,
        page_url=row["page_url"] or None,
        taken=row["date_taken"] or None,
        latitude=_degrees(row["latitude"], 90),
        longitude=_degrees(row["longitude"], 180),
    )


def _degrees(text: str, limit: float) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if abs(value) <= limit else math.nan


def _first(record: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((str(record[key]).strip() for key in keys if record.get(key)), None)


def _from_record(record: dict[str, Any]) -> Photo | None:
    lowered = {str(key).strip().lower(): value for key, value in record.items() if key is not None}
    url = _first(lowered, _URL_KEYS)
    if url is None or not _is_address(url):
        return None
    return Photo(
        source="urls",
        source_id=_first(lowered, _ID_KEYS),
        url=url,
        license=_first(lowered, _LICENSE_KEYS),
        author=_first(lowered, _AUTHOR_KEYS),
        page_url=_first(lowered, _PAGE_KEYS),
    )


def _scan_txt(path: Path, query: Query, counts: ScanCounts) -> Iterator[Photo]:
    with open_plain(path) as handle:
        for number, raw in enumerate(handle, 1):
            line = raw.decode("utf-8-sig", errors="replace").strip()
            if not line or line.startswith("#"):
                continue
            counts.lines += 1
            url = line.split()[0]
            if _is_address(url):
                yield Photo("urls", None, url)
            else:
                counts.add_malformed(f"{path.name}:{number}", "expected an http address")


def _scan_jsonl(path: Path, query: Query, counts: ScanCounts) -> Iterator[Photo]:
    with open_plain(path) as handle:
        for number, raw in enumerate(handle, 1):
            if not raw.strip():
                continue
            counts.lines += 1
            where = f"{path.name}:{number}"
            try:
                record = json.loads(raw.decode("utf-8-sig", errors="replace").strip().rstrip(","))
            except json.JSONDecodeError as error:
                counts.add_malformed(where, f"expected JSON, found {error.msg}")
                continue
            if isinstance(record, str):
                record = {"url": record}
            photo = _from_record(record) if isinstance(record, dict) else None
            if photo is None:
                counts.add_malformed(where, f"expected an http address in one of {_URL_KEYS}")
            else:
                yield photo


def _scan_csv(path: Path, query: Query, counts: ScanCounts) -> Iterator[Photo]:
    with open_plain(path) as handle:
        text = (line.decode("utf-8-sig", errors="replace") for line in handle)
        rows = csv.DictReader(text)
        names = {str(name).strip().lower() for name in rows.fieldnames or ()}
        if not names & set(_URL_KEYS):
            raise UserError(
                f"{path}: expected a column named one of {', '.join(_URL_KEYS)}; "
                f"found {', '.join(sorted(names))[:200] or 'nothing'}"
            )
        while True:
            try:
                record = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                counts.lines += 1
                counts.add_malformed(f"{path.name}:{rows.line_num}", str(error))
                continue
            counts.lines += 1
            photo = _from_record(record)
            if photo is None:
                counts.add_malformed(f"{path.name}:{rows.line_num}", "expected an http address")
            else:
                yield photo
