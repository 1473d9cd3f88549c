import math
from types import SimpleNamespace

import acsm_toy
import pytest
import torch

from acsm import geometry, train
from acsm.flip_consistency import flip_consistency_loss, mirrored_hypotheses
from acsm.model import ACSM, ACSMArchitecture, camera_biases
from acsm.published import published_biases
from acsm.task import FrozenShapeTask, ShapeTask, halves
from wildshape.errors import UserError

PART_MIRROR = torch.tensor(acsm_toy.template().part_mirror)


def prediction(batch=3, cameras=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def turns(*shape):
        return torch.nn.functional.normalize(normal(*shape, 4), dim=-1)

    return {
        "camera": torch.cat((normal(batch, cameras, 3), turns(batch, cameras)), dim=-1),
        "camera_prob": normal(batch, cameras).softmax(-1),
        "part_transforms": torch.cat((normal(batch, cameras, 8, 4), turns(batch, cameras, 8)), dim=-1),
    }


def mirror(value, hypotheses):
    """A prediction in the mirror, written down index by index."""
    result = {name: torch.empty_like(tensor) for name, tensor in value.items()}
    for c, other in enumerate(hypotheses.tolist()):
        s, tx, ty, w, x, y, z = value["camera"][:, other].unbind(-1)
        result["camera"][:, c] = torch.stack((s, -tx, ty, w, x, -y, -z), dim=-1)
        result["camera_prob"][:, c] = value["camera_prob"][:, other]
        for p, side in enumerate(PART_MIRROR.tolist()):
            s, tx, ty, tz, w, x, y, z = value["part_transforms"][:, other, side].unbind(-1)
            result["part_transforms"][:, c, p] = torch.stack((s, -tx, ty, tz, w, x, -y, -z), dim=-1)
    return result


def test_views_are_matched_by_what_they_see_in_the_mirror():
    assert mirrored_hypotheses(camera_biases(1)).tolist() == [0]
    assert mirrored_hypotheses(camera_biases(4)).tolist() == [0, 3, 2, 1]
    for biases in (camera_biases(8), published_biases(8)):
        assert mirrored_hypotheses(biases).tolist() == [0, 7, 6, 5, 4, 3, 2, 1]
    turned = geometry.quat_multiply(
        geometry.quat_from_axis_angle(torch.tensor((0.0, 1.0, 0.0)), torch.tensor(0.3)), camera_biases(3)
    )
    with pytest.raises(UserError, match="--flip_consistency: expected camera views that are symmetric"):
        mirrored_hypotheses(turned)


def test_symmetric_predictions_cost_nothing_and_others_do():
    hypotheses = mirrored_hypotheses(camera_biases(4))
    first = prediction()
    second = mirror(first, hypotheses)
    assert float(flip_consistency_loss(first, second, PART_MIRROR, hypotheses)) == pytest.approx(
        0, abs=1e-12
    )
    opposite = {**second, "camera": second["camera"] * torch.tensor([1, 1, 1, -1, -1, -1, -1])}
    same = flip_consistency_loss(first, opposite, PART_MIRROR, hypotheses)
    assert float(same) == pytest.approx(0, abs=1e-12), "q and -q are one rotation"
    assert float(flip_consistency_loss(first, first, PART_MIRROR, hypotheses)) > 0.5


def test_a_case_worked_out_by_hand():
    """A camera 10 degrees off, .1 too large and .3 too far right, one of eight parts 20 degrees off."""
    first = prediction(batch=1, cameras=1)
    hypotheses = torch.zeros(1, dtype=torch.long)
    second = mirror(first, hypotheses)

    def turned(q, degrees):
        axis = torch.tensor((0.0, 0.6, 0.8), dtype=torch.float64)
        turn = geometry.quat_from_axis_angle(axis, torch.tensor(math.radians(degrees), dtype=torch.float64))
        return geometry.quat_multiply(turn.expand_as(q), q)

    second["camera"][..., 3:] = turned(second["camera"][..., 3:], 10)
    second["camera"][..., 0] += 0.1
    second["camera"][..., 1] += 0.3
    second["part_transforms"][:, :, 4, 4:] = turned(second["part_transforms"][:, :, 4, 4:], 20)
    second["part_transforms"][:, :, 6, 3] += 0.2
    expected = math.sin(math.radians(5)) ** 2 + 0.01 + 0.09 + (math.sin(math.radians(10)) ** 2 + 0.04) / 8
    found = flip_consistency_loss(first, second, PART_MIRROR, hypotheses)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_gradients_reach_both_predictions():
    hypotheses = mirrored_hypotheses(camera_biases(2))
    values = [*prediction(1, 2).values(), *prediction(1, 2, seed=1).values()]
    names = list(prediction(1, 1))

    def loss(*tensors):
        first, second = dict(zip(names, tensors[:3])), dict(zip(names, tensors[3:]))
        return flip_consistency_loss(first, second, PART_MIRROR, hypotheses)

    inputs = [value.requires_grad_() for value in values]
    assert torch.autograd.gradcheck(loss, inputs)
    loss(*inputs).backward()
    assert all(value.grad.abs().sum() > 0 for value in inputs)


class Symmetric(ACSM):
    """A model that answers a mirrored picture with the mirrored answer: the brighter side tells."""

    def forward(self, images, *, articulated=True, vertices=False):
        value = prediction(1, self.arch.num_cameras)
        hypotheses = mirrored_hypotheses(self.camera_head.bias)
        other = mirror(value, hypotheses)
        left = images[:, 0, :, 0].mean(-1) > images[:, 0, :, -1].mean(-1)
        rows = [value if side else other for side in left.tolist()]
        result = {name: torch.cat([row[name] for row in rows]) for name in value}
        points = self.articulate(result["part_transforms"].float(), self.keypoint_vertices)
        return {**result, "keypoints_ndc": geometry.project(points, result["camera"].float())}


def batch_of(count=3, size=64):
    ramp = torch.linspace(0, 255, size).to(torch.uint8)
    crop = ramp[None, None, :, None].expand(count, size, size, 3).contiguous()
    crop[1] = crop[1].flip(1)
    return {
        "crop": crop,
        "target_ndc": torch.zeros(count, 16, 2),
        "weight": torch.ones(count, 16),
        "guide": torch.tensor([1.0, 0, 0, 0, 0]).repeat(count, 1),
    }


def task_of(model, **settings):
    """A task without animals, for its loss."""
    task = ShapeTask.__new__(ShapeTask)
    task.model, task._articulate_from = model, 0
    task.config = train.Config(category="stick", image_size=64, flip_consistency=0.5, **settings)
    task._hypotheses = mirrored_hypotheses(model.camera_head.bias)
    return task


@pytest.mark.parametrize("flip", ["random", "both"])
@pytest.mark.parametrize("cameras", [1, 4])
def test_a_symmetric_model_is_consistent_and_another_learns(flip, cameras):
    arch = ACSMArchitecture(image_size=64, num_cameras=cameras, camera="angles")
    torch.manual_seed(0)
    symmetric, other = (kind(acsm_toy.template(), arch) for kind in (Symmetric, ACSM))
    _, terms = task_of(symmetric, flip=flip).loss(batch_of(), 1)
    assert terms["flip"] == pytest.approx(0, abs=1e-6)
    task = task_of(other.train(), flip=flip)
    loss, terms = task.loss(batch_of(), 1)
    assert terms["flip"] > 1e-4
    loss.backward()
    assert other.part_head.axis.grad.abs().sum() > 0
    # The weight is on it, and the targets are compared with as many images as without it.
    plain = task_of(other.eval(), flip=flip)
    total, with_flip = plain.loss(batch_of(), 1)
    plain._hypotheses = None
    alone, without = plain.loss(batch_of(), 1)
    assert float((total - alone).detach()) == pytest.approx(0.5 * with_flip["flip"], abs=1e-5)
    assert with_flip["keypoints"] == pytest.approx(without["keypoints"], rel=1e-5)


def test_a_frozen_encoder_looks_at_both_sides():
    first, second = halves({"camera": torch.arange(4)})
    assert first["camera"].tolist() == [0, 1] and second["camera"].tolist() == [2, 3]
    batch = {"features": torch.zeros(2, 1), "mirrored": torch.ones(2, 1)}
    both = FrozenShapeTask.with_mirrored(SimpleNamespace(), batch)
    assert both["features"][:, 0].tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match="--flip_consistency: expected at least 0; found -1"):
        train.Config(category="stick", flip_consistency=-1)
