import math
import subprocess
import sys

import acsm_toy
import numpy as np
import pytest
import torch
from acsm_golden import template as golden_template

from acsm import geometry
from acsm.camera_fit import guiding_cameras
from acsm.layers import Stack, StackedLinear
from acsm.losses import LossWeights, total_loss
from acsm.metrics import auc, camera_errors
from acsm.model import ACSM, ACSMArchitecture, active_mask, best_camera
from acsm.predict import normalise, pack_template, template_hash, unpack_template
from wildshape.errors import UserError


def model(**settings):
    torch.manual_seed(0)
    return ACSM(acsm_toy.template(), ACSMArchitecture(image_size=64, **settings))


def test_stacked_layers_equal_single_ones():
    torch.manual_seed(0)
    layer = StackedLinear(3, 5, 4)
    own = torch.randn(2, 3, 5)
    single = [torch.nn.functional.linear(own[:, i], layer.weight[i], layer.bias[i]) for i in range(3)]
    torch.testing.assert_close(layer(own), torch.stack(single, dim=1))
    shared = torch.randn(2, 5)
    torch.testing.assert_close(layer(shared), layer(shared[:, None].expand(2, 3, 5)))
    stack = Stack(3, 5, 4)
    torch.testing.assert_close(stack(shared), stack(shared[:, None].expand(2, 3, 5)))


@pytest.mark.parametrize(
    ("cameras", "kind"), [(1, "turntable"), (1, "quaternion"), (8, "angles"), (2, "turntable")]
)
def test_shapes_and_rest(cameras, kind):
    net = model(num_cameras=cameras, camera=kind)
    images = torch.randn(2, 3, 64, 64)
    result = net.predict(images)
    shapes = {
        "camera": (2, cameras, 7), "camera_prob": (2, cameras),
        "part_transforms": (2, cameras, 8, 8), "vertices": (2, cameras, 16, 3),
        "keypoints_ndc": (2, cameras, 16, 2),
    }  # fmt: skip
    assert {name: tuple(value.shape) for name, value in result.items()} == shapes
    assert net.training  # predict leaves the mode as it was
    torch.testing.assert_close(result["camera_prob"].sum(1), torch.ones(2))
    torch.testing.assert_close(result["camera"][..., 3:].norm(dim=-1), torch.ones(2, cameras))
    best = best_camera(result)
    picked = result["camera"][torch.arange(2), result["camera_prob"].argmax(1)]
    torch.testing.assert_close(best["camera"], picked)
    rest = net(images, articulated=False, vertices=True)
    torch.testing.assert_close(
        rest["vertices"], net.vertices.expand_as(rest["vertices"]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        result["keypoints_ndc"],
        geometry.project(result["vertices"][..., net.keypoint_vertices, :], result["camera"]),
    )


@pytest.mark.parametrize("kind", ["turntable", "quaternion", "angles"])
def test_starts_upright_near_rest(kind):
    result = model(camera=kind).predict(torch.randn(4, 3, 64, 64))
    up = geometry.quat_rotate(result["camera"][:, 0, 3:], torch.tensor([[[0.0, 0, 1]]]))
    assert (up[..., 1] < -0.9).all()  # template up is image up (-y)
    assert (result["part_transforms"][..., 4] > 0.98).all()


def test_inactive_parts_keep_the_identity():
    names = acsm_toy.template().part_names
    active = np.array([name != "tail" for name in names])
    net = ACSM(acsm_toy.template(active), ACSMArchitecture(image_size=64))
    with torch.no_grad():
        net.part_head.output.bias[:, 1] = 1.0
    transforms = net.predict(torch.randn(2, 3, 64, 64))["part_transforms"]
    tail = transforms[:, 0, names.index("tail")]
    torch.testing.assert_close(tail, torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0]] * 2))
    assert (transforms[:, 0, active][..., 4] < 0.99).all()
    np.testing.assert_array_equal(active_mask(["body", "tail"], names)[:4], [1, 0, 0, 1])
    with pytest.raises(UserError, match="active_parts"):
        active_mask(["wing"], names)


def test_mirrored_predictions_project_to_mirrored_keypoints():
    net = model()
    result = net.predict(torch.randn(3, 3, 64, 64))
    transforms = geometry.mirror_part_transforms(result["part_transforms"], net.part_mirror)
    camera = geometry.mirror_camera(result["camera"])
    points = net.articulate(transforms, net.keypoint_vertices)
    mirrored = geometry.project(points, camera)[:, :, net.keypoint_flip]
    expected = result["keypoints_ndc"] * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(mirrored, expected, atol=1e-5, rtol=0)


def test_bfloat16_encoder_keeps_the_geometry_in_float32():
    net = model().eval()
    images = torch.randn(2, 3, 64, 64)
    plain = net.predict(images)
    with torch.autocast("cpu", torch.bfloat16):
        result = net.predict(images)
    assert result["keypoints_ndc"].dtype == torch.float32
    torch.testing.assert_close(result["camera"][..., 3:].norm(dim=-1), torch.ones(2, 1), atol=1e-5, rtol=0)
    assert (result["keypoints_ndc"] - plain["keypoints_ndc"]).abs().max() < 0.1


def test_wrong_image_size_is_refused():
    with pytest.raises(UserError, match=r"expected images \[B, 3, 64, 64\]"):
        model()(torch.zeros(1, 3, 96, 96))
    with pytest.raises(UserError, match="at least 64"):
        ACSM(acsm_toy.template(), ACSMArchitecture(image_size=32))


def test_template_survives_a_checkpoint(tmp_path):
    template = acsm_toy.template()
    torch.save(pack_template(template), tmp_path / "t.pt")
    back = unpack_template(torch.load(tmp_path / "t.pt", weights_only=True))
    assert template_hash(back) == template_hash(template)
    other = acsm_toy.template(np.array([True] * 7 + [False]))
    assert template_hash(other) != template_hash(template)
    assert template_hash(golden_template()) != template_hash(template)


def test_parts_move_where_translations_are_asked_for():
    """A front paw goes with its own part, a part's children with it, and what may not move stays."""
    shifts = torch.zeros(8, 3)
    shifts[1] = torch.tensor([0.0, 0.1, 0.2])  # neck, the head's parent
    shifts[4] = torch.tensor([0.3, 0.0, -0.1])  # left front leg
    shifts[7] = torch.tensor([9.0, 9.0, 9.0])  # right back leg, which is not active
    active = np.array([False] + [True] * 6 + [False])

    def moved(**settings):
        net = ACSM(acsm_toy.template(active), ACSMArchitecture(image_size=64, **settings)).eval()
        output = net.part_head.output
        with torch.no_grad():
            output.weight.zero_()
            output.bias[:, 3:] = shifts
        predicted = net.predict(torch.randn(2, 3, 64, 64))
        found = predicted["part_transforms"][:, 0, :, 1:4]
        return found, predicted["vertices"][:, 0] - net.vertices

    found, vertices = moved(translations=True)
    torch.testing.assert_close(found, (shifts * torch.tensor(active)[:, None]).expand(2, 8, 3))
    expected = torch.zeros(16, 3)
    expected[:6] = shifts[1]  # eyes, ears, nose and throat
    expected[12] = shifts[4]
    torch.testing.assert_close(vertices, expected.expand(2, 16, 3), atol=1e-6, rtol=0)
    found, vertices = moved()
    assert not found.any() and vertices.abs().max() < 1e-6


@pytest.mark.parametrize("sign", [1, -1])
def test_cameras_turn_from_their_fixed_views_as_far_as_their_ranges(sign):
    """Azimuth first, then elevation, then roll, each as far as it goes."""
    net = model(num_cameras=8, camera="angles", angle_ranges_deg=(20.0, 10.0, 5.0)).eval()
    head = net.camera_head
    with torch.no_grad():
        head.output.weight.zero_()
        head.output.bias[:, :3] = sign * 50
        rotation = head(torch.zeros(1, net.arch.features))[0][0, :, 3:]
    turned = geometry.quat_to_matrix(rotation) @ geometry.quat_to_matrix(head.bias).transpose(1, 2)
    (ca, sa), (ce, se), (cr, sr) = (
        (math.cos(angle), math.sin(angle)) for angle in np.radians([20, 10, 5]) * sign
    )
    about_y = np.array([[ca, 0, sa], [0, 1, 0], [-sa, 0, ca]])
    about_x = np.array([[1, 0, 0], [0, ce, -se], [0, se, ce]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    expected = np.broadcast_to(about_z @ about_x @ about_y, (8, 3, 3))
    np.testing.assert_allclose(turned.numpy(), expected, atol=1e-5)


def test_importing_the_package_stays_light():
    code = "import sys, acsm; assert acsm.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def overfit(steps, count, seed=0):
    """Train on a few dotted pictures; AUC and camera errors on the same."""
    camera, xy = acsm_toy.scenes(count, seed=1)
    crops = torch.tensor(np.stack([acsm_toy.picture(points, 64) for points in xy]))
    target, weight = torch.tensor(xy, dtype=torch.float32), torch.ones(count, 16)
    boxes = np.tile([-1.0, -1, 1, 1], (count, 1))
    fitted, trust = guiding_cameras(acsm_toy.template().vertices, xy, weight.numpy(), boxes)
    guide = torch.tensor(np.column_stack([fitted[:, 3:], trust]), dtype=torch.float32)
    torch.manual_seed(seed)
    net = ACSM(acsm_toy.template(), ACSMArchitecture(image_size=64))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    first = last = 0.0
    for step in range(steps):
        factor = (1 + np.cos(np.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor
        prediction = net(normalise(crops), articulated=step >= steps // 20)
        loss, terms = total_loss(prediction, target, weight, guide, LossWeights(camera=1.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or terms["keypoints"], terms["keypoints"]
    result = best_camera(net.predict(normalise(crops)))
    score = auc(result["keypoints_ndc"].numpy(), xy, weight.numpy() > 0, 2.0)
    return first, last, score, camera_errors(result["camera"].numpy(), camera)


def test_a_few_steps_reduce_the_loss():
    first, last, _, _ = overfit(steps=12, count=4)
    assert last < 0.8 * first


@pytest.mark.slow
def test_overfits_a_few_pictures():
    _, _, score, errors = overfit(steps=300, count=8)
    assert score > 90
    assert errors.max() < 45
