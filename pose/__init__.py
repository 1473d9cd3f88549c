"""The 2D keypoint network: model, heatmaps, training, evaluation and pseudo-labels.

Importing this package is light: ``PoseNet``, ``PosePredictor`` and ``load_published`` are looked
up, and torch with them, when they are first used.
"""

from typing import Any

_LAZY = {
    "PoseNet": "pose.model",
    "load_published": "pose.model",
    "PosePredictor": "pose.predict",
}

__all__ = ["PoseNet", "PosePredictor", "load_published"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pose' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
