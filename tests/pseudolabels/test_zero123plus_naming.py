"""Points of crops by hand, how they are named, and what learning them takes from the model."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from pose_world import KEYPOINTS
from torch.nn import functional

from pseudolabels import train_tokens
from pseudolabels.zero123plus import naming
from pseudolabels.zero123plus.points import PointFinder, PointPseudoLabels
from pseudolabels.zero123plus.token_file import TokenFile
from pseudolabels.zero123plus.tokens import Tokens, TokenTask
from wildshape.errors import UserError
from wildshape.records import AnimalRecords


class Darkness:
    """Attention where a picture is dark; a second token looks where it is not."""

    device = torch.device("cpu")
    reading = SimpleNamespace(side=64, published=False)

    def noise_shape(self, size):
        return 1, 4, 4

    def attention(self, images, embedding, noise, kept=None):
        dark = functional.interpolate(1 - images.mean(1, keepdim=True), size=(64, 64), mode="area")
        found = torch.cat((1 - dark, dark), 1)
        return found if kept is None else found[:, kept]


@pytest.mark.parametrize(("views", "power"), [(0, 0.0), (6, 0.0), (0, 3.0), (6, 3.0)])
def test_points_are_where_they_are_seen_in_the_photo(tmp_path, views, power):
    """A dot's centre comes back in image pixels, from a box that is neither square nor whole."""
    dot, (y, x) = np.array([57.3, 41.8]), np.mgrid[:100, :140]
    dark = np.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / (2 * 2.0**2))
    cv2.imwrite(str(tmp_path / "dot.png"), np.rint(255 * (1 - dark)).astype(np.uint8))
    tokens = TokenFile(torch.zeros(2, 3), torch.tensor([1]), torch.zeros(2), {"image_size": 64})
    stage = PointPseudoLabels(
        PointFinder(Darkness(), tokens, views, power=power), {"i": tmp_path / "dot.png"}
    )
    row = {
        "instance_id": "a", "image_id": "i", "mask_rle": None,
        "box_xyxy": np.array([20.2, 11.7, 95.4, 70.1]),
    }  # fmt: skip
    lost = {**row, "instance_id": "b", "image_id": "none"}
    prepared = [stage.prepare(row), stage.prepare(lost)]
    columns = stage({name: np.array([item[name] for item in prepared]) for name in prepared[0]})
    assert columns["instance_id"].tolist() == ["a"] and stage.problem(lost) == "no file of image none"
    np.testing.assert_allclose(columns["xy"][0, 0], dot, atol=0.35)
    assert columns["confidence"][0, 0] > 0.6
    nothing = stage({name: np.array([prepared[1][name]]) for name in prepared[1]})
    assert nothing["xy"].shape == (0, 1, 2)


def labelled(count, rng, frame):
    """Animals whose keypoints follow from four points; turned at will if that frame is the points'."""
    base = np.array([[0.0, 0.0], [3.0, 0.4], [0.5, 1.0], [2.5, 1.3]])
    template = rng.uniform(0, 3, (KEYPOINTS, 2))
    xy, points = [], []
    for _ in range(count):
        angle = rng.uniform(-np.pi, np.pi) if frame == "points" else 0.0
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        scale, shift = rng.uniform(8, 12), rng.uniform(60, 70, 2)
        points.append((base * scale) @ turn.T + shift)
        xy.append((template * scale) @ turn.T + shift)
    records = AnimalRecords(
        tuple(f"a{i}" for i in range(count)), (None,) * count, np.tile([10.0, 10, 110, 100], (count, 1)),
        np.array(xy), np.ones((count, KEYPOINTS)), np.full((count, 7), np.nan),
    )  # fmt: skip
    return records, np.array(points)


@pytest.mark.parametrize("frame", ["box", "points"])
def test_the_better_frame_is_taken_and_tells_how_sure_it_is(frame):
    records, points = labelled(14, np.random.default_rng(3), frame)
    if frame == "box":
        points = points + np.random.default_rng(1).normal(0, 0.01, points.shape)
    records.weight[:, 2] = 0
    unit = naming.to_unit(points, records.box_xyxy)
    regressor, errors = naming.choose_regressor(unit, records)
    assert set(errors) == {"box", "points"}
    assert regressor.frame == min(errors, key=errors.get)
    if frame == "points":
        assert regressor.frame == "points" and errors["points"] < 0.1 * errors["box"]
    xy, confidence = naming.named(regressor, points, np.full((14, 4), 0.5), records.box_xyxy)
    known = np.arange(KEYPOINTS) != 2
    np.testing.assert_allclose(xy[:, known], records.xy[:, known], atol=1.5)
    assert (confidence[:, 2] == 0).all() and (confidence[:, known] > 0.4).all() and confidence.max() <= 0.5
    facts = naming.measure(regressor, unit, records, naming.mean_position(records))
    assert facts["pck@0.1"] == 1 and facts["error_percent"] < 2
    assert naming.choose_regressor(unit, records, "box")[0].frame == "box"
    published, tried = naming.choose_regressor(unit, records, "published")
    assert set(tried) == {"published"} and not published.bias.any()


def test_published_is_as_published():
    """The settings of the released code; numbers of its single steps are in tests/data/stable_keypoints."""
    config = train_tokens.Config(category="cow", published=True).for_model(1024, 64)
    settings = config.settings
    assert (config.num_tokens, config.steps, config.batch_size, config.lr) == (500, 200, 4, 5e-3)
    assert (settings.candidates, settings.taught, settings.sigma) == (25, 10, 2.0)
    assert (settings.sharpen, settings.equivariance) == (100.0, 1000.0)
    assert (settings.fill, settings.masked, config.side, config.layers) == (0.0, False, 128, 3)
    assert train_tokens.Config(category="cow").settings.fill == 1.0
    ranges = settings.ranges
    assert (ranges.rotation_deg, ranges.scale, ranges.shift) == (15.0, (0.8, 1.0), 0.25)
    assert (train_tokens.PUBLISHED_POINTS, train_tokens.PUBLISHED_NOISE) == (10, -1)
    task = TokenTask(Tokens(25, 4), None, [], [], settings, (4, 2, 2), config.lr)
    (group,) = task.optimizer.param_groups
    assert isinstance(task.optimizer, torch.optim.AdamW) and group["weight_decay"] == 1e-4


def test_learning_rate_and_blobs_suit_the_model():
    def of(width, latents, **changes):
        chosen = train_tokens.Config(category="cow", **changes).for_model(width, latents)
        return chosen.lr, chosen.settings.sigma

    assert of(1024, 64) == of(768, 64) == (5e-3, 2.0)  # Stable Diffusion at 512 pixels, as published
    assert of(96, 16) == (0.04, 8.0) and of(96, 16, published=True) == (0.04, 2.0)
    assert of(96, 16, lr=0.01, sigma=3.0) == (0.01, 3.0)
    settings = train_tokens.Config(category="cow"), train_tokens.Config(category="cow", published=True)
    assert [config.noise for config in settings] == [-13, -1]
    assert train_tokens.Config(category="cow", published=True, noise_step=-5).noise == -5
    sides = [settings[0].for_model(96, latents).side for latents in (16, 40, 64, 96)]
    assert sides == [32, 80, 128, 128]
    assert train_tokens.Config(category="cow", side=20).for_model(96, 16).side == 20
    for flag in ("lr", "sigma"):
        with pytest.raises(UserError, match=f"--{flag}: expected more than 0; found 0"):
            train_tokens.Config(category="cow", **{flag: 0.0})
