"""The loss as a sum of its terms, and cameras fitted to keypoints."""

import numpy as np
import pytest
import torch

from acsm import losses


def test_the_total_is_the_weighted_sum_of_its_terms():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def turns(*shape):
        return torch.nn.functional.normalize(normal(*shape, 4), dim=-1)

    prediction = {
        "keypoints_ndc": normal(2, 3, 5, 2),
        "camera_prob": normal(2, 3).softmax(1),
        "camera": torch.cat((normal(2, 3, 3), turns(2, 3)), dim=-1),
        "part_transforms": torch.cat((normal(2, 3, 4, 4), turns(2, 3, 4)), dim=-1),
    }
    guide = torch.cat((turns(2), torch.tensor([[1.0], [0.5]])), dim=-1)
    weights = losses.LossWeights(3.0, 10.0, 0.3, 0.02, 0.1, 0.05, 0.7)
    batch = normal(2, 5, 2), torch.ones(2, 5, dtype=torch.float64), guide
    total, terms = losses.total_loss(prediction, *batch, weights)
    assert set(terms) == set(vars(weights)) and min(terms.values()) > 0.01
    assert total.item() == pytest.approx(sum(getattr(weights, name) * terms[name] for name in terms))


def test_camera_fit_is_in_image_pixels():
    import acsm_toy

    from acsm.camera_fit import fit_cameras, guiding_cameras

    points, weight, (_, xy) = acsm_toy.template().vertices, np.ones((4, 16)), acsm_toy.scenes(4, seed=6)
    found, error = fit_cameras(points, xy, weight)
    boxes = np.tile([100.0, 50, 140, 90], (4, 1))
    in_image, trust = guiding_cameras(points, 120 + 20 * xy - [0, 50], weight, boxes)
    np.testing.assert_allclose(in_image[:, 1:3], 20 * found[:, 1:3] + [120, 70], rtol=1e-6)
    np.testing.assert_allclose(trust, 1 / (1 + (error / 0.2) ** 2), rtol=1e-6)


def test_camera_fit_trusts_keypoints_by_their_weight():
    """Of two keypoints that are far off, those of little weight do little harm."""
    import acsm_toy

    from acsm.camera_fit import fit_cameras
    from acsm.metrics import camera_errors

    camera, xy = acsm_toy.scenes(20, seed=5, turn=0.0)
    points, spoilt = acsm_toy.template().vertices, xy.copy()
    spoilt[:, [4, 14]] += 0.6
    weight = np.ones((20, 16))
    heavy, _ = fit_cameras(points, spoilt, weight)
    weight[:, [4, 14]] = 0.01
    light, _ = fit_cameras(points, spoilt, weight)
    assert np.median(camera_errors(light, camera)) < 1 < np.median(camera_errors(heavy, camera)) / 5
