"""Points to compare unsupervised ones with: an untrained network's, clusters of pixels, and none."""

from __future__ import annotations

import importlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.cluster.vq import kmeans2

from pseudolabels.zero123plus.naming import choose_regressor
from wildshape.errors import UserError
from wildshape.files import read_json, write_json
from wildshape.records import AnimalRecords

WHITE = 250
"""A crop's pixel shows the animal where a channel is below this: beyond its mask a crop is white."""
PLACE_WEIGHTS = (0.5, 1.0, 2.0, 4.0)
"""Tried: weight of a pixel's place in its animal over that of its colour, both in standard deviations."""
_PIXELS = 200  # of each crop that clusters are fitted to
_ITERATIONS = 30


def mean_pose(crops: np.ndarray) -> np.ndarray:
    """Points [B, 2, 2] that look at nothing: a regressor learns the mean pose from them."""
    return np.full((len(crops), 2, 2), 0.5)


def pixel_features(crop: np.ndarray, place_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """What a crop's animal looks like, pixel by pixel.

    Colours are CIELAB less the animal's mean, so that a dark and a light coat compare; places are relative
    to the animal's middle, in units of its extent, so that a small animal compares with a large one.

    Args:
        crop: uint8 [S, S, 3], white beyond the animal.
        place_weight: see `PLACE_WEIGHTS`.

    Returns:
        xy [P, 2] in 0..1 of the crop, and features [P, 5], row by row; all pixels of a white crop.
    """
    rows, columns = np.nonzero((crop < WHITE).any(2))
    if not len(rows):
        rows, columns = (grid.ravel() for grid in np.indices(crop.shape[:2]))
    xy = (np.stack([columns, rows], 1) + 0.5) / np.array(crop.shape[1::-1])
    lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[rows, columns].astype(float)
    colour = (lab - lab.mean(0)) / max(float(np.sqrt(lab.var(0).sum())), 1.0)
    place = (xy - xy.mean(0)) / max(float(np.sqrt(xy.var(0).sum())), 1e-3)
    return xy, np.hstack([place_weight * place, colour])


class KMeansPoints:
    """Clusters of the animals' pixels by colour and place; a cluster's mean place in a crop is its point.

    A cluster that a crop has no pixel of stands at the place of its centre, relative to the animal.

    Args:
        crops: unlabelled crops uint8 [M, S, S, 3].
        number: K clusters.
        place_weight: see `PLACE_WEIGHTS`.
        seed: of the pixels that are drawn, and of the clusters' start (k-means++).
    """

    def __init__(self, crops: np.ndarray, number: int, place_weight: float, seed: int = 0) -> None:
        self.place_weight = place_weight
        drawn = []
        for i, crop in enumerate(crops):
            _, features = pixel_features(crop, place_weight)
            order = np.random.default_rng([seed, 37, i]).permutation(len(features))
            drawn.append(features[order[:_PIXELS]])
        everything = np.concatenate(drawn)
        if len(everything) < number:
            raise UserError(f"expected at least {number} pixels of animals; found {len(everything)}")
        centres, _ = kmeans2(everything, number, iter=_ITERATIONS, minit="++", seed=seed)
        self.centres = centres[np.lexsort(centres.T[::-1])]

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Points [B, K, 2] in 0..1 of crops uint8 [B, S, S, 3]."""
        return np.stack([self._points(crop) for crop in crops])

    def _points(self, crop: np.ndarray) -> np.ndarray:
        xy, features = pixel_features(crop, self.place_weight)
        nearest = ((features[:, None] - self.centres[None]) ** 2).sum(2).argmin(1)
        extent = max(float(np.sqrt(xy.var(0).sum())), 1e-3)
        points = xy.mean(0) + self.centres[:, :2] / self.place_weight * extent
        for cluster in np.unique(nearest):
            points[cluster] = xy[nearest == cluster].mean(0)
        return points


@dataclass(frozen=True)
class Labelled:
    """Crops uint8 [N, S, S, 3] of labelled animals, and their N records."""

    crops: np.ndarray
    records: AnimalRecords


def choose_kmeans(crops: np.ndarray, labelled: Labelled, number: int, seed: int = 0) -> KMeansPoints:
    """Clusters whose weight of the place names the labelled animals best, one being left out at a time."""
    tried = []
    for weight in PLACE_WEIGHTS:
        finder = KMeansPoints(crops, number, weight, seed)
        _, errors = choose_regressor(finder(labelled.crops), labelled.records)
        tried.append((min(errors.values()), weight, finder))
    return min(tried, key=lambda row: row[:2])[2]


def model_folder(source: str) -> Path:
    """The folder of a model.

    Raises:
        UserError: it is a repository or not there.
    """
    if source == "small":
        folder = importlib.import_module("pseudolabels.zero123plus.small_model").SMALL
    else:
        folder = Path(source).expanduser()
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"--model: expected small or a folder in diffusers' layout; found none at {folder}; train a "
            "small one: python pseudolabels/zero123plus/train_small.py"
        )
    return folder


def untrained(source: str, out: Path, seed: int = 0) -> Path:
    """A copy of a model's folder whose U-Net has random weights; all else is the model's.

    Args:
        source: as of `model_folder`.
        out: its folder; one of the same U-Net configuration and seed stays.
        seed: of the weights.
    """
    import torch
    from diffusers import UNet2DConditionModel

    folder = model_folder(source).resolve()
    files = {
        str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    facts = {"of": str(folder), "seed": seed, "files": files}
    note = out / "untrained.json"
    if note.exists() and read_json(note) == facts:
        return out
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}")
    try:
        shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns("unet"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel.from_config(
                UNet2DConditionModel.load_config(folder, subfolder="unet")
            )
        unet.save_pretrained(temporary / "unet")
        write_json(temporary / note.name, facts)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out
