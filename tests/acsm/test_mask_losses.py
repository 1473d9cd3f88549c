"""The losses on masks against loops, values worked out by hand and finite differences."""

import acsm_mask_world
import numpy as np
import pytest
import torch

from acsm.geometry import project_with_depth
from acsm.mask_crops import contour_points
from acsm.mask_losses import (
    MaskWeights,
    containment_loss,
    coverage_loss,
    cycle_loss,
    segmentation_loss,
    silhouette_loss,
    visibility_loss,
)
from acsm.mask_task import MaskObjective, rendered_depth, with_mirrored_masks
from acsm.model import ACSM, ACSMArchitecture
from acsm.pixel_map import PixelMap, cell_centres
from acsm.renderer import rasterize, silhouette
from acsm.renderer.choice import make_renderer
from acsm.sphere_map import sphere_vertices
from wildshape.geometry import xy_crop_to_ndc


@pytest.fixture
def drawn():
    """Two images, two cameras: vertices in NDC with depth, double precision."""
    shape = acsm_mask_world.template()
    vertices = torch.stack([acsm_mask_world.scene(i, shape)[0] for i in range(4)])
    return vertices.view(2, 2, -1, 3), shape.faces


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1


def test_cycle_by_hand():
    pixels = torch.tensor([[[0.0, 0.0], [0.5, 0.0]]])
    points = torch.tensor([[[[0.0, 0.1], [0.5, 0.3]], [[0.0, 0.0], [0.5, 0.0]]]])
    torch.testing.assert_close(cycle_loss(points, pixels), torch.tensor([[0.05, 0.0]]))


def test_coverage_against_a_loop(drawn):
    vertices = drawn[0][..., :2].clone().requires_grad_()
    contour = random(2, 7, 2)
    found = coverage_loss(vertices, contour)
    for b in range(2):
        for c in range(2):
            total = 0.0
            for point in contour[b]:
                distances = sorted(float(((v - point) ** 2).sum()) for v in vertices[b, c].detach())
                total += sum(distances[:4]) / 4
            assert found[b, c].item() == pytest.approx(total / 7, rel=1e-9)
    few = random(1, 2, 5, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: coverage_loss(v, contour[:1]), few)
    assert coverage_loss(few[:, :, :3], contour[:1]).shape == (1, 2)  # fewer vertices than neighbours


def reference_visibility(points, depth):
    """One point after the other."""
    size = depth.shape[-1]
    out = torch.zeros(points.shape[:2], dtype=points.dtype)
    for b in range(points.shape[0]):
        for c in range(points.shape[1]):
            squares = []
            for x, y, z in points[b, c].tolist():
                column, row = (x + 1) * size / 2 - 0.5, (y + 1) * size / 2 - 0.5
                total = share = 0.0
                for j in (int(np.floor(row)), int(np.floor(row)) + 1):
                    for i in (int(np.floor(column)), int(np.floor(column)) + 1):
                        if 0 <= i < size and 0 <= j < size and np.isfinite(depth[b, c, j, i].item()):
                            weight = (1 - abs(column - i)) * (1 - abs(row - j))
                            total += weight * depth[b, c, j, i].item()
                            share += weight
                behind = max(z - total / share, 0) if share > 1e-6 else 0.0
                squares.append(behind**2)
            out[b, c] = sum(squares) / len(squares)
    return out


def test_visibility_against_a_loop_and_by_finite_differences(drawn):
    vertices, faces = drawn
    depth = rasterize(vertices.flatten(0, 1), faces, 24).depth.view(2, 2, 24, 24)
    points = torch.cat((random(2, 2, 60, 2), 5 + random(2, 2, 60, 1, seed=1)), dim=-1)
    found = visibility_loss(points, depth)
    assert (found > 0.01).all() and torch.isfinite(found).all()
    torch.testing.assert_close(found, reference_visibility(points, depth))
    some, near = points[:1, :1, :6].clone().requires_grad_(), depth[:1, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: visibility_loss(p, near.detach()), some)
    visibility_loss(points[:1, :1], near).sum().backward()
    assert torch.isfinite(near.grad).all() and near.grad.abs().max() > 0
    # What is seen lies at its own depth; what lies behind it is hidden by as much.
    level = torch.full((1, 1, 8, 8), 5.0)
    at = torch.tensor([[[[0.1, 0.2, 5.0], [0.1, 0.2, 4.0], [0.3, -0.4, 5.5], [3.0, 0.0, 9.0]]]])
    assert visibility_loss(at, level).item() == pytest.approx(0.25 / 4)


def test_containment_and_silhouette_by_hand_and_by_finite_differences(drawn):
    vertices, faces = drawn
    square = torch.zeros(1, 1, 4, 4)
    square[..., :2, :2] = 1
    mask, outside = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    mask[:, :2, 1:3] = 1
    outside[:, :, 0] = 0.5
    assert containment_loss(square, outside).item() == pytest.approx(0.5 * 2 / 16)
    assert silhouette_loss(square, mask, torch.ones(1, 4, 4)).item() == pytest.approx(1 - 2 / 6)
    half = torch.ones(1, 4, 4)
    half[:, :, 0] = 0  # the photo ends there
    assert silhouette_loss(square, mask, half).item() == pytest.approx(1 - 2 / 4)

    one = vertices[:1, :1, ::1].clone()
    target = silhouette(vertices[1, :1], faces, 12)

    def both(v):
        picture = silhouette(v.flatten(0, 1), faces, 12).view(1, 1, 12, 12)
        far = 1 - target
        return containment_loss(picture, far) + silhouette_loss(picture, target, torch.ones_like(far))

    x = one.requires_grad_()
    both(x).sum().backward()
    direction = random(*x.shape, seed=4)
    step = 1e-6
    with torch.no_grad():
        slope = (both(x + step * direction) - both(x - step * direction)).sum() / (2 * step)
    assert (x.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_segmentation_by_hand():
    logits = torch.tensor([[[0.0, 2.0], [0.0, -1.0]]])
    cover, known = torch.tensor([[[1.0, 1.0], [0.5, 0.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    expected = (np.log(2) + np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 3
    assert segmentation_loss(logits, cover, known).item() == pytest.approx(expected, rel=1e-6)
    assert segmentation_loss(logits, cover, torch.zeros(1, 2, 2)).item() == 0


def test_cells_lie_in_the_middle_of_their_pixels():
    centres = cell_centres(3, 12)
    torch.testing.assert_close(centres[:2], torch.tensor([[-2 / 3, -2 / 3], [0.0, -2 / 3]]))
    # A crop whose side is no multiple of four: the last cell reaches beyond it.
    assert cell_centres(3, 10)[-1, 0].item() == pytest.approx(2 * 10 / 10 - 1)


def test_the_pixel_map_takes_maps_of_any_size():
    torch.manual_seed(0)
    net = PixelMap()
    for sides in ((16, 8, 4, 2), (18, 9, 5, 3)):
        maps = [torch.randn(2, c, s, s) for c, s in zip((64, 128, 256, 512), sides)]
        vectors, logits = net(maps)
        assert vectors.shape == (2, sides[0], sides[0], 3) and logits.shape == vectors.shape[:3]
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:3]))


def small(cameras=2):
    torch.manual_seed(0)
    shape = acsm_mask_world.template()
    arch = ACSMArchitecture(image_size=64, num_cameras=cameras, camera="angles", pixel_map=True)
    model = ACSM(shape, arch).double()
    model.sphere.copy_(torch.tensor(sphere_vertices(shape)))
    return model, shape


def batch_of(model, shape, truth):
    """A prediction whose camera is the true one, whose pixels know their place, and its masks."""
    points, camera = acsm_mask_world.scene(truth, shape)
    seen = rasterize(points[None], shape.faces, 64)
    mask = seen.mask[0]
    rows, columns = np.nonzero(mask[2::4, 2::4].numpy())
    cells = torch.tensor(rows * 16 + columns)[None]
    # The place on the sphere of what each cell's middle sees.
    fine = rasterize(points[None], shape.faces, 16)
    corners = model.sphere[model.faces[fine.face_ids[0].long().clamp(min=0)]]
    sphere = torch.nn.functional.normalize(
        (corners * fine.barycentrics[0].double()[..., None]).sum(2), dim=-1
    )
    kept = fine.mask[0].flatten()[cells[0]]
    cells = cells[:, kept]
    still = torch.zeros(1, 1, len(model.parents), 8, dtype=torch.float64)
    still[..., 0] = still[..., 4] = 1
    prediction = {
        "camera": camera[None, None], "camera_prob": torch.ones(1, 1, dtype=torch.float64),
        "vertices": model.vertices[None, None], "pixel_sphere": sphere[None],
        "pixel_logit": torch.where(mask[2::4, 2::4], 9.0, -9.0)[None].double(),
    }  # fmt: skip
    full = torch.ones(1, 64, 64, dtype=torch.uint8)
    contour = contour_points(255 * mask.numpy().astype(np.uint8), np.ones((64, 64), np.uint8))
    border = torch.tensor(xy_crop_to_ndc(contour, 64))[None]
    masks = {
        "mask": 255 * mask[None].byte(), "known": full, "outside": torch.where(mask, 0.0, 0.3)[None],
        "contour": border, "cells": cells, "mask_weight": torch.ones(1),
    }  # fmt: skip
    return prediction, masks


def test_the_truth_costs_next_to_nothing_and_less_than_anything_else():
    model, shape = small(1)
    objective = MaskObjective(model, make_renderer("exact", 64), MaskWeights(silhouette=1.0))
    prediction, masks = batch_of(model, shape, 0)
    _, right = objective(prediction, masks)
    assert right["cycle"] < 1e-3 and right["visibility"] < 2e-3 and right["containment"] < 0.003
    assert right["silhouette"] < 0.1
    other = {**prediction, "camera": acsm_mask_world.scene(1, shape)[1][None, None]}
    _, wrong = objective(other, masks)
    for term in ("cycle", "visibility", "containment", "silhouette"):
        assert wrong[term] > 2 * right[term], term
    assert wrong["coverage"] > right["coverage"]  # of few vertices, some of which are always near
    upside = {**prediction, "pixel_logit": -prediction["pixel_logit"]}
    assert objective(upside, masks)[1]["segmentation"] > 5
    # An image without a mask adds nothing; a weight scales; cameras are weighted by their probability.
    nothing, terms = objective(prediction, {**masks, "mask_weight": torch.zeros(1)})
    assert nothing == 0 and terms == {}
    whole, _ = objective(prediction, masks)
    half, _ = objective(prediction, {**masks, "mask_weight": torch.tensor([0.5])})
    assert half.item() == pytest.approx(whole.item() / 2)
    pair = {
        **prediction, "camera": torch.cat((prediction["camera"], other["camera"]), 1),
        "vertices": prediction["vertices"].expand(1, 2, -1, -1),
        "camera_prob": torch.tensor([[0.75, 0.25]], dtype=torch.float64),
    }  # fmt: skip
    _, mixed = objective(pair, masks)
    assert mixed["cycle"] == pytest.approx(0.75 * right["cycle"] + 0.25 * wrong["cycle"])


def test_all_terms_reach_camera_parts_and_pixels():
    model, shape = small(2)
    objective = MaskObjective(model, make_renderer("exact", 64), MaskWeights(silhouette=1.0))
    _, masks = batch_of(model, shape, 0)
    torch.manual_seed(1)
    images = torch.randn(2, 3, 64, 64)
    doubled = {name: value.expand(2, *value.shape[1:]) for name, value in masks.items()}
    doubled["contour"], doubled["outside"] = doubled["contour"].float(), doubled["outside"].float()
    loss, terms = objective(model.float()(images, vertices=True, pixels=True), doubled)
    assert set(terms) == set(MaskWeights.__dataclass_fields__) and torch.isfinite(loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    for part in (model.camera_head, model.part_head, model.pixel_map, model.encoder.backbone):
        assert any(p.grad.abs().max() > 0 for p in part.parameters())


def test_the_whole_objective_by_finite_differences():
    model, shape = small(1)
    prediction, masks = batch_of(model, shape, 2)
    objective = MaskObjective(model, make_renderer("exact", 64), MaskWeights(silhouette=1.0))
    fixed = {**prediction, "pixel_sphere": torch.nn.functional.normalize(
        prediction["pixel_sphere"] + 0.05 * random(1, 16, 16, 3, seed=7), dim=-1)}  # fmt: skip
    for name in ("camera", "vertices", "pixel_sphere"):
        value = fixed[name].clone().requires_grad_()
        objective({**fixed, name: value}, masks)[0].backward()
        direction = random(*value.shape, seed=5) * (1 if name == "camera" else 0.1)
        step = 1e-7
        with torch.no_grad():
            ends = [objective({**fixed, name: value + s * step * direction}, masks)[0] for s in (1, -1)]
        slope = ((ends[0] - ends[1]) / (2 * step)).item()
        assert (value.grad * direction).sum().item() == pytest.approx(slope, rel=2e-3), name


def test_depth_of_either_renderer_is_that_of_the_surface(drawn):
    vertices, faces = drawn

    class Stand:
        size, nearer = 16, 2.732

        def depth(self, v, f):
            found = rasterize(v, f, 16).depth
            return torch.where(torch.isfinite(found), found + 2.732, torch.full_like(found, 100))

    flat = vertices.flatten(0, 1)
    exact = rendered_depth(make_renderer("exact", 16), flat, faces)
    torch.testing.assert_close(rendered_depth(Stand(), flat, faces), exact)


def test_mirrored_masks():
    model, shape = small(1)
    objective = MaskObjective(model, make_renderer("exact", 64), MaskWeights())
    _, masks = batch_of(model, shape, 1)
    both = with_mirrored_masks(masks, objective)
    assert torch.equal(both["mask"][1], masks["mask"][0].flip(1)) and len(both["mask_weight"]) == 2
    rows, columns = both["cells"][:, :9] // 16, both["cells"][:, :9] % 16
    assert torch.equal(rows[0], rows[1]) and torch.equal(columns[1], 15 - columns[0])
    torch.testing.assert_close(both["contour"][1], both["contour"][0] * torch.tensor([-1.0, 1.0]))


def test_points_are_projected_as_the_mesh_is():
    model, shape = small(1)
    prediction, masks = batch_of(model, shape, 0)
    objective = MaskObjective(model, make_renderer("exact", 64), MaskWeights())
    vertices = project_with_depth(prediction["vertices"], prediction["camera"])
    points = objective._surface_points(prediction, masks["cells"], vertices)
    corners, shares = objective.lookup()(prediction["pixel_sphere"].flatten(1, 2)[0, masks["cells"][0]])
    expected = (vertices[0, 0][corners] * shares[..., None]).sum(1)
    torch.testing.assert_close(points[0, 0], expected)
