"""The denoiser's middle of the small model learns to lay six views out."""

import numpy as np
import pytest
import torch
from small_steps import left_and_right, train

pytest.importorskip("diffusers", reason="needs the extra wildshape[diffusion]")

from pseudolabels.zero123plus.small_data import Caption
from pseudolabels.zero123plus.small_latents import PictureLatents
from pseudolabels.zero123plus.small_layout_task import LayoutTask, middle, place_of
from pseudolabels.zero123plus.small_model import build_pipeline
from pseudolabels.zero123plus.small_ring_task import RingData
from pseudolabels.zero123plus.small_training import TaskConfig
from pseudolabels.zero123plus.small_vision_task import VisionTask


def a_few_pictures(count=4):
    rng = np.random.default_rng(0)
    return PictureLatents(
        rng.standard_normal((count, 4, 8, 8)).astype(np.float16),
        tuple(Caption("a head", ()) for _ in range(count)),
        np.zeros((count, 16, 16), np.uint8),
    )


def test_places_belong_to_views_row_by_row():
    assert place_of((6, 4)).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2 + [[4, 4, 5, 5]] * 2


def test_the_middle_is_that_of_the_whole_network(tiny_pipeline):
    unet = tiny_pipeline.unet
    found = []
    unet.mid_block.register_forward_hook(lambda module, given, features: found.append(features))
    draw = torch.Generator().manual_seed(0)
    noise, step = torch.randn(1, 4, 24, 16, generator=draw), torch.tensor([990])
    empty, others = torch.randn(1, 24, 24, generator=draw), torch.randn(2, 24, 24, generator=draw)
    with torch.no_grad():
        unet(noise, step, empty)
        ours = middle(unet, noise, step, torch.cat([empty, others]), empty)
    torch.testing.assert_close(ours[:1], found[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[0], ours[1], atol=1e-3)
    assert not torch.allclose(ours[1], ours[2], atol=1e-3)


def test_it_lays_out_views_of_animals_that_it_never_saw(tiny_sizes):
    pipeline = build_pipeline(tiny_sizes, ["a", "head"])
    rings, config = (left_and_right(16, 0), left_and_right(8, 1)), TaskConfig(lr=1e-3)
    train(VisionTask(pipeline, *rings, config), 60, 8)
    task = LayoutTask(pipeline, RingData(*rings, a_few_pictures()), config)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    assert task.evaluate()["explained_apart"] < 0.1
    train(task, 90, 8)
    assert task.evaluate()["explained_apart"] > 0.6
    # The outer level learns from the rehearsed captions alone.
    changed = {
        name for name, value in pipeline.unet.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.split(".")[0] for name in changed} >= {"conv_in", "mid_block", "conv_out"}
    assert not any(p.requires_grad for p in pipeline.text_encoder.parameters())
