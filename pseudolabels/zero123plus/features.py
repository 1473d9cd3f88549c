"""A diffusion model as a source of attention: loaded, frozen, what gets in the way switched off.

Zero123Plus (arXiv 2310.15110), Stable Diffusion 1.5, 2.1, or whatever else has a UNet with cross-attention
in diffusers' layout. Imported when used: pip install "wildshape[diffusion]".
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pseudolabels.zero123plus.attention import (
    LayerMaps,
    Recorder,
    attention_maps,
    record_attention,
    token_width,
)
from wildshape.errors import UserError

PUBLISHED = "sudo-ai/zero123plus-v1.2"
TRAINING_STEPS = 50
"""Steps of the schedule whose last, least noisy one is used (published)."""
_FULL = "float32"


@dataclass(frozen=True)
class Switches:
    """Parts of Zero123Plus that keep attention diffuse; published for keypoints: all off.

    Attributes:
        global_embeddings: add the picture's embedding to the tokens, ramped over them.
        guidance: also run without the picture, and average the attention of both.
        reference_attention: let self-attention look at the picture beside the noisy one.
    """

    global_embeddings: bool = False
    guidance: bool = False
    reference_attention: bool = False

    @property
    def on(self) -> tuple[str, ...]:
        """Names of those that are on."""
        return tuple(name for name, value in vars(self).items() if value)


@dataclass(frozen=True)
class Reading:
    """How attention is read.

    Attributes:
        side: longer side of the maps (published: 128).
        layers: of the up blocks, the first ones (published: 3).
        published: see `attention.Recorder`.
        whole: run the whole UNet, though nothing after the last recorded layer is read.
        noise_step: of `TRAINING_STEPS`, from the noisiest; -1 is the least noisy.
    """

    side: int = 128
    layers: int = 3
    published: bool = False
    whole: bool = False
    noise_step: int = -1


class AttentionModel:
    """Attention of tokens over pictures, by a diffusion model that stays as it is.

    Args:
        parts: ``unet``, ``vae``, ``scheduler`` and, for Zero123Plus, the whole ``pipeline``.
        switches: of Zero123Plus; others have nothing to switch.
        reading: see `Reading`.

    Attributes:
        width: of the tokens.
        image_size: side of the pictures that the model was made for.
        layer_maps: what computes the maps of a layer.

    Raises:
        UserError: the UNet has no cross-attention in its up blocks, or a switch is on that it lacks.
    """

    def __init__(
        self, parts: dict[str, Any], switches: Switches | None = None, reading: Reading | None = None
    ) -> None:
        self.unet, self.vae, self.scheduler = (parts[name] for name in ("unet", "vae", "scheduler"))
        self.pipeline = parts.get("pipeline")
        self.switches, self.reading = switches or Switches(), reading or Reading()
        self.layer_maps: LayerMaps = attention_maps
        if self.switches.on and self.pipeline is None:
            raise UserError(
                f"--{self.switches.on[0]}: expected a Zero123Plus model, which has it; found another one"
            )
        for network in (self.unet, self.vae):
            network.requires_grad_(False).eval()
        self.width = token_width(self.unet)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if self.pipeline is not None:
            self.image_size = int(self.pipeline.config.view_size)
        else:
            self.image_size = int(self.unet.config.sample_size) * self.factor

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.unet.parameters()).device

    def noise_shape(self, image_size: int) -> tuple[int, int, int]:
        """Shape [C, s, s] of the noise for pictures of a side.

        Raises:
            UserError: a picture is smaller than a pixel of the latents.
        """
        if image_size < self.factor:
            raise UserError(
                f"expected crops of at least {self.factor} pixels, one of the model's latents; "
                f"found {image_size}"
            )
        side = image_size // self.factor
        return int(self.unet.config.in_channels), side, side

    def attention(
        self, images: Tensor, embedding: Tensor, noise: Tensor, kept: Tensor | None = None
    ) -> Tensor:
        """Maps [B, N, h, w] of tokens, mean over layers and heads; the gradient flows to the tokens alone.

        Args:
            images: [B, 3, S, S] in 0..1.
            embedding: tokens [N, D].
            noise: [B, C, s, s], see `noise_shape`.
            kept: indices [M] of the tokens whose maps are wanted, [B, M, h, w]; None: all.
        """
        with torch.no_grad():
            latents, reference = self._encode(images)
            noisy, step = self._add_noise(latents, noise)
            beside = None if reference is None else self._add_noise(reference, noise)[0]
        tokens = embedding.expand(len(images), *embedding.shape)
        if self.switches.global_embeddings:
            tokens = tokens + self._global_embeddings(images, len(embedding))
        found = self._read((noisy, step), tokens, beside, kept)
        # Without the other two nothing of the picture can be left out: the mean is of two equal maps.
        if not self.switches.guidance or self.switches.on == ("guidance",):
            return found
        without = None
        if beside is not None:
            with torch.no_grad():
                nothing = self._encode(torch.zeros_like(images))[1]
                assert nothing is not None
                without = self._add_noise(nothing, noise)[0]
        plain = embedding.expand(len(images), *embedding.shape)
        return (found + self._read((noisy, step), plain, without, kept)) / 2

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents as the UNet knows them, and unscaled ones for reference attention if that is on."""
        if self.pipeline is None:
            mode = self.vae.encode(2 * images - 1).latent_dist.mode()
            return mode * self.vae.config.scaling_factor, None
        from pseudolabels.zero123plus.pipeline import IMAGE_STD, scale_latents

        mode = self.vae.encode((images - 0.5) / IMAGE_STD).latent_dist.mode()
        scaled = scale_latents(mode * self.vae.config.scaling_factor)
        return scaled, mode if self.switches.reference_attention else None

    def _add_noise(self, latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        scheduler = self.scheduler
        scheduler.set_timesteps(TRAINING_STEPS, device=latents.device)
        step = scheduler.timesteps[self.reading.noise_step]
        noisy = scheduler.add_noise(latents, noise.to(latents), step.reshape(1))
        return scheduler.scale_model_input(noisy, step), step

    def _read(
        self, noised: tuple[Tensor, Tensor], tokens: Tensor, reference: Tensor | None, kept: Tensor | None
    ) -> Tensor:
        (noisy, step), reading = noised, self.reading
        recorder = Recorder(
            noisy.shape[-2],
            noisy.shape[-1],
            reading.side,
            reading.layers,
            stop=not reading.whole,
            published=reading.published,
            kept=kept,
            layer_maps=self.layer_maps,
        )
        if reference is None:
            return record_attention(self.unet, noisy, step, tokens, recorder)
        from pseudolabels.zero123plus.reference import add_reference_attention

        bank = add_reference_attention(self.unet)
        try:
            with bank.set_to("write"):
                self.unet(reference, step, encoder_hidden_states=tokens)
            with bank.set_to("read"):
                return record_attention(self.unet, noisy, step, tokens, recorder)
        finally:
            bank.features.clear()

    def _global_embeddings(self, images: Tensor, number: int) -> Tensor:
        """The pictures' embeddings as they are added to N tokens [B, N, D].

        The published ramp has one coefficient for each of 77 text tokens; it is stretched over N.
        """
        from pseudolabels.zero123plus.small_model import clip_pixels

        assert self.pipeline is not None
        with torch.no_grad():
            embedding = self.pipeline.vision_encoder(clip_pixels(images)).image_embeds
        ramp = torch.tensor(self.pipeline.config.ramping_coefficients, device=images.device)
        stretched = torch.nn.functional.interpolate(
            ramp[None, None], size=number, mode="linear", align_corners=True
        )
        return embedding[:, None] * stretched[0, 0][None, :, None]


def load_model(
    source: str,
    *,
    device: torch.device,
    switches: Switches | None = None,
    reading: Reading | None = None,
    revision: str | None = None,
    dtype: str = _FULL,
) -> AttentionModel:
    """Load a model in diffusers' layout from a folder or a hub.

    Components of Zero123Plus are read by a pipeline class of this project's, so that nobody else's code
    runs. Half-precision files are turned into float32.

    Args:
        source: ``small`` (the one that comes with the package), a folder, or a repository.
        device: where to put it.
        switches: see `Switches`.
        reading: see `Reading`.
        revision: of the repository, a commit to be exact.
        dtype: float32, and nothing else.

    Raises:
        UserError: half precision is asked for, there is no such model, it has no cross-attention, or
            diffusers is not installed.
    """
    if dtype != _FULL:
        raise UserError(
            f"--dtype {dtype}: expected float32; with less precision the tokens do not converge"
        )
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            'unsupervised keypoints need diffusers; run: pip install "wildshape[diffusion]"'
        ) from error
    if source == "small":
        from pseudolabels.zero123plus.small_model import load_small

        return _from_pipeline(load_small(), device, switches, reading)
    try:
        return _read_folder(diffusers, source, device, (switches, reading), revision)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"--model: expected small, a folder or a repository in diffusers' layout; {source} cannot be "
            f"loaded ({line}); without a network, put {PUBLISHED} into a folder and name that"
        ) from error


def _read_folder(
    diffusers: Any,
    source: str,
    device: torch.device,
    how: tuple[Switches | None, Reading | None],
    revision: str | None,
) -> AttentionModel:
    from pseudolabels.zero123plus.loading import quiet_loading

    where = {"local_files_only": Path(source).is_dir() or os.environ.get("HF_HUB_OFFLINE") == "1"}
    # Where accelerate is missing, diffusers tells of it at length.
    memory = {} if importlib.util.find_spec("accelerate") else {"low_cpu_mem_usage": False}
    where |= {"revision": revision} if revision and not Path(source).is_dir() else {}
    with quiet_loading():
        index = diffusers.DiffusionPipeline.load_config(source, **where)
        if index["_class_name"] == "Zero123PlusPipeline":
            from pseudolabels.zero123plus.pipeline import Zero123PlusPipeline

            pipeline = Zero123PlusPipeline.from_pretrained(source, dtype=torch.float32, **where, **memory)
            return _from_pipeline(pipeline, device, *how)
        parts: dict[str, Any] = {}
        for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
            options = {**where, **memory, "subfolder": name, "dtype": torch.float32}
            parts[name] = kind.from_pretrained(source, **options)
            parts[name].to(device)
        scheduler = getattr(diffusers, index["scheduler"][1])
        parts["scheduler"] = scheduler.from_pretrained(source, subfolder="scheduler", **where)
    return AttentionModel(parts, *how)


def _from_pipeline(
    pipeline: Any, device: torch.device, switches: Switches | None, reading: Reading | None
) -> AttentionModel:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    names = ("unet", "vae", "scheduler")
    parts = {name: getattr(pipeline, name) for name in names} | {"pipeline": pipeline}
    return AttentionModel(parts, switches, reading)
