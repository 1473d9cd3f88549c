"""Where networks run, in which arithmetic, and whether they are compiled."""

from __future__ import annotations

import torch

from wildshape.errors import UserError
from wildshape.processes import local_rank, process_count


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" takes CUDA where there is one, each process of several its own.

    Raises:
        UserError: if CUDA is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device: expected a CUDA device; found none; use --device cpu")
    if name == "cuda" and process_count() > 1:
        count = torch.cuda.device_count()
        if local_rank() >= count:
            raise UserError(
                f"expected at most {count} processes on this machine, one for each GPU; found "
                f"{local_rank() + 1}; lower --nproc-per-node, or use --device cpu"
            )
        return torch.device("cuda", local_rank())
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: expected auto, cpu or cuda; found {name}") from None


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


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def compile_module(module: torch.nn.Module, device: torch.device) -> None:
    """Have a module's forward pass compiled when it is first called; its parameters keep their names.

    Args:
        module: whose forward pass, on the device.
        device: where it computes.

    Raises:
        UserError: nothing can be compiled here.
    """
    try:
        torch.compile(_probe)(torch.ones(8, device=device))
    except Exception as error:
        what = "a C++ compiler such as g++" if device.type == "cpu" else "triton and a C compiler"
        line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"--compile: expected {what} that torch.compile can use; found {type(error).__name__}: {line}; "
            "install one, or leave --compile out"
        ) from error
    module.compile(dynamic=False)
