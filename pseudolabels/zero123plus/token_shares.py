"""Softmax over tokens for many pixels, a block of pixels and a head at a time.

Maps of attention are a mean over heads of softmax(q k). Written down plainly, that keeps a map of every
head and token for the way back: gigabytes for 500 tokens and maps of 128. Here a block of logits is made,
used and dropped, forwards and once more backwards; what is kept are the queries at the layer's own
resolution, the keys, and one number a pixel and head, as in FlashAttention (Dao and others, 2022). Few
tokens of an image are taught: the way back looks at their gradients alone.

`tokens_reference.reference_maps` is the readable twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_BLOCK = {"cpu": 2**18, "cuda": 2**26}
"""Logits at a time: on a CPU those that stay in its cache."""


def token_shares(
    query: Tensor,
    key: Tensor,
    shape: tuple[int, int],
    size: tuple[int, int],
    kept: Tensor | None = None,
) -> Tensor:
    """How pixels share out their attention among tokens.

    Args:
        query: scaled, [B, H, h * w, d] for H heads, at the layer's resolution; upsampled here (bicubic).
        key: [B, H, N, d].
        shape: rows and columns h, w of the layer.
        size: rows and columns of the maps.
        kept: indices [M] of the tokens whose maps are wanted; None: all.

    Returns:
        [B, N or M, rows, columns], mean over heads; over all tokens it sums to 1.
    """
    rows, columns = (_cubic(*pair).to(query) for pair in zip(shape, size))
    return _TokenShares.apply(query, key, rows, columns, kept).unflatten(2, size)


@lru_cache(maxsize=64)
def _cubic(before: int, after: int) -> Tensor:
    """The matrix [after, before], float64, of bicubic resizing along one axis."""
    with torch.no_grad():
        unit = torch.eye(before, dtype=torch.float64)[None, :, :, None]
        if after == before:
            return unit[0, :, :, 0]
        resized = functional.interpolate(unit, size=(after, 1), mode="bicubic", align_corners=False)
        return resized[0, :, :, 0].T.contiguous()


def _resized(grid: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Features [h * w, d] under matrices [h', h] and [w', w]: [h' * w', d]."""
    across = torch.matmul(columns, grid.unflatten(0, (-1, columns.shape[1])))
    return (rows @ across.flatten(1)).reshape(-1, grid.shape[1])


class _TokenShares(torch.autograd.Function):
    """The computation of `token_shares`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, rows: Tensor, columns: Tensor, kept: Tensor | None
    ) -> Tensor:
        batch, heads, tokens, _ = key.shape
        pixels = len(rows) * len(columns)
        found = query.new_zeros((batch, tokens if kept is None else len(kept), pixels))
        log_sum = query.new_empty((batch, heads, pixels))
        buffer = _buffer(query, tokens, pixels)
        for i in range(batch):
            for head in range(heads):
                fine = _resized(query[i, head], rows, columns)
                for block in _blocks(pixels, buffer.shape[1]):
                    logits = torch.mm(key[i, head], fine[block].T, out=_cut(buffer, block))
                    top = logits.amax(0)
                    share = logits.sub_(top).exp_()
                    total = share.sum(0)
                    wanted = share if kept is None else share[kept]
                    found[i, :, block].addcmul_(wanted, (1 / (heads * total)).expand_as(wanted))
                    log_sum[i, head, block] = top + total.log()
        ctx.save_for_backward(query, key, rows, columns, kept, log_sum)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, rows, columns, kept, log_sum = ctx.saved_tensors
        _, heads, tokens, _ = key.shape
        pixels = log_sum.shape[-1]
        of_query, of_key = torch.zeros_like(query), torch.zeros_like(key)
        buffer = _buffer(query, tokens, pixels)
        for i in range(len(key)):
            # of softmax p with gradient g, the logits' gradient is p g - p (sum over tokens of p g)
            taught = gradient[i].ne(0).any(1).nonzero()[:, 0]
            weight = gradient[i, taught] / heads
            tokens_taught = taught if kept is None else kept[taught]
            for head in range(heads):
                fine, keys = _resized(query[i, head], rows, columns), key[i, head]
                of_fine = torch.empty_like(fine)
                for block in _blocks(pixels, buffer.shape[1]):
                    part = fine[block]
                    share = _cut(buffer, block)
                    torch.addmm(-log_sum[i, head, block].expand_as(share), keys, part.T, out=share).exp_()
                    moved = share[tokens_taught] * weight[:, block]
                    common = moved.sum(0)[:, None]
                    of_key[i, head] -= share @ (common * part)
                    of_key[i, head].index_add_(0, tokens_taught, moved @ part)
                    of_fine[block] = moved.T @ keys[tokens_taught] - common * (share.T @ keys)
                of_query[i, head] = _resized(of_fine, rows.T, columns.T)
        return of_query, of_key, None, None, None


def _buffer(like: Tensor, tokens: int, pixels: int) -> Tensor:
    most = max(1, _BLOCK.get(like.device.type, _BLOCK["cuda"]) // tokens)
    return like.new_empty((tokens, min(pixels, most)))


def _blocks(pixels: int, size: int) -> Iterator[slice]:
    for first in range(0, pixels, size):
        yield slice(first, min(first + size, pixels))


def _cut(buffer: Tensor, block: slice) -> Tensor:
    """Room for a block; the last one may be smaller."""
    count = block.stop - block.start
    return buffer if count == buffer.shape[1] else buffer.new_empty((len(buffer), count))
