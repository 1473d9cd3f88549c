"""`wildshape run`: the whole sequence for one category, resuming wherever it stopped.

Every step is a command of its own; this module only calls them in order, with settings that fit the
machine, and times them.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from wildshape.cli import say, script_main
from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.files import read_json, write_json
from wildshape.monitor import MonitorOptions
from wildshape.run_config import Config
from wildshape.sizes import SIZES, Sizes, eval_every
from wildshape.training_data import labelled_image_ids
from wildshape.val_labels import label_val
from wildshape.workspace import Workspace

CRITERIA = ("kpconf", "cf_mt", "cf_cm", "cf_cm2")
TOKENS = "zero123plus"
ENCODER_LR = 3e-4


def sizes_for(config: Config) -> Sizes:
    """The sizes that the settings and the machine call for."""
    name: str = config.size
    if name == "auto":
        import torch

        cuda = torch.cuda.is_available() and config.device != "cpu"
        name = "full" if cuda else "cpu"
    chosen = SIZES[name]
    given = {
        field.name: getattr(config, field.name)
        for field in fields(Sizes)
        if getattr(config, field.name, None) is not None
    }
    if "pose_steps" in given:
        given["aux_steps"] = given["pose_steps"]
    return replace(chosen, **given)


class StoppedByTimeLimit(UserError):
    """A training has not finished within its ``--time_limit``; its state is saved."""


class Pipeline:
    """The steps of one run.

    Args:
        config: The run's settings.
        workspace: Where it lives.

    Attributes:
        selected: How many pseudo-labels each criterion kept, once they have.
    """

    def __init__(self, config: Config, workspace: Workspace) -> None:
        self.config, self.workspace = config, workspace
        self.sizes = sizes_for(config)
        self.engine = config.engine_options
        self.timings: dict[str, float] = {}
        self.selected = 0
        path = workspace.metrics_path("timings")
        if path.exists():
            self.timings = dict(read_json(path))

    def call(self, title: str, module_name: str, **settings: Any) -> Any:
        """Run one command with this run's common settings, and note its time."""
        module = importlib.import_module(module_name)
        known = {field.name for field in fields(module.Config)}
        common = {
            "category": self.config.category,
            "name": self.workspace.name,
            "data_root": self.workspace.root,
            "overwrite": self.config.overwrite,
            "device": self.config.device,
            "time_limit": self.config.time_limit,
        }
        chosen = {key: value for key, value in common.items() if key in known} | settings
        if issubclass(module.Config, MonitorOptions):
            chosen |= {field.name: getattr(self.config, field.name) for field in fields(MonitorOptions)}
        if self.engine.engine == "ray" and issubclass(module.Config, EngineOptions):
            chosen |= vars(self.engine)
        say(f"-- {title}")
        began = time.monotonic()
        result = module.run(module.Config(**chosen), self.workspace)
        seconds = time.monotonic() - began
        # A step that was already done takes no time: keep what it took when it was.
        if seconds > 1 or title not in self.timings:
            self.timings[title] = round(self.timings.get(title, 0.0) + seconds, 2)
        write_json(self.workspace.metrics_path("timings"), self.timings)
        if isinstance(result, dict) and result.get("finished") is False:
            raise StoppedByTimeLimit(
                f"{title} stopped at its --time_limit; its state is saved: run the same command again"
            )
        return result

    def labels(self) -> None:
        """Bring the labelled photos in."""
        source = self.config.labels
        if source is None or source == "diorama":
            self.workspace.load("labels", needed_by="wildshape run")
            return
        kind, _, place = source.partition(":")
        formats = importlib.import_module("wildshape.formats.import_command").FORMATS
        if kind not in formats or not place:
            known = ", ".join(f"{name}:PATH" for name in formats)
            raise UserError(f"--labels: expected {known} or diorama; found {source}")
        self.call(
            "import labels",
            "wildshape.formats.import_command",
            format=kind,
            root=Path(place),
            split_seed=self.config.split_seed,
        )

    def images(self) -> None:
        """Get the unlabelled images: a folder of the user's, or a search and a download."""
        if self.config.web is not None:
            self.call("take photos", "prepare_data.add_folder", folder=self.config.web)
            return
        candidates = bool(self.config.metadata) or any(self.workspace.metadata_dir.glob("*"))
        if candidates:
            self.call("search metadata", "prepare_data.search_metadata", metadata=self.config.metadata)
            self.call("download", "prepare_data.download_images")
            return
        self.workspace.load("images", needed_by="wildshape run")

    def boxes(self, detector: str) -> None:
        """Detect the animals."""
        self.call(
            "detect",
            "prepare_data.save_boxes",
            detector=detector,
            score_threshold=self.config.score_threshold,
            opts=self.config.opts,
        )

    def masks(self) -> None:
        """Cut the animals out, labelled and detected ones."""
        for labelled in (True, False) if self.config.segmenter else ():
            settings = {"segmenter": self.config.segmenter, "labelled": labelled, "opts": ()}
            which = "labelled" if labelled else "detected"
            self.call(f"segment {which} animals", "prepare_data.save_masks", **settings)

    def tokens(self) -> None:
        """Learn tokens of a diffusion model, and label every detected animal by them."""
        if self.config.tokens is None:
            return
        steps = self.sizes.token_steps
        settings = {"model": self.config.tokens, "steps": steps, "eval_every": eval_every(steps, 5)}
        self.call("learn tokens", "pseudolabels.train_tokens", seed=self.config.seed, **settings)
        self.call("label by tokens", "pseudolabels.generate_pl")

    def pose(self) -> None:
        """Train both pose networks, measure the first, and label every detected animal."""
        sizes, config = self.sizes, self.config
        for is_aux, backbone, steps, init in (
            (False, sizes.backbone, sizes.pose_steps, config.pose_init),
            (True, sizes.aux_backbone, sizes.aux_steps, config.aux_init),
        ):
            which = "second pose network" if is_aux else "pose network"
            # A checkpoint to start from brings its own architecture.
            arch = {"backbone": backbone} if init is None else {"head_channels": None}
            settings = {"head_channels": sizes.head_channels, **self._pose_training(steps), **arch}
            web = self.pose_web(is_aux)
            self.call(f"train {which}", "pose.train", **{"is_aux": is_aux, "init": init, **settings, **web})
            # Averaged with the mirror's, left and right are confused less, and doubt shows.
            self.call(f"measure {which}", "pose.evaluate", is_aux=is_aux, flip_average=True)
            self.call(f"label with {which}", "pose.generate_pl", is_aux=is_aux, flip_average=True)
        self.call("label under transforms", "pose.generate_pl_mt", flip_average=True)

    def pose_web(self, is_aux: bool) -> dict[str, Any]:
        """Settings of a pose network's training beyond the labels: none in a first round."""
        return {}

    def _pose_training(self, steps: int) -> dict[str, Any]:
        """What all trainings of the 2D networks share."""
        return {
            "image_size": self.sizes.pose_image_size,
            "steps": steps,
            "batch_size": self.sizes.pose_batch_size,
            "eval_every": eval_every(steps, 4),
            "labels_from": self.config.labels_from,
            "seed": self.config.seed,
        }

    def train_encoder(self, arm: str, **web: Any) -> Path | None:
        """Where an arm's 3D model starts: the pose network, after learning from the arm's animals too."""
        sizes, config = self.sizes, self.config
        if config.acsm_init is not None or sizes.backbone != "resnet18":
            return config.acsm_init
        start = self.workspace.checkpoint_dir("pose") / "best.pt"
        if not (sizes.acsm_freeze and sizes.encoder_steps):
            return start
        self.call(
            f"train encoder, {arm}",
            "pose.train",
            arm=arm,
            init=start,
            lr=ENCODER_LR,
            **self._pose_training(sizes.encoder_steps),
            **web,
        )
        return self.workspace.checkpoint_dir(f"pose_{arm}") / "best.pt"

    def train_acsm(self, arm: str, **web: Any) -> None:
        """Train one arm, encoder and 3D model; all arms share steps, schedule, crops and seed."""
        init = self.train_encoder(arm, **web)
        self.call(
            f"train 3D model, {arm}",
            "acsm.train",
            arm=arm,
            image_size=self.sizes.acsm_image_size,
            steps=self.sizes.acsm_steps,
            batch_size=self.sizes.acsm_batch_size,
            lr=self.sizes.acsm_lr,
            freeze=self.sizes.acsm_freeze and init is not None,
            eval_every=eval_every(self.sizes.acsm_steps, 8),
            num_cameras=self.config.num_cameras,
            translations=self.config.translations,
            labels_from=self.config.labels_from,
            seed=self.config.seed,
            init=init,
            **web,
        )

    @property
    def selections(self) -> dict[str, dict[str, Any]]:
        """Settings of every selection, by its name."""
        found: dict[str, dict[str, Any]] = {name: {"filter": name} for name in (*CRITERIA, "cf_all")}
        if self.config.tokens is not None:
            found[f"cf_cm_{TOKENS}"] = {"filter": "cf_cm", "aux": TOKENS}
        return {self.config.filter: {"filter": self.config.filter}} | found

    def select(self) -> int:
        """Choose pseudo-labels by every criterion; returns how many each keeps."""
        have = self._candidates()
        count = min(self.sizes.selection_num, have)
        if count < self.sizes.selection_num:
            say(f"   {have} candidates for {self.sizes.selection_num} pseudo-labels: keeping {count}")
        for name, settings in self.selections.items():
            settings |= {"selection_num": count, "visualize": True}
            self.call(f"select by {name}", "prepare_data.data_selection", **settings)
        return count

    def _candidates(self) -> int:
        """Animals with keypoints whose pictures nobody has labelled."""
        covered = set(self.workspace.load_keypoints("pose")["instance_id"])
        instances, known = self.workspace.load("instances"), labelled_image_ids(self.workspace)
        pairs = zip(instances["instance_id"], instances["image_id"])
        return sum(name in covered and image not in known for name, image in pairs)

    def acsm(self, with_ceiling: bool) -> None:
        """Train and measure every arm of the 3D model."""
        arms = self.label_with_shapes()
        self.label_val()
        count = self.selected = self.select()
        web = {"use_web_images": True, "web_images_num": count, "filter": self.config.filter}
        arms.append(self.config.filter)
        self.train_acsm(self.config.filter, **web)
        if with_ceiling:
            self.train_acsm("ceiling", pl_source="truth", **web)
            arms.append("ceiling")
        for arm in arms:
            if (self.workspace.checkpoint_dir(f"pose_{arm}") / "best.pt").exists():
                self.call(f"measure encoder, {arm}", "pose.evaluate", arm=arm, flip_average=True)
            self.call(f"measure 3D model, {arm}", "acsm.evaluate", arm=arm)
        self.call("draw", "acsm.visualize", arm=self.config.filter, vis_num=self.config.vis_num)

    def label_with_shapes(self) -> list[str]:
        """Label every animal with a 3D model, for CF-CM2; returns the arms that this trained."""
        self.train_acsm("labels")
        self.call("label with the 3D model", "acsm.generate_pl", **self.shapes_by)
        return ["labels"]

    @property
    def shapes_by(self) -> dict[str, Any]:
        """Settings that name the 3D model which labels animals."""
        return {"arm": "labels"}

    def label_val(self) -> None:
        """Label the labelled animals of val, too: CF-All learns from it how far to trust each network."""
        label_val(self.workspace, self.call, self.shapes_by)

    def report(self) -> None:
        """Write metrics.json and report.html."""
        self.call("report", "wildshape.report.command")


def truth_keypoints(workspace: Workspace) -> bool:
    """Match the detected animals to the ground truth, where there is one, as keypoints/truth."""
    if not workspace.table_path("truth").exists():
        return False
    module = importlib.import_module("prepare_data.diorama.truth")
    module.save_truth_keypoints(workspace)
    return True


def check_filter(config: Config) -> None:
    """Refuse a criterion that there is not before hours are spent on what precedes it.

    Raises:
        UserError: there is no criterion ``config.filter``, or it needs ``--tokens``.
    """
    if config.filter == f"cf_cm_{TOKENS}":
        if config.tokens is None:
            raise UserError(f"--filter {config.filter}: expected --tokens with it, such as --tokens small")
        return
    importlib.import_module("pseudolabels.criteria").find_criterion(config.filter)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Run the whole sequence; returns seconds by step."""
    check_filter(config)
    pipeline = Pipeline(config, workspace)
    detector = config.detector or ("diorama" if config.labels == "diorama" else "torchvision")
    serving: AbstractContextManager[Any] = nullcontext()
    if config.labels == "diorama":
        serving = importlib.import_module("prepare_data.diorama.server").serving(workspace)
    say(f"settings: {pipeline.sizes}")
    pipeline.labels()
    with serving:
        pipeline.images()
    pipeline.boxes(detector)
    with_ceiling = truth_keypoints(workspace)
    pipeline.masks()
    pipeline.pose()
    pipeline.tokens()
    pipeline.acsm(with_ceiling)
    pipeline.report()
    timings = dict(pipeline.timings)
    if config.rounds > 1:
        timings |= importlib.import_module("wildshape.rounds").later_rounds(pipeline, with_ceiling)
    say(f"done in {sum(timings.values()) / 60:.1f} minutes; open {workspace.report_path}")
    return timings


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `wildshape run`."""
    return script_main(Config, run, argv, prog="wildshape run")
