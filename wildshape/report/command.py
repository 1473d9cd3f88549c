"""`wildshape report`: write the report of a run, complete or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wildshape.cli import CommonConfig, say, script_main
from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Write runs/<name>/report.html and runs/<name>/metrics.json from whatever the run has."""


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Write the report; returns the content of metrics.json."""
    from wildshape.report.build import build_report

    summary = build_report(workspace)
    say(f"report: {summary['verdict']['text']}")
    size = workspace.report_path.stat().st_size / 1e6
    page, numbers = workspace.relative(workspace.report_path), workspace.relative(workspace.summary_path)
    say(f"report: wrote {page} ({size:.1f} MB) and {numbers}")
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `wildshape report`."""
    return script_main(Config, run, argv, prog="wildshape report")
