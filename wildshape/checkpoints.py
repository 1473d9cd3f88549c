"""The checkpoints of a training: saved whole or not at all, and what it resumes from."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wildshape.distributed import told_by_first
from wildshape.errors import UserError
from wildshape.files import atomic_write, same_content, write_json
from wildshape.processes import is_first_process
from wildshape.stage import Provenance, describe_change, fingerprint

if TYPE_CHECKING:
    from wildshape.training import FitConfig, TrainTask


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save a checkpoint, whole or not at all."""
    # Through a Python file: given a path, torch reports a full disk as a RuntimeError of its own.
    with atomic_write(path) as handle:
        torch.save(dict(state), handle)


def _mapped(path: str | os.PathLike[str]) -> Any:
    # Mapped, so that what is not used, such as the optimiser's state in predicting, is not read.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


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
        state = _mapped(path)
    except Exception as error:
        raise UserError(f"expected a checkpoint in {path}; found {type(error).__name__}") from error
    found = state.get("extra", {}).get("kind") if isinstance(state, dict) else None
    if found != kind:
        raise UserError(f"expected a checkpoint of kind {kind} in {path}; found {found}")
    return state


class CheckpointKeeper:
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
            _restore(self.task, self.config, _read_state(self.last_path))
        return start

    def save_evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Save after an evaluation."""
        if _better(self.config, metrics, self.best):
            self.best = metrics
            self._save(self.best_path, step)
            same_content(self.best_path, self.last_path)
        else:
            self._save(self.last_path, step)

    def finish(self, step: int, *, saved: bool) -> None:
        """Save what is not saved yet."""
        if not saved:
            self._save(self.last_path, step)
        if self.best is None:  # stopped before the first evaluation: the best so far is the only one
            same_content(self.last_path, self.best_path)

    def _save(self, path: Path, step: int) -> None:
        save_checkpoint(path, _state(self.task, step, self.best, self.extra, self.provenance))
        progressed = {"step": step, "steps": self.config.steps, "best": self.best}
        write_json(self.out_dir / "manifest.json", {**self.provenance.as_dict(), **progressed})


def _better(config: FitConfig, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
    name = config.metric.removeprefix("-")
    if name not in new:
        raise KeyError(f"expected the metric {name} among {sorted(new)}")
    if old is None or not math.isfinite(old.get(name, math.nan)):
        return True
    sign = -1 if config.metric.startswith("-") else 1
    return sign * new[name] > sign * old[name]


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
    _restore(task, config, state)
    return int(state["step"]), state["best"]


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return _mapped(path)
    except Exception as error:
        raise UserError(
            f"expected a checkpoint in {path}; found {type(error).__name__}; remove it to train anew"
        ) from error


def _restore(task: TrainTask, config: FitConfig, state: Mapping[str, Any]) -> None:
    task.model.load_state_dict(state["model"])
    if state["step"] < config.steps:
        task.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
