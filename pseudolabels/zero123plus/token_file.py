"""What a training of tokens leaves for prediction: all tokens, which to keep, and whose they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pseudolabels.zero123plus.features import AttentionModel, Reading, Switches
from pseudolabels.zero123plus.sources import load_model
from wildshape.errors import UserError
from wildshape.training import load_checkpoint, save_checkpoint

KIND = "zero123plus"
FILE = "tokens.pt"


def weights_hash(network: nn.Module) -> str:
    """Hash of a network's weights, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {list(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.reshape(-1).numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TokenFile:
    """Learnt tokens.

    Attributes:
        embedding: all N of them [N, D]: attention is a share among all.
        kept: indices [K] of those whose places are the points.
        times: how often each was chosen [N].
        facts: ``model``, ``revision`` (a commit), ``unet`` and ``vae`` (see `weights_hash`),
            ``image_size``, ``reading``, ``switches``, ``category``, ``step``.
    """

    embedding: Tensor
    kept: Tensor
    times: Tensor
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        tensors = {name: getattr(self, name).detach().cpu() for name in ("embedding", "kept", "times")}
        save_checkpoint(path, {**tensors, "extra": {**self.facts, "kind": KIND}})

    @classmethod
    def load(cls, path: Path) -> TokenFile:
        """Read it.

        Raises:
            UserError: it is missing, unreadable or another file.
        """
        state = load_checkpoint(path, KIND)
        try:
            return cls(state["embedding"], state["kept"], state["times"], state["extra"])
        except KeyError as error:
            raise UserError(f"expected a token file in {path}; found no {error}") from error


def model_facts(model: AttentionModel, source: str) -> dict[str, Any]:
    """What a token file says of its model."""
    folder = Path(source).expanduser()
    return {
        "model": str(folder.resolve()) if folder.is_dir() else source,
        "revision": model.revision,
        "unet": weights_hash(model.unet),
        "vae": weights_hash(model.vae),
        "reading": vars(model.reading),
        "switches": vars(model.switches),
    }


def load_model_of(
    tokens: TokenFile, device: torch.device, source: str | None = None, command: str = "train them again"
) -> AttentionModel:
    """The model that tokens were learnt with.

    Args:
        tokens: see `TokenFile`.
        device: where to put it.
        source: where it is now; None: where it was then.
        command: that trains tokens.

    Raises:
        UserError: it cannot be loaded, or is another one.
    """
    facts = tokens.facts
    model = load_model(
        source or facts["model"],
        device=device,
        switches=Switches(**facts["switches"]),
        reading=Reading(**facts["reading"]),
        revision=None if source else facts["revision"],
    )
    for name, title, network in (("unet", "U-Net", model.unet), ("vae", "autoencoder", model.vae)):
        found = weights_hash(network)
        if found != facts[name]:
            raise UserError(
                f"--model: expected the one that the tokens were learnt with, {facts['model']} ({title} "
                f"{facts[name]}); found {source or facts['model']} ({title} {found}); name that one, or "
                f"learn tokens of this one: {command}"
            )
    return model
