"""Readable twin of a step of learning tokens: one image, one token and one pair of points at a time.

What `tokens.py`, `maps.py`, `attention.py` and `token_shares.py` do together is done here as told in the
paper (StableKeypoints, Hedlin et al., CVPR 2024, sections 3.1 to 3.3): the whole UNet runs, every recorded
layer upsamples its features and writes down a map of every head and token, and Python goes through images,
tokens and candidates. Images go through the UNet together. A test holds that both ways give the same; the
benchmark zero123plus_speed compares their time and memory.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pseudolabels.zero123plus import maps as token_maps
from pseudolabels.zero123plus.attention import LayerInput, upsampled
from pseudolabels.zero123plus.features import AttentionModel
from pseudolabels.zero123plus.tokens import TokenSettings, TokenTask
from pseudolabels.zero123plus.warps import restore


@dataclass
class ReferenceLoss:
    """What `reference_loss` finds.

    Attributes:
        loss: scalar, with its gradient.
        terms: ``sharpening`` and ``equivariance`` before their weights.
        chosen: by image, the tokens that it teaches.
    """

    loss: Tensor
    terms: dict[str, float]
    chosen: list[list[int]]


def reference_model(model: AttentionModel) -> AttentionModel:
    """The same networks, run to the UNet's end, with the maps of `reference_maps`."""
    twin = copy.copy(model)
    twin.reading, twin.layer_maps = replace(model.reading, whole=True), reference_maps
    return twin


def reference_maps(attn: Any, given: LayerInput) -> Tensor:
    """The attention of one cross-attention layer; see `attention.attention_maps`."""
    tokens = given.tokens
    if attn.norm_cross:
        tokens = attn.norm_encoder_hidden_states(tokens)
    features = upsampled(given.features, given.shape, given.size)
    query = attn.to_q(features).unflatten(2, (attn.heads, -1)).transpose(1, 2)
    key = attn.to_k(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    share = torch.softmax(query @ key.transpose(-1, -2) * attn.scale, dim=-1)  # [B, H, pixels, N]
    maps = share.mean(1).transpose(1, 2).unflatten(2, given.size)
    return maps if given.kept is None else maps[:, given.kept]


def gaussian_kl(map_: Tensor, sigma: float) -> float:
    """Divergence from one softmaxed map [h, w] to a Gaussian at its peak; see `maps.gaussian_kl`."""
    target = token_maps.gaussians(token_maps.peaks(map_), *map_.shape, sigma)
    target = target / target.sum()
    log_share = torch.log_softmax(map_.flatten(), 0).view_as(map_)
    return float((torch.special.xlogy(target, target) - target * log_share).sum())


def furthest_points(points: list[tuple[float, float]], number: int) -> list[int]:
    """Indices of points spread far apart; see `maps.furthest_points`."""

    def apart(one: int, other: int) -> float:
        (ax, ay), (bx, by) = points[one], points[other]
        return (ax - bx) ** 2 + (ay - by) ** 2

    everyone = range(len(points))
    first, second = max(((a, b) for a in everyone for b in everyone), key=lambda pair: apart(*pair))
    chosen = [first, second]
    while len(chosen) < number:
        chosen.append(max(everyone, key=lambda point: min(apart(point, other) for other in chosen)))
    return chosen


@torch.no_grad()
def choose_tokens(maps: Tensor, moved: Tensor, settings: TokenSettings) -> list[int]:
    """Tokens that one image teaches, of its maps and its copy's [N, h, w]; see `maps.choose_tokens`."""
    sigma = settings.sigma_of(max(maps.shape[-2:]))
    divergence = [gaussian_kl(map_, sigma) for map_ in maps]
    best = sorted(range(len(maps)), key=divergence.__getitem__)[: settings.candidates]
    places = [tuple(token_maps.peaks(moved[token]).tolist()) for token in best]
    return [best[point] for point in furthest_points(places, settings.taught)]  # type: ignore[arg-type]


def loss_of_maps(found: Tensor, moved: Tensor, thetas: Tensor, settings: TokenSettings) -> ReferenceLoss:
    """What tokens lose on some images; arguments as of `tokens.token_loss`."""
    sigma = settings.sigma_of(max(found.shape[-2:]))
    sharp, same, chosen = [], [], []
    for maps, copies, theta in zip(found, moved, thetas, strict=True):
        chosen.append(choose_tokens(maps, copies, settings))
        for token in chosen[-1]:
            target = token_maps.gaussians(token_maps.peaks(maps[token].detach()), *maps[token].shape, sigma)
            sharp.append((maps[token] - target).square().mean())
            restored, seen = restore(copies[token][None, None], theta[None])
            squared = (maps[token] - restored[0, 0]).square()
            same.append(squared[seen[0]].mean() if settings.masked else squared.mean())
    sharpening, equivariance = torch.stack(sharp).mean(), torch.stack(same).mean()
    return ReferenceLoss(
        settings.sharpen * sharpening + settings.equivariance * equivariance,
        {"sharpening": float(sharpening.detach()), "equivariance": float(equivariance.detach())},
        chosen,
    )


def reference_loss(task: TokenTask, batch: dict[str, Tensor]) -> ReferenceLoss:
    """What a batch loses; see `tokens.TokenTask.loss`.

    Args:
        task: whose ``attention_of`` is that of a `reference_model`.
        batch: as of `TokenTask.sample`, stacked.
    """
    maps = task.maps_of(batch, task.model.embedding)
    return loss_of_maps(*maps, batch["theta"], task.settings)
