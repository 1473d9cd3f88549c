"""Which settings suit the 3D model on real cows: chosen on validation animals, measured once on the test.

Works on the runs of `benchmarks.real_cows`. Every setting trains the 3D model anew, from the same encoder
and with the same pseudo-labels, for each division. The val splits of all divisions together choose:
settings that help there one by one are then combined. Only the first and the chosen one are measured on the
test splits. Run it again to continue.

    python -m benchmarks.real_cows_settings --root real [--time_limit 50] [--settings eight_cameras]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.acsm_arms import OutOfTime, Seed
from benchmarks.machine import save
from benchmarks.real_cows import OTHERS, STEPS
from wildshape.cli import say
from wildshape.metrics import paired_change
from wildshape.sizes import SIZES, eval_every
from wildshape.workspace import Workspace

RUN, FILTER = "pretrained", "cf_cm"
BASE, COMBINED = "plain", "combined"
SETTINGS: dict[str, dict[str, Any]] = {
    BASE: {},
    "three_times_the_steps": {"steps": 3 * STEPS["acsm_steps"]},
    "eight_cameras": {"num_cameras": 8},
    "parts_move": {"translations": True},
    "varied_crops": {"frozen_crops": 16, "rotation": 15.0},
    "twice_the_pseudo_labels": {"web_images_num": 600},
    "half_labels": {"label_share": 0.5},
    "no_camera_guide": {"camera_guide": 0.0},
    "free_upright": {"upright_weight": 0.0},
}
"""What each changes of ``acsm-train``."""


@dataclass(frozen=True)
class Options:
    """What the command line says; see the module."""

    root: Path
    splits: int
    until: float

    def division(self, split: int) -> Seed:
        """The run of a division."""
        return Seed(Workspace(self.root / f"split_{split}", "cow", RUN), split, self.until)


def train(division: Seed, name: str, changes: Mapping[str, Any]) -> None:
    """One division's 3D model with a setting.

    Raises:
        OutOfTime: the same call continues.
    """
    sizes = SIZES["cpu"]
    settings: dict[str, Any] = {
        "use_web_images": True,
        "web_images_num": 300,
        "filter": FILTER,
        "labels_from": ",".join(OTHERS),
        "init": division.workspace.checkpoint_dir(f"pose_{FILTER}") / "best.pt",
        "freeze": True,
        "image_size": sizes.acsm_image_size,
        "batch_size": sizes.acsm_batch_size,
        "lr": sizes.acsm_lr,
        "steps": STEPS["acsm_steps"],
        **changes,
    }
    number, every = settings["web_images_num"], eval_every(settings["steps"], 8)
    division.call("prepare_data.data_selection", filter=FILTER, selection_num=number)
    division.train("acsm.train", arm=arm_of(name), eval_every=every, **settings)


def arm_of(name: str) -> str:
    """Folder of a setting's model; the runs' own models stay as they are."""
    return f"settings_{name}"


def measure(options: Options, name: str, changes: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """AUC and animals of a setting on a split, by division."""
    rows = []
    for split in range(options.splits):
        division = options.division(split)
        train(division, name, changes)
        found = division.call("acsm.evaluate", arm=arm_of(name), split=part)
        rows.append({key: found[key] for key in ("auc", "auc_interval", "by_instance")})
    return rows


def mean_auc(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean over divisions."""
    return float(np.mean([row["auc"] for row in rows]))


def combined(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Changes of all settings that raise the mean, and at least two divisions of three, over the base."""
    base, chosen = found[BASE], dict[str, Any]()
    for name, rows in found.items():
        better = np.array([row["auc"] > other["auc"] for row, other in zip(rows, base)])
        if name in SETTINGS and better.mean() > 0.5 and mean_auc(rows) > mean_auc(base):
            chosen |= SETTINGS[name]
    return chosen


def change(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Change of AUC over another setting, an animal that is in several divisions counting once."""
    of = [[row["by_instance"] for row in each] for each in (rows, base)]
    return paired_change(*of)


def summary(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, values and the change over the base."""
    return {"auc": mean_auc(rows), "values": [row["auc"] for row in rows], "change": change(rows, base)}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as text."""
    lines = []
    for name, row in found.items():
        gain, (low, high) = row["change"]["gain"], row["change"]["interval"]
        values = ", ".join(f"{value:.1f}" for value in row["values"])
        lines.append(f"{name:<26} {row['auc']:6.1f} ({values})  {gain:+.1f} [{low:+.1f}, {high:+.1f}]")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Try the settings that there is time for; when all are tried, choose and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("real"), help="folder of benchmarks.real_cows")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument(
        "--settings", nargs="+", choices=[*SETTINGS], default=[*SETTINGS], help="which to try"
    )
    parser.add_argument("--time_limit", "--time-limit", type=float, default=50.0, help="minutes")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    given = parser.parse_args(argv)
    options = Options(given.root, given.splits, time.monotonic() + 60 * given.time_limit)
    found: dict[str, list[dict[str, Any]]] = {}
    settings = {name: SETTINGS[name] for name in SETTINGS if name in {BASE, *given.settings}}
    try:
        for name, changes in list(settings.items()):
            found[name] = measure(options, name, changes, "val")
            say(table({name: summary(rows, found[BASE]) for name, rows in found.items()}))
        both = combined(found)
        if both not in settings.values():
            settings[COMBINED] = both
            found[COMBINED] = measure(options, COMBINED, both, "val")
        best = max(found, key=lambda name: mean_auc(found[name]))
        tested = {
            name: measure(options, name, settings[name], "test") for name in dict.fromkeys((BASE, best))
        }
    except OutOfTime:
        say("out of time: run it again to continue")
        return 0
    figures = {
        "settings": settings,
        "chosen": best,
        "val": {name: summary(rows, found[BASE]) for name, rows in found.items()},
        "test": {name: summary(rows, tested[BASE]) for name, rows in tested.items()},
    }
    say(f"on val:\n{table(figures['val'])}\non test:\n{table(figures['test'])}")
    save("real_cows_settings", figures, given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
