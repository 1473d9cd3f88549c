"""The animals that networks learn from and are measured on, read from a workspace's tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wildshape.cli import CommonConfig, say
from wildshape.crops import image_paths
from wildshape.errors import UserError
from wildshape.records import AnimalRecords, Need, join_records, label_records, pseudo_label_records
from wildshape.skeleton import Skeleton
from wildshape.tables import Table, read_table

if TYPE_CHECKING:
    from wildshape.workspace import Workspace

NEEDED_BY = "this command"
REPEATED = ("duplicate", "in_labels")
# Names by which the released scripts chose among labelled sets; all of ours are in one table.
PUBLISHED_DATASETS = ("pascal", "animal_pose", "yfcc100m", "coco")


@dataclass(frozen=True, kw_only=True)
class TrainingDataConfig(CommonConfig):
    """Which animals a training learns from; the settings that both networks share."""

    arm: str | None = None
    """Name of this training; by default that of the labels, or of the filter."""
    use_web_images: bool = False
    """Also train on web images with pseudo-labels."""
    web_images_num: int | None = None
    """How many web animals; by default 1000 with --filter, all without."""
    filter: str | None = None
    """Criterion that selected them (kpconf, cf_mt, cf_cm, cf_cm2, ...); none: no selection."""
    pl_source: str = "pose"
    """Whose keypoints they carry: pose, pose_aux, acsm, or truth (a synthetic world's ceiling)."""
    web_run: str | None = None
    """Run whose pseudo-labels and selection they are, such as an earlier round; by default this one."""
    labels_from: str = ""
    """Other categories whose training labels are added, such as horse,sheep."""
    seed: int = 0
    """Seed of the initialisation, data order and augmentation."""

    @property
    def training_name(self) -> str | None:
        """What names a training: --arm, else its web animals; None for labels alone.

        Raises:
            UserError: the arm cannot be the name of a folder.
        """
        if self.arm:
            if Path(self.arm).name != self.arm or self.arm.startswith("."):
                raise UserError(f"--arm: expected a plain name; found {self.arm}")
            return self.arm
        if not self.use_web_images:
            return None
        name = self.filter or "all"
        return name if self.pl_source == "pose" else f"{name}_{self.pl_source}"

    @property
    def other_categories(self) -> tuple[str, ...]:
        """The names in ``labels_from``."""
        return tuple(name.strip() for name in self.labels_from.split(",") if name.strip())


def web_settings(config: TrainingDataConfig) -> dict[str, str]:
    """What a training's provenance says of its web animals beside the flags: which were left out."""
    return {"repeated_pictures": "left out"} if config.use_web_images and not config.filter else {}


def training_records(
    config: TrainingDataConfig, workspace: Workspace, need: Need = "keypoints"
) -> tuple[AnimalRecords, AnimalRecords | None, list[Path]]:
    """Labelled animals, web animals if any are asked for, and the tables they were read from.

    Args:
        config: which animals.
        workspace: of the run.
        need: what an animal must have to be among them.

    Raises:
        UserError: tables are missing, settings contradict each other, or there are fewer animals than
            asked for.
    """
    skeleton = workspace.category.skeleton
    others = config.other_categories
    if workspace.category.name in others:
        raise UserError(f"--labels_from: expected other categories than {workspace.category.name}")
    parts, inputs = [], []
    for place in (workspace, *(workspace.sibling(category=name) for name in others)):
        records, paths = labelled(place, "train", skeleton, need=need)
        parts.append(records)
        inputs += paths
    if not config.use_web_images:
        if config.filter or config.web_images_num or config.web_run:
            raise UserError("--filter, --web_images_num and --web_run: expected --use_web_images with them")
        return join_records(parts), None, inputs
    place = workspace.sibling(name=config.web_run) if config.web_run else workspace
    wanted = (config.filter, config.web_images_num)
    chosen, paths = web(place, config.pl_source, *wanted, config.seed, need)
    return join_records(parts), chosen, inputs + paths


def labelled(
    workspace: Workspace,
    split: str | None,
    skeleton: Skeleton,
    table: str = "labels",
    need: Need = "keypoints",
) -> tuple[AnimalRecords, list[Path]]:
    """Labelled animals of one split, and the tables they were read from.

    Args:
        workspace: whose labels.
        split: "train", "val", "test"; None: all.
        skeleton: to map the keypoints onto.
        table: "labels", or "truth" for the ground truth of a synthetic world's web images.
        need: what an animal must have to be among them.

    Raises:
        UserError: tables are missing, or hold other keypoints.
    """
    images = "truth_images" if table == "truth" else "labelled_images"
    labels = workspace.load(table, NEEDED_BY)
    paths = image_paths(workspace.load(images, NEEDED_BY), workspace)
    inputs = [workspace.table_path(table), workspace.table_path(images)]
    if need == "keypoints":
        return label_records(labels, paths, skeleton, split), inputs
    return label_records(labels, paths, skeleton, split, need), inputs


def labelled_name(source: str) -> str:
    """The keypoint table of what a source predicts of the labelled animals; see `animals_to_predict`."""
    return f"{source}_labelled"


def animals_to_predict(workspace: Workspace, of_val: bool, needed_by: str) -> tuple[Table, str, str]:
    """The animals whose keypoints a stage predicts, the name of their table and that of their images.

    Args:
        workspace: of the run.
        of_val: the labelled animals of val, on which what predictions are worth can be measured; else the
            detected ones.
        needed_by: the stage, for errors.

    Raises:
        UserError: a table is missing, or no animal of val is labelled.
    """
    if not of_val:
        return workspace.load("instances", needed_by), "instances", "images"
    labels = workspace.load("labels", needed_by)
    rows = labels.take(labels["split"] == "val")
    if not len(rows):
        raise UserError(f"--labelled: expected labelled animals of val; found none among {len(labels)}")
    return rows, "labels", "labelled_images"


def labelled_image_ids(workspace: Workspace) -> set[str]:
    """Ids of the images of the labelled set, web images that people have labelled among them."""
    path = workspace.table_path("labels")
    return set(read_table(path, "labels")["image_id"]) if path.exists() else set()


def repeated_image_ids(images: Table) -> set[str]:
    """Ids of web images that repeat another one or stand in the labelled set, by their status.

    The same bytes at two addresses are one image id, "ok" at one and "duplicate" at the other: it counts.
    """
    pairs = list(zip(images["image_id"], images["status"]))
    return {image for image, status in pairs if status in REPEATED} - {
        image for image, status in pairs if status == "ok"
    }


def selection(workspace: Workspace, criterion: str, number: int) -> tuple[Table, Path]:
    """The best ``number`` instances by a criterion, from the selection of that size or a longer one.

    Raises:
        UserError: no selection is long enough; names the command that makes it.
    """
    name = criterion.strip().lower().replace("-", "_").replace(" ", "_")
    exact = workspace.selection_path(name, number)
    found = {}
    for path in exact.parent.glob(f"{name}_*.parquet"):
        count = path.stem.removeprefix(f"{name}_")
        if count.isdigit() and int(count) >= number:
            found[int(count)] = path
    if not found:
        run_name = "" if workspace.name == workspace.category.name else f" --name {workspace.name}"
        raise UserError(
            f"{NEEDED_BY} needs selections/{exact.stem} for {workspace.category.name}; run: "
            f"python prepare_data/data_selection.py --category {workspace.category.name}{run_name} "
            f"{selection_flags(name)} --selection_num {number}"
        )
    path = found[min(found)]
    table = read_table(path, "selections")
    return table.take(np.argsort(table["rank"], kind="stable")[:number]), path


def selection_flags(name: str) -> str:
    """The flags of data_selection that make the selections of a name, such as cf_cm_zero123plus."""
    for criterion in ("cf_cm", "cfcm"):
        aux = name.removeprefix(f"{criterion}_")
        if aux not in (name, "sq", "2"):
            return f"--filter {criterion} --aux {aux}"
    return f"--filter {name}"


def web(
    workspace: Workspace,
    source: str,
    criterion: str | None,
    number: int | None,
    seed: int = 0,
    need: Need = "keypoints",
) -> tuple[AnimalRecords, list[Path]]:
    """Web animals with pseudo-labels or masks, and the tables they were read from.

    Args:
        workspace: of the run.
        source: whose keypoints: "pose", or "truth" for a synthetic world's ceiling.
        criterion: the selection to keep; None keeps all, or ``number`` of them at random.
        number: how many to keep.
        seed: of the random choice.
        need: what an animal must have; with "masks" no keypoints are read.

    Raises:
        UserError: tables are missing, or there are fewer animals than asked for.
    """
    instances = workspace.load("instances", NEEDED_BY)
    keypoints = None if need == "masks" else workspace.load_keypoints(source, NEEDED_BY)
    images = workspace.load("images", NEEDED_BY)
    paths, repeated = image_paths(images, workspace), repeated_image_ids(images)
    inputs = [workspace.table_path(name) for name in ("instances", "images")]
    if keypoints is not None:
        inputs.append(workspace.keypoints_path(source))
    labelled_images = labelled_image_ids(workspace)
    place = instances.lookup("instance_id")
    if criterion is not None:
        chosen, path = selection(workspace, criterion, number or 1000)
        inputs.append(path)
        ids = list(chosen["instance_id"])
        absent = [i for i in ids if i not in place]
        if absent:
            raise UserError(
                f"expected the instances of {path.name} among those detected; {len(absent)} are "
                f"gone, such as {absent[0]}; run data_selection again with --overwrite"
            )
    else:
        masked = [i for i, m in zip(instances["instance_id"], instances["mask_rle"]) if m is not None]
        has = set(masked if keypoints is None else keypoints["instance_id"])
        ids = [
            i
            for i, image in zip(instances["instance_id"], instances["image_id"])
            if i in has and image not in labelled_images and image not in repeated
        ]
        if number is not None:
            if number > len(ids):
                raise UserError(
                    f"--web_images_num {number}: expected that many animals with "
                    f"{'masks' if keypoints is None else 'keypoints'}; found {len(ids)}"
                )
            order = np.random.default_rng([seed, 7]).permutation(len(ids))[:number]
            ids = [ids[i] for i in sorted(order)]
    rows = instances.take([place[i] for i in ids])
    known = np.array([image in labelled_images for image in rows["image_id"]], dtype=bool)
    if known.any():
        say(f"left out {int(known.sum())} of {len(ids)} web animals: their pictures are labelled now")
        rows = rows.take(~known)
    skeleton = workspace.category.skeleton
    return pseudo_label_records(rows, keypoints, paths, skeleton, need), inputs
