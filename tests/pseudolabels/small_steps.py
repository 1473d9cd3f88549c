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


def left_and_right(count, seed):
    """Animals, bright or dark, brighter on one side; their views' latents are high and low in turn."""
    from pseudolabels.zero123plus.small_latents import RingLatents

    rng = np.random.default_rng(seed)
    sign = np.where(np.arange(count) % 4 < 2, 1, -1)
    turn = np.where(np.arange(6) % 2, 1, -1)
    latents = 0.1 * rng.standard_normal((count, 2, 6, 4, 8, 8))
    latents += sign.reshape(-1, 1, 1, 1, 1, 1) * turn.reshape(1, 1, 6, 1, 1, 1)
    bright = rng.uniform(-1, 1, (count, 1, 1, 1, 1, 1))
    latents += bright
    side = np.where(np.arange(16) < 8, 1, -1)
    images = 120 + 60 * sign.reshape(-1, 1, 1, 1, 1) * turn.reshape(1, 6, 1, 1, 1) * side.reshape(16, 1)
    images = images + 40 * bright[..., 0] + rng.integers(-20, 20, (count, 6, 16, 16, 4))
    images[..., 3] = 255
    return RingLatents(latents.astype(np.float16), latents.astype(np.float16), images.astype(np.uint8))
