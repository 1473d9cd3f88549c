"""The selection criteria: one number an instance that says how far to trust its keypoints.

Four are those of the animals3d paper (CVPR 2023, section 3.2.1), computed as its released code
does:

- KP-Conf: the sum of a record's keypoint confidences; more is better.
- CF-MT: distance between the keypoints of the plain picture and their mean over transformed copies.
- CF-CM: distance to an auxiliary network's keypoints (equation 5).
- CF-CM2: distance to the keypoints that the 3D model reprojects (equation 6).

- CF-All, of this project: the doubts of all sources there are, weighed (`pseudolabels.combined`).

CF-MT, CF-CM and CF-CM2 share one distance, `keypoint_distance`; less is better. Arrays go in and arrays
come out: `pseudolabels.candidates` makes them from tables. A further criterion is one call of
`register`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wildshape.errors import UserError

if TYPE_CHECKING:
    from wildshape.workspace import Workspace

CANONICAL_SIZE = 256.0
# Rows at a time: temporaries stay in the processor's cache, and memory does not grow with N.
_ROWS = 1024


def kp_conf(confidence: np.ndarray) -> np.ndarray:
    """KP-Conf: sum over keypoints of confidence [N, K]; value [N], more is better.

    Raises:
        UserError: a confidence is NaN or infinite.
    """
    # einsum: over so short an axis, np.sum is three times slower
    confidence = np.asarray(confidence)
    return _finite(np.einsum("nk->n", confidence, dtype=np.float64), "confidences")


def keypoint_distance(xy_a: np.ndarray, xy_b: np.ndarray, box_xyxy: np.ndarray) -> np.ndarray:
    """Mean distance between two sets of keypoints, in a box scaled to 256 x 256.

    Both axes are scaled on their own (256 / w and 256 / h), then the Euclidean distances of the K
    keypoints are averaged, every keypoint counting the same.

    Args:
        xy_a: [N, K, 2] in image pixels, float32 or float64.
        xy_b: [N, K, 2] likewise.
        box_xyxy: [N, 4] in the same frame.

    Returns:
        float64 [N], in canonical pixels.

    Raises:
        UserError: a box of no area, or a keypoint that is NaN or infinite.
    """
    xy_a, xy_b = np.asarray(xy_a), np.asarray(xy_b)
    _same_shape(xy_a, xy_b)
    scale = _canonical_scale(box_xyxy, len(xy_a))

    def compute(rows: slice) -> np.ndarray:
        difference = np.subtract(xy_a[rows], xy_b[rows], dtype=np.float64)
        return _mean_norm(difference, scale[rows])

    return _finite(_by_rows(len(xy_a), compute), "keypoints")


def cf_mt(xy0: np.ndarray, xy_transforms: np.ndarray, box_xyxy: np.ndarray) -> np.ndarray:
    """CF-MT: distance from the plain picture's keypoints to their mean over transformed copies.

    Args:
        xy0: [N, K, 2], predicted on the picture as it is.
        xy_transforms: [N, T, K, 2], predicted on transformed copies and mapped back.
        box_xyxy: [N, 4].

    Returns:
        float64 [N], in canonical pixels; less is better.

    Raises:
        UserError: a box of no area, or a keypoint that is NaN or infinite.
    """
    xy0, xy_transforms = np.asarray(xy0), np.asarray(xy_transforms)
    if xy_transforms.ndim != 4 or xy_transforms.shape[1] == 0:
        raise ValueError(f"expected transforms [N, T, K, 2]; found shape {xy_transforms.shape}")
    _same_shape(xy0, xy_transforms[:, 0])
    scale = _canonical_scale(box_xyxy, len(xy0))

    def compute(rows: slice) -> np.ndarray:
        difference = np.add.reduce(xy_transforms[rows], axis=1, dtype=np.float64)
        difference *= 1.0 / xy_transforms.shape[1]
        difference -= xy0[rows]
        return _mean_norm(difference, scale[rows])

    return _finite(_by_rows(len(xy0), compute), "keypoints")


def rank(values: np.ndarray, ids: Sequence[str] | np.ndarray, descending: bool) -> np.ndarray:
    """Row indices [N] from the best value to the worst; equal values in order of their ids."""
    values = np.asarray(values, dtype=np.float64)
    key = -values if descending else values
    order = np.argsort(key)
    # Ids are looked at only where values are equal: sorting a million strings costs seconds.
    tied = np.flatnonzero(np.diff(key[order]) == 0)
    if len(tied):
        ids = np.asarray(ids)
        starts = tied[np.diff(tied, prepend=-2) > 1]
        stops = tied[np.diff(tied, append=len(order) + 1) > 1] + 2
        for start, stop in zip(starts, stops):
            run = np.sort(order[start:stop])
            order[start:stop] = run[np.argsort(ids[run], kind="stable")]
    return order


def select(values: np.ndarray, ids: Sequence[str] | np.ndarray, count: int, descending: bool) -> np.ndarray:
    """Row indices [count] of the best values, best first, ties by id.

    Raises:
        UserError: there are fewer than `count` values.
    """
    if count > len(values):
        raise UserError(
            f"expected at least --selection_num {count} candidates; found {len(values)}; "
            f"choose {len(values)} or fewer, or label more images"
        )
    return rank(values, ids, descending)[:count]


@dataclass(frozen=True)
class Candidates:
    """What criteria look at, row by row the same N instances.

    Attributes:
        ids: [N] strings by which ties are broken.
        box_xyxy: [N, 4] in image pixels.
        xy: Keypoints [N, K, 2] by source; "pose_mt" holds those of the transforms, [N, T, K, 2].
        confidence: Confidences [N, K] by source.
        seed: For criteria that draw at random.
    """

    ids: np.ndarray
    box_xyxy: np.ndarray
    xy: dict[str, np.ndarray] = field(default_factory=dict)
    confidence: dict[str, np.ndarray] = field(default_factory=dict)
    seed: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Criterion:
    """One criterion.

    Attributes:
        name: Canonical name, as in `--filter`.
        title: Name for tables and plots.
        sources: Keypoint sources that it needs; the first is the one whose labels are chosen.
        descending: Whether more is better.
        value: Computes [N] values.
        aliases: Other spellings that are understood.
        fit: Makes the criterion of a workspace, where it depends on what a run has.
        facts: What was fitted, for the metrics; "note" is said aloud.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    descending: bool
    value: Callable[[Candidates], np.ndarray]
    aliases: tuple[str, ...] = ()
    fit: Callable[[Criterion, Workspace], Criterion] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fitted(self, workspace: Workspace) -> Criterion:
        """The criterion as it is for a workspace.

        Raises:
            UserError: as `fit`.
        """
        return self if self.fit is None else self.fit(self, workspace)


CRITERIA: dict[str, Criterion] = {}


def register(criterion: Criterion) -> Criterion:
    """Make a criterion known to `--filter`.

    Raises:
        ValueError: its name or an alias is taken.
    """
    taken = {name for known in CRITERIA.values() for name in (known.name, *known.aliases)}
    clash = taken & {criterion.name, *criterion.aliases}
    if clash:
        raise ValueError(f"criterion {criterion.name}: expected free names; found {sorted(clash)}")
    CRITERIA[criterion.name] = criterion
    return criterion


def normalise_name(name: str) -> str:
    """How a filter's name is written in file names: lower case, underscores."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def find_criterion(name: str) -> Criterion:
    """The criterion of a name or alias, whatever its case and separators.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    wanted = normalise_name(name)
    for criterion in CRITERIA.values():
        if wanted in (criterion.name, *criterion.aliases):
            return criterion
    raise UserError(f"expected --filter among {', '.join(CRITERIA)}; found {name}")


def compared_with(criterion: Criterion, aux: str) -> Criterion:
    """CF-CM with another second source than the auxiliary network.

    Args:
        criterion: CF-CM.
        aux: the other source, such as zero123plus; pose_aux gives CF-CM itself.

    Returns:
        A criterion named `cf_cm_<aux>`, which is not registered.

    Raises:
        UserError: another criterion, or a source that cannot stand for a second one.
    """
    if criterion.name != "cf_cm":
        raise UserError(f"--aux: expected --filter cf_cm with it; found --filter {criterion.name}")
    if aux in ("pose", "pose_mt"):
        raise UserError(f"--aux: expected another source of keypoints than the pose network; found {aux}")
    if aux == criterion.sources[1]:
        return criterion
    return replace(
        criterion,
        name=f"{criterion.name}_{aux}",
        title=f"{criterion.title} with {aux}",
        sources=("pose", aux),
        value=lambda data: keypoint_distance(data.xy["pose"], data.xy[aux], data.box_xyxy),
        aliases=(),
    )


def random_values(ids: Sequence[str] | np.ndarray, seed: int) -> np.ndarray:
    """A uniform number in [0, 1) for each id [N], from seed and id alone."""
    digests = b"".join(
        hashlib.blake2b(f"{seed}\0{value}".encode(), digest_size=8).digest() for value in ids
    )
    return np.frombuffer(digests, dtype="<u8") / 2.0**64


register(
    Criterion(
        "kpconf", "KP-Conf", ("pose",), True,
        lambda data: kp_conf(data.confidence["pose"]),
        ("kp_conf",),
    )
)  # fmt: skip
register(
    Criterion(
        "cf_mt", "CF-MT", ("pose", "pose_mt"), False,
        lambda data: cf_mt(data.xy["pose_mt"][:, 0], data.xy["pose_mt"][:, 1:], data.box_xyxy),
        ("cfmt",),
    )
)  # fmt: skip
register(
    Criterion(
        "cf_cm", "CF-CM", ("pose", "pose_aux"), False,
        lambda data: keypoint_distance(data.xy["pose"], data.xy["pose_aux"], data.box_xyxy),
        ("cfcm",),
    )
)  # fmt: skip
register(
    Criterion(
        "cf_cm2", "CF-CM2", ("pose", "acsm"), False,
        lambda data: keypoint_distance(data.xy["pose"], data.xy["acsm"], data.box_xyxy),
        ("cf_cm_sq", "cfcm2", "cf_cm_2"),
    )
)  # fmt: skip


def _all_doubts(data: Candidates) -> np.ndarray:
    from pseudolabels.combined import DOUBTS, combine, equal_weights

    there = tuple(source for source in DOUBTS if source in data.xy)
    return combine({source: DOUBTS[source](data) for source in there}, equal_weights(there).weights)


def _fit_all(criterion: Criterion, workspace: Workspace) -> Criterion:
    from pseudolabels.combined_sources import fitted

    return fitted(criterion, workspace)


register(Criterion("cf_all", "CF-All", ("pose",), False, _all_doubts, ("cfall",), fit=_fit_all))
register(Criterion("random", "random", ("pose",), False, lambda data: random_values(data.ids, data.seed)))
register(Criterion("all", "all", ("pose",), False, lambda data: np.zeros(len(data))))


def _by_rows(count: int, compute: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Values [count] from `compute`, some rows at a time, on all processors where there are many."""
    value = np.empty(count)

    def fill(start: int) -> None:
        rows = slice(start, start + _ROWS)
        value[rows] = compute(rows)

    starts = range(0, count, _ROWS)
    if len(starts) < 8:
        for start in starts:
            fill(start)
    else:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            list(pool.map(fill, starts))
    return value


def _mean_norm(difference: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Mean length [N] of vectors [N, K, 2], scaled in place by [N, 2]."""
    keypoints = difference.shape[1]
    flat = difference.reshape(len(difference), 2 * keypoints)
    flat *= np.tile(scale, (1, keypoints))
    np.square(flat, out=flat)
    squared = flat[:, 0::2] + flat[:, 1::2]
    return np.einsum("nk->n", np.sqrt(squared, out=squared)) / keypoints


def _canonical_scale(box_xyxy: np.ndarray, rows: int) -> np.ndarray:
    box = np.asarray(box_xyxy, dtype=np.float64)
    if box.shape != (rows, 4):
        raise ValueError(f"expected boxes [{rows}, 4]; found shape {box.shape}")
    size = box[:, 2:] - box[:, :2]
    bad = ~(size > 0).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"expected boxes of some area; found {int(bad.sum())} without "
            f"(the first is row {row}: {box[row].tolist()})"
        )
    return CANONICAL_SIZE / size


def _same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.ndim != 3 or a.shape[-1] != 2:
        raise ValueError(f"expected keypoints [N, K, 2] twice; found {a.shape} and {b.shape}")


def _finite(value: np.ndarray, what: str) -> np.ndarray:
    bad = ~np.isfinite(value)
    if bad.any():
        raise UserError(
            f"expected finite {what}; found NaN or infinity in {int(bad.sum())} of {len(value)} "
            f"instances (the first is row {int(np.flatnonzero(bad)[0])})"
        )
    return value
