"""Learning tokens whose attention settles on the same places of every animal.

After StableKeypoints (Hedlin et al., CVPR 2024, section 3.3): a diffusion model stays as it is; only the
embeddings of N tokens are learnt, on unlabelled crops. In every image the tokens that look most like blobs,
spread over the animal, are drawn to be sharper and to move with the image when it is turned and shifted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pseudolabels.zero123plus import maps as token_maps
from pseudolabels.zero123plus.warps import WarpRanges, random_warp, restore, warp, warp_points
from wildshape.errors import UserError

AttentionOf = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps [B, N, h, w] of images [B, 3, S, S] in 0..1, tokens [N, D] and noise [B, C, s, s]."""
PUBLISHED_SIDE = 128
FILL, PUBLISHED_FILL = 1.0, 0.0
"""Colour, 0..1, that a transformed image shows beyond its edge: that of the crops' ground; black."""


@dataclass(frozen=True)
class TokenSettings:
    """What tokens learn from; defaults as published but for `fill` and `masked`.

    Attributes:
        num_tokens: N.
        candidates: tokens of an image that look most like a blob.
        taught: of these, those that are learnt from.
        sharpen: weight of `maps.sharpening_loss`.
        equivariance: weight of `maps.equivariance_loss`.
        sigma: of the blobs, in pixels of a map of 128; smaller maps have smaller blobs.
        ranges: of the transforms.
        fill: colour that transformed images show beyond their edge, 0..1; published: 0.
        masked: whether what has left the frame does not count; published: False.
        chunk: images whose attention is in memory at a time; None: the whole batch.
    """

    num_tokens: int = 500
    candidates: int = 25
    taught: int = 10
    sharpen: float = 100.0
    equivariance: float = 1000.0
    sigma: float = token_maps.SIGMA
    ranges: WarpRanges = WarpRanges()
    fill: float = FILL
    masked: bool = True
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.taught <= self.candidates <= self.num_tokens:
            raise UserError(
                "expected 2 <= --taught <= --candidates <= --num_tokens; found "
                f"{self.taught}, {self.candidates}, {self.num_tokens}"
            )

    def sigma_of(self, side: int) -> float:
        """Of the blobs in maps whose longer side has so many pixels."""
        return self.sigma * side / PUBLISHED_SIDE


class Tokens(nn.Module):
    """N embeddings [N, D], drawn from a normal distribution.

    Args:
        number: N.
        width: D, of the model's cross-attention.
        seed: of the draws.
    """

    def __init__(self, number: int, width: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn((number, width), generator=generator))


def token_loss(
    found: Tensor, moved: Tensor, theta: Tensor, settings: TokenSettings
) -> tuple[Tensor, dict[str, float]]:
    """What tokens lose on some images, and the terms for the log.

    Args:
        found: maps of the images [B, N, h, w].
        moved: maps of the images under ``theta`` [B, N, h, w].
        theta: [B, 2, 3].
        settings: see `TokenSettings`.

    Returns:
        The mean over images, and ``sharpening``, ``equivariance`` before their weights.
    """
    sigma = settings.sigma_of(max(found.shape[-2:]))
    chosen = token_maps.choose_tokens(found, moved, settings.candidates, settings.taught, sigma)
    own = token_maps.of_tokens(found, chosen)
    restored, seen = restore(token_maps.of_tokens(moved, chosen), theta)
    sharp = token_maps.sharpening_loss(own, sigma)
    same = token_maps.equivariance_loss(own, restored, seen if settings.masked else None)
    total = settings.sharpen * sharp + settings.equivariance * same
    return total, {"sharpening": float(sharp.detach()), "equivariance": float(same.detach())}


class TokenTask:
    """What `wildshape.training.fit` trains: tokens of a diffusion model that stays as it is.

    Args:
        tokens: on the model's device.
        attention_of: the model.
        crops: unlabelled crops uint8 [M, S, S, 3].
        val: crops to choose the best tokens by, likewise.
        settings: see `TokenSettings`.
        noise_shape: of the noise that the model takes for one image [C, s, s].
        lr: AdamW's learning rate.
        seed: of the transforms and the noise of the validation.
    """

    def __init__(
        self,
        tokens: Tokens,
        attention_of: AttentionOf,
        crops: np.ndarray,
        val: np.ndarray,
        settings: TokenSettings,
        noise_shape: tuple[int, int, int],
        lr: float = 5e-3,
        seed: int = 0,
    ) -> None:
        self.model, self.attention_of, self.crops, self.settings = tokens, attention_of, crops, settings
        self.noise_shape = noise_shape
        self.optimizer = torch.optim.AdamW(tokens.parameters(), lr=lr, weight_decay=1e-4)
        drawn = [self._item(crop, np.random.default_rng([seed, 17, i])) for i, crop in enumerate(val)]
        self._val = {
            name: torch.from_numpy(np.stack([item[name] for item in drawn])) for name in (drawn or [{}])[0]
        }

    def __len__(self) -> int:
        return len(self.crops)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``crop`` uint8 [S, S, 3], ``theta`` [2, 3] and ``noise`` [2, C, s, s]: image's and copy's."""
        return self._item(self.crops[index], rng)

    def _item(self, crop: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        theta = random_warp(self.settings.ranges, rng).numpy()
        noise = rng.standard_normal((2, *self.noise_shape), dtype=np.float32)
        return {"crop": crop, "theta": theta, "noise": noise}

    def maps_of(self, batch: dict[str, Tensor], embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of a batch's images and of their transformed copies, [B, N, h, w] each, in one pass."""
        images = as_images(batch["crop"])
        copies = warp(images, batch["theta"], self.settings.fill)
        noise = batch["noise"].transpose(0, 1).flatten(0, 1)
        found, moved = self.attention_of(torch.cat((images, copies)), embedding, noise).chunk(2)
        return found, moved

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch; with ``chunk`` its gradient is gathered image by image.

        A part of the batch is run forward and backward at a time: memory is that of a part, and what is
        returned has the value and the gradient of the whole.
        """
        embedding, count = self.model.embedding, len(batch["crop"])
        size = self.settings.chunk or count
        if size >= count:
            return token_loss(*self.maps_of(batch, embedding), batch["theta"], self.settings)
        copy = embedding.detach().clone().requires_grad_()
        value, terms = 0.0, {"sharpening": 0.0, "equivariance": 0.0}
        with torch.enable_grad():
            for first in range(0, count, size):
                part = {name: tensor[first : first + size] for name, tensor in batch.items()}
                share = len(part["crop"]) / count
                loss, logged = token_loss(*self.maps_of(part, copy), part["theta"], self.settings)
                (share * loss).backward()
                value += share * float(loss.detach())
                terms = {name: terms[name] + share * logged[name] for name in terms}
        assert copy.grad is not None
        carrier = (embedding * copy.grad).sum()
        return carrier - carrier.detach() + value, terms

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On the validation crops: the loss, and how far the chosen tokens' peaks stray, in percent.

        ``stray`` is the mean distance between where a token peaks in the transformed copy and where its
        peak in the image has gone, relative to the crop's side; peaks that left the frame do not count.
        """
        embedding, settings = self.model.embedding, self.settings
        losses, distances = [], []
        for first in range(0, len(self._val["crop"]), settings.chunk or 4):
            rows = slice(first, first + (settings.chunk or 4))
            batch = {name: value[rows].to(embedding.device) for name, value in self._val.items()}
            found, moved = self.maps_of(batch, embedding)
            loss, _ = token_loss(found, moved, batch["theta"], settings)
            losses += [float(loss)] * len(found)
            distances.append(strays(found, moved, batch["theta"], settings))
        stray = torch.cat(distances)
        return {"loss": float(np.mean(losses)), "stray": 100 * float(stray.nanmean())}


def strays(found: Tensor, moved: Tensor, theta: Tensor, settings: TokenSettings) -> Tensor:
    """How far chosen tokens' peaks [B, M] stray under a transform, in sides; NaN: out of the frame."""
    height, width = found.shape[-2:]
    chosen = token_maps.choose_tokens(
        found, moved, settings.candidates, settings.taught, settings.sigma_of(max(height, width))
    )
    here = token_maps.peaks(token_maps.of_tokens(found, chosen))
    there = token_maps.peaks(token_maps.of_tokens(moved, chosen))
    gone = warp_points(here, theta, height, width)
    size = gone.new_tensor((width, height))
    inside = ((gone > 0) & (gone < size)).all(-1)
    distance = (gone - there).norm(dim=-1) / max(height, width)
    return torch.where(inside, distance, torch.full_like(distance, float("nan")))


@torch.no_grad()
def times_chosen(task: TokenTask, crops: np.ndarray, images: int = 100, seed: int = 0) -> Tensor:
    """In how many images each token is among those that are learnt from, [N] int64.

    Args:
        task: after training.
        crops: uint8 [M, S, S, 3]; the first ``images`` are looked at.
        images: published: 100.
        seed: of the transforms.
    """
    settings, embedding = task.settings, task.model.embedding
    times = torch.zeros(len(embedding), dtype=torch.int64)
    step = settings.chunk or 4
    for first in range(0, min(images, len(crops)), step):
        chosen_crops = crops[first : min(first + step, images)]
        drawn = [
            task._item(crop, np.random.default_rng([seed, 19, first + i]))
            for i, crop in enumerate(chosen_crops)
        ]
        batch = {
            name: torch.from_numpy(np.stack([item[name] for item in drawn])).to(embedding.device)
            for name in drawn[0]
        }
        found, moved = task.maps_of(batch, embedding)
        sigma = settings.sigma_of(max(found.shape[-2:]))
        chosen = token_maps.choose_tokens(found, moved, settings.candidates, settings.taught, sigma)
        times += torch.bincount(chosen.flatten().cpu(), minlength=len(times))
    return times


def most_chosen(times: Tensor, number: int) -> Tensor:
    """Indices [K] of the tokens that were chosen most often, the earlier of equal ones first.

    Args:
        times: see `times_chosen`.
        number: K (published: 10).

    Raises:
        UserError: fewer tokens were ever chosen.
    """
    if int((times > 0).sum()) < number:
        raise UserError(
            f"expected at least {number} tokens that are chosen in some image; found "
            f"{int((times > 0).sum())}; keep fewer, or look at more images"
        )
    return times.argsort(descending=True, stable=True)[:number]


def as_images(crops: Tensor) -> Tensor:
    """Crops uint8 [B, S, S, 3] as float [B, 3, S, S] in 0..1."""
    return crops.permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def average_attention(
    attention_of: AttentionOf,
    images: Tensor,
    embedding: Tensor,
    noise: Tensor,
    thetas: Sequence[Tensor],
    fill: float = FILL,
    at_once: int = 1,
) -> Tensor:
    """Attention averaged over views of an image, each warped back (published: 10 views).

    Args:
        attention_of: the model.
        images: [B, 3, S, S] in 0..1.
        embedding: tokens [N, D].
        noise: [V, B, C, s, s], one for each view.
        thetas: V transforms [2, 3].
        fill: beyond the images' edge.
        at_once: pictures in one forward pass; views share one where several fit.

    Returns:
        [B, N, h, w]: mean over the views that show a place; 0 where none does.
    """
    if len(noise) != len(thetas) or not thetas:
        raise ValueError(f"expected noise for each of at least one view; found {len(noise)}, {len(thetas)}")
    count, step = len(images), max(1, at_once // max(1, len(images)))
    total: Tensor | None = None
    views: Tensor | None = None
    for first in range(0, len(thetas), step):
        some = torch.stack([theta.to(images) for theta in thetas[first : first + step]])
        turned = some.repeat_interleave(count, 0)
        shown = warp(images.repeat(len(some), 1, 1, 1), turned, fill)
        found = attention_of(shown, embedding, noise[first : first + step].flatten(0, 1))
        restored, seen = restore(found, turned)
        weight = seen.to(restored.dtype)[:, None]
        summed = (restored * weight).unflatten(0, (len(some), count)).sum(0)
        shown_in = weight.unflatten(0, (len(some), count)).sum(0)
        total = summed if total is None else total + summed
        views = shown_in if views is None else views + shown_in
    assert total is not None and views is not None
    return total / views.clamp_min(1)
