"""SimpleBaselines keypoint network (Xiao, Wu and Wei, ECCV 2018, section 2).

A ResNet down to stride 32, three transposed convolutions up to stride 4, one 1x1 convolution to the
heatmaps. The parameters carry the names of the published animals3d checkpoints: ``backbone.<i>``
for the ResNet's children without pooling and classifier, ``head.layers.<i>`` for the rest.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from wildshape.errors import UserError
from wildshape.pretrained import WEIGHTS

STRIDE = 4
BACKBONES = tuple(WEIGHTS)
# Blocks of the four residual layers tell the depths apart, with the bottleneck's third convolution.
_BLOCKS = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
}


class HeatmapHead(nn.Module):
    """Three transposed convolutions (kernel 4, stride 2, batch norm, ReLU) and a 1x1 convolution.

    Args:
        in_channels: channels of the backbone's last map.
        num_keypoints: heatmaps to give.
        channels: width of the transposed convolutions (256 in the paper).
    """

    def __init__(self, in_channels: int, num_keypoints: int, channels: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            up = nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(up.weight, std=0.001)
            layers.append(nn.Sequential(up, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
            in_channels = channels
        last = nn.Conv2d(channels, num_keypoints, 1)
        nn.init.normal_(last.weight, std=0.001)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, features: Tensor) -> Tensor:
        """Feature map [B,C,h,w] -> heatmaps [B,K,8h,8w]."""
        return self.layers(features)


class PoseNet(nn.Module):
    """Images to keypoint heatmaps at a quarter of the resolution.

    Args:
        num_keypoints: K, heatmaps to give.
        backbone: one of ``BACKBONES``; built without pretrained weights (see `wildshape.pretrained`).
        head_channels: width of the transposed convolutions.
    """

    def __init__(
        self, num_keypoints: int = 16, backbone: str = "resnet18", head_channels: int = 256
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise UserError(f"expected a backbone of {', '.join(BACKBONES)}; found {backbone!r}")
        self.arch = {
            "num_keypoints": num_keypoints,
            "backbone": backbone,
            "head_channels": head_channels,
        }
        network = getattr(resnet, backbone)(weights=None)
        self.backbone = nn.Sequential(*list(network.children())[:-2])
        self.head = HeatmapHead(network.fc.in_features, num_keypoints, head_channels)

    @property
    def num_keypoints(self) -> int:
        """Number of heatmaps."""
        return int(self.arch["num_keypoints"])

    def forward(self, images: Tensor) -> Tensor:
        """ImageNet-normalised images [B,3,H,W] (sides multiples of 32) -> heatmaps [B,K,H/4,W/4]."""
        return self.head(self.backbone(images))


def arch_from_state(state: Mapping[str, Tensor]) -> dict[str, int | str]:
    """Read a checkpoint's architecture from its parameter names and shapes.

    Args:
        state: parameters by their published names.

    Returns:
        ``num_keypoints``, ``backbone`` and ``head_channels``, the arguments of ``PoseNet``.

    Raises:
        UserError: the names or shapes are not those of a SimpleBaselines ResNet.
    """

    def blocks(layer: int) -> int:
        prefix = f"backbone.{layer}."
        return len({n[len(prefix) :].split(".", 1)[0] for n in state if n.startswith(prefix)})

    depth = (*(blocks(i) for i in range(4, 8)), "backbone.4.0.conv3.weight" in state)
    if depth not in _BLOCKS or "head.layers.3.weight" not in state:
        raise UserError(
            "expected a pose checkpoint (parameters backbone.<i>... of a ResNet-18/34/50/101 and "
            f"head.layers.<i>...); found {len(state)} parameters, "
            f"such as {', '.join(list(state)[:3]) or 'none'}"
        )
    keypoints, channels = state["head.layers.3.weight"].shape[:2]
    return {"num_keypoints": keypoints, "backbone": _BLOCKS[depth], "head_channels": channels}


def load_published(path_or_state_dict: str | Path | Mapping[str, Tensor]) -> PoseNet:
    """Build the network of a published animals3d checkpoint.

    Args:
        path_or_state_dict: file or parameters. A file may hold the parameters themselves or under
            ``model``, ``state_dict`` or ``model_state_dict``; a leading ``module.`` is dropped.

    Returns:
        The network in evaluation mode, keypoints, depth and head width as in the checkpoint.

    Raises:
        UserError: no such file, or one that holds something else.
    """
    if isinstance(path_or_state_dict, Mapping):
        state = path_or_state_dict
    else:
        path = Path(path_or_state_dict)
        if not path.is_file():
            raise UserError(f"expected a pose checkpoint; found no file {path}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"expected a pose checkpoint of tensors at {path}; {line}") from error
        if not isinstance(state, Mapping):
            raise UserError(
                f"expected a pose checkpoint of tensors at {path}; found one {type(state).__name__}"
            )
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    model = PoseNet(**arch_from_state(state))  # type: ignore[arg-type]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the pose checkpoint does not fit a {model.arch}: {error}") from error
    return model.eval()
