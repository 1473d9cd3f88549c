"""Category specs: everything the code knows of one animal, read from one YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wildshape.errors import UserError
from wildshape.skeleton import Skeleton, load_skeleton

_FOLDER = Path(__file__).parent / "categories"
_KEYS = {
    "name", "skeleton", "coco_label", "synonyms", "exclude", "template", "active_parts", "diorama",
}  # fmt: skip


@dataclass(frozen=True)
class CategorySpec:
    """One animal category.

    Attributes:
        name: The category's name, as in `--category`.
        skeleton: Its keypoints.
        coco_label: The COCO class that detectors report it as, or None.
        synonyms: Words that find it in metadata.
        exclude: Words or phrases that rule a match out ("sea horse").
        template: Where its template mesh comes from: `{procedural: {...}}` or `{file: path}`
            with settings of that file.
        active_parts: Names of the template's parts that may turn; None leaves it to the template.
        diorama: Overrides for the synthetic world.
        path: The YAML file.
    """

    name: str
    skeleton: Skeleton
    coco_label: str | None
    synonyms: tuple[str, ...]
    exclude: tuple[str, ...]
    template: Mapping[str, Any]
    active_parts: tuple[str, ...] | None
    diorama: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path()


def _folders(root: Path | None) -> list[Path]:
    return [*([Path(root) / "categories"] if root is not None else []), _FOLDER]


def list_categories(root: Path | None = None) -> list[str]:
    """Names of all categories: the user's under `<root>/categories` and the shipped ones."""
    return sorted({path.stem for folder in _folders(root) for path in folder.glob("*.yaml")})


def load_category(name: str, root: Path | None = None) -> CategorySpec:
    """Load a category by name; a user's file goes before a shipped one of the same name.

    Raises:
        UserError: if there is no such category (the message lists those there are) or its file is
            not a category.
    """
    for folder in _folders(root):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return _read(path)
    known = list_categories(root)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(
        f"unknown category {name}{hint}; there are: {', '.join(known)}. "
        "A new one is a YAML file in categories/ under the data root (docs/new_category.md)"
    )


def _read(path: Path) -> CategorySpec:
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected YAML in UTF-8; found {str(error).splitlines()[0]}") from None
    if not isinstance(node, dict) or node.get("name") != path.stem:
        raise UserError(f"{path}: expected a mapping with name: {path.stem}")
    unknown = sorted(set(node) - _KEYS)
    if unknown:
        raise UserError(f"{path}: expected the keys {sorted(_KEYS)}; found also {unknown}")
    template = node.get("template")
    if not isinstance(template, dict) or not set(template) & {"procedural", "file"}:
        raise UserError(f"{path}: expected template: with procedural: or file:; found {template}")
    for key in set(template) & {"file", "settings"}:
        template = {**template, key: str(path.parent / str(template[key]))}
    skeleton_name = str(node.get("skeleton", "quadruped16"))
    if skeleton_name.endswith((".yaml", ".yml")):
        skeleton_name = str(path.parent / skeleton_name)
    for key in ("synonyms", "exclude", "active_parts"):
        if not isinstance(node.get(key), list | None):
            raise UserError(f"{path}: expected {key}: as a list, one `- item` a line; found {node[key]}")
    active = node.get("active_parts")
    return CategorySpec(
        name=path.stem,
        skeleton=load_skeleton(skeleton_name),
        coco_label=node.get("coco_label"),
        synonyms=tuple(str(word) for word in node.get("synonyms") or [path.stem]),
        exclude=tuple(str(word) for word in node.get("exclude") or []),
        template=template,
        active_parts=None if active is None else tuple(str(part) for part in active),
        diorama=node.get("diorama") or {},
        path=path,
    )
