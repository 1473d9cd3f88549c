"""What the benchmark of a step sets side by side is the same step, and what it counts is what is kept."""

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra diffusion")

from tiny_models import TINY

from benchmarks import zero123plus_cost as cost
from benchmarks import zero123plus_speed as speed
from pseudolabels.zero123plus.attention import LayerInput
from pseudolabels.zero123plus.features import AttentionModel, Reading
from pseudolabels.zero123plus.small_model import SmallConfig, build_pipeline
from pseudolabels.zero123plus.tokens_reference import reference_maps


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    pipeline = build_pipeline(SmallConfig(**TINY), ["leg"])
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "scheduler")}
    return AttentionModel({**parts, "pipeline": pipeline}, reading=Reading(side=16))


def test_every_way_takes_the_same_step(model, monkeypatch):
    embeddings = {}
    make_task = speed.make_task

    def kept(given, way, tokens):
        task, batch = make_task(given, way, tokens)
        task.model.embedding.data.copy_(torch.randn((tokens, given.width), generator=drawn()))
        embeddings[way] = task.model.embedding
        return task, batch

    def drawn():
        return torch.Generator().manual_seed(2)

    monkeypatch.setattr(speed, "make_task", kept)
    start = torch.randn((30, model.width), generator=drawn())
    for way in speed.WAYS:
        speed.make_step(model, way, tokens=30)()
        moved = embeddings[way].detach() - start
        assert moved.abs().max() > 1e-3, way
        # A first step of Adam goes as far whatever the gradient: rounding turns where there is hardly any.
        alike = (embeddings[way] - embeddings["fast"]).abs() < 1e-5
        assert alike.float().mean() > 0.99, way


def test_what_is_kept_for_the_way_back_is_counted_once():
    weight = torch.nn.Linear(10, 10, bias=False)
    x = torch.zeros(100, 10, requires_grad=True)
    # exp keeps its result, which the product keeps as well; the layer its input: 100 x 10 numbers each
    assert cost.saved_bytes(lambda: (x.exp() * 2.0).sum()) == 4000
    held = []
    assert cost.saved_bytes(lambda: held.append(weight(x)), weight) == 4000
    assert cost.saved_bytes(lambda: held.append(x.exp().square())) == 4000
    assert cost.saved_bytes(lambda: held.append(x.exp().exp())) == 8000


@torch.no_grad()
def test_matrix_products_on_paper_are_those_that_are_run():
    """Of the twin's maps of 128 x 128 pixels, but for the projection of 500 tokens, which is left out."""
    with cost.FakeTensorMode():  # nothing is computed
        unet = cost.UNet2DConditionModel(
            sample_size=8, block_out_channels=(256, 256), layers_per_block=1, norm_num_groups=8,
            cross_attention_dim=20, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        counter = cost.FlopCounterMode(display=False)
        tokens = torch.zeros((2, cost.TOKENS, 20))
        with counter:
            for _, layer in cost.cross_attention_layers(unet)[: cost.PAPER_LAYERS]:
                features = torch.zeros((2, 64, layer.to_q.in_features))
                size = (cost.PAPER_SIDE, cost.PAPER_SIDE)
                reference_maps(layer, LayerInput(features, tokens, (8, 8), size, None))
    told = cost._maps_on_paper(unet)["reference"]["forward_tflop"]
    assert told > 0.02 and told == pytest.approx(counter.get_total_flops() / 1e12, abs=6e-4)
