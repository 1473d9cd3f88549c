"""Skeletons: which keypoints an animal has, which are joined, and which swap in a mirror."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import yaml

from wildshape.errors import UserError

_FOLDER = Path(__file__).parent / "skeletons"


def _key(name: str) -> str:
    """Letters, marks and digits of any script, without case."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(char for char in folded if unicodedata.category(char)[0] in "LMN")


@dataclass(frozen=True)
class Skeleton:
    """Keypoint names with their edges and left-right pairs.

    Attributes:
        name: Name by which tables refer to this skeleton.
        keypoints: The K keypoint names, in the order of every `[K, ...]` array.
        edges: Index pairs that are drawn as bones.
        flip: Permutation of K indices that a left-right mirror applies.
        aliases: Other names of keypoints, mapped to names in `keypoints`.
    """

    name: str
    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip: tuple[int, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if len({_key(name) for name in self.keypoints}) != count or count == 0:
            raise UserError(f"skeleton {self.name}: expected distinct keypoint names, found {count}")
        if not self.flip:
            object.__setattr__(self, "flip", tuple(range(count)))
        flip = np.asarray(self.flip)
        if sorted(self.flip) != list(range(count)) or not np.array_equal(flip[flip], range(count)):
            raise UserError(f"skeleton {self.name}: expected a flip that undoes itself, found {flip}")
        for a, b in self.edges:
            if not (0 <= a < count and 0 <= b < count):
                raise UserError(f"skeleton {self.name}: edge ({a}, {b}) leaves the {count} keypoints")
        for alias, target in self.aliases.items():
            if target not in self.keypoints:
                raise UserError(f"skeleton {self.name}: alias {alias} names no keypoint: {target}")

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.keypoints)

    @property
    def sides(self) -> tuple[str, ...]:
        """For each keypoint "left", "right" or "middle"; left is the first name of a pair."""
        return tuple(
            "middle" if other == index else "left" if index < other else "right"
            for index, other in enumerate(self.flip)
        )

    def find(self, name: str) -> int | None:
        """Index of a keypoint by name or alias, whatever the case and separators; None if unknown."""
        return self._index.get(_key(name))

    @property
    def _index(self) -> dict[str, int]:
        index = {_key(name): i for i, name in enumerate(self.keypoints)}
        for alias, target in self.aliases.items():
            index.setdefault(_key(alias), self.keypoints.index(target))
        return index

    def map_from(self, names: Sequence[str]) -> np.ndarray:
        """For each of this skeleton's K keypoints its index in `names`, -1 where `names` lacks it."""
        mapping = np.full(self.num_keypoints, -1, dtype=np.int64)
        index = self._index
        for position, name in enumerate(names):
            target = index.get(_key(name))
            if target is not None and (mapping[target] < 0 or name == self.keypoints[target]):
                mapping[target] = position
        return mapping


def skeleton_from_mapping(node: Mapping, origin: str) -> Skeleton:
    """Build a skeleton from a YAML node with keypoints, edges, pairs and aliases (by name)."""
    try:
        keypoints = tuple(str(name) for name in node["keypoints"])
        index = {name: i for i, name in enumerate(keypoints)}
        flip = list(range(len(keypoints)))
        for left, right in node.get("pairs") or []:
            flip[index[left]], flip[index[right]] = index[right], index[left]
        edges = tuple((index[a], index[b]) for a, b in node.get("edges") or [])
        aliases = MappingProxyType({str(k): str(v) for k, v in (node.get("aliases") or {}).items()})
        return Skeleton(str(node["name"]), keypoints, edges, tuple(flip), aliases)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{origin}: expected name, keypoints, and edges, pairs and aliases that refer to them; "
            f"found a problem at {error}"
        ) from None


@lru_cache(maxsize=32)
def load_skeleton(name_or_path: str | Path) -> Skeleton:
    """Load a shipped skeleton by name, or a user's by the path of its YAML file.

    Raises:
        UserError: if there is no such skeleton, or it contradicts itself.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.yaml")))
        raise UserError(f"unknown skeleton {name_or_path}; there are: {known}, or a path to a YAML")
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected YAML in UTF-8; found {str(error).splitlines()[0]}") from None
    return skeleton_from_mapping(node or {}, str(path))
