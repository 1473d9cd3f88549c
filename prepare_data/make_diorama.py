"""Make a synthetic world: labelled photos, a web to search and download, and its ground truth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from prepare_data.diorama.config import DioramaConfig
from wildshape.cli import CommonConfig, say, script_main
from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig, DioramaConfig):
    """Make a synthetic world with full ground truth."""

    threads: int | None = None
    """Pictures rendered at once; by default the processors there are."""


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Build the world, unless it is there already, and return its counts."""
    from prepare_data.diorama.world import build_world

    world = DioramaConfig(**{item.name: getattr(config, item.name) for item in fields(DioramaConfig)})
    counts = build_world(world, workspace, overwrite=config.overwrite, threads=config.threads)
    before = " (done before)" if counts.pop("done_before", False) else ""
    say(
        f"make_diorama: {counts['labels']} labelled photos and {counts['web']} web pictures of a "
        f"synthetic world about {workspace.category.name}{before}"
    )
    workspace.write_metrics("make_diorama", counts)
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    return script_main(Config, run, argv, prog="wildshape make-diorama")


if __name__ == "__main__":
    sys.exit(main())
