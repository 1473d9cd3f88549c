"""The Train stage: tables in, a checkpoint out; resumable at any moment, with the same result.

The order of the data and every random draw derive from (seed, position in the data stream), so that a run
that is killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wildshape.checkpoints import CheckpointKeeper, load_checkpoint, save_checkpoint
from wildshape.data_stream import batch_items, batches
from wildshape.device import compile_module
from wildshape.distributed import (
    join_processes,
    mean_over_processes,
    mean_scalars,
    own_slice,
    shared_loss,
    together,
    told_by_first,
)
from wildshape.errors import UserError
from wildshape.finite import at_fault, expect_numbers, kept
from wildshape.monitor import Monitor
from wildshape.processes import is_first_process
from wildshape.stage import Provenance, progress
from wildshape.training_log import TrainingLog

__all__ = [
    "FitConfig", "FitResult", "TrainTask", "batch_items", "fit", "fit_config", "load_checkpoint",
    "save_checkpoint",
]  # fmt: skip


@dataclass(frozen=True)
class FitConfig:
    """How long and how to train.

    Attributes:
        steps: Optimiser steps in all.
        batch_size: Items a step.
        seed: Seed of the data order and of every augmentation.
        eval_every: Steps between evaluations on the validation split; each also saves `last.pt`.
        log_every: Steps between lines of metrics.jsonl.
        time_limit: Minutes after which this call stops, its state saved; None means no limit.
        num_workers: Threads that prepare samples ahead.
        metric: Name of the metric that chooses the best checkpoint; "-name" where lower is better.
        schedule: Learning-rate factor over the steps: "constant", or "cosine" down to a hundredth.
        warmup: Steps over which the learning rate rises linearly.
        autocast: Whether the forward pass runs in bfloat16.
        compile: Whether the forward pass of the task's `compiled` (by default its model) is compiled.
        overwrite: Whether a training with other settings may be replaced.
        title: Shown by the progress bar.
    """

    steps: int
    batch_size: int
    seed: int = 0
    eval_every: int = 500
    log_every: int = 50
    time_limit: float | None = None
    num_workers: int = 1
    metric: str = "auc"
    schedule: str = "constant"
    warmup: int = 0
    autocast: bool = False
    compile: bool = False
    overwrite: bool = False
    title: str = "train"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: expected at least 1; found {getattr(self, name)}")
        if self.schedule not in ("constant", "cosine"):
            raise UserError(f"--schedule: expected constant or cosine; found {self.schedule}")

    def lr_factor(self, step: int) -> float:
        """Learning rate at a step relative to the optimiser's own."""
        factor = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            factor *= 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
        return factor


def fit_config(settings: Any, **chosen: Any) -> FitConfig:
    """The fields that a command's settings share with `FitConfig`, and what is chosen beside them."""
    shared = {
        item.name: getattr(settings, item.name)
        for item in fields(FitConfig)
        if hasattr(settings, item.name)
    }
    return FitConfig(**{**shared, **chosen})


class TrainTask(Protocol):
    """What a stage supplies to be trained.

    A task may have more: `pictures()` for a monitor; `shown(index, rng)`, a name for what `sample` draws;
    `compiled`, the module that --compile compiles (by default the model); `parameters_rest(step)`, whether
    a step leaves parameters without a gradient, which processes that train together must know. Where a loss
    divides by what a batch counts, it does so by `wildshape.distributed.shared_count`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __len__(self) -> int:
        """Number of training items."""

    def sample(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]:
        """One augmented item, as arrays of equal shapes across items."""

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and scalars to log."""

    def evaluate(self) -> dict[str, float]:
        """Metrics on the validation split."""


@dataclass(frozen=True)
class FitResult:
    """Where the checkpoints are and how good they were.

    Attributes:
        best_path: Checkpoint with the best validation metric.
        last_path: Full state of the last step.
        metrics: Validation metrics of the best checkpoint.
        step: Steps done.
        finished: Whether all steps were done (else: run again to continue).
        seconds: Training time in this call.
    """

    best_path: Path
    last_path: Path
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    finished: bool = False
    seconds: float = 0.0


def fit(
    task: TrainTask,
    config: FitConfig,
    out_dir: Path,
    provenance: Provenance,
    extra: Mapping[str, Any],
    monitor: Monitor | None = None,
) -> FitResult:
    """Train, saving `best.pt`, `last.pt`, `metrics.jsonl` and a manifest in `out_dir`; resumable.

    Processes that torchrun started train together: each takes its slice of every batch, the first
    one writes, evaluates and shows progress, and all return the same result.

    Args:
        task: Model, optimiser, data, loss and evaluation.
        config: How long and how.
        out_dir: Where the checkpoints go.
        provenance: What the result depends on (number of steps included).
        extra: Stored in the checkpoints: kind, category, skeleton, architecture.
        monitor: Is told all that is logged, and shown the task's `pictures()` if it has them.

    Raises:
        UserError: if `out_dir` holds a training with other settings, there are fewer items than a batch,
            a batch cannot be divided among the processes, or the loss or the weights stop being numbers.
    """
    if len(task) < config.batch_size:
        raise UserError(
            f"expected at least a batch of {config.batch_size} training items; found {len(task)}; "
            "label more, or lower --batch_size"
        )
    join_processes(next(task.model.parameters()).device)
    own_slice(config.batch_size)
    return _train(task, config, CheckpointKeeper(task, out_dir, provenance, extra, config), monitor)


def _train(
    task: TrainTask, config: FitConfig, keeper: CheckpointKeeper, monitor: Monitor | None
) -> FitResult:
    start = keeper.resume()
    device = next(task.model.parameters()).device
    base_lr = [group.setdefault("base_lr", group["lr"]) for group in task.optimizer.param_groups]
    if config.compile:
        if together():
            raise UserError("--compile: expected one process; found several; leave --compile out")
        compile_module(getattr(task, "compiled", task.model), device)
    loss_of = shared_loss(task)
    began = time.monotonic()
    log = TrainingLog(keeper.log_path, start, monitor)
    step, stopped, saved = start, False, start
    bar = progress(title=config.title, total=config.steps, unit="step", initial=start)
    task.model.train()
    with bar, log:
        for step, batch, pairs in batches(task, config, start):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            factor = config.lr_factor(step)
            for group, lr in zip(task.optimizer.param_groups, base_lr):
                group["lr"] = lr * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast):
                loss, scalars = loss_of(batch, step)
            late = config.time_limit is not None and time.monotonic() - began > 60 * config.time_limit
            # What any process has is told to all, so that they stop together.
            own = float(loss.detach())
            value, lateness = mean_over_processes([own, float(late)], device)
            if not math.isfinite(value):
                names = at_fault(task, config, batch, pairs, own)
                raise UserError(
                    f"the loss became {value} at step {step}, of {names}; "
                    f"{kept(keeper.last_path)}; lower --lr, or look at these"
                )
            task.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            task.optimizer.step()
            step += 1
            bar.update()
            stopped = lateness > 0 and step < config.steps
            if stopped or step % config.eval_every == 0 or step == config.steps:
                expect_numbers(task.model, step, keeper.last_path)
            if step % config.log_every == 0 or step == config.steps:
                bar.set_postfix(loss=f"{value:.4g}", refresh=False)
                log.write(step=step, loss=value, lr=base_lr[0] * factor, **mean_scalars(scalars))
            if step % config.eval_every == 0 or step == config.steps:
                if is_first_process():
                    metrics = _evaluate(task, step, monitor, eager=config.compile)
                    log.write(step=step, **{f"val_{name}": number for name, number in metrics.items()})
                    keeper.save_evaluated(step, metrics)
                saved = step
            if stopped:
                break
    if is_first_process():
        keeper.finish(step, saved=saved == step)
    metrics = told_by_first(dict(keeper.best or {}))
    task.model.eval()
    seconds = time.monotonic() - began
    return FitResult(keeper.best_path, keeper.last_path, metrics, step, not stopped, seconds)


def _evaluate(task: TrainTask, step: int, monitor: Monitor | None, *, eager: bool) -> dict[str, float]:
    task.model.eval()
    # Batches of other sizes would each be compiled anew.
    with torch.compiler.set_stance("force_eager") if eager else nullcontext():
        metrics = task.evaluate()
        if monitor is not None and hasattr(task, "pictures"):
            monitor.pictures(step, task.pictures())
    task.model.train()
    return metrics
