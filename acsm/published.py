"""Checkpoints of the released ACSM code, renamed into the layout of `acsm.model`."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acsm.geometry import quat_multiply
from acsm.model import ACSM, ACSMArchitecture
from wildshape.errors import UserError

if TYPE_CHECKING:
    from acsm.template import ArticulatedTemplate

_CHILDREN = {
    "conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7
}  # fmt: skip


def _read(source: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(source, Mapping):
        state: Mapping = source
    else:
        path = Path(source)
        if not path.is_file():
            raise UserError(f"expected a published ACSM checkpoint; found no file {path}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"expected a checkpoint of tensors at {path}; {line}") from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    return {name.removeprefix("module."): value for name, value in state.items()}


class _Names:
    """Published parameters, stacked by name patterns."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def stack(self, prefixes: list[str], suffixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
        """Weights and biases of one layer per prefix; several suffixes join their outputs."""

        def joined(prefix: str, kind: str) -> Tensor:
            return torch.cat([self.state[f"{prefix}{suffix}.{kind}"] for suffix in suffixes])

        return {
            kind: torch.stack([joined(prefix, kind) for prefix in prefixes]) for kind in ("weight", "bias")
        }

    def fc(self, prefixes: list[str]) -> dict[str, Tensor]:
        """Two-layer stacks, one per prefix, under the names of `acsm.layers.Stack`."""
        return {
            f"{ours}.{kind}": value
            for ours, theirs in (("first", ".0.0"), ("second", ".1.0"))
            for kind, value in self.stack([p + theirs for p in prefixes]).items()
        }


def published_biases(number: int) -> Tensor:
    """The released camera biases [number, 4], with their four digits and their growing length."""
    bias, step = torch.tensor((0.7071, 0.7071, 0.0, 0.0)), torch.tensor((0.9239, 0.0, 0.3827, 0.0))
    biases = [bias]
    for _ in range(number - 1):
        biases.append(quat_multiply(step, biases[-1]))
    return torch.stack(biases)


def convert(state: Mapping[str, Tensor], num_parts: int, num_cameras: int) -> dict[str, Tensor]:
    """Published parameters under the names and shapes of `acsm.model.ACSM`.

    Args:
        state: parameters by their published names.
        num_parts: P.
        num_cameras: C; above one the multiplex's names are expected.

    Raises:
        KeyError: a parameter is missing.
    """
    names, ours = _Names(state), {}

    def put(prefix: str, layer: Mapping[str, Tensor]) -> None:
        ours.update({f"{prefix}.{name}": value for name, value in layer.items()})

    root = "img_encoder.resnet_conv.resnet."
    for name, value in state.items():
        if name.startswith(root):
            child, rest = name.removeprefix(root).split(".", 1)
            if child in _CHILDREN:
                ours[f"encoder.backbone.{_CHILDREN[child]}.{rest}"] = value
        elif name.startswith("img_encoder.enc_conv1."):
            ours[name.replace("img_encoder.enc_conv1.", "encoder.squeeze.")] = value
    put("encoder.stack", names.fc(["img_encoder.enc_fc"]))
    put("trunk", names.fc(["cam_predictor.fc"]))

    single = num_cameras == 1
    root = "cam_predictor.camera_predictor"
    heads = [root] if single else [f"{root}.{i}" for i in range(num_cameras)]
    put("camera_head.stack", names.fc([f"{head}.fc_layer" for head in heads]))
    outputs = (".prob_predictor", ".scale_predictor.pred_layer", ".trans_predictor.pred_layer")
    if single:
        outputs = (".quat_predictor.pred_layer", *outputs)
    output = names.stack(heads, outputs)
    if not single:
        # The released multiplex reads its angles off the first three features, with no layer between.
        inputs = output["weight"].shape[-1]
        pick = torch.eye(3, inputs).expand(num_cameras, 3, inputs)
        output["weight"] = torch.cat((pick, output["weight"]), dim=1)
        output["bias"] = torch.cat((torch.zeros(num_cameras, 3), output["bias"]), dim=1)
    put("camera_head.output", output)
    ours["camera_head.bias"] = published_biases(num_cameras)

    root = "cam_predictor.transform_predictor"
    trunks = [root] if single else [f"{root}s.{i}" for i in range(num_cameras)]
    put("part_head.trunk", names.fc([f"{trunk}.fc" for trunk in trunks]))
    parts = [f"{trunk}.part_transforms_pred.{p}" for trunk in trunks for p in range(num_parts)]
    put("part_head.stack", names.fc([f"{part}.fc_layer" for part in parts]))
    outputs = tuple(f".{kind}_predictor.pred_layer" for kind in ("quat", "scale", "trans"))
    put("part_head.output", names.stack(parts, outputs))
    axes = torch.stack([state[f"{part}.quat_predictor.axis"] for part in parts])
    ours["part_head.axis"] = axes.unflatten(0, (num_cameras, num_parts))
    return ours


def _image_size(features: int) -> int:
    side = max(round((features / 256) ** 0.5), 1)
    return 64 * side


def load_published(
    path_or_state_dict: str | Path | Mapping[str, Tensor],
    template: ArticulatedTemplate,
    num_cameras: int | None = 1,
) -> ACSM:
    """Build the model of a checkpoint with the released names.

    The model articulates in the published order and reports the published part scales. The
    membership stored in a checkpoint is not read: the released code did not read it either.

    Args:
        path_or_state_dict: file or parameters. A file may hold the parameters themselves or under
            ``model``, ``state_dict`` or ``model_state_dict``; a leading ``module.`` is dropped.
        template: the template it was trained with.
        num_cameras: 1, or 8 for the camera multiplex; None: as many as it has.

    Returns:
        The model in evaluation mode. The image size follows from the first linear layer.

    Raises:
        UserError: no such file, or one that holds something else or another number of parts or
            cameras.
    """
    state = _read(path_or_state_dict)
    try:
        size = _image_size(state["img_encoder.enc_fc.0.0.weight"].shape[1])
        found = {n.split(".")[2] for n in state if n.startswith("cam_predictor.camera_predictor.")}
        cameras = len(found) if all(n.isdigit() for n in found) else 1
        if num_cameras is not None and cameras != num_cameras:
            raise UserError(
                f"expected a checkpoint with {num_cameras} camera(s); found {cameras}; "
                f"pass num_cameras={cameras}"
            )
        part = "part_transforms_pred."
        parts = {n.split(part)[1].split(".")[0] for n in state if part in n}
        if len(parts) != len(template.part_names):
            raise UserError(
                f"expected the template's {len(template.part_names)} parts in the checkpoint; "
                f"found {len(parts)}"
            )
        ours = convert(state, len(parts), cameras)
    except (KeyError, IndexError) as error:
        raise UserError(
            f"expected a published ACSM checkpoint; found {len(state)} parameters without {error}"
        ) from error
    model = ACSM(
        template,
        ACSMArchitecture(
            image_size=size,
            num_cameras=cameras,
            features=state["cam_predictor.fc.0.0.weight"].shape[0],
            camera="quaternion" if cameras == 1 else "angles",
            order="published",
            published_scale=True,
        ),
    )
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise UserError(f"the checkpoint does not fit this template: {error}") from error
    return model.eval()
