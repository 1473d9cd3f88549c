"""Learning tokens, with a made-up model whose attention can be understood."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pseudolabels.zero123plus import maps as token_maps
from pseudolabels.zero123plus import tokens as learning
from pseudolabels.zero123plus.tokens import Tokens, TokenSettings, TokenTask
from pseudolabels.zero123plus.warps import WarpRanges, random_warp
from wildshape.errors import UserError

SIDE, MAP = 48, 24
COLOURS = np.array([[230, 40, 40], [40, 200, 60], [50, 60, 230], [220, 200, 40], [200, 50, 210]])
SETTINGS = TokenSettings(num_tokens=16, candidates=8, taught=4, sigma=10.0)


def pictures(count, seed=0):
    """Five dots, each of its own colour, scattered on white."""
    rng = np.random.default_rng(seed)
    found = np.full((count, SIDE, SIDE, 3), 255, np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    places = np.zeros((count, len(COLOURS), 2))
    for i in range(count):
        cells = rng.permutation(9)[: len(COLOURS)]
        for dot, cell in enumerate(cells):
            cx, cy = 12 + 12 * (cell % 3), 12 + 12 * (cell // 3)
            found[i][(x - cx) ** 2 + (y - cy) ** 2 <= 16] = COLOURS[dot]
            places[i, dot] = cx, cy
    return found, places


def attention_of(images, embedding, noise):
    """Each pixel looks for tokens of its own colour; a little noise."""
    small = functional.interpolate(images, size=(MAP, MAP), mode="area")
    centred = 6 * (small - 0.55) + 0.02 * noise[:, :3]
    features = torch.cat((centred, centred.square(), torch.ones_like(centred[:, :2])), 1)
    logits = torch.einsum("bchw,nc->bnhw", features.to(embedding), embedding)
    return torch.softmax(logits, 1)


def make_task(settings=SETTINGS, count=20, seed=0):
    crops, _ = pictures(count)
    val, _ = pictures(6, seed=50)
    task = TokenTask(
        Tokens(settings.num_tokens, 8, seed), attention_of, crops, val, settings, (3, MAP, MAP)
    )
    return task


def test_tokens_learn_to_stay_on_what_they_see():
    """After training, kept tokens peak on a dot, the same colour's in every picture."""
    task = make_task(TokenSettings(16, candidates=8, taught=4, sigma=10.0, equivariance=100.0), count=40)
    before = task.evaluate()
    torch.manual_seed(0)
    for step in range(60):
        rng = np.random.default_rng([3, step])
        drawn = [task.sample(int(rng.integers(40)), rng) for _ in range(4)]
        batch = {n: torch.from_numpy(np.stack([item[n] for item in drawn])) for n in drawn[0]}
        for group in task.optimizer.param_groups:
            group["lr"] = 0.02
        loss, _ = task.loss(batch, step)
        task.optimizer.zero_grad()
        loss.backward()
        task.optimizer.step()
    after = task.evaluate()
    assert after["loss"] < 0.7 * before["loss"] and after["stray"] < before["stray"]
    crops, places = pictures(12, seed=70)
    times = learning.times_chosen(task, crops, images=12)
    index = learning.most_chosen(times, 3)
    assert times.sum() == 12 * SETTINGS.taught and len(set(index.tolist())) == 3
    noise = torch.zeros(12, 3, MAP, MAP)
    found = attention_of(
        learning.as_images(torch.from_numpy(crops)), task.model.embedding[index].detach(), noise
    )
    xy = (token_maps.weighted_peaks(found) * SIDE / MAP).numpy()
    distance = np.linalg.norm(xy[:, :, None] - places[:, None], axis=-1)  # picture, token, dot
    for token in range(3):
        assert np.bincount(distance[:, token].argmin(-1)).max() >= 10
    assert np.median(distance.min(-1)) < 3


def test_views_are_averaged_where_they_show_a_place():
    """A model that gives brightness back: the average is the picture."""

    def bright(images, embedding, noise):
        return functional.interpolate(images, size=(MAP, MAP), mode="area")[:, :1].repeat(1, 2, 1, 1)

    blob = token_maps.gaussians(torch.tensor([[22.7, 27.3]]), SIDE, SIDE, sigma=6)[None].repeat(1, 3, 1, 1)
    rng = np.random.default_rng(0)
    thetas = [random_warp(WarpRanges(), rng) for _ in range(8)]
    noise = torch.zeros(8, 1, 3, MAP, MAP)
    average = learning.average_attention(bright, blob, torch.zeros(2, 8), noise, thetas, fill=0.0)
    plain = bright(blob, None, None)
    assert average.shape == (1, 2, MAP, MAP)
    assert float((average - plain).abs().max()) < 0.06
    torch.testing.assert_close(token_maps.peaks(average), token_maps.peaks(plain))


@pytest.mark.parametrize("at_once", [2, 6, 7, 100])
def test_views_in_one_pass_are_views_one_at_a_time(at_once):
    passes = []

    def bright(images, embedding, noise):
        passes.append(len(images))
        found = functional.interpolate(images, size=(MAP, MAP), mode="area")[:, :2]
        return found + 0.1 * noise[:, :2]

    generator = torch.Generator().manual_seed(4)
    images = torch.rand((2, 3, SIDE, SIDE), generator=generator)
    noise = torch.rand((7, 2, 3, MAP, MAP), generator=generator)
    rng = np.random.default_rng(3)
    thetas = [random_warp(WarpRanges(), rng) for _ in range(7)]
    reference = learning.average_attention(bright, images, torch.zeros(2, 8), noise, thetas)
    assert passes == [2] * 7
    passes.clear()
    found = learning.average_attention(bright, images, torch.zeros(2, 8), noise, thetas, at_once=at_once)
    assert sum(passes) == 14 and max(passes) <= max(at_once, 2)
    torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-6)


def test_too_few_tokens_were_ever_chosen():
    task = make_task()
    crops, _ = pictures(1)
    with pytest.raises(
        UserError, match="expected at least 9 tokens that are chosen in some image; found 4"
    ):
        learning.most_chosen(learning.times_chosen(task, crops), 9)
    assert learning.most_chosen(torch.tensor([1, 0, 3, 1]), 3).tolist() == [2, 0, 3]
    with pytest.raises(UserError, match="2 <= --taught <= --candidates <= --num_tokens; found 10, 25, 20"):
        TokenSettings(num_tokens=20)
