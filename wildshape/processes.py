"""Whether this process is one of several that train together; torchrun says so in the environment."""

from __future__ import annotations

import os


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default


def process_count() -> int:
    """How many processes train together; 1 outside of torchrun."""
    return _number("WORLD_SIZE", 1) if os.environ.get("MASTER_ADDR") else 1


def process_rank() -> int:
    """The number of this process among them, from 0."""
    return _number("RANK", 0) if process_count() > 1 else 0


def local_rank() -> int:
    """The number of this process among those on this machine, from 0."""
    return _number("LOCAL_RANK", 0) if process_count() > 1 else 0


def is_first_process() -> bool:
    """Whether this is the process that writes, measures and speaks; a process alone is."""
    return process_rank() == 0
