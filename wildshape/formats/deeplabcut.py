"""DeepLabCut: labelled frames in (`CollectedData_*.csv` or `.h5`, such as Horse-10's) and out (`.csv`).

Columns are named by scorer, (individual,) body part and coordinate; rows by the picture's path below the
project, in one column or in three. Positions are taken as pixel centres. There are no boxes: a box spans an
animal's labelled keypoints, widened by a tenth of its longer side all round.
"""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wildshape.errors import UserError
from wildshape.files import atomic_path, atomic_write
from wildshape.formats.labelled import LabelRecord, keypoints_box, map_keypoints, map_names
from wildshape.stage import progress
from wildshape.tables import Table
from wildshape.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "deeplabcut"
_LEVELS = ("scorer", "individuals", "bodyparts", "coords")
_SINGLE = "animal"


def find_file(root: Path) -> Path:
    """The annotation file, or the folder itself if it holds several, one a film.

    Raises:
        UserError: there is none.
    """
    if root.is_file():
        return root
    files = input_files(root)
    if not files:
        raise UserError(f"expected CollectedData_*.csv or .h5 of DeepLabCut in {root}; found none")
    return files[0] if len(files) == 1 else root


def input_files(path: Path) -> list[Path]:
    """The annotation files: the file itself, or one for each folder below that has any (.csv before .h5).

    Raises:
        UserError: a folder holds those of several people.
    """
    if path.is_file():
        return [path]
    by_folder: dict[Path, list[Path]] = {}
    for suffix in (".csv", ".h5"):
        for file in sorted(path.rglob(f"CollectedData_*{suffix}")):
            by_folder.setdefault(file.parent, []).append(file)
    for folder, files in by_folder.items():
        if len({file.stem for file in files}) > 1:
            found = ", ".join(file.name for file in files)
            raise UserError(
                f"expected one CollectedData in {folder}; found {found}; give the file, not the folder"
            )
    films = [files[0] for folder, files in by_folder.items() if folder.parent.name == "labeled-data"]
    return sorted(films or [files[0] for files in by_folder.values()])


def image_folder(path: Path) -> Path:
    """The project's folder, which picture paths start from: the nearest above that holds labeled-data."""
    for folder in (path, *path.parents):
        if (folder / "labeled-data").is_dir():
            return folder
    return path if path.is_dir() else path.parent


def read_frame(path: Path) -> pd.DataFrame:
    """The table: rows by path, columns by (scorer, individual, body part, coordinate).

    Raises:
        UserError: it is not of this format, or reading .h5 needs a package that is not there.
    """
    import pandas as pd

    try:
        if path.suffix in (".h5", ".hdf5"):
            frame = pd.DataFrame(pd.read_hdf(path))
        else:
            with open(path, encoding="utf-8") as handle:
                head = [handle.readline().split(",")[0].strip() for _ in range(4)]
            header = [row for row, name in enumerate(head) if name in _LEVELS]
            if len(header) not in (3, 4):
                raise ValueError(f"a header that begins with {', '.join(head[:3])}")
            frame = pd.read_csv(path, header=header, index_col=None, dtype=str)
    except ImportError as error:
        raise UserError(
            f'{path} needs PyTables; run: pip install "wildshape[deeplabcut]", or give the .csv file'
        ) from error
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: expected DeepLabCut's labelled frames; found {reason}") from None
    if path.suffix not in (".h5", ".hdf5"):
        frame = _index_by_path(frame, path)
    frame.index = ["/".join(key) if isinstance(key, tuple) else str(key) for key in frame.index]
    if frame.columns.nlevels == 3:
        frame.columns = pd.MultiIndex.from_tuples(
            [(key[0], _SINGLE, key[1], key[2]) for key in frame.columns.tolist()]
        )
    if frame.columns.nlevels != 4 or not {"x", "y"} <= set(frame.columns.get_level_values(3)):
        raise UserError(
            f"{path}: expected columns named by scorer, body part and coordinate; found "
            f"{', '.join(str(name) for name in frame.columns[:3])}"
        )
    return frame.apply(pd.to_numeric, errors="coerce")


def _index_by_path(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Of a CSV file, the columns before the first coordinate make the path."""
    last = frame.columns.nlevels - 1
    if last not in (2, 3):
        raise UserError(f"{path}: expected DeepLabCut's header of three or four rows; found {last + 1}")
    coordinates = [name[last] in ("x", "y", "likelihood") for name in frame.columns]
    first = coordinates.index(True) if True in coordinates else 0
    if not first:
        raise UserError(f"{path}: expected a column of picture paths and columns x and y; found none")
    keys = frame.iloc[:, :first].fillna("").astype(str)
    names = ["/".join(part for part in row if part) for row in keys.itertuples(index=False)]
    table = frame.iloc[:, first:]
    table.index = [name.replace("\\", "/") for name in names]
    return table


def read_records(
    path: Path,
    workspace: Workspace,
    source_category: str | None = None,
    renames: Mapping[str, str] | None = None,
) -> tuple[list[LabelRecord], Counter[str]]:
    """All labels, and how many were left out by reason; the format names no category.

    Args:
        path: The annotation file, or a folder with one a film.
        workspace: Gives the skeleton.
        source_category: Not used.
        renames: What body parts mean; see `wildshape.formats.labelled.map_names`.

    Raises:
        UserError: keypoints that do not fit, or not this format.
    """
    records: list[LabelRecord] = []
    dropped: Counter[str] = Counter()
    mappings: dict[tuple[str, ...], np.ndarray] = {}
    for file in input_files(path):
        part, left_out = _read_file(file, workspace, renames, mappings)
        records += part
        dropped += left_out
    return records, dropped


def _read_file(
    path: Path,
    workspace: Workspace,
    renames: Mapping[str, str] | None,
    mappings: dict[tuple[str, ...], np.ndarray],
) -> tuple[list[LabelRecord], Counter[str]]:
    frame = read_frame(path)
    people = list(dict.fromkeys(frame.columns.get_level_values(1)))
    records: list[LabelRecord] = []
    dropped: Counter[str] = Counter()
    unknown: list[UserError] = []
    for individual in people:
        part = frame.loc[:, frame.columns.get_level_values(1) == individual]
        names = list(dict.fromkeys(str(name) for name in part.columns.get_level_values(2)))
        try:
            if tuple(names) not in mappings:
                mappings[tuple(names)] = map_names(workspace.category.skeleton, names, str(path), renames)
        except UserError as error:
            # Parts of the scene, corners of a pen say, are an individual of their own.
            unknown.append(error)
            labelled = int(np.isfinite(part.to_numpy(float)).any(axis=1).sum())
            dropped[f"labels of {individual}, without the skeleton's keypoints"] += labelled
            continue
        mapping = mappings[tuple(names)]
        scorer = part.columns.get_level_values(0)[0]
        values = np.stack(
            [part[[(scorer, individual, name, axis) for name in names]].to_numpy() for axis in ("x", "y")],
            -1,
        )
        for picture, xy in zip(part.index, values):
            seen = np.isfinite(xy).all(-1)
            if seen.sum() < 2:
                dropped["fewer than two labelled keypoints"] += 1
                continue
            mapped, visible = map_keypoints(xy, np.where(seen, 2, 0), mapping)
            name = str(picture)
            source_id, box = f"{name}:{individual}", keypoints_box(xy[seen])
            records.append(LabelRecord(name, source_id, box, mapped, visible, box_from_keypoints=True))
    if unknown and len(unknown) == len(people):
        raise unknown[0]
    return records, dropped


def export_labels(labels: Table, images: Table, workspace: Workspace, out: Path) -> dict[str, int]:
    """Write `labeled-data/<category>/CollectedData_wildshape.csv` with the pictures beside it.

    DeepLabCut knows no visibility: occluded keypoints are written like visible ones. Where a picture shows
    several animals, they become individuals.

    Args:
        labels: a labels table.
        images: the images that it refers to.
        workspace: where their files lie.
        out: the project's folder.

    Returns:
        Animals written, by file relative to `out`.

    Raises:
        UserError: a picture is missing.
    """
    place = f"labeled-data/{workspace.category.name}"
    paths = {i: path for i, path in zip(images["image_id"], images["path"]) if i and path}
    rows_of: dict[str, list[int]] = {}
    for row, image_id in enumerate(labels["image_id"]):
        rows_of.setdefault(str(image_id), []).append(row)
    most = max(map(len, rows_of.values()), default=0)
    parts = workspace.category.skeleton.keypoints
    animals = [f"animal{number + 1}" for number in range(most)]
    several = most > 1
    columns = [(animal, part, axis) for animal in animals for part in parts for axis in ("x", "y")]
    header = [("scorer", *["wildshape"] * len(columns))]
    header += [("individuals", *(animal for animal, _, _ in columns))] if several else []
    header.append(("bodyparts", *(part for _, part, _ in columns)))
    header.append(("coords", *(axis for _, _, axis in columns)))
    lines: list[tuple[str, ...]] = []
    for image_id, rows in progress(rows_of.items(), "export deeplabcut", unit="image"):
        source = workspace.image_file(paths[image_id]) if paths.get(image_id) else None
        if source is None or not source.is_file():
            raise UserError(f"expected the picture of {image_id} at {source}; found none")
        name = f"{place}/{image_id}{source.suffix}"
        with atomic_path(out / name) as temporary:
            shutil.copyfile(source, temporary)
        values = np.full((most, len(parts), 2), np.nan)
        seen = labels["visible"][rows] > 0
        values[: len(rows)] = np.where(seen[..., None], labels["xy"][rows], np.nan)
        lines.append((name, *("" if np.isnan(value) else repr(float(value)) for value in values.ravel())))
    file = f"{place}/CollectedData_wildshape.csv"
    with atomic_write(out / file, "w") as handle:
        csv.writer(handle, lineterminator="\n").writerows([*header, *lines])
    return {file: len(labels)}
