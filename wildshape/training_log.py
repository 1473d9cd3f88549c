"""What a training tells while it runs: metrics.jsonl, and a monitor if there is one."""

from __future__ import annotations

import json
import time
from pathlib import Path

from wildshape.files import atomic_write
from wildshape.monitor import Monitor


class TrainingLog:
    """metrics.jsonl: one JSON object a line; lines after the step that is resumed are dropped.

    Args:
        path: The file; None writes nothing.
        start: The step that the training resumes from.
        monitor: Is told all that is logged.
    """

    def __init__(self, path: Path | None, start: int, monitor: Monitor | None = None) -> None:
        self.path, self.began, self.monitor = path, time.monotonic(), monitor
        if path is None:
            return
        kept, rows = [], []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    if row["step"] <= start:
                        kept.append(line + "\n")
                        rows.append({name: value for name, value in row.items() if name != "seconds"})
                except (ValueError, KeyError):
                    continue  # a line that a kill cut short
        with atomic_write(path, "w") as handle:
            handle.writelines(kept)
        if monitor is not None and rows:
            monitor.earlier(rows)

    def __enter__(self) -> TrainingLog:
        self.handle = None if self.path is None else open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *unused: object) -> None:
        if self.handle is not None:
            self.handle.close()
        if self.monitor is not None:
            self.monitor.close()

    def write(self, **values: float) -> None:
        """One line: numbers by name, `step` among them."""
        elapsed = round(time.monotonic() - self.began, 2)
        plain = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
        if self.handle is not None:
            self.handle.write(json.dumps({**plain, "seconds": elapsed}) + "\n")
            self.handle.flush()
        if self.monitor is not None:
            told = {name: float(value) for name, value in values.items() if name != "step"}
            self.monitor.scalars(int(values["step"]), told)
