import math

import pytest
import torch
from acsm_golden import tensors

from acsm import geometry


def random_quaternions(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1)


def test_matches_the_published_geometry():
    golden = tensors("geometry")
    q, camera = golden["quat_wxyz"], golden["camera"]
    rotated = geometry.quat_rotate(q, golden["points"])
    torch.testing.assert_close(rotated, golden["rotated"], atol=1e-5, rtol=0)
    projected = geometry.project_with_depth(golden["points"], camera)
    torch.testing.assert_close(projected, golden["projected_withz"], atol=1e-5, rtol=0)
    flat = geometry.project(golden["points"], camera)
    torch.testing.assert_close(flat, golden["projected_withz"][..., :2], atol=1e-5, rtol=0)
    product = geometry.quat_multiply(q, golden["quat2_wxyz"])
    torch.testing.assert_close(product, golden["hamilton"])
    torch.testing.assert_close(geometry.mirror_camera(camera), golden["reflect_camera"])
    angle = geometry.geodesic_degrees(q, golden["quat2_wxyz"])
    torch.testing.assert_close(angle, golden["geodesic_deg"], atol=1e-3, rtol=0)
    view = geometry.view_angles(q) / torch.tensor([math.pi, math.pi / 2])
    torch.testing.assert_close(view, golden["azel"], atol=1e-5, rtol=0)


def test_rotation_is_the_quaternion_product():
    q = random_quaternions(5)
    points = torch.randn(5, 7, 3, dtype=torch.float64)
    pure = torch.nn.functional.pad(points, (1, 0))
    q_all = q[:, None].expand(5, 7, 4)
    product = geometry.quat_multiply(geometry.quat_multiply(q_all, pure), geometry.quat_conjugate(q_all))
    torch.testing.assert_close(geometry.quat_rotate(q, points), product[..., 1:])
    long = geometry.quat_rotate(2 * q, points)  # length enters squared, as in the product
    torch.testing.assert_close(long, 4 * product[..., 1:])


def test_axis_angle_by_hand():
    q = geometry.quat_from_axis_angle(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(math.pi / 2))
    turned = geometry.quat_rotate(q, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-6, rtol=0)


def test_upright_camera_shows_the_animal_from_the_front():
    camera = torch.tensor([1.0, 0.0, 0.0, *geometry.UPRIGHT_QUATERNION])
    up, head, left = torch.tensor([[0.0, 0, 1], [0, -1, 0], [1, 0, 0]])
    points = geometry.project_with_depth(torch.stack([up, head, left]), camera)
    expected = torch.tensor([[0.0, -1, 5], [0, 0, 4], [1, 0, 5]])
    torch.testing.assert_close(points, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 1.0, 90.0, 179.9])
def test_geodesic_angle_is_precise_and_ignores_the_sign(degrees):
    q = random_quaternions(1)[0]
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    turn = geometry.quat_from_axis_angle(axis, torch.tensor(math.radians(degrees), dtype=torch.float64))
    other = geometry.quat_multiply(q, turn)
    for sign in (1, -1):
        angle = geometry.geodesic_degrees(q, sign * other)
        assert angle.item() == pytest.approx(degrees, abs=1e-6)


def test_mirrored_camera_shows_the_mirrored_image():
    camera = torch.cat((torch.tensor([[1.3, 0.2, -0.1]]).double(), random_quaternions(1)), dim=-1)
    points = torch.randn(1, 9, 3, dtype=torch.float64)
    mirror = torch.tensor([-1.0, 1, 1]).double()
    straight = geometry.project(points, camera) * mirror[:2]
    mirrored = geometry.project(points * mirror, geometry.mirror_camera(camera))
    torch.testing.assert_close(mirrored, straight)
