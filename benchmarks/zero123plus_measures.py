"""What points of animals are worth: as keypoints, when the picture moves, and as places of the body."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from benchmarks.zero123plus_baselines import Labelled
from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.plan import plan_labelled
from prepare_data.diorama.subjects import PARTS
from prepare_data.diorama.views import surface_parts
from prepare_data.diorama.world import ATTEMPTS, Studio, world_dir
from pseudolabels.zero123plus.crops import read_crops
from pseudolabels.zero123plus.naming import (
    THRESHOLD,
    FrameChoice,
    choose_regressor,
    mean_error,
    to_image,
)
from pseudolabels.zero123plus.tokens import as_images
from pseudolabels.zero123plus.warps import WarpRanges, random_warp, warp, warp_points
from wildshape.crops import image_paths
from wildshape.files import atomic_path, read_json
from wildshape.metrics import keypoint_errors
from wildshape.stage import progress
from wildshape.training_data import labelled
from wildshape.workspace import Workspace

Finder = Callable[[np.ndarray], np.ndarray]
"""Points [B, K, 2] in 0..1 of crops uint8 [B, S, S, 3]."""
NEAR = 0.03
"""A point that misses the animal by less, in sides of its box, stands on the part that is nearest."""
_ROUNDS = 6  # in which `part_splits` may have drawn a picture anew


def read_labelled(workspace: Workspace, split: str, size: int) -> Labelled:
    """The labelled animals of a split that have keypoints and a crop of ``size`` pixels."""
    records = labelled(workspace, split, workspace.category.skeleton)[0]
    table = workspace.load("labels")
    place = table.lookup("instance_id")
    paths = image_paths(workspace.load("labelled_images"), workspace)
    crops = read_crops(table.take([place[name] for name in records.instance_ids]), paths, size, split)
    row = {name: i for i, name in enumerate(records.instance_ids)}
    return Labelled(crops.crops, records.take([row[name] for name in crops.instance_ids]))


@dataclass(frozen=True)
class Found:
    """Points in 0..1 of crops.

    Attributes:
        train: [N, K, 2], of the labelled animals of train.
        test: [M, K, 2], of those of test.
        moved: [L, K, 2], of the first L of test, their crops having been moved.
    """

    train: np.ndarray
    test: np.ndarray
    moved: np.ndarray


def moved_crops(crops: np.ndarray, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Crops uint8 [L, S, S, 3] transformed as in training, and the transforms [L, 2, 3]."""
    ranges = WarpRanges()
    thetas = torch.stack(
        [random_warp(ranges, np.random.default_rng([seed, 41, i])) for i in range(len(crops))]
    )
    moved = warp(as_images(torch.from_numpy(np.ascontiguousarray(crops))), thetas, fill=1.0)
    return np.rint(255 * moved.permute(0, 2, 3, 1).numpy()).clip(0, 255).astype(np.uint8), thetas


def equivariance(found: Found, thetas: torch.Tensor, side: int) -> dict[str, float]:
    """How far from where they should be points are in moved crops, in pixels of a crop of ``side``.

    Points whose place has left the frame do not count.
    """
    here = torch.from_numpy(found.test[: len(found.moved)]).float() * side
    gone = warp_points(here, thetas, side, side).numpy()
    inside = ((gone > 0) & (gone < side)).all(-1)
    distance = np.linalg.norm(gone - found.moved * side, axis=-1)[inside]
    if not len(distance):
        return {"mean_px": float("nan"), "median_px": float("nan")}
    return {"mean_px": float(distance.mean()), "median_px": float(np.median(distance))}


def as_keypoints(
    found: Found, train: Labelled, test: Labelled, seed: int, frame: FrameChoice = "auto"
) -> tuple[dict[str, Any], np.ndarray]:
    """Fit the regressor on train and measure its keypoints on test.

    Returns:
        ``pck`` in percent, ``error`` in percent of the box's longer side, ``left_out`` (the regressor's
        own estimate, in percent of the crop's side), ``frame``, and ``by_instance``: the keypoints of each
        animal that count, those that are right and the sum of errors. And all of test's keypoints
        [M, J, 2] in image pixels.
    """
    regressor, _ = choose_regressor(found.train, train.records, frame)
    records = test.records
    xy = to_image(regressor(found.test), records.box_xyxy)
    error = np.where(records.counts, keypoint_errors(xy, records.xy, records.box_side), np.inf)
    total, right = records.counts.sum(1), (error <= THRESHOLD).sum(1)
    summed = np.where(records.counts, error, 0.0).sum(1)
    return {
        "pck": 100 * float(right.sum() / total.sum()),
        "error": 100 * float(summed.sum() / total.sum()),
        "left_out": 100 * mean_error(regressor),
        "frame": regressor.frame,
        "by_instance": {
            "instance_id": [f"{seed}/{name}" for name in records.instance_ids],
            "keypoints": total.tolist(),
            "keypoints_right": right.tolist(),
            "error_sum": summed.tolist(),
        },
    }, xy


def true_parts(workspace: Workspace) -> dict[str, np.ndarray]:
    """Which part of its animal each pixel of the test photos shows, by instance.

    The photos are rendered again, with the meshes that a world does not keep. Copies are left out.

    Returns:
        uint8 [H, W] by instance id: 0 where the animal is not seen, else 1 + position in `PARTS`.
    """
    path = workspace.run_dir / "benchmark_parts.npz"
    if path.exists():
        with np.load(path) as archive:
            return {name: archive[name] for name in archive}
    settings = read_json(world_dir(workspace) / "world.json")["provenance"]["config"]
    config = DioramaConfig(**{name: settings[name] for name in DioramaConfig.__dataclass_fields__})
    studio = Studio(config, workspace)
    entries = {entry.key: entry for entry in plan_labelled(config)}
    table, parts = workspace.load("labels"), {}
    rows = [
        row for row in table.take(table["split"] == "test").rows() if not entries[row["source_id"]].copy
    ]
    for row in progress(rows, "parts", total=len(rows), unit="photo"):
        for again in range(_ROUNDS):
            picture = studio.picture(entries[row["source_id"]], ATTEMPTS * again)
            animal = picture.animals[0] if picture.animals else None
            known = row["visible"] > 0
            if animal is not None and np.allclose(animal.xy_image[known], row["xy"][known]):
                assert picture.surface is not None
                surface = picture.surface
                shown = surface_parts(surface.projected, surface.faces, surface.part, animal.mask.shape)
                parts[row["instance_id"]] = np.where(animal.mask, shown, 0).astype(np.uint8)
                break
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(handle, **parts)
    return parts


def parts_under(xy_image: np.ndarray, parts: np.ndarray, reach: float) -> np.ndarray:
    """The part [K] under points [K, 2] in image pixels: that of the nearest pixel of the animal.

    Args:
        xy_image: points.
        parts: uint8 [H, W], 0 where the animal is not seen.
        reach: pixels beyond which a point stands on no part: 0.
    """
    if not parts.any():
        return np.zeros(len(xy_image), np.int64)
    _, (rows, columns) = distance_transform_edt(parts == 0, return_indices=True)
    height, width = parts.shape
    column, row = np.rint(xy_image).astype(int).T
    column, row = column.clip(0, width - 1), row.clip(0, height - 1)
    nearest = np.stack([columns[row, column], rows[row, column]], 1)
    near = np.linalg.norm(nearest - xy_image, axis=1) <= max(reach, 1.0)
    return np.where(near, parts[nearest[:, 1], nearest[:, 0]], 0).astype(np.int64)


def part_consistency(part: np.ndarray) -> dict[str, Any]:
    """Whether points stay on the same part from animal to animal.

    Args:
        part: [M, K], the part under each point of each animal, 0 where it stands on none.

    Returns:
        ``same_part``: share of points, in percent, on the part where that point stands most often.
        ``by_chance``: share of the part on which most of all points stand: who knows nothing of parts has
        as much. ``off``: share that stands on none, which is never the same. ``parts``: how many parts
        are some point's. ``information``: of a point's number about its part, in percent of the parts'
        entropy.
    """
    count, points = part.shape
    times = np.stack([(part == number).sum(0) for number in range(1, len(PARTS) + 1)])  # [parts, K]
    everything = max(count * points, 1)
    joint = np.vstack([(part == 0).sum(0), times]) / everything
    of_part, of_point = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        mutual = np.nansum(joint * np.log(joint / (of_part * of_point)))
        entropy = -np.nansum(of_part * np.log(of_part))
    return {
        "same_part": 100 * float(times.max(0).sum() / everything),
        "by_chance": 100 * float(times.sum(1).max() / everything),
        "off": 100 * float((part == 0).mean()) if part.size else float("nan"),
        "parts": len(np.unique(times.argmax(0)[times.max(0) > 0])),
        "information": 100 * float(mutual / entropy) if entropy > 1e-12 else 0.0,
    }


def on_parts(found: Found, test: Labelled, parts: dict[str, np.ndarray]) -> dict[str, Any]:
    """`part_consistency` of the points of test, over the animals whose parts are known."""
    records = test.records
    xy = to_image(found.test, records.box_xyxy)
    rows = [i for i, name in enumerate(records.instance_ids) if name in parts]
    sides = records.box_side
    under = [parts_under(xy[i], parts[records.instance_ids[i]], NEAR * sides[i]) for i in rows]
    empty = np.zeros((0, found.test.shape[1]), np.int64)
    return part_consistency(np.stack(under) if under else empty) | {"animals": len(rows)}


def with_few_labels(
    found: Found, train: Labelled, test: Labelled, numbers: tuple[int, ...], draws: int
) -> dict[str, list[dict[str, float]]]:
    """PCK and error on test by the number of labelled animals that the regressor is fitted on.

    The same animals are drawn for whoever is compared. All animals that there are make one draw.
    """
    results: dict[str, list[dict[str, float]]] = {}
    for number in numbers:
        whole = number >= len(train.records)
        for draw in range(1 if whole else draws):
            rows = np.random.default_rng([draw, 43]).permutation(len(train.records))[:number]
            fewer = Labelled(train.crops[rows], train.records.take(rows))
            part = Found(found.train[rows], found.test, found.moved)
            figures, _ = as_keypoints(part, fewer, test, 0)
            results.setdefault(str(number), []).append({key: figures[key] for key in ("pck", "error")})
    return results
