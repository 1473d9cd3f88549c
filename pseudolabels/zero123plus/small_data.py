"""What the small model learns from: pictures and captions that `prepare_data/make_views.py` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.stage import fingerprint

GREY, WHITE = 127, 255
_CHUNK = 128  # rings at once, in floats


@dataclass(frozen=True)
class Caption:
    """What can be said of a picture: its subject, and further true phrases in any order."""

    title: str
    phrases: tuple[str, ...]

    @classmethod
    def from_json(cls, text: str) -> Caption:
        """The caption that `prepare_data/make_views.py` wrote."""
        plain = json.loads(text)
        return cls(plain["title"], tuple(plain["phrases"]))

    def sample(self, rng: np.random.Generator, keep: float = 0.75) -> str:
        """The title and some of the phrases, shuffled."""
        order = rng.permutation(len(self.phrases))
        return " ".join([self.title, *(self.phrases[i] for i in order if rng.random() < keep)])

    @property
    def full(self) -> str:
        """All that can be said."""
        return " ".join([self.title, *self.phrases])


@dataclass(frozen=True)
class CaptionedPictures:
    """RGB uint8 [N, S, S, 3], parts uint8 [N, S, S] (0 none, 1 the first part), and captions."""

    images: np.ndarray
    parts: np.ndarray
    captions: tuple[Caption, ...]


@dataclass(frozen=True)
class Rings:
    """Animals from all around, RGBA uint8 over grey: inputs [N, 6, S, S, 4], targets [N, 2, 6, S, S, 4]."""

    inputs: np.ndarray
    targets: np.ndarray
    species: np.ndarray


def grid_places(first: int) -> list[tuple[int, int]]:
    """Where in a ring's targets (elevation, azimuth) the six views relative to input `first` lie."""
    return [(view % 2, (first + view) % 6) for view in range(6)]


def over(pictures: np.ndarray, ground: int) -> np.ndarray:
    """RGBA pictures over grey [..., 4] as RGB over another plain ground, uint8 [..., 3]."""
    rgb, alpha = pictures[..., :3], pictures[..., 3:]
    if ground == GREY:
        return np.ascontiguousarray(rgb)
    changed = rgb + (1 - alpha / np.float32(255)) * np.float32(ground - GREY)
    return np.rint(np.clip(changed, 0, 255)).astype(np.uint8)


def moved(picture: np.ndarray, ground: int, rng: np.random.Generator) -> np.ndarray:
    """A picture over a plain ground [S, S, 3], moved a little, and half the time with a rectangle hidden.

    So that few animals teach more: how it looks from elsewhere stays the same.
    """
    side = len(picture)
    most = max(side // 16, 1)
    wide = np.pad(picture, ((most, most), (most, most), (0, 0)), constant_values=ground)
    top, left = rng.integers(0, 2 * most, 2, endpoint=True)
    result = wide[top : top + side, left : left + side].copy()
    if rng.random() < 0.5:
        height, width = rng.integers(side // 8, 3 * side // 8, 2, endpoint=True)
        top, left = rng.integers(0, side - height), rng.integers(0, side - width)
        result[top : top + height, left : left + width] = ground
    return result


class ViewFolder:
    """A folder of `make_views.py`.

    Args:
        folder: Where it is.

    Raises:
        UserError: if it is not there or not finished.
    """

    def __init__(self, folder: Path) -> None:
        command = f"python prepare_data/make_views.py --out {folder}"
        path = folder / "views.json"
        if not path.is_file():
            raise UserError(f"expected pictures in {folder}; found no views.json; run: {command}")
        facts = read_json(path)
        self.folder, self.side = folder, int(facts["side"])
        self.parts = tuple(facts["parts"])
        self.fingerprint = fingerprint(facts["provenance"])
        self._files = facts["files"]
        missing = sum(not file.is_file() for kind in self._files for file in self.files(kind))
        if missing:
            raise UserError(
                f"expected {sum(self._files.values())} files of pictures in {folder}; {missing} are "
                f"missing; run: {command}"
            )

    def files(self, kind: str) -> list[Path]:
        """The files of a kind, "pictures-train" or "rings-val" say, in order."""
        return [self.folder / f"{kind}-{number:04d}.npz" for number in range(self._files[kind])]

    def _columns(self, kind: str, names: Sequence[str]) -> list[np.ndarray]:
        found: list[list[np.ndarray]] = [[] for _ in names]
        for file in self.files(kind):
            with np.load(file, allow_pickle=False) as data:
                for column, name in zip(found, names):
                    column.append(data[name])
        return [np.concatenate(column) for column in found]

    def captions(self, split: str) -> tuple[Caption, ...]:
        """Captions of the pictures of a split."""
        (texts,) = self._columns(f"pictures-{split}", ["caption"])
        return tuple(Caption.from_json(str(text)) for text in texts)

    def pictures(self, split: str) -> CaptionedPictures:
        """Captioned pictures of "train" or "val"."""
        images, parts = self._columns(f"pictures-{split}", ["image", "parts"])
        return CaptionedPictures(images, parts, self.captions(split))

    def rings(self, split: str) -> Rings:
        """Animals from all around of "train" or "val"."""
        return Rings(*self._columns(f"rings-{split}", ["inputs", "targets", "species"]))

    def ring_inputs(self, split: str) -> np.ndarray:
        """Inputs of the rings of a split alone, RGBA uint8 [N, 6, S, S, 4]."""
        return self._columns(f"rings-{split}", ["inputs"])[0]

    def words(self) -> list[str]:
        """All words of captions, sorted."""
        captions = [*self.captions("train"), *self.captions("val")]
        return sorted({word for caption in captions for word in caption.full.split()})


def all_images(pictures: CaptionedPictures, rings: Rings, limit: int | None = None) -> np.ndarray:
    """What the autoencoder learns, RGB uint8 [N, S, S, 3]: pictures, and the rings over grey and white.

    Args:
        pictures: With captions.
        rings: From all around.
        limit: At most so many, evenly from all.
    """

    def chunks() -> Iterator[np.ndarray]:
        yield pictures.images
        side = pictures.images.shape[1]
        for ground in (GREY, WHITE):
            for start in range(0, len(rings.inputs), _CHUNK):
                some = over(rings.inputs[start : start + _CHUNK], ground)
                yield some.reshape(-1, side, side, 3)
        yield over(rings.targets, GREY).reshape(-1, side, side, 3)

    images = np.concatenate(list(chunks()))
    if limit is None or limit >= len(images):
        return images
    return images[np.linspace(0, len(images) - 1, limit).astype(int)]


def ring_item(rings: Rings, index: int, first: int, ground: int) -> tuple[np.ndarray, np.ndarray]:
    """Input RGB [S, S, 3] over a ground and its true views RGBA [6, S, S, 4]."""
    image = over(rings.inputs[index, first], ground)
    views = np.stack([rings.targets[index][place] for place in grid_places(first)])
    return image, views
