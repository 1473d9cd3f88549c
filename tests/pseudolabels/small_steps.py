"""Steps of the small model's trainings without the rest of `fit`."""

import numpy as np
import torch


def train(task, steps, batch_size):
    """A few steps without the rest of `fit`."""
    for step in range(steps):
        rng = np.random.default_rng(step)
        samples = [task.sample(int(rng.integers(len(task))), rng) for _ in range(batch_size)]
        batch = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}
        loss, scalars = task.loss(batch, step)
        task.optimizer.zero_grad()
        loss.backward()
        task.optimizer.step()
        assert scalars["cpu_seconds"] > 0
    return float(loss.detach())
