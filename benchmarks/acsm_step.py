"""A whole training step of the 3D model beside its encoder's forward and backward alone, in one run.

    python -m benchmarks acsm_step
    python -m benchmarks.acsm_step --image_size 96 --batch_size 12

The encoder is the ResNet-18 up to stride 32, on the same batch, with the gradient of its last map's
sum. The step is that of `acsm-train` with default settings: it adds the conversion of crops, the
remaining layers, articulation, projection, all terms of the loss and the optimiser. The frozen step
(`acsm-train --freeze`) starts from the encoder's last map, which is there already. Turns alternate;
figures are medians, and beside them the ratio of the least times, which other work on the machine
disturbs less. All are measured in float32 and with the encoder in bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from acsm.losses import LossWeights, total_loss
from acsm.model import ACSM, ACSMArchitecture
from acsm.predict import normalise
from acsm.template import template_for
from acsm.train import Config
from benchmarks.machine import save
from wildshape.category import load_category

LIMIT = 1.15


def _timed(action: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def measure(image_size: int, batch_size: int, turns: int, autocast: bool) -> dict[str, Any]:
    """Median milliseconds of the encoder, a step and a frozen step, and their ratios."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = ACSM(template_for(load_category("cow")), ACSMArchitecture(image_size=image_size))
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    crops = torch.randint(256, (batch_size, image_size, image_size, 3), dtype=torch.uint8, device=device)
    images = normalise(crops)
    target = torch.rand(batch_size, model.num_keypoints, 2, device=device)
    weight = torch.ones(batch_size, model.num_keypoints, device=device)
    quaternion = torch.nn.functional.normalize(torch.randn(batch_size, 4, device=device), dim=1)
    guide = torch.cat((quaternion, torch.rand(batch_size, 1, device=device)), dim=1)
    weights = LossWeights(
        camera=Config.camera_guide, turn=Config.turn_weight, upright=Config.upright_weight,
        entropy=Config.entropy_weight, spread=Config.spread_weight,
    )  # fmt: skip

    with torch.no_grad():
        maps = model.encoder.backbone(images)
    head = [p for name, p in model.named_parameters() if not name.startswith("encoder.backbone")]
    head_optimizer = torch.optim.Adam(head, lr=1e-4, fused=True)

    def encoder() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            features = model.encoder.backbone(images)
        features.float().sum().backward()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss, _ = total_loss(model(normalise(crops)), target, weight, guide, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def frozen() -> None:
        loss, _ = total_loss(model.from_features(maps), target, weight, guide, weights)
        head_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        head_optimizer.step()

    actions = {"encoder": encoder, "step": step, "frozen": frozen}
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns + 2):
        for name, action in actions.items():
            spent = _timed(action, device)
            if turn >= 2:  # the first choose kernels
                times[name].append(spent)
    alone, whole, cheap = (statistics.median(times[name]) for name in actions)
    return {
        "encoder_ms": round(alone, 2),
        "step_ms": round(whole, 2),
        "ratio": round(whole / alone, 3),
        "ratio_of_least": round(min(times["step"]) / min(times["encoder"]), 3),
        "frozen_step_ms": round(cheap, 2),
        "frozen_ratio": round(cheap / whole, 3),
        "steps_per_second": round(1e3 / whole, 2),
        "images_per_second": round(1e3 * batch_size / whole, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    figures: dict[str, Any] = {
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "threads": torch.get_num_threads(),
    }
    for name, autocast in (("float32", False), ("bfloat16", True)):
        figures[name] = measure(options.image_size, options.batch_size, options.turns, autocast)
        print(
            f"acsm_step {name}: encoder {figures[name]['encoder_ms']:.0f} ms, whole step "
            f"{figures[name]['step_ms']:.0f} ms, ratio {figures[name]['ratio']:.2f} (of the least times "
            f"{figures[name]['ratio_of_least']:.2f}), frozen step "
            f"{figures[name]['frozen_step_ms']:.0f} ms, "
            f"{figures[name]['images_per_second']:.0f} images/s"
        )
    figures["wanted_at_256_px"] = LIMIT
    print(save("acsm_step", figures, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
