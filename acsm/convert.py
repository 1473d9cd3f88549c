"""`wildshape acsm-convert`: a checkpoint of the released code as one of ours, and what that changes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from acsm.articulation import tree_levels
from acsm.evaluate import measure
from acsm.label_sets import LabelSet, find_labels
from acsm.metrics import ShapeResult
from acsm.model import ACSM
from acsm.predict import ShapePredictor, pack_template, template_hash
from acsm.published import load_published
from acsm.template import ArticulatedTemplate, template_for
from acsm.template_file import read_template
from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.files import write_json
from wildshape.metrics import paired_change
from wildshape.records import tell_skipped
from wildshape.stage import Provenance, input_hashes
from wildshape.training import save_checkpoint

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Convert a checkpoint of the released ACSM code; with --labels, measure what that changes."""

    checkpoint: Path
    """The released checkpoint."""
    template: Path | None = None
    """The template that it was trained with: a released folder, or any template file. By default that of
    the category."""
    scale: Literal["template", "published", "none"] | None = None
    """Of a released folder: published if it was trained with --scale_mesh; default: as its settings say."""
    arm: str = "released"
    """The arm that it becomes."""
    out: Path | None = None
    """Write this file in place of the arm's checkpoint."""
    order: Literal["chain", "published"] = "chain"
    """How a part's turn composes with its ancestors': as here, or as it was trained."""
    padding: float = 0.05
    """Widening of the boxes when it predicts (released: .05 in training, 0 in evaluation)."""
    translations: bool = False
    """It was trained with part translations."""
    labels: str | None = None
    """Measure before and after on train, val, test, all, truth, or the file of a labels table."""
    images: Path | None = None
    """The table of images that a file's labels are on, if it is neither the category's nor beside it."""
    batch_size: int = 32
    """Animals in one forward pass."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        if not 0 <= self.padding <= 1:
            raise UserError(f"--padding: expected 0 to 1; found {self.padding}")
        if Path(self.arm).name != self.arm or self.arm.startswith("."):
            raise UserError(f"--arm: expected a plain name; found {self.arm}")


def find_template(config: Config, workspace: Workspace) -> tuple[ArticulatedTemplate, str | None]:
    """The template that the settings mean, and what to mend before the category's commands take it.

    Raises:
        UserError: it cannot be read, or has other keypoints than the category.
    """
    spec = workspace.category
    if config.template is None:
        if config.scale is not None:
            raise UserError("--scale: expected --template with a released folder; found none")
        return template_for(spec), None
    node: dict[str, Any] = {} if config.scale is None else {"scale": config.scale}
    template = read_template(config.template, spec.skeleton, node).template
    if template_hash(template) == template_hash(template_for(spec)):
        return template, None
    scale = f", scale: {config.scale}" if config.scale else ""
    return template, (
        f"{spec.name} has another template: for the other commands put template: "
        f"{{file: {config.template.resolve()}{scale}}} into its YAML"
    )


def with_order(model: ACSM, template: ArticulatedTemplate, order: str, translations: bool) -> ACSM:
    """The released model with its parts composed in an order; all else, keypoints too, as released."""
    arch = dataclasses.replace(model.arch, order=order, translations=translations)
    other = ACSM(template, arch)
    other.load_state_dict(model.state_dict())
    return other.eval()


def convert_model(
    model: ACSM, template: ArticulatedTemplate, order: str = "chain", translations: bool = False
) -> ACSM:
    """A released model (see `load_published`) in the conventions of this project.

    Keypoints are in the NDC (2x + 1) / S - 1 of a crop: cameras move by 1 / S, which is half a pixel
    of the crop and exact where boxes are S pixels large. Fixed views have unit length, parts scale 1.

    Args:
        model: with the released parameters.
        template: its template.
        order: how parts compose.
        translations: whether parts move.
    """
    arch = dataclasses.replace(model.arch, order=order, translations=translations, published_scale=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["camera_head.output.bias"][:, -2:] += 1 / arch.image_size
    state["camera_head.bias"] = torch.nn.functional.normalize(state["camera_head.bias"], dim=-1)
    ours = ACSM(template, arch)
    ours.load_state_dict(state)
    return ours.eval()


def differences(model: ACSM, template: ArticulatedTemplate, config: Config) -> list[dict[str, str]]:
    """What the converted model does in another way, a mapping each: what, released, converted, effect."""
    deep = [template.part_names[part] for level in tree_levels(model.parents)[2:] for part in level]
    found = []
    if config.order == "chain":
        effect = f"moves {', '.join(deep)}" if deep else "none: no part has two ancestors"
        released = "own, root, ..., parent"
        found.append(("articulation", released, "own, parent, ..., root", effect))
    found.append((
        "crop",
        "unpadded in evaluation, whole pixels, side max(w, h) + 1",
        f"padded by {config.padding:g}, to the fraction of a pixel, side max(w, h)",
        "animals are smaller in the crop" if config.padding else "less than a pixel",
    ))  # fmt: skip
    size = model.arch.image_size
    found.append(("keypoints", "NDC 2x / S - 1", "NDC (2x + 1) / S - 1", f"cameras move by 1 / {size}"))
    found.append(("part scales", "predicted", "1", "none: neither applies them"))
    if model.arch.num_cameras > 1:
        length = float(model.camera_head.bias.norm(dim=-1).max())
        released = f"four digits, up to {length:.4f} long"
        found.append(("fixed views", released, "unit length", f"scales by up to {length**-2:.4f}"))
    return [dict(zip(("what", "released", "converted", "effect"), row)) for row in found]


@dataclass(frozen=True)
class _Measuring:
    """What models are measured on and how."""

    labels: LabelSet
    keypoints: tuple[str, ...]
    config: Config

    def __call__(self, model: ACSM, *, published: bool) -> tuple[ShapeResult, dict[str, Any]]:
        predictor = ShapePredictor(
            model,
            None,
            self.keypoints,
            padding=self.config.padding,
            device=self.config.device,
            batch_size=self.config.batch_size,
        )
        measured = measure(predictor, self.labels.records, published=published)
        result, total = measured.result, len(self.labels.records) + len(self.labels.records.skipped)
        if published and model.arch.order == "published":  # the first of several: told once
            skipped = [*self.labels.records.skipped, *measured.skipped]
            tell_skipped(skipped, total, f"{self.labels.name} labels")
        facts = result.summary(self.keypoints)
        kept = ("instances", "auc", "auc_interval", "camera_error_deg", "camera_error_deg_interval")
        return result, {name: facts[name] for name in kept if name in facts}


def measure_change(
    model: ACSM,
    ours: ACSM,
    template: ArticulatedTemplate,
    labels: LabelSet,
    config: Config,
    names: Sequence[str],
) -> dict[str, Any]:
    """AUC and camera error as released, with one change at a time, and converted.

    Raises:
        UserError: no labelled animal has an image that can be read.
    """
    if not len(labels.records):
        raise UserError(f"--labels: expected labelled animals with images in {labels.name}; found none")
    of = _Measuring(labels, tuple(names), config)
    released = with_order(model, template, "published", config.translations)
    before, facts = of(released, published=True)
    rows = {"released": facts}
    if config.order == "chain":
        chained = with_order(model, template, "chain", config.translations)
        rows["order alone"] = of(chained, published=True)[1]
        kept = convert_model(model, template, "published", config.translations)
        rows["crops alone"] = of(kept, published=False)[1]
    after, rows["converted"] = of(ours, published=False)
    pair = [after.by_instance()], [before.by_instance()]
    change = {what: paired_change(*pair, what) for what in ("auc", "camera")}
    return {"labels": labels.name, "rows": rows, "change": change}


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Convert, say what differs, measure if labels are given; writes metrics/acsm_convert_<arm>.json.

    Raises:
        UserError: the checkpoint cannot be read or does not fit the template, the labels are missing, or
            something else lies where it is to be written.
    """
    spec = workspace.category
    template, note = find_template(config, workspace)
    model = load_published(config.checkpoint, template, num_cameras=None)
    ours = convert_model(model, template, config.order, config.translations)
    settings = {
        "order": config.order, "padding": config.padding, "translations": config.translations,
        "template": template_hash(template),
    }  # fmt: skip
    provenance = Provenance("acsm-convert", settings, input_hashes(workspace.root, config.checkpoint))
    folder = workspace.checkpoint_dir(f"acsm/{config.arm}")
    out = config.out or folder / "best.pt"
    _refuse_other(out, provenance, config)
    facts: dict[str, Any] = {
        "category": spec.name,
        "checkpoint": workspace.relative(config.checkpoint),
        "out": workspace.relative(out),
        "num_cameras": model.arch.num_cameras,
        "image_size": model.arch.image_size,
        "differences": differences(model, template, config),
        "note": note,
    }
    if config.labels is not None:
        labels = find_labels(workspace, config.labels, config.images)
        facts["measured"] = measure_change(model, ours, template, labels, config, spec.skeleton.keypoints)
    best = None
    if config.labels == "val":
        best = {"auc": facts["measured"]["rows"]["converted"]["auc"]}
    state = {
        "model": ours.state_dict(),
        "step": 0,
        "best": best,
        "extra": {
            "kind": "acsm",
            "category": spec.name,
            "skeleton": spec.skeleton.name,
            "keypoints": list(spec.skeleton.keypoints),
            "arch": dataclasses.asdict(ours.arch),
            "padding": config.padding,
            "template": pack_template(template),
            "weights_from": str(config.checkpoint),
        },
        "provenance": json.dumps(provenance.as_dict()),
    }
    save_checkpoint(out, state)
    if config.out is None:
        save_checkpoint(folder / "last.pt", state)  # keeps acsm-train from taking the folder
        progressed = {"step": 0, "steps": 0, "best": best}
        write_json(folder / "manifest.json", {**provenance.as_dict(), **progressed})
    workspace.write_metrics(f"acsm_convert_{config.arm}", facts)
    _tell(facts)
    return facts


def _refuse_other(out: Path, provenance: Provenance, config: Config) -> None:
    """What this command wrote with the same settings may be written again."""
    if not out.exists() or config.overwrite:
        return
    try:
        found = json.loads(torch.load(out, map_location="cpu", weights_only=True)["provenance"])
    except Exception as error:  # whatever a file of another kind makes torch raise
        found = {"stage": type(error).__name__}
    if found != provenance.as_dict():
        where = "--out" if config.out else "--arm"
        raise UserError(
            f"expected nothing else at {out}; found a file; add --overwrite, or choose another {where}"
        )


def _tell(facts: Mapping[str, Any]) -> None:
    say(f"{facts['checkpoint']}: {facts['num_cameras']} camera(s), {facts['image_size']} px")
    for row in facts["differences"]:
        say(f"  {row['what']}: {row['converted']} (released: {row['released']}); {row['effect']}")
    measured = facts.get("measured")
    for name, row in (measured["rows"] if measured else {}).items():
        camera = row["camera_error_deg"]
        shown = "" if camera is None else f", camera error {camera:.1f} deg"
        say(f"  {name:<12} AUC {row['auc']:.1f}{shown}")
    if measured:
        change = measured["change"]["auc"]
        low, high = change["interval"]
        say(
            f"  converted - released on {change['animals']} animals of {measured['labels']}: AUC "
            f"{change['gain']:+.1f} [{low:.1f}, {high:.1f}]"
        )
    say(f"wrote {facts['out']}")
    if facts["note"]:
        say(facts["note"])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command."""
    return script_main(Config, run, argv, prog="wildshape acsm-convert")


if __name__ == "__main__":
    sys.exit(main())
