"""How a stage runs: shards, resume, progress, and the refusal to mix settings.

A Map stage turns rows into rows, shard by shard; a Reduce stage turns whole tables into one. (The third
kind, Train, is in `wildshape.training`.)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wildshape.errors import UserError
from wildshape.files import atomic_path, file_hash, read_json, write_json
from wildshape.map_stage import MapOptions, MapStage, as_columns, fill_shards, log_path, progress
from wildshape.tables import Table, concat, read_facts, read_table, table_hash, write_table

__all__ = [
    "MapOptions", "MapStage", "Provenance", "as_columns", "describe_change", "fingerprint", "input_hashes",
    "is_finished", "package_version", "progress", "publish", "run_map", "run_reduce", "up_to_date",
    "withdraw",
]  # fmt: skip


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("wildshape")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True)
class Provenance:
    """What makes an artefact what it is.

    Attributes:
        stage: The command's name.
        config: Settings that change the result, JSON-able.
        inputs: Content hash of every input, by its path relative to the data root.
    """

    stage: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As stored beside and inside the artefact, with the package's version."""
        plain = json.loads(json.dumps([dict(self.config), dict(self.inputs)], default=str))
        return {
            "stage": self.stage,
            "config": plain[0],
            "inputs": plain[1],
            "version": package_version(),
        }

    @property
    def fingerprint(self) -> str:
        """Hash of stage, configuration and inputs (not of the package's version)."""
        return fingerprint(self.as_dict())


def fingerprint(provenance: Mapping[str, Any]) -> str:
    """Hash of a stored provenance, its version left out."""
    parts = [provenance.get(key) for key in ("stage", "config", "inputs")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def input_hashes(root: Path, *paths: Path) -> dict[str, str]:
    """Content hash of files by path relative to `root`; tables by content, others by bytes."""
    hashes = {}
    for path in paths:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        hashes[name] = table_hash(path) if path.suffix == ".parquet" else file_hash(path)
    return hashes


def describe_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In a few words, how two provenances differ."""
    if old.get("stage") != new.get("stage"):
        return f"made by {old.get('stage')}, now {new.get('stage')}"
    changes = []
    before, after = old.get("config") or {}, new.get("config") or {}
    for key in sorted(set(before) | set(after)):
        if before.get(key) != after.get(key):
            changes.append(f"{key}={before.get(key)} then, {after.get(key)} now")
    before, after = dict(old.get("inputs") or {}), dict(new.get("inputs") or {})
    for key in sorted(set(before) - set(after)):
        moved = [k for k in sorted(set(after) - set(before)) if after[k] == before[key]]
        if moved:
            del after[moved[0]]
        changes.append(f"{key} {f'is read from {moved[0]} now' if moved else 'is no longer read'}")
    changes += [f"{key} is read now" for key in sorted(set(after) - set(before))]
    changes += [
        f"{key} has changed since" for key in sorted(after) if key in before and after[key] != before[key]
    ]
    return "; ".join(changes) or "made by an older layout"


def up_to_date(out: Path, provenance: Provenance, *, overwrite: bool = False) -> bool:
    """Whether `out` is there and was made with this provenance.

    Raises:
        UserError: if it was made with another one and may not be overwritten.
    """
    if not out.exists():
        return False
    old = read_facts(out)["provenance"]
    same = fingerprint(old) == provenance.fingerprint
    if not same and not overwrite:
        # What lies under data/ is shared by all runs of a root.
        elsewhere = "--name for another run" if "runs" in out.parts else "--data-root for another place"
        raise UserError(
            f"{out.name} exists with other settings ({describe_change(old, provenance.as_dict())}); "
            f"add --overwrite to replace it, or {elsewhere}"
        )
    return same and not overwrite


def is_finished(out: Path, provenance: Provenance, *, overwrite: bool = False) -> bool:
    """Whether `run_map` would find its work done: the table is there, and no unfinished run of it.

    Raises:
        UserError: as `up_to_date`.
    """
    unfinished = out.with_suffix(".parts") / "manifest.json"
    if unfinished.exists() and fingerprint(read_json(unfinished)) == provenance.fingerprint:
        return False
    return up_to_date(out, provenance, overwrite=overwrite)


def _manifest_path(out: Path) -> Path:
    return out.with_suffix(".manifest.json")


def publish(table: Table, out: Path, provenance: Provenance) -> Table:
    """Write a finished table and, beside it, the manifest that people read."""
    write_table(table, out, provenance.as_dict())
    write_json(_manifest_path(out), {**provenance.as_dict(), "rows": len(table), "table": out.name})
    return table


def withdraw(out: Path) -> None:
    """Remove a table that `publish` wrote, and its manifest."""
    _manifest_path(out).unlink(missing_ok=True)
    out.unlink()


def run_reduce(
    function: Callable[[], Table], out: Path, provenance: Provenance, *, overwrite: bool = False
) -> Table:
    """Run a Reduce stage: whole tables in, a table out; skipped when it is up to date.

    Raises:
        UserError: if `out` was made with other settings.
    """
    if up_to_date(out, provenance, overwrite=overwrite):
        return read_table(out, read_facts(out)["kind"])
    return publish(function(), out, provenance)


_DEFAULTS = MapOptions()


def run_map(
    factory: Callable[[], MapStage],
    rows: Table,
    out: Path,
    kind: str,
    provenance: Provenance,
    *,
    options: MapOptions = _DEFAULTS,
    meta: Mapping[str, Any] | None = None,
) -> Table:
    """Run a Map stage over a table.

    Finished shards lie in `<out>.parts/`; a run that was killed continues with those that are missing,
    under whichever engine. At the end they are joined, moved to `out`, and removed; what the stage
    logged becomes `<out>.log.jsonl`.

    Args:
        factory: Makes the stage; called only if there is work. Under Ray it is called once on every
            worker, and must be picklable.
        rows: The input table.
        out: The output table's path.
        kind: The output table's kind.
        provenance: What the result depends on.
        options: How to run.
        meta: Facts stored with the output table.

    Returns:
        The output table, in the order of the input rows.

    Raises:
        UserError: if `out`, or an unfinished run of it, was made with other settings.
    """
    parts = out.with_suffix(".parts")
    resuming = _same_unfinished(parts, provenance, options.overwrite)
    if not resuming and up_to_date(out, provenance, overwrite=options.overwrite):
        return read_table(out, kind)
    parts.mkdir(parents=True, exist_ok=True)
    if resuming:  # shards that exist keep their size, whatever is asked for now
        options = replace(options, shard_size=read_json(parts / "manifest.json")["shard_size"])
    else:
        write_json(parts / "manifest.json", {**provenance.as_dict(), "shard_size": options.shard_size})
    starts = list(range(0, len(rows), options.shard_size))
    names = {start: parts / f"shard-{start:09d}.parquet" for start in starts}
    todo = [start for start in starts if not names[start].exists()]
    if todo:
        _fill(factory, rows, todo, names, kind, dict(meta or {}), options)
    tables = [read_table(names[start], kind) for start in starts]
    table = concat(tables) if tables else Table.empty(kind, **dict(meta or {}))
    _join_logs([log_path(names[start]) for start in starts], out.with_suffix(".log.jsonl"))
    publish(table, out, provenance)
    _drop(parts)
    return table


def _fill(
    factory: Callable[[], MapStage],
    rows: Table,
    todo: Sequence[int],
    names: Mapping[int, Path],
    kind: str,
    meta: Mapping[str, Any],
    options: MapOptions,
) -> None:
    if options.engine.engine == "ray":
        from wildshape import engine_ray

        engine_ray.fill_shards(factory, rows, todo, names, kind, meta, options)
    else:
        fill_shards(factory(), rows, todo, names, kind, meta, options)


def _join_logs(parts: Sequence[Path], out: Path) -> None:
    found = [part for part in parts if part.exists()]
    if not found:
        return
    with atomic_path(out) as temporary, open(temporary, "wb") as joined:
        for part in found:
            joined.write(part.read_bytes())


def _drop(parts: Path) -> None:
    # The manifest goes first: without it, what a kill in here leaves is no unfinished run.
    (parts / "manifest.json").unlink()
    shutil.rmtree(parts)


def _same_unfinished(parts: Path, provenance: Provenance, overwrite: bool) -> bool:
    manifest = parts / "manifest.json"
    if not manifest.exists():
        shutil.rmtree(parts, ignore_errors=True)
        return False
    old = read_json(manifest)
    if fingerprint(old) == provenance.fingerprint:
        return True
    if not overwrite:
        raise UserError(
            f"an unfinished {parts.stem}.parquet exists with other settings "
            f"({describe_change(old, provenance.as_dict())}); add --overwrite to drop it"
        )
    _drop(parts)
    return False
