"""`wildshape pose-generate-pl-mt`: 2D keypoints of every detected animal under transforms."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pose.pseudo_labels import TRANSFORMS, LabelOptions, label_instances
from wildshape.cli import CommonConfig, script_main
from wildshape.engine import EngineOptions

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(EngineOptions, CommonConfig):
    """Predict the 2D keypoints of every detected animal under scales 1.1 and 1.2 and rotations by
    -20, -10, 10 and 20 degrees about the box's centre, taken back to the image."""

    labelled: bool = False
    """Predict the labelled animals of val, into keypoints/pose_mt_labelled: data-selection --filter cf_all
    learns from them how far to trust each source."""
    flip_average: bool = False
    """Average with the mirrored image's heatmaps (twice the work)."""
    batch_size: int = 32
    """Crops in one forward pass."""
    workers: int | None = None
    """Processes that read and crop ahead; 0 for none, by default chosen by the number of cores."""
    device: str = "auto"
    """auto, cpu or cuda."""


def run(config: Config, workspace: "Workspace") -> dict[str, Any]:
    """Predict into keypoints/pose_mt, seven rows an instance; gives the counts.

    Raises:
        UserError: as `label_instances`.
    """
    options = LabelOptions(
        model="pose",
        source="pose_mt",
        labelled=config.labelled,
        transforms=tuple(TRANSFORMS),
        flip_average=config.flip_average,
        batch_size=config.batch_size,
        workers=config.loaders(config.workers),
        device=config.device,
        overwrite=config.overwrite,
        engine=config.engine_options,
    )
    return label_instances(workspace, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape pose-generate-pl-mt")


if __name__ == "__main__":
    sys.exit(main())
