import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_stage import run_fit
from toy_task import EXTRA, ToyTask, fit_toy

import wildshape.checkpoints
from wildshape.errors import UserError
from wildshape.stage import Provenance
from wildshape.training import FitConfig, batch_items, load_checkpoint, save_checkpoint

SCRIPT = Path(__file__).with_name("slow_stage.py")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(folder):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(folder)]


def assert_same_training(a, b):
    first, second = (torch.load(folder / "last.pt", weights_only=True) for folder in (a, b))
    assert first["step"] == second["step"]
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    moments, others = first["optimizer"]["state"], second["optimizer"]["state"]
    for key in moments:
        assert torch.equal(moments[key]["exp_avg"], others[key]["exp_avg"])
    assert first["best"] == second["best"]
    best, other = (torch.load(folder / "best.pt", weights_only=True) for folder in (a, b))
    assert best["step"] == other["step"]
    assert without_seconds(a) == without_seconds(b)


def interrupted(task, at_step):
    """The task, which stops like Ctrl-C at a step."""

    class Stopped(type(task)):
        def loss(self, batch, step):
            if step == at_step:
                raise KeyboardInterrupt
            return super().loss(batch, step)

    task.__class__ = Stopped
    return task


def test_training_learns_logs_and_saves(tmp_path):
    untrained = ToyTask()
    untrained.model.eval()
    result = fit_toy(ToyTask(), tmp_path / "a", steps=200, eval_every=50, log_every=10)
    assert result.finished and result.step == 200
    log = lines(tmp_path / "a")
    assert [line["step"] for line in log if "loss" in line] == list(range(10, 201, 10))
    assert [line["step"] for line in log if "val_auc" in line] == [50, 100, 150, 200]
    values = [line["val_error"] for line in log if "val_error" in line]
    assert values[-1] < 0.5 * untrained.evaluate()["error"]
    assert result.metrics["error"] == pytest.approx(min(values))
    state = load_checkpoint(result.best_path, "pose")
    assert state["extra"] == EXTRA
    assert state["step"] == 50 * (1 + int(np.argmin(values)))
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["stage"] == "toy-train" and manifest["config"] == {"seed": 0, "steps": 200}


@pytest.mark.parametrize("at_step", [3, 5, 12, 22])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, at_step):
    """Also if stopped before the first checkpoint, just after one, and at the last step."""
    fit_toy(ToyTask(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_toy(interrupted(ToyTask(), at_step), tmp_path / "cut")
    assert not (tmp_path / "cut/last.pt").exists() or at_step >= 5
    torch.rand(17)  # what another process would have drawn
    result = fit_toy(ToyTask(seed=0 if at_step < 5 else 9), tmp_path / "cut")
    assert result.finished
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def test_threads_do_not_change_the_result(tmp_path):
    fit_toy(ToyTask(), tmp_path / "one", num_workers=1)
    fit_toy(ToyTask(), tmp_path / "four", num_workers=4)
    assert_same_training(tmp_path / "one", tmp_path / "four")


@pytest.mark.parametrize("problem", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_process_continues_with_the_same_weights(tmp_path, problem):
    fit_toy(ToyTask(), tmp_path / "whole")
    command = [sys.executable, str(SCRIPT), "fit", str(tmp_path), "0.05"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 180
        while not (tmp_path / "fit/last.pt").exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(problem)
        _, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == (130 if problem == signal.SIGINT else -signal.SIGKILL)
    if problem == signal.SIGINT:
        assert errors.strip() == "stopped; run the same command again to continue"
    done = load_checkpoint(tmp_path / "fit/last.pt", "pose")["step"]
    assert 5 <= done < 23
    run_fit(tmp_path, 0)
    assert_same_training(tmp_path / "whole", tmp_path / "fit")
    steps = [int(line) for line in (tmp_path / "calls.log").read_text().split()]
    assert steps[-(23 - done) :] == list(range(done, 23))


def test_the_time_limit_stops_and_the_next_call_continues(tmp_path):
    fit_toy(ToyTask(), tmp_path / "whole")
    calls = 0
    finished = False
    while not finished:
        result = fit_toy(ToyTask(), tmp_path / "cut", time_limit=0.0)
        finished = result.finished
        calls += 1
        assert result.step == calls, "with no time at all, one step a call"
        assert result.seconds < 30
    assert calls == 23
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_training_is_not_repeated_unless_asked(tmp_path):
    trained, done = ToyTask(), interrupted(ToyTask(), 0)
    first = fit_toy(trained, tmp_path / "a")
    again = fit_toy(done, tmp_path / "a")
    assert again.finished and again.step == 23 and again.metrics == first.metrics
    torch.testing.assert_close(trained.model.state_dict(), done.model.state_dict(), rtol=0, atol=0)
    with pytest.raises(KeyboardInterrupt):
        fit_toy(interrupted(ToyTask(), 7), tmp_path / "a", overwrite=True)
    assert load_checkpoint(tmp_path / "a/last.pt", "pose")["step"] == 5


def test_other_settings_are_refused_but_may_replace(tmp_path):
    fit_toy(ToyTask(), tmp_path / "a")
    content = (tmp_path / "a/last.pt").read_bytes()
    with pytest.raises(
        UserError, match=r"a exists with other settings \(steps=23 then, 30 now\); add --overwrite"
    ):
        fit_toy(ToyTask(), tmp_path / "a", steps=30)
    assert (tmp_path / "a/last.pt").read_bytes() == content
    assert fit_toy(ToyTask(), tmp_path / "a", steps=30, overwrite=True).step == 30


def assert_last_good(folder, step):
    state = load_checkpoint(folder / "last.pt", "pose")
    assert state["step"] == step
    assert all(torch.isfinite(value).all() for value in state["model"].values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path, value):
    class Bad(ToyTask):
        def loss(self, batch, step):
            loss, scalars = super().loss(batch, step)
            return (loss * value if step == 12 else loss), scalars

    items = ", ".join(str(item) for _, item in batch_items(10, 4, 0, 12))
    message = rf"the loss became {value} at step 12, of {items}; .*last\.pt; lower --lr"
    with pytest.raises(UserError, match=message):
        fit_toy(Bad(), tmp_path / "a")
    assert_last_good(tmp_path / "a", 10)


class Steep(ToyTask):
    """At one step the loss is a number, its gradient none."""

    at_step = 0

    def loss(self, batch, step):
        loss, scalars = super().loss(batch, step)
        if step == self.at_step:
            loss = loss + 0 * (self.model[0].weight * 0).sum().sqrt()
        return loss, scalars


@pytest.mark.parametrize("at_step", [9, 22])
def test_a_gradient_that_is_no_number_is_not_saved(tmp_path, at_step):
    task = Steep()
    task.at_step = at_step
    with pytest.raises(UserError, match=rf"no numbers after step {at_step + 1} .*last\.pt; lower --lr"):
        fit_toy(task, tmp_path / "a")
    assert_last_good(tmp_path / "a", at_step // 5 * 5)
    fit_toy(ToyTask(), tmp_path / "whole")
    fit_toy(ToyTask(), tmp_path / "a")
    assert_same_training(tmp_path / "whole", tmp_path / "a")


def test_a_gradient_that_is_no_number_before_anything_is_saved(tmp_path):
    with pytest.raises(UserError, match="became nan at step 1, of .*; nothing had been saved; lower --lr"):
        fit_toy(Steep(), tmp_path / "a")
    assert not list(tmp_path.rglob("*.pt"))


def test_items_that_hold_no_numbers_are_named(tmp_path):
    """By what is drawn for them, which may be another item."""

    class Drawn(ToyTask):
        def drawn(self, index, rng):
            return int(rng.integers(len(self))) if index % 2 else index

        def shown(self, index, rng):
            return f"animal {self.drawn(index, rng)}"

        def sample(self, index, rng):
            return super().sample(self.drawn(index, rng), rng)

    task = Drawn()
    task.x[3] = np.nan
    with pytest.raises(UserError, match=r"at step \d+, of animal 3; "):
        fit_toy(task, tmp_path / "a")


def test_fewer_items_than_a_batch(tmp_path):
    with pytest.raises(
        UserError, match=r"at least a batch of 4 training items; found 3; .*lower --batch_size"
    ):
        fit_toy(ToyTask(items=3), tmp_path / "a")


def test_metrics_after_the_resumed_step_are_dropped_with_cut_lines(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit_toy(interrupted(ToyTask(), 14), tmp_path / "a")
    assert lines(tmp_path / "a")[-1]["step"] == 12
    with open(tmp_path / "a/metrics.jsonl", "a") as handle:
        handle.write('{"step": 13, "lo')
    fit_toy(ToyTask(), tmp_path / "a")
    steps = [line["step"] for line in lines(tmp_path / "a") if "loss" in line]
    assert steps == [3, 6, 9, 12, 15, 18, 21, 23]


@pytest.mark.parametrize(("metric", "best_step"), [("score", 10), ("-score", 15), ("-loss_like", 20)])
def test_the_best_checkpoint_is_chosen_by_the_metric(tmp_path, metric, best_step):
    scores = {5: 0.4, 10: 0.9, 15: 0.1, 20: 0.9}

    class Scored(ToyTask):
        evaluations = 0

        def evaluate(self):
            self.evaluations += 1
            return {"score": scores[5 * self.evaluations], "loss_like": -float(self.evaluations)}

    result = fit_toy(Scored(), tmp_path / "a", steps=20, metric=metric)
    assert load_checkpoint(result.best_path, "pose")["step"] == best_step
    assert load_checkpoint(result.last_path, "pose")["step"] == 20
    assert result.metrics["score"] == scores[best_step]


def test_an_unknown_metric_lists_those_there_are(tmp_path):
    with pytest.raises(KeyError, match=r"expected the metric pck among \['auc', 'error'\]"):
        fit_toy(ToyTask(), tmp_path / "a", metric="pck")


def test_a_metric_that_is_nan_at_first_is_replaced(tmp_path):
    class Late(ToyTask):
        evaluations = 0

        def evaluate(self):
            self.evaluations += 1
            return {"auc": float("nan") if self.evaluations != 2 else 0.5}

    result = fit_toy(Late(), tmp_path / "a")
    assert result.metrics == {"auc": 0.5}
    assert load_checkpoint(result.best_path, "pose")["step"] == 10


def test_every_epoch_visits_every_item_once():
    items = [item for step in range(5) for _, item in batch_items(10, 4, seed=0, step=step)]
    assert sorted(items[:10]) == sorted(items[10:]) == list(range(10))
    assert items[:10] != items[10:]
    positions = [position for step in range(5) for position, _ in batch_items(10, 4, 0, step)]
    assert positions == list(range(20))
    assert batch_items(10, 4, 0, 3) != batch_items(10, 4, 1, 3)


def test_learning_rate_schedules():
    config = FitConfig(steps=100, batch_size=1, schedule="cosine", warmup=10)
    assert config.lr_factor(0) == pytest.approx(0.1)
    assert config.lr_factor(50) == pytest.approx(0.505)
    assert config.lr_factor(100) == pytest.approx(0.01)
    assert FitConfig(steps=100, batch_size=1).lr_factor(70) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps: expected at least 1; found 0"),
        ({"batch_size": -1}, "--batch_size: expected at least 1; found -1"),
        ({"schedule": "step"}, "--schedule: expected constant or cosine; found step"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        FitConfig(**{"steps": 1, "batch_size": 1, **options})


def test_a_checkpoint_says_what_it_is(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"model": {}, "extra": {"kind": "acsm"}})
    assert load_checkpoint(tmp_path / "a.pt", "acsm")["model"] == {}
    with pytest.raises(UserError, match=r"expected a checkpoint of kind pose in .*a\.pt; found acsm"):
        load_checkpoint(tmp_path / "a.pt", "pose")
    with pytest.raises(UserError, match=r"expected a checkpoint at .*b\.pt; found none"):
        load_checkpoint(tmp_path / "b.pt", "pose")
    (tmp_path / "b.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"expected a checkpoint in .*b\.pt"):
        load_checkpoint(tmp_path / "b.pt", "pose")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(UserError, match="of kind pose .* found None"):
        load_checkpoint(tmp_path / "c.pt", "pose")


def test_a_checkpoint_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"model": Evil(), "extra": {"kind": "pose"}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="expected a checkpoint"):
        load_checkpoint(tmp_path / "a.pt", "pose")
    assert not (tmp_path / "owned").exists()


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/last.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"expected a checkpoint in .*last\.pt; .*remove it to train anew"):
        fit_toy(ToyTask(), tmp_path / "a")


class FullDisk(io.RawIOBase):
    def writable(self):
        return True

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        fit_toy(interrupted(ToyTask(), 7), tmp_path / "a")
    monkeypatch.setattr(wildshape.checkpoints, "atomic_write", lambda path: FullDisk())
    with pytest.raises(OSError) as error:
        save_checkpoint(tmp_path / "a/last.pt", {"model": torch.zeros(100_000)})
    assert error.value.errno == errno.ENOSPC, "as the console command expects it"
    monkeypatch.undo()
    assert fit_toy(ToyTask(), tmp_path / "a").finished


def test_provenance_of_a_checkpoint_is_stored(tmp_path):
    fit_toy(ToyTask(), tmp_path / "a", Provenance("toy-train", {"lr": 1}, {"labels": "abc"}))
    stored = json.loads(torch.load(tmp_path / "a/last.pt", weights_only=True)["provenance"])
    assert stored["config"] == {"lr": 1} and stored["inputs"] == {"labels": "abc"}
