"""Everything else: what could not be read, the tables there are, all numbers as JSON."""

from __future__ import annotations

import json
from typing import Any

from wildshape.report.analysis import Analysis
from wildshape.report.blocks import Block, Grid, Note, Raw, Section

_MOST = 120_000  # characters of JSON in the page


def appendix(analysis: Analysis, plain_summary: dict[str, Any]) -> Section:
    """Tables by number of rows, problems, and the summary as it stands in metrics.json."""
    inputs, workspace = analysis.inputs, analysis.inputs.workspace
    blocks: list[Block] = [Note(problem, "warning") for problem in inputs.problems]
    rows = []
    groups = (
        ("data", inputs.tables, workspace.data_dir),
        ("keypoints", inputs.keypoints, workspace.run_dir / "keypoints"),
        ("selections", inputs.selections, workspace.run_dir / "selections"),
    )
    for _, tables, folder in groups:
        for name, table in tables.items():
            where = workspace.relative(folder / f"{name}.parquet")
            made = inputs.provenance.get(where, {})
            made_by = f"{made.get('stage') or '–'} {made.get('version') or ''}".strip()
            rows.append((where, table.kind, f"{len(table):,}", made_by))
    if rows:
        columns = ("table", "kind", "rows", "made by")
        blocks.append(Grid(columns, rows, "Tables of this run", numeric=(2,), folded=True))
    text = json.dumps(plain_summary, indent=1)
    if len(text) > _MOST:
        text = text[:_MOST] + "\n... (the rest is in metrics.json)"
    blocks.append(Raw(f"All numbers as JSON ({workspace.relative(workspace.summary_path)})", text))
    return Section("appendix", "Appendix", blocks)
