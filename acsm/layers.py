"""Stacks of linear layers evaluated as one: the heads of all cameras and all parts at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """N independent linear layers as one batched product.

    Args:
        number: N layers.
        inputs: features in.
        outputs: features out.
    """

    def __init__(self, number: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(number, outputs))
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Features shared by all layers [B, inputs], or each layer's own [B, N, inputs].

        Returns:
            [B, N, outputs].
        """
        number, outputs, inputs = self.weight.shape
        if x.dim() == 2:  # one product serves all layers
            flat = nn.functional.linear(x, self.weight.reshape(-1, inputs), self.bias.flatten())
            return flat.unflatten(-1, (number, outputs))
        product = torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2))
        return product.transpose(0, 1) + self.bias


class Stack(nn.Module):
    """N independent stacks of two linear layers, each followed by a LeakyReLU of slope .1.

    Args:
        number: N stacks.
        inputs: features in.
        features: features of both layers.
    """

    def __init__(self, number: int, inputs: int, features: int) -> None:
        super().__init__()
        self.first = StackedLinear(number, inputs, features)
        self.second = StackedLinear(number, features, features)
        # Six such layers lie between the image and a camera: with PyTorch's default scale the signal
        # would fade to a hundredth on the way. This one keeps its variance (He et al., 2015).
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (1 + 0.1**2) / layer.weight.shape[-1]))
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] (shared) or [B, N, inputs] -> [B, N, features]."""
        x = nn.functional.leaky_relu(self.first(x), 0.1)
        return nn.functional.leaky_relu(self.second(x), 0.1)
