"""Articulation, forward and backward, against a recursive reference per part, in one run.

    python -m benchmarks articulation
    python -m benchmarks.articulation --batch 12 --vertices 2500 --parts 13

Both move every vertex of random meshes by a tree of parts four deep and send a gradient back to the part
transforms. Turns alternate; the ratio is that of the least times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from acsm.articulation import articulate, articulate_reference
from benchmarks.machine import save

LIMIT = 5.0


def make_case(batch: int, vertices: int, parts: int) -> dict[str, Any]:
    """Random arguments of `articulate`."""
    generator = torch.Generator().manual_seed(0)
    transforms = torch.randn(batch, parts, 8, generator=generator)
    transforms[..., 4:] = torch.nn.functional.normalize(transforms[..., 4:], dim=-1)
    # Body, then chains of three: neck-head-ear, and legs of three segments.
    parents = [-1] + [0 if part % 3 == 1 else part - 1 for part in range(1, parts)]
    return {
        "vertices": torch.randn(vertices, 3, generator=generator),
        "membership": torch.randn(vertices, parts, generator=generator).softmax(-1),
        "transforms": transforms,
        "centres": torch.randn(parts, 3, generator=generator),
        "parents": tuple(parents),
    }


def seconds(function: Callable[..., torch.Tensor], case: dict[str, Any], weight: torch.Tensor) -> float:
    """One forward and backward pass."""
    transforms = case["transforms"].clone().requires_grad_()
    began = time.perf_counter()
    (function(**{**case, "transforms": transforms}) * weight).sum().backward()
    return time.perf_counter() - began


def measure(batch: int, vertices: int, parts: int, turns: int) -> dict[str, Any]:
    """Least times of both, and their ratio."""
    case = make_case(batch, vertices, parts)
    weight = torch.randn(batch, vertices, 3)
    slow_case = {**case, "vertices": case["vertices"].expand(batch, -1, -1)}
    fast, slow = [], []
    for _ in range(turns):
        fast.append(seconds(articulate, case, weight))
        slow.append(seconds(articulate_reference, slow_case, weight))
    ratio = min(slow) / min(fast)
    return {
        "batch": batch,
        "vertices": vertices,
        "parts": parts,
        "threads": torch.get_num_threads(),
        "batched_ms": round(1e3 * min(fast), 3),
        "reference_ms": round(1e3 * min(slow), 3),
        "ratio": round(ratio, 2),
        "limit": LIMIT,
        "holds": ratio >= LIMIT,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--vertices", type=int, default=2500)
    parser.add_argument("--parts", type=int, default=13)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    figures = measure(options.batch, options.vertices, options.parts, options.turns)
    path = save("articulation", figures, options.out)
    print(
        f"articulation: batched {figures['batched_ms']:.2f} ms, reference "
        f"{figures['reference_ms']:.2f} ms, {figures['ratio']:.1f} times faster "
        f"(at least {LIMIT:g} wanted); {path}"
    )
    return 0 if figures["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
