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
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from wildshape.errors import UserError
from wildshape.files import atomic_write, write_json
from wildshape.monitor import Monitor
from wildshape.stage import Provenance, describe_change, fingerprint, progress


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


def _make_batch(task: TrainTask, config: FitConfig, step: int) -> tuple[dict[str, Tensor], list[int]]:
    pairs = batch_items(len(task), config.batch_size, config.seed, step)
    samples = [
        task.sample(item, np.random.default_rng([config.seed, 2, position])) for position, item in pairs
    ]
    batch = {
        name: torch.from_numpy(np.stack([np.asarray(sample[name]) for sample in samples]))
        for name in samples[0]
    }
    return batch, [item for _, item in pairs]


def _batches(
    task: TrainTask, config: FitConfig, first: int
) -> Iterator[tuple[int, dict[str, Tensor], list[int]]]:
    """Batches in order, prepared ahead by threads (image decoding and warping release the GIL)."""
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

    Args:
        task: Model, optimiser, data, loss and evaluation.
        config: How long and how.
        out_dir: Where the checkpoints go.
        provenance: What the result depends on (number of steps included).
        extra: Stored in the checkpoints: kind, category, skeleton, architecture.
        monitor: Is told all that is logged, and shown the task's `pictures()` if it has them.

    Raises:
        UserError: if `out_dir` holds a training with other settings, there are fewer items than a batch,
            or the loss stops being a number.
    """
    last_path, best_path = out_dir / "last.pt", out_dir / "best.pt"
    if len(task) < config.batch_size:
        raise UserError(
            f"expected at least a batch of {config.batch_size} training items; found {len(task)}; "
            "label more, or lower --batch_size"
        )
    start, best = _resume(task, config, out_dir, provenance)
    device = next(task.model.parameters()).device
    base_lr = [group.setdefault("base_lr", group["lr"]) for group in task.optimizer.param_groups]
    began = time.monotonic()
    log = _Log(out_dir / "metrics.jsonl", start, monitor)
    step, stopped, saved = start, False, start
    bar = progress(title=config.title, total=config.steps, unit="step", initial=start)

    def save(path: Path) -> None:
        save_checkpoint(path, _state(task, step, best, extra, provenance))
        progressed = {"step": step, "steps": config.steps, "best": best}
        write_json(out_dir / "manifest.json", {**provenance.as_dict(), **progressed})

    task.model.train()
    with bar, log:
        for step, batch, items in _batches(task, config, start):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            factor = config.lr_factor(step)
            for group, lr in zip(task.optimizer.param_groups, base_lr):
                group["lr"] = lr * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast):
                loss, scalars = task.loss(batch, step)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise UserError(
                    f"the loss became {value} at step {step} (items {items[:8]}...); the last good "
                    f"state is {last_path}; lower --lr, or look at these items"
                )
            task.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            task.optimizer.step()
            step += 1
            bar.update()
            if step % config.log_every == 0 or step == config.steps:
                bar.set_postfix(loss=f"{value:.4g}", refresh=False)
                log.write(step=step, loss=value, lr=base_lr[0] * factor, **scalars)
            late = config.time_limit is not None and time.monotonic() - began > 60 * config.time_limit
            stopped = late and step < config.steps
            if step % config.eval_every == 0 or step == config.steps:
                task.model.eval()
                metrics = task.evaluate()
                if monitor is not None and hasattr(task, "pictures"):
                    monitor.pictures(step, task.pictures())
                task.model.train()
                log.write(step=step, **{f"val_{name}": number for name, number in metrics.items()})
                if _better(config, metrics, best):
                    best = metrics
                    save(best_path)
                save(last_path)
                saved = step
            if stopped:
                break
    if saved != step:
        save(last_path)
    if best is None:  # stopped before the first evaluation: the best so far is the only one
        save(best_path)
    task.model.eval()
    return FitResult(best_path, last_path, dict(best or {}), step, not stopped, time.monotonic() - began)


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
    try:
        state = torch.load(last_path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"expected a checkpoint in {last_path}; found {type(error).__name__}; remove it to train anew"
        ) from error
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
    task.model.load_state_dict(state["model"])
    task.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return int(state["step"]), state["best"]


class _Log:
    """metrics.jsonl: one JSON object a line; lines after the step that is resumed are dropped."""

    def __init__(self, path: Path, start: int, monitor: Monitor | None = None) -> None:
        self.path, self.began, self.monitor = path, time.monotonic(), monitor
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= start:
                        kept.append(line + "\n")
                except (ValueError, KeyError):
                    continue  # a line that a kill cut short
        with atomic_write(path, "w") as handle:
            handle.writelines(kept)

    def __enter__(self) -> _Log:
        self.handle = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *unused: object) -> None:
        self.handle.close()
        if self.monitor is not None:
            self.monitor.close()

    def write(self, **values: float) -> None:
        elapsed = round(time.monotonic() - self.began, 2)
        plain = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        self.handle.write(json.dumps({**plain, "seconds": elapsed}) + "\n")
        self.handle.flush()
        if self.monitor is not None:
            told = {name: float(value) for name, value in values.items() if name != "step"}
            self.monitor.scalars(int(values["step"]), told)
