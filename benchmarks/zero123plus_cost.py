"""What a step of learning tokens costs on paper, at the size of Stable Diffusion 2.1 and Zero123Plus.

For `benchmarks.zero123plus_speed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pseudolabels.zero123plus.attention import LayerInput, Recorder, cross_attention_layers, recording

TOKENS = 500
LATENTS, PAPER_SIDE, PAPER_LAYERS = 64, 128, 3


def large_unet() -> UNet2DConditionModel:
    """A U-Net of Stable Diffusion 2.1's sizes (Zero123Plus has the same), random."""
    return UNet2DConditionModel(
        sample_size=LATENTS,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),  # numbers of heads, as in the published configuration
        cross_attention_dim=1024,
        use_linear_projection=True,
    )


def large_vae() -> AutoencoderKL:
    """Its autoencoder, random."""
    channels = (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=8 * LATENTS,
    )


def saved_bytes(action: Callable[[], Any], *networks: torch.nn.Module) -> int:
    """Bytes of distinct storages kept for the way back at the most; those of networks do not count."""
    weights = {weight.untyped_storage()._cdata for network in networks for weight in network.parameters()}
    alive: dict[int, int] = {}
    most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            storage = tensor.untyped_storage()
            self.tensor, self.key = tensor, storage._cdata
            self.size = 0 if self.key in weights else storage.nbytes()
            uses[self.key] = uses.get(self.key, 0) + 1
            if uses[self.key] == 1:
                alive[self.key] = self.size
                most = max(most, sum(alive.values()))

        def __del__(self) -> None:
            uses[self.key] -= 1
            if not uses[self.key]:
                del uses[self.key], alive[self.key]

    uses: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        action()
    return most


def on_paper() -> dict[str, Any]:
    """Operations and bytes of the large U-Net on a crop and its copy, and of the maps that are recorded.

    The U-Net's are counted on tensors without contents, with fused attention; maps are left out there and
    told by formula.
    """
    with FakeTensorMode():
        return _counted()


def _counted() -> dict[str, Any]:
    unet = large_unet().requires_grad_(False).eval()
    latents = torch.zeros(2, 4, LATENTS, LATENTS)
    timestep = torch.zeros((), dtype=torch.int64)
    counted: dict[str, Any] = {"parameters_millions": round(_parameters(unet) / 1e6, 1)}
    for name, stop in (("whole", False), ("stopped", True)):
        recorder = Recorder(LATENTS, LATENTS, layers=PAPER_LAYERS, stop=stop, layer_maps=_nearly_nothing)
        tokens = torch.zeros(1, TOKENS, 1024, requires_grad=True)
        forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)

        def run(recorder: Recorder = recorder, tokens: Tensor = tokens, counter: Any = forward) -> None:
            with recording(unet, recorder), counter:
                unet(latents, timestep, encoder_hidden_states=tokens.expand(2, -1, -1))

        kept = saved_bytes(run, unet)
        with backward:
            sum(maps.sum() for maps in recorder.maps).backward()  # type: ignore[union-attr]
        counted[name] = {
            "forward_tflop": round(forward.get_total_flops() / 1e12, 3),
            "backward_tflop": round(backward.get_total_flops() / 1e12, 3),
            "kept_gb": round(kept / 1e9, 3),
        }
    both = {key: counted["stopped"][key] / counted["whole"][key] for key in counted["whole"]}
    counted["stopped_to_whole"] = {key.rsplit("_", 1)[0]: round(value, 3) for key, value in both.items()}
    counted["maps"] = _maps_on_paper(unet)
    return counted


def _nearly_nothing(attn: Any, given: LayerInput) -> Tensor:
    """Depends on all that maps depend on, and costs next to nothing beside the projections."""
    query, key = attn.to_q(given.features), attn.to_k(given.tokens)
    return query.mean((1, 2)) + key.mean((1, 2))


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _maps_on_paper(unet: UNet2DConditionModel) -> dict[str, Any]:
    """Matrix products and bytes kept of the recorded maps, of two pictures in float32."""
    pixels, layers = PAPER_SIDE**2, [layer for _, layer in cross_attention_layers(unet)][:PAPER_LAYERS]
    products = projections = plain = blocked = 0
    for layer in layers:
        width = layer.to_q.in_features
        products += 2 * 2 * pixels * TOKENS * width  # q k of all heads
        projections += 2 * 2 * pixels * width**2
        # the twin keeps every head's shares, the queries and the upsampled features' shape alone
        plain += 4 * 2 * (layer.heads * pixels * TOKENS + pixels * width + TOKENS * width)
        coarse = (LATENTS // 4) ** 2
        blocked += 4 * 2 * (coarse * width + TOKENS * width + layer.heads * pixels)
    return {
        "reference": {
            "forward_tflop": round((products + projections) / 1e12, 3),
            "backward_tflop": round((2 * products + projections) / 1e12, 3),
            "kept_gb": round(plain / 1e9, 3),
        },
        "fast": {
            "forward_tflop": round(products / 1e12, 3),
            "backward_tflop": round(3 * products / 1e12, 3),
            "kept_gb": round(blocked / 1e9, 3),
        },
    }
