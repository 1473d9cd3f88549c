"""A diffusion model as a source of attention: frozen, what gets in the way switched off.

Zero123Plus (arXiv 2310.15110), Stable Diffusion 1.5, 2.1, or whatever else has a UNet with cross-attention
in diffusers' layout (`sources.load_model`). Imported when used: pip install "wildshape[diffusion]".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pseudolabels.zero123plus.attention import (
    LayerMaps,
    Recorder,
    attention_maps,
    record_attention,
    token_width,
)
from wildshape.errors import UserError

TRAINING_STEPS = 50
"""Steps of the schedule whose last, least noisy one is used (published)."""


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
        revision: the commit of the repository that they are from; None: they are from a folder.

    Attributes:
        width: of the tokens.
        image_size: side of the pictures that the model was made for.
        layer_maps: what computes the maps of a layer.

    Raises:
        UserError: the UNet has no cross-attention in its up blocks, or a switch is on that it lacks.
    """

    def __init__(
        self,
        parts: dict[str, Any],
        switches: Switches | None = None,
        reading: Reading | None = None,
        revision: str | None = None,
    ) -> None:
        self.revision = revision
        self.unet, self.vae, self.scheduler = (parts[name] for name in ("unet", "vae", "scheduler"))
        self.pipeline = parts.get("pipeline")
        self.switches, self.reading = switches or Switches(), reading or Reading()
        self.layer_maps: LayerMaps = attention_maps
        if self.switches.on and self.pipeline is None:
            raise UserError(
                f"--{self.switches.on[0]}: expected a Zero123Plus model, which has it; found another one"
            )
        self._check_inputs()
        for network in (self.unet, self.vae):
            network.requires_grad_(False).eval()
        self.width = token_width(self.unet)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if self.pipeline is not None:
            self.image_size = int(self.pipeline.config.view_size)
        else:
            self.image_size = int(self.unet.config.sample_size) * self.factor

    def _check_inputs(self) -> None:
        more = getattr(self.unet.config, "addition_embed_type", None)
        if more is not None:
            raise UserError(
                f"--model: expected a UNet of latents, step and tokens alone; found one that takes "
                f"{more}, too, as in Stable Diffusion XL"
            )
        wanted, given = (int(n) for n in (self.unet.config.in_channels, self.vae.config.latent_channels))
        if wanted != given:
            raise UserError(
                f"--model: expected a UNet of the {given} channels of its autoencoder's latents; found "
                f"{wanted}, as for inpainting"
            )

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

    def try_out(self, image_size: int) -> None:
        """Read one picture of a side: raises now whatever `attention` would raise of such pictures."""
        picture = torch.ones(1, 3, image_size, image_size, device=self.device)
        noise = torch.zeros(1, *self.noise_shape(image_size), device=self.device)
        with torch.no_grad():
            self.attention(picture, torch.zeros(2, self.width, device=self.device), noise)

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
        if reference is not None:
            assert self.pipeline is not None
            with torch.no_grad():
                nothing = self.pipeline.encode_nothing(images).expand_as(reference)
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
        assert self.pipeline is not None
        encoder, prepare = self.pipeline.vision_encoder, self.pipeline.feature_extractor_clip
        side = encoder.config.image_size
        # As the feature extractor does, but for rounding to whole grey levels.
        seen = functional.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (seen.new_tensor(v)[:, None, None] for v in (prepare.image_mean, prepare.image_std))
        with torch.no_grad():
            embedding = encoder((seen - mean) / std).image_embeds
        ramp = torch.tensor(self.pipeline.config.ramping_coefficients, device=images.device)
        stretched = functional.interpolate(ramp[None, None], size=number, mode="linear", align_corners=True)
        return embedding[:, None] * stretched[0, 0][None, :, None]
