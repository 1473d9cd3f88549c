"""Detect the animals in the images: one row of the instances table for each."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prepare_data.boxes import BoxRules, choose_boxes, keep_ids
from prepare_data.detectors import Detector, LoadedDetector, default_threshold, detect, find_detector
from prepare_data.journal import read_journal
from wildshape.category import CategorySpec
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import ImageError, read_image
from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.stage import MapOptions, MapStage, Provenance, input_hashes, is_finished, run_map
from wildshape.tables import Table, make_instance_id, read_table
from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(EngineOptions, CommonConfig):
    """Detect the animals in the downloaded images."""

    detector: str = "torchvision"
    """torchvision[:MODEL], detectron2[:CONFIG], transformers[:MODEL], mayaku:FILE, path/to/file.py:NAME."""
    score_threshold: float | None = None
    """Least score of a box; by default the detector's own, .95 for Faster R-CNN as published."""
    opts: tuple[str, ...] = ()
    """Settings of the detector, as in `--opts MODEL.WEIGHTS model.pkl`."""
    max_per_image: int | None = None
    """Keep at most so many boxes an image, those of the highest score."""
    small_side: float = 32.0
    """Boxes whose longer side is shorter than this in pixels are flagged small."""
    batch_size: int = 8
    """Images a call of the detector."""
    workers: int = 0
    """Loader processes that decode images, for each worker of --engine ray."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise UserError(f"--score_threshold: expected 0 to 1; found {self.score_threshold}")
        for name in ("max_per_image", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}: expected at least 1; found {value}")


def accepted_labels(category: CategorySpec) -> frozenset[str]:
    """Detector labels, in lower case, that mean this category: its COCO class if any, name and synonyms."""
    names = (category.coco_label or category.name, category.name, *category.synonyms)
    return frozenset(name.strip().lower() for name in names)


def box_rules(
    category: CategorySpec,
    detector: Detector,
    score_threshold: float | None = None,
    max_per_image: int | None = None,
    small_side: float = 32.0,
) -> BoxRules:
    """Which of a detector's boxes are animals of a category.

    Args:
        category: The category; its COCO class, name and synonyms are taken.
        detector: Has its say on the threshold, if none is given.
        score_threshold: Least score; boxes below the detector's own threshold are flagged low_score.
        max_per_image: Most boxes an image.
        small_side: Boxes with a shorter longer side, in pixels, are flagged.
    """
    sure = default_threshold(detector)
    threshold = sure if score_threshold is None else score_threshold
    return BoxRules(accepted_labels(category), threshold, max_per_image, small_side, sure)


class BoxStage(MapStage):
    """Images rows in, instances rows out; notes for every image what became of its boxes.

    Args:
        detector: Finds the boxes.
        name: The detector's name, part of instance ids.
        category: The category's name, written in the table.
        rules: Which boxes are kept.
        workspace: To find the images' files.
        previous: Instances of an earlier run, whose ids are kept.
    """

    key = "image_id"

    def __init__(
        self,
        detector: Detector,
        name: str,
        category: str,
        rules: BoxRules,
        workspace: Workspace,
        previous: Table | None = None,
    ) -> None:
        self._detector, self._name, self._category = detector, name, category
        self._rules, self._workspace = rules, workspace
        self._previous: dict[str, list[tuple[str, np.ndarray]]] = {}
        for row in previous.rows() if previous is not None else ():
            self._previous.setdefault(row["image_id"], []).append((row["instance_id"], row["box_xyxy"]))

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its image decoded, or the reason why it cannot be."""
        image, problem = None, None
        try:
            image = read_image(self._workspace.image_file(row["path"]))
        except ImageError as error:
            problem = str(error)
        return {
            "image_id": row["image_id"],
            "source_id": row["source_id"],
            "image": image,
            "problem": problem,
        }

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Instances of a batch of images, in the images' order, by falling score in each."""
        readable = [place for place, image in enumerate(batch["image"]) if image is not None]
        images = [batch["image"][place] for place in readable]
        found = detect(self._detector, self._name, images) if images else []
        rows: list[dict[str, Any]] = []
        for image_id, problem in zip(batch["image_id"], batch["problem"]):
            if problem is not None:
                self.note({"image_id": image_id, "problem": problem})
        for place, image, detection in zip(readable, images, found):
            image_id = batch["image_id"][place]
            chosen, dropped = choose_boxes(*detection, image.shape[:2], self._rules)
            ids = keep_ids(
                chosen.boxes,
                [make_instance_id(image_id, self._name, box) for box in chosen.boxes],
                self._previous.get(image_id, []),
            )
            for number, instance_id in enumerate(ids):
                rows.append(
                    {
                        "instance_id": instance_id,
                        "image_id": image_id,
                        "category": self._category,
                        "source_id": batch["source_id"][place],
                        "box_xyxy": chosen.boxes[number],
                        "score": chosen.scores[number],
                        "detector": self._name,
                        "flags": chosen.flags[number],
                    }
                )
            self.note({"image_id": image_id, "kept": len(ids), **dropped})
        return dict(Table.from_rows("instances", rows).columns)


def summarise(log: Mapping[str, Mapping[str, Any]], instances: Table) -> dict[str, Any]:
    """Counts of images and of boxes by what became of them."""
    images: Counter[str] = Counter()
    boxes: Counter[str] = Counter()
    problems: list[str] = []
    for record in log.values():
        if "problem" in record:
            images["unreadable"] += 1
            problems.append(str(record["problem"]))
            continue
        images["with_animals" if record["kept"] else "without_animals"] += 1
        boxes.update({key: int(value) for key, value in record.items() if key != "image_id"})
    flags = Counter(flag for text in instances["flags"] for flag in text.split(",") if flag)
    return {
        "instances": len(instances),
        "images": dict(images),
        "boxes": {key: value for key, value in boxes.items() if value},
        "flags": dict(flags),
        "problems": problems[:5],
    }


def check_labels(detector: Detector, category: CategorySpec) -> None:
    """Raises UserError where a detector's classes are fixed and none means the category."""
    labels = getattr(detector, "labels", None)
    if labels is None:
        return
    names = {
        str(name).strip().lower() for name in (labels.values() if isinstance(labels, dict) else labels)
    }
    wanted = accepted_labels(category)
    if not names & wanted:
        raise UserError(
            f"expected a detector that knows {' or '.join(sorted(wanted))}; this one has {len(names)} "
            f"other classes; give {category.path} a coco_label among them, or run: with a detector that is "
            "asked by name, such as --detector transformers:IDEA-Research/grounding-dino-tiny"
        )


def _factory(detector: LoadedDetector, config: Config, workspace: Workspace) -> Callable[[], BoxStage]:
    out = workspace.table_path("instances")
    category = workspace.category
    if category.coco_label is None:
        say(
            f"save_boxes: {category.name} has no coco_label; boxes count that the detector calls "
            f"{' or '.join(sorted(accepted_labels(category)))}"
        )

    def make() -> BoxStage:
        made = detector.make()
        check_labels(made, category)
        rules = box_rules(
            workspace.category, made, config.score_threshold, config.max_per_image, config.small_side
        )
        previous = read_table(out, "instances") if out.exists() else None
        name = workspace.category.name
        return BoxStage(made, detector.name, name, rules, workspace, previous)

    return make


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Detect, write the instances table, and return the counts.

    Raises:
        UserError: if there are no images, no image can be read, the detector cannot be had, or the
            table was made with other settings.
    """
    images = workspace.load("images", "save_boxes")
    usable = images.take(images["status"] == "ok")
    if not len(usable):
        raise UserError(
            f"save_boxes needs images with status ok; found none of {len(images)}; "
            f"run: {workspace.made_by('images')}"
        )
    detector = find_detector(config.detector, workspace, config.opts, config.device)
    labels = accepted_labels(workspace.category)
    settings = {
        **detector.settings,
        "labels": sorted(labels),
        "score_threshold": config.score_threshold,
        "max_per_image": config.max_per_image,
        "small_side": config.small_side,
    }
    inputs = input_hashes(workspace.root, workspace.table_path("images"))
    provenance = Provenance("save_boxes", settings, inputs)
    start = time.perf_counter()
    options = MapOptions(
        shard_size=max(64, 8 * config.batch_size),
        batch_size=config.batch_size,
        workers=config.loaders(config.workers, unset=0),
        overwrite=config.overwrite,
        title="save_boxes",
        batch_by=("width", "height"),  # a batch is padded to its largest image
        engine=config.engine_options,
        device=config.device,
    )
    out = workspace.table_path("instances")
    done_before = is_finished(out, provenance, overwrite=config.overwrite)
    factory = _factory(detector, config, workspace)
    instances = run_map(factory, usable, out, "instances", provenance, options=options)
    seconds = time.perf_counter() - start
    metrics = summarise(read_journal(out.with_suffix(".log.jsonl"), "image_id"), instances)
    metrics["detector"] = detector.title
    if not done_before:
        metrics["seconds"] = round(seconds, 3)
        metrics["images_per_second"] = round(len(usable) / seconds, 2)
    workspace.write_metrics("save_boxes", metrics)
    _report(metrics, len(usable), workspace, done_before=done_before)
    return metrics


def _report(metrics: Mapping[str, Any], images: int, workspace: Workspace, *, done_before: bool) -> None:
    name, boxes, counts = workspace.category.name, metrics["boxes"], metrics["images"]
    dropped = ", ".join(f"{value} {key}" for key, value in boxes.items() if key != "kept")
    unreadable = counts.get("unreadable", 0)
    say(
        f"save_boxes: {metrics['instances']} {name} boxes in {counts.get('with_animals', 0)} of "
        f"{images} images by {metrics['detector']}"
        + (f"; dropped: {dropped}" if dropped else "")
        + (f"; {unreadable} images unreadable" if unreadable else "")
        + (" (done before)" if done_before else "")
    )
    for problem in metrics["problems"]:
        say(f"  unreadable: {problem}")
    if unreadable == images:
        raise UserError(
            f"expected readable images; found none of {images} (first: {metrics['problems'][0]}); "
            f"run: {workspace.made_by('images')} --overwrite"
        )
    if not metrics["instances"] and boxes.get("low_score"):
        say("  all boxes lie under the score threshold; try a lower --score_threshold")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    return script_main(Config, run, argv, prog="wildshape save-boxes")


if __name__ == "__main__":
    sys.exit(main())
