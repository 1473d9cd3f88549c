"""From crops to named keypoints by commands, with a tiny diffusion model of random weights."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pose_world import KEYPOINTS, SKELETON, make_world
from tiny_models import save_tiny

from wildshape.cli import main as command
from wildshape.errors import UserError
from wildshape.formats.masks import encode_mask
from wildshape.geometry import box_side
from wildshape.metrics import keypoint_errors
from wildshape.stage import Provenance, publish
from wildshape.status import examine
from wildshape.status import steps as status_steps
from wildshape.tables import Table, read_table, write_table

pytest.importorskip("diffusers", reason="needs the extra diffusion")

from prepare_data import data_selection
from pseudolabels import generate_pl, train_tokens
from pseudolabels.zero123plus import naming
from pseudolabels.zero123plus.crops import matted_crop, read_crops, unit_affine
from pseudolabels.zero123plus.token_file import TokenFile

SMALL = {
    "category": "cow", "steps": 4, "batch_size": 2, "num_tokens": 12, "candidates": 8, "taught": 4,
    "keep": 3, "side": 16, "layers": 2, "eval_every": 2, "log_every": 1, "device": "cpu", "chunk": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of other weights."""
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        save_tiny(root / str(seed), ["cow"], seed)
    return root


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """The checkpoint's folder of a short training."""
    workspace = small_world(tmp_path_factory.mktemp("trained"))
    train_tokens.run(training(folders), workspace)
    return workspace.checkpoint_dir("zero123plus")


@pytest.fixture
def world(tmp_path):
    return small_world(tmp_path)


@pytest.fixture
def learnt(world, trained):
    """A world whose tokens are learnt."""
    shutil.copytree(trained, world.checkpoint_dir("zero123plus"))
    return world


def small_world(root):
    return make_world(root, splits=(("train", 5), ("val", 2), ("test", 1)), web=(1, 2, 1, 2))


def training(folders, **changes):
    return train_tokens.Config(**{**SMALL, "model": str(folders / "0"), **changes})


def predicting(**changes):
    return generate_pl.Config(**{"category": "cow", "views": 1, "device": "cpu", **changes})


def add_masks(workspace, count, name="instances"):
    """Ellipses in the first boxes."""
    table = workspace.load(name)
    masks = []
    for i, box in enumerate(table["box_xyxy"]):
        mask = np.zeros((90, 200), np.uint8)
        centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
        axes = tuple(int(v) for v in half)
        cv2.ellipse(mask, tuple(int(v) for v in centre), axes, 0, 0, 360, 1, -1)
        images = dict(zip(workspace.load("images")["image_id"], workspace.load("images")["width"]))
        masks.append(encode_mask(mask[:, : images[table["image_id"][i]]]) if i < count else None)
    write_table(table.with_columns(mask_rle=masks), workspace.table_path(name))


def points_of(workspace, source="zero123plus_points"):
    return read_table(workspace.keypoints_path(source), "keypoints")


# Crops


def test_a_matted_crop_is_white_outside_the_animal():
    image = np.full((60, 80, 3), 90, np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:60] = 1
    box = np.array([29.5, 19.5, 59.5, 39.5])
    crop, affine = matted_crop(image, box, 72, mask)  # side 36: two pixels to one
    inside, outside = affine.apply([[31, 21], [58, 38]]), affine.apply([[44, 15], [44, 44], [70, 30]])
    for x, y in np.rint(inside).astype(int):
        assert (crop[y, x] == 90).all()
    assert all((crop[int(round(y)), int(min(x, 71))] == 255).all() for x, y in outside)
    boxed, same = matted_crop(image, box, 72)  # without a mask all of the box, and nothing else
    assert (boxed[16:56, 6:66] == 90).all() and (boxed == 90).all(2).sum() == 40 * 60
    assert ((boxed == 90) | (boxed == 255)).all() and (same.matrix == affine.matrix).all()
    flat, _ = matted_crop(image, np.array([29.5, 19.5, 59.5, 39.25]), 72)  # 15.75 to 55.25 of the crop
    rows = [255, 131, 90, 90, 131, 255]  # of a row three quarters of which the box covers, 255 - .75 * 165
    assert flat[[15, 16, 17, 54, 55, 56], 36, 0].tolist() == rows
    np.testing.assert_allclose(
        unit_affine(box).apply(box.reshape(2, 2)), [[1 / 12, 2 / 9], [11 / 12, 7 / 9]]
    )
    with pytest.raises(ValueError, match="expected a mask"):
        matted_crop(image, box, 72, mask[:-1])


def test_crops_of_a_table_say_what_is_matted_and_what_is_left_out(world):
    add_masks(world, 2)
    table = world.load("instances")
    paths = dict(zip(world.load("images")["image_id"], world.load("images")["path"]))
    files = {image: world.image_file(path) for image, path in paths.items()}
    gone = table["image_id"][-1]
    del files[gone]
    crops = read_crops(table, files, 16)
    assert crops.matted.tolist() == [True, True, False, False] and crops.crops.shape == (4, 16, 16, 3)
    assert [name for name, _ in crops.skipped] == table["instance_id"][-2:].tolist()
    assert (crops.crops[0, 0] == 255).all() and not (crops.crops[3, 8] == 255).all()


# Commands


def test_from_crops_to_named_keypoints(world, folders, capsys):
    add_masks(world, 3)
    metrics = train_tokens.run(training(folders), world)
    folder = world.checkpoint_dir("zero123plus")
    tokens = TokenFile.load(folder / "tokens.pt")
    assert tokens.embedding.shape == (12, 24) and tokens.kept.tolist() == metrics["kept"]
    assert metrics["finished"] and metrics["crops"] == 6 and metrics["matted"] == 3
    curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve if "sharpening" in line] == [1, 2, 3, 4]
    assert sum("val_loss" in line for line in curve) == 2
    assert "3 of 6 crops are matted; of others all of the box shows: expect less" in capsys.readouterr().out

    facts = generate_pl.run(predicting(), world)
    points, named = points_of(world), points_of(world, "zero123plus")
    instances = world.load("instances")
    assert points.meta["skeleton"] == "points3" and named.meta["skeleton"] == SKELETON.name
    for table, count in ((points, 3), (named, KEYPOINTS)):
        assert table["instance_id"].tolist() == instances["instance_id"].tolist()
        assert table["xy"].shape == (6, count, 2)
        assert (table["confidence"] >= 0).all() and (table["confidence"] <= 1).all()
    unit = naming.to_unit(points["xy"], instances["box_xyxy"])
    assert (unit > 0).all() and (unit < 1).all()
    assert facts["labelled"] == 5 and facts["val"]["animals"] == 2 and 0 <= facts["val"]["pck@0.1"] <= 1
    said = capsys.readouterr().out
    assert "keypoints/zero123plus_points: 3 of 6 crops are matted" in said and facts["matted"] == 3
    labelled = "keypoints/zero123plus_points_labelled: 0 of 7 crops are matted"
    assert labelled in said and "--category cow --labelled" in said and facts["labelled_matted"] == 0
    assert set(points_of(world, "zero123plus_points_labelled")["instance_id"]).isdisjoint(
        world.load("labels")["instance_id"][world.load("labels")["split"] == "test"]
    )
    of_val, labels = points_of(world, "zero123plus_labelled"), world.load("labels")
    val = labels["split"] == "val"
    assert of_val["instance_id"].tolist() == labels["instance_id"][val].tolist()
    errors = keypoint_errors(of_val["xy"], labels["xy"][val], box_side(labels["box_xyxy"][val]))
    counted = labels["visible"][val] == 2
    assert 100 * errors[counted].mean() == pytest.approx(facts["val"]["error_percent"], rel=1e-6)
    assert json.loads(world.metrics_path("keypoints_zero123plus").read_text())["frame"] == facts["frame"]
    assert "6 of 6 animals, mean peak mass" in said

    with Image.open(world.root / facts["picture"]) as picture:
        assert picture.size[0] > 6 * 192 and picture.size[1] > 2 * 192

    shown = {step.title: examine(world, step).state for step in status_steps(world)}
    assert shown["tokens"] == "done" and shown["their points"] == "done"

    # As the second opinion of CF-CM.
    publish(named.with_columns(xy=named["xy"] + 1), world.keypoints_path("pose"), Provenance("test"))
    config = data_selection.Config(category="cow", filter="cf_cm", aux="zero123plus", selection_num=4)
    assert data_selection.run(config, world)["selection"].endswith("cf_cm_zero123plus_4.parquet")

    # Another number of batches is the same work; another number of points asks first.
    before = world.keypoints_path("zero123plus").stat().st_mtime_ns
    again = generate_pl.run(predicting(batch_size=4, vis_num=0), world)
    assert world.keypoints_path("zero123plus").stat().st_mtime_ns == before and "picture" not in again
    train_tokens.run(training(folders, keep=4), world)
    assert len(TokenFile.load(folder / "tokens.pt").kept) == 4
    torch.testing.assert_close(TokenFile.load(folder / "tokens.pt").embedding, tokens.embedding)
    with pytest.raises(UserError, match=r"tokens.pt has changed since.*--overwrite"):
        generate_pl.run(predicting(), world)


def test_points_do_not_depend_on_the_batch(learnt):
    stage = generate_pl.make_stage(learnt, predicting(views=2))
    paths = stage.reader.paths
    crops = read_crops(learnt.load("instances"), paths, stage.finder.image_size).crops[:4]
    together = stage.finder(crops)
    alone = [stage.finder(crops[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(np.concatenate([xy for xy, _ in alone]), together[0], atol=1e-4)
    np.testing.assert_allclose(np.concatenate([mass for _, mass in alone]), together[1], atol=1e-5)


def test_peaks_as_published_are_means_about_the_highest_of_512_pixels(learnt):
    finder = generate_pl.make_stage(learnt, predicting(power=0.0)).finder
    maps = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(4))
    maps[:, :, [0, -1]] = maps[..., [0, -1]] = 0  # several pixels of an edge would be equally high
    finder.maps = lambda crops: maps
    xy, _ = finder(np.zeros((2, 16, 16, 3), np.uint8))
    place = np.arange(512) + 0.5
    for found, small in zip(xy.reshape(-1, 2), maps.flatten(0, 1).numpy()):
        large = cv2.resize(small, (512, 512), interpolation=cv2.INTER_LINEAR).astype(float)
        row, column = np.unravel_index(large.argmax(), large.shape)
        near = (place[:, None] - place[row]) ** 2 + (place - place[column]) ** 2 <= 25
        mass = large * near
        mean = [(mass.sum(0) * place).sum(), (mass.sum(1) * place).sum()]
        np.testing.assert_allclose(found, np.array(mean) / mass.sum() / 512, atol=2e-4)


def test_points_on_one_spot_are_said(learnt, capsys):
    assert generate_pl.run(predicting(), learnt)["spread_of_crop"] > 0
    path = learnt.checkpoint_dir("zero123plus") / "tokens.pt"
    tokens = TokenFile.load(path)
    first = tokens.kept[:1].repeat(3)
    TokenFile(tokens.embedding, first, tokens.times, tokens.facts).save(path)
    facts = generate_pl.run(predicting(overwrite=True), learnt)
    assert facts["spread_of_crop"] == pytest.approx(0, abs=1e-6)
    assert "the points of an animal lie on one spot (spread 0.000" in capsys.readouterr().out
    named = points_of(learnt, "zero123plus")
    assert np.isfinite(named["xy"]).all()


def test_the_noise_of_a_training_is_that_of_the_prediction(world, folders):
    train_tokens.run(training(folders, noise_step=10), world)
    assert generate_pl.make_stage(world, predicting()).finder.model.reading.noise_step == 10


def test_a_stopped_training_ends_as_one_that_was_not(world, folders, trained):
    whole = TokenFile.load(trained / "tokens.pt")
    stopped = train_tokens.run(training(folders, time_limit=1e-9), world)
    assert stopped["steps"] == 1 and not stopped["finished"]
    assert train_tokens.run(training(folders), world)["finished"]
    resumed = TokenFile.load(world.checkpoint_dir("zero123plus") / "tokens.pt")
    torch.testing.assert_close(resumed.embedding, whole.embedding, rtol=0, atol=0)
    assert resumed.kept.tolist() == whole.kept.tolist()


def test_without_labels_the_points_are_written_and_have_no_names(learnt, capsys):
    for name in ("labels", "labelled_images"):
        learnt.table_path(name).unlink()
    facts = generate_pl.run(predicting(), learnt)
    assert len(points_of(learnt)) == 6 and not learnt.keypoints_path("zero123plus").exists()
    text = "keypoints/zero123plus: not made, the points have no names: no labelled photos; run: wildshape"
    assert text in capsys.readouterr().out and facts["why"].startswith("no labelled photos")


def test_names_of_an_earlier_call_are_not_taken_for_todays(learnt, capsys):
    generate_pl.run(predicting(), learnt)
    named = [learnt.keypoints_path(f"zero123plus{end}") for end in ("", "_labelled")]
    assert all(path.exists() for path in named)
    regressor = learnt.checkpoint_dir("zero123plus") / "regressor.json"
    before = regressor.read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        generate_pl.run(predicting(frame="published"), learnt)
    assert regressor.read_bytes() == before
    for name in ("labels", "labelled_images"):
        learnt.table_path(name).unlink()
    capsys.readouterr()
    generate_pl.run(predicting(), learnt)
    said = "keypoints/zero123plus: those of an earlier call stay; to remove them, add --overwrite"
    assert said in capsys.readouterr().out and all(path.exists() for path in named)
    generate_pl.run(predicting(overwrite=True), learnt)
    assert not any(path.exists() for path in named) and learnt.keypoints_path("zero123plus_points").exists()
    assert not list(named[0].parent.glob("zero123plus.*"))


def test_without_detected_animals_the_labelled_ones_teach(world, folders, capsys):
    world.table_path("instances").unlink()
    metrics = train_tokens.run(training(folders), world)
    assert metrics["crops_from"] == "labelled animals" and metrics["crops"] == 5
    out = capsys.readouterr().out
    assert "no detected animals outside the labelled photos" in out
    assert "0 of 5 crops are matted" in out and "save_masks.py --category cow --labelled" in out


def test_what_the_model_cannot_take_does_not_cost_older_tokens(world, folders):
    train_tokens.run(training(folders), world)
    folder = world.checkpoint_dir("zero123plus")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError, match="ask for fewer layers, or smaller crops"):
        train_tokens.run(training(folders, image_size=256, overwrite=True), world)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_what_cannot_be_trained_on_is_said(world, folders):
    with pytest.raises(UserError, match="--dtype float16: expected float32; with less precision"):
        train_tokens.run(training(folders, dtype="float16"), world)
    with pytest.raises(UserError, match="--model: expected small, a folder or a repository"):
        train_tokens.run(training(folders, model=str(folders)), world)
    with pytest.raises(UserError, match="crops of at least 2 pixels, one of the model's latents; found 1"):
        train_tokens.run(training(folders, image_size=1), world)
    with pytest.raises(
        UserError, match="at least 7 crops of cow, a batch and one .*found 6 detected animals"
    ):
        train_tokens.run(training(folders, batch_size=6), world)
    with pytest.raises(UserError, match="--keep: expected at most --num_tokens 12; found 13"):
        training(folders, keep=13)
    with pytest.raises(UserError, match="--noise_step: expected -50 to 49; found 50"):
        training(folders, noise_step=50)
    with pytest.raises(UserError, match="--max_images: expected at least 3; found 2"):
        training(folders, max_images=2)
    with pytest.raises(UserError, match="--candidates <= --num_tokens; found 4, 25, 12"):
        training(folders, candidates=25)
    for name in ("instances", "labels"):
        world.table_path(name).unlink()
    with pytest.raises(
        UserError, match="tokens-train needs .*instances.* run: python prepare_data/save_boxes"
    ):
        train_tokens.run(training(folders), world)


def test_tokens_of_another_model_are_refused(learnt, folders):
    with pytest.raises(
        UserError, match="expected the one that the tokens were learnt with, .*0 .*found .*1 "
    ):
        generate_pl.run(predicting(model=str(folders / "1")), learnt)
    with pytest.raises(UserError, match=r"other settings \(.*unet=.* then, .* now\); add --overwrite"):
        train_tokens.run(training(folders, model=str(folders / "1")), learnt)
    for flag in ("views", "power"):
        with pytest.raises(UserError, match=f"--{flag}: expected 0 or more; found -1"):
            generate_pl.run(predicting(**{flag: -1}), learnt)
    path = learnt.checkpoint_dir("zero123plus") / "tokens.pt"
    (path.parent / "best.pt").rename(path)
    with pytest.raises(UserError, match="expected a token file in .*; found no 'embedding'"):
        generate_pl.run(predicting(), learnt)


def test_the_commands_are_there(world, capsys):
    root = ["--category", "cow", "--data-root", str(world.root)]
    assert command(["tokens-generate-pl", *root]) == 2
    assert "run: python pseudolabels/train_tokens.py --category cow" in capsys.readouterr().err
    assert command(["tokens-train", *root, "--dtype", "float16"]) == 2
    assert "--dtype float16: expected float32" in capsys.readouterr().err


def test_points_are_no_keypoints_of_the_skeleton(world):
    columns = {
        "instance_id": ["a"],
        "transform": ["none"],
        "xy": np.zeros((1, 3, 2)),
        "confidence": np.ones((1, 3)),
    }
    publish(
        Table("keypoints", columns, {"skeleton": "points3"}), world.keypoints_path("pose"), Provenance("t")
    )
    with pytest.raises(UserError, match="points3"):
        from wildshape.training_data import web

        web(world, "pose", None, None)
