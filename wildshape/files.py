"""Files that are either whole or absent: every write goes to a temporary name and is moved."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from wildshape.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); moved into place on success only.

    The data is flushed to disk before the move, so that a crash leaves the old file or the new one.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file open for writing whose content appears at `path` on success only."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as handle:
        yield handle


def same_content(source: Path, path: Path) -> None:
    """Make `path` what `source` is, at once and, where the file system can, without writing it again."""
    with atomic_path(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.as_posix()
    return value


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON; NumPy values become plain ones, NaN and inf become null."""
    with atomic_write(path, "w") as handle:
        json.dump(_plain(value), handle, indent=1, allow_nan=False)
        handle.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        UserError: if the file is missing or is not JSON.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except FileNotFoundError:
        raise UserError(f"expected a JSON file at {path}; found none") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"expected JSON in {path}; found {error}") from None


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def file_hash(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def distinct(names: Iterable[str], form: str = "{name}-{number}") -> list[str]:
    """Names, numbered from the second of each on; those that differ in upper case alone count as one."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        number, own = 1, name
        while own.lower() in taken:
            number += 1
            own = form.format(name=name, number=number)
        taken.add(own.lower())
        found.append(own)
    return found
