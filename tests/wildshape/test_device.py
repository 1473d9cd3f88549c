"""Where networks run, and in which arithmetic."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_task import ToyTask, fit_toy

from wildshape import training
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


def test_what_cannot_be_compiled_is_told_in_one_line(monkeypatch, tmp_path):
    def fails(function):
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setattr(torch, "compile", fails)
    message = "--compile: expected a C.. compiler .* found RuntimeError: no compiler; install one, or leave"
    with pytest.raises(UserError, match=message) as caught:
        fit_toy(ToyTask(), tmp_path / "toy", compile=True)
    assert "much more" not in str(caught.value)
    monkeypatch.setattr(training, "together", lambda: True)
    with pytest.raises(UserError, match="--compile: expected one process; found several"):
        fit_toy(ToyTask(), tmp_path / "toy", compile=True)


@pytest.mark.slow
def test_compiled_trainings_keep_the_names_of_parameters(tmp_path):
    """Slow: it compiles."""

    class Plain(ToyTask):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(
                nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)
            )
            self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)

    torch.manual_seed(0)
    first, second = Plain(), Plain()
    second.model.load_state_dict(first.model.state_dict())
    a, b = fit_toy(first, tmp_path / "a"), fit_toy(second, tmp_path / "b", compile=True)
    # Compiled arithmetic rounds otherwise. (A bias before the norm would have gradients of rounding alone.)
    assert b.metrics["error"] == pytest.approx(a.metrics["error"], rel=0.01)
    states = [torch.load(result.last_path, weights_only=True)["model"] for result in (a, b)]
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_a_missing_compiler_is_found_out(tmp_path):
    """Slow: it loads the compiler's front end in a new process."""
    script = (
        "import torch; from wildshape.device import compile_module; "
        "compile_module(torch.nn.Linear(1, 1), torch.device('cpu'))"
    )
    root = str(Path(__file__).parents[2])
    settings = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "UserError: --compile: expected a C++ compiler such as g++" in done.stderr
    assert "install one, or leave --compile out" in done.stderr
