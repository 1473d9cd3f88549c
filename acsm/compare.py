"""`wildshape compare`: runs and arms of the 3D model side by side, and whether they differ."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from acsm.metrics import THRESHOLDS
from acsm.per_animal import PerAnimal, ratio
from acsm.viewpoint import in_view
from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.files import atomic_write, file_hash, read_json, write_json
from wildshape.metrics import bootstrap_interval

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Compare evaluated 3D models on the same animals: differences, intervals, a paired test."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """RUN/ARM, or RUN for all of its arms; the others are compared with the first. None: --name's arms."""
    labels: str = "test"
    """Which evaluations: the split or the name of the labels table that acsm-evaluate measured."""
    bootstrap: int = 2000
    """Draws of the 95 % intervals."""
    permutations: int = 10000
    """Draws of the paired test."""
    seed: int = 0
    """Seed of the draws of the paired test."""
    out: Path | None = None
    """Folder for comparison_<labels>.html, .csv and .json; by default that of the first run."""


@dataclass(frozen=True)
class Measure:
    """A figure that is a sum over animals over another sum.

    Attributes:
        key: its name in CSV and JSON.
        title: its name in tables.
        higher_is_better: direction.
        scale: 100 for percent.
        view: the side of the animals that it is of; "" for all.
        keypoint: the index of the keypoint that it is of, or None.
    """

    key: str
    title: str
    higher_is_better: bool = True
    scale: float = 100.0
    view: str = ""
    keypoint: int | None = None

    def sums(self, animals: PerAnimal) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator [N] of each animal; NaN where it has no such figure."""
        every = np.ones(len(animals))
        if self.keypoint is not None:
            error = animals.error[:, self.keypoint, None]
            counts = np.isfinite(error[:, 0]).astype(float)
            return (error < np.asarray(THRESHOLDS)).mean(-1), counts
        if self.key.startswith("auc"):
            return animals.right(), animals.keypoints.astype(float)
        if self.key.startswith("pck"):
            return (animals.error < 0.1).sum(1).astype(float), animals.keypoints.astype(float)
        if self.key.startswith("camera_error"):
            return animals.camera_error_deg, every
        if self.key == "miou":
            return animals.iou, every
        return animals.flipped.astype(float), every


MEASURES = (
    Measure("auc", "AUC"),
    Measure("pck_0.10", "PCK@.1"),
    Measure("camera_error_deg", "camera error, deg", False, 1.0),
    Measure("miou", "mIoU"),
    Measure("auc_side", "AUC, side", view="side"),
    Measure("auc_front_back", "AUC, front/back", view="front_back"),
    Measure("camera_error_deg_side", "camera error, side", False, 1.0, "side"),
    Measure("camera_error_deg_front_back", "camera error, front/back", False, 1.0, "front_back"),
    Measure("flipped", "flipped, %", False),
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        names: RUN/ARM, the reference first.
        measures: the rows of ``cells``.
        cells: by measure and name: ``value``, ``interval``, ``animals`` and, but for the reference,
            ``difference``, ``difference_interval``, ``p``.
        animals: how many animals all have in common.
        left_out: how many of each run's animals another one lacks.
        curves: PCK in percent by name, over `acsm.per_animal.CURVE`.
    """

    names: tuple[str, ...]
    measures: tuple[Measure, ...]
    cells: Mapping[str, Mapping[str, Mapping[str, Any]]]
    animals: int
    left_out: Mapping[str, int]
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)


def sign_flip_p(differences: np.ndarray, draws: int = 10000, seed: int = 0) -> float:
    """P-value of a paired permutation test, two-sided.

    Were two models alike, each animal's difference might as well have the other sign: how often random
    signs give a sum at least as far from 0 as the one found, the one found counted among them.

    Args:
        differences: [N], one an animal.
        draws: of random signs.
        seed: of them.

    Returns:
        1 / (draws + 1) to 1; NaN without animals.
    """
    differences = np.asarray(differences, np.float64)
    if not len(differences):
        return float("nan")
    found = abs(differences.sum())
    rng = np.random.default_rng(seed)
    extreme, block = 0, max(1, 2**22 // len(differences))
    for first in range(0, draws, block):
        signs = rng.integers(0, 2, (min(block, draws - first), len(differences)), dtype=np.int8)
        sums = (2.0 * signs - 1) @ differences
        extreme += int((np.abs(sums) >= found * (1 - 1e-9)).sum())
    return (extreme + 1) / (draws + 1)


def compare(
    runs: Mapping[str, PerAnimal],
    keypoint_names: Sequence[str] = (),
    *,
    samples: int = 2000,
    draws: int = 10000,
    seed: int = 0,
) -> Comparison:
    """Compare runs with the first, on the animals that all of them have.

    Args:
        runs: what each one did, by name.
        keypoint_names: to compare keypoint by keypoint, too.
        samples: bootstrap draws, shared by the two runs of a pair.
        draws: of the paired test.
        seed: of the paired test.

    Raises:
        UserError: they have no animal in common, or one's animals were labelled otherwise.
    """
    from acsm.per_animal import CURVE

    names = tuple(runs)
    common = set.intersection(*(set(animals.instance_id) for animals in runs.values()))
    if not common:
        raise UserError(
            f"compare: expected evaluations of the same animals; found none in common of {', '.join(names)}"
        )
    order = [instance for instance in runs[names[0]].instance_id if instance in common]
    same, left_out = {}, {}
    for name, animals in runs.items():
        place = {instance: row for row, instance in enumerate(animals.instance_id)}
        same[name] = animals.take(np.array([place[instance] for instance in order]))
        left_out[name] = len(animals) - len(common)
    first = same[names[0]]
    for name, animals in same.items():
        other = int((animals.truth != first.truth).sum())
        if other:
            raise UserError(
                f"compare: expected the same labels; those of {other} of {len(common)} animals changed "
                f"between the evaluations of {names[0]} and {name}; run acsm-evaluate again for both"
            )
    measures = MEASURES + tuple(
        Measure(f"auc_{name}", name.replace("_", " "), keypoint=k) for k, name in enumerate(keypoint_names)
    )
    cells: dict[str, dict[str, Any]] = {}
    for measure in measures:
        # The reference's side, so that an animal whose side is predicted is in one group for all.
        rows = np.flatnonzero(in_view(first.view, measure.view)) if measure.view else slice(None)
        old, totals = measure.sums(first.take(rows))
        cells[measure.key] = {}
        for name, animals in same.items():
            new, new_totals = measure.sums(animals.take(rows))
            cell = ratio(new, new_totals, samples, measure.scale)
            if name != names[0]:
                known = np.isfinite(new) & np.isfinite(old) & (totals > 0)
                change = (new - old)[known]
                low, high = bootstrap_interval(change, totals[known], samples)
                empty = not known.any()
                cell |= {
                    "difference": None if empty else measure.scale * change.sum() / totals[known].sum(),
                    "difference_interval": None if empty else [measure.scale * low, measure.scale * high],
                    "p": None if empty else sign_flip_p(change, draws, seed),
                }
            cells[measure.key][name] = cell
    curves = {
        name: 100 * (a.error[..., None] < np.asarray(CURVE)).sum((0, 1)) / max(a.keypoints.sum(), 1)
        for name, a in same.items()
    }
    return Comparison(names, measures, cells, len(common), left_out, curves)


def read_runs(workspace: Workspace, runs: Sequence[str], labels: str) -> dict[str, PerAnimal]:
    """The evaluations that RUN and RUN/ARM name, in their order.

    Raises:
        UserError: one is missing (names the command that makes it), or there are fewer than two.
    """
    found: dict[str, PerAnimal] = {}
    for item in runs or (workspace.name,):
        run, _, arm = item.partition("/")
        place = workspace.sibling(name=run)
        command = f"wildshape acsm-evaluate --category {workspace.category.name}"
        command += f" --name {run} --arm {arm or 'ARM'} --labels {labels}"
        if arm:
            files = [place.animals_path(arm, labels)]
        else:
            files = sorted(place.animals_path("x", labels).parent.glob(f"acsm_*_{labels}.parquet"))
            # "labels" on "my_test" and "labels_my" on "test" have one name: the facts beside tell.
            files = [file for file in files if _measured_on(file.with_suffix(".json"), labels)]
            # What the others add to is the labels alone.
            files.sort(key=lambda file: file != place.animals_path("labels", labels))
        if not files or not files[0].is_file():
            raise UserError(
                f"compare needs an evaluation of {item} on {labels}; found none; run: {command}"
            )
        for file in files:
            name = file.stem.removeprefix("acsm_").removesuffix(f"_{labels}")
            found[f"{run}/{name}"] = PerAnimal.read(file)
            if _of_earlier_model(place, name, file.with_suffix(".json")):
                again = f"wildshape acsm-evaluate --category {workspace.category.name} --name {run}"
                say(
                    f"compare: {run}/{name} was trained again after it was measured; to measure what it is "
                    f"now, run: {again} --arm {name} --labels {labels}"
                )
    if len(found) < 2:
        raise UserError(f"compare: expected at least two of RUN/ARM; found {', '.join(found)}")
    shapes = {name: animals.error.shape[1] for name, animals in found.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(
            f"compare: expected evaluations of one skeleton; found numbers of keypoints {shapes}"
        )
    return found


def _measured_on(metrics: Path, labels: str) -> bool:
    return not metrics.is_file() or read_json(metrics).get("split") == labels


def _of_earlier_model(workspace: Workspace, arm: str, metrics: Path) -> bool:
    """Whether the arm's checkpoint is another than the one that was measured."""
    best = workspace.checkpoint_dir(f"acsm/{arm}") / "best.pt"
    if not metrics.is_file() or not best.is_file():
        return False
    return read_json(metrics).get("checkpoint_hash", file_hash(best)) != file_hash(best)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Compare, show a table, and write comparison_<labels>.html, .csv and .json.

    Raises:
        UserError: an evaluation is missing, or they are of other animals or labels.
    """
    from acsm.comparison_files import as_csv, as_html, as_json, as_text

    found = read_runs(workspace, config.runs, config.labels)
    comparison = compare(
        found,
        workspace.category.skeleton.keypoints,
        samples=config.bootstrap,
        draws=config.permutations,
        seed=config.seed,
    )
    page = workspace.sibling(name=comparison.names[0].split("/")[0]).comparison_path(config.labels)
    if config.out is not None:
        page = config.out / page.name
        if page.exists() and not config.overwrite:
            raise UserError(f"--out: {page} exists; add --overwrite or choose another folder")
    facts = as_json(comparison, workspace.category.name, config.labels)
    with atomic_write(page, "w") as handle:
        handle.write(as_html(comparison, workspace.category.name, config.labels))
    with atomic_write(page.with_suffix(".csv"), "w") as handle:
        handle.write(as_csv(comparison))
    write_json(page.with_suffix(".json"), facts)
    say(as_text(comparison, config.labels))
    say(f"compare: wrote {workspace.relative(page)}, .csv and .json")
    return facts


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape compare")


if __name__ == "__main__":
    sys.exit(main())
