"""`wildshape template check FILE`: what a template is like, in words, numbers and a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from acsm.sphere_map import distortion, sphere_fault, sphere_vertices
from acsm.template import ArticulatedTemplate, template_for
from acsm.template_file import MANY_VERTICES, faults, read_template
from acsm.template_labels import LEAST_SEEN, LabelShifts, label_shifts
from acsm.template_mesh import pieces_of
from acsm.template_rig import LoadedTemplate
from wildshape.category import CategorySpec, load_category
from wildshape.cli import guarded, say
from wildshape.errors import UserError
from wildshape.files import atomic_path, write_json
from wildshape.skeleton import Skeleton, load_skeleton
from wildshape.training_data import labelled
from wildshape.workspace import Workspace, find_root

if TYPE_CHECKING:
    from PIL import Image

TURN_DEG = 25.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Check a template: closedness, symmetry, parts, keypoints; draw it at rest and with parts turned.

    Ends with code 2 if training would suffer from what was found.
    """

    file: tyro.conf.Positional[Path | None] = None
    """.npz, .glb, .gltf, .obj or a released folder with mean_shape.mat; without it, that of --category."""
    category: str | None = None
    """Take keypoints and settings from this category."""
    skeleton: str | None = None
    """Keypoints to look for, where no category says: a shipped skeleton or a YAML file."""
    settings: Path | None = None
    """YAML with settings of the file; by default STEM.template.yaml beside it."""
    name: str | None = None
    """Title of the picture and, without --out, of its files; by default that of the file or category."""
    out: Path | None = None
    """The picture (PNG); numbers go to a JSON file beside it. By default NAME.check.png beside the file."""
    labels: bool = False
    """Also say and draw where the category's training labels lie beside the keypoints."""
    seed: int = 0
    """Chooses the turns of the drawn articulation."""
    cell: int = 320
    """Pixels on a side of one drawing."""
    data_root: Path | None = None
    """Folder that holds categories/; by default as for every command."""
    overwrite: bool = False
    """Replace what --out names."""
    debug: bool = False
    """Show the traceback of an error."""


def load(config: Config) -> tuple[LoadedTemplate, Skeleton, str]:
    """The template that the settings mean, its skeleton and its name.

    Raises:
        UserError: there is none, or it cannot be one of that skeleton.
    """
    if config.category is not None and config.skeleton is not None:
        raise UserError("expected --category or --skeleton, as a category says its skeleton; found both")
    spec: CategorySpec | None = None
    if config.category is not None:
        spec = load_category(config.category, config.data_root or find_root())
    if config.file is None:
        if spec is None:
            raise UserError("expected a file or --category; run: wildshape template check FILE")
        loaded = LoadedTemplate(template_for(spec))
        if "file" in spec.template:
            notes = read_template(spec.template["file"], spec.skeleton, spec.template).notes
            loaded = LoadedTemplate(loaded.template, notes)
        return loaded, spec.skeleton, spec.name
    skeleton = spec.skeleton if spec else load_skeleton(config.skeleton or "quadruped16")
    node: dict[str, Any] = {}
    if spec is not None and Path(spec.template.get("file", "")).resolve() == config.file.resolve():
        node = dict(spec.template)
    if config.settings is not None:
        node["settings"] = config.settings
    return read_template(config.file, skeleton, node), skeleton, config.file.stem


def measures(template: ArticulatedTemplate, skeleton: Skeleton) -> dict[str, Any]:
    """Everything that is known of a template, in template units (the largest distance is 2)."""
    distances = template.mirror_distances()
    names, points = template.part_names, template.vertices[template.keypoint_vertices]
    pieces = pieces_of(template.faces, template.num_vertices)
    return {
        "vertices": template.num_vertices,
        "faces": len(template.faces),
        "pieces": sorted(np.bincount(pieces).tolist(), reverse=True),
        "closed": template.is_closed(),
        "border_edges": template.border_edges(),
        "manifold": template.is_manifold(),
        "volume": template.volume(),
        "diameter": template.diameter(),
        "vertex_mean": template.vertices.mean(axis=0),
        "symmetry_error": distances.max(),
        "symmetry_error_mean": distances.mean(),
        "sphere_map": _sphere_map(template),
        "parts": [
            {
                "name": name,
                "parent": names[template.part_parents[i]] if template.part_parents[i] >= 0 else None,
                "mirror": names[template.part_mirror[i]],
                "turns": bool(template.active[i]),
                "share": template.membership[:, i].mean(),
                "centre": template.part_centres[i],
            }
            for i, name in enumerate(names)
        ],
        "keypoints": [
            {"name": name, "vertex": int(vertex), "position": point,
             "part": names[int(template.membership[vertex].argmax())]}
            for name, vertex, point in zip(skeleton.keypoints, template.keypoint_vertices, points)
        ],
    }  # fmt: skip


def _sphere_map(template: ArticulatedTemplate) -> dict[str, Any]:
    """What the map to the sphere, which training with masks needs, does to areas and angles."""
    fault = sphere_fault(template)
    if fault is None:
        try:
            sphere = sphere_vertices(template)
        except UserError as error:
            fault = str(error)
    if fault is not None:
        return {"missing": f"needs {fault}"}
    found = distortion(template.vertices, template.faces, sphere)
    own = template.sphere_vertices is not None
    return {"origin": "the template's own" if own else "computed", "text": str(found), **asdict(found)}


def random_turns(template: ArticulatedTemplate, seed: int) -> dict[str, tuple[float, float, float]]:
    """A rotation vector for each part that may turn, up to 25 degrees about any axis."""
    rng = np.random.default_rng([seed, 17])
    turns = {}
    for name, active in zip(template.part_names, template.active):
        axis = rng.standard_normal(3)
        angle = np.radians(TURN_DEG) * rng.uniform(0.3, 1)
        if active:
            x, y, z = axis * (angle / np.linalg.norm(axis))
            turns[name] = (float(x), float(y), float(z))
    return turns


def find_labels(template: ArticulatedTemplate, config: Config) -> LabelShifts:
    """Where the category's training labels lie.

    Raises:
        UserError: no category is named, or it has no such labels.
    """
    if config.category is None:
        raise UserError("--labels: expected --category as well, whose labels they are; found none")
    workspace = Workspace(config.data_root or find_root(), config.category)
    skeleton = workspace.category.skeleton
    return label_shifts(template, skeleton, labelled(workspace, "train", skeleton)[0])


def draw(
    name: str, template: ArticulatedTemplate, config: Config, shifts: LabelShifts | None = None
) -> Image.Image:
    """Both sides and the front with keypoints, three quarters, and a random articulation twice.

    With labels, these stand beside the keypoints in place of the numbers, seen from the left.
    """
    from PIL import Image, ImageDraw

    from acsm.template_picture import draw_beside, draw_view

    turned = template.articulated(random_turns(template, config.seed))
    rest = template.vertices
    views = [(rest, -90, 0, True), (rest, 90, 0, True), (rest, 0, 0, True), (rest, -40, 15, False)]
    views += [(turned, -90, 0, False), (turned, -40, 15, False)]
    sheet = Image.new("RGB", (3 * config.cell, 2 * config.cell), (255, 255, 255))
    for i, (vertices, yaw, pitch, marked) in enumerate(views):
        image = draw_view(template, vertices, (yaw, pitch), config.cell, marked=marked)
        sheet.paste(image, (i % 3 * config.cell, i // 3 * config.cell))
    if shifts is not None:
        sheet.paste(draw_beside(template, shifts.places(template), -90, config.cell), (0, 0))
    pen = ImageDraw.Draw(sheet)
    pen.text(
        (8, 4), f"{name}: {template.num_vertices} vertices, {template.num_parts} parts", fill=(20, 20, 20)
    )
    pen.text((config.cell + 8, config.cell + 4), "parts turned at random", fill=(20, 20, 20))
    return sheet


def run(config: Config) -> dict[str, Any]:
    """Check, write the JSON file and the picture, and say what was found.

    Raises:
        UserError: it cannot be read, or training would suffer from it: one line with all faults.
    """
    loaded, skeleton, name = load(config)
    template, name = loaded.template, config.name or name
    out = config.out
    if out is None:
        out = config.file.with_name(f"{name}.check.png") if config.file else Path(f"{name}.check.png")
    elif not config.overwrite:
        for file in (out, out.with_suffix(".json")):
            if file.exists():
                raise UserError(f"expected no file at {file}; found one; run: with --overwrite")
    figures = measures(template, skeleton)
    found = faults(template, skeleton)
    figures |= {"skeleton": skeleton.name, "notes": loaded.notes, "faults": found}
    shifts = find_labels(template, config) if config.labels else None
    if shifts is not None:
        figures["labels"] = shifts.as_dict(skeleton.keypoints)
    write_json(out.with_suffix(".json"), figures)
    with atomic_path(out) as path:
        draw(name, template, config, shifts).save(path, optimize=True)
    _say(figures, template, skeleton, out)
    if found:
        raise UserError(f"{config.file or name}: {'; '.join(found)}")
    return figures


def _say(figures: dict[str, Any], template: ArticulatedTemplate, skeleton: Skeleton, out: Path) -> None:
    for note in figures["notes"]:
        say(f"  {note}")
    closed = "closed" if figures["closed"] else f"open ({figures['border_edges']} edges)"
    pieces = f", {len(figures['pieces'])} pieces" if len(figures["pieces"]) > 1 else ""
    say(f"{figures['vertices']} vertices, {figures['faces']} faces{pieces}, {closed}, symmetric within "
        f"{figures['symmetry_error']:.4f} (mean {figures['symmetry_error_mean']:.4f})")  # fmt: skip
    sphere = figures["sphere_map"]
    where = f" ({sphere['origin']})" if "origin" in sphere else ""
    say(f"map to the sphere{where}: {sphere.get('text') or sphere['missing']}")
    if figures["vertices"] > MANY_VERTICES:
        say("many vertices, which makes training slow: 1,000 to 2,500 do (vertices: 2000 in the settings)")
    pairs = int((template.part_mirror != np.arange(template.num_parts)).sum())
    names = ", ".join(template.part_names)
    turn = int(template.active.sum())
    say(f"{template.num_parts} parts ({pairs} in pairs, {turn} turn): {names}")
    say(f"{template.num_keypoints} keypoints of {figures['skeleton']}")
    if "labels" in figures:
        _say_labels(figures["labels"], skeleton)
    say(f"{out}, {out.with_suffix('.json')}")


def _say_labels(found: dict[str, Any], skeleton: Skeleton) -> None:
    say(
        f"labels of {found['animals']} animals seen from the side lie {found['mean_distance']:.3f} from "
        "the keypoints (medians; the template's largest distance is 2):"
    )
    for index, row in enumerate(found["keypoints"]):
        if skeleton.flip[index] >= index and row["seen"] >= LEAST_SEEN:
            place = f"ahead {row['ahead']:+.2f}, up {row['up']:+.2f}"
            spread = f"half of {row['seen']} within {row['spread_ahead']:.2f}, {row['spread_up']:.2f}"
            say(f"  {row['name']:<14} {place}   ({spread})")


def main(argv: Sequence[str] | None = None) -> int:
    """`wildshape template check ...`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def action() -> None:
        if not arguments or not (arguments[0] == "check" or arguments[0].startswith("-")):
            found = arguments[0] if arguments else "nothing"
            raise UserError(f"expected check; found {found}; run: wildshape template check FILE")
        flags = arguments[arguments[0] == "check" :]
        run(tyro.cli(Config, args=flags, prog="wildshape template check", description=Config.__doc__))

    return guarded(action, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
