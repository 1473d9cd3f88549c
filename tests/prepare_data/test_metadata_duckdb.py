"""The scan by DuckDB finds what the line-by-line reader finds, and counts the same."""

import bz2
import gzip
import random
import sqlite3
import subprocess
import sys

import pandas as pd
import pytest
from metadata_lines import fields, line, random_lines

from prepare_data import metadata, metadata_duckdb
from prepare_data.metadata import _COLUMNS_23, ScanCounts
from prepare_data.metadata_duckdb import ScanOptions
from prepare_data.query import Query
from wildshape.errors import UserError

QUERIES = {
    "words": Query(["cow", "cattle", "ox", "calf"], ["sea cow", "calf muscle"]),
    "accents": Query(["bête", "牛"]),
    "accents and plain": Query(["bête", "cow"]),
    "machine tags": Query(["cow"], machine_tags=True),
    "licences": Query(["cow", "ox"], licenses=["by"]),
}


def both(path, query, explain=False, **options):
    found = []
    for scan, extra in ((metadata.scan, ()), (metadata_duckdb.scan, (ScanOptions(**options),))):
        counts = ScanCounts(explain=explain)
        photos = list(scan(path, query, counts, *extra))
        found.append(([repr(photo) for photo in photos], counts.as_dict()))
    return found


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("packed", ["plain", "gzip", "bzip2"])
def test_finds_and_counts_what_the_reader_does(tmp_path, query, packed):
    path = tmp_path / "m"
    opener = {"plain": open, "gzip": gzip.open, "bzip2": bz2.open}[packed]
    with opener(path, "wb") as handle:
        handle.write(b"\n".join(random_lines(len(query), 4000)))
    (slow, slow_counts), (fast, fast_counts) = both(path, QUERIES[query], explain=True, threads=2)
    assert fast == slow and len(fast) > 50
    assert fast_counts == slow_counts
    assert fast_counts["malformed"] > 50 and fast_counts["videos"] > 100
    if query == "licences":
        assert fast_counts["license"] > 50


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(tmp_path, end, last):
    lines = [line(1, "cow").encode(), b"", b"broken", line(2, "cow").encode(), line(3, "a").encode()]
    (tmp_path / "m.tsv").write_bytes(end.join(lines) + (end if last else b""))
    (slow, slow_counts), (fast, fast_counts) = both(tmp_path / "m.tsv", QUERIES["words"])
    assert fast == slow and len(fast) == 2
    assert fast_counts == slow_counts
    assert fast_counts["malformed_lines"] == ["m.tsv:3: expected 23 or 25 columns, found 1"]


@pytest.fixture(params=["indexed_bzip2", "bz2"])
def bzip2_reader(request, monkeypatch):
    """With the package that unpacks on several cores, and as if it were not installed."""
    if request.param == "bz2":
        monkeypatch.setitem(sys.modules, "indexed_bzip2", None)
    else:
        pytest.importorskip("indexed_bzip2", reason="the extra bzip2 is not installed")


def test_a_bzip2_file_of_several_blocks_and_streams(tmp_path, bzip2_reader):
    lines = b"\n".join(random_lines(8, 8000)) + b"\n"
    (tmp_path / "m.bz2").write_bytes(bz2.compress(lines, 1) + bz2.compress(lines))
    (slow, slow_counts), (fast, fast_counts) = both(tmp_path / "m.bz2", QUERIES["words"])
    assert fast == slow and fast_counts == slow_counts and fast_counts["lines"] > 15_000


@pytest.mark.parametrize("damage", ["cut", "cut near the end", "zeros"])
def test_a_damaged_bzip2_file(tmp_path, bzip2_reader, damage):
    packed = bz2.compress(b"\n".join(random_lines(8, 8000)), 1)
    half = len(packed) // 2
    packed = {
        "cut": packed[:half],
        "cut near the end": packed[:-3],
        "zeros": packed[:half] + bytes(100) + packed[half + 100 :],
    }[damage]
    (tmp_path / "m.bz2").write_bytes(packed)
    with pytest.raises(UserError, match=r"m\.bz2: expected a readable file; found "):
        list(metadata_duckdb.scan(tmp_path / "m.bz2", QUERIES["words"], ScanCounts(), ScanOptions()))


def test_blocks_of_a_bzip2_file_join_at_lines(tmp_path, monkeypatch, bzip2_reader):
    monkeypatch.setattr(metadata_duckdb, "_BLOCK", 1000)
    with bz2.open(tmp_path / "m.bz2", "wb") as handle:
        handle.write(b"\n".join(random_lines(5, 500)))
    (slow, slow_counts), (fast, fast_counts) = both(tmp_path / "m.bz2", QUERIES["words"])
    assert fast == slow and fast_counts == slow_counts


ODD = (
    b"\xff", b"\xffcow", b"cow\xff", b"\xe7\x89", b"\xc2\x85", "\u725b".encode(), "\u017fcow".encode(),
    "cow\u212a".encode(), b"\xef\xbb\xbf", b"\r", b"\r\r", b"\0", b"\x1e", b"\x1a", b'"', b"'", b"\\", b" ",
    b"cow", b"COW", b"_cow_", b"%2Ccow", b"%2cow", b"ox", b"\t", b"\t0", b"\t1", b"\x0b", b"\x0c",
    b"x" * 3000,
)  # fmt: skip


def odd_lines(count):
    """Lines of photos with odd bytes put anywhere, lines of nothing but odd bytes, ends of both kinds."""
    rng = random.Random(count)
    for number in range(count):
        text = line(number, rng.choice(("", "cow", "x")), columns=rng.choice((23, 25))).encode()
        for _ in range(rng.randrange(3)):
            at = rng.choice((0, len(text), rng.randrange(len(text))))
            text = text[:at] + rng.choice(ODD) + text[at:]
        yield (b"".join(rng.choices(ODD, k=3)) if rng.random() < 0.1 else text) + rng.choice(
            (b"\n", b"\r\n")
        )


@pytest.mark.parametrize("query", ["words", "accents", "accents and plain"])
def test_lines_of_any_bytes(tmp_path, query):
    (tmp_path / "m.tsv").write_bytes(b"".join(odd_lines(4000)) + line(1, "cow").encode())
    (slow, slow_counts), (fast, fast_counts) = both(tmp_path / "m.tsv", QUERIES[query])
    assert fast == slow and fast_counts == slow_counts
    assert fast_counts["malformed"] > 500 and (len(fast) > 500 or query == "accents")


def test_lines_longer_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata_duckdb, "_BLOCK", 64)
    lines = [line(number, "cow", description="x" * 500 * number).encode() for number in range(9)]
    (tmp_path / "m.tsv").write_bytes(b"\n".join(lines))
    (slow, slow_counts), (fast, fast_counts) = both(tmp_path / "m.tsv", QUERIES["words"])
    assert fast == slow and len(fast) == 9 and fast_counts == slow_counts


def test_a_scan_that_is_left_early_counts_what_it_passed(tmp_path):
    (tmp_path / "m.tsv").write_bytes(b"\n".join(random_lines(7, 4000)))
    found = []
    for scan, extra in ((metadata.scan, ()), (metadata_duckdb.scan, (ScanOptions(),))):
        counts = ScanCounts()
        photos = scan(tmp_path / "m.tsv", QUERIES["words"], counts, *extra)
        found.append(([repr(next(photos)) for _ in range(20)], counts.as_dict()))
        photos.close()
    assert found[0] == found[1]


def test_memory_stays_small(tmp_path):
    lines = b"\n".join(random_lines(3, 4000)) + b"\n"
    with gzip.open(tmp_path / "m.gz", "wb", compresslevel=1) as handle:
        for _ in range(50):  # 200,000 lines, 70 MB
            handle.write(lines)
    code = f"""
import resource
from pathlib import Path
from prepare_data.metadata import ScanCounts
from prepare_data.metadata_duckdb import ScanOptions, scan
from prepare_data.query import Query

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def look(path):
    counts = ScanCounts()
    for _ in scan(path, Query(["heifer"]), counts, ScanOptions(memory="100MB", threads=2)):
        pass
    return counts.lines

path = Path({str(tmp_path)!r})
look(path / "small.tsv")
began = peak()
print(look(path / "m.gz"), peak() - began)
"""
    (tmp_path / "small.tsv").write_bytes(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, grown = done.stdout.split()
    assert int(count) > 180_000
    assert float(grown) < 60, "megabytes, of 70 that were read"


def rows():
    return [
        fields(1, "My+cow", license=1), fields(2, "video+cow", marker=1), fields(3, "Moscow"),
        fields(4, tags="cattle,farm"), fields(5, "a+sea+cow"), fields(6, "cow", url="nowhere"),
    ]  # fmt: skip


def names():
    """As the dataset's SQLite file spells them."""
    return [
        {"user_nsid": "uid", "user_nickname": "unickname"}.get(name, name.replace("_", ""))
        for name in _COLUMNS_23
    ]


@pytest.fixture(params=["parquet", "sqlite"])
def table(request, tmp_path):
    frame = pd.DataFrame(rows(), columns=names())
    frame["marker"] = frame["marker"].astype(int)
    frame["latitude"] = frame["latitude"].astype(float)
    if request.param == "parquet":
        frame.to_parquet(tmp_path / "m.parquet")
        return tmp_path / "m.parquet"
    path = tmp_path / "m#1?.sql"
    with sqlite3.connect(path) as connection:
        frame.to_sql("yfcc100m_dataset", connection, index=False)
        connection.execute("create table other (a, b)")
    connection.close()
    return path


def test_tables_made_from_the_dataset(table, tmp_path):
    (tmp_path / "m.tsv").write_text("\n".join("\t".join(row) for row in rows()))
    lines, counts = ScanCounts(), ScanCounts()
    expected = list(metadata.scan(tmp_path / "m.tsv", QUERIES["words"], lines))
    found = list(metadata_duckdb.scan(table, QUERIES["words"], counts, ScanOptions()))
    assert [repr(photo) for photo in found] == [repr(photo) for photo in expected]
    assert [photo.source_id for photo in found] == ["1", "4"]
    assert found[0].latitude == 52.25 and found[0].taken == "2008-01-01 00:00:00.0"
    assert (counts.lines, counts.videos, counts.no_word, counts.excluded, counts.malformed) == (
        6,
        1,
        1,
        1,
        1,
    )
    assert counts.malformed_lines == [f"{table.name}:6: expected a photo id and an http address"]


def test_tables_without_the_columns(tmp_path):
    pd.DataFrame({"title": ["cow"], "a": [1]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(UserError, match="found none for photo_id, download_url, user_tags among title, a"):
        list(metadata_duckdb.scan(tmp_path / "m.parquet", QUERIES["words"], ScanCounts(), ScanOptions()))
    connection = sqlite3.connect(tmp_path / "m.sql")
    connection.execute("create table photos (title, b)")
    connection.close()
    with pytest.raises(UserError, match="found none for photo_id"):
        list(metadata_duckdb.scan(tmp_path / "m.sql", QUERIES["words"], ScanCounts(), ScanOptions()))


def test_what_cannot_be_read(tmp_path):
    whole = gzip.compress(b"\n".join(line(number, "cow").encode() for number in range(5000)))
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    packed = bz2.compress(b"\n".join(line(number, "cow").encode() for number in range(5000)))
    (tmp_path / "cut.bz2").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no table")
    (tmp_path / "m.sql").write_bytes(b"SQLite format 3\0 no table" * 100)
    for name in ("cut.gz", "cut.bz2", "m.parquet", "m.sql"):
        with pytest.raises(UserError, match=name):
            list(metadata_duckdb.scan(tmp_path / name, QUERIES["words"], ScanCounts(), ScanOptions()))
    with pytest.raises(UserError, match="expected a metadata file"):
        list(metadata_duckdb.scan(tmp_path / "none", QUERIES["words"], ScanCounts(), ScanOptions()))


def test_options_are_checked():
    with pytest.raises(UserError, match="--memory: expected a size such as 2GB; found much"):
        ScanOptions(memory="much")
    with pytest.raises(UserError, match="--threads"):
        ScanOptions(threads=0)
