"""What a template file does not say itself: axes, parts and keypoints, from YAML.

Settings stand beside `file:` in a category's `template:` node, or in `<stem>.template.yaml` beside the
file; the node goes before the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wildshape.errors import UserError

_AXES = {sign + axis: (-1 if sign == "-" else 1) * np.eye(3)[i] for i, axis in enumerate("xyz")
         for sign in ("+", "-", "")}  # fmt: skip
_PART_KEYS = {"bones", "group", "vertices", "segment", "parent", "centre"}


@dataclass(frozen=True)
class TemplateSettings:
    """How to read one template file.

    Attributes:
        up: the file's axis that points up, such as `+y` (glTF's rule) or `+z`.
        front: the file's axis that the animal faces, such as `+z` (glTF's rule) or `-y`.
        pose: of a rig: `rest`, as its nodes stand, or `bind`, as the mesh was bound to its bones.
        parts: part name to bones (a name, a pattern, a list) or to a mapping with `bones`, `group`,
            `vertices`, `segment`, `parent`, `centre`; None: from the file's bones.
        min_share: without `parts`, bones that move less than this share of the vertices are merged.
        most_parts: without `parts`, the most parts that are kept.
        vertices: simplify the mesh to about as many vertices; None: keep all.
        keypoints: keypoint name to a vertex, a bone's name, or a mapping with `vertex`, `bone` and `at`
            (`head` or `tip`), `position` (file coordinates), or `group` and `side`.
        scale: of a cachedir: `template`, the template frame; `published`, as `--scale_mesh` does;
            `none`.
        mirror: of a cachedir: its `mirror_transforms.txt`, where it lies elsewhere.
        part_file: of a cachedir: its `part_files/<category>.txt`, likewise.
    """

    up: str = "+y"
    front: str = "+z"
    pose: str = "rest"
    parts: Mapping[str, Any] | None = None
    min_share: float = 0.02
    most_parts: int = 24
    vertices: int | None = None
    keypoints: Mapping[str, Any] = field(default_factory=dict)
    scale: str = "template"
    mirror: str | None = None
    part_file: str | None = None

    def axes(self) -> np.ndarray:
        """Rotation [3, 3] from the file's axes to x left, y to the tail, z up."""
        up, front = _AXES[self.up], _AXES[self.front]
        return np.stack([np.cross(up, front), -front, up])


def settings_from(node: Mapping[str, Any], origin: str) -> TemplateSettings:
    """Check a YAML node.

    Raises:
        UserError: an unknown key, or a value that is none.
    """

    def wrong(key: str, expected: str) -> UserError:
        return UserError(f"{origin}: expected {key}: {expected}; found {node[key]!r}")

    known = [f.name for f in fields(TemplateSettings)]
    unknown = sorted(str(key) for key in set(node) - set(known))
    if unknown:
        raise UserError(f"{origin}: expected settings among {', '.join(known)}; found {', '.join(unknown)}")
    for key in ("up", "front"):
        if key in node and str(node[key]) not in _AXES:
            raise wrong(key, "an axis: +x, -x, +y, -y, +z or -z")
    for key, allowed in (("pose", ("rest", "bind")), ("scale", ("template", "published", "none"))):
        if key in node and node[key] not in allowed:
            raise wrong(key, " or ".join(allowed))
    for key, low in (("vertices", 100), ("most_parts", 1), ("min_share", 0)):
        value = node.get(key)
        if value is None and key not in ("most_parts", "min_share"):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in node and (not number or value < low or (key == "min_share" and value >= 1)):
            raise wrong(key, "a share below 1" if key == "min_share" else f"a number from {low}")
    for key in ("parts", "keypoints"):
        if not isinstance(node.get(key), Mapping | None):
            raise wrong(key, "a mapping of names")
    settings = TemplateSettings(**{k: v for k, v in node.items() if v is not None})
    if not np.abs(settings.axes()[0]).any():
        raise UserError(f"{origin}: expected up: and front: along different axes; found {settings.up}")
    for name, part in (settings.parts or {}).items():
        unknown = sorted(set(part) - _PART_KEYS) if isinstance(part, Mapping) else []
        if unknown or not isinstance(part, str | list | Mapping):
            raise UserError(
                f"{origin}: expected part {name} as bones, or with {', '.join(sorted(_PART_KEYS))}; "
                f"found {', '.join(map(str, unknown)) or part}"
            )
    return settings


def read_settings(path: Path, node: Mapping[str, Any] | None = None) -> TemplateSettings:
    """Settings of the template file `path`: those beside it, and over them those of `node`.

    Raises:
        UserError: no YAML, or a setting that is none.
    """
    beside = path.with_name(f"{path.stem}.template.yaml")
    found: dict[str, Any] = {}
    if beside.is_file():
        found = read_settings_file(beside)
    given = {key: value for key, value in (node or {}).items() if key not in ("file", "settings")}
    if node and "settings" in node:
        found |= read_settings_file(Path(node["settings"]))
    return settings_from(found | given, f"{path.name} and its settings")


def read_settings_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings.

    Raises:
        UserError: there is no such file, or no mapping in it.
    """
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"expected settings of a template at {path}; found no file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected YAML; found {str(error).splitlines()[0]}") from None
    if not isinstance(node, dict):
        raise UserError(f"{path}: expected a mapping of settings; found {type(node).__name__}")
    return node
