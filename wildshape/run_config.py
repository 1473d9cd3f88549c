"""Settings of `wildshape run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wildshape.cli import CommonConfig
from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.monitor import MonitorOptions


@dataclass(frozen=True, kw_only=True)
class Config(MonitorOptions, EngineOptions, CommonConfig):
    """Run the whole pipeline for one category; run it again to continue."""

    labels: str | None = None
    """Where labels come from: diorama, or FORMAT:PATH with a format of `wildshape import`, as coco:FILE."""
    split_seed: int = 0
    """Seed of the train/val/test split of imported labels."""
    web: Path | None = None
    """Folder of your own photos, in place of a download."""
    metadata: tuple[Path, ...] = ()
    """Metadata files to search for the category (YFCC100M, or lists of addresses)."""
    detector: str | None = None
    """As of save-boxes; by default torchvision, or diorama with --labels diorama."""
    score_threshold: float | None = None
    """Least score of a box; by default the detector's."""
    opts: tuple[str, ...] = ()
    """Pairs for the detector, such as MODEL.WEIGHTS FILE."""
    size: Literal["auto", "full", "cpu", "miniature"] = "auto"
    """Sizes of networks and trainings; auto takes full on a CUDA device and cpu elsewhere."""
    segmenter: str | None = None
    """As of save-masks: cut the animals out; without it nothing is segmented."""
    tokens: str | None = None
    """A diffusion model that finds keypoints without labels (small, a folder, a repository); cf_cm compares
    with these, too, as --filter cf_cm_zero123plus."""
    filter: str = "cf_cm"
    """Criterion whose selection the 3D model is trained with."""
    selection_num: int | None = None
    """Pseudo-labels that a criterion keeps."""
    pose_steps: int | None = None
    """Optimiser steps of the pose networks, of both."""
    encoder_steps: int | None = None
    """Optimiser steps for which each arm's encoder goes on learning keypoints from the arm's animals."""
    acsm_steps: int | None = None
    """Optimiser steps of the 3D model, the same in every arm."""
    pose_init: Path | None = None
    """Checkpoint from which the pose network starts."""
    aux_init: Path | None = None
    """Checkpoint from which the second pose network starts."""
    acsm_init: Path | None = None
    """Checkpoint from which the 3D model starts; by default the pose network, if it is a resnet18, after
    --encoder_steps."""
    num_cameras: int | None = None
    """Camera hypotheses of the 3D model, by default 1, as of acsm-train; 8 suited real cows better."""
    translations: bool = False
    """Let the 3D model's parts also move, as of acsm-train; real cows were fitted better."""
    labels_from: str = ""
    """Other categories whose training labels are added, such as horse,sheep."""
    seed: int = 0
    """Seed of every training."""
    rounds: int = 1
    """Rounds of self-training: each later one trains both pose networks on the selection of the one
    before, labels and selects anew and trains the 3D model; it is a run of its own, <name>-round2 ..."""
    vis_num: int = 12
    """Animals that visualize draws."""
    time_limit: float | None = None
    """Minutes that each training may take in this call; run again to continue."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        if self.rounds < 1:
            raise UserError(f"--rounds: expected at least 1; found {self.rounds}")
        counts = ("selection_num", "pose_steps", "acsm_steps", "num_cameras", "vis_num")
        for flag, least in (*((name, 1) for name in counts), ("encoder_steps", 0)):
            value = getattr(self, flag)
            if value is not None and value < least:
                raise UserError(f"--{flag}: expected at least {least}; found {value}")
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise UserError(f"--score_threshold: expected 0 to 1; found {self.score_threshold}")
        for flag in ("pose_init", "aux_init", "acsm_init"):
            file = getattr(self, flag)
            if file is not None and not file.is_file():
                raise UserError(f"--{flag}: expected a checkpoint; found no file {file}")
