"""What the keypoint-trained model minimises (ACSM, section 3.3, with confidences as weights)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, as released.

    Attributes:
        keypoints: of the reprojection error.
        translation: of the squared part translations.
        camera: of the distance from the guiding cameras; released: 0.
        turn: of the part turns, so that parts that no keypoint sees stay at rest; released: 0.
        upright: of the tilt and roll of cameras, which keypoints tell badly; released: 0.
        entropy: of the certainty with which one of several hypotheses is chosen; released: 0 with
            keypoints, .05 with masks (of the entropy itself).
        spread: of the likeness of the rotations of several hypotheses; released: 0 and .1.
    """

    keypoints: float = 3.0
    translation: float = 10.0
    camera: float = 0.0
    turn: float = 0.0
    upright: float = 0.0
    entropy: float = 0.0
    spread: float = 0.0


def keypoint_loss(
    keypoints_ndc: Tensor,
    target_ndc: Tensor,
    weight: Tensor,
    camera_prob: Tensor | None = None,
    emphasis: Tensor | None = None,
) -> Tensor:
    """Confidence-weighted squared reprojection error, each image counting alike.

    An image's error is mean_k(w_k |x_k - x*_k|^2) / (mean_k(w_k) + 1e-4), squared distances in NDC.
    Keypoints of weight 0 do not count, whatever their target (NaN included).

    Args:
        keypoints_ndc: predictions [B, C, K, 2].
        target_ndc: [B, K, 2].
        weight: confidence of each target [B, K], at least 0.
        camera_prob: probability of each hypothesis [B, C]; the expected error is taken. None: equal.
        emphasis: weight of each image [B] beside the others; None: alike.

    Returns:
        The mean over images, a scalar.
    """
    target = torch.where(weight[..., None] > 0, target_ndc, torch.zeros_like(target_ndc))
    squared = (keypoints_ndc - target[:, None]).square().sum(-1)
    error = (squared * weight[:, None]).mean(-1) / (weight.mean(-1)[:, None] + 1e-4)
    expected = error.mean(1) if camera_prob is None else (error * camera_prob).sum(1)
    return expected.mean() if emphasis is None else (expected * emphasis).mean()


def translation_loss(part_transforms: Tensor) -> Tensor:
    """Mean squared component of the part translations of [B, C, P, 8]."""
    return part_transforms[..., 1:4].square().mean()


def turn_loss(part_transforms: Tensor) -> Tensor:
    """Mean squared sine of half the angle by which parts [B, C, P, 8] turn."""
    return (1 - part_transforms[..., 4].square()).mean()


def upright_loss(camera: Tensor, camera_prob: Tensor, up: Tensor | None = None) -> Tensor:
    """One minus the cosine between the template's up axis, as a camera sees it, and the image's.

    Azimuth does not count. Keypoints of an animal that the template fits only roughly leave the
    elevation open by some fifteen degrees; photographs are taken from nearer to level than that.

    Args:
        camera: predictions [B, C, 7].
        camera_prob: [B, C]; the expected value is taken.
        up: the image's up axis in its crop, a unit vector [B, 2]; None: (0, -1), of crops that are not
            turned.
    """
    w, x, y, z = camera[..., 3:].unbind(-1)
    cosine = 2 * (w * x - y * z)
    if up is not None:
        across, down = up[:, None].unbind(-1)
        cosine = across * 2 * (x * z + w * y) - down * cosine
    return ((1 - cosine) * camera_prob).sum(1).mean()


def camera_guide_loss(camera: Tensor, guide: Tensor, camera_prob: Tensor) -> Tensor:
    """Squared sine of half the angle to a guiding rotation, weighted by its trust.

    Args:
        camera: predictions [B, C, 7].
        guide: quaternion and trust in 0..1 [B, 5].
        camera_prob: [B, C]; the expected distance is taken.
    """
    cosine = (camera[..., 3:] * guide[:, None, :4]).sum(-1)
    distance = ((1 - cosine.square()) * camera_prob).sum(1)
    return (distance * guide[:, 4]).mean()


def entropy_loss(camera_prob: Tensor) -> Tensor:
    """One minus the entropy of the hypotheses' probabilities [B, C], relative to the largest one, log C.

    It keeps hypotheses alive: one that is never chosen learns nothing. 0 for a single hypothesis.
    """
    count = camera_prob.shape[1]
    if count == 1:
        return camera_prob.new_zeros(())
    # The logarithm of a probability that has underflowed to 0 has no finite gradient.
    least = torch.finfo(camera_prob.dtype).tiny
    entropy = -(camera_prob * camera_prob.clamp_min(least).log()).sum(1).mean()
    return 1 - entropy / math.log(count)


def spread_loss(camera: Tensor) -> Tensor:
    """Mean squared cosine of half the angle between the rotations of each two hypotheses [B, C, 7].

    0 for a single hypothesis; two that agree give 1, two that are opposite 0.
    """
    count = camera.shape[1]
    if count == 1:
        return camera.new_zeros(())
    rotation = camera[..., 3:]
    # Under autocast a matrix product would be one of half precision.
    alike = (rotation[:, :, None] * rotation[:, None]).sum(-1).square()
    first, second = torch.triu_indices(count, count, 1, device=camera.device)
    return alike[:, first, second].mean()


def total_loss(
    prediction: Mapping[str, Tensor],
    target_ndc: Tensor,
    weight: Tensor,
    guide: Tensor | None = None,
    weights: LossWeights | None = None,
    emphasis: Tensor | None = None,
    up: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch of predictions and its terms, for the log.

    Args:
        prediction: what `acsm.model.ACSM` gives.
        target_ndc: [B, K, 2].
        weight: [B, K].
        guide: [B, 5], see `camera_guide_loss`; None: none.
        weights: of the terms.
        emphasis: weight of each image's keypoints [B]; None: alike.
        up: [B, 2], see `upright_loss`.
    """
    weights = weights or LossWeights()
    keypoints = keypoint_loss(
        prediction["keypoints_ndc"], target_ndc, weight, prediction["camera_prob"], emphasis
    )
    translation = translation_loss(prediction["part_transforms"])
    total = weights.keypoints * keypoints + weights.translation * translation
    terms = {"keypoints": keypoints, "translation": translation}
    if guide is not None and weights.camera:
        terms["camera"] = camera_guide_loss(prediction["camera"], guide, prediction["camera_prob"])
        total = total + weights.camera * terms["camera"]
    if weights.turn:
        terms["turn"] = turn_loss(prediction["part_transforms"])
        total = total + weights.turn * terms["turn"]
    if weights.upright:
        terms["upright"] = upright_loss(prediction["camera"], prediction["camera_prob"], up)
        total = total + weights.upright * terms["upright"]
    several = prediction["camera_prob"].shape[1] > 1
    if several and weights.entropy:
        terms["entropy"] = entropy_loss(prediction["camera_prob"])
        total = total + weights.entropy * terms["entropy"]
    if several and weights.spread:
        terms["spread"] = spread_loss(prediction["camera"])
        total = total + weights.spread * terms["spread"]
    return total, {name: float(value.detach()) for name, value in terms.items()}
