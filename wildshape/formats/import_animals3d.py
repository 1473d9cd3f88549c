"""`wildshape import animals3d`: the published pseudo-labels, boxes and labelled sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wildshape.errors import UserError
from wildshape.formats import animals3d, animals3d_labels
from wildshape.formats.import_parts import import_provenance, publish_labelled, report
from wildshape.formats.labelled import LabelledOptions, LabelledSet, build_labelled_set
from wildshape.stage import publish, up_to_date
from wildshape.tables import Table, read_table
from wildshape.workspace import Workspace

if TYPE_CHECKING:
    from wildshape.formats.import_command import Config


def import_animals3d(
    config: Config, workspace: Workspace, root: Path, options: LabelledOptions
) -> dict[str, Any]:
    """Import what there is of the published files under a folder.

    Returns:
        Rows by table, and how many records were dropped by reason.

    Raises:
        UserError: there is nothing of them, or they do not fit.
    """
    category = config.source_category or workspace.category.name
    files = animals3d.find_files(root, category, workspace.name)
    labelled = animals3d_labels.find_sets(root, category)
    has_web = bool(set(files) - {"names", "pose_mt"})
    if not has_web and not labelled:
        raise UserError(
            f"expected labels/{category}_pl_2d.json, labels_0/{category}_bbox.json or "
            f"annotations/{category}.json (also in cachedir/data/pascal) under {root}; found none of them"
        )
    result: dict[str, Any] = {}
    if has_web:
        folder = config.images or _first_folder(root / "images" / category, root / "images")
        result = _import_web(config, workspace, files, folder)
    if labelled:
        paths = [path for entry in labelled for group in entry.files.values() for path in group]
        folder, _ = animals3d_labels.find_pictures(labelled[0], config.images)

        def make() -> LabelledSet:
            records, dropped, place = animals3d_labels.read_sets(labelled, workspace, config.images)
            return build_labelled_set(records, place, workspace, options, "animals3d", dropped)

        provenance = import_provenance(config, workspace, "animals3d", paths, folder)
        result = {**result, **publish_labelled(config, workspace, provenance, make, "animals3d")}
    return result


def _first_folder(*folders: Path) -> Path | None:
    return next((folder for folder in folders if folder.is_dir()), None)


def _import_web(
    config: Config, workspace: Workspace, files: dict[str, Path], folder: Path | None
) -> dict[str, Any]:
    hashed = [path for what, path in files.items() if what != "pose_mt"]
    if "pose_mt" in files:
        hashed += sorted(files["pose_mt"].glob("augm_*.txt"))
    provenance = import_provenance(config, workspace, "animals3d", hashed, folder)
    targets = {"images": workspace.table_path("images"), "instances": workspace.table_path("instances")}
    targets.update(
        {
            source: workspace.keypoints_path(source)
            for source in ("pose", "pose_aux", "acsm", "pose_mt")
            if source in files
        }
    )
    done = [up_to_date(path, provenance, overwrite=config.overwrite) for path in targets.values()]
    tables: dict[str, Table]
    if all(done):
        kinds = {"images": "images", "instances": "instances"}
        tables = {what: read_table(path, kinds.get(what, "keypoints")) for what, path in targets.items()}
    else:
        found = animals3d.read_published(files, workspace, folder)
        instances = found.instances.with_meta(dropped=dict(found.dropped))
        tables = {"images": found.images, "instances": instances, **found.keypoints}
        for what, path in targets.items():
            publish(tables[what], path, provenance)
    facts = {what: len(table) for what, table in tables.items()}
    with_files = int(sum(path is not None for path in tables["images"]["path"]))
    facts["images_with_files"] = with_files
    sources = ", ".join(what for what in targets if what not in ("images", "instances")) or "no keypoints"
    what = (
        f"{facts['instances']} instances in {facts['images']} images ({with_files} with a file); {sources}"
    )
    return report(workspace, "animals3d", what, facts, tables["instances"].meta["dropped"])
