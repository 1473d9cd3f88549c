"""`wildshape status`: what is done, what is stale, what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.files import file_hash, read_json
from wildshape.tables import read_facts, table_hash
from wildshape.training_data import selection_flags
from wildshape.workspace import Workspace

_OF_WEB = ("filter", "web_images_num", "pl_source")


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Show what is done, what is stale and what comes next."""


@dataclass(frozen=True)
class Step:
    """One step of the pipeline: the artefact it makes and the command that makes it."""

    title: str
    output: Path
    command: str


@dataclass(frozen=True)
class StepState:
    """A step with its state: "done", "stale", "unfinished" or "missing", and a few words on it."""

    step: Step
    state: str
    detail: str


def steps(workspace: Workspace) -> list[Step]:
    """The steps of one category's pipeline, in order."""
    w, c = workspace, workspace.category.name
    suffix = f" --category {quote(c)}" + (f" --name {quote(w.name)}" if w.name != c else "")
    arms = sorted(path.name for path in w.checkpoint_dir("acsm").glob("*") if path.is_dir())
    listed = [
        Step("labelled photos", w.table_path("labels"), w.made_by("labels")),
        Step("web images", w.table_path("images"), w.made_by("images")),
        Step("boxes", w.table_path("instances"), w.made_by("instances")),
        *_optional(w),
        Step("pose network", w.checkpoint_dir("pose") / "manifest.json", f"python pose/train.py{suffix}"),
        Step("its keypoints", w.keypoints_path("pose"), w.made_by("pose")),
        Step(
            "second pose network",
            w.checkpoint_dir("pose_aux") / "manifest.json",
            f"python pose/train.py{suffix} --is_aux",
        ),
        Step("its keypoints", w.keypoints_path("pose_aux"), w.made_by("pose_aux")),
        Step("keypoints under transforms", w.keypoints_path("pose_mt"), w.made_by("pose_mt")),
    ]
    tokens = w.checkpoint_dir("zero123plus")
    if tokens.is_dir():
        command = f"python pseudolabels/train_tokens.py{suffix}"
        listed.append(Step("tokens", tokens / "manifest.json", command))
        source = "zero123plus_points"
        listed.append(Step("their points", w.keypoints_path(source), w.made_by(source)))
    for arm in arms or ["labels"]:
        folder, encoder = w.checkpoint_dir(f"acsm/{arm}"), w.checkpoint_dir(f"pose_{arm}")
        if encoder.is_dir():
            command = f"python pose/train.py{suffix} --arm {quote(arm)}{_data_flags(encoder)}"
            listed.append(Step(f"encoder, arm {arm}", encoder / "manifest.json", command))
        named = f" --arm {quote(arm)}" if arm != "labels" else ""
        command = f"python acsm/train.py{suffix}{named}{_data_flags(folder)}"
        listed.append(Step(f"ACSM, arm {arm}", folder / "manifest.json", command))
    listed.append(Step("its keypoints", w.keypoints_path("acsm"), w.made_by("acsm")))
    for source in ("pose", "pose_mt", "pose_aux", "acsm", "zero123plus"):
        path = w.keypoints_path(f"{source}_labelled")
        if path.exists():
            listed.append(Step(f"labelled photos' {source}", path, w.made_by(path.stem)))
    selections = sorted((w.run_dir / "selections").glob("*.parquet"))
    listed += [Step(f"selection {path.stem}", path, _select(suffix, path)) for path in selections] or [
        Step("selection", w.selection_path("kpconf", 300), _select(suffix, Path("kpconf_300")))
    ]
    listed.append(Step("report", w.report_path, f"wildshape report{suffix}"))
    return listed


def _data_flags(folder: Path) -> str:
    """The flags that name what a training was made on: without them it would be one on labels alone."""
    manifest = folder / "manifest.json"
    try:
        config = read_json(manifest).get("config") or {} if manifest.exists() else {}
    except UserError:
        config = {}
    web = bool(config.get("use_web_images"))
    flags = " --use_web_images" if web else ""
    for name in _OF_WEB if web else ():
        if config.get(name) is not None:
            flags += f" --{name} {quote(str(config[name]))}"
    others = config.get("labels_from") or ""
    others = ",".join(others) if isinstance(others, list) else others
    flags += f" --labels_from {quote(others)}" if others else ""
    for name in ("label_share", "supervise"):
        flags += f" --{name} {config[name]}" if config.get(name) else ""
    return flags


def _select(suffix: str, selection: Path) -> str:
    name, _, number = selection.stem.rpartition("_")
    flags = selection_flags(name)
    return f"python prepare_data/data_selection.py{suffix} {flags} --selection_num {number}"


def _optional(workspace: Workspace) -> list[Step]:
    """Steps that no other step needs: they are shown once they were begun."""
    titles = {"masks": "masks", "labelled_masks": "masks of the labelled photos"}
    listed = [
        Step(title, workspace.table_path(table), workspace.made_by(table))
        for table, title in titles.items()
    ]
    return [step for step in listed if step.output.exists() or step.output.with_suffix(".parts").is_dir()]


def _changed_inputs(workspace: Workspace, inputs: dict[str, str]) -> list[str]:
    changed = []
    for name, old in inputs.items():
        path = workspace.root / name
        if not path.exists():
            changed.append(f"{name} is gone")
        elif (table_hash(path) if path.suffix == ".parquet" else file_hash(path)) != old:
            changed.append(f"{name} has changed")
    return changed


def examine(workspace: Workspace, step: Step) -> StepState:
    """The state of one step."""
    path = step.output
    if path.with_suffix(".parts").is_dir():
        return StepState(step, "unfinished", "run again to continue")
    if not path.exists():
        return StepState(step, "missing", "")
    if path.suffix == ".html":
        return StepState(step, "done", "")
    try:
        facts = read_facts(path)["provenance"] if path.suffix == ".parquet" else read_json(path)
    except UserError as error:
        return StepState(step, "stale", str(error))
    if facts.get("step", 0) < facts.get("steps", 0):
        return StepState(step, "unfinished", f"step {facts['step']} of {facts['steps']}")
    changed = _changed_inputs(workspace, facts.get("inputs") or {})
    return StepState(step, "stale" if changed else "done", "; ".join(changed))


def run(config: Config, workspace: Workspace) -> dict[str, str]:
    """Print the state of every step; returns state by output path relative to the root."""
    states = [examine(workspace, step) for step in steps(workspace)]
    width = max(len(state.step.title) for state in states)
    say(f"{workspace.category.name}, run {workspace.name}, under {workspace.root}")
    for state in states:
        say(f"  {state.step.title:<{width}}  {state.state:<10}  {state.detail}".rstrip())
    following = next((state for state in states if state.state != "done"), None)
    if following is None:
        say("everything is done")
    else:
        say(f"next: {_next(workspace, following)}")
    return {workspace.relative(state.step.output): state.state for state in states}


def _next(workspace: Workspace, state: StepState) -> str:
    if state.state == "stale":
        output = state.step.output
        settings = output if output.name == "manifest.json" else output.with_suffix(".manifest.json")
        kept = f"  (its settings are in {workspace.relative(settings)})" if settings.is_file() else ""
        return f"{state.step.command} --overwrite{kept}"
    if workspace.metrics_path("timings").is_file():
        # Its steps have settings of their own, which the commands by themselves would not have.
        return "the same `wildshape run` (or demo) command again"
    return state.step.command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `wildshape status`."""
    return script_main(Config, run, argv, prog="wildshape status")
