"""Where networks run, and in which arithmetic."""

from __future__ import annotations

import torch

from wildshape.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" takes CUDA where there is one.

    Raises:
        UserError: if CUDA is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device: expected a CUDA device; found none; use --device cpu")
    return torch.device(name)


def bfloat16_pays(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16.

    Args:
        precision: ``float32``, ``bfloat16``, or ``auto``: where the hardware multiplies in it.
        device: where the computing is done.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without the instructions bfloat16 is emulated, slower than float32.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
