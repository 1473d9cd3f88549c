"""The Zero123Plus pipeline on a tiny model of random weights: grid, switches, references, folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pseudolabels.zero123plus import pipeline as module
from pseudolabels.zero123plus.pipeline import (
    AZIMUTHS,
    ELEVATIONS,
    GREY,
    on_grey,
    scale_latents,
    split_grid,
    unscale_latents,
)
from pseudolabels.zero123plus.reference import (
    ReferenceAttention,
    add_reference_attention,
    predict_with_reference,
)
from pseudolabels.zero123plus.small_caption_task import mass_ratio
from pseudolabels.zero123plus.small_latents import grid_of
from pseudolabels.zero123plus.small_model import (
    _word_merges,
    build_tokenizer,
    build_unet,
    count_parameters,
    load_small,
    save_half,
    vae_pixels,
    whiten,
)
from pseudolabels.zero123plus.small_training import WordIds
from wildshape.errors import UserError


def picture(colour=(200, 40, 30), side=20):
    image = np.full((side, side, 3), 255, np.uint8)
    image[5:15, 4:12] = colour
    return Image.fromarray(image)


def sampled(pipeline, image=None, seed=0, **switches):
    settings = {"num_inference_steps": 2, "output_type": "np", **switches}
    return pipeline(image or picture(), generator=torch.Generator().manual_seed(seed), **settings).images[0]


def test_views_are_three_rows_of_two(tiny_pipeline):
    out = tiny_pipeline(picture(), num_inference_steps=1).images[0]
    assert out.size == (32, 48) and out.mode == "RGB"
    assert len(AZIMUTHS) == len(ELEVATIONS) == 6
    latents = tiny_pipeline(picture(), num_inference_steps=1, output_type="latent").images
    assert latents.shape == (1, 4, 24, 16)
    with pytest.raises(ValueError, match="output_type: expected pil, np or latent; found tensor"):
        tiny_pipeline(picture(), output_type="tensor")


def test_a_grid_is_split_as_it_was_put_together():
    views = np.arange(6 * 2 * 4 * 5).reshape(6, 2, 4, 5)
    grid = grid_of(views)
    assert grid.shape == (2, 12, 10)
    np.testing.assert_array_equal(grid[:, :4, 5:], views[1])
    np.testing.assert_array_equal(grid[:, 8:, :5], views[4])
    np.testing.assert_array_equal(split_grid(grid.transpose(1, 2, 0)).transpose(0, 3, 1, 2), views)


def test_transparent_pictures_lie_on_grey():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 2), (10, 20, 30, 255))
    plain = np.asarray(on_grey(image))
    assert (plain[0] == GREY).all() and tuple(plain[2, 1]) == (10, 20, 30)


def test_scaled_latents_come_back():
    latents = torch.linspace(-3, 3, 11)
    torch.testing.assert_close(unscale_latents(scale_latents(latents)), latents)


def test_a_seed_gives_the_same_views(tiny_pipeline):
    first = sampled(tiny_pipeline)
    np.testing.assert_array_equal(sampled(tiny_pipeline), first)
    assert np.abs(sampled(tiny_pipeline, seed=1) - first).max() > 0.01


@pytest.mark.parametrize(
    "switch", [{"global_embeddings": False}, {"reference_attention": False}, {"guidance_scale": 1.0}]
)
def test_each_switch_switches_something_off(tiny_pipeline, switch):
    assert np.abs(sampled(tiny_pipeline, **switch) - sampled(tiny_pipeline)).max() > 1e-4


def test_the_picture_goes_in_by_the_two_ways_and_no_other(tiny_pipeline):
    """Views depend on the picture with its embedding or reference attention, and not without both."""
    off = {"global_embeddings": False, "reference_attention": False}
    other = picture((20, 60, 220))
    np.testing.assert_array_equal(sampled(tiny_pipeline, other, **off), sampled(tiny_pipeline, **off))
    for name in off:
        one = {**off, name: True}
        assert np.abs(sampled(tiny_pipeline, other, **one) - sampled(tiny_pipeline, **one)).max() > 1e-5


def test_the_prompt_steers(tiny_pipeline):
    with_text = sampled(tiny_pipeline, prompt="a red horse", guidance_scale=1.0)
    assert np.abs(with_text - sampled(tiny_pipeline, guidance_scale=1.0)).max() > 1e-5


def attention_over_both(attn, own, reference):
    """Plain attention of one layer, written out: keys and values from both pictures."""
    both = torch.cat([own, reference], 1)
    heads = []
    for query, key, value in zip(
        attn.to_q(own).chunk(attn.heads, -1),
        attn.to_k(both).chunk(attn.heads, -1),
        attn.to_v(both).chunk(attn.heads, -1),
    ):
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        heads.append(scores.softmax(-1) @ value)
    return attn.to_out[0](torch.cat(heads, -1))


def test_reference_attention_is_attention_over_both_pictures(tiny_sizes):
    unet = build_unet(tiny_sizes).eval()
    bank = add_reference_attention(unet)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    attn = unet.get_submodule(name)
    own, reference = torch.randn(2, 9, 16), torch.randn(2, 5, 16)
    plain = attn(own)
    with bank.set_to("write"):
        attn(reference)
    with bank.set_to("read"):
        found = attn(own)
    torch.testing.assert_close(found, attention_over_both(attn, own, reference))
    torch.testing.assert_close(plain, attention_over_both(attn, own, own[:, :0]))
    assert bank.mode == "off"


def test_predictions_depend_on_the_reference_everywhere(tiny_sizes):
    unet = build_unet(tiny_sizes).eval()
    sample, tokens = torch.randn(1, 4, 24, 16), torch.randn(1, 5, 24)
    reference = torch.randn(1, 4, 8, 8, requires_grad=True)
    step = torch.tensor([400])
    with torch.no_grad():
        before = unet(sample, step, tokens).sample
    predicted = predict_with_reference(unet, sample, step, tokens, reference)
    assert predicted.shape == sample.shape
    # The far corner of the last view depends on every pixel of the reference.
    (gradient,) = torch.autograd.grad(predicted[0, :, -1, -1].sum(), reference)
    assert (gradient.abs().sum(1) > 0).all()
    layers = [p for p in unet.attn_processors.values() if isinstance(p, ReferenceAttention)]
    assert len(layers) == 6 and all(not layer.bank.features for layer in layers)
    assert add_reference_attention(unet) is layers[0].bank
    with torch.no_grad():
        torch.testing.assert_close(unet(sample, step, tokens).sample, before)


def test_the_mass_in_a_region_by_hand():
    attention = torch.tensor([[[0.4, 0.2], [0.2, 0.2]]])
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert mass_ratio(attention, mask).item() == pytest.approx(0.4 / 0.25)
    assert mass_ratio(torch.ones(1, 2, 2), mask).item() == pytest.approx(1)


def test_known_words_are_one_token(tiny_pipeline):
    tokenizer = tiny_pipeline.tokenizer
    ids = WordIds(tokenizer)
    for caption in ("a plain horse standing red head black legs", "", "the " * 40):
        expected = tokenizer(caption, padding="max_length", truncation=True).input_ids
        np.testing.assert_array_equal(ids(caption), expected)
    assert len(tokenizer("a red cow").input_ids) == 5
    spelled = tokenizer("zebu").input_ids  # in bytes: nothing is unknown
    assert tokenizer.decode(spelled, skip_special_tokens=True) == "zebu" and len(spelled) == 6


def test_merges_do_not_depend_on_the_order_of_words():
    words = ["the", "other", "path", "this", "hat"]
    assert _word_merges(words) == _word_merges(words[::-1])
    # t-h stands in "the", "other" and "this" (in "path" it ends the word), and nothing as often.
    assert _word_merges(words)[0] == ("t", "h")
    tokenizer = build_tokenizer(words, 24)
    for word in words:
        assert len(tokenizer(word).input_ids) == 3


@pytest.mark.parametrize("size", [16, 24])
def test_whitened_latents_and_the_same_pictures(tiny_pipeline, size):
    vae = tiny_pipeline.vae
    pixels = vae_pixels(torch.rand(64, 3, size, size))
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        decoded = vae.decode(before.mean).sample
        flat = before.mean.transpose(0, 1).flatten(1)
        whiten(vae, flat.mean(1), flat.std(1))
        after = vae.encode(pixels).latent_dist
        flat_after = after.mean.transpose(0, 1).flatten(1)
        torch.testing.assert_close(flat_after.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(flat_after.std(1), torch.ones(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(after.std, before.std / flat.std(1)[:, None, None], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(vae.decode(after.mean).sample, decoded, rtol=1e-3, atol=1e-4)


def test_the_folder_is_half_and_comes_back_whole(tiny_pipeline, tmp_path):
    folder = tmp_path / "small"
    size = save_half(tiny_pipeline, folder)
    assert size == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert save_half(tiny_pipeline, folder) == size and list(tmp_path.iterdir()) == [folder]
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["vision_encoder"] == ["transformers", "CLIPVisionModelWithProjection"]
    assert len(index["ramping_coefficients"]) == 24 and index["view_size"] == 16
    index["safety_checker"] = [None, None]  # as the published folder has it
    (folder / "model_index.json").write_text(json.dumps(index))
    again = load_small(folder)
    assert count_parameters(again) == count_parameters(tiny_pipeline)
    for name in ("unet", "vae", "text_encoder", "vision_encoder"):
        kept, loaded = getattr(tiny_pipeline, name).state_dict(), getattr(again, name).state_dict()
        for key, value in loaded.items():
            assert value.dtype in (torch.float32, torch.int64)
            torch.testing.assert_close(value, kept[key].half().to(value.dtype))
    assert again.tokenizer("a red horse").input_ids == tiny_pipeline.tokenizer("a red horse").input_ids
    assert np.isfinite(sampled(again)).all()


def test_the_folder_loads_as_diffusers_loads_custom_pipelines(tiny_pipeline, tmp_path):
    from diffusers import DiffusionPipeline

    save_half(tiny_pipeline, tmp_path / "small")
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path / "small",
        custom_pipeline=module.__file__,
        trust_remote_code=True,
        dtype=torch.float32,
        low_cpu_mem_usage=False,
    )
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(sampled(loaded), sampled(load_small(tmp_path / "small")))


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(UserError, match=r"expected a pipeline's folder at .*none; train one: python"):
        load_small(tmp_path / "none")
