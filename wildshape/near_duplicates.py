"""Near-duplicate pictures: a perceptual hash and clusters of hashes.

The same photo returns from the web re-encoded, resized, watermarked, or with a caption bar pasted
below it. Splits and web pools go by cluster, so that no picture stands on both sides of a
comparison.

The hash is the usual DCT perceptual hash (64 signs of the 8 x 8 lowest frequencies against their
median) taken after a caption bar at the top or bottom is cut off, which stock-photo sites add and
which moves every row below it. `MAX_DISTANCE` was chosen on 600 web and 150 labelled photos of
cows, against pairs confirmed by matched local features (at least 25 inliers to one affine map): at
8 of 64 bits it finds 74 of 88 such pairs with 1 false one (without the cut: 51 with 1 false); what
it misses are mainly other shots of the same animal. At 10 bits false pairs appear (8), at 12 they
are as many as a third of all. Pairs up to `CANDIDATE_DISTANCE`, and mirrored ones, are therefore
candidates only, to be decided by `wildshape.same_photo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import cv2
import numpy as np

HASH_BITS = 64
MAX_DISTANCE = 8
CANDIDATE_DISTANCE = 18
CROP_DISTANCE = 14

_DCT_SIDE = 32
_MAX_BAR = 0.14
_CROP_SIDES = (0.9, 0.8)
_BLOCK = 4096
_INDEX_FROM = 8000


def phash(image: np.ndarray) -> str:
    """Perceptual hash of a decoded picture.

    Args:
        image: RGB uint8 [H, W, 3], or grey uint8 [H, W].

    Returns:
        16 hexadecimal digits (64 bits). Pictures of one tone all share a hash.

    Raises:
        ValueError: the array is no picture (wrong shape or no pixels).
    """
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"expected an image [H, W, 3] or [H, W]; found shape {image.shape}")
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = trim_caption_bars(grey)
    small = cv2.resize(grey, (_DCT_SIDE, _DCT_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float64))[:8, :8].ravel()
    low = np.round(low, 6)  # numerical noise must not decide the bits of flat pictures
    return np.packbits(low > np.median(low)).tobytes().hex()


def mirrored_hash(value: str) -> str:
    """Nearly the hash of the mirror image, without the image (3 bits off on average, 10 at most).

    A mirror changes the signs of the coefficients of odd horizontal frequency, and the median that
    they are compared with is close to zero.
    """
    return bytes(byte ^ 0x55 for byte in bytes.fromhex(value)).hex()


def crop_hashes(image: np.ndarray) -> list[str]:
    """Hashes of ten crops of a picture (.9 and .8 of its sides; the corners and the middle).

    A crop's hash moves away fast: of 150 photos cropped at random to .9 of their sides 20 stay within
    8 bits, 123 within 18. Within `CROP_DISTANCE` bits of one of these ten are 149, and of those
    cropped to .8 106 (27 within 18 bits of the whole).

    Args:
        image: RGB uint8 [H, W, 3], or grey uint8 [H, W].
    """
    height, width = image.shape[:2]
    hashes = []
    for side in _CROP_SIDES:
        h, w = max(1, round(height * side)), max(1, round(width * side))
        down, right = height - h, width - w
        for y, x in ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)):
            hashes.append(phash(image[y : y + h, x : x + w]))
    return hashes


def trim_caption_bars(grey: np.ndarray) -> np.ndarray:
    """Cut a bar of mostly one tone off the top and the bottom of a grey picture [H, W].

    A bar is at most 14 % of the height, at least 60 % of it within 20 grey levels of its median,
    and parted from the picture by an edge across more than 55 % of the width.
    """
    bottom = _bar_start(grey)
    grey = grey[:bottom]
    top = grey.shape[0] - _bar_start(grey[::-1])
    return grey[top:]


def _bar_start(grey: np.ndarray) -> int:
    height = grey.shape[0]
    first = height - int(_MAX_BAR * height)
    if height - first < 4:
        return height
    tail = grey[first - 1 :].astype(np.int16)
    edges = np.flatnonzero((np.abs(np.diff(tail, axis=0)) > 25).mean(axis=1) > 0.55)
    for edge in edges:
        bar = tail[edge + 1 :]
        if len(bar) >= 4 and (np.abs(bar - np.median(bar)) < 20).mean() > 0.6:
            return first + int(edge)
    return height


def hamming(first: Sequence[str | None], second: Sequence[str | None]) -> np.ndarray:
    """Bits that differ, float32 [len(first), len(second)]; infinite where a hash is missing."""
    a, b = _signs(first), _signs(second)
    distance = (HASH_BITS - a @ b.T) / 2
    distance[~a.any(axis=1)] = np.inf
    distance[:, ~b.any(axis=1)] = np.inf
    return distance


def nearest(
    queries: Sequence[str | None], references: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the nearest reference.

    Returns:
        Index [Q] (-1 if there is none) and distance in bits [Q] (infinite if there is none); of
        equally near references the first.
    """
    index = np.full(len(queries), -1, dtype=np.int64)
    distance = np.full(len(queries), np.inf, dtype=np.float32)
    if not len(references):
        return index, distance
    for start in range(0, len(queries), _BLOCK):
        block = hamming(queries[start : start + _BLOCK], references)
        best = block.argmin(axis=1)
        found = block[np.arange(len(block)), best]
        part = slice(start, start + len(block))
        distance[part] = found
        index[part] = np.where(np.isfinite(found), best, -1)
    return index, distance


@dataclass(frozen=True)
class Pairs:
    """Pairs of hashes at most `radius` bits apart: indices [M] into the first and the second list."""

    first: np.ndarray
    second: np.ndarray
    radius: int

    def __len__(self) -> int:
        return len(self.first)


def close_pairs(
    first: Sequence[str | None],
    second: Sequence[str | None],
    max_distance: int,
    *,
    ordered: bool = False,
    limit: int | None = None,
) -> Pairs:
    """All pairs of a hash of the first list and one of the second that are close.

    Args:
        first: Hashes; missing ones (None) are in no pair.
        second: Hashes.
        max_distance: Bits by which they may differ.
        ordered: Only pairs in which the first index is less than the second: for a list and itself,
            or a list and its mirrored hashes.
        limit: Takes the largest radius, up to `max_distance`, that leaves at most so many pairs.

    Returns:
        The pairs, sorted. The radius is -1 if even equal hashes are too many.
    """
    a, known_a = _packed(first)
    b, known_b = _packed(second)
    # Below some thousands of hashes comparing all pairs is faster than an index.
    indexed = len(a) * len(b) > _INDEX_FROM**2
    if not indexed:
        return close_pairs_reference(first, second, max_distance, ordered=ordered, limit=limit)
    from wildshape import hash_index  # numba takes a second to import

    # Both parts of a pair keep their order among those that are known.
    rows, columns = np.flatnonzero(known_a), np.flatnonzero(known_b)
    a, b = a[known_a], b[known_b]
    if ordered and not np.array_equal(rows, columns):
        raise ValueError("expected lists with the same hashes missing, or ordered=False")
    if limit is not None:
        max_distance = _radius(a, b, max_distance, ordered, limit)
    if max_distance < 0:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), max_distance)
    i, j, _ = hash_index.find_pairs(a, b, max_distance, ordered)
    return Pairs(rows[i], columns[j], max_distance)


def _radius(a: np.ndarray, b: np.ndarray, max_distance: int, ordered: bool, limit: int) -> int:
    """The largest radius up to `max_distance` that leaves at most `limit` pairs; -1 if none does."""
    from wildshape import hash_index

    for reach in range(3, HASH_BITS, 4):  # the radii up to which the index's parts stay as wide
        reach = min(reach, max_distance)
        total = np.cumsum(hash_index.count_pairs(a, b, reach, ordered))
        if total[-1] > limit or reach == max_distance:
            return int((total <= limit).sum()) - 1
    return max_distance


def _packed(hashes: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes as numbers uint64 [N], and which are not missing [N]."""
    known = np.array([value is not None for value in hashes], dtype=bool)
    numbers = np.zeros(len(hashes), dtype=np.uint64)
    for row, value in enumerate(hashes):
        if value is not None:
            numbers[row] = _number(value)
    return numbers, known


def _number(value: str) -> int:
    if len(value) * 4 == HASH_BITS:
        with suppress(ValueError):
            return int(value, 16)
    raise ValueError(f"expected a hash of {HASH_BITS // 4} hexadecimal digits; found {value!r}")


def close_pairs_reference(
    first: Sequence[str | None],
    second: Sequence[str | None],
    max_distance: int,
    *,
    ordered: bool = False,
    limit: int | None = None,
) -> Pairs:
    """`close_pairs` by comparing all pairs, block by block."""
    a, b = _signs(first), _signs(second)
    if limit is not None:
        counts = np.zeros(max_distance + 1, dtype=np.int64)
        for _, _, distance in _blocks(a, b, max_distance, ordered):
            counts += np.bincount(distance, minlength=max_distance + 1)
        max_distance = int((np.cumsum(counts) <= limit).sum()) - 1
    found = list(_blocks(a, b, max_distance, ordered))
    rows, columns = (
        np.concatenate([np.zeros(0, np.int64), *(block[part] for block in found)]) for part in (0, 1)
    )
    order = np.lexsort((columns, rows))
    return Pairs(rows[order], columns[order], max_distance)


def clusters(
    hashes: Sequence[str | None], max_distance: int = MAX_DISTANCE, links: np.ndarray | None = None
) -> np.ndarray:
    """Cluster ids int64 [N]: linked by a chain of hashes at most `max_distance` bits apart.

    Exact (`python -m benchmarks near_duplicates` times it). Ids count from 0 in order of first
    appearance. A missing hash (None) is a cluster of its own, unless a link joins it to another.

    Args:
        hashes: Hashes, or None.
        max_distance: Bits by which linked hashes may differ.
        links: Further links, indices [M, 2] into `hashes`.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(hashes):
        return np.zeros(0, dtype=np.int64)
    present = np.flatnonzero([value is not None for value in hashes])
    known = np.array([value for value in hashes if value is not None], dtype=str)
    unique, first_seen, inverse = np.unique(known, return_index=True, return_inverse=True)
    close = close_pairs(unique.tolist(), unique.tolist(), max_distance, ordered=True)
    one = present[first_seen]  # stands for all with its hash
    joined = np.concatenate(
        [
            np.stack([one[close.first], one[close.second]], axis=1),
            np.stack([one[inverse], present], axis=1),
            np.zeros((0, 2), np.int64) if links is None else links,
        ]
    )
    graph = coo_matrix((np.ones(len(joined), dtype=np.int8), tuple(joined.T)), shape=(len(hashes),) * 2)
    label = connected_components(graph, directed=False)[1]
    _, first_seen, inverse = np.unique(label, return_index=True, return_inverse=True)
    order = np.empty(len(first_seen), dtype=np.int64)
    order[np.argsort(first_seen)] = np.arange(len(first_seen))
    return order[inverse]


def _blocks(
    a: np.ndarray, b: np.ndarray, max_distance: int, ordered: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, columns and distances of close pairs of signs [N, 64] and [M, 64], block by block."""
    least = HASH_BITS - 2 * max_distance
    known_a, known_b = a[:, 0] != 0, b[:, 0] != 0
    for i in range(0, len(a), _BLOCK):
        for j in range(i if ordered else 0, len(b), _BLOCK):
            product = a[i : i + _BLOCK] @ b[j : j + _BLOCK].T
            row, column = np.nonzero(product >= least)
            keep = known_a[row + i] & known_b[column + j]
            if ordered:
                keep &= row + i < column + j
            row, column = row[keep], column[keep]
            yield row + i, column + j, ((HASH_BITS - product[row, column]) / 2).astype(np.int64)


def _signs(hashes: Sequence[str | None]) -> np.ndarray:
    """Hashes as rows of -1 and 1, float32 [N, 64]; a missing hash is a row of zeros."""
    signs = np.zeros((len(hashes), HASH_BITS), dtype=np.float32)
    for row, value in enumerate(hashes):
        if value is not None:
            raw = _number(value).to_bytes(HASH_BITS // 8)
            signs[row] = np.unpackbits(np.frombuffer(raw, dtype=np.uint8)) * 2.0 - 1.0
    return signs
