"""Training with masks: weights, mirror images, and keypoints that do not count."""

import acsm_mask_world
import numpy as np
import pytest
import torch
from test_mask_losses import batch_of, small

from acsm import train
from acsm.mask_losses import MaskWeights
from acsm.mask_task import MaskObjective, with_mirrored_masks
from acsm.renderer.choice import make_renderer
from wildshape import training_data


def test_every_term_has_its_weight():
    model, shape = small(1)
    prediction, masks = batch_of(model, shape, 0)
    other = {**prediction, "camera": acsm_mask_world.scene(1, shape)[1][None, None]}
    weights = MaskWeights(0.5, 0.7, 3.0, 0.2, 0.9, 1.1)
    total, terms = MaskObjective(model, make_renderer("exact", 64), weights)(other, masks)
    assert set(terms) == set(vars(weights)) and min(terms.values()) > 0
    expected = sum(getattr(weights, name) * value for name, value in terms.items())
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_all_of_a_mask_is_mirrored():
    model, shape = small(1)
    objective = MaskObjective(model, make_renderer("exact", 64), MaskWeights())
    _, masks = batch_of(model, shape, 1)
    masks["known"][:, :, :9] = 0
    both = with_mirrored_masks(masks, objective)
    for name in ("mask", "known", "outside"):
        assert torch.equal(both[name][1], masks[name][0].flip(1)), name
        assert not torch.equal(both[name][1], both[name][0]), name


def test_on_masks_alone_keypoints_do_not_teach(tmp_path):
    workspace = acsm_mask_world.build(tmp_path)
    records, _ = training_data.labelled(workspace, "train", workspace.category.skeleton, need="either")
    template = train.template_for(workspace.category)
    for supervise, taught in (("masks", False), ("both", True)):
        settings = train.Config(category="beast", image_size=64, supervise=supervise, camera_guide=0.0)
        samples = train._samples(records, settings, template, "training labels")
        assert samples.sample(0, np.random.default_rng(0))["weight"].any() == taught
        val = train._samples(records, settings, template, train.VALIDATION)
        assert val.records.weight.any()  # they still measure
