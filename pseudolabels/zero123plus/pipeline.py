"""The Zero123Plus pipeline: six views of an object from one picture (arXiv 2310.15110).

It loads folders in diffusers' layout with the components of sudo-ai/zero123plus-v1.2, and our small model.
Imported when used: pip install "wildshape[diffusion]".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from pseudolabels.zero123plus.reference import predict_with_reference

GRID = (3, 2)  # rows and columns of views
AZIMUTHS = (30, 90, 150, 210, 270, 330)  # of the views, row by row, relative to the input's, degrees
ELEVATIONS = (20, -10, 20, -10, 20, -10)  # absolute, degrees
GREY = 127  # under pictures with transparency
IMAGE_STD = 0.8  # pixels in 0 to 1 enter the autoencoder as (x - .5) / .8


def scale_latents(latents: Tensor) -> Tensor:
    """Latents of the grid of views as the network knows them."""
    return (latents - 0.22) * 0.75


def unscale_latents(latents: Tensor) -> Tensor:
    """Undo `scale_latents`."""
    return latents / 0.75 + 0.22


def on_grey(image: Image.Image) -> Image.Image:
    """The picture as RGB, over grey where it is transparent."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGB", image.size, (GREY, GREY, GREY))
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def split_grid(grid: np.ndarray) -> np.ndarray:
    """Views [6, H, W, ...] of a grid [3 H, 2 W, ...], row by row."""
    rows, columns = GRID
    height, width = grid.shape[0] // rows, grid.shape[1] // columns
    cells = grid.reshape(rows, height, columns, width, *grid.shape[2:])
    return np.swapaxes(cells, 1, 2).reshape(rows * columns, height, width, *grid.shape[2:])


class Zero123PlusPipeline(DiffusionPipeline):
    """Six views from one picture.

    Args:
        vae: Autoencoder.
        text_encoder: Encodes the prompt, which is empty as a rule.
        tokenizer: Of the text encoder.
        unet: Denoises the latents of the grid.
        scheduler: Of the sampling.
        vision_encoder: Embeds the picture as a whole.
        feature_extractor_clip: Prepares the picture for the vision encoder.
        feature_extractor_vae: Prepares the picture for the autoencoder.
        ramping_coefficients: [L], how much of the picture's embedding is added to each token.
        safety_checker: Not used; published folders name it.
        view_size: Pixels of a view's side.
    """

    # diffusers reads the components of a folder from these names.
    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        vision_encoder: CLIPVisionModelWithProjection,
        feature_extractor_clip: CLIPImageProcessor,
        feature_extractor_vae: CLIPImageProcessor,
        ramping_coefficients: list[float] | None = None,
        safety_checker: Any = None,
        view_size: int = 320,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            vision_encoder=vision_encoder,
            feature_extractor_clip=feature_extractor_clip,
            feature_extractor_vae=feature_extractor_vae,
        )
        self.register_to_config(ramping_coefficients=ramping_coefficients, view_size=view_size)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Token embeddings [B, L, D] of prompts, padded to the text encoder's length."""
        length = self.tokenizer.model_max_length
        found = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(found.input_ids.to(self.text_encoder.device))[0]

    def encode_reference(self, image: Image.Image) -> Tensor:
        """Latents [1, C, h, w] of a picture, unscaled: so does reference attention take them."""
        return self.vae.encode(self._pixels(image)).latent_dist.mode()

    def encode_nothing(self, pixels: Tensor) -> Tensor:
        """Unscaled latents [1, C, h, w] of a picture of nothing, grey, as large as pixels [B, 3, H, W]."""
        return self.vae.encode(torch.zeros_like(pixels[:1])).latent_dist.mode()

    def embed_globally(self, image: Image.Image) -> Tensor:
        """What a picture as a whole adds to the tokens: [1, L, D]."""
        pixels = self.feature_extractor_clip(images=image, return_tensors="pt").pixel_values
        encoder = self.vision_encoder
        embedding = encoder(pixels.to(encoder.device, encoder.dtype)).image_embeds
        return ramped(embedding, self.config.ramping_coefficients)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in 0 to 1 of the network's latents of grids."""
        plain = unscale_latents(latents) / self.vae.config.scaling_factor
        return (self.vae.decode(plain).sample * IMAGE_STD + 0.5).clamp(0, 1)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image,
        prompt: str = "",
        *,
        num_inference_steps: int = 28,
        guidance_scale: float = 4.0,
        global_embeddings: bool = True,
        reference_attention: bool = True,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample the grid of six views of what a picture shows.

        Args:
            image: The picture, square, with transparency or over a plain white or grey ground.
            prompt: Text beside the picture; the published model was trained without.
            num_inference_steps: Steps of the sampling.
            guidance_scale: How far to go beyond the unconditional prediction; 1 switches guidance off.
            global_embeddings: Whether the picture's embedding is added to the tokens.
            reference_attention: Whether self-attention looks at the picture.
            generator: Of the noise.
            output_type: "pil", "np" (float [1, H, W, 3] in 0 to 1) or "latent" (as the network knows them).

        Returns:
            images: the grid [3, 2] of views, azimuths `AZIMUTHS` and elevations `ELEVATIONS` row by row.
        """
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type: expected pil, np or latent; found {output_type}")
        guided = guidance_scale > 1
        plain = on_grey(image)
        reference = self.encode_reference(plain)
        tokens = self.encode_prompt([prompt])
        unconditional = self.encode_prompt([""]) if guided and prompt else tokens
        if global_embeddings:
            tokens = tokens + self.embed_globally(plain)
        if guided:
            # Guidance leads away from a picture of nothing.
            nothing = self.encode_nothing(self._pixels(plain))
            reference, tokens = torch.cat([nothing, reference]), torch.cat([unconditional, tokens])
        latents = self._sample(
            tokens,
            reference if reference_attention else None,
            guidance_scale,
            num_inference_steps,
            generator,
        )
        if output_type == "latent":
            return ImagePipelineOutput(images=latents)
        grid = self.decode(latents).permute(0, 2, 3, 1).cpu().float().numpy()
        if output_type == "pil":
            grid = [Image.fromarray(np.rint(one * 255).astype(np.uint8)) for one in grid]
        return ImagePipelineOutput(images=grid)

    def _pixels(self, image: Image.Image) -> Tensor:
        pixels = self.feature_extractor_vae(images=image, return_tensors="pt").pixel_values
        return pixels.to(self.vae.device, self.vae.dtype)

    def _sample(
        self,
        tokens: Tensor,
        reference: Tensor | None,
        guidance_scale: float,
        steps: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Latents [1, C, H, W] of a grid; tokens and reference [2, ...] where guided, without and with."""
        scheduler, unet = self.scheduler, self.unet
        side = self.config.view_size // self.vae_scale_factor
        shape = (1, unet.config.in_channels, GRID[0] * side, GRID[1] * side)

        def noise(shape: Any) -> Tensor:
            # Drawn where the generator lives, so that a seed gives the same noise on every device.
            where = "cpu" if generator is None else generator.device
            return torch.randn(shape, generator=generator, device=where, dtype=unet.dtype).to(unet.device)

        scheduler.set_timesteps(steps, device=unet.device)
        latents = noise(shape) * scheduler.init_noise_sigma
        for t in self.progress_bar(scheduler.timesteps):
            sample = scheduler.scale_model_input(latents.expand(len(tokens), -1, -1, -1), t)
            if reference is None:
                predicted = unet(sample, t, tokens).sample
            else:
                noisy = scheduler.add_noise(reference, noise(reference.shape), t.reshape(1))
                noisy = scheduler.scale_model_input(noisy, t)
                predicted = predict_with_reference(unet, sample, t, tokens, noisy)
            if len(tokens) == 2:
                without, with_picture = predicted.chunk(2)
                predicted = without + guidance_scale * (with_picture - without)
            latents = scheduler.step(predicted, t, latents, generator=generator).prev_sample
        return latents


def ramped(embedding: Tensor, coefficients: list[float]) -> Tensor:
    """A picture's embedding [B, D] as it is added to L tokens: [B, L, D]."""
    ramp = embedding.new_tensor(coefficients)
    return embedding[:, None] * ramp[None, :, None]
