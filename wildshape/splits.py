"""Splits into train, val and test that keep every near-duplicate cluster together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

DEFAULT_FRACTIONS: dict[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}


def assign_splits(
    cluster_ids: Sequence[int] | np.ndarray,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Give every item a split; items of one cluster get the same one.

    Clusters are shuffled with the seed; the large ones are placed first, each in the split that
    lacks most of its share, so that the sizes come out within a cluster of what was asked for.

    Args:
        cluster_ids: [N] integers, for instance from `wildshape.near_duplicates.clusters`.
        fractions: share of the items by split name; scaled to sum to 1. Default 70 % train, 10 %
            val, 20 % test.
        seed: the same seed and clusters give the same splits, on any machine.

    Returns:
        Split names, object array [N].

    Raises:
        ValueError: a negative fraction, or none that is positive.
    """
    shares = dict(DEFAULT_FRACTIONS if fractions is None else fractions)
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise ValueError(f"expected fractions >= 0 with a positive sum; found {shares}")
    ids = np.asarray(cluster_ids)
    names = list(shares)
    _, inverse, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 7919]).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    want = np.array([shares[name] / total * len(ids) for name in names])
    lacking = want.copy()
    chosen = np.empty(len(sizes), dtype=np.int64)
    for cluster in order:
        # Relative to the split's size: a small split is not starved until the end.
        split = int(np.argmax(np.where(want > 0, lacking / np.maximum(want, 1e-12), -np.inf)))
        chosen[cluster] = split
        lacking[split] -= sizes[cluster]
    return np.array(names, dtype=object)[chosen[inverse]] if len(ids) else np.empty(0, dtype=object)
