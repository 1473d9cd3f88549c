"""Training with masks, end to end on small worlds; what is cut from masks; what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import acsm_mask_world
import acsm_world
import cv2
import numpy as np
import pytest
import torch

from acsm import evaluate, progress_pictures, train, visualize
from acsm.data import CropStyle, ShapeSamples
from acsm.mask_crops import known_pixels, spread
from acsm.model import ACSM, ACSMArchitecture
from acsm.pixel_picture import pixel_pictures, place_colours, shape_picture
from acsm.predict import ShapePredictor
from acsm.progress_pictures import validation_pictures
from acsm.renderer import rasterize
from wildshape import training_data
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.formats.masks import decode_mask, encode_mask
from wildshape.geometry import Affine2D, warp_crop
from wildshape.report.drawing import draw_keypoints
from wildshape.tables import write_table


def config(**settings):
    short = {
        "category": "beast", "image_size": 64, "steps": 4, "batch_size": 3, "eval_every": 2,
        "imagenet": False, "precision": "float32", "device": "cpu", "num_workers": 1, "supervise": "both",
    }  # fmt: skip
    return train.Config(**{**short, **settings})


def weights(workspace, arm):
    path = workspace.checkpoint_dir(f"acsm/{arm}") / "last.pt"
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A world with one short training on both; tests must not change it."""
    workspace = acsm_mask_world.build(tmp_path_factory.mktemp("beasts"))
    return workspace, train.run(config(), workspace)


def without_keypoints(workspace):
    """Make the labels' keypoints unlabelled, and take the pseudo-labels away."""
    table = workspace.load("labels")
    none = np.zeros_like(table["visible"])
    write_table(table.with_columns(visible=none), workspace.table_path("labels"))
    workspace.keypoints_path("pose").unlink()


def test_keypoints_and_masks_train_together(shared):
    workspace, metrics = shared
    assert metrics["finished"] and 0 <= metrics["val"]["miou"] <= 100 and "auc" in metrics["val"]
    state = weights(workspace, "labels")
    assert state["extra"]["supervise"] == "both" and state["extra"]["arch"]["pixel_map"]
    np.testing.assert_allclose(state["model"]["sphere"].norm(dim=1), 1, atol=1e-9)
    predictor = ShapePredictor.from_checkpoint(
        workspace.checkpoint_dir("acsm/labels") / "best.pt", workspace.category
    )
    torch.testing.assert_close(predictor.model.sphere, state["model"]["sphere"], rtol=0, atol=0)
    facts = evaluate.run(evaluate.Config(category="beast", bootstrap=20), workspace)
    assert facts["masks"] == 2 and 0 <= facts["miou"] <= 100
    logged = (workspace.checkpoint_dir("acsm/labels") / "metrics.jsonl").read_text()
    for term in (
        "cycle",
        "visibility",
        "coverage",
        "containment",
        "segmentation",
        "silhouette",
        "keypoints",
    ):
        assert f'"{term}"' in logged


def test_who_watches_sees_true_masks(tmp_path, monkeypatch):
    """Drawn on the animal and its outline, nowhere else, in the picture that has the true keypoints."""
    drawn, shown = [], {}

    def spy(predictor, crops, affines, truth, skeleton, marked):
        drawn.append((crops, marked))
        return validation_pictures(predictor, crops, affines, truth, skeleton, marked)

    recorder = SimpleNamespace(
        scalars=lambda *told: None, pictures=lambda step, found: shown.update(found), close=lambda: None
    )
    monkeypatch.setattr(progress_pictures, "validation_pictures", spy)
    monkeypatch.setattr(train.Config, "monitor", lambda self, *where: recorder)
    workspace = acsm_mask_world.build(tmp_path)
    train.run(config(steps=1), workspace)
    records, _ = training_data.labelled(workspace, "val", workspace.category.skeleton)
    samples = ShapeSamples(records, 64, acsm_mask_world.FLIP)
    affines = [samples.evaluation_affine(i) for i in range(3)]
    crops, marked = drawn[0]
    for i, affine in enumerate(affines):
        inside = warp_crop(255 * decode_mask(records.mask_rle[i]), affine, 64) > 127
        near = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))) > 0
        changed = (crops[i] != marked[i]).any(axis=2)
        assert changed[inside].all() and not changed[~near].any()
    tile = shown["validation animals"][6:166, 6:166]
    bare = np.where(records.weight[0][:, None] > 0, records.xy[0], np.nan)
    picture = draw_keypoints(marked[0], affines[0].apply(bare), None, workspace.category.skeleton)
    np.testing.assert_array_equal(tile, cv2.resize(picture, (160, 160), interpolation=cv2.INTER_LINEAR))


def test_pictures_show_where_pixels_are_taken(shared):
    workspace, _ = shared
    drawn = visualize.run(visualize.Config(category="beast", vis_num=2, tile=48, device="cpu"), workspace)
    sheet = read_image(workspace.root / drawn["picture"])
    assert sheet.shape[1] == 2 * 6 * (48 + 6) + 6  # two animals: photo, shape, pixels and three views
    best = workspace.checkpoint_dir("acsm/labels") / "best.pt"
    predictor = ShapePredictor.from_checkpoint(best, device="cpu")
    records, _ = training_data.labelled(workspace, "val", workspace.category.skeleton)
    samples = ShapeSamples(records, 64, acsm_mask_world.FLIP)
    affines = np.stack([samples.evaluation_affine(i).matrix for i in range(3)])
    crops = np.stack([samples.crop(i, samples.evaluation_affine(i)) for i in range(3)])
    shown = validation_pictures(predictor, crops, affines, records.xy)["validation animals"]
    assert shown.shape == (2 * 166 + 6, 8 * 166 + 6, 3)
    # A pixel map that is sure of the background leaves the faded photo; of the animal, one colour.
    output = predictor.model.pixel_map.output
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_(torch.tensor([2.0, 0, 0, -9]))
    faded = 255 + 0.35 * (crops.astype(float) - 255)
    assert np.abs(pixel_pictures(predictor, crops) - faded).max() <= 1
    with torch.no_grad():
        output.bias[3] = 9
    assert (pixel_pictures(predictor, crops) == place_colours(np.array([1.0, 0, 0]))).all()
    sphere = predictor.model.sphere.numpy()
    points, _ = acsm_mask_world.scene(12, acsm_mask_world.template())
    drawn = shape_picture(crops[0], points.numpy(), sphere, predictor.template)
    seen = rasterize(points.numpy()[None], predictor.template.faces, 64).mask[0]
    assert np.abs(drawn[~seen] - faded[0][~seen]).max() <= 1
    assert (np.abs(drawn[seen].astype(float) - 127.5) <= 121).all() and np.ptp(
        drawn[seen], axis=0
    ).min() > 50


def test_killed_and_resumed_training_ends_with_the_same_weights(shared, tmp_path, monkeypatch):
    straight, _ = shared
    other = acsm_mask_world.build(tmp_path)
    acsm_world.train_killed_once(train.MaskShapeTask, config(), other, monkeypatch)
    resumed = weights(other, "labels")["model"]
    for name, value in weights(straight, "labels")["model"].items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    # Masks that changed since are another training, although the table counts as the same.
    table = other.load("labels")
    masks = table["mask_rle"].copy()
    masks[0] = encode_mask(np.ones((acsm_mask_world.HEIGHT, acsm_mask_world.WIDTH)))
    write_table(table.with_columns(mask_rle=masks), other.table_path("labels"))
    with pytest.raises(UserError, match="exists with other settings .*masks"):
        train.run(config(), other)


def test_keypoints_alone_are_what_they_were(shared, tmp_path):
    workspace, _ = shared
    bare = acsm_mask_world.build(tmp_path, masks=False)
    for place in (workspace, bare):
        train.run(config(supervise="keypoints", arm="plain", steps=2), place)
    first, second = (weights(place, "plain") for place in (workspace, bare))
    assert first["provenance"] == second["provenance"] and "supervise" not in first["provenance"]
    for name, value in first["model"].items():
        torch.testing.assert_close(second["model"][name], value, rtol=0, atol=0)
    assert not any("pixel" in name or name == "sphere" for name in first["model"])


def test_masks_alone_need_no_keypoints(tmp_path, capsys):
    workspace = acsm_mask_world.build(tmp_path)
    without_keypoints(workspace)
    web = {"use_web_images": True, "filter": "kpconf", "web_images_num": 4}
    metrics = train.run(config(supervise="masks", steps=2, web_mask_weight=0.5, **web), workspace)
    assert set(metrics["val"]) == {"miou"} and metrics["web_animals"] == 4
    state = weights(workspace, "kpconf")
    assert state["extra"]["arch"]["num_cameras"] == 8 and state["extra"]["supervise"] == "masks"
    assert (
        "masks: 6 of 6 labelled, 3 of 3 validation, 4 of 4 web animals have one" in capsys.readouterr().out
    )
    again = train.run(config(supervise="masks", steps=1, arm="mirrored", flip="both"), workspace)
    assert again["finished"]


def test_a_mask_s_and_a_web_animal_s_weight(shared):
    workspace, _ = shared
    options = {"use_web_images": True, "web_weight": 0.25, "web_mask_weight": 0.5}
    settings = config(**options)
    labels, web, _ = training_data.training_records(settings, workspace, "either")
    web = replace(web, mask_weight=np.full(len(web), 0.8))
    template = train.template_for(workspace.category)
    parts = [train._samples(records, settings, template, "animals") for records in (labels, web)]
    task = train.MaskShapeTask.__new__(train.MaskShapeTask)
    task.samples, task.config, task.num_labels = parts[0].joined(parts[1]), settings, len(labels)
    own, other = (task.sample(i, np.random.default_rng(0)) for i in (0, len(labels)))
    assert own["emphasis"] == 1 and other["emphasis"] == 0.25
    assert own["mask_weight"] == 1 and other["mask_weight"] == pytest.approx(0.4)
    plain = task.samples.sample(len(labels), np.random.default_rng(0))
    np.testing.assert_allclose(other["guide"], plain["guide"] * [1, 1, 1, 1, 0.25])


def test_samples_of_masks(shared):
    workspace, _ = shared
    records, _ = training_data.labelled(workspace, "train", workspace.category.skeleton)
    made = {}
    for flip in (0.0, 1.0):
        style = CropStyle(flip=flip, colour=0.2, jitter=0.0)
        for masks in (False, True):
            samples = ShapeSamples(records, 64, acsm_mask_world.FLIP, style, masks=masks)
            made[flip, masks] = samples.sample(1, np.random.default_rng(4))
        for name, value in made[flip, False].items():
            np.testing.assert_array_equal(made[flip, True][name], value)
    plain, mirrored = made[0.0, True], made[1.0, True]
    whole = 255 * decode_mask(records.mask_rle[1])
    expected = warp_crop(whole, samples.evaluation_affine(1), 64)
    assert np.abs(plain["mask"].astype(int) - expected).max() <= 1
    assert np.abs(mirrored["mask"][:, ::-1].astype(int) - plain["mask"]).max() <= 1
    np.testing.assert_array_equal(mirrored["known"][:, ::-1], plain["known"])
    inside = plain["mask"] > 127
    assert (plain["outside"][inside] == 0).all() and plain["outside"].max() > 0.1
    for sample in (plain, mirrored):
        x, y = np.round((sample["contour"] + 1) * 32 - 0.5).astype(int).T
        assert (sample["mask"][y, x] > 127).all()
        cover = sample["mask"].reshape(16, 4, 16, 4).mean((1, 3))
        assert (cover.ravel()[sample["cells"]] > 127).all() and sample["cells"].shape == (400,)
    # The same position in the stream gives the same cells, another one others.
    again = samples.sample(1, np.random.default_rng(4))
    np.testing.assert_array_equal(again["cells"], mirrored["cells"])
    assert (samples.sample(1, np.random.default_rng(5))["cells"] != mirrored["cells"]).any()
    bare = replace(records, mask_rle=(None,) * len(records), mask_weight=np.zeros(len(records)))
    nothing = ShapeSamples(bare, 64, acsm_mask_world.FLIP, style, masks=True).sample(
        1, np.random.default_rng(4)
    )
    assert nothing["mask_weight"] == 0 and {n: v.shape for n, v in nothing.items()} == {
        n: v.shape for n, v in plain.items()
    }


def test_where_the_photo_ends_is_no_contour():
    known = known_pixels(Affine2D.translation(4, 0), (30, 40), 32)
    assert (known[:, :4] == 0).all() and (known[:, 4:] == 1).all()
    assert known_pixels(Affine2D.identity(), (32, 32), 32).all()
    full = encode_mask(np.ones((40, 30)))
    records = training_data.AnimalRecords(
        ("a",), (None,), np.array([[0.0, 5, 29, 30]]), np.zeros((1, 1, 2)), np.ones((1, 1)),
        np.zeros((1, 7)), mask_rle=(full,),
    )  # fmt: skip
    samples = ShapeSamples(records, 32, [0], CropStyle(flip=0), masks=True)
    found = samples.masks.sample(records, 0, Affine2D.translation(4, 0), np.random.default_rng(0))
    assert found["mask_weight"] == 0  # nothing of its contour is seen
    half = np.zeros((40, 30))
    half[:20] = 1
    records = replace(records, mask_rle=(encode_mask(half),))
    samples = ShapeSamples(records, 32, [0], CropStyle(flip=0), masks=True)
    found = samples.masks.sample(records, 0, Affine2D.translation(4, 0), np.random.default_rng(0))
    rows = (found["contour"][:, 1] + 1) * 16 - 0.5
    np.testing.assert_allclose(rows, 19, atol=1e-4)  # the lower edge alone, away from the photo's sides
    assert (found["outside"][:, :4] == 0).all() and found["outside"][31, 20] == pytest.approx(12 / 16)
    np.testing.assert_array_equal(spread(np.arange(3), 6), [0, 0, 1, 1, 2, 2])


def test_what_masks_cannot_be_learnt_from_is_said_in_one_line(shared, tmp_path, capsys):
    workspace, _ = shared
    bare = acsm_mask_world.build(tmp_path / "bare", masks=False)
    for supervise in ("both", "masks"):
        with pytest.raises(
            UserError, match="found none of .*save_masks.py --category beast --labelled"
        ) as told:
            train.run(config(supervise=supervise, arm=supervise), bare)
        assert "\n" not in str(told.value)
    stick = acsm_world.build(tmp_path / "stick")
    with pytest.raises(UserError, match="a closed surface; found 13 edges"):
        train.run(config(category="stick"), stick)
    with pytest.raises(UserError, match="--freeze: expected --supervise keypoints"):
        config(freeze=True)
    with pytest.raises(UserError, match="--image_size: expected a multiple of 4 with masks; found 70"):
        config(image_size=70)
    with pytest.raises(UserError, match="--coverage_weight: expected at least 0; found -1"):
        config(coverage_weight=-1)
    zero = dict.fromkeys(
        ("cycle", "visibility", "coverage", "containment", "segmentation", "silhouette"), 0
    )
    with pytest.raises(UserError, match="expected a weight above 0"):
        config(**{f"{term}_weight": 0.0 for term in zero})
    with pytest.raises(UserError, match="needs that package"):
        train.run(config(arm="published", renderer="neural_renderer"), workspace)
    # A mask of another size is left out, and said; the animal's keypoints still count.
    other = acsm_mask_world.build(tmp_path / "other")
    table = other.load("labels")
    masks = table["mask_rle"].copy()
    visible = table["visible"].copy()
    masks[2], visible[1] = encode_mask(np.ones((5, 7))), 0  # one without a mask, one without keypoints
    write_table(table.with_columns(mask_rle=masks, visible=visible), other.table_path("labels"))
    capsys.readouterr()
    assert train.run(config(steps=1), other)["labelled_animals"] == 6
    said = capsys.readouterr().out
    assert (
        "left out 1 masks of labelled animals (i2: a mask of 7 x 5 pixels for an image of 92 x 84)" in said
    )
    assert "masks: 5 of 6 labelled" in said
    assert train.run(config(steps=1, arm="few", supervise="masks"), other)["labelled_animals"] == 5


def test_masks_of_another_size_are_left_out_of_training_and_measuring(tmp_path, monkeypatch, capsys):
    workspace = acsm_mask_world.build(tmp_path)
    train.run(config(), workspace)
    plain = evaluate.run(evaluate.Config(category="beast", bootstrap=20), workspace)
    small = encode_mask(np.ones((4, 6), np.uint8))
    for name, wrong in (("instances", slice(None)), ("labels", slice(-1, None))):
        table = workspace.load(name)
        masks = table["mask_rle"].copy()
        masks[wrong] = small
        write_table(table.with_columns(mask_rle=masks), workspace.table_path(name))
    joined = []
    monkeypatch.setattr(train, "_joined", lambda *parts: joined.append(parts[0].joined(parts[1])) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.run(config(arm="web", use_web_images=True), workspace)
    rng = np.random.default_rng(0)
    weights = [float(joined[0].sample(i, rng)["mask_weight"]) for i in range(len(joined[0]))]
    assert weights == [1.0] * 6 + [0.0] * 4
    capsys.readouterr()
    facts = evaluate.run(evaluate.Config(category="beast", bootstrap=20), workspace)
    assert (plain["masks"], facts["masks"]) == (2, 1) and facts["auc"] == plain["auc"]
    assert "left out 1 masks of labelled animals (i10: a mask of 6 x 4" in capsys.readouterr().out
    pytest.importorskip("trimesh", reason="the extra glb")
    visualize.run(visualize.Config(category="beast", glb=True, texture_size=64), workspace)
    assert "left out 1 masks of drawn animals (i10" in capsys.readouterr().out


def test_a_model_of_masks_alone_is_measured_on_labels_without_keypoints(tmp_path):
    workspace = acsm_mask_world.build(tmp_path)
    without_keypoints(workspace)
    train.run(config(supervise="masks"), workspace)
    facts = evaluate.run(evaluate.Config(category="beast", bootstrap=20), workspace)
    assert facts["masks"] == 2 and 0 < facts["miou"] <= 100
    assert visualize.run(visualize.Config(category="beast"), workspace)["animals"] == 2
    table = workspace.load("labels")
    some = np.where(table["split"] == "train", None, table["mask_rle"])
    write_table(table.with_columns(mask_rle=some), workspace.table_path("labels"))
    with pytest.raises(UserError, match="expected train labels with images and masks for beast"):
        train.run(config(supervise="masks", arm="web", use_web_images=True), workspace)


def test_compiling_reaches_the_encoder_with_masks_and_without():
    model = ACSM(acsm_mask_world.template(), ACSMArchitecture(image_size=64, pixel_map=True))
    seen = []
    model.encoder.register_forward_hook(lambda *call: seen.append(call[0]))  # as compile, of __call__
    for pixels in (False, True):
        model(torch.zeros(2, 3, 64, 64), pixels=pixels)
    assert seen == [model.encoder] * 2
