"""A step of learning tokens beside its readable twin: time, memory, points a second, and cost on paper.

    python -m benchmarks.zero123plus_speed
    python -m benchmarks.zero123plus_speed --model FOLDER --side 32
    python -m benchmarks.zero123plus_speed --large

A step is forward, backward and AdamW. Four ways take turns, each on one crop (and its copy) at a time, as
`tokens-train` does by default and as published, and two also on the whole batch at once:

- fast: `TokenTask.loss`;
- unblocked: the whole U-Net and maps of every head, as in the twin, but choice and losses all at once;
- reference: the twin, `tokens_reference.py`.

Weights are random ones of the small model's sizes unless --model names others: time does not depend on
them. Memory is the growth of a child process's largest resident size in one step (on a GPU: of what is
allocated), after a step on few tokens has loaded all code, and beside it what is kept for the way back.

On paper: multiply-adds (times two) and bytes kept, of a U-Net of Stable Diffusion 2.1's sizes on a crop of
512 pixels and its copy, with 500 tokens, run whole and stopped at the third recorded layer. --large also
measures that size, with random weights, where there is a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import save
from benchmarks.zero123plus_cost import TOKENS, large_unet, large_vae, on_paper, saved_bytes
from pseudolabels.train_tokens import default_side
from pseudolabels.zero123plus.features import AttentionModel, Reading
from pseudolabels.zero123plus.points import PointFinder
from pseudolabels.zero123plus.small_model import SmallConfig, build_pipeline, build_scheduler
from pseudolabels.zero123plus.sources import load_model
from pseudolabels.zero123plus.token_file import TokenFile
from pseudolabels.zero123plus.tokens import Tokens, TokenSettings, TokenTask
from pseudolabels.zero123plus.tokens_reference import reference_loss, reference_model

BATCH, KEPT, VIEWS = 4, 10, 10
WANTED_TIME, WANTED_MEMORY = 0.7, 2 / 3
WAYS = ("fast", "unblocked", "reference", "fast_batch", "reference_batch")
STEPS = ("random of the small model's sizes", "large")


@dataclass(frozen=True)
class Setup:
    """What is measured, as children get it too.

    Attributes:
        model: a folder, ``small``, or one of `STEPS`.
        side: longer side of the maps; None: the default of tokens-train.
        threads: of the processor.
    """

    model: str
    side: int | None
    threads: int

    def load(self) -> AttentionModel:
        """The model on the device, its maps of the asked size."""
        torch.set_num_threads(self.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.model == STEPS[0]:
            pipeline = build_pipeline(SmallConfig(), ["leg"])
            parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "scheduler")}
            parts["pipeline"] = pipeline
            pipeline.to(device)
            model = AttentionModel(parts)
        elif self.model == STEPS[1]:
            networks = {"unet": large_unet().to(device), "vae": large_vae().to(device)}
            model = AttentionModel({**networks, "scheduler": build_scheduler()})
        else:
            model = load_model(self.model, device=device)
        latents = model.noise_shape(model.image_size)[1]
        model.reading = Reading(side=self.side or default_side(latents))
        return model


def make_task(model: AttentionModel, way: str, tokens: int = TOKENS) -> tuple[TokenTask, dict[str, Tensor]]:
    """The training of one way, and a batch of noise for pictures."""
    rng = np.random.default_rng(0)
    size = model.image_size
    crops = rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    settings = TokenSettings(
        num_tokens=tokens, candidates=min(25, tokens), chunk=None if way.endswith("batch") else 1
    )
    attention = (model if way.startswith("fast") else reference_model(model)).attention
    embedding = Tokens(tokens, model.width).to(model.device)
    task = TokenTask(embedding, attention, crops, crops[:1], settings, model.noise_shape(size))
    drawn = [task.sample(i, np.random.default_rng([1, i])) for i in range(BATCH)]
    stacked = {name: np.stack([item[name] for item in drawn]) for name in drawn[0]}
    return task, {name: torch.from_numpy(value).to(model.device) for name, value in stacked.items()}


def make_step(model: AttentionModel, way: str, tokens: int = TOKENS) -> Callable[[], None]:
    """One whole step."""
    task, batch = make_task(model, way, tokens)

    def step() -> None:
        task.optimizer.zero_grad()
        if not way.startswith("reference"):
            task.loss(batch, 0)[0].backward()
        elif task.settings.chunk is None:
            reference_loss(task, batch).loss.backward()
        else:
            for i in range(BATCH):
                one = {name: value[i : i + 1] for name, value in batch.items()}
                (reference_loss(task, one).loss / BATCH).backward()
        task.optimizer.step()

    return step


def timed(action: Callable[[], Any]) -> float:
    """Seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def side_by_side(actions: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each action in each turn, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns + 1):
        for name, action in actions.items():
            spent = timed(action)
            if turn:
                times[name].append(spent)
    return times


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"expected {field} in /proc/self/status")


def peak_memory(setup: Setup, way: str) -> dict[str, float]:
    """Megabytes that a step takes beyond what was there before, and that are kept for its way back."""
    model = setup.load()
    make_step(model, way, tokens=25)()
    step = make_step(model, way)
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        grown = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the largest size so far
        before = _resident("VmRSS")
        step()
        grown = _resident("VmHWM") - before
    return {
        "peak_mb": round(grown / 1e6, 1),
        "kept_mb": round(saved_bytes(step, model.unet, model.vae) / 1e6, 1),
    }


def memory_in_children(setup: Setup) -> dict[str, dict[str, float] | str]:
    """`peak_memory` of every way, each in a process of its own."""
    found: dict[str, dict[str, float] | str] = {}
    # Large blocks go back to the system when they are freed, so that sizes are those of what lives.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.zero123plus_speed", "--child", way]
        command += ["--model", setup.model, "--threads", str(setup.threads)]
        command += ["--side", str(setup.side)] if setup.side else []
        done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
        if done.returncode:
            found[way] = (done.stderr.strip().splitlines() or ["failed"])[-1]
        else:
            found[way] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(setup: Setup, turns: int) -> dict[str, Any]:
    """Time and memory of steps, and points a second, of one model."""
    model = setup.load()
    steps = {way: make_step(model, way) for way in WAYS}
    if setup.model == STEPS[1]:  # of the twin's whole batch no GPU has the memory
        steps = {way: step for way, step in steps.items() if not way.endswith("batch")}
    times = side_by_side(steps, turns)
    del steps
    figures: dict[str, Any] = {
        "image_size": model.image_size,
        "side": model.reading.side,
        "step_seconds": _spread(times),
        "step_ratio": _ratio(times, "fast", "reference"),
        "step_ratio_to_unblocked": _ratio(times, "fast", "unblocked"),
    }
    finders = {
        name: _finder(source) for name, source in (("fast", model), ("reference", reference_model(model)))
    }
    crops = np.random.default_rng(2).integers(0, 256, (2, *[model.image_size] * 2, 3), dtype=np.uint8)
    found = side_by_side({name: lambda of=of: of(crops) for name, of in finders.items()}, turns)
    figures["animals_a_second"] = {name: round(len(crops) / min(taken), 3) for name, taken in found.items()}
    figures["prediction_ratio"] = _ratio(found, "fast", "reference")
    del model, finders
    gc.collect()
    figures["memory"] = memory = memory_in_children(setup)
    for name, pair in (("memory_ratio", WAYS[::2][:2]), ("memory_ratio_of_batch", WAYS[3:])):
        one, other = (memory[way] for way in pair)
        if isinstance(one, dict) and isinstance(other, dict):
            figures[name] = round(one["peak_mb"] / other["peak_mb"], 3)
    return figures


def _finder(model: AttentionModel) -> PointFinder:
    embedding = Tokens(TOKENS, model.width).embedding.detach()
    times = torch.zeros(TOKENS, dtype=torch.int64)
    facts = {"image_size": model.image_size}
    return PointFinder(model, TokenFile(embedding, torch.arange(KEPT), times, facts), VIEWS)


def _spread(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"median": round(statistics.median(taken), 3), "least": round(min(taken), 3)}
        for name, taken in times.items()
    }


def _ratio(times: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """Of medians, and of the least times, which other work on the machine disturbs less."""
    return {
        "median": round(statistics.median(times[one]) / statistics.median(times[other]), 3),
        "least": round(min(times[one]) / min(times[other]), 3),
    }


def show(title: str, figures: dict[str, Any]) -> None:
    """Print what one model's figures say."""
    steps, memory = figures["step_seconds"], figures["memory"]
    print(f"{title}: crops of {figures['image_size']}, maps of {figures['side']}, batch {BATCH}")
    for way in WAYS:
        taken = f"{steps[way]['median']:8.3f} s" if way in steps else "         -"
        used = memory[way]
        room = used if isinstance(used, str) else f"{used['peak_mb']:.0f} MB, kept {used['kept_mb']:.0f} MB"
        print(f"   {way:<16} {taken}   {room}")
    print(
        f"   a step takes {figures['step_ratio']['median']:.2f} of the twin's time (of the least "
        f"{figures['step_ratio']['least']:.2f}; wanted {WANTED_TIME}) and "
        f"{figures.get('memory_ratio', float('nan')):.2f} of its memory (wanted {WANTED_MEMORY:.2f}); "
        f"{figures['animals_a_second']['fast']:.2f} animals/s, twin "
        f"{figures['animals_a_second']['reference']:.2f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=STEPS[0], help="small, or a folder; default random weights")
    parser.add_argument("--side", type=int, help="of the maps; default as tokens-train")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--large", action="store_true", help="measure the large size too, on a GPU")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    setup = Setup(options.model, options.side, options.threads)
    if options.child:
        print(json.dumps(peak_memory(setup, options.child)))
        return 0
    figures: dict[str, Any] = {
        "model": options.model,
        "batch": BATCH,
        "tokens": TOKENS,
        "views": VIEWS,
        "threads": options.threads,
        "turns": options.turns,
        "load_average": round(os.getloadavg()[0], 2),
        "wanted": {"step_ratio": WANTED_TIME, "memory_ratio": round(WANTED_MEMORY, 3)},
        "measured": measure(setup, options.turns),
    }
    show("zero123plus_speed", figures["measured"])
    figures["on_paper"] = paper = on_paper()
    print(f"   on paper, {json.dumps(paper)}")
    figures["large"] = {"skipped": "not asked for (--large)"}
    if options.large and torch.cuda.is_available():
        figures["large"] = measure(Setup(STEPS[1], None, options.threads), options.turns)
        show("large", figures["large"])
    elif options.large:
        figures["large"] = {"skipped": "expected a CUDA device; found none"}
        print(f"   large: {figures['large']['skipped']}")
    print(save("zero123plus_speed", figures, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
