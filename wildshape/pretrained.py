"""ImageNet weights of a ResNet's backbone, where they can be had."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet

WEIGHTS = {
    "resnet18": resnet.ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": resnet.ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": resnet.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": resnet.ResNet101_Weights.IMAGENET1K_V1,
}
_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def _state(name: str, timeout: float) -> dict[str, Tensor] | None:
    weights = WEIGHTS[name]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        if not cached.exists():
            # torch.hub downloads without a timeout; an unanswering network must not hang a run.
            with urllib.request.urlopen(weights.url, timeout=timeout):
                pass
        return torch.hub.load_state_dict_from_url(
            weights.url, progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError):
        return None


def load_imagenet_backbone(backbone: nn.Sequential, name: str, timeout: float = 5.0) -> bool:
    """Fill a backbone with ImageNet weights, from torch's cache or its download address.

    Args:
        backbone: A ResNet's children without pooling and classifier, filled in place; left as it is where
            the weights cannot be had.
        name: A name in `WEIGHTS`.
        timeout: Seconds to wait for a first answer of the address.

    Returns:
        Whether the weights were loaded.
    """
    state = _state(name, timeout)
    if state is None:
        return False
    renamed = {}
    for parameter, value in state.items():
        child, rest = parameter.split(".", 1)
        if child in _CHILDREN:
            renamed[f"{_CHILDREN.index(child)}.{rest}"] = value
    missing, _ = backbone.load_state_dict(renamed, strict=False)
    # Files of old torchvision releases lack batch norm's counters, which nothing here reads.
    return all(parameter.endswith("num_batches_tracked") for parameter in missing)
