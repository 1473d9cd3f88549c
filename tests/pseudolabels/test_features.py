"""Diffusion models as sources of attention: tiny random ones, saved and loaded."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TWO_LEVELS

from wildshape.errors import UserError

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusion")

from pseudolabels.zero123plus.features import AttentionModel, Reading, Switches  # noqa: E402
from pseudolabels.zero123plus.small_model import SmallConfig, build_pipeline, save_half  # noqa: E402
from pseudolabels.zero123plus.sources import load_model  # noqa: E402

CPU = torch.device("cpu")
READING = Reading(side=16, layers=2)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    return build_pipeline(SmallConfig(**TWO_LEVELS), ["leg", "head"])


def model_of(pipeline, switches=None, reading=READING):
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "scheduler")}
    return AttentionModel(parts | {"pipeline": pipeline}, switches, reading)


def inputs(model, count=2, tokens=5):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((count, 3, 32, 32), generator=generator)
    noise = torch.randn((count, *model.noise_shape(32)), generator=generator)
    return images, torch.randn((tokens, model.width), generator=generator), noise


def stable_diffusion(folder, up="CrossAttnUpBlock2D", network="UNet2DConditionModel", **settings):
    """A folder in the layout of Stable Diffusion, with what is read of it."""
    torch.manual_seed(2)
    cross = up.startswith("Cross")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=20, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", up),
        **settings,
    )  # fmt: skip
    assert cross or up == "UpBlock2D"
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    for name, part in (("unet", unet.half()), ("vae", vae.half()), ("scheduler", scheduler)):
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"], '
        f'"unet": ["diffusers", "{network}"]}}'
    )
    return folder


def test_attention_sums_to_one_and_teaches_the_tokens_alone(pipeline):
    model = model_of(pipeline)
    images, tokens, noise = inputs(model)
    tokens.requires_grad_()
    maps = model.attention(images, tokens, noise)
    assert maps.shape == (2, 5, 16, 16)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 16, 16))
    maps[:, 1].square().sum().backward()
    assert tokens.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.unet.parameters())


def test_running_the_whole_network_gives_the_same(pipeline):
    found = []
    for whole in (False, True):
        model = model_of(pipeline, reading=Reading(side=16, layers=2, whole=whole))
        images, tokens, noise = inputs(model)
        tokens.requires_grad_()
        maps = model.attention(images, tokens, noise)
        maps[:, 0].square().sum().backward()
        found.append((maps.detach(), tokens.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["global_embeddings", "guidance", "reference_attention"])
@torch.no_grad()
def test_each_switch_does_something(pipeline, name):
    plain, switched = model_of(pipeline), model_of(pipeline, Switches(**{name: True}))
    images, tokens, noise = inputs(plain)
    one, other = plain.attention(images, tokens, noise), switched.attention(images, tokens, noise)
    torch.testing.assert_close(other.sum(1), torch.ones(2, 16, 16))
    if name == "guidance":  # of a picture that nothing else tells of, with and without are the same
        torch.testing.assert_close(one, other)
        both = model_of(pipeline, Switches(guidance=True, global_embeddings=True))
        other = both.attention(images, tokens, noise)
        with_picture = model_of(pipeline, Switches(global_embeddings=True)).attention(images, tokens, noise)
        torch.testing.assert_close(other, (one + with_picture) / 2)
    assert (one - other).abs().max() > 1e-5
    again = plain.attention(images, tokens, noise)
    torch.testing.assert_close(again, one, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", [32, 48, 20])
def test_the_embedding_is_the_pipelines_whatever_the_size_of_crops(pipeline, side):
    """Its vision encoder takes pictures of one size, as the published one does of 224 pixels."""
    model = model_of(pipeline, Switches(global_embeddings=True))
    picture = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    found = model._global_embeddings(images, len(pipeline.config.ramping_coefficients))
    expected = pipeline.embed_globally(Image.fromarray(picture))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    tokens = torch.randn((5, model.width), generator=torch.Generator().manual_seed(1))
    noise = torch.zeros((1, *model.noise_shape(side)))
    assert model.attention(images, tokens, noise).shape[:2] == (1, 5)


@torch.no_grad()
def test_guidance_leads_away_from_what_the_pipeline_leads_away_from(pipeline, monkeypatch):
    """A picture of nothing, which for the autoencoder is grey and not black."""
    taken = []

    def sample(tokens, reference, *unused):
        taken.append(reference)
        raise InterruptedError

    monkeypatch.setattr(pipeline, "_sample", sample, raising=True)
    picture = Image.new("RGB", (32, 32), "red")
    with pytest.raises(InterruptedError):
        pipeline(picture, guidance_scale=4.0, num_inference_steps=1)
    model = model_of(pipeline, Switches(guidance=True, reference_attention=True))
    images, tokens, noise = inputs(model)
    noised, original = [], AttentionModel._add_noise

    def add_noise(self, latents, noise):
        noised.append(latents)
        return original(self, latents, noise)

    monkeypatch.setattr(AttentionModel, "_add_noise", add_noise)
    model.attention(images, tokens, noise)
    nothing, _ = taken[0].chunk(2)
    torch.testing.assert_close(noised[2], nothing.expand(2, -1, -1, -1))
    assert len(noised) == 3 and (noised[1] - nothing).abs().max() > 0.1


@torch.no_grad()
def test_a_folder_of_ours_is_read_in_full_precision_and_quietly(pipeline, tmp_path, capfd):
    save_half(pipeline, tmp_path / "small")
    model = load_model(str(tmp_path / "small"), device=CPU, reading=READING)
    assert capfd.readouterr() == ("", "")
    assert {p.dtype for p in model.unet.parameters()} == {torch.float32}
    assert (model.width, model.image_size) == (24, 32) and model.pipeline is not None
    images, tokens, noise = inputs(model)
    found = model.attention(images, tokens, noise)
    expected = model_of(pipeline).attention(images, tokens, noise)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=2e-3)  # half precision on disk


@torch.no_grad()
def test_stable_diffusion_is_read_by_the_same_code(tmp_path):
    folder = stable_diffusion(tmp_path / "sd")
    model = load_model(str(folder), device=CPU, reading=READING)
    assert (model.width, model.image_size, model.factor) == (20, 16, 2)
    assert {p.dtype for p in model.unet.parameters()} == {torch.float32}
    generator = torch.Generator().manual_seed(3)
    images = torch.rand((1, 3, 24, 24), generator=generator)
    noise = torch.randn((1, *model.noise_shape(24)), generator=generator)
    maps = model.attention(images, torch.randn((6, 20), generator=generator), noise)
    assert maps.shape == (1, 6, 16, 16)
    with pytest.raises(UserError, match="--guidance: expected a Zero123Plus model"):
        load_model(str(folder), device=CPU, switches=Switches(guidance=True))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"in_channels": 9}, "expected a UNet of the 4 channels of .* found 9, as for inpainting"),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 4,
             "projection_class_embeddings_input_dim": 8},
            ".*found one that takes text_time, too, as in Stable Diffusion XL",
        ),
        ({"network": "UNet2DModel"}, "expected a UNet2DConditionModel, .*; .* has a UNet2DModel"),
    ],
)  # fmt: skip
def test_other_kinds_of_networks_are_named(tmp_path, settings, message):
    with pytest.raises(UserError, match=f"--model: {message}"):
        load_model(str(stable_diffusion(tmp_path / "other", **settings)), device=CPU)


def test_models_that_cannot_be_had(tmp_path, monkeypatch, pipeline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--dtype float16: expected float32; with less precision"):
        load_model("small", device=CPU, dtype="float16")
    with pytest.raises(
        UserError, match="--model someone/nothing: expected a folder, .*run: hf download someone"
    ):
        load_model("someone/nothing", device=CPU)
    with pytest.raises(UserError, match="found no folder .*nowhere"):
        load_model(str(tmp_path / "nowhere"), device=CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--model: expected small, a folder or a repository"):
        load_model(str(tmp_path / "empty"), device=CPU)
    with pytest.raises(UserError, match="cross-attention in its up blocks.*found UpBlock2D"):
        load_model(str(stable_diffusion(tmp_path / "plain", "UpBlock2D")), device=CPU)
    with pytest.raises(UserError, match="crops of at least 4 pixels, one of the model's latents; found 3"):
        model_of(pipeline).noise_shape(3)
