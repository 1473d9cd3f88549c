"""A small Zero123Plus: its networks, its tokenizer, and its folder of half-precision weights.

The classes are those of the published model, so that whatever loads, steers or records that one does the
same with this one. Imported when used: pip install "wildshape[diffusion]".
"""

from __future__ import annotations

import copy
import itertools
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from pseudolabels.zero123plus.loading import quiet_loading
from pseudolabels.zero123plus.pipeline import IMAGE_STD, Zero123PlusPipeline
from wildshape.errors import UserError

SMALL = Path(__file__).parent / "small"
SCALING = 1 / 0.75  # our latents have unit variance, and keep it through `scale_latents`
_START, _END = "<|startoftext|>", "<|endoftext|>"
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class SmallConfig:
    """Sizes of the networks.

    Attributes:
        view_size: Pixels of a view's side, a multiple of 8.
        vae_channels: By level; the latents' side is the view's over 2 to the number of levels less one.
        unet_channels: By level. Only the first, at the latents' own resolution, has cross-attention on the
            way up, so that all maps that are recorded there are as fine as the latents.
        heads: Attention heads of the U-Net by level.
        middle_layers: Transformer layers at the bottom of the U-Net.
        width: Of tokens.
        tokens: Longest caption, with its start and end.
        layers: Of the text and the vision encoder.
        groups: Of the group normalisation.
        patch: Pixels of the vision encoder's patches.
    """

    view_size: int = 64
    vae_channels: tuple[int, ...] = (32, 32, 64)
    unet_channels: tuple[int, int] = (64, 96)
    heads: tuple[int, int] = (4, 6)
    middle_layers: int = 2
    width: int = 96
    tokens: int = 24
    layers: int = 2
    groups: int = 16
    patch: int = 8

    @property
    def latent_size(self) -> int:
        """Side of a view's latents."""
        return self.view_size // 2 ** (len(self.vae_channels) - 1)


def build_vae(config: SmallConfig) -> AutoencoderKL:
    """The autoencoder, from random weights."""
    levels = len(config.vae_channels)
    return AutoencoderKL(
        block_out_channels=config.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=min(config.groups, min(config.vae_channels)),
        sample_size=config.view_size,
        scaling_factor=SCALING,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def build_unet(config: SmallConfig) -> UNet2DConditionModel:
    """The denoiser, from random weights."""
    return UNet2DConditionModel(
        sample_size=config.latent_size,
        block_out_channels=config.unet_channels,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=(1, config.middle_layers),
        cross_attention_dim=config.width,
        attention_head_dim=config.heads,  # as in published configurations, these are numbers of heads
        norm_num_groups=config.groups,
        use_linear_projection=True,
    )


def _word_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in order, that make each word one token.

    The most frequent pair is merged first, the first in the alphabet among equals: a library's trainer
    breaks ties by chance, and a training that is resumed must find its tokens again.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for pieces in spelled for pair in itertools.pairwise(pieces))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for pieces in spelled:
            place = 0
            while place < len(pieces) - 1:
                if (pieces[place], pieces[place + 1]) == best:
                    pieces[place : place + 2] = ["".join(best)]
                place += 1


def build_tokenizer(words: Sequence[str], tokens: int) -> CLIPTokenizer:
    """A tokenizer with one token for each of the words (plain ASCII); it spells others in bytes."""
    merges = _word_merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys(first + second for first, second in merges)
    vocabulary = dict.fromkeys([*alphabet, *(byte + "</w>" for byte in alphabet), *pieces, _START, _END])
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=tokens,
    )


def build_text_encoder(config: SmallConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, from random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=2 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=max(config.width // 24, 1),
            max_position_embeddings=config.tokens,
            projection_dim=config.width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vision_encoder(config: SmallConfig) -> CLIPVisionModelWithProjection:
    """The vision encoder, from random weights."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=2 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=max(config.width // 24, 1),
            image_size=config.view_size,
            patch_size=config.patch,
            projection_dim=config.width,
        )
    )


def build_scheduler() -> EulerAncestralDiscreteScheduler:
    """Noise of training and sampling: a linear schedule and v-prediction, as Zero123++ (section 2.2)."""
    return EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="linspace",
        steps_offset=1,
    )


def ramp(tokens: int) -> list[float]:
    """How much of the picture's embedding is added to each token: nothing to the first, all to the last."""
    return [number / (tokens - 1) for number in range(tokens)]


def build_pipeline(config: SmallConfig, words: Sequence[str], seed: int = 0) -> Zero123PlusPipeline:
    """The whole pipeline from random weights.

    Args:
        config: Sizes.
        words: Of captions.
        seed: Of the weights.
    """
    tokenizer = build_tokenizer(words, config.tokens)
    size = {"height": config.view_size, "width": config.view_size}
    resizing = {"size": size, "crop_size": size, "do_center_crop": False, "do_convert_rgb": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Zero123PlusPipeline(
            vae=build_vae(config).eval(),
            text_encoder=build_text_encoder(config, tokenizer).eval(),
            tokenizer=tokenizer,
            unet=build_unet(config).eval(),
            scheduler=build_scheduler(),
            vision_encoder=build_vision_encoder(config).eval(),
            feature_extractor_clip=CLIPImageProcessor(
                image_mean=_CLIP_MEAN, image_std=_CLIP_STD, **resizing
            ),
            feature_extractor_vae=CLIPImageProcessor(
                image_mean=[0.5] * 3, image_std=[IMAGE_STD] * 3, **resizing
            ),
            ramping_coefficients=ramp(config.tokens),
            view_size=config.view_size,
        )


def clip_pixels(images: Tensor) -> Tensor:
    """RGB in 0 to 1 [B, 3, H, W] as the vision encoder takes it."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_STD))
    return (images - mean) / std


def vae_pixels(images: Tensor) -> Tensor:
    """RGB in 0 to 1 [B, 3, H, W] as the autoencoder takes it."""
    return (images - 0.5) / IMAGE_STD


@torch.no_grad()
def whiten(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Change an autoencoder so that latents of this mean and deviation [C] get 0 and 1, and pictures stay.

    The layers next to the latents are linear, and take the change up exactly.
    """
    outer, inner = vae.quant_conv, vae.post_quant_conv
    count = len(mean)
    outer.weight[:count] /= std[:, None, None, None]
    outer.bias[:count] = (outer.bias[:count] - mean) / std
    outer.bias[count:] -= 2 * std.log()
    inner.bias += (inner.weight[:, :, 0, 0] * mean).sum(1)
    inner.weight *= std[None, :, None, None]


def count_parameters(pipeline: Zero123PlusPipeline) -> dict[str, int]:
    """Parameters by component, and in all."""
    counts = {
        name: sum(parameter.numel() for parameter in component.parameters())
        for name, component in pipeline.components.items()
        if isinstance(component, nn.Module)
    }
    return {**counts, "all": sum(counts.values())}


def save_half(pipeline: Zero123PlusPipeline, folder: Path) -> int:
    """Write a pipeline's folder with float16 weights, whole or not at all; one that is there is replaced.

    Returns:
        Bytes of all files.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")
    components = {
        name: copy.deepcopy(component).half() if isinstance(component, nn.Module) else component
        for name, component in pipeline.components.items()
    }
    settings = {name: pipeline.config[name] for name in ("ramping_coefficients", "view_size")}
    try:
        with quiet_loading(always=True):
            type(pipeline)(**components, **settings).save_pretrained(temporary, safe_serialization=True)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def load_small(folder: Path = SMALL) -> Zero123PlusPipeline:
    """Load the small model in float32.

    Args:
        folder: Where it is; by default the one that comes with the package.

    Raises:
        UserError: if there is none.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"expected a pipeline's folder at {folder}; found none; train one: "
            "python pseudolabels/zero123plus/train_small.py"
        )
    with quiet_loading(always=True):
        pipeline = Zero123PlusPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
