"""Everything a run left behind, as far as it goes: tables, metrics, checkpoints, pictures.

What is missing is left out; what cannot be read is named in `RunInputs.problems`. Nothing here raises for
a run that is half done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.tables import Table, read_facts, read_table
from wildshape.workspace import TABLES, Workspace

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Checkpoint:
    """One trained model: its manifest and the lines of its metrics.jsonl."""

    name: str
    manifest: Mapping[str, Any]
    curve: list[dict[str, Any]]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings it was trained with."""
        return self.manifest.get("config") or {}


@dataclass
class RunInputs:
    """What a run left behind.

    Attributes:
        workspace: Category, run and root.
        tables: Data tables by name (`candidates`, `downloads`, `images`, `instances`, `labels` ...).
        keypoints: Keypoint tables by source.
        selections: Selections by file stem, such as `cf_mt_300`.
        metrics: Metrics by stage.
        checkpoints: Trained models by name.
        provenance: What made each table, by path relative to the root.
        pictures: Picture files, by name.
        problems: What could not be read, in words.
    """

    workspace: Workspace
    tables: dict[str, Table] = field(default_factory=dict)
    keypoints: dict[str, Table] = field(default_factory=dict)
    selections: dict[str, Table] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    provenance: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def run_flags(self) -> str:
        """Flags that name this category and run in a command."""
        category, name = self.workspace.category.name, self.workspace.name
        return f"--category {category}" + (f" --name {name}" if name != category else "")

    def timings(self) -> dict[str, float]:
        """Seconds by stage, as far as they were written."""
        found = self.metrics.get("timings")
        if not isinstance(found, Mapping):
            return {}
        return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float)}


def read_inputs(workspace: Workspace) -> RunInputs:
    """Read whatever the run has."""
    inputs = RunInputs(workspace)
    run = workspace.run_dir
    for name, kind in TABLES.items():
        if name not in ("truth", "truth_images"):
            _read_table(inputs, inputs.tables, name, workspace.table_path(name), kind)
    for path in sorted((run / "keypoints").glob("*.parquet")):
        _read_table(inputs, inputs.keypoints, path.stem, path, "keypoints")
    for path in sorted((run / "selections").glob("*.parquet")):
        _read_table(inputs, inputs.selections, path.stem, path, "selections")
    for path in sorted((run / "metrics").glob("*.json")):
        try:
            inputs.metrics[path.stem] = read_json(path)
        except UserError as error:
            inputs.problems.append(str(error))
    checkpoints = run / "checkpoints"
    for path in sorted({*checkpoints.rglob("manifest.json"), *checkpoints.rglob("metrics.jsonl")}):
        name = path.parent.relative_to(checkpoints).as_posix()
        if name not in inputs.checkpoints:
            inputs.checkpoints[name] = _read_checkpoint(inputs, name, path.parent)
    inputs.pictures = sorted(
        path for path in workspace.pictures_dir.glob("**/*") if path.suffix.lower() in PICTURE_SUFFIXES
    )
    return inputs


def _read_table(inputs: RunInputs, into: dict[str, Table], name: str, path: Path, kind: str) -> None:
    if not path.exists():
        return
    try:
        into[name] = read_table(path, kind)
        inputs.provenance[inputs.workspace.relative(path)] = read_facts(path)["provenance"]
    except UserError as error:
        inputs.problems.append(str(error))


def _read_checkpoint(inputs: RunInputs, name: str, folder: Path) -> Checkpoint:
    manifest: Mapping[str, Any] = {}
    path = folder / "manifest.json"
    if path.exists():
        try:
            found = read_json(path)
            manifest = found if isinstance(found, Mapping) else {}
        except UserError as error:
            inputs.problems.append(str(error))
    curve = []
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a kill cut short
            if isinstance(record, dict) and "step" in record:
                curve.append(record)
    return Checkpoint(name, manifest, curve)
