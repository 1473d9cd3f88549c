"""Read photo metadata: YFCC100M-style tab-separated files and plain lists of addresses.

`scan(path, query, counts)` is the seam: it yields the photos of one file that a query selects. A
faster scan has to yield the same photos and the same counts.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_plus, urlsplit

from wildshape.category import CategorySpec
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
_MALFORMED_KEPT = 5

_TAG = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class Photo:
    """One address worth downloading, and whom to thank for it."""

    source: str
    source_id: str | None
    url: str
    license: str | None = None
    author: str | None = None
    page_url: str | None = None


@dataclass
class ScanCounts:
    """What happened to the lines of the files that were read."""

    lines: int = 0
    malformed: int = 0
    videos: int = 0
    no_word: int = 0
    excluded: int = 0
    repeated: int = 0
    selected: int = 0
    malformed_lines: list[str] = field(default_factory=list)

    def add_malformed(self, where: str, reason: str) -> None:
        """Count a line that cannot be read; the first few are kept to be shown."""
        self.malformed += 1
        if len(self.malformed_lines) < _MALFORMED_KEPT:
            self.malformed_lines.append(f"{where}: {reason}")

    def as_dict(self) -> dict[str, Any]:
        """For the metrics file."""
        return dict(vars(self))


def plural(word: str) -> str:
    """English plural of the last word: pony, ponies; calf, calves; ox, oxen; cow, cows."""
    if word.endswith(("ox",)) and len(word) == 2:
        return word + "en"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    if word.endswith("lf"):
        return word[:-1] + "ves"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word + "s"


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    forms = {form.strip().casefold() for word in words for form in (word, plural(word))}
    if not forms:
        return None
    # the blank of a phrase also stands for "-" and "_", but not for the line end between fields
    branches = [
        r"[ \t_\-]+".join(re.escape(part) for part in form.split())
        for form in sorted(forms, key=len, reverse=True)
    ]
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(branches)})(?![^\W_])")


class Query:
    """A category's words: whole words or phrases, singular or plural, whatever their case.

    A photo is selected if any of `words` stands in its title, description or user tags, and none
    of `exclude` does.
    """

    def __init__(self, words: Iterable[str], exclude: Iterable[str] = ()) -> None:
        self.words, self.exclude = tuple(words), tuple(exclude)
        if not self.words:
            raise UserError("expected a word to search for; add synonyms: to the category")
        self._words, self._exclude = _pattern(self.words), _pattern(self.exclude)
        forms = [form.split()[0] for word in self.words for form in (word, plural(word))]
        # a cheap test on the encoded line; words that URL-encoding changes cannot be tested so
        plain = all(form.isascii() and form.isalnum() for form in forms)
        self._stems = {form.casefold().encode() for form in forms} if plain else None

    @classmethod
    def of(cls, category: CategorySpec) -> Query:
        """The query of a category."""
        return cls(category.synonyms, category.exclude)

    def may_match(self, line: bytes) -> bool:
        """False only if no word can stand in the encoded `line`."""
        if self._stems is None:
            return True
        lower = line.lower()
        return any(stem in lower for stem in self._stems)

    def verdict(self, text: str) -> str:
        """`selected`, `no_word` or `excluded` for a decoded text, fields separated by line ends."""
        folded = text.casefold()
        if self._words is None or not self._words.search(folded):
            return "no_word"
        if self._exclude is not None and self._exclude.search(folded):
            return "excluded"
        return "selected"


def _decode(field_: str) -> str:
    """A metadata field as a person wrote it: URL-decoded, without HTML, on one line."""
    return " ".join(_TAG.sub(" ", html.unescape(unquote_plus(field_))).split())


def _text(row: dict[str, str]) -> str:
    tags = "\n".join(_decode(tag) for tag in row["user_tags"].split(","))
    return f"{_decode(row['title'])}\n{_decode(row['description'])}\n{tags}"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _open(path: Path) -> IO[bytes]:
    with open(path, "rb") as handle:
        magic = handle.read(3)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return bz2.open(path, "rb") if magic == b"BZh" else open(path, "rb")


def _sniff(path: Path) -> str:
    """`tsv`, `jsonl`, `csv` or `txt`, by the first lines that have something in them."""
    votes: list[str] = []
    with _open(path) as handle:
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
        yield from reader[_sniff(path)](path, query, counts)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(
            f"{path}: expected a readable file; found {error} after {counts.lines} lines"
        ) from None


def _scan_tsv(path: Path, query: Query, counts: ScanCounts) -> Iterator[Photo]:
    with _open(path) as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            counts.lines += 1
            where = f"{path.name}:{number}"
            columns = COLUMNS.get(line.count(b"\t") + 1)
            if columns is None:
                found = line.count(b"\t") + 1
                counts.add_malformed(where, f"expected 23 or 25 columns, found {found}")
                continue
            marker = line.rstrip(b"\r\n").rpartition(b"\t")[2]
            if marker not in (b"0", b"1"):
                counts.add_malformed(where, f"expected a marker of 0 or 1, found {marker[:20]!r}")
                continue
            if marker == b"1":
                counts.videos += 1
                continue
            if not query.may_match(line):
                counts.no_word += 1
                continue
            values = line.decode("utf-8", errors="replace").rstrip("\r\n").split("\t")
            row = dict(zip(columns, values, strict=True))
            if not row["photo_id"].strip() or not _is_address(row["download_url"]):
                counts.add_malformed(where, "expected a photo id and an http address")
                continue
            verdict = query.verdict(_text(row))
            if verdict != "selected":
                setattr(counts, verdict, getattr(counts, verdict) + 1)
                continue
            yield Photo(
                source="yfcc100m",
                source_id=row["photo_id"],
                url=row["download_url"],
                license=row["license_name"] or None,
                author=_decode(row["user_nickname"]) or row["user_nsid"] or None,
                page_url=row["page_url"] or None,
            )


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
    with _open(path) as handle:
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
    with _open(path) as handle:
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
    with _open(path) as handle:
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
