"""Where networks run, and in which arithmetic."""

import pytest
import torch

from wildshape.device import bfloat16_pays, pick_device
from wildshape.errors import UserError


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="--device: expected a CUDA device; found none"):
        pick_device("cuda")


def test_arithmetic_as_told_or_as_the_hardware_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for here in (False, True):
        for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, check, lambda here=here: here, raising=False)
        assert bfloat16_pays("auto", cpu) is here
        assert bfloat16_pays("bfloat16", cpu) and not bfloat16_pays("float32", cpu)
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, check)
    assert not bfloat16_pays("auto", cpu)
