"""Where every artefact lives. Nothing else builds a path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wildshape.category import CategorySpec, load_category
from wildshape.errors import UserError
from wildshape.files import write_json
from wildshape.processes import is_first_process
from wildshape.tables import Table, read_table

TABLES: Mapping[str, str] = {
    "candidates": "images",
    "downloads": "images",
    "images": "images",
    "labelled_images": "images",
    "truth_images": "images",
    "instances": "instances",
    "masks": "masks",
    "labels": "labels",
    "corrections": "labels",
    "corrected_images": "images",
    "labelled_masks": "masks",
    "truth": "labels",
}
_MADE_BY = {
    "candidates": "python prepare_data/search_metadata.py --category {c} --metadata FILE",
    "downloads": "python prepare_data/download_images.py --category {c}",
    "images": (
        "python prepare_data/download_images.py --category {c}, or, for photos of your own: "
        "python prepare_data/add_folder.py --category {c} --folder DIR"
    ),
    "instances": "python prepare_data/save_boxes.py --category {c}",
    "masks": "python prepare_data/save_masks.py --category {c}",
    "labelled_masks": "python prepare_data/save_masks.py --category {c} --labelled",
    "labels": "wildshape import animal_pose --root DIR --category {c}",
    "labelled_images": "wildshape import animal_pose --root DIR --category {c}",
    "corrections": "wildshape import coco --as labels --root FILE --category {c}",
    "corrected_images": "wildshape import coco --as labels --root FILE --category {c}",
    "truth": "wildshape make-diorama --category {c}",
    "truth_images": "wildshape make-diorama --category {c}",
    "pose": "python pose/generate_pl.py --category {c}",
    "pose_aux": "python pose/generate_pl.py --category {c} --is_aux",
    "pose_mt": "python pose/generate_pl_mt.py --category {c}",
    "acsm": "python acsm/generate_pl.py --category {c}",
    "zero123plus": "python pseudolabels/generate_pl.py --category {c}",
    "zero123plus_points": "python pseudolabels/generate_pl.py --category {c}",
    "pose_labelled": "python pose/generate_pl.py --category {c} --labelled",
    "pose_aux_labelled": "python pose/generate_pl.py --category {c} --is_aux --labelled",
    "pose_mt_labelled": "python pose/generate_pl_mt.py --category {c} --labelled",
    "acsm_labelled": "python acsm/generate_pl.py --category {c} --labelled",
    "zero123plus_labelled": "python pseudolabels/generate_pl.py --category {c}",
}


def find_root() -> Path:
    """The data root when none is named.

    It is $WILDSHAPE_ROOT; else the nearest folder upwards that holds `.wildshape` or is a checkout of
    this project; else the current folder.
    """
    if os.environ.get("WILDSHAPE_ROOT"):
        return Path(os.environ["WILDSHAPE_ROOT"]).expanduser().resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        checkout = (folder / "pyproject.toml").is_file() and (folder / "wildshape/category.py").is_file()
        if (folder / ".wildshape").exists() or checkout:
            return folder
    return here


class Workspace:
    """The folders of one category and one run under a data root.

    Args:
        root: The data root.
        category: The category, by name or spec.
        name: The run's name; by default the category's.
    """

    def __init__(
        self, root: str | os.PathLike[str], category: CategorySpec | str, name: str | None = None
    ) -> None:
        self.root = Path(root).expanduser().resolve()
        self.category = load_category(category, self.root) if isinstance(category, str) else category
        self.name = name or self.category.name
        if Path(self.name).name != self.name or self.name in (".", ".."):
            raise UserError(f"--name: expected a plain name; found {self.name}")

    def __repr__(self) -> str:
        return f"Workspace({str(self.root)!r}, {self.category.name!r}, {self.name!r})"

    def sibling(self, category: str | None = None, name: str | None = None) -> Workspace:
        """The workspace of another category or another run under the same root."""
        return Workspace(self.root, category or self.category, name)

    @property
    def data_dir(self) -> Path:
        """What was found or labelled by people: `<root>/data/<category>`."""
        return self.root / "data" / self.category.name

    @property
    def run_dir(self) -> Path:
        """What models said or learnt: `<root>/runs/<name>`."""
        return self.root / "runs" / self.name

    @property
    def images_dir(self) -> Path:
        """Downloaded web images."""
        return self.data_dir / "images"

    @property
    def labelled_images_dir(self) -> Path:
        """Images of the labelled set that were copied in."""
        return self.data_dir / "labelled_images"

    @property
    def matted_dir(self) -> Path:
        """Detected animals on a plain background."""
        return self.data_dir / "matted"

    @property
    def labelled_matted_dir(self) -> Path:
        """Labelled animals on a plain background."""
        return self.data_dir / "labelled_matted"

    @property
    def metadata_dir(self) -> Path:
        """Metadata files to search."""
        return self.data_dir / "metadata"

    @property
    def pictures_dir(self) -> Path:
        """Contact sheets and overlays of the run."""
        return self.run_dir / "pictures"

    @property
    def report_path(self) -> Path:
        """The run's report."""
        return self.run_dir / "report.html"

    @property
    def summary_path(self) -> Path:
        """All metrics of the run in one file."""
        return self.run_dir / "metrics.json"

    def table_path(self, table: str) -> Path:
        """A data table by name (see `TABLES`)."""
        if table not in TABLES:
            raise ValueError(f"expected a table among {sorted(TABLES)}, found {table}")
        return self.data_dir / f"{table}.parquet"

    def keypoints_path(self, source: str) -> Path:
        """The keypoints that one source predicted."""
        return self.run_dir / "keypoints" / f"{source}.parquet"

    def shapes_path(self, source: str = "acsm") -> Path:
        """The shapes that one source predicted."""
        return self.run_dir / "shapes" / f"{source}.parquet"

    def selection_path(self, criterion: str, count: int) -> Path:
        """The instances that one criterion chose."""
        return self.run_dir / "selections" / f"{criterion}_{count}.parquet"

    def checkpoint_dir(self, model: str) -> Path:
        """Checkpoints and curves of one model: "pose", "pose_aux" or "acsm/<arm>"."""
        return self.run_dir / "checkpoints" / model

    def metrics_path(self, stage: str) -> Path:
        """The metrics that one stage wrote."""
        return self.run_dir / "metrics" / f"{stage}.json"

    def animals_path(self, arm: str, labels: str) -> Path:
        """How an arm of the 3D model did on each of some labelled animals."""
        return self.run_dir / "metrics" / f"acsm_{arm}_{labels}.parquet"

    def comparison_path(self, labels: str) -> Path:
        """The page that compares runs on some labels; its CSV and JSON lie beside it."""
        return self.run_dir / f"comparison_{labels}.html"

    def image_file(self, path: str) -> Path:
        """The file that an images row names: relative to the root, or absolute."""
        return self.root / path

    def relative(self, path: str | os.PathLike[str]) -> str:
        """How a table names a file: relative to the root where it lies under it, else absolute."""
        full = Path(path).resolve()
        return full.relative_to(self.root).as_posix() if full.is_relative_to(self.root) else str(full)

    def made_by(self, what: str) -> str:
        """The command that makes a table or a keypoint source, to be shown to the user."""
        command = _MADE_BY[what].format(c=self.category.name)
        run_tables = {"pose", "pose_aux", "pose_mt", "acsm", "zero123plus", "zero123plus_points"}
        renamed = self.name != self.category.name and what.removesuffix("_labelled") in run_tables
        return command + (f" --name {self.name}" if renamed else "")

    def require(self, path: Path, made_by: str, needed_by: str = "this command") -> Path:
        """The path if the file exists.

        Raises:
            UserError: naming the file and the command that makes it.
        """
        if not path.exists():
            what = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            raise UserError(f"{needed_by} needs {what} for {self.category.name}; run: {made_by}")
        return path

    def load(self, table: str, needed_by: str = "this command") -> Table:
        """Read a data table.

        Raises:
            UserError: if it is missing (with the command that makes it) or unreadable.
        """
        path = self.require(self.table_path(table), self.made_by(table), needed_by)
        return read_table(path, TABLES[table])

    def load_keypoints(self, source: str, needed_by: str = "this command") -> Table:
        """Read the keypoints of one source.

        Raises:
            UserError: if they are missing (`cf_cm needs keypoints/pose_aux for cow; run: ...`).
        """
        path = self.keypoints_path(source)
        if not path.exists():
            command = self.made_by(source) if source in _MADE_BY else "the stage that predicts it"
            raise UserError(
                f"{needed_by} needs keypoints/{source} for {self.category.name}; run: {command}"
            )
        return read_table(path, "keypoints")

    def write_metrics(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Write one stage's metrics as JSON; of processes that train together the first does."""
        if is_first_process():
            write_json(self.metrics_path(stage), dict(metrics))

    def mark(self) -> None:
        """Mark the root, so that commands find it from any folder below."""
        marker = self.root / ".wildshape"
        if not marker.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            marker.write_text("The data root of wildshape.\n", encoding="utf-8")
