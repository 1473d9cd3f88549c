"""Articulated surface models: camera, articulation and shape from one image.

Importing the package loads no torch; the names below are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "ACSM": "acsm.model",
    "ACSMArchitecture": "acsm.model",
    "ArticulatedTemplate": "acsm.template",
    "ShapePredictor": "acsm.predict",
    "articulate": "acsm.articulation",
    "load_published": "acsm.published",
    "load_template": "acsm.template",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
