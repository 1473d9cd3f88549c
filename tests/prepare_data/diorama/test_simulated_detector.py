"""The detector of the synthetic world: faultless or erring as stated, by pixels alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from prepare_data.diorama.lookup import Lookup
from prepare_data.diorama.simulated_detector import DetectorErrors, SimulatedDetector, make
from prepare_data.diorama.world import world_dir
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.workspace import Workspace


def detector_of(world: Workspace, **errors: float) -> SimulatedDetector:
    return SimulatedDetector(
        world_dir(world), world.load("truth"), "horse", {"horse": "horse", "cow": "cow"},
        DetectorErrors(**errors),
    )  # fmt: skip


def web_images(world: Workspace) -> list[np.ndarray]:
    return [read_image(world.image_file(path)) for path in world.load("truth_images")["path"]]


PERFECT = {"miss": 0, "hidden_miss": 0, "false_alarm": 0, "confusion": 0, "jitter": 0, "unsure": 0}


def test_a_faultless_detector_gives_the_truth(world: Workspace) -> None:
    truth, images = world.load("truth"), world.load("truth_images")
    found = detector_of(world, **PERFECT)(web_images(world))
    for image_id, (boxes, scores, labels) in zip(images["image_id"], found):
        rows = np.flatnonzero(truth["image_id"] == image_id)
        assert boxes.shape == (len(rows), 4) and labels == list(truth["category"][rows])
        np.testing.assert_allclose(boxes, truth["box_xyxy"][rows] + 0.5, atol=1e-3)
        assert (scores >= 0.95).all()


def test_the_detector_errs_as_stated(world: Workspace) -> None:
    images = web_images(world)
    total = len(world.load("truth"))
    counts = []
    for seed in range(12):
        errors = {**PERFECT, "miss": 0.2, "hidden_miss": 0.2, "jitter": 0.02, "unsure": 0.3, "seed": seed}
        found = detector_of(world, **errors)(images)
        scores = np.concatenate([scores for _, scores, _ in found])
        counts.append((len(scores), (scores < 0.95).sum()))
    kept, unsure = np.sum(counts, axis=0)
    n = 12 * total
    assert abs(kept / n - 0.8) < 4 * (0.16 / n) ** 0.5
    assert abs(unsure / kept - 0.3) < 4 * (0.21 / kept) ** 0.5
    alarms = [detector_of(world, **{**PERFECT, "false_alarm": 0.5, "seed": s})(images) for s in range(6)]
    extra = sum(len(scores) for found in alarms for _, scores, _ in found) - 6 * total
    assert abs(extra / (6 * 40) - 0.5) < 4 * (0.25 / 240) ** 0.5
    confused = detector_of(world, **{**PERFECT, "confusion": 1.0})(images)
    assert {label for _, _, labels in confused for label in labels} == {"horse"}


def test_the_detector_depends_on_pixels_alone(world: Workspace) -> None:
    images = web_images(world)
    detector = detector_of(world)
    together = detector(images)
    apart = [detector([image])[0] for image in images[::-1]][::-1]
    for (a, s, names), (b, t, others) in zip(together, apart):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(s, t)
        assert names == others
    shifted = np.clip(images[0].astype(int) + 1, 0, 255).astype(np.uint8)  # another decoder
    assert Lookup(world_dir(world)).find(shifted) == world.load("truth_images")["image_id"][0]
    boxes, scores, names = detector([np.zeros((50, 60, 3), np.uint8)])[0]
    assert boxes.shape == (0, 4) and len(scores) == 0 and names == []


def test_detector_options(world: Workspace) -> None:
    request = SimpleNamespace(workspace=world, opts={"miss": "0.25", "seed": "3"})
    detector = make(request)
    assert detector.errors == DetectorErrors(miss=0.25, seed=3) and "simulated" in detector.name
    for opts, message in (
        ({"luck": "1"}, "--opts: expected one of .*; found luck"),
        ({"miss": "often"}, "--opts miss: expected a number; found often"),
        ({"miss": "2"}, "--opts miss: expected 0 to 1; found 2"),
    ):
        with pytest.raises(UserError, match=message):
            make(SimpleNamespace(workspace=world, opts=opts))
    with pytest.raises(UserError, match="run: wildshape make-diorama --category cow"):
        make(SimpleNamespace(workspace=Workspace(world.root, "cow"), opts={}))
