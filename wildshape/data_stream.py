"""The stream of training batches: order and random draws derive from the seed and the position in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from wildshape.distributed import own_slice

if TYPE_CHECKING:
    from wildshape.training import FitConfig, TrainTask


def batch_items(count: int, batch_size: int, seed: int, step: int) -> list[tuple[int, int]]:
    """The (position in the stream, item) pairs of one step.

    The stream visits all items once an epoch, in an order that depends on the seed and the epoch only.
    """
    pairs = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, count)
        pairs.append((position, int(_permutation(count, seed, epoch)[place])))
    return pairs


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    key = (count, seed, epoch)
    order = _PERMUTATIONS.get(key)
    if order is None:
        if len(_PERMUTATIONS) > 8:
            _PERMUTATIONS.clear()
        order = np.random.default_rng([seed, 1, epoch]).permutation(count)
        _PERMUTATIONS[key] = order
    return order


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def stream_rng(seed: int, position: int) -> np.random.Generator:
    """What the sample at a position of the stream draws from."""
    return np.random.default_rng([seed, 2, position])


def _make_batch(
    task: TrainTask, config: FitConfig, step: int
) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    pairs = batch_items(len(task), config.batch_size, config.seed, step)[own_slice(config.batch_size)]
    samples = [task.sample(item, stream_rng(config.seed, position)) for position, item in pairs]
    batch = {
        name: torch.from_numpy(np.stack([np.asarray(sample[name]) for sample in samples]))
        for name in samples[0]
    }
    return batch, pairs


def batches(
    task: TrainTask, config: FitConfig, first: int
) -> Iterator[tuple[int, dict[str, Tensor], list[tuple[int, int]]]]:
    """Batches in order, prepared ahead by threads (image decoding and warping release the GIL).

    Args:
        task: Whose samples.
        config: Steps, batch size, seed and threads.
        first: The step to begin with.

    Yields:
        Step, batch, and `batch_items` of it; of several processes each its own slice.
    """
    with ThreadPoolExecutor(max(config.num_workers, 1)) as pool:
        ahead: deque[tuple[int, Future]] = deque()
        following = first
        try:
            while True:
                while len(ahead) < 2 * max(config.num_workers, 1) and following < config.steps:
                    ahead.append((following, pool.submit(_make_batch, task, config, following)))
                    following += 1
                if not ahead:
                    return
                step, future = ahead.popleft()
                yield step, *future.result()
        finally:
            for _, future in ahead:
                future.cancel()
