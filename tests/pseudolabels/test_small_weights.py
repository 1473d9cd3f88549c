"""The small model that comes with the package: its files, and what it learnt, on animals it never saw."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prepare_data.diorama.subjects import PARTS
from prepare_data.make_views import Config, make_zoo, picture_columns, ring_columns
from pseudolabels.zero123plus.small_caption_task import CaptionTask
from pseudolabels.zero123plus.small_data import Caption
from pseudolabels.zero123plus.small_latents import PictureLatents, RingLatents, encode, ring_file
from pseudolabels.zero123plus.small_model import SMALL, count_parameters, load_small
from pseudolabels.zero123plus.small_ring_task import RingData
from pseudolabels.zero123plus.small_training import TaskConfig, psnr, to_pixels
from pseudolabels.zero123plus.small_vae_task import reconstruct
from pseudolabels.zero123plus.small_views_task import ViewsTask

ANIMALS, SEED = 12, 9905


@pytest.fixture(scope="module")
def pipeline():
    return load_small()


@pytest.fixture(scope="module")
def pictures():
    """Image, parts and caption of four pictures of each animal."""
    config = Config(seed=SEED)
    zoo = make_zoo(config)
    columns = [picture_columns(config, zoo, "train", index) for index in range(ANIMALS)]
    return {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}


def test_files_are_small_and_in_half_precision(pipeline):
    files = [path for path in SMALL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in SMALL.rglob("*.safetensors"):
        tensors = load_file(path).values()
        assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float16}
        assert all(torch.isfinite(tensor).all() for tensor in tensors)
    assert 4.3e6 < count_parameters(pipeline)["all"] < 4.5e6
    assert {parameter.dtype for parameter in pipeline.unet.parameters()} == {torch.float32}


@torch.inference_mode()
def test_pictures_come_back_from_latents_of_unit_variance(pipeline, pictures):
    pixels = to_pixels(pictures["image"])
    assert psnr(reconstruct(pipeline.vae, pixels), pixels).mean() > 26
    latents = encode(pipeline.vae, pictures["image"]).astype(np.float32)
    assert 0.8 < latents.std() < 1.2


def test_captions_steer_it_and_their_words_look_at_parts(pipeline, pictures):
    data = PictureLatents(
        encode(pipeline.vae, pictures["image"]),
        tuple(Caption.from_json(text) for text in pictures["caption"]),
        pictures["parts"],
    )
    found = CaptionTask(pipeline, data, data, PARTS, TaskConfig()).evaluate()
    assert found["loss"] < 0.95 * found["loss_without"] < 0.9 * found["loss_shuffled"]
    assert found["attention"] > 1.2 and found["attention_body"] > 1.4 and found["attention_neck"] > 1.3


def test_views_are_those_of_the_picture(pictures):
    pipeline = load_small()  # its U-Net gets reference attention
    config = Config(seed=SEED)
    zoo = make_zoo(config)
    columns = [ring_columns(config, zoo, "train", index) for index in range(8)]
    data = {name: np.concatenate([one[name] for one in columns]) for name in ("inputs", "targets")}
    rings = RingLatents(**ring_file(pipeline.vae, data), images=data["inputs"])
    captions = PictureLatents(
        encode(pipeline.vae, pictures["image"][:1]),
        (Caption.from_json(pictures["caption"][0]),),
        pictures["parts"][:1],
    )
    found = ViewsTask(pipeline, RingData(rings, rings, captions), TaskConfig()).evaluate()
    assert found["loss"] < 0.88 * found["loss_shuffled"]
