"""Pixels to places on the surface: the U-Net of the mask-trained model.

As published it is a network of its own, five levels down and up again, on the whole image. Here it reads
the maps of the model's ResNet-18 at strides 4 to 32 and only goes up again, to stride 4: the encoder's work
is shared, it starts from whatever the encoder starts from, and what masks teach it reaches camera and
parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEVELS = (64, 128, 256, 512)
"""Channels of the ResNet-18's maps at strides 4, 8, 16 and 32."""


class PixelMap(nn.Module):
    """A unit vector and a foreground logit for each cell of 4 x 4 pixels.

    Args:
        width: channels of the way up.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in LEVELS])
        self.merge = nn.ModuleList([_Block(2 * width, width) for _ in LEVELS[:-1]])
        self.output = nn.Conv2d(width, 4, 1)
        with torch.no_grad():  # start at even odds, and pointing nowhere in particular
            self.output.bias.zero_()

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps [B, C, s, s] of falling size -> unit vectors [B, s, s, 3] and logits [B, s, s]."""
        sides = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)]
        x = sides[-1]
        for side, merge in zip(sides[-2::-1], reversed(self.merge)):
            x = nn.functional.interpolate(x, size=side.shape[-2:], mode="bilinear", align_corners=False)
            x = merge(torch.cat((side, x), dim=1))
        with torch.autocast(x.device.type, enabled=False):
            raw = self.output(x.float()).permute(0, 2, 3, 1)
            return nn.functional.normalize(raw[..., :3], dim=-1, eps=1e-6), raw[..., 3]


class _Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1),
        )


def cell_centres(side: int, size: int, stride: int = 4) -> Tensor:
    """NDC [side * side, 2] of the centres of the pixel map's cells, row by row, in a crop of ``size``."""
    xy_crop = stride * (torch.arange(side) + 0.5) - 0.5
    ndc = (2 * xy_crop + 1) / size - 1
    y, x = torch.meshgrid(ndc, ndc, indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2)
