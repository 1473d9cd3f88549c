"""Where tokens look: the cross-attention of a network's way up, recorded while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CROSS_ATTENTION = "attn2.processor"  # how diffusers' names of cross-attention processors end


class _Recorder:
    """An attention processor that keeps its probabilities, around another one."""

    def __init__(self, name: str, maps: dict[str, Tensor], inner: Any) -> None:
        self.name, self.maps, self.inner = name, maps, inner

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
        batch, pixels, _ = query.shape
        query, key = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key))
        scores = query @ key.transpose(-1, -2) * attn.scale
        self.maps[self.name] = scores.softmax(-1).mean(1)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


@contextmanager
def recorded_attention(unet: Any) -> Iterator[dict[str, Tensor]]:
    """Record the cross-attention of a U-Net's up blocks while a block runs.

    Args:
        unet: A `UNet2DConditionModel`.

    Yields:
        By layer, filled by each run: [B, pixels, tokens], the mean over heads of a softmax over the tokens.
    """
    maps: dict[str, Tensor] = {}
    before = dict(unet.attn_processors)
    recording = {
        name: _Recorder(name, maps, inner)
        if name.startswith("up_blocks") and name.endswith(CROSS_ATTENTION)
        else inner
        for name, inner in before.items()
    }
    unet.set_attn_processor(recording)
    try:
        yield maps
    finally:
        unet.set_attn_processor(before)


def mass_ratio(attention: Tensor, mask: Tensor) -> Tensor:
    """How much more of a token's attention falls into a region than if it were spread evenly.

    Args:
        attention: [..., H, W], not negative.
        mask: [..., H, W] in 0 to 1, not empty.

    Returns:
        [...]: 1 is chance, 1 / (area of the region) all of it.
    """
    inside = (attention * mask).sum((-1, -2)) / attention.sum((-1, -2))
    return inside / mask.mean((-1, -2))


def token_maps(maps: dict[str, Tensor], side: int) -> Tensor:
    """Mean over recorded layers with square maps of a side: [B, side, side, tokens]."""
    fitting = [one for one in maps.values() if one.shape[1] == side * side]
    return torch.stack(fitting).mean(0).unflatten(1, (side, side))
