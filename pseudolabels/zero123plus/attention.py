"""How much every pixel attends to every token in a UNet's up blocks, recorded while it runs.

After StableKeypoints (Hedlin et al., CVPR 2024, section 3.1): the attention of a cross-attention layer is
softmax over tokens of q k / sqrt(d); its queries' features are upsampled first, which makes maps finer than
the layer. Nothing of the network is changed: processors are wrapped while a block runs and put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pseudolabels.zero123plus.token_shares import token_shares
from wildshape.errors import UserError

LARGEST_MAP = 32
"""Layers with more rows or columns are not recorded (published)."""


class _Stop(Exception):
    """Raised when everything that was wanted is recorded."""


@dataclass(frozen=True)
class LayerInput:
    """What a cross-attention layer is given, and the maps that are wanted of it.

    Attributes:
        features: [B, h * w, C].
        tokens: [B, N, D].
        shape: rows and columns h, w of the layer.
        size: rows and columns of the maps.
        kept: indices [M] of the tokens whose maps are wanted; None: all.
    """

    features: Tensor
    tokens: Tensor
    shape: tuple[int, int]
    size: tuple[int, int]
    kept: Tensor | None = None


def attention_maps(attn: Any, given: LayerInput) -> Tensor:
    """The attention of one cross-attention layer.

    Upsampling and the projection to queries are both linear, one over places and one over channels: queries
    are projected at the layer's resolution and upsampled afterwards.

    Args:
        attn: a diffusers ``Attention``.
        given: see `LayerInput`.

    Returns:
        [B, N or M, rows, columns], mean over heads; over all tokens it sums to 1.
    """
    features, tokens, shape = given.features, given.tokens, given.shape
    if attn.norm_cross:
        tokens = attn.norm_encoder_hidden_states(tokens)
    if attn.norm_q is not None:  # not linear
        features, shape = upsampled(features, shape, given.size), given.size
    query = attn.to_q(features).unflatten(2, (attn.heads, -1)).transpose(1, 2)
    key = attn.to_k(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    return token_shares(query * attn.scale, key, shape, given.size, given.kept)


LayerMaps = Callable[[Any, LayerInput], Tensor]
"""What computes the maps of a layer: `attention_maps`, or its readable twin."""


@dataclass
class Recorder:
    """What to record, and the maps recorded by the last run.

    Attributes:
        height: rows of the latents.
        width: columns of the latents.
        side: longer side of the recorded maps (published: 128).
        layers: how many layers to record, the first ones of the up blocks (published: 3).
        stop: whether to end the run with the last recorded layer; its result is of no use then.
        published: as released, let recorded layers answer from their upsampled queries, shrunk again
            (bicubic): later layers then see slightly other features than the network was trained with.
        kept: indices [M] of the tokens whose maps are wanted; None: all N. Others still take their share.
        layer_maps: computes a layer's maps.
        maps: by layer, [B, N or M, h, w]: mean over heads.
    """

    height: int
    width: int
    side: int = 128
    layers: int = 3
    stop: bool = True
    published: bool = False
    kept: Tensor | None = None
    layer_maps: LayerMaps = attention_maps
    maps: list[Tensor] = field(default_factory=list)

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns of the recorded maps."""
        longer = max(self.height, self.width)
        return round(self.side * self.height / longer), round(self.side * self.width / longer)

    def shape_of(self, positions: int) -> tuple[int, int]:
        """Rows and columns of a layer with so many positions."""
        factor = math.sqrt(self.height * self.width / positions)
        rows = max(1, round(self.height / factor))
        return rows, positions // rows


class _Recording:
    """An attention processor that records, then does as the wrapped one."""

    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self.inner, self.recorder = inner, recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        recorder = self.recorder
        tokens = encoder_hidden_states
        if tokens is not None and len(recorder.maps) < recorder.layers:
            shape = recorder.shape_of(hidden_states.shape[1])
            if max(shape) <= LARGEST_MAP:
                given = LayerInput(hidden_states, tokens, shape, recorder.map_size, recorder.kept)
                recorder.maps.append(recorder.layer_maps(attn, given))
                if recorder.stop and len(recorder.maps) == recorder.layers:
                    raise _Stop
                if recorder.published:
                    fine = upsampled(hidden_states, shape, recorder.map_size)
                    answer = self.inner(attn, fine, tokens, attention_mask, **settings)
                    return upsampled(answer, recorder.map_size, shape)
        return self.inner(attn, hidden_states, tokens, attention_mask, **settings)


def upsampled(features: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Features [B, h * w, C] of a grid resized (bicubic): [B, h' * w', C]."""
    if size == shape:
        return features
    grid = features.transpose(1, 2).unflatten(2, shape)
    grid = functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


def cross_attention_layers(unet: nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of the cross-attention layers in a UNet's up blocks, in the order they run.

    Raises:
        UserError: it has none.
    """
    found = [
        (name, module)
        for name, module in unet.named_modules()
        if name.startswith("up_blocks.") and name.endswith(".attn2")
    ]
    if not found:
        kinds = sorted({type(block).__name__ for block in getattr(unet, "up_blocks", ())}) or [
            "no up blocks"
        ]
        raise UserError(
            "expected a UNet with cross-attention in its up blocks (such as CrossAttnUpBlock2D); "
            f"found {', '.join(kinds)}"
        )
    return found


def token_width(unet: nn.Module) -> int:
    """Width of the tokens that a UNet's cross-attention reads, from its weights."""
    return int(cross_attention_layers(unet)[0][1].to_k.in_features)


@contextmanager
def recording(unet: nn.Module, recorder: Recorder) -> Iterator[Recorder]:
    """Record the attention of a UNet's up blocks while the block runs.

    A run that the recorder stops ends inside the block without an error.
    """
    wrapped = [(module, module.processor) for _, module in cross_attention_layers(unet)]
    recorder.maps.clear()
    for module, processor in wrapped:
        module.processor = _Recording(processor, recorder)
    try:
        yield recorder
    except _Stop:
        pass
    finally:
        for module, processor in wrapped:
            module.processor = processor


def record_attention(
    unet: Any, latents: Tensor, timestep: Tensor | int, tokens: Tensor, recorder: Recorder, **settings: Any
) -> Tensor:
    """Attention of tokens, averaged over layers and heads.

    Args:
        unet: a diffusers UNet, or what calls one.
        latents: noisy latents [B, 4, h, w].
        timestep: of the noise.
        tokens: [B, N, D].
        recorder: what to record.
        **settings: further arguments of the UNet.

    Returns:
        [B, N or M, rows, columns] of `Recorder.map_size`.

    Raises:
        UserError: the UNet has fewer layers of at most `LARGEST_MAP` rows and columns than were asked for.
    """
    network = getattr(unet, "unet", unet)
    with recording(network, recorder):
        unet(latents, timestep, encoder_hidden_states=tokens, **settings)
    if len(recorder.maps) < recorder.layers:
        raise UserError(
            f"expected {recorder.layers} cross-attention layers of at most {LARGEST_MAP} x {LARGEST_MAP} "
            f"in the up blocks; found {len(recorder.maps)}; ask for fewer layers, or smaller crops"
        )
    total = recorder.maps[0]
    for maps in recorder.maps[1:]:
        total = total + maps
    return total / recorder.layers
