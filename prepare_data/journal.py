"""An append-only file of JSON lines: what a stage has done so far, readable after a kill."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wildshape.files import atomic_write

_SYNC_EVERY = 64


class Journal:
    """Records appended by several threads, each handed to the system when `append` returns.

    A killed process loses nothing that was appended; a power cut loses at most the last few dozen
    records (they are flushed to disk in groups). A line that a crash left half written is dropped
    on reading.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._unsynced = 0
        torn = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        if torn:
            self._file.write(b"\n")

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; safe to call from any thread."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._unsynced += 1
            if self._unsynced >= _SYNC_EVERY:
                os.fsync(self._file.fileno())
                self._unsynced = 0

    def close(self) -> None:
        """Flush to disk and close."""
        with self._lock:
            if not self._file.closed:
                os.fsync(self._file.fileno())
                self._file.close()

    def __enter__(self) -> Journal:
        """Use as a context manager."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


def read_journal(path: str | os.PathLike[str], key: str) -> dict[str, dict[str, Any]]:
    """Records of a journal by their `key`, the last one of each; {} if there is no journal."""
    records: dict[str, dict[str, Any]] = {}
    if not Path(path).exists():
        return records
    with open(path, "rb") as handle:
        for line in handle:
            try:
                record = json.loads(line)
            except ValueError:  # the line that a kill cut short
                continue
            if isinstance(record, dict) and key in record:
                records[record[key]] = record
    return records


def rewrite_journal(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> None:
    """Replace a journal's content by `records`, atomically."""
    with atomic_write(path, "w") as handle:
        for record in records:
            handle.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
