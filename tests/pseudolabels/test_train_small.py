"""Training of the small Zero123Plus in miniature: stages, resuming, and the figures that judge it."""

import builtins
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_steps import train

from pseudolabels.zero123plus import small_metrics, train_small
from pseudolabels.zero123plus.averaged import Averaged
from pseudolabels.zero123plus.small_caption_task import CaptionTask
from pseudolabels.zero123plus.small_data import (
    GREY,
    Caption,
    Rings,
    ViewFolder,
    all_images,
    grid_places,
    moved,
    over,
)
from pseudolabels.zero123plus.small_latents import PictureLatents, RingLatents
from pseudolabels.zero123plus.small_model import SCALING, build_pipeline, load_small, save_half
from pseudolabels.zero123plus.small_ring_task import RingData
from pseudolabels.zero123plus.small_training import (
    Float32Attention,
    TaskConfig,
    psnr,
    training_cost,
    v_target,
)
from pseudolabels.zero123plus.small_views_task import ViewsTask
from pseudolabels.zero123plus.train_small import Config, run
from wildshape.errors import UserError

STAGES = ("vae", "captions", "vision", "layout", "views")


@pytest.fixture
def config(tiny_views, tmp_path):
    return Config(
        data=tiny_views, out=tmp_path / "run", vae_steps=2, vae_batch=4, caption_steps=2, caption_batch=4,
        vision_steps=2, vision_batch=4, layout_steps=2, layout_batch=4,
        view_steps=2, view_batch=2, eval_every=2, animals=2, threads=1, sampling_steps=2,
    )  # fmt: skip


def weights(folder):
    pipeline = load_small(folder)
    return {
        f"{name}.{key}": value
        for name in ("vae", "unet", "text_encoder", "vision_encoder")
        for key, value in getattr(pipeline, name).state_dict().items()
    }


def assert_same_weights(first, second):
    whole, other = weights(first), weights(second)
    assert whole.keys() == other.keys()
    assert [name for name in whole if not torch.equal(whole[name], other[name])] == []


def changed_networks(first, second):
    before, after = weights(first), weights(second)
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_all_stages_and_the_same_after_a_stop(config, tiny_sizes, tmp_path, capsys):
    metrics = run(config, tiny_sizes)
    assert metrics["finished"] and json.loads((config.out / "metrics.json").read_text())["finished"]
    assert set(metrics["vae"]) >= {"psnr", "cpu_hours"}
    assert set(metrics["captions"]) >= {"loss", "loss_shuffled", "loss_without", "attention_head"}
    for stage in ("vision", "layout"):
        assert metrics[stage]["explained_apart"] < 1 and metrics[stage]["cpu_hours"] > 0
    assert set(metrics["views"]) >= {"loss", "loss_shuffled"}
    assert set(metrics["six_views"]) >= {"psnr_model", "iou_model", "psnr_mean", "iou_nearest"}
    assert metrics["captions_after_views"]["loss"] > 0
    assert metrics["bytes"] < 10e6 and metrics["cpu_hours"] > 0
    assert (config.out / "six_views.png").stat().st_size > 1000
    steps = ", ".join(f"{stage} 2 of 2 steps" for stage in STAGES)
    assert f"{steps}\n" in capsys.readouterr().out

    before = (config.out / "views" / "last.pt").stat().st_mtime_ns
    assert run(config, tiny_sizes)["six_views"] == metrics["six_views"]
    assert (config.out / "views" / "last.pt").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="lr=0.0008 then, 0.1 now"):
        run(replace(config, lr=0.1), tiny_sizes)

    stopping = replace(config, out=tmp_path / "stopped", time_limit=1e-9)
    assert not run(stopping, tiny_sizes)["finished"]
    assert "vae 1 of 2 steps; run again" in capsys.readouterr().out
    run(replace(stopping, time_limit=None), tiny_sizes)
    assert_same_weights(config.out / "pipeline", stopping.out / "pipeline")

    further = replace(config, start=config.out / "pipeline", caption_steps=0, out=tmp_path / "further")
    metrics = run(further)
    assert metrics["finished"] and metrics["views"]["step"] == 2 and metrics["captions_after_views"]
    assert "vae" not in metrics and "captions" not in metrics
    changed = changed_networks(config.out / "pipeline", further.out / "pipeline")
    assert changed == {"unet", "vision_encoder"}
    captions = replace(config, start=config.out / "pipeline", view_steps=0, out=tmp_path / "captions")
    metrics = run(captions)
    assert metrics["finished"] and "views" not in metrics and "six_views" not in metrics
    changed = changed_networks(config.out / "pipeline", captions.out / "pipeline")
    assert changed == {"unet", "text_encoder"}
    expected = "--caption_steps: expected at least 1, or 0 with --start and --view_steps; found 0"
    for without in (config, replace(further, caption_steps=1, view_steps=0)):
        with pytest.raises(UserError, match=expected):
            replace(without, caption_steps=0)


@pytest.mark.slow
def test_the_same_after_stopping_at_every_step(config, tiny_sizes, tmp_path):
    """Sixteen calls, each of which loads the libraries' models anew."""
    run(config, tiny_sizes)
    stopping = replace(config, out=tmp_path / "stopped", time_limit=1e-9)
    calls = 0
    while not run(stopping, tiny_sizes)["finished"]:
        calls += 1
        assert calls < 18
    # Two steps of five stages (the second of the last goes on to the figures), three more files of latents
    # (the last is followed by a step), and one animal.
    assert calls == 14
    assert_same_weights(config.out / "pipeline", stopping.out / "pipeline")


def test_missing_pictures_and_packages_are_said(config, tiny_sizes, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"found no views.json; run: python prepare_data/make_views.py"):
        run(replace(config, data=tmp_path), tiny_sizes)
    with pytest.raises(UserError, match="--data: expected pictures of 64 pixels; found 16"):
        run(config)
    with pytest.raises(UserError, match="--precision: expected auto, float32 or bfloat16; found half"):
        replace(config, precision="half")
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "diffusers":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r'pip install "wildshape\[diffusion\]"'):
        train_small.need_diffusers()


def test_a_pipeline_that_does_not_fit_is_said(config, tiny_sizes, tmp_path):
    start = replace(config, start=tmp_path / "start")
    with pytest.raises(UserError, match="expected a pipeline's folder at .*start; found none"):
        run(start, tiny_sizes)
    words = ViewFolder(config.data).words()
    other = max(words, key=len)
    save_half(build_pipeline(tiny_sizes, [word for word in words if word != other]), start.start)
    with pytest.raises(UserError, match=f"expected words that .*start knows; found {other}$"):
        run(start, tiny_sizes)
    save_half(build_pipeline(replace(tiny_sizes, view_size=32), words), start.start)
    with pytest.raises(UserError, match="expected pictures of 32 pixels; found 16"):
        run(start, tiny_sizes)


def test_an_unfinished_folder_of_pictures_is_said(tiny_views, tmp_path):
    facts = json.loads((tiny_views / "views.json").read_text())
    (tmp_path / "views.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="expected 4 files of pictures in .*; 4 are missing; run: python"):
        ViewFolder(tmp_path)


def test_captions_are_subsets_in_any_order():
    caption = Caption("a red cow", ("facing left", "white head", "on grey"))
    made = {caption.sample(np.random.default_rng(seed)) for seed in range(60)}
    assert all(text.startswith("a red cow") for text in made) and len(made) > 10
    assert caption.sample(np.random.default_rng(0), keep=0) == "a red cow"
    orders = {caption.sample(np.random.default_rng(seed), keep=1) for seed in range(60)}
    assert len(orders) == 6 and "a red cow on grey facing left white head" in orders
    assert caption.full == "a red cow facing left white head on grey"


def test_pictures_over_another_ground():
    pixel = np.array([[127, 127, 127, 0], [40, 50, 60, 255], [84, 84, 84, 127]], np.uint8)
    np.testing.assert_array_equal(
        over(pixel, 255), [[255, 255, 255], [40, 50, 60], np.rint([84 + 128 * (128 / 255)] * 3)]
    )
    np.testing.assert_array_equal(over(pixel, GREY), pixel[:, :3])


def test_pictures_are_moved_and_partly_hidden():
    picture = np.full((32, 32, 3), GREY, np.uint8)
    picture[10:20, 12:18] = 7
    seen = set()
    for seed in range(60):
        made = moved(picture, GREY, np.random.default_rng(seed))
        assert made.shape == picture.shape and set(np.unique(made)) <= {7, GREY}
        animal = (made == 7).all(2)
        assert animal.sum() <= 60
        if animal.sum() == 60:
            top, left = np.argwhere(animal).min(0) - (10, 12)
            assert (
                max(abs(top), abs(left)) <= 2 and animal[10 + top : 20 + top, 12 + left : 18 + left].all()
            )
            seen.add((top, left))
    assert len(seen) > 10
    hidden = sum((moved(picture, GREY, np.random.default_rng(seed)) == 7).sum() < 180 for seed in range(60))
    assert 5 < hidden < 35
    assert (picture == 7).sum() == 180


def test_views_go_round_from_the_input():
    """Targets stand every 60 degrees, input j 30 degrees before target j."""
    for first in range(6):
        turns = [(60 * azimuth - (60 * first - 30)) % 360 for _, azimuth in grid_places(first)]
        assert turns == [30, 90, 150, 210, 270, 330]
        assert [elevation for elevation, _ in grid_places(first)] == [0, 1, 0, 1, 0, 1]


def test_the_folder_is_read_as_it_was_written(tiny_views):
    views = ViewFolder(tiny_views)
    pictures, rings = views.pictures("val"), views.rings("val")
    assert pictures.images.shape == (32, 16, 16, 3) and len(pictures.captions) == 32
    assert rings.targets.shape == (8, 2, 6, 16, 16, 4) and set(rings.species) >= {"cow", "horse"}
    assert {"head", "legs", "facing", "horse", "standing"} <= set(views.words())
    every = all_images(pictures, rings)
    assert len(every) == 32 + 8 * (6 + 6 + 12)
    assert all_images(pictures, rings, 10).shape == (10, 16, 16, 3)
    np.testing.assert_array_equal(every[32], rings.inputs[0, 0, ..., :3])


def made_up_latents(count, seed=0):
    """Pictures that their captions tell apart: all latents of "red" are high, those of "black" low."""
    rng = np.random.default_rng(seed)
    sign = np.where(np.arange(count) % 2, 1, -1).reshape(-1, 1, 1, 1)
    latents = (sign + 0.1 * rng.standard_normal((count, 4, 8, 8))).astype(np.float16)
    words = ("black", "red")
    captions = tuple(Caption(f"a {words[n % 2]} head", ()) for n in range(count))
    parts = np.zeros((count, 16, 16), np.uint8)
    parts[:, 4:8, 4:8] = 1
    return PictureLatents(latents, captions, parts)


def test_captions_come_to_matter(tiny_sizes):
    pipeline = build_pipeline(tiny_sizes, ["a", "black", "red", "head"])
    val = made_up_latents(17, 1)  # shuffled by half of an odd number, captions change their colour
    task = CaptionTask(pipeline, made_up_latents(64), val, ["head", "tail"], TaskConfig(lr=3e-3))
    task.model.decay = 0.9
    before = task.evaluate()
    assert before["loss_shuffled"] == pytest.approx(before["loss"], rel=0.05)
    train(task, 60, 8)
    after = task.evaluate()
    assert after["loss"] < 0.6 * before["loss"]
    assert after["loss_shuffled"] > 1.3 * after["loss"]
    assert set(after) == {"loss", "loss_shuffled", "loss_without", "attention_head", "attention"}
    assert after["attention"] == after["attention_head"] > 0


def random_rings(rng, count):
    return RingLatents(
        rng.standard_normal((count, 2, 6, 4, 8, 8)).astype(np.float16),
        rng.standard_normal((count, 2, 6, 4, 8, 8)).astype(np.float16),
        rng.integers(0, 256, (count, 6, 16, 16, 4), dtype=np.uint8),
    )


def test_views_learn_from_the_input_unless_it_is_dropped(tiny_sizes):
    rng = np.random.default_rng(0)
    pipeline = build_pipeline(tiny_sizes, ["a", "black", "red", "head"])
    rings = random_rings(rng, 3)
    task = ViewsTask(pipeline, RingData(rings, rings, made_up_latents(16)), TaskConfig())
    samples = [task.sample(number, np.random.default_rng(number)) for number in range(3)]
    batch = {name: torch.from_numpy(np.stack([s[name] for s in samples])) for name in samples[0]}
    batch["dropped"] = torch.tensor([False, True, False])
    network = task.model.network
    error = task.error(network, batch)
    for name, other in (("image", 255 - batch["image"]), ("reference", -batch["reference"])):
        changed = task.error(network, {**batch, name: other}) - error
        assert changed[1] == 0 and changed[0] != 0 and changed[2] != 0, name
    task.loss(batch, 0)[0].backward()
    for name in ("unet", "vision_encoder"):
        assert all(p.grad is not None for p in network[name].parameters() if p.numel() > 24), name
    assert not any(p.requires_grad for p in pipeline.text_encoder.parameters())
    assert set(task.evaluate()) == {"loss", "loss_shuffled"}


def test_v_and_the_picture_make_the_noisy_one(tiny_pipeline):
    from diffusers import DDPMScheduler

    noise = DDPMScheduler.from_config(tiny_pipeline.scheduler.config)
    clean, drawn, steps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    noisy, target = noise.add_noise(clean, drawn, steps), v_target(noise, clean, drawn, steps)
    alpha = noise.alphas_cumprod[steps].sqrt()[:, None, None, None]
    torch.testing.assert_close(alpha * noisy - (1 - alpha**2).sqrt() * target, clean)
    assert tiny_pipeline.scheduler.config.prediction_type == "v_prediction" and SCALING * 0.75 == 1


def test_attention_under_autocast_is_that_of_float32():
    rng = np.random.default_rng(0)
    attention = torch.nn.functional.scaled_dot_product_attention
    inputs = [torch.from_numpy(rng.normal(size=(2, 3, 8, 4))).bfloat16().requires_grad_() for _ in range(3)]
    exact = [value.detach().float().requires_grad_() for value in inputs]
    truth = attention(*exact)
    truth.square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        found = attention(*inputs)
        product = inputs[0] @ inputs[0].mT
    assert found.dtype == product.dtype == torch.bfloat16
    assert torch.equal(found, truth.detach().bfloat16())
    found.float().square().sum().backward()
    for value, other in zip(inputs, exact):
        torch.testing.assert_close(value.grad.float(), other.grad, rtol=0.02, atol=0.02)
    with Float32Attention():
        assert torch.equal(attention(*exact), truth)


def test_averaged_weights_by_hand():
    linear = torch.nn.Linear(1, 1, bias=False)
    start = linear.weight.data.fill_(0.5).item()
    model = Averaged(linear, decay=0.5)
    model.network.weight.data += 1
    model.update()  # keeps a tenth of the first
    assert model.mean.weight.item() == pytest.approx(start + 0.9)
    model.network.weight.data += 1
    model.update()  # two elevenths
    assert model.mean.weight.item() == pytest.approx(start + 2 - 1.1 * 2 / 11)
    assert not model.train().mean.training and not model.mean.weight.requires_grad


def test_cost_adds_up_over_calls(tmp_path):
    lines = [
        {"step": 50, "loss": 1, "cpu_seconds": 80.0, "seconds": 100.0},
        {"step": 60, "val_loss": 1, "seconds": 120.0},
        {"step": 100, "loss": 1, "cpu_seconds": 9.0, "seconds": 10.0},
        {"step": 150, "loss": 1, "cpu_seconds": 18.0, "seconds": 20.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_cost(path) == {
        "hours": pytest.approx(140 / 3600),
        "cpu_hours": pytest.approx(98 / 3600),
    }


def made_up_rings(count, seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 256, (count, 2, 6, 8, 8, 4), dtype=np.uint8)
    inputs = rng.integers(0, 256, (count, 6, 8, 8, 4), dtype=np.uint8)
    return Rings(inputs, targets, np.array(["cow"] * count))


def test_figures_by_hand():
    white, black = np.full((1, 6, 4, 4, 3), 255, np.uint8), np.zeros((1, 6, 4, 4, 3), np.uint8)
    assert small_metrics.mean_psnr(white, black) == pytest.approx(0)
    assert small_metrics.mean_psnr(white, white - 51) == pytest.approx(20 * np.log10(5))
    assert float(psnr(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))) == pytest.approx(0)
    found, true = np.zeros((1, 2, 2, 2), bool), np.zeros((1, 2, 2, 2), bool)
    found[0, 0, 0, 0] = true[0, 0, 0] = True  # one of two pixels; the other view is empty in both
    assert small_metrics.mean_iou(found, true) == pytest.approx((0.5 + 1) / 2)
    shown = np.full((1, 2, 3), GREY, np.uint8)
    shown[0, 1, 2] += 30
    np.testing.assert_array_equal(small_metrics.silhouettes(shown), [[False, True]])


def test_whether_views_face_the_right_way():
    true = np.random.default_rng(0).integers(0, 256, (2, 6, 4, 4, 3), dtype=np.uint8)
    assert small_metrics.own_view(true // 2 + 60, true) == 1
    turned = np.roll(true, 1, axis=1)
    turned[1] = true[1]
    assert small_metrics.own_view(turned, true) == 0.5


def test_the_nearest_input_of_a_known_animal_is_itself():
    rings = made_up_rings(3, 0)
    images, views, shapes = small_metrics.truth(rings, 3)
    found, found_shapes = small_metrics.nearest_views(images, rings)
    np.testing.assert_array_equal(found, views)
    np.testing.assert_array_equal(found_shapes, shapes)
    figures = small_metrics.compare(views, images, rings, rings)
    assert figures["iou_nearest"] == 1 and figures["psnr_nearest"] == figures["psnr_model"] == 100
    assert figures["psnr_mean"] < 20 and figures["own_model"] == 1


def test_the_mean_view_is_the_mean_over_rings_and_azimuths():
    rings = made_up_rings(2, 1)
    views, shapes = small_metrics.mean_views(rings)
    for view in range(6):
        mean = rings.targets[:, view % 2].astype(float).mean((0, 1))
        np.testing.assert_allclose(views[view], mean[..., :3], atol=0.5)
        np.testing.assert_array_equal(shapes[view], mean[..., 3] > 127)


def test_sampling_stops_in_time_and_continues(tiny_pipeline, tmp_path):
    images = np.full((2, 16, 16, 3), GREY, np.uint8)
    config = small_metrics.SamplingConfig(2, 1, 1.0)
    answers = iter([False, True])
    late = lambda: next(answers)  # noqa: E731
    assert small_metrics.sample_views(tiny_pipeline, images, config, tmp_path, late) is None
    kept = (tmp_path / "0000.npy").read_bytes()
    views = small_metrics.sample_views(tiny_pipeline, images, config, tmp_path, lambda: False)
    assert views.shape == (2, 6, 16, 16, 3) and (tmp_path / "0000.npy").read_bytes() == kept
    assert small_metrics.sheet(images, views, views).shape == (2 * (2 * 32 + 4), 2 * (20 + 6 * 16), 3)
