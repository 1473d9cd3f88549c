"""What a section of the report is made of: words, tables, figures and galleries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Note:
    """A paragraph. `tone` is "", "verdict", "missing" or "warning"; `command` is shown as code after it."""

    text: str
    tone: str = ""
    command: str = ""
    kind: str = "note"


@dataclass(frozen=True)
class Figure:
    """Charts side by side under one caption."""

    charts: Sequence[str]
    caption: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Grid:
    """A table of texts; columns named in `numeric` are aligned to the right.

    Attributes:
        columns: Headings.
        rows: Cells, one sequence a row.
        caption: Said above.
        numeric: Indices of columns of numbers.
        strong: Indices of rows to stress.
        folded: Whether it starts folded under its caption.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: Sequence[int] = ()
    strong: Sequence[int] = ()
    folded: bool = False
    kind: str = "grid"


@dataclass(frozen=True)
class Link:
    """A file beside the page: what it is, and its address relative to the page."""

    text: str
    address: str


@dataclass(frozen=True)
class Picture:
    """A picture as a data address, with its caption and shape, and files that belong to it."""

    source: str
    caption: str
    width: int
    height: int
    links: Sequence[Link] = ()


@dataclass(frozen=True)
class Gallery:
    """Pictures in a row that wraps; `size` is "tile", "half" or "wide"."""

    pictures: Sequence[Picture]
    title: str = ""
    size: str = "tile"
    kind: str = "gallery"


@dataclass(frozen=True)
class Files:
    """Names, each with files that belong to it."""

    rows: Sequence[tuple[str, Sequence[Link]]]
    kind: str = "files"


@dataclass(frozen=True)
class Raw:
    """Preformatted text under a heading that unfolds."""

    title: str
    text: str
    kind: str = "raw"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: str = "heading"


Block = Note | Figure | Grid | Gallery | Files | Raw | Heading


@dataclass(frozen=True)
class Section:
    """One section: its anchor, its title, a line on what it shows, and its blocks."""

    anchor: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    lead: str = ""
