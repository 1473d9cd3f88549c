"""Where a 3D model starts: another 3D model, a pose network's encoder, ImageNet, or at random."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acsm.model import ACSM, ACSMArchitecture
from wildshape.errors import UserError
from wildshape.pretrained import load_imagenet_backbone

if TYPE_CHECKING:
    from acsm.template import ArticulatedTemplate


def initialise(model: ACSM, init: Path | None, imagenet: bool, template: ArticulatedTemplate) -> str:
    """Give a new model its first weights: a checkpoint's, ImageNet's, or the random ones it has.

    Returns:
        Where they are from, in words.

    Raises:
        UserError: see `start_from`.
    """
    if init is not None:
        return start_from(model, init, template)
    if imagenet and load_imagenet_backbone(model.encoder.backbone, "resnet18"):
        return "ImageNet weights"
    return "random weights" + (" (ImageNet weights cannot be had here)" if imagenet else "")


def start_from(model: ACSM, path: str | Path, template: ArticulatedTemplate) -> str:
    """Copy into a model what a checkpoint has for it.

    From a 3D model everything is taken that has the same shape; its parts only if they are the same
    parts, its cameras only if they are predicted in the same way. From a pose network with a ResNet-18
    the backbone is taken.

    Args:
        model: filled in place.
        path: a checkpoint of ``acsm/train.py`` or ``pose/train.py``, or a published pose network.
        template: the model's template.

    Returns:
        What was taken, in words.

    Raises:
        UserError: there is no such file, or nothing in it fits.
    """
    state = _read(Path(path))
    extra = state.get("extra") if isinstance(state.get("extra"), Mapping) else {}
    parameters: Mapping[str, Any] = state.get("model", state)
    parameters = {k.removeprefix("module."): v for k, v in parameters.items()}
    if any(name.startswith("backbone.") for name in parameters):
        parameters = {
            f"encoder.{name}": v for name, v in parameters.items() if name.startswith("backbone.")
        }
    elif list(extra.get("template", {}).get("part_names", ())) != list(template.part_names):
        parameters = {k: v for k, v in parameters.items() if not k.startswith("part_head.")}
    arch = extra.get("arch")
    if isinstance(arch, Mapping) and not _same_cameras(arch, model.arch):
        # The same shapes, but they mean another rotation.
        parameters = {k: v for k, v in parameters.items() if not k.startswith("camera_head.")}
    own = model.state_dict()
    fitting: dict[str, Tensor] = {
        name: value
        for name, value in parameters.items()
        if isinstance(value, Tensor) and name in own and own[name].shape == value.shape
    }
    backbone = {name for name in own if name.startswith("encoder.backbone.")}
    if not backbone <= set(fitting):
        released = any(name.startswith("img_encoder.") for name in parameters)
        hint = "; it is a released 3D model: run wildshape acsm-convert first" if released else ""
        raise UserError(
            f"--init: expected a 3D model or a pose network with a ResNet-18 in {path}; found "
            f"{len(parameters)} parameters of other names or shapes{hint}"
        )
    model.load_state_dict(fitting, strict=False)
    if len(fitting) == len(own):
        return f"{path}"
    taken = {name.split(".")[0] for name in fitting} - {"encoder"}
    also = f", {', '.join(sorted(taken))}" if taken else ""
    return f"encoder{also} of {path}"


def _same_cameras(saved: Mapping[str, Any], own: ACSMArchitecture) -> bool:
    if saved.get("camera") != own.camera:
        return False
    # Quaternions have no ranges, and a turntable's azimuth has none.
    first = {"quaternion": 3, "turntable": 1}.get(own.camera, 0)
    ranges = saved.get("angle_ranges_deg", ACSMArchitecture.angle_ranges_deg)
    return tuple(ranges)[first:] == tuple(own.angle_ranges_deg)[first:]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--init: expected a checkpoint; found no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--init: expected a checkpoint of tensors in {path}; {line}") from error
    if not isinstance(state, dict):
        raise UserError(f"--init: expected a checkpoint in {path}; found {type(state).__name__}")
    return state
