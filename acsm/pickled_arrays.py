"""Pickles of arrays and plain values, read without executing anything.

NumPy's own way to unpickle runs its C code on what the file says, and a broken file can upset it. Here
every name in a pickle becomes an inert record, and arrays are made from the records afterwards, checked.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError

_NDARRAY = "numpy.ndarray"


class _Record:
    """Arguments and state of what the pickle would have called."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Record):
    def value(self) -> np.dtype:
        """The dtype; objects, numbers and booleans only."""
        order = self.state[1] if self.state else "="
        kind = str(self.arguments[0])
        if not re.fullmatch(r"[biuf]\d{1,2}|O\d?", kind) or order not in ("<", ">", "=", "|"):
            raise ValueError(f"an array of {kind}")
        return np.dtype(object) if kind[0] == "O" else np.dtype(order + kind)


def _made(data: Any, dtype: Any, shape: Any, fortran: bool) -> Any:
    """An array, or the nested list of one of objects."""
    kind = dtype.value()
    shape = tuple(int(size) for size in shape)
    if any(size < 0 for size in shape) or len(shape) > 8:
        raise ValueError(f"an array of shape {list(shape)}")
    count = math.prod(shape)
    if kind.hasobject:
        items = [_plain(item) for item in data]
        if len(items) != count or len(shape) > 1:
            raise ValueError(f"{len(items)} objects in an array of shape {list(shape)}")
        return items if shape else items[0]
    data = _plain(data)
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes) or len(data) != count * kind.itemsize:
        raise ValueError(f"an array of shape {list(shape)} with other data")
    return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C").copy()


class _Array(_Record):
    def value(self) -> Any:
        """The array; `arguments` are those of NumPy's `_reconstruct`, `state` what it is filled with."""
        _, shape, dtype, fortran, data = self.state
        return _made(data, dtype, shape, bool(fortran))


class _Buffer(_Record):
    def value(self) -> Any:
        """The array of protocol 5."""
        data, dtype, shape, order = self.arguments
        return _made(bytes(data), dtype, shape, order == "F")


class _Scalar(_Record):
    def value(self) -> Any:
        """The number."""
        dtype, data = self.arguments
        return _made(data, dtype, (), False)[()]


class _Bytes(_Record):
    def value(self) -> bytes:
        """The bytes that Python 3 writes for Python 2 as text."""
        text, encoding = self.arguments
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"text in {encoding}")
        return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Bytes,
    **{
        (f"numpy.{core}.{module}", name): record
        for core in ("core", "_core")
        for module, name, record in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _Buffer),
        )
    },
}


class _Reader(pickle.Unpickler):
    """Knows the names of `_NAMES`; every other name ends the reading."""

    def find_class(self, module: str, name: str) -> Any:
        """The record that stands for a name.

        Raises:
            UnpicklingError: for any other name.
        """
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"{module}.{name}, which is neither an array nor a plain value")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """References to elsewhere are refused.

        Raises:
            UnpicklingError: always.
        """
        raise pickle.UnpicklingError("a reference to elsewhere")


def _plain(value: Any) -> Any:
    if isinstance(value, _Record):
        return value.value()  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, type):
        raise ValueError("a name in place of a value")
    return value


def read_arrays_only(path: Path) -> Any:
    """Unpickle a file of arrays, dictionaries, lists, text and numbers, executing nothing.

    Arrays hold numbers or booleans; one of objects comes as a list.

    Raises:
        UserError: the file is missing, no pickle, or names anything else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"expected a pickle at {path}; found {error.strerror}") from None
    try:
        return _plain(_Reader(io.BytesIO(data), encoding="latin1").load())
    except (
        pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
        LookupError, MemoryError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        found = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{path}: expected a pickle of arrays and plain values; found {found}") from None
