"""Pseudo-labels as a labels table, so that they can be written in any format that labels are written in."""

from __future__ import annotations

import numpy as np

from wildshape.errors import UserError
from wildshape.tables import Table, read_table
from wildshape.workspace import Workspace

ALL = "all"


def selection_names(workspace: Workspace) -> list[str]:
    """The selections of a run, such as cf_cm_300."""
    return sorted(path.stem for path in (workspace.run_dir / "selections").glob("*.parquet"))


def selected_labels(
    workspace: Workspace, name: str, source: str = "pose"
) -> tuple[Table, Table, np.ndarray]:
    """The pseudo-labels of a selection, best first.

    Args:
        workspace: Of the run.
        name: A selection, or "all" for every animal that has keypoints.
        source: Whose keypoints.

    Returns:
        A labels table whose split is the selection's name and whose keypoints all count as visible, the
        images table, and the confidences [N, K].

    Raises:
        UserError: there is no such selection, or a table that it refers to is missing.
    """
    needed_by = f"export of {name}"
    images = workspace.load("images", needed_by)
    instances = workspace.load("instances", needed_by)
    keypoints = workspace.load_keypoints(source, needed_by)
    keypoints = keypoints.take(keypoints["transform"] == "none")
    animals, places = instances.lookup("instance_id"), keypoints.lookup("instance_id")
    if name == ALL:
        chosen = instances["instance_id"]
    else:
        names = selection_names(workspace)
        if name not in names:
            found = ", ".join((*names, ALL))
            raise UserError(f"expected a selection among {found}; found {name}")
        table = read_table(workspace.run_dir / "selections" / f"{name}.parquet", "selections")
        chosen = table["instance_id"][np.argsort(table["rank"], kind="stable")]
    known = [i for i in chosen if i in animals and i in places]
    rows = [places[i] for i in known]
    skeleton = workspace.category.skeleton
    columns = dict(instances.take([animals[i] for i in known]).columns) | {
        "source_id": np.array([None] * len(rows), dtype=object),
        "split": np.array([name] * len(rows), dtype=object),
        "skeleton": np.array([skeleton.name] * len(rows), dtype=object),
        "xy": keypoints["xy"][rows],
        "visible": np.full((len(rows), skeleton.num_keypoints), 2),
        "camera": np.full((len(rows), 7), np.nan),
    }
    labels = Table("labels", columns, {"skeleton": skeleton.name})
    return labels, images, keypoints["confidence"][rows]
