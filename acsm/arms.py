"""Finding and loading a run's trained 3D models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from acsm.predict import ShapePredictor
from wildshape.errors import UserError

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


def checkpoint_path(workspace: Workspace, arm: str, opts: Sequence[str] = ()) -> Path:
    """The best checkpoint of an arm, or the one that ``--opts MODEL.WEIGHTS FILE`` names.

    Raises:
        UserError: the arm is not trained (names the command), or the options are not pairs.
    """
    if opts:
        if len(opts) % 2 or any(key != "MODEL.WEIGHTS" for key in opts[::2]):
            raise UserError(f"--opts: expected MODEL.WEIGHTS FILE; found {' '.join(opts)}")
        return Path(opts[-1])
    path = workspace.checkpoint_dir(f"acsm/{arm}") / "best.pt"
    trained = sorted(p.parent.name for p in workspace.checkpoint_dir("acsm").glob("*/best.pt"))
    name = "" if workspace.name == workspace.category.name else f" --name {workspace.name}"
    others = f" (trained arms: {', '.join(trained)})" if trained else ""
    data = "" if arm == "labels" else f" and the settings of {arm}, such as --use_web_images --filter F"
    command = f"python acsm/train.py --category {workspace.category.name}{name} --arm {arm}{data}{others}"
    return workspace.require(path, command, "the 3D model's command")


def load_arm(
    workspace: Workspace,
    arm: str,
    opts: Sequence[str] = (),
    *,
    device: str = "auto",
    batch_size: int = 32,
) -> tuple[ShapePredictor, Path]:
    """A trained arm's predictor and the checkpoint it was read from.

    Raises:
        UserError: as `checkpoint_path`, or the checkpoint is of another category, skeleton or
            template.
    """
    path = checkpoint_path(workspace, arm, opts)
    predictor = ShapePredictor.from_checkpoint(
        path, workspace.category, device=device, batch_size=batch_size
    )
    return predictor, path
