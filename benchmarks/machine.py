"""What the figures were measured on, and where they are kept."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

from wildshape.files import write_json
from wildshape.stage import package_version

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Date, processor, cores and versions."""
    import torch

    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "wildshape": package_version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def save(name: str, figures: dict[str, Any], out: Path | None = None) -> Path:
    """Write figures with the machine they were measured on; returns the file."""
    path = out or RESULTS / f"{name}.json"
    write_json(path, {"benchmark": name, "machine": describe(), **figures})
    return path
