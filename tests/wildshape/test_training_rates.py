"""Learning rates and precision, step by step."""

import pytest
import torch
from test_training import assert_same_training, interrupted
from toy_task import ToyTask, fit_toy

from wildshape.training import FitConfig


class Watched(ToyTask):
    """Remembers the learning rate and the arithmetic of each step."""

    def loss(self, batch, step):
        self.__dict__.setdefault("rates", []).append(self.optimizer.param_groups[0]["lr"])
        self.__dict__.setdefault("mixed", set()).add(torch.is_autocast_enabled("cpu"))
        return super().loss(batch, step)


def test_the_optimiser_takes_the_schedules_rate(tmp_path):
    task = Watched()
    fit_toy(task, tmp_path / "a", schedule="cosine", warmup=5)
    schedule = FitConfig(steps=23, batch_size=4, schedule="cosine", warmup=5)
    assert task.rates == pytest.approx([0.01 * schedule.lr_factor(step) for step in range(23)])


@pytest.mark.parametrize("autocast", [False, True])
def test_the_forward_pass_runs_in_what_is_asked_for(tmp_path, autocast):
    task = Watched()
    fit_toy(task, tmp_path / "a", steps=1, autocast=autocast)
    assert task.mixed == {autocast}


def test_a_schedule_goes_on_where_it_stopped(tmp_path):
    cosine = {"schedule": "cosine", "warmup": 5}
    fit_toy(ToyTask(), tmp_path / "whole", **cosine)
    with pytest.raises(KeyboardInterrupt):
        fit_toy(interrupted(ToyTask(), 12), tmp_path / "cut", **cosine)
    fit_toy(ToyTask(seed=9), tmp_path / "cut", **cosine)
    assert_same_training(tmp_path / "whole", tmp_path / "cut")
