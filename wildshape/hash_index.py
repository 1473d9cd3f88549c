"""All close pairs among millions of 64-bit hashes: multi-index hashing.

Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing" (2014): two
hashes at most R bits apart are, in at least one of four 16-bit parts, at most r bits apart, where the
parts' radii r + 1 sum to R + 1. Hashes are sorted by each part, and only those in neighbouring buckets
compared. Exact; `wildshape.near_duplicates` holds the twin that compares all pairs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np

HASH_BITS = 64
_PARTS = 4
_PART_BITS = 16
_BUCKETS = 1 << _PART_BITS
_TASKS = 64  # ranges of buckets, for the threads


def part_radii(max_distance: int) -> tuple[int, ...]:
    """Radius within each part; -1 leaves a part out."""
    each, rest = divmod(max_distance + 1, _PARTS)
    return tuple(each - 1 + (part < rest) for part in range(_PARTS))


@lru_cache(maxsize=32)
def masks(radius: int) -> np.ndarray:
    """All 16-bit numbers with at most `radius` bits set, uint16, those with fewer bits first."""
    found = [
        sum(1 << bit for bit in bits)
        for count in range(radius + 1)
        for bits in itertools.combinations(range(_PART_BITS), count)
    ]
    return np.array(found, dtype=np.uint16)


@numba.njit(nogil=True, cache=True)
def _bits(x: np.uint64) -> np.int64:  # pragma: no cover - compiled
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(nogil=True, cache=True)
def _search(  # pragma: no cover - compiled
    a: np.ndarray, a_order: np.ndarray, a_start: np.ndarray,
    b: np.ndarray, b_order: np.ndarray, b_start: np.ndarray,
    near: np.ndarray, part: int, radii: np.ndarray, low: int, high: int, max_distance: int, ordered: bool,
    counts: np.ndarray, first: np.ndarray, second: np.ndarray, distances: np.ndarray,
) -> int:  # fmt: skip
    """Counts pairs by distance and, where there is room, writes them down; returns how many there are."""
    found = 0
    for key in range(low, high):
        if a_start[key] == a_start[key + 1]:
            continue
        for mask in near:
            other = key ^ mask
            for i in range(a_start[key], a_start[key + 1]):
                for j in range(b_start[other], b_start[other + 1]):
                    x = a[i] ^ b[j]
                    distance = _bits(x)
                    if distance > max_distance or (ordered and a_order[i] >= b_order[j]):
                        continue
                    seen = False
                    for earlier in range(part):
                        bits = (x >> np.uint64(16 * earlier)) & np.uint64(0xFFFF)
                        if _bits(bits) <= radii[earlier]:
                            seen = True
                            break
                    if seen:
                        continue
                    counts[distance] += 1
                    if found < len(first):
                        first[found] = a_order[i]
                        second[found] = b_order[j]
                        distances[found] = distance
                    found += 1
    return found


def _sorted(hashes: np.ndarray, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes sorted by one part, their places before, and where each bucket starts [65537]."""
    keys = ((hashes >> np.uint64(_PART_BITS * part)) & np.uint64(_BUCKETS - 1)).astype(np.int64)
    order = np.argsort(keys, kind="stable")
    start = np.zeros(_BUCKETS + 1, dtype=np.int64)
    np.cumsum(np.bincount(keys, minlength=_BUCKETS), out=start[1:])
    return hashes[order], order, start


def _ranges(start: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of buckets with about as many hashes each."""
    edges = np.searchsorted(start, np.linspace(0, start[-1], _TASKS + 1)[1:-1])
    edges = np.unique(np.concatenate([[0], edges, [_BUCKETS]]))
    yield from zip(edges[:-1].tolist(), edges[1:].tolist())


def count_pairs(a: np.ndarray, b: np.ndarray, max_distance: int, ordered: bool = False) -> np.ndarray:
    """Number of pairs by distance, int64 [max_distance + 1]; arguments as for `find_pairs`."""
    return _run(a, b, max_distance, ordered, False)[0]


def find_pairs(
    a: np.ndarray, b: np.ndarray, max_distance: int, ordered: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a hash of `a` and one of `b` that are at most `max_distance` bits apart.

    Args:
        a: Hashes uint64 [N].
        b: Hashes uint64 [M].
        max_distance: Bits, at most 63.
        ordered: Only pairs whose index in `a` is less than that in `b`.

    Returns:
        Indices into `a` and `b` and distances, int64 [P] each, sorted by the indices.
    """
    return _run(a, b, max_distance, ordered, True)[1]


@dataclass(frozen=True)
class _Part:
    """What is looked for in one part: both lists sorted by it, the masks, and what counts as a pair."""

    part: int
    a: tuple[np.ndarray, np.ndarray, np.ndarray]
    b: tuple[np.ndarray, np.ndarray, np.ndarray]
    radii: np.ndarray
    max_distance: int
    ordered: bool
    keep: bool

    def search(self, span: tuple[int, int]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Counts by distance and pairs whose first hash is in a range of buckets."""
        near = masks(int(self.radii[self.part])).astype(np.int64)
        settings = (near, self.part, self.radii, *span, self.max_distance, self.ordered)
        room = 4096 if self.keep else 0
        while True:
            counts = np.zeros(self.max_distance + 1, dtype=np.int64)
            space = tuple(np.empty(room, dtype=np.int64) for _ in range(3))
            arguments: tuple[Any, ...] = (*self.a, *self.b, *settings, counts, *space)
            found = int(_search(*arguments))
            if not self.keep or found <= room:
                return counts, tuple(values[:found] for values in space)
            room = found


def _run(
    a: np.ndarray, b: np.ndarray, max_distance: int, ordered: bool, keep: bool
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    radii = np.array(part_radii(max_distance), dtype=np.int64)
    counts = np.zeros(max_distance + 1, dtype=np.int64)
    found: list[tuple[np.ndarray, ...]] = []
    for number in np.flatnonzero(radii >= 0).tolist():
        one, other = _sorted(a, number), _sorted(b, number)
        part = _Part(number, one, other, radii, max_distance, ordered, keep)
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for local, pairs in pool.map(part.search, _ranges(one[2])):
                counts += local
                found.append(pairs)
    empty = np.zeros(0, dtype=np.int64)
    first, second, distances = (np.concatenate([empty, *(pairs[k] for pairs in found)]) for k in range(3))
    order = np.lexsort((second, first))
    return counts, (first[order], second[order], distances[order])
