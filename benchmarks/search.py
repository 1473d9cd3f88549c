"""Searching metadata for a category: DuckDB, the line-by-line reader, pandas and grep, in one run.

    python -m benchmarks search
    python -m benchmarks.search --rows 5000000 --folder /tmp

The file has the dataset's 25 columns, some 480 bytes a line, words of Zipf's frequencies, and one of the
cow's words in about one line of a hundred. Each way runs in a process of its own, whose processor time and
largest memory are noted. grep and pandas look for the same whole words in the encoded line or columns and
do not decode, check or exclude anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save
from prepare_data import metadata, metadata_duckdb
from prepare_data.metadata import ScanCounts
from prepare_data.query import Query, plural
from wildshape.category import load_category

WAYS = ("duckdb", "reader", "pandas", "grep")
CATEGORY = "cow"
_FORMS = 30_000


def write_file(path: Path, rows: int, seed: int = 0) -> None:
    """Write made-up metadata, reproducibly."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(_FORMS)]
    words[300] = CATEGORY
    words[20_000:20_004] = "cattle", "bull", "ox", "calf"
    chance = 1 / np.arange(10, _FORMS + 10)
    chance /= chance.sum()
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        for start in range(0, rows, 50_000):
            count = min(50_000, rows - start)
            drawn = rng.choice(_FORMS, (count, 20), p=chance)
            videos = rng.random(count) < 0.008
            lines = []
            for i in range(count):
                number = start + i
                w = [words[k] for k in drawn[i]]
                key = f"{5_000_000_000 + number}"
                lines.append(
                    f"{number}\t{key}\t{number:032x}\t1234{number % 9000}@N00\tuser+{w[0]}\t"
                    "2010-07-01 12:30:00.0\t"
                    f"1278000000\tCanon+EOS+40D\t{w[1]}+{w[2]}+{w[3]}\t{'+'.join(w[4:15])}%2C+%3Cb%3E\t"
                    f"{','.join(w[15:])}\t\t4.5\t52.1\t16\thttp://www.flickr.com/photos/1234@N00/{key}/\t"
                    f"http://farm5.staticflickr.com/4100/{key}_0a1b2c3d4e.jpg\tAttribution License\t"
                    f"http://creativecommons.org/licenses/by/2.0/\t4100\t5\t0a1b2c3d4e\t1f2e3d4c5b\tjpg\t{int(videos[i])}\n"
                )
            handle.writelines(lines)


def _words() -> str:
    query = Query.of(load_category(CATEGORY))
    return "|".join(sorted({form for word in query.words for form in (word, plural(word))}))


def search_duckdb(path: Path, threads: int | None) -> dict[str, Any]:
    """With `prepare_data.metadata_duckdb`."""
    counts, query = ScanCounts(), Query.of(load_category(CATEGORY))
    options = metadata_duckdb.ScanOptions(threads=threads, temporary=path.parent)
    found = sum(1 for _ in metadata_duckdb.scan(path, query, counts, options))
    return {"found": found, "lines": counts.lines}


def search_reader(path: Path, threads: int | None) -> dict[str, Any]:
    """With the readable twin."""
    counts, query = ScanCounts(), Query.of(load_category(CATEGORY))
    found = sum(1 for _ in metadata.scan(path, query, counts))
    return {"found": found, "lines": counts.lines}


def search_pandas(path: Path, threads: int | None) -> dict[str, Any]:
    """With a loop over chunks of a data frame."""
    import pandas as pd

    names = metadata.COLUMNS[25]
    pattern = rf"\b(?:{_words()})\b"
    found = lines = 0
    for chunk in pd.read_csv(
        path, sep="\t", names=names, header=None, dtype=str, quoting=3, chunksize=100_000, na_filter=False
    ):
        text = chunk["title"] + "\t" + chunk["description"] + "\t" + chunk["user_tags"]
        hit = text.str.contains(pattern, case=False, regex=True) & (chunk["marker"] == "0")
        found, lines = found + int(hit.sum()), lines + len(chunk)
    return {"found": found, "lines": lines}


def search_grep(path: Path, threads: int | None) -> dict[str, Any]:
    """With grep -P on whole lines."""
    command = ["grep", "-c", "-a", "-i", "-P", rf"\b(?:{_words()})\b.*\t0$", str(path)]
    return {"found": int(subprocess.run(command, capture_output=True, text=True).stdout)}


def measure(way: str, path: Path, threads: int | None) -> dict[str, Any]:
    """Run one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.search", "--way", way, "--file", str(path)]
    command += [] if threads is None else ["--threads", str(threads)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def run_way(way: str, path: Path, threads: int | None) -> dict[str, Any]:
    """Search, and note the time and the largest memory of this process or grep's."""
    began = time.perf_counter()
    figures = globals()[f"search_{way}"](path, threads)
    seconds = time.perf_counter() - began
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = children if way == "grep" else own
    return {
        **figures,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1024),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, search it in every way, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where the file of about 2 GB goes")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--way", choices=WAYS, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(argv)
    if options.way:
        print(json.dumps(run_way(options.way, options.file, options.threads)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "metadata.tsv"
        write_file(path, options.rows)
        size = path.stat().st_size / 1e6
        figures = {}
        for way in WAYS:
            figures[way] = row = measure(way, path, options.threads)
            row["rows_per_s"] = round(options.rows / row["seconds"])
            row["rows_per_cpu_s"] = round(options.rows / row["cpu_seconds"])
            for kind in ("seconds", "cpu_seconds"):
                row[f"{kind}_ratio"] = round(row[kind] / figures["duckdb"][kind], 2)
            print(
                f"   {way:<7} {row['seconds']:7.1f} s {row['rows_per_s']:>10,} rows/s "
                f"{row['rows_per_cpu_s']:>10,} rows/s a core {row['peak_mb']:>5} MB "
                f"{row['found']:>7} found, {row['cpu_seconds_ratio']} times DuckDB's processor time",
                flush=True,
            )
    figures = {"rows": options.rows, "file_mb": round(size), "ways": figures}
    figures["load_average"] = round(os.getloadavg()[0], 2)  # what else ran: compare processor times then
    print(save("search", figures, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
