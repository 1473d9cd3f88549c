"""The step of `wildshape run` that labels the labelled animals of val."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wildshape.workspace import Workspace


def label_val(workspace: Workspace, call: Callable[..., Any], shapes_by: Mapping[str, Any]) -> None:
    """Label the labelled animals of val by every network: CF-All learns from it how far to trust each.

    Args:
        workspace: of the run.
        call: runs a step: its title, its module, its settings.
        shapes_by: settings that name the 3D model which labels animals.
    """
    labels = workspace.load("labels")
    if not (labels["split"] == "val").any():
        return
    flags = {"flip_average": True, "labelled": True}
    call("label val with pose network", "pose.generate_pl", **flags)
    call("label val with second pose network", "pose.generate_pl", is_aux=True, **flags)
    call("label val under transforms", "pose.generate_pl_mt", **flags)
    call("label val with the 3D model", "acsm.generate_pl", labelled=True, **shapes_by)
