"""Columns that later stages fill into a table without making it another one."""

from __future__ import annotations

import os
from typing import Any

from wildshape.schemas import SCHEMAS
from wildshape.tables import Table, read_facts, read_table, write_table


def annotate_table(path: str | os.PathLike[str], kind: str, **columns: Any) -> Table:
    """Fill in annotation columns of a file, which keeps its content hash and provenance.

    Args:
        path: A table's file.
        kind: Its kind.
        columns: Annotation columns of the kind, [N, ...] each.

    Returns:
        The table with its new columns.

    Raises:
        ValueError: a column that is no annotation.
        UserError: if the file is missing, unreadable, or a table of another kind.
    """
    if wrong := [name for name in columns if not SCHEMAS[kind][name].annotation]:
        raise ValueError(f"expected annotation columns of {kind}, found {wrong}")
    table = read_table(path, kind).with_columns(**columns)
    facts = read_facts(path)
    write_table(table, path, facts["provenance"], content=facts["content"])
    return table
