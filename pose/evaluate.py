"""`wildshape pose-evaluate`: PCK of the 2D keypoint network on labelled animals."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pose.data import AUGMENTATIONS, PoseSamples
from pose.predict import PosePredictor
from pose.pseudo_labels import load_predictor, model_name
from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.metrics import bootstrap_interval, pck_counts
from wildshape.records import tell_skipped
from wildshape.stage import progress
from wildshape.training_data import labelled

if TYPE_CHECKING:
    from wildshape.workspace import Workspace

THRESHOLDS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1)


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Measure the 2D keypoint network: PCK at .02 ... .10 of the box's longer side."""

    is_aux: bool = False
    """Measure the auxiliary network."""
    arm: str | None = None
    """Measure the network that pose-train trained under this name."""
    split: Literal["test", "val", "train"] = "test"
    """Labels to measure on."""
    flip_average: bool = False
    """Average with the mirrored image's heatmaps."""
    batch_size: int = 32
    """Crops in one forward pass."""
    device: str = "auto"
    """auto, cpu or cuda."""


def measure(predictor: PosePredictor, samples: PoseSamples) -> dict[str, Any]:
    """PCK of a predictor, overall and by keypoint, with bootstrap intervals over instances.

    Args:
        predictor: the network.
        samples: labelled animals whose images can be read.

    Returns:
        JSON-able: `thresholds`, `pck`, `pck_low`, `pck_high` (95 %), and `per_keypoint` name ->
        `pck` and `count`; fractions, null where nothing counts.
    """
    records = samples.records
    pieces = []
    with progress(title="measure", total=len(records), unit="animal") as bar:
        for start in range(0, len(records), 64):  # images of 64 instances at a time in memory
            index = range(start, min(start + 64, len(records)))
            images = [samples.image(i) for i in index]
            pieces.append(predictor.predict(images, records.box_xyxy[list(index)])[0])
            bar.update(len(index))
    correct, total = pck_counts(
        np.concatenate(pieces), records.xy, records.counts, records.box_side, THRESHOLDS
    )
    low, high = bootstrap_interval(correct.sum(1), total.sum(1))
    seen = total.sum(0)
    by_keypoint = correct.sum(0) / np.maximum(seen, 1)[:, None]
    return {
        "instances": len(records),
        "keypoints": int(seen.sum()),
        "thresholds": list(THRESHOLDS),
        "pck": (correct.sum((0, 1)) / total.sum()).tolist(),
        "pck_low": low.tolist(),
        "pck_high": high.tolist(),
        "per_keypoint": {
            name: {"count": int(n), "pck": row.tolist() if n else [None] * len(row)}
            for name, n, row in zip(predictor.keypoints, seen, by_keypoint)
        },
    }


def run(config: Config, workspace: "Workspace") -> dict[str, Any]:
    """Measure, print a table and write `metrics/<model>_<split>.json`.

    Raises:
        UserError: labels or checkpoint are missing, or the split has no usable label.
    """
    name = model_name(config.is_aux, config.arm)
    predictor = load_predictor(
        workspace,
        name,
        device=config.device,
        batch_size=config.batch_size,
        flip_average=config.flip_average,
    )
    records, _ = labelled(workspace, config.split, workspace.category.skeleton)
    samples = PoseSamples(
        records, predictor.image_size, workspace.category.skeleton.flip, AUGMENTATIONS["none"]
    )
    skipped = [*records.skipped, *samples.drop_unreadable()]
    tell_skipped(skipped, len(records) + len(records.skipped), f"{config.split} labels")
    if not len(samples):
        raise UserError(
            f"expected {config.split} labels for {workspace.category.name}; found none that can "
            f"be used; run: {workspace.made_by('labels')}"
        )
    metrics = {
        "model": name,
        "split": config.split,
        "flip_average": config.flip_average,
        "skipped": [f"{i}: {reason}" for i, reason in skipped],
        **measure(predictor, samples),
    }
    workspace.write_metrics(f"{name}_{config.split}", metrics)
    say(_table(metrics))
    return metrics


def _table(metrics: dict[str, Any]) -> str:
    shown = [i for i, t in enumerate(metrics["thresholds"]) if t in (0.02, 0.04, 0.06, 0.08, 0.1)]
    header = "".join(f"   @{metrics['thresholds'][i]:.2f}" for i in shown)
    lines = [
        f"{metrics['model']}: PCK on {metrics['split']}, {metrics['instances']} animals, "
        f"{metrics['keypoints']} keypoints",
        f"{'':<12}{'count':>6}{header}",
    ]
    for name, row in metrics["per_keypoint"].items():
        if row["count"]:
            values = "".join(f"{100 * row['pck'][i]:8.1f}" for i in shown)
            lines.append(f"{name:<12}{row['count']:>6}{values}")
    lines.append(
        f"{'all':<12}{metrics['keypoints']:>6}" + "".join(f"{100 * metrics['pck'][i]:8.1f}" for i in shown)
    )
    for label, key in (("95 % from", "pck_low"), ("95 % to", "pck_high")):
        lines.append(f"{label:<18}" + "".join(f"{100 * metrics[key][i]:8.1f}" for i in shown))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape pose-evaluate")


if __name__ == "__main__":
    sys.exit(main())
