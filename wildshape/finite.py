"""A training that stops being one of numbers: found before it is saved, and the items at fault named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from wildshape.data_stream import stream_rng
from wildshape.distributed import every_process
from wildshape.errors import UserError

if TYPE_CHECKING:
    from wildshape.training import FitConfig, TrainTask

_NAMED = 8


def expect_numbers(module: nn.Module, step: int, last: Path) -> None:
    """Refuse weights and statistics that are not finite, which a finite loss's gradient can leave behind.

    Args:
        module: What is about to be saved.
        step: Steps done.
        last: Where the state before is.

    Raises:
        UserError: some of them are not finite.
    """
    bad = [
        name
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if bad:
        raise UserError(
            f"{len(bad)} of the weights are no numbers after step {step} ({', '.join(bad[:3])}...), though "
            f"the loss was one; {kept(last)}; lower --lr"
        )


def at_fault(
    task: TrainTask,
    config: FitConfig,
    batch: Mapping[str, Tensor],
    pairs: Sequence[tuple[int, int]],
    loss: float,
) -> str:
    """Which items of a batch whose loss is not finite may be at fault.

    Those that hold a number that is none, or else all. Every process must call it; where several train
    together, items of those whose loss is finite are left out.

    Args:
        task: Whose items; `shown(index, rng)`, if it has that, names what `sample` draws.
        config: Settings.
        batch: The batch of this process.
        pairs: Position in the stream and item of each sample.
        loss: This process's.
    """
    names: list[str] = []
    if not math.isfinite(loss):
        rows = [
            row
            for row in range(len(pairs))
            if any(of.is_floating_point() and not bool(of[row].isfinite().all()) for of in batch.values())
        ]
        shown = getattr(task, "shown", None)
        for row in rows or range(len(pairs)):
            position, item = pairs[row]
            names.append(str(item) if shown is None else shown(item, stream_rng(config.seed, position)))
    names = [name for found in every_process(names) for name in found]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def kept(last: Path) -> str:
    """What is there of a training that stops, for its last words."""
    return f"the last good state is {last}" if last.exists() else "nothing had been saved"
