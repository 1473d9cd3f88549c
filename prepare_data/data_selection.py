"""Choose the pseudo-labels to trust: the best instances by one criterion.

    python prepare_data/data_selection.py --category horse --filter cf_mt --selection_num 1000

Writes the table selections/<filter>_<n>, best first. The criteria are in `pseudolabels.criteria`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.files import sha256_bytes
from wildshape.stage import Provenance, input_hashes, run_reduce
from wildshape.tables import Table, read_table
from wildshape.training_data import labelled_image_ids
from wildshape.workspace import Workspace

if TYPE_CHECKING:
    from pseudolabels.candidates import Dropped
    from pseudolabels.criteria import Candidates, Criterion

PUBLISHED_COUNT = 1000


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Choose the best pseudo-labels by one criterion."""

    filter: str = "kpconf"
    """The criterion: kpconf, cf_mt, cf_cm, cf_cm2 (or cf_cm_sq), as published; cf_all, of all sources
    that there are; random and all to compare with."""
    selection_num: int | None = None
    """How many instances to choose; by default 1000, and with --filter all every candidate."""
    aux: str | None = None
    """Whose keypoints cf_cm compares with: pose_aux, as published, or another, such as zero123plus; the
    selection is then called cf_cm_<aux>."""
    seed: int = 0
    """Seed of --filter random."""
    visualize: bool = False
    """Draw the best, the borderline and the worst into the run's pictures."""
    vis_num: int = 24
    """How many pictures --visualize draws."""


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Choose instances and write the selection.

    Returns:
        Facts about the choice: candidates, selected, dropped by reason, value of the best and of
        the last one chosen, path.

    Raises:
        UserError: an unknown filter, a missing keypoint source, fewer candidates than asked for.
    """
    from pseudolabels.criteria import rank

    criterion, name = _criterion(config)
    if config.selection_num is not None and config.selection_num < 1:
        raise UserError(f"expected --selection_num of 1 or more; found {config.selection_num}")
    criterion = criterion.fitted(workspace)
    if criterion.facts:
        say(f"data-selection: {criterion.title} weighs {_weights(criterion)}")
    labelled = labelled_instances(workspace)
    candidates, ids, dropped, inputs = _gather(config, workspace, criterion, set(labelled["image_id"]))
    count = config.selection_num
    if count is None:
        count = len(ids) if criterion.name == "all" else PUBLISHED_COUNT
    if count > len(ids) or not len(ids):
        raise UserError(_too_few(name, count, len(ids), dropped))
    values = criterion.value(candidates)
    order = rank(values, candidates.ids, criterion.descending)

    def make() -> Table:
        chosen = order[:count]
        columns = {
            "instance_id": ids[chosen],
            "criterion": np.full(count, criterion.name, dtype=object),
            "value": values[chosen],
            "rank": np.arange(count),
        }
        return Table("selections", columns, {"category": workspace.category.name})

    settings: dict[str, Any] = {"filter": criterion.name, "selection_num": count}
    if criterion.name == "random":
        settings["seed"] = config.seed
    if criterion.facts:
        settings["weights"] = criterion.facts["weights"]
    if len(labelled):
        ids_left_out = "\n".join(sorted(labelled["instance_id"]))
        settings["labelled"] = f"{len(labelled)} animals, {sha256_bytes(ids_left_out.encode())[:8]}"
    out = workspace.selection_path(name, count)
    provenance = Provenance("data-selection", settings, inputs)
    selection = run_reduce(make, out, provenance, overwrite=config.overwrite)
    facts: dict[str, Any] = {
        "filter": criterion.name,
        "candidates": len(ids),
        "selected": len(selection),
        "dropped": dict(dropped.counts),
        "best_value": float(selection["value"][0]),
        "last_value": float(selection["value"][-1]),
        "selection": workspace.relative(out),
    }
    facts |= criterion.facts
    if config.visualize:
        facts["picture"] = _visualize(config, workspace, criterion, candidates, ids, values, order, count)
    workspace.write_metrics(f"selection_{name}_{count}", facts)
    left_out = f"; no candidates: {dropped}" if dropped.counts else ""
    say(
        f"data-selection: {len(selection)} of {len(ids)} candidates by {criterion.title}, value "
        f"{facts['best_value']:.4g} to {facts['last_value']:.4g} -> {facts['selection']}{left_out}"
    )
    return facts


def _criterion(config: Config) -> tuple[Criterion, str]:
    """The criterion, and how its selections' files are called."""
    from pseudolabels.criteria import compared_with, find_criterion, normalise_name

    criterion, name = find_criterion(config.filter), normalise_name(config.filter)
    if config.aux is None:
        return criterion, name
    compared = compared_with(criterion, config.aux)
    return compared, name if compared is criterion else f"{name}_{config.aux}"


def _weights(criterion: Criterion) -> str:
    facts = criterion.facts
    text = ", ".join(f"{source} {weight:.2f}" for source, weight in facts["weights"].items())
    fitted = f", fitted on {facts['val_animals']} labelled animals of val" if facts["val_animals"] else ""
    return text + fitted + (f" ({facts['note']})" if facts["note"] else "")


def labelled_instances(workspace: Workspace) -> Table:
    """The detected animals in images that people have labelled: they are no pseudo-labels."""
    instances = workspace.load("instances", needed_by="data-selection")
    known = labelled_image_ids(workspace)
    return instances.take(np.array([image in known for image in instances["image_id"]], dtype=bool))


def _gather(
    config: Config, workspace: Workspace, criterion: Criterion, labelled: set[str]
) -> tuple[Candidates, np.ndarray, Dropped, dict[str, str]]:
    from pseudolabels.candidates import gather_candidates

    instances = workspace.load("instances", needed_by=criterion.name)
    keypoints = {
        source: workspace.load_keypoints(source, needed_by=criterion.name) for source in criterion.sources
    }
    paths = [workspace.table_path("instances")]
    paths += [workspace.keypoints_path(source) for source in criterion.sources]
    images = None
    if workspace.table_path("images").exists():
        images = read_table(workspace.table_path("images"), "images")
        paths.append(workspace.table_path("images"))
    candidates, ids, dropped = gather_candidates(instances, keypoints, images, config.seed, labelled)
    return candidates, ids, dropped, input_hashes(workspace.root, *paths)


def _too_few(name: str, count: int, found: int, dropped: Dropped) -> str:
    why = f" ({dropped})" if dropped.counts else ""
    mend = f"run: --selection_num {found} or fewer" if found else "detect and label images first"
    return f"--filter {name} --selection_num {count} needs {count} candidates; found {found}{why}; {mend}"


def _visualize(
    config: Config,
    workspace: Workspace,
    criterion: Criterion,
    candidates: Candidates,
    ids: np.ndarray,
    values: np.ndarray,
    order: np.ndarray,
    count: int,
) -> str:
    from PIL import Image

    from wildshape.files import atomic_path
    from wildshape.report.drawing import contact_sheet

    width = max(1, min(config.vis_num // 3, len(ids)))
    middle = int(np.clip(count - width // 2, 0, len(order) - width))
    groups = [("best", 0), ("borderline", middle), ("worst", len(order) - width)]
    places = [(label, start + step) for label, start in groups for step in range(width)]
    picked = [int(order[place]) for _, place in places]
    tiles, missing = _tiles(workspace, candidates, ids, picked)
    captions = [
        f"{label} #{place + 1}{'' if place < count else ' (out)'}  {values[row]:.4g}"
        for (label, place), row in zip(places, picked)
    ]
    title = f"{workspace.category.name}, {criterion.title}: {count} of {len(ids)}"
    sheet = contact_sheet(tiles, width, captions, title=title)
    out = workspace.pictures_dir / f"selection_{_criterion(config)[1]}_{count}.png"
    with atomic_path(out) as temporary:
        Image.fromarray(sheet).save(temporary)
    if missing:
        say(f"data-selection: {missing} of {len(tiles)} pictures have no image file; keypoints only")
    return workspace.relative(out)


def _tiles(
    workspace: Workspace, candidates: Candidates, ids: np.ndarray, picked: list[int]
) -> tuple[list[np.ndarray], int]:
    from wildshape.crops import ImageError, image_paths, read_image
    from wildshape.report.drawing import draw_keypoints, instance_tile

    instances = workspace.load("instances")
    paths: dict[str, Path] = {}
    if workspace.table_path("images").exists():
        paths = image_paths(workspace.load("images"), workspace)
    row_of, missing, tiles = instances.lookup(), 0, []
    for row in picked:
        path = paths.get(instances["image_id"][row_of[ids[row]]])
        image = None
        if path is not None:
            try:
                image = read_image(path)
            except ImageError as error:
                say(f"data-selection: {error}")
        missing += image is None
        tile, affine = instance_tile(image, candidates.box_xyxy[row])
        xy = affine.apply(candidates.xy["pose"][row])
        skeleton = workspace.category.skeleton
        fits = len(xy) == skeleton.num_keypoints
        confidence = candidates.confidence["pose"][row]
        tiles.append(draw_keypoints(tile, xy, confidence, skeleton if fits else None))
    return tiles, missing


def main(argv: list[str] | None = None) -> int:
    """Entry point of the script and of `wildshape data-selection`."""
    return script_main(Config, run, argv, prog="wildshape data-selection")


if __name__ == "__main__":
    sys.exit(main())
