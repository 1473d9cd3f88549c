"""The Train stage: tables in, a checkpoint out; resumable at any moment, with the same result.

The order of the data and every random draw derive from (seed, position in the data stream), so that a run
that is killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wildshape.data_stream import batch_items, batches
from wildshape.distributed import (
    join_processes,
    mean_over_processes,
    own_slice,
    shared_loss,
    told_by_first,
)
from wildshape.errors import UserError
from wildshape.files import atomic_write, write_json
from wildshape.monitor import Monitor
from wildshape.processes import is_first_process
from wildshape.stage import Provenance, describe_change, fingerprint, progress
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
    """What a stage supplies to be trained."""

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


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save a checkpoint, whole or not at all."""
    # Through a Python file: given a path, torch reports a full disk as a RuntimeError of its own.
    with atomic_write(path) as handle:
        torch.save(dict(state), handle)


def load_checkpoint(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without executing anything in it.

    Args:
        path: The file.
        kind: What it must hold: "pose" or "acsm".

    Raises:
        UserError: if it is missing, unreadable or of another kind.
    """
    if not Path(path).exists():
        raise UserError(f"expected a checkpoint at {path}; found none")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"expected a checkpoint in {path}; found {type(error).__name__}") from error
    found = state.get("extra", {}).get("kind") if isinstance(state, dict) else None
    if found != kind:
        raise UserError(f"expected a checkpoint of kind {kind} in {path}; found {found}")
    return state


def _better(config: FitConfig, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
    name = config.metric.removeprefix("-")
    if name not in new:
        raise KeyError(f"expected the metric {name} among {sorted(new)}")
    if old is None or not math.isfinite(old.get(name, math.nan)):
        return True
    sign = -1 if config.metric.startswith("-") else 1
    return sign * new[name] > sign * old[name]


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
            a batch cannot be divided among the processes, or the loss stops being a number.
    """
    if len(task) < config.batch_size:
        raise UserError(
            f"expected at least a batch of {config.batch_size} training items; found {len(task)}; "
            "label more, or lower --batch_size"
        )
    join_processes(next(task.model.parameters()).device)
    own_slice(config.batch_size)
    return _train(task, config, _Keeper(task, out_dir, provenance, extra, config), monitor)


def _train(task: TrainTask, config: FitConfig, keeper: _Keeper, monitor: Monitor | None) -> FitResult:
    start = keeper.resume()
    device = next(task.model.parameters()).device
    base_lr = [group.setdefault("base_lr", group["lr"]) for group in task.optimizer.param_groups]
    loss_of = shared_loss(task)
    began = time.monotonic()
    log = TrainingLog(keeper.log_path, start, monitor)
    step, stopped, saved = start, False, start
    bar = progress(title=config.title, total=config.steps, unit="step", initial=start)
    task.model.train()
    with bar, log:
        for step, batch, items in batches(task, config, start):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            factor = config.lr_factor(step)
            for group, lr in zip(task.optimizer.param_groups, base_lr):
                group["lr"] = lr * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast):
                loss, scalars = loss_of(batch, step)
            late = config.time_limit is not None and time.monotonic() - began > 60 * config.time_limit
            # Told to all processes, so that they stop together.
            value, late = mean_over_processes([float(loss.detach()), float(late)], device)
            if not math.isfinite(value):
                raise UserError(
                    f"the loss became {value} at step {step} (items {items[:8]}...); the last good "
                    f"state is {keeper.last_path}; lower --lr, or look at these items"
                )
            task.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            task.optimizer.step()
            step += 1
            bar.update()
            stopped = late > 0 and step < config.steps
            if step % config.log_every == 0 or step == config.steps:
                bar.set_postfix(loss=f"{value:.4g}", refresh=False)
                means = mean_over_processes(list(scalars.values()), device)
                log.write(step=step, loss=value, lr=base_lr[0] * factor, **dict(zip(scalars, means)))
            if step % config.eval_every == 0 or step == config.steps:
                if is_first_process():
                    metrics = _evaluate(task, step, monitor)
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


def _evaluate(task: TrainTask, step: int, monitor: Monitor | None) -> dict[str, float]:
    task.model.eval()
    metrics = task.evaluate()
    if monitor is not None and hasattr(task, "pictures"):
        monitor.pictures(step, task.pictures())
    task.model.train()
    return metrics


class _Keeper:
    """The checkpoints of one training: what to resume from, which was best."""

    def __init__(
        self,
        task: TrainTask,
        out_dir: Path,
        provenance: Provenance,
        extra: Mapping[str, Any],
        config: FitConfig,
    ) -> None:
        self.task, self.out_dir, self.provenance = task, out_dir, provenance
        self.extra, self.config = dict(extra), config
        self.best: dict[str, float] | None = None
        self.last_path, self.best_path = out_dir / "last.pt", out_dir / "best.pt"
        self.log_path = out_dir / "metrics.jsonl" if is_first_process() else None

    def resume(self) -> int:
        """The step to begin with; model and optimiser are as they were then."""
        outcome: tuple[int, dict[str, float] | None] | UserError | None = None
        if is_first_process():
            try:
                outcome = _resume(self.task, self.config, self.out_dir, self.provenance)
            except UserError as error:
                outcome = error
        start, self.best = told_by_first(outcome)
        if start and not is_first_process():
            _restore(self.task, _read_state(self.last_path))
        return start

    def save_evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Save after an evaluation."""
        if _better(self.config, metrics, self.best):
            self.best = metrics
            self._save(self.best_path, step)
        self._save(self.last_path, step)

    def finish(self, step: int, *, saved: bool) -> None:
        """Save what is not saved yet."""
        if not saved:
            self._save(self.last_path, step)
        if self.best is None:  # stopped before the first evaluation: the best so far is the only one
            self._save(self.best_path, step)

    def _save(self, path: Path, step: int) -> None:
        save_checkpoint(path, _state(self.task, step, self.best, self.extra, self.provenance))
        progressed = {"step": step, "steps": self.config.steps, "best": self.best}
        write_json(self.out_dir / "manifest.json", {**self.provenance.as_dict(), **progressed})


def _state(
    task: TrainTask,
    step: int,
    best: Mapping[str, float] | None,
    extra: Mapping[str, Any],
    provenance: Provenance,
) -> dict[str, Any]:
    return {
        "model": task.model.state_dict(),
        "optimizer": task.optimizer.state_dict(),
        "step": step,
        "best": None if best is None else {name: float(value) for name, value in best.items()},
        "rng": torch.get_rng_state(),
        "extra": dict(extra),
        "provenance": json.dumps(provenance.as_dict()),
    }


def _resume(
    task: TrainTask, config: FitConfig, out_dir: Path, provenance: Provenance
) -> tuple[int, dict[str, float] | None]:
    last_path = out_dir / "last.pt"
    out_dir.mkdir(parents=True, exist_ok=True)
    if not last_path.exists():
        return 0, None
    state = _read_state(last_path)
    old = json.loads(state["provenance"])
    if fingerprint(old) != provenance.fingerprint:
        if not config.overwrite:
            raise UserError(
                f"{last_path.parent.name} exists with other settings "
                f"({describe_change(old, provenance.as_dict())}); add --overwrite to train it anew, "
                "or --name for another run"
            )
        shutil.rmtree(out_dir)
        out_dir.mkdir(parents=True)
        return 0, None
    if state["step"] >= config.steps and config.overwrite:
        shutil.rmtree(out_dir)
        out_dir.mkdir(parents=True)
        return 0, None
    _restore(task, state)
    return int(state["step"]), state["best"]


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"expected a checkpoint in {path}; found {type(error).__name__}; remove it to train anew"
        ) from error


def _restore(task: TrainTask, state: Mapping[str, Any]) -> None:
    task.model.load_state_dict(state["model"])
    task.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
