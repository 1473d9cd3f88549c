"""The vision encoder of the small model learns what six views roughly look like."""

import numpy as np
import pytest
import torch
from small_steps import left_and_right, train

pytest.importorskip("diffusers", reason="needs the extra wildshape[diffusion]")

from pseudolabels.zero123plus.small_model import build_pipeline
from pseudolabels.zero123plus.small_training import TaskConfig
from pseudolabels.zero123plus.small_vision_task import VisionTask, start_anew, waves


def test_it_explains_views_of_animals_that_it_never_saw(tiny_sizes):
    pipeline = build_pipeline(tiny_sizes, ["a", "head"])
    task = VisionTask(pipeline, left_and_right(16, 0), left_and_right(8, 1), TaskConfig(lr=1e-3))
    before = task.evaluate()
    assert before["explained"] < 0.2 and before["explained_apart"] < 0.2
    train(task, 100, 8)
    after = task.evaluate()
    assert after["explained"] > 0.8 and after["explained_apart"] > 0.8
    sample = task.sample(0, np.random.default_rng(0))
    image = torch.from_numpy(sample["image"])[None]
    assert task.predict(task.model.mean, image).shape == (1, *sample["views"].shape)
    trained = {name: p.grad is not None for name, p in pipeline.vision_encoder.named_parameters()}
    assert all(trained.values()), trained


def test_it_starts_from_weights_that_depend_on_the_seed_alone(tiny_sizes):
    rings = left_and_right(4, 0)
    found = []
    for pipeline_seed, seed in ((0, 0), (1, 0), (0, 1)):
        pipeline = build_pipeline(tiny_sizes, ["a"], pipeline_seed)
        VisionTask(pipeline, rings, rings, TaskConfig(seed=seed))
        found.append(pipeline.vision_encoder.state_dict())
    first, same, other = found
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["visual_projection.weight"], other["visual_projection.weight"])


def test_places_of_patches_are_told_apart_and_near_ones_look_alike(tiny_sizes):
    places = waves(8, 96)
    assert places.shape == (64, 96)
    assert places[0].tolist() == [0.0] * 24 + [1.0] * 24 + [0.0] * 24 + [1.0] * 24
    similarity = places @ places.T / 48
    np.testing.assert_allclose(similarity.diagonal(), 1, atol=1e-5)
    assert float(similarity.fill_diagonal_(-1).max()) < 0.97
    right, below, far = similarity[0, 1], similarity[0, 8], similarity[0, 63]
    assert right == pytest.approx(float(below)) and far < 0.7 < right

    encoder = build_pipeline(tiny_sizes, ["a"]).vision_encoder
    start_anew(encoder)
    table = encoder.vision_model.embeddings.position_embedding.weight
    torch.testing.assert_close(table[1:], waves(2, 24))
