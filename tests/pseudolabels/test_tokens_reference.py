"""A step of learning tokens beside its readable twin, with a tiny diffusion model of random weights."""

import numpy as np
import pytest
import torch
from tiny_models import TWO_LEVELS

pytest.importorskip("diffusers", reason="needs the extra diffusion")

from pseudolabels.zero123plus import maps as token_maps
from pseudolabels.zero123plus import token_shares as shares
from pseudolabels.zero123plus.attention import (
    LayerInput,
    attention_maps,
    cross_attention_layers,
)
from pseudolabels.zero123plus.features import AttentionModel, Reading
from pseudolabels.zero123plus.small_model import SmallConfig, build_pipeline
from pseudolabels.zero123plus.tokens import Tokens, TokenSettings, TokenTask
from pseudolabels.zero123plus.tokens_reference import (
    reference_loss,
    reference_maps,
    reference_model,
)

CONFIG = SmallConfig(**TWO_LEVELS)
SIDE = CONFIG.view_size
SETTINGS = {"num_tokens": 30, "candidates": 12, "taught": 5, "sigma": 8.0}


def model_in(dtype, **reading):
    pipeline = build_pipeline(CONFIG, ["leg", "head"])
    for name in ("unet", "vae", "vision_encoder"):
        getattr(pipeline, name).to(dtype)
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "scheduler")}
    return AttentionModel(parts | {"pipeline": pipeline}, reading=Reading(side=16, **reading))


def task_of(model, settings, crops=5):
    rng = np.random.default_rng(3)
    pictures = rng.integers(0, 256, (crops, SIDE, SIDE, 3), dtype=np.uint8)
    tokens = Tokens(settings.num_tokens, model.width, seed=2).double()
    return TokenTask(tokens, model.attention, pictures, pictures[:1], settings, model.noise_shape(SIDE))


def batch_of(task, count=4):
    drawn = [task.sample(i, np.random.default_rng([9, i])) for i in range(count)]
    batch = {name: torch.from_numpy(np.stack([item[name] for item in drawn])) for name in drawn[0]}
    return {name: value.double() if name != "crop" else value for name, value in batch.items()}


@pytest.fixture
def doubles(monkeypatch):
    """Pictures and noise in float64, so that both ways agree to many digits."""
    from pseudolabels.zero123plus import tokens

    monkeypatch.setattr(tokens, "as_images", lambda crops: crops.permute(0, 3, 1, 2).double() / 255)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_a_step_is_that_of_loops(doubles, published, chunk):
    model = model_in(torch.float64, published=published)
    settings = TokenSettings(**SETTINGS, masked=not published, chunk=chunk)
    fast, slow = task_of(model, settings), task_of(reference_model(model), settings)
    batch = batch_of(fast)
    loss, terms = fast.loss(batch, 0)
    loss.backward()
    expected = reference_loss(slow, batch)
    expected.loss.backward()
    torch.testing.assert_close(loss.detach(), expected.loss.detach(), rtol=1e-9, atol=0)
    assert terms == pytest.approx(expected.terms, rel=1e-9)
    gradient, wanted = fast.model.embedding.grad, slow.model.embedding.grad
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    assert wanted.abs().sum() > 0 and loss.dtype == torch.float64
    with torch.no_grad():
        maps = fast.maps_of(batch, fast.model.embedding)
        sigma = settings.sigma_of(16)
        chosen = token_maps.choose_tokens(*maps, settings.candidates, settings.taught, sigma)
    assert chosen.tolist() == expected.chosen
    assert len({tuple(tokens) for tokens in chosen.tolist()}) > 1


@pytest.mark.parametrize("block", [1, 400, 10**6])
@pytest.mark.parametrize("kept", [None, [7, 2, 3]])
def test_shares_of_a_layer_block_by_block(monkeypatch, block, kept):
    """Blocks smaller than a row of tokens, that do not divide the map, and larger than it."""
    monkeypatch.setitem(shares._BLOCK, "cpu", block)
    attn = cross_attention_layers(model_in(torch.float64).unet)[0][1]
    generator = torch.Generator().manual_seed(5)
    features = 9 * torch.randn((2, 20, 16), generator=generator, dtype=torch.float64)
    tokens = 9 * torch.randn((2, 11, 24), generator=generator, dtype=torch.float64)
    index = None if kept is None else torch.tensor(kept)
    found = []
    for compute in (attention_maps, reference_maps):
        inputs = features.clone().requires_grad_(), tokens.clone().requires_grad_()
        maps = compute(attn, LayerInput(*inputs, (5, 4), (15, 12), index))
        weight = torch.arange(maps[0].numel(), dtype=torch.float64).view_as(maps[0]).sin()
        loss = (maps * weight)[0, 1:].sum() + (maps * weight)[1, :2].sum()
        found.append((maps.detach(), *torch.autograd.grad(loss, inputs)))
    assert found[0][0].shape == (2, 11 if kept is None else 3, 15, 12)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_the_gradient_of_shares():
    generator = torch.Generator().manual_seed(6)
    query = torch.randn((1, 2, 6, 3), generator=generator, dtype=torch.float64, requires_grad=True)
    key = torch.randn((1, 2, 4, 3), generator=generator, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda q, k: shares.token_shares(q, k, (2, 3), (4, 5)), (query, key))


def test_far_logits_stay_finite():
    query = torch.tensor([1e3, -1e3]).view(1, 1, 2, 1).requires_grad_()
    key = torch.tensor([1.0, 0.5, -1.0]).view(1, 1, 3, 1)
    maps = shares.token_shares(query, key, (1, 2), (1, 2))
    torch.testing.assert_close(maps[0, :, 0], torch.tensor([[1.0, 0], [0, 0], [0, 1.0]]))
    maps[0, 0].sum().backward()
    assert query.grad.isfinite().all()


def test_nothing_of_a_map_is_kept_for_the_way_back():
    """What is kept between the ways grows with heads and tokens for the twin alone."""
    model = model_in(torch.float32)
    kept = {}
    for name, source in (("fast", model), ("slow", reference_model(model))):
        tokens = torch.randn((400, model.width), generator=torch.Generator().manual_seed(1))
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            source.attention(
                torch.zeros(1, 3, SIDE, SIDE), tokens.requires_grad_(), torch.zeros(1, 4, 8, 8)
            )
        kept[name] = sum(sizes.values())
    one_map = 4 * 400 * 16 * 16
    assert kept["slow"] - kept["fast"] > 3 * CONFIG.heads[0] * one_map
