"""`wildshape demo`: the whole pipeline on the synthetic world, with ground truth to measure against."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wildshape import run as whole
from wildshape.cli import script_main
from wildshape.files import write_json
from wildshape.workspace import Workspace

SCORE_THRESHOLD = 0.2
"""Below the detector's own: more animals to choose from, and the criteria weed out what is none."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run everything on the synthetic world: about a quarter of an hour on two cores."""

    category: str = "horse"
    """The animal: horse, cow, sheep, giraffe, bear or dog."""
    name: str = "demo"
    """Name of the run under runs/."""
    data_root: Path = Path("demo")
    """Folder for data/ and runs/."""
    overwrite: bool = False
    """Replace outputs that were made with other settings."""
    debug: bool = False
    """Show the traceback of an error."""
    miniature: bool = False
    """A tiny world and a few training steps: shows in a minute that everything runs, learns nothing."""
    tokens: str | None = None
    """A diffusion model for keypoints without labels, as of `wildshape run`; animals are then cut out."""
    filter: str = "cf_cm"
    """Criterion whose selection the 3D model is trained with."""
    rounds: int = 1
    """Rounds of self-training, as of `wildshape run`; each later one takes half as long again."""
    seed: int = 0
    """Seed of the world and of every training."""


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Make the world, then run the whole sequence on it."""
    diorama = importlib.import_module("prepare_data.make_diorama")
    counts: dict[str, Any] = (
        {"image_size": 160, "num_train": 24, "num_val": 8, "num_test": 12, "num_web": 36}
        if config.miniature
        else {}
    )
    common: dict[str, Any] = {
        "category": config.category,
        "name": config.name,
        "data_root": workspace.root,
        "overwrite": config.overwrite,
        "debug": config.debug,
    }
    began = time.monotonic()
    diorama.run(diorama.Config(**common, seed=config.seed, **counts), workspace)
    timings = workspace.metrics_path("timings")
    if not timings.exists():
        write_json(timings, {"make world": round(time.monotonic() - began, 2)})
    settings = whole.Config(
        **common,
        labels="diorama",
        segmenter="simulated" if config.tokens else None,
        tokens=config.tokens,
        filter=config.filter,
        score_threshold=SCORE_THRESHOLD,
        rounds=config.rounds,
        seed=config.seed,
        size="miniature" if config.miniature else "cpu",
    )
    return whole.run(settings, workspace)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `wildshape demo`."""
    return script_main(Config, run, argv, prog="wildshape demo")
