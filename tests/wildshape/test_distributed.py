"""Two processes that train together, as torchrun starts them, beside one alone."""

import json
import sys
from pathlib import Path

import pytest
import torch
from shared_training import Shared, torchrun
from torch import nn
from toy_task import fit_toy

from wildshape import device, distributed, processes
from wildshape.cli import say
from wildshape.data_stream import batch_items
from wildshape.errors import UserError
from wildshape.map_stage import progress
from wildshape.workspace import Workspace

SCRIPT = Path(__file__).with_name("shared_training.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(SCRIPT, folder, "none")
    assert done.returncode == 0, done.stderr
    return folder, done


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_two_processes_train_as_one_does(trained, tmp_path):
    """Losses, weights, running statistics and moments; with batches whose halves count differently."""
    folder, done = trained
    fit_toy(Shared(), tmp_path / "alone", batch_size=6)
    alone, together = logged(tmp_path / "alone"), logged(folder / "whole")
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    assert "of_second" in together[0]
    for a, b in zip(alone, together):
        assert b.pop("of_second", 2.5) == 2.5 and b == pytest.approx(a, rel=1e-9)
    paths = tmp_path / "alone", folder / "whole"
    states = [torch.load(path / "last.pt", weights_only=True) for path in paths]
    assert list(states[0]["model"]) == list(states[1]["model"])
    for name, value in states[0]["model"].items():
        # The bias before a normalisation has no gradient but rounding, which Adam magnifies.
        torch.testing.assert_close(states[1]["model"][name], value, rtol=1e-7, atol=1e-7)
    moments = [state["optimizer"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    for key, value in moments[0].items():
        # A parameter that rests at first has fewer steps, together as alone.
        assert moments[1][key]["step"] == value["step"]
        torch.testing.assert_close(
            moments[1][key]["exp_avg_sq"], value["exp_avg_sq"], rtol=1e-7, atol=1e-12
        )
    assert done.stdout.splitlines() == ["all trained"]
    assert done.stderr.strip() == ""


def test_the_time_of_one_is_the_time_of_all_and_what_stopped_goes_on(trained):
    folder, _ = trained
    for a, b in zip(logged(folder / "whole"), logged(folder / "cut"), strict=True):
        assert b == pytest.approx(a, rel=1e-12)


def test_all_stop_where_one_loss_is_no_number_and_batches_must_divide(trained):
    folder, _ = trained
    # Only the second process' loss is no number: its half of the batch is named, by both.
    named = ", ".join(str(item) for _, item in batch_items(13, 6, 0, 7)[3:])
    for rank in range(2):
        text = (folder / f"odd_{rank}.txt").read_text()
        assert text == "--batch_size: expected a multiple of the 2 processes that share a batch; found 5"
        text = (folder / f"infinite_{rank}.txt").read_text()
        assert f"the loss became nan at step 7, of {named}; " in text
    assert torch.load(folder / "infinite/last.pt", weights_only=True)["step"] == 5


@pytest.mark.slow
def test_a_process_that_fails_ends_all(tmp_path):
    done = torchrun(SCRIPT, tmp_path, "fails")
    assert done.returncode == 1
    assert "error in process 1: expected a picture; found none" in done.stderr
    assert torch.load(tmp_path / "fails/last.pt", weights_only=True)["step"] == 5


def pretend(monkeypatch, rank, count=2):
    values = {"MASTER_ADDR": "localhost", "WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_only_the_first_process_speaks_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for rank in (1, 0):
        pretend(monkeypatch, rank)
        say(f"from {rank}")
        assert progress(range(3)).disable is (rank == 1)
        Workspace(tmp_path, "cow").write_metrics("toy", {"rank": rank})
        assert (tmp_path / "runs/cow/metrics/toy.json").exists() is (rank == 0)
    assert capsys.readouterr().out == "from 0\n"
    monkeypatch.delenv("MASTER_ADDR")  # a scheduler's own variables say nothing
    assert processes.process_count() == 1 and processes.process_rank() == 0


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    pretend(monkeypatch, 1)
    assert device.pick_device("auto") == torch.device("cuda", 1)
    assert device.pick_device("cpu").type == "cpu"
    pretend(monkeypatch, 2, count=3)
    with pytest.raises(UserError, match="at most 2 processes on this machine, one for each GPU; found 3"):
        device.pick_device("cuda")


def test_gathered_norms_are_batch_norms_when_alone():
    def network():
        inner = nn.Sequential(nn.BatchNorm2d(4))
        return nn.Sequential(nn.Conv2d(3, 4, 1), inner, nn.BatchNorm2d(4, affine=False))

    plain, other = network(), network()
    other.load_state_dict(plain.state_dict())
    weight = other[1][0].weight
    distributed.gather_batch_norms(other)
    assert isinstance(other[1][0], distributed.GatheredBatchNorm) and other[1][0].weight is weight
    assert list(other.state_dict()) == list(plain.state_dict())
    x = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        torch.testing.assert_close(other.train(mode)(x), plain.train(mode)(x))
    with pytest.raises(ValueError, match="at least"):
        other[1][0](torch.zeros(4))


def test_counts_of_a_process_alone():
    assert [distributed.shared_count(torch.tensor(float(count))) for count in (0, 7)] == [1, 7]
    assert distributed.mean_over_processes([1.5, 2.0], torch.device("cpu")) == [1.5, 2.0]
    assert distributed.mean_scalars({"a": 1.5}) == {"a": 1.5}
    assert distributed.told_by_first("x") == "x" and distributed.own_slice(5) == slice(0, 5)
    with pytest.raises(UserError, match="no"):
        distributed.told_by_first(UserError("no"))
