"""Where diffusion models come from: the package, a folder, or a hub.

A repository is read at one commit, which is remembered: tokens belong to a model. Pipelines that bring code
of their own, as the published Zero123Plus does, would have to be trusted to run it; here classes of this
project and of diffusers read their weights, and nothing else of a repository is run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pseudolabels.zero123plus.features import AttentionModel, Reading, Switches
from wildshape.errors import UserError

PUBLISHED = "sudo-ai/zero123plus-v1.2"
_FULL = "float32"
_UNET = "UNet2DConditionModel"


def load_model(
    source: str,
    *,
    device: torch.device,
    switches: Switches | None = None,
    reading: Reading | None = None,
    revision: str | None = None,
    dtype: str = _FULL,
) -> AttentionModel:
    """Load a model in diffusers' layout from a folder or a hub.

    Half-precision files are turned into float32.

    Args:
        source: ``small`` (the one that comes with the package), a folder, or a repository.
        device: where to put it.
        switches: see `Switches`.
        reading: see `Reading`.
        revision: of the repository: a commit, branch or tag; None: its main branch as it is now.
        dtype: float32, and nothing else.

    Raises:
        UserError: half precision is asked for, there is no such model, it has no cross-attention, or
            diffusers is not installed.
    """
    if dtype != _FULL:
        raise UserError(
            f"--dtype {dtype}: expected float32; with less precision the tokens do not converge"
        )
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            'unsupervised keypoints need diffusers; run: pip install "wildshape[diffusion]"'
        ) from error
    if source == "small":
        from pseudolabels.zero123plus.small_model import load_small

        return AttentionModel(_of_pipeline(load_small(), device), switches, reading)
    if source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise UserError(f"--model: expected small, a folder or a repository; found no folder {source}")
    commit = None if Path(source).is_dir() else commit_of(source, revision)
    try:
        parts = _read(diffusers, source, device, commit)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise _unusable(source, error) from error
    return AttentionModel(parts, switches, reading, commit)


def commit_of(repository: str, revision: str | None) -> str:
    """The commit that a revision of a repository is at: by the hub or, without a network, by its cache.

    Raises:
        UserError: there is no such repository or revision, it is no model in diffusers' layout, or the hub
            cannot be reached and the cache has none.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with _quiet_hub():
            index = hf_hub_download(repository, "model_index.json", revision=revision)
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"--model {repository}: expected a folder, or a repository on the hub or in its cache; found "
            f"none; where there is a network, run: hf download {repository} --local-dir FOLDER; then name "
            "that folder"
        ) from error
    except (OSError, ValueError) as error:  # no such repository, revision or file; not a name
        raise _unusable(repository, error) from error
    return Path(index).parent.name  # .../snapshots/<commit>/model_index.json


def _unusable(source: str, error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return UserError(
        f"--model: expected small, a folder or a repository in diffusers' layout, such as {PUBLISHED}; "
        f"{source} cannot be loaded ({(lines or [type(error).__name__])[0][:160]})"
    )


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub's warnings of every attempt: what came of them is told in one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read(diffusers: Any, source: str, device: torch.device, commit: str | None) -> dict[str, Any]:
    from pseudolabels.zero123plus.loading import quiet_loading

    where: dict[str, Any] = {"local_files_only": True} if commit is None else {"revision": commit}
    # Where accelerate is missing, diffusers tells of it at length.
    memory = {} if importlib.util.find_spec("accelerate") else {"low_cpu_mem_usage": False}
    with quiet_loading():
        index = diffusers.DiffusionPipeline.load_config(source, **where)
        if index["_class_name"] == "Zero123PlusPipeline":
            from pseudolabels.zero123plus.pipeline import Zero123PlusPipeline

            pipeline = Zero123PlusPipeline.from_pretrained(source, dtype=torch.float32, **where, **memory)
            return _of_pipeline(pipeline, device)
        network = index.get("unet") or index.get("transformer") or [None, _UNET]
        if network[1] != _UNET:
            raise UserError(
                f"--model: expected a {_UNET}, with cross-attention; {source} has a {network[1]}"
            )
        parts: dict[str, Any] = {}
        for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
            options = {**where, **memory, "subfolder": name, "dtype": torch.float32}
            parts[name] = kind.from_pretrained(source, **options)
            parts[name].to(device)
        scheduler = getattr(diffusers, index["scheduler"][1])
        parts["scheduler"] = scheduler.from_pretrained(source, subfolder="scheduler", **where)
    return parts


def _of_pipeline(pipeline: Any, device: torch.device) -> dict[str, Any]:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    return {name: getattr(pipeline, name) for name in ("unet", "vae", "scheduler")} | {"pipeline": pipeline}
