"""The engine: what flows between the stages of the pseudo-label pipeline.

`wildshape.load("horse").predict(image)` gives an animal's keypoints, camera and articulated mesh from a
trained run.
"""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `import wildshape` stays light and free of torch.
    if name == "load":
        from wildshape.predict import load

        return load
    raise AttributeError(f"module wildshape has no attribute {name}")
