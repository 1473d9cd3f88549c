"""Recorded attention, against numbers of the released code.

tests/data/stable_keypoints/unet_attention.npz holds what that code recorded from the up blocks of the tiny
UNet of unet_config.json, filled by name, its queries upsampled to 24.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pseudolabels.zero123plus.attention import (
    Recorder,
    cross_attention_layers,
    record_attention,
    recording,
    token_width,
)
from wildshape.errors import UserError

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusion")
DATA = Path(__file__).parents[1] / "data/stable_keypoints"


def filled(unet):
    """A network whose weights follow from their names."""
    state = {}
    for name, value in unet.state_dict().items():
        rng = np.random.default_rng([1, zlib.crc32(name.encode())])
        drawn = rng.standard_normal(tuple(value.shape))
        if value.ndim >= 2:
            drawn = 1.2 * drawn / np.sqrt(np.prod(value.shape[1:]))
        else:
            drawn = 1 + 0.05 * drawn if name.endswith("weight") else 0.05 * drawn
        state[name] = torch.from_numpy(drawn).float()
    unet.load_state_dict(state)
    return unet.eval()


@pytest.fixture(scope="module")
def unet():
    config = json.loads((DATA / "unet_config.json").read_text())
    return filled(diffusers.UNet2DConditionModel(**config))


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "unet_attention.npz") as archive:
        return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive}


def run(unet, golden, **settings):
    recorder = Recorder(16, 16, **{"side": 24, "layers": 2, **settings})
    maps = record_attention(unet, golden["latent"], golden["timestep"], golden["context"], recorder)
    return maps, recorder


@torch.no_grad()
def test_attention_is_what_the_released_code_records(unet, golden):
    maps, recorder = run(unet, golden, published=True)
    for layer in range(2):
        expected = golden[f"attn_{layer}"].mean(1).transpose(1, 2).reshape(1, 12, 24, 24)
        torch.testing.assert_close(recorder.maps[layer], expected, rtol=1e-4, atol=1e-6)
    larger = functional.interpolate(maps, size=(48, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger[0], golden["collected_48"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps.sum(1), torch.ones(1, 24, 24))


@torch.no_grad()
def test_a_few_tokens_maps_are_those_among_all(unet, golden):
    """The tokens that are left out keep their share."""
    inputs = (golden["latent"].repeat(2, 1, 1, 1), golden["timestep"], golden["context"].repeat(2, 1, 1))
    reference = record_attention(unet, *inputs, Recorder(16, 16, side=24, layers=2))
    kept = torch.tensor([7, 0, 3])
    found = record_attention(unet, *inputs, Recorder(16, 16, side=24, layers=2, kept=kept))
    torch.testing.assert_close(found, reference[:, kept], rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_the_network_itself_is_unchanged(unet, golden):
    processors = [module.processor for _, module in cross_attention_layers(unet)]
    inputs = (golden["latent"], golden["timestep"])
    alone = unet(*inputs, encoder_hidden_states=golden["context"]).sample
    with recording(unet, Recorder(16, 16, side=24, layers=2, stop=False)) as recorder:
        sample = unet(*inputs, encoder_hidden_states=golden["context"]).sample
    torch.testing.assert_close(sample, alone, rtol=0, atol=0)
    assert len(recorder.maps) == 2
    with recording(unet, Recorder(16, 16, side=24, layers=2, stop=False, published=True)):
        sample = unet(*inputs, encoder_hidden_states=golden["context"]).sample
    torch.testing.assert_close(sample, golden["sample"], rtol=1e-4, atol=1e-5)
    assert (alone - sample).abs().max() > 0.01
    assert [module.processor for _, module in cross_attention_layers(unet)] == processors


def test_stopping_early_changes_neither_maps_nor_gradients(unet, golden):
    found = []
    for stop in (True, False):
        tokens = golden["context"].clone().requires_grad_()
        recorder = Recorder(16, 16, side=20, layers=2, stop=stop)
        maps = record_attention(unet, golden["latent"], golden["timestep"], tokens, recorder)
        maps[:, 3].square().mean().backward()
        found.append((maps.detach(), tokens.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert found[0][1].abs().sum() > 0


@torch.no_grad()
def test_pictures_need_not_be_square(unet, golden):
    latents = torch.cat((golden["latent"], golden["latent"]), 2)  # 32 x 16
    recorder = Recorder(32, 16, side=24, layers=2)
    maps = record_attention(unet, latents, golden["timestep"], golden["context"], recorder)
    assert maps.shape == (1, 12, 24, 12) and recorder.shape_of(128) == (16, 8)


def test_what_cannot_be_recorded(unet, golden):
    assert token_width(unet) == 24
    with pytest.raises(UserError, match="expected 3 cross-attention layers of at most 32 x 32.*found 2"):
        run(unet, golden, layers=3)
    with pytest.raises(UserError, match="cross-attention in its up blocks.*found no up blocks"):
        cross_attention_layers(torch.nn.Linear(2, 2))
    plain = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32, 32), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with pytest.raises(UserError, match="found UpBlock2D"):
        token_width(plain)


@torch.no_grad()
@pytest.mark.parametrize(("side", "count"), [(32, 2), (34, 0)])
def test_layers_of_more_than_32_rows_are_not_recorded(unet, side, count):
    """This network's layers on the way up all have as many rows as the latents."""
    recorder = Recorder(side, side, 24, 2, stop=False)
    latents = torch.zeros((1, unet.config.in_channels, side, side))
    with recording(unet, recorder):
        tokens = torch.zeros((1, 3, unet.config.cross_attention_dim))
        unet(latents, torch.tensor([10]), encoder_hidden_states=tokens)
    assert len(recorder.maps) == count
