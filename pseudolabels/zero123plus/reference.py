"""Reference attention: self-attention that also looks at the features of another picture.

The picture is noised like the sample and goes through the same network first; every self-attention layer
then takes its keys and values from its own features and from those that the reference had there (Zero123++,
arXiv 2310.15110, section 2.3). Imported without diffusers: any attention processor can be wrapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SELF_ATTENTION = "attn1.processor"  # how diffusers' names of self-attention processors end


class ReferenceBank:
    """What self-attention layers share: the features [B, N, C] of a reference, by the layer's name."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}
        self.mode = "off"

    @contextmanager
    def set_to(self, mode: str) -> Iterator[None]:
        """Let layers "write" their features or "read" those that were written, while a block runs."""
        self.mode, before = mode, self.mode
        try:
            yield
        finally:
            self.mode = before


class ReferenceAttention:
    """An attention processor that writes to a bank or reads from it, around another one.

    Args:
        name: Of the layer, as in the network's `attn_processors`.
        bank: Where features are kept.
        inner: The processor that computes the attention.
    """

    def __init__(self, name: str, bank: ReferenceBank, inner: Any) -> None:
        self.name, self.bank, self.inner = name, bank, inner

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attention of `hidden_states` [B, N, C] over themselves and, when reading, the reference."""
        if self.bank.mode == "write":
            self.bank.features[self.name] = hidden_states
        elif self.bank.mode == "read":
            encoder_hidden_states = torch.cat([hidden_states, self.bank.features[self.name]], dim=1)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def add_reference_attention(unet: Any) -> ReferenceBank:
    """Give a `UNet2DConditionModel` reference attention; it computes as before until the bank is used.

    Returns:
        The bank of its layers.
    """
    processors = dict(unet.attn_processors)
    for processor in processors.values():
        if isinstance(processor, ReferenceAttention):
            return processor.bank
    bank = ReferenceBank()
    for name, inner in processors.items():
        if name.endswith(SELF_ATTENTION):
            processors[name] = ReferenceAttention(name, bank, inner)
    unet.set_attn_processor(processors)
    return bank


def predict_with_reference(
    unet: Any,
    sample: Tensor,
    timestep: Tensor,
    tokens: Tensor,
    reference: Tensor,
    reference_tokens: Tensor | None = None,
) -> Tensor:
    """The network's prediction for a sample that may look at a reference.

    Args:
        unet: A `UNet2DConditionModel`.
        sample: Noisy latents [B, C, H, W], as scaled for the network.
        timestep: [B] or a scalar.
        tokens: [B, L, D].
        reference: Latents of the reference [B, C, h, w], noised and scaled like the sample.
        reference_tokens: [B, L, D]; by default those of the sample.
    """
    bank = add_reference_attention(unet)
    with bank.set_to("write"):
        unet(reference, timestep, tokens if reference_tokens is None else reference_tokens)
    try:
        with bank.set_to("read"):
            return unet(sample, timestep, tokens).sample
    finally:
        bank.features.clear()
