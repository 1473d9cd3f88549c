"""Segment the animals in their boxes: a mask with its quality for each."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from prepare_data.backends import parse_opts
from prepare_data.mask_metrics import describe_masks
from prepare_data.mask_stage import MaskStage, join_masks, true_masks
from prepare_data.matting import MattingConfig, save_mattes
from prepare_data.segmenters import GROUNDED, find_segmenter
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import image_paths
from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.stage import MapOptions, Provenance, input_hashes, is_finished, run_map
from wildshape.tables import Table, read_facts, read_table
from wildshape.workspace import Workspace

TEXT_OPTIONS = ("text", "text_threshold")


@dataclass(frozen=True, kw_only=True)
class Config(EngineOptions, CommonConfig):
    """Segment the detected animals, each in its box."""

    segmenter: str = "torchvision"
    """torchvision[:MODEL], sam[:MODEL], sam2[:MODEL], grounded-sam[:MODEL], path/to/file.py:NAME."""
    opts: tuple[str, ...] = ()
    """Settings of the segmenter, as in `--opts MODEL.WEIGHTS model.pt`."""
    labelled: bool = False
    """Segment the labelled animals instead of the detected ones."""
    replace_true_masks: bool = False
    """Put the segmenter's masks in place of those that came with labels or imported boxes, too."""
    min_quality: float = 0.0
    """Masks of a lower quality are not kept."""
    text_detector: str = "transformers:IDEA-Research/grounding-dino-tiny"
    """The detector of grounded-sam."""
    score_threshold: float | None = None
    """Least score of a box of grounded-sam; by default the detector's own."""
    matting: bool = False
    """Also write every animal with a mask on a plain background."""
    matting_dir: Path | None = None
    """Folder for them; by default data/<category>/matted."""
    background: str = "white"
    """Their background: a colour by name or as #rrggbb."""
    matting_size: int = 320
    """Side of these pictures in pixels."""
    matting_margin: float = 1.25
    """What they show, relative to the longer side of the box."""
    feather: float = 1.0
    """Softness of the edge: standard deviation in pixels of the picture."""
    visualize: bool = False
    """Draw a sheet of masks over their photos, from the worst quality to the best."""
    batch_size: int = 8
    """Boxes a call of the segmenter."""
    workers: int = 0
    """Loader processes that decode images, for each worker of --engine ray."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.min_quality <= 1:
            raise UserError(f"--min_quality: expected 0 to 1; found {self.min_quality}")
        if self.batch_size < 1:
            raise UserError(f"--batch_size: expected at least 1; found {self.batch_size}")
        if self.matting_dir is not None and not self.matting:
            raise UserError("--matting_dir: expected --matting with it; found none")
        _ = self.cut_out

    @property
    def cut_out(self) -> MattingConfig:
        """How animals are put on a plain background."""
        return MattingConfig(self.background, self.matting_size, self.matting_margin, self.feather)

    @property
    def stage(self) -> str:
        """Name of the metrics' file."""
        return "save_masks_labelled" if self.labelled else "save_masks"


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Segment, write the masks table, join it into the boxes' table, and return the counts.

    Raises:
        UserError: if there are no boxes, no image can be read, the segmenter cannot be had, or the table
            was made with other settings.
    """
    if config.segmenter.partition(":")[0] == GROUNDED:
        config = _find_boxes(config, workspace)
    kind = "labels" if config.labelled else "instances"
    table = workspace.load(kind, "save_masks")
    if not len(table):
        raise UserError(f"save_masks needs {kind}; found none in {workspace.table_path(kind)}")
    images = workspace.load("labelled_images" if config.labelled else "images", "save_masks")
    metrics, masks = _segment(config, workspace, table, images)
    pairs, truth = _truth(config, workspace, table, images)
    metrics.update(describe_masks(masks, truth, pairs))
    true = true_masks(table)
    kept = true & (not config.replace_true_masks)
    metrics["true_masks_kept"] = int(kept.sum())
    table = join_masks(workspace.table_path(kind), kind, masks, keep=kept)
    if config.matting:
        default = workspace.labelled_matted_dir if config.labelled else workspace.matted_dir
        folder = (config.matting_dir or default).expanduser()
        counts = save_mattes(table, images, workspace, folder, config.cut_out, overwrite=config.overwrite)
        metrics["matting"] = {**counts, "folder": workspace.relative(folder)}
    if config.visualize:
        from prepare_data.mask_sheet import draw_sheet

        metrics["sheet"] = draw_sheet(config.stage, table, images, workspace)
    workspace.write_metrics(config.stage, metrics)
    _report(metrics, workspace, config)
    if metrics["by_status"].get("unreadable", 0) == len(masks):
        raise UserError(
            f"expected readable images; found none of {len(masks)} (first: {metrics['problems'][0]}); "
            f"run: {workspace.made_by('labelled_images' if config.labelled else 'images')} --overwrite"
        )
    return metrics


def _find_boxes(config: Config, workspace: Workspace) -> Config:
    """The first half of grounded-sam: boxes by text. Returns the settings of the second half."""
    from prepare_data import save_boxes

    if config.labelled:
        raise UserError(
            f"--segmenter {config.segmenter}: expected web images, whose boxes it finds; found --labelled; "
            "run: with --segmenter sam"
        )
    options = parse_opts(config.opts)
    asked = tuple(f"{key}={value}" for key, value in options.items() if key in TEXT_OPTIONS)
    save_boxes.run(
        save_boxes.Config(
            category=config.category, name=config.name, data_root=config.data_root,
            overwrite=config.overwrite, detector=config.text_detector, opts=asked,
            score_threshold=config.score_threshold, workers=config.workers, device=config.device,
            **{item.name: getattr(config, item.name) for item in fields(EngineOptions)},
        ),
        workspace,
    )  # fmt: skip
    model = config.segmenter.partition(":")[2]
    rest = tuple(f"{key}={value}" for key, value in options.items() if key not in TEXT_OPTIONS)
    return replace(config, segmenter=f"sam:{model}" if model else "sam", opts=rest)


def _segment(
    config: Config, workspace: Workspace, table: Table, images: Table
) -> tuple[dict[str, Any], Table]:
    segmenter = find_segmenter(config.segmenter, workspace, config.opts, config.device)
    boxes = workspace.table_path("labels" if config.labelled else "instances")
    out = workspace.table_path("labelled_masks" if config.labelled else "masks")
    settings = {**segmenter.settings, "min_quality": config.min_quality}
    provenance = Provenance("save_masks", settings, input_hashes(workspace.root, boxes))
    known = _same_settings(out, provenance) if config.overwrite else {}
    paths, min_quality = image_paths(images, workspace), config.min_quality

    def factory() -> MaskStage:
        return MaskStage(segmenter.make(), segmenter.name, paths, min_quality, known)

    options = MapOptions(
        shard_size=max(64, 8 * config.batch_size),
        batch_size=config.batch_size,
        workers=config.loaders(config.workers, unset=0),
        overwrite=config.overwrite,
        title="save_masks",
        engine=config.engine_options,
        device=config.device,
    )
    done_before = is_finished(out, provenance, overwrite=config.overwrite)
    start = time.perf_counter()
    masks = run_map(factory, table, out, "masks", provenance, options=options)
    seconds = time.perf_counter() - start
    metrics: dict[str, Any] = {"segmenter": segmenter.title}
    if not done_before:
        metrics["seconds"] = round(seconds, 3)
        metrics["boxes_per_second"] = round(len(masks) / seconds, 2)
    if known:
        rows = zip(table["instance_id"], table["box_xyxy"])
        metrics["reused"] = sum(
            name in known and np.array_equal(known[name]["box_xyxy"], box) for name, box in rows
        )
    return metrics, masks


def _same_settings(out: Path, provenance: Provenance) -> dict[str, dict[str, Any]]:
    """Rows of an earlier table that was made with these settings, but from other boxes."""
    if not out.exists():
        return {}
    old, new = read_facts(out)["provenance"], provenance.as_dict()
    if old["config"] != new["config"] or old["inputs"] == new["inputs"]:
        return {}
    return {
        row["instance_id"]: row for row in read_table(out, "masks").rows() if row["status"] != "unreadable"
    }


def _truth(
    config: Config, workspace: Workspace, table: Table, images: Table
) -> tuple[dict[int, int], Table | None]:
    """What is known of the animals: row of a labels table by row of the boxes' table."""
    if config.labelled:
        unsure = ~true_masks(table)
        masks = np.where(unsure, None, table["mask_rle"])  # an earlier segmenter's mask is no truth
        return {row: row for row in range(len(table))}, table.with_columns(mask_rle=masks)
    if not all(workspace.table_path(name).exists() for name in ("truth", "truth_images")):
        return {}, None
    from prepare_data.diorama.truth import match_animals

    truth = workspace.load("truth")
    pairs, _ = match_animals(table, images, truth, workspace.load("truth_images"))
    return pairs, truth


def _report(metrics: Mapping[str, Any], workspace: Workspace, config: Config) -> None:
    counts = dict(metrics["by_status"])
    total = sum(counts.values())
    rest = ", ".join(f"{value} {key}" for key, value in counts.items() if key != "ok")
    parts = [
        f"save_masks: {metrics['masks']} masks of {total} {'labelled ' if config.labelled else ''}"
        f"{workspace.category.name} boxes by {metrics['segmenter']}"
    ]
    parts += [rest] if rest else []
    parts += [f"{metrics['reused']} from before"] if metrics.get("reused") else []
    measures = (("quality", "quality"), ("box_iou", "box IoU"), ("true_iou", "IoU with true masks"))
    means = [f"{title} {metrics[key]['mean']:.3f}" for key, title in measures if metrics.get(key)]
    if (inside := metrics.get("keypoints_inside")) and inside["visible"] is not None:
        means.append(f"seen keypoints inside {inside['visible']:.3f}")
    parts += ["mean " + ", ".join(means)] if means else []
    if metrics["true_masks_kept"]:
        parts.append(f"{metrics['true_masks_kept']} true masks stay")
    say("; ".join(parts) + ("" if "seconds" in metrics else " (done before)"))
    for problem in metrics["problems"]:
        say(f"  {problem}")
    if "matting" in metrics:
        cut = metrics["matting"]
        say(
            f"  matting: {cut['written']} pictures written to {cut['folder']}, {cut['up_to_date']} there "
            f"before, {cut['without_mask']} animals without a mask, {cut['unreadable']} unreadable"
            + (
                f"; {cut['left_over']} others in the folder are of none of these"
                if cut["left_over"]
                else ""
            )
        )
    if "sheet" in metrics:
        say(f"  sheet: {metrics['sheet']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    return script_main(Config, run, argv, prog="wildshape save-masks")


if __name__ == "__main__":
    sys.exit(main())
