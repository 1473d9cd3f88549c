"""`wildshape tokens-train`: learn tokens of a diffusion model that settle on places of an animal.

python pseudolabels/train_tokens.py --category cow
python pseudolabels/generate_pl.py --category cow
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudolabels.zero123plus.crops import AnimalCrops, mattes_note, mattes_of, read_crops, sample_rows
from pseudolabels.zero123plus.features import (
    TRAINING_STEPS,
    AttentionModel,
    Reading,
    Switches,
)
from pseudolabels.zero123plus.maps import SIGMA
from pseudolabels.zero123plus.sources import load_model
from pseudolabels.zero123plus.token_file import FILE, KIND, TokenFile, model_facts
from pseudolabels.zero123plus.tokens import (
    FILL,
    PUBLISHED_FILL,
    PUBLISHED_SIDE,
    Tokens,
    TokenSettings,
    TokenTask,
    most_chosen,
    times_chosen,
)
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import image_paths
from wildshape.device import pick_device
from wildshape.errors import UserError
from wildshape.monitor import MonitorOptions
from wildshape.processes import is_first_process
from wildshape.records import tell_skipped
from wildshape.stage import Provenance, input_hashes
from wildshape.training import FitResult, fit, fit_config, load_checkpoint
from wildshape.training_data import labelled_image_ids, repeated_image_ids

if TYPE_CHECKING:
    from wildshape.tables import Table
    from wildshape.workspace import Workspace

MODEL = "zero123plus"
"""Name of the checkpoint's folder."""
VALIDATION = 16
"""Crops that are kept back at the most."""
LATENT_PIXELS = 2
"""Pixels of a map to one of the latents, as published: finer ones cost time, and tell no more."""
POINTS, PUBLISHED_POINTS = 30, 10
NOISE, PUBLISHED_NOISE = -13, -1
PUBLISHED_LR, PUBLISHED_WIDTH = 5e-3, 768


@dataclass(frozen=True, kw_only=True)
class Config(MonitorOptions, CommonConfig):
    """Learn tokens whose attention settles on the same places of every animal, on unlabelled crops."""

    model: str = "small"
    """The diffusion model: small (the one that comes with the package), a folder, or a repository."""
    revision: str | None = None
    """Of a repository: a commit, branch or tag; default its main branch. The commit that is found is kept
    with the tokens, and points are found by that one."""
    dtype: str = "float32"
    """float32; with less precision tokens do not converge."""
    steps: int = 200
    """Optimiser steps (published for Zero123Plus: 200; for Stable Diffusion 500)."""
    batch_size: int = 4
    """Crops a step."""
    num_tokens: int = 500
    """Tokens that are learnt."""
    candidates: int = 25
    """Tokens of a crop that look most like a blob."""
    taught: int = 10
    """Of these, far apart from one another, those that the crop teaches."""
    keep: int | None = None
    """Points: the tokens that are chosen most often after training; default 30, or as many as were ever
    chosen, with --published 10. Another number trains nothing anew."""
    sharpen: float = 100.0
    """Weight of the loss that makes attention a blob."""
    equivariance: float = 1000.0
    """Weight of the loss that makes attention move with the animal."""
    lr: float | None = None
    """AdamW's learning rate; default 5e-3, as published, and more for tokens narrower than 768."""
    sigma: float | None = None
    """Of the blobs, in pixels of a map of 128; default one pixel of the latents, with --published 2."""
    image_size: int | None = None
    """Side of the crops in pixels; default the model's."""
    side: int | None = None
    """Side of the attention maps; default twice that of the latents and 128 at the most, with --published
    128."""
    layers: int = 3
    """Cross-attention layers that are read, the first ones on the way up."""
    noise_step: int | None = None
    """Of the 50 steps of the schedule, from the noisiest, the one that pictures are noised to; default -13,
    a quarter of the way, with --published -1, the least noisy."""
    chunk: int = 1
    """Crops whose attention is in memory at a time; more is faster where there is room."""
    published: bool = False
    """As released: what has left the frame is black and compared with nothing, layers answer from upsampled
    queries, and the published side of the maps, blobs, noise and number of points."""
    global_embeddings: bool = False
    """Zero123Plus: add the picture's embedding to the tokens."""
    guidance: bool = False
    """Zero123Plus: average with the attention without the picture."""
    reference_attention: bool = False
    """Zero123Plus: let self-attention look at the picture."""
    max_images: int | None = 1000
    """Crops to learn from, drawn at random; they are held in memory."""
    eval_every: int = 50
    """Steps between evaluations on crops that are kept back."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    time_limit: float | None = None
    """Minutes after which to stop with the state saved; the same command continues."""
    num_workers: int = 1
    """Threads that prepare crops ahead."""
    seed: int = 0
    """Seed of tokens, order, transforms and noise."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        least = {"keep": 2, "layers": 1, "chunk": 1, "batch_size": 1, "side": 4}
        least["max_images"] = self.batch_size + 1
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and value < number:
                raise UserError(f"--{name}: expected at least {number}; found {value}")
        for name in ("lr", "sigma"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name}: expected more than 0; found {value}")
        if not -TRAINING_STEPS <= (self.noise_step or 0) < TRAINING_STEPS:
            raise UserError(
                f"--noise_step: expected {-TRAINING_STEPS} to {TRAINING_STEPS - 1}; found {self.noise_step}"
            )
        if (self.keep or 2) > self.num_tokens:
            raise UserError(f"--keep: expected at most --num_tokens {self.num_tokens}; found {self.keep}")
        _ = self.settings

    @property
    def settings(self) -> TokenSettings:
        """What tokens learn from.

        Raises:
            UserError: the numbers do not fit together.
        """
        names = ("num_tokens", "candidates", "taught", "sharpen", "equivariance", "chunk")
        return TokenSettings(
            **{name: getattr(self, name) for name in names},
            sigma=SIGMA if self.sigma is None else self.sigma,
            fill=PUBLISHED_FILL if self.published else FILL,
            masked=not self.published,
        )

    def for_model(self, width: int, latents: int) -> Config:
        """The same with what suits a model where it is not given: learning rate, blobs, side of the maps.

        What is published was found with tokens of width 768 and 1024. A step of Adam moves every coordinate
        by the learning rate, and what it changes in the attention grows with their number.

        Args:
            width: of the tokens.
            latents: side of the latents of a crop.
        """
        blob = SIGMA if self.published else PUBLISHED_SIDE / latents
        side = PUBLISHED_SIDE if self.published else default_side(latents)
        return replace(
            self,
            lr=PUBLISHED_LR * max(1.0, PUBLISHED_WIDTH / width) if self.lr is None else self.lr,
            sigma=blob if self.sigma is None else self.sigma,
            side=side if self.side is None else self.side,
        )

    @property
    def noise(self) -> int:
        """The step of the schedule that pictures are noised to.

        Features of diffusion models correspond best at some noise (Tang et al., NeurIPS 2023, for Stable
        Diffusion at step 261 of 1000).
        """
        default = PUBLISHED_NOISE if self.published else NOISE
        return default if self.noise_step is None else self.noise_step

    @property
    def switches(self) -> Switches:
        """What of Zero123Plus is on."""
        return Switches(self.global_embeddings, self.guidance, self.reference_attention)


def default_side(latents: int) -> int:
    """Side of the attention maps for latents of a side."""
    return min(PUBLISHED_SIDE, LATENT_PIXELS * latents)


def unlabelled(workspace: Workspace) -> tuple[Table, dict[str, Path], list[Path], str]:
    """The animals to learn from: detected ones, or where there are none the labelled ones of train.

    Returns:
        A table with boxes and masks, the file of each image id, the tables' files, and what they are.

    Raises:
        UserError: there are neither.
    """
    needed_by = "tokens-train"
    if workspace.table_path("instances").exists():
        instances = workspace.load("instances", needed_by)
        images = workspace.load("images", needed_by)
        known = labelled_image_ids(workspace) | repeated_image_ids(images)
        kept = np.array([image not in known for image in instances["image_id"]], dtype=bool)
        if kept.any():
            files = [workspace.table_path(name) for name in ("instances", "images")]
            paths = image_paths(images, workspace)
            return instances.take(kept), paths, files, "detected animals"
    if not workspace.table_path("labels").exists():
        workspace.load("instances", needed_by)  # says what to run
    labels = workspace.load("labels", needed_by)
    say("tokens: no detected animals outside the labelled photos; learning on the labelled ones of train")
    files = [workspace.table_path(name) for name in ("labels", "labelled_images")]
    paths = image_paths(workspace.load("labelled_images", needed_by), workspace)
    return labels.take(labels["split"] == "train"), paths, files, "labelled animals"


def gather(
    config: Config, workspace: Workspace, size: int
) -> tuple[AnimalCrops, dict[str, Any], list[Path]]:
    """Crops in random order, facts about them, and the tables they were read from.

    Raises:
        UserError: there are fewer than a batch and one to choose by.
    """
    table, paths, files, what = unlabelled(workspace)
    chosen = table.take(sample_rows(len(table), config.max_images, config.seed))
    crops = read_crops(chosen, paths, size)
    tell_skipped(crops.skipped, len(chosen), what)
    if len(crops) < config.batch_size + 1:
        raise UserError(
            f"expected at least {config.batch_size + 1} crops of {workspace.category.name}, a batch and "
            f"one to choose the best tokens by; found {len(crops)} {what} with images; detect more, or "
            "lower --batch_size"
        )
    matted = int(crops.matted.sum())
    option = " --labelled" if files[0].stem == "labels" else ""
    command = f"python prepare_data/save_masks.py --category {workspace.category.name}{option}"
    note = mattes_note(matted, len(crops), command)
    if note:
        say(f"tokens: {note}")
    facts = {"crops_from": what, "crops": len(crops), "matted": matted, "mattes": mattes_of(chosen)}
    return crops, facts, files


def _provenance(
    config: Config, workspace: Workspace, facts: dict[str, Any], found: dict[str, Any], files: list[Path]
) -> Provenance:
    names = ("steps", "batch_size", "lr", "seed", "max_images", "eval_every", "published")
    settings = {name: value for name, value in vars(config.settings).items() if name != "chunk"}
    settings["ranges"] = vars(config.settings.ranges)
    return Provenance(
        "tokens-train",
        {
            **settings,
            **{name: getattr(config, name) for name in names},
            **{name: facts[name] for name in ("unet", "vae", "image_size", "reading", "switches")},
            "mattes": found["mattes"],
        },
        input_hashes(workspace.root, *files),
    )


def make_task(config: Config, model: AttentionModel, crops: AnimalCrops, size: int) -> TokenTask:
    """The training of fresh tokens; some crops are kept back to choose the best by.

    The settings are those `Config.for_model` gives.
    """
    assert config.lr is not None
    back = max(1, min(VALIDATION, len(crops) // 5, len(crops) - config.batch_size))
    return TokenTask(
        Tokens(config.num_tokens, model.width, config.seed).to(model.device),
        model.attention,
        crops.crops[:-back],
        crops.crops[-back:],
        config.settings,
        model.noise_shape(size),
        lr=config.lr,
        seed=config.seed,
    )


def _keep(config: Config, task: TokenTask, result: FitResult, facts: dict[str, Any]) -> TokenFile:
    """The best tokens, and those of them that are chosen most often."""
    state = load_checkpoint(result.best_path, KIND)
    task.model.load_state_dict(state["model"])
    times = times_chosen(task, task.crops, seed=config.seed)
    default = PUBLISHED_POINTS if config.published else POINTS
    kept = most_chosen(times, min(default, int((times > 0).sum())) if config.keep is None else config.keep)
    return TokenFile(task.model.embedding, kept, times, {**facts, "step": int(state["step"])})


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Train, choose the tokens to keep, and give the validation metrics.

    Raises:
        UserError: there is no such model, half precision is asked for, there are too few crops or they are
            too small, or a training with other settings is there.
    """
    device = pick_device(config.device)
    model = load_model(
        config.model,
        device=device,
        switches=config.switches,
        reading=Reading(layers=config.layers, published=config.published, noise_step=config.noise),
        revision=config.revision,
        dtype=config.dtype,
    )
    size = model.image_size if config.image_size is None else config.image_size
    latents = model.noise_shape(size)[1]
    config = config.for_model(model.width, latents)
    assert config.side is not None
    model.reading = replace(model.reading, side=config.side)
    crops, found, files = gather(config, workspace, size)
    facts = model_facts(model, config.model)
    facts |= {"category": workspace.category.name, "image_size": size}
    task = make_task(config, model, crops, size)
    say(
        f"tokens: {config.num_tokens} on {len(task)} crops of {size} pixels ({found['crops_from']}), "
        f"{len(crops) - len(task)} kept back, {config.steps} steps of {config.batch_size} on {device.type}"
    )
    model.try_out(size)
    folder = workspace.checkpoint_dir(MODEL)
    result = fit(
        task,
        fit_config(config, metric="-loss", title="tokens"),
        folder,
        _provenance(config, workspace, facts, found, files),
        {**facts, "kind": KIND},
        config.monitor(workspace.name, "tokens", workspace.run_dir / "visdom"),
    )
    tokens = _keep(config, task, result, facts)
    if is_first_process():
        tokens.save(folder / FILE)
    metrics = {
        "model": facts["model"],
        "unet": facts["unet"],
        **{name: found[name] for name in ("crops_from", "crops", "matted")},
        "steps": result.step,
        "finished": result.finished,
        "seconds": round(result.seconds, 2),
        "val": result.metrics,
        "kept": tokens.kept.tolist(),
        "times_chosen": tokens.times[tokens.kept.cpu()].tolist(),
    }
    workspace.write_metrics("zero123plus_tokens", metrics)
    scores = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    state = "" if result.finished else " (stopped by --time_limit: run again to continue)"
    say(
        f"tokens: {result.step} of {config.steps} steps{state}; best: {scores or 'not measured yet'}; kept "
        f"{len(tokens.kept)} of {config.num_tokens} -> {workspace.relative(folder / FILE)}"
    )
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape tokens-train")


if __name__ == "__main__":
    sys.exit(main())
