"""`wildshape <command>`: commands are registered by name and imported when called."""

from __future__ import annotations

import difflib
import errno
import importlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wildshape.errors import UserError
from wildshape.processes import is_first_process, process_rank

COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("wildshape.demo", "the whole pipeline on the synthetic world: start here"),
    "run": ("wildshape.run", "the whole pipeline on your category, resuming where it stopped"),
    "status": ("wildshape.status", "what is done, what is stale, what comes next"),
    "predict": ("wildshape.predict", "keypoints, camera and 3D shape of your photos"),
    "report": ("wildshape.report.command", "write runs/<name>/report.html"),
    "template": ("acsm.template_check", "template check FILE: look at a template before training"),
    "import": (
        "wildshape.formats.import_command",
        "bring in labels: coco, animal_pose, ap10k, deeplabcut, sleap, ...",
    ),
    "export": (
        "wildshape.formats.export_command",
        "write labels out: coco, cvat, label_studio, deeplabcut, animals3d",
    ),
    "make-diorama": ("prepare_data.make_diorama", "make a synthetic world with full ground truth"),
    "search-metadata": ("prepare_data.search_metadata", "find the category in metadata files"),
    "download-images": ("prepare_data.download_images", "download what was found"),
    "add-folder": ("prepare_data.add_folder", "take a folder of your own photos instead"),
    "save-boxes": ("prepare_data.save_boxes", "detect the animals"),
    "save-masks": ("prepare_data.save_masks", "segment the animals in their boxes"),
    "data-selection": ("prepare_data.data_selection", "keep the pseudo-labels to trust"),
    "pose-train": ("pose.train", "train the 2D keypoint network"),
    "pose-evaluate": ("pose.evaluate", "PCK of the 2D keypoint network"),
    "pose-generate-pl": ("pose.generate_pl", "2D keypoints of every detected animal"),
    "pose-generate-pl-mt": ("pose.generate_pl_mt", "the same under image transforms"),
    "tokens-train": ("pseudolabels.train_tokens", "learn points of the animal from unlabelled crops"),
    "tokens-generate-pl": ("pseudolabels.generate_pl", "these points, and keypoints, of every animal"),
    "acsm-train": ("acsm.train", "train the 3D model"),
    "acsm-evaluate": ("acsm.evaluate", "AUC, camera error and mask IoU of the 3D model"),
    "compare": ("acsm.compare", "evaluated 3D models side by side, with a paired test"),
    "acsm-generate-pl": ("acsm.generate_pl", "reprojected 3D keypoints of every detected animal"),
    "acsm-convert": ("acsm.convert", "make a released checkpoint of a 3D model one of ours"),
    "acsm-visualize": ("acsm.visualize", "the predicted shapes, over the photos and turned"),
}


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Settings that every command has."""

    category: str
    """The animal category: horse, cow, sheep, giraffe, bear, dog, or one of your own."""
    name: str | None = None
    """Name of the run under runs/; by default the category."""
    data_root: Path | None = None
    """Folder that holds data/ and runs/; by default $WILDSHAPE_ROOT, a marked folder upwards, or here."""
    overwrite: bool = False
    """Replace outputs that were made with other settings."""
    debug: bool = False
    """Show the traceback of an error."""


def say(message: str) -> None:
    """Print a stage's summary line; of processes that train together the first does."""
    if is_first_process():
        print(message, flush=True)


def make_workspace(config: Any) -> Any:
    """The workspace that a command's `--category`, `--name` and `--data-root` mean."""
    from wildshape.workspace import Workspace, find_root

    workspace = Workspace(config.data_root or find_root(), config.category, config.name)
    workspace.mark()
    return workspace


def guarded(action: Callable[[], Any], *, debug: bool = False) -> int:
    """Run `action` and turn what a user can mend into one line on stderr and an exit code.

    Returns:
        0; 2 for what the user can mend (a bad input, a full disk); 130 for Ctrl-C.
    """
    try:
        action()
    except UserError as error:
        if debug:
            traceback.print_exc()
        where = "" if is_first_process() else f" in process {process_rank()}"
        print(f"error{where}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, `head` say, has seen enough; the interpreter still flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        if debug:
            traceback.print_exc()
        expected, found = {
            NotADirectoryError: ("folders on the way to", "file"),
            FileExistsError: ("a folder at", "file"),
            IsADirectoryError: ("a file at", "folder"),
        }[type(error)]
        print(f"error: expected {expected} {error.filename}; found a {found}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        if debug:
            traceback.print_exc()
        place = error.filename or "the disk"
        if error.errno == errno.EACCES:
            said = f"could not open {place}: {error.strerror}; allow it, or choose another place"
        else:
            said = f"could not write to {place}: {error.strerror}; make room or choose another place"
        print(f"error: {said}; nothing was lost: run the same command again", file=sys.stderr)
        return 2
    return 0


LEAST = {"seed": 0, "split_seed": 0, "workers": 0, "bootstrap": 1, "permutations": 1}
"""Least values of settings that mean the same in all commands."""


def check_numbers(config: Any) -> None:
    """Refuse what no command can work with.

    Raises:
        UserError: a setting is NaN, or below what its name allows; names the flag.
    """
    for name, value in vars(config).items():
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"--{name}: expected a number; found nan")
        if isinstance(value, int) and value < LEAST.get(name, value):
            raise UserError(f"--{name}: expected at least {LEAST[name]}; found {value}")


def is_utf8(name: str) -> bool:
    """Whether a file's name, as Python gives it, is UTF-8 on disk."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_names(names: Iterable[str]) -> None:
    """Refuse what tables and JSON files cannot hold.

    Raises:
        UserError: a name on disk is not UTF-8.
    """
    for name in names:
        if not is_utf8(name):
            raise UserError(f"expected names in UTF-8; found {ascii(name)}; rename that file or folder")


def script_main(
    config_type: type,
    run: Callable[[Any, Any], Any],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
) -> int:
    """Parse a command's flags, make its workspace and run it.

    Args:
        config_type: Dataclass of the command's settings, derived from `CommonConfig`.
        run: The command's `run(config, workspace)`.
        argv: Flags; by default those of the process.
        prog: Name shown by `--help`.

    Returns:
        The exit code (see `guarded`).
    """
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments

    def action() -> None:
        check_names(arguments)
        config: Any = tyro.cli(config_type, args=arguments, prog=prog, description=config_type.__doc__)
        check_numbers(config)
        run(config, make_workspace(config))

    return guarded(action, debug=debug)


def _help() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [
        "usage: wildshape COMMAND [--flags]",
        "",
        "From a category name, a template and about 150 labelled photos to a 3D shape model.",
        "",
        *(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()),
        "",
        "wildshape COMMAND --help lists a command's flags; docs/ explains each stage.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("--version", "-V"):
        from wildshape.stage import package_version

        print(package_version())
        return 0
    name = arguments[0].replace("_", "-")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: unknown command {arguments[0]}{hint} (wildshape --help)", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(COMMANDS[name][0])
    except KeyboardInterrupt:
        return guarded(_stop)
    return int(module.main(arguments[1:]) or 0)


def _stop() -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
