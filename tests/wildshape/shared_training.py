"""Trainings by several processes: `torchrun ... shared_training.py FOLDER PROBLEM`."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from toy_task import ToyTask, fit_toy

from wildshape.cli import guarded, say
from wildshape.distributed import shared_count
from wildshape.errors import UserError
from wildshape.processes import process_rank

ROOT = Path(__file__).parents[2]


def torchrun(script, *arguments, timeout=600):
    """Run a script in two processes on this machine; returns its end, output and errors."""
    folders = [str(ROOT), *(str(ROOT / "tests" / room) for room in ("wildshape", "acsm", "pose"))]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(folders), "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.terminate()  # it ends the processes that it started
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


class Shared(ToyTask):
    """The toy in double precision, without dropout; its loss divides by what counts in a batch."""

    def __init__(self, seed=0):
        super().__init__(items=13, seed=seed)
        torch.manual_seed(seed)
        layers = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)
        self.model = nn.Sequential(*layers).double()
        self.model.late = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        self.x, self.y = self.x.astype(float), self.y.astype(float)

    def sample(self, index, rng):
        item = super().sample(index, rng)
        return {**item, "x": item["x"].astype(float), "weight": float(index % 3)}

    def parameters_rest(self, step):
        return step < 6

    def loss(self, batch, step):
        predicted = self.model(batch["x"])
        if not self.parameters_rest(step):
            predicted = predicted + self.model.late
        error = (predicted - batch["y"]).abs()[:, 0] * batch["weight"]
        loss = error.sum() / shared_count(batch["weight"].sum())
        # What only one process has is logged too, and the others do not wait for it in vain.
        return loss, {"error": loss.item(), **({"of_second": 2.5} if process_rank() else {})}

    def evaluate(self):
        if process_rank():
            raise RuntimeError("only the first process evaluates")
        with torch.no_grad():
            error = (self.model(torch.from_numpy(self.x)) - torch.from_numpy(self.y)).abs().mean()
        return {"auc": -float(error)}


class Failing(Shared):
    def loss(self, batch, step):
        if step == 7 and process_rank() == 1:
            raise UserError("expected a picture; found none")
        return super().loss(batch, step)


class Infinite(Shared):
    def loss(self, batch, step):
        loss, scalars = super().loss(batch, step)
        return (loss * float("nan") if step == 7 and process_rank() == 1 else loss), scalars


def train(folder):
    """Whole; and with no time for one of the two, again and again; and what cannot be trained."""
    result = fit_toy(Shared(seed=process_rank()), folder / "whole", batch_size=6)
    assert result.finished and set(result.metrics) == {"auc"}
    for calls in (1, 2):
        late = 0.0 if process_rank() == 1 else None
        result = fit_toy(Shared(), folder / "cut", batch_size=6, time_limit=late)
        assert result.step == calls and not result.finished
    assert fit_toy(Shared(seed=3), folder / "cut", batch_size=6).finished
    for name, task, size in (("odd", Shared(), 5), ("infinite", Infinite(), 6)):
        try:
            fit_toy(task, folder / name, batch_size=size)
        except UserError as error:
            (folder / f"{name}_{process_rank()}.txt").write_text(str(error))
    say("all trained")


def main():
    folder, problem = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if problem == "none":
        return guarded(lambda: train(folder))
    return guarded(lambda: fit_toy(Failing(), folder / problem, batch_size=6))


if __name__ == "__main__":
    sys.exit(main())
