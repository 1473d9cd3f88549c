"""What a mirrored image should give: the mirrored prediction.

Released training appended mirrored images and overwrote their predictions by the mirrored ones of the
first half. Here both are predicted, and both learn from where they disagree.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from acsm.geometry import mirror_camera, mirror_part_transforms, mirror_quaternion
from wildshape.errors import UserError


def mirrored_hypotheses(bias: Tensor) -> Tensor:
    """Which camera hypothesis sees in the mirror what each one sees.

    Args:
        bias: the views about which C hypotheses turn, quaternions [C, 4].

    Returns:
        A permutation [C] (long).

    Raises:
        UserError: the views are not symmetric.
    """
    bias = torch.nn.functional.normalize(bias.double(), dim=-1)
    alike = (mirror_quaternion(bias) @ bias.T).abs()
    best = alike.argmax(dim=1)
    # The released views have four digits, hence the tolerance.
    if (alike.amax(dim=1) < 1 - 1e-4).any() or len(best.unique()) != len(best):
        raise UserError("--flip_consistency: expected camera views that are symmetric; found others")
    return best


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Squared sine of half the angle between unit quaternions [..., 4]; q and -q are the same."""
    return 1 - (a * b).sum(-1).square()


def flip_consistency_loss(
    prediction: Mapping[str, Tensor],
    of_mirrored: Mapping[str, Tensor],
    part_mirror: Tensor,
    hypotheses: Tensor,
) -> Tensor:
    """How far the predictions for mirrored images are from the mirrored predictions.

    The mean over images and hypotheses of: the squared sine of half the angle between the rotations,
    the squared differences of scale and translation (NDC), those of the probabilities, and the mean
    over parts of the squared sine of half the angle between their turns and the squared distance
    between their translations. Gradients reach both predictions.

    Args:
        prediction: of the images: ``camera`` [B, C, 7], ``camera_prob`` [B, C], ``part_transforms``
            [B, C, P, 8].
        of_mirrored: the same of the mirrored images.
        part_mirror: the part on the other side [P].
        hypotheses: the hypothesis on the other side [C], see `mirrored_hypotheses`.

    Returns:
        A scalar; 0 where all predictions are symmetric.
    """
    camera = mirror_camera(prediction["camera"])[:, hypotheses]
    parts = mirror_part_transforms(prediction["part_transforms"], part_mirror)[:, hypotheses]
    probability = prediction["camera_prob"][:, hypotheses]
    other, moved = of_mirrored["camera"], of_mirrored["part_transforms"]
    apart = _apart(camera[..., 3:], other[..., 3:])
    apart = apart + (camera[..., :3] - other[..., :3]).square().sum(-1)
    apart = apart + (probability - of_mirrored["camera_prob"]).square()
    turned = _apart(parts[..., 4:], moved[..., 4:])
    shifted = (parts[..., 1:4] - moved[..., 1:4]).square().sum(-1)
    return (apart + (turned + shifted).mean(-1)).mean()
