"""Write the report of a run: one page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from wildshape.files import atomic_write, read_json
from wildshape.report.analysis import Analysis, analyse
from wildshape.report.blocks import Section
from wildshape.report.facts import machine_words
from wildshape.report.inputs import read_inputs
from wildshape.report.pictures import Budget
from wildshape.report.sections import appendix, data, gallery, headline, labels, models
from wildshape.report.sections.words import duration
from wildshape.report.summary import write_summary
from wildshape.workspace import Workspace

# of base64, so that the page stays under 5 MB
SHAPE_BYTES = 2_000_000
GALLERY_BYTES = 500_000
TILE_BYTES = 1_900_000


def build_report(workspace: Workspace) -> dict[str, Any]:
    """Write runs/<name>/report.html and runs/<name>/metrics.json from whatever the run has.

    Returns:
        The content of metrics.json.
    """
    analysis = analyse(read_inputs(workspace))
    write_summary(analysis)
    summary = read_json(workspace.summary_path)  # as written: plain values
    page = render(analysis, summary)
    with atomic_write(workspace.report_path, "w") as handle:
        handle.write(page)
    return summary


def render(analysis: Analysis, summary: dict[str, Any]) -> str:
    """The page as HTML."""
    found: list[Section | None] = [
        headline.headline(analysis),
        data.funnel(analysis),
        labels.label_quality(analysis),
        labels.examples(analysis, Budget(TILE_BYTES)),
        models.pose(analysis),
        models.shape(analysis, Budget(SHAPE_BYTES)),
        gallery.gallery(analysis, Budget(GALLERY_BYTES)),
        models.training(analysis),
        headline.what_was_run(analysis),
        appendix.appendix(analysis, summary),
    ]
    sections = [section for section in found if section is not None]
    workspace, facts = analysis.inputs.workspace, analysis.facts
    timings = analysis.inputs.timings()
    about = [
        ("run", workspace.name),
        ("written", str(facts["date"])),
        ("machine", machine_words(facts)),
        ("software", f"wildshape {facts['wildshape']}, Python {facts['python']}, torch {facts['torch']}"),
    ]
    if timings:
        about.append(("time", f"{duration(sum(timings.values()))} for {len(timings)} stages"))
    return render_page(workspace.category.name, about, sections)


def render_page(category: str, about: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """A page of sections that needs nothing beside it.

    Args:
        category: its heading.
        about: names and values of the lines below it.
        sections: in order.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("template.html").render(
        category=category,
        about=about,
        sections=sections,
        style=(folder / "style.css").read_text(encoding="utf-8"),
        script=(folder / "script.js").read_text(encoding="utf-8"),
    )
