"""What tokens and views are learnt from, and by what the best are chosen."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra diffusion")

from test_train_small import made_up_latents, random_rings
from test_zero123plus_stages import SMALL, folders, training, world  # noqa: F401

from pseudolabels import train_tokens
from pseudolabels.zero123plus import small_metrics
from pseudolabels.zero123plus.crops import AnimalCrops
from pseudolabels.zero123plus.small_model import build_pipeline
from pseudolabels.zero123plus.small_ring_task import RingData
from pseudolabels.zero123plus.small_training import TaskConfig
from pseudolabels.zero123plus.small_views_task import ViewsTask
from pseudolabels.zero123plus.token_file import TokenFile
from pseudolabels.zero123plus.tokens import TokenTask


def test_crops_to_choose_by_are_not_learnt_from():
    config = train_tokens.Config(**SMALL, model="small").for_model(8, 16)
    pictures = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    crops = AnimalCrops(tuple("abcdefghijkl"), pictures, np.zeros((12, 2, 3)), np.ones(12, bool))
    model = SimpleNamespace(width=8, device="cpu", attention=None, noise_shape=lambda size: (3, 2, 2))
    task = train_tokens.make_task(config, model, crops, 4)
    held = set(task._val["crop"][:, 0, 0, 0].tolist())
    assert len(held) == 2 and held.isdisjoint(task.crops[:, 0, 0, 0].tolist()) and len(task) == 10


def test_the_tokens_of_least_loss_are_kept(world, folders, monkeypatch):  # noqa: F811
    answers = iter([0.1, 0.3])
    monkeypatch.setattr(TokenTask, "evaluate", lambda task: {"loss": next(answers), "stray": 1.0})
    metrics = train_tokens.run(training(folders), world)
    assert metrics["val"]["loss"] == 0.1
    assert TokenFile.load(world.checkpoint_dir("zero123plus") / "tokens.pt").facts["step"] == 2


def views_task(tiny_sizes):
    rng = np.random.default_rng(0)
    pipeline = build_pipeline(tiny_sizes, ["a", "black", "red", "head"])
    rings = random_rings(rng, 2)
    return ViewsTask(pipeline, RingData(rings, rings, made_up_latents(16)), TaskConfig(replay=0.25))


def test_rehearsal_and_averaged_weights(tiny_sizes):
    task = views_task(tiny_sizes)
    samples = [task.sample(number, np.random.default_rng(number)) for number in range(2)]
    batch = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}
    loss, figures = task.loss(batch, 0)
    assert float(loss.detach()) == pytest.approx(figures["views"] + 0.25 * figures["captions"], rel=1e-5)
    before = task.evaluate()
    with torch.no_grad():
        for parameter in task.model.network.parameters():
            parameter += 0.01
    assert task.evaluate() == before  # the average has not moved


def test_a_view_is_judged_by_which_true_one_it_is_nearest_to():
    """All views look most like the first true one, each a little like its own."""
    true = np.random.default_rng(0).integers(0, 256, (1, 6, 4, 4, 3), dtype=np.uint8)
    views = np.rint(0.8 * true[:, :1] + 0.2 * true).astype(np.uint8)
    assert small_metrics.own_view(views, true) == pytest.approx(1 / 6)


def test_the_average_follows_the_training(tiny_sizes):
    task = views_task(tiny_sizes)
    batch = {
        n: torch.from_numpy(np.stack([v])) for n, v in task.sample(0, np.random.default_rng(0)).items()
    }
    with torch.no_grad():
        for parameter in task.model.network.parameters():
            parameter += 0.01
    for step in (0, 1):  # before the first step there is nothing to follow
        task.loss(batch, step)
        assert int(task.model.updates) == step
