"""Weights averaged over a training, which denoise better than its last ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Averaged(nn.Module):
    """A network and the exponential moving average of its weights; a checkpoint holds both.

    Args:
        network: What is trained.
        decay: Of the average; at the beginning it forgets faster.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        self.network = network
        self.mean = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights into the average."""
        count = int(self.updates)
        keep = min(self.decay, (1 + count) / (10 + count))
        for mean, value in zip(self.mean.parameters(), self.network.parameters()):
            mean.lerp_(value, 1 - keep)
        self.updates += 1

    def train(self, mode: bool = True) -> Averaged:
        """Set the network to training; its average always evaluates."""
        super().train(mode)
        self.mean.eval()
        return self
