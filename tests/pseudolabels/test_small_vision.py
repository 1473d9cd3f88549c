"""The vision encoder of the small model learns what six views roughly look like."""

import numpy as np
import pytest
import torch
from small_steps import train

pytest.importorskip("diffusers", reason="needs the extra wildshape[diffusion]")

from pseudolabels.zero123plus.small_latents import RingLatents
from pseudolabels.zero123plus.small_model import build_pipeline
from pseudolabels.zero123plus.small_training import TaskConfig
from pseudolabels.zero123plus.small_vision_task import VisionTask, coarse, predict


def bright_and_dark(count, seed):
    """Animals whose inputs are bright and whose views' latents are high, or neither."""
    rng = np.random.default_rng(seed)
    sign = np.where(np.arange(count) % 2, 1, -1)
    latents = sign.reshape(-1, 1, 1, 1, 1, 1) + 0.1 * rng.standard_normal((count, 2, 6, 4, 8, 8))
    images = 120 + 80 * sign.reshape(-1, 1, 1, 1, 1) + rng.integers(-20, 20, (count, 6, 16, 16, 4))
    images[..., 3] = 255
    return RingLatents(latents.astype(np.float16), latents.astype(np.float16), images.astype(np.uint8))


def test_latents_are_averaged_cell_by_cell():
    grid = np.zeros((2, 8, 4), np.float32)
    grid[0, :4] = np.arange(16).reshape(4, 4)
    grid[1, 7, 3] = 16
    assert coarse(grid).tolist() == [7.5, 0, 0, 1]


def test_it_explains_views_of_animals_that_it_never_saw(tiny_sizes):
    pipeline = build_pipeline(tiny_sizes, ["a", "head"])
    task = VisionTask(pipeline, bright_and_dark(8, 0), bright_and_dark(4, 1), TaskConfig(lr=5e-3))
    before = task.evaluate()["explained"]
    train(task, 40, 8)
    assert before < 0.3 and task.evaluate()["explained"] > 0.8
    sample = task.sample(0, np.random.default_rng(0))
    image = torch.from_numpy(sample["image"])[None]
    assert predict(task.model.mean, image).shape == (1, *sample["views"].shape)
    trained = {name: p.grad is not None for name, p in pipeline.vision_encoder.named_parameters()}
    assert all(trained.values()), trained
