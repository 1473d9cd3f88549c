"""Released checkpoints as ours; the released predictions are those of tests/data/acsm."""

import json

import acsm_golden
import acsm_world
import numpy as np
import pytest
import torch

import acsm
import wildshape
from acsm import convert, evaluate, generate_pl, train
from acsm.predict import ShapePredictor
from acsm.template import ArticulatedTemplate, template_for
from wildshape import training_data
from wildshape.crops import read_image
from wildshape.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The stick animal's photos with the template of the golden checkpoints, and the checkpoints."""
    root = tmp_path_factory.mktemp("released")
    workspace = acsm_world.build(root)
    golden = acsm_golden.template()
    faces = np.array([[0, 1, 2], [2, 1, 3], [4, 5, 6]])  # the golden numbers have none; pictures want some
    parents = tuple(golden.part_parents)
    template = ArticulatedTemplate(**{**vars(golden), "faces": faces, "part_parents": parents})
    template.save(root / "categories" / "stick.npz")
    for cameras in (1, 8):
        torch.save(acsm_golden.state_dict(cameras), root / f"released{cameras}.pth")
    return workspace


def config(workspace, cameras=1, **settings):
    checkpoint = workspace.root / f"released{cameras}.pth"
    return convert.Config(category="stick", checkpoint=checkpoint, **{"device": "cpu", **settings})


@pytest.mark.parametrize("cameras", [1, 8])
def test_in_the_released_order_nothing_moves_but_by_half_a_pixel(world, cameras):
    golden = acsm_golden.tensors(f"forward_cams{cameras}")
    template = template_for(world.category)
    released = acsm.load_published(acsm_golden.state_dict(cameras), template, num_cameras=None)
    ours = convert.convert_model(released, template, "published")
    result = ours.predict(golden["image"])
    shift = 1 / 64
    expected = golden["keypoints_projected"][:2] + shift
    torch.testing.assert_close(result["keypoints_ndc"], expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        result["camera"][..., 1:3], golden["camera"][:2, ..., 1:3] + shift, atol=5e-5, rtol=0
    )
    torch.testing.assert_close(result["vertices"], golden["verts"][:2], atol=5e-5, rtol=0)
    assert (result["part_transforms"][..., 0] == 1).all()
    torch.testing.assert_close(ours.camera_head.bias.norm(dim=-1), torch.ones(cameras))
    # As a chain only the head moves, which has a neck and a body above it.
    chained = convert.convert_model(released, template).predict(golden["image"])
    apart = (chained["vertices"] - result["vertices"]).abs().amax(dim=(0, 1, 3))
    head = template.membership[:, template.part_names.index("head")]
    assert (
        apart[torch.from_numpy(head > 0.1)].min() > 1e-4 and apart[torch.from_numpy(head == 0)].sum() < 1e-3
    )


def test_parts_of_a_converted_model_move_where_they_did(world):
    """Only with --translations; turns are the same."""
    template = template_for(world.category)
    state = acsm_golden.state_dict(1)
    released = acsm.load_published(state, template, num_cameras=None)
    image = acsm_golden.tensors("forward_cams1")["image"]
    still = convert.convert_model(released, template).predict(image)
    ours = convert.convert_model(released, template, translations=True)
    assert ours.arch.translations
    moving = ours.predict(image)
    shift = moving["part_transforms"][..., 1:4]
    assert not still["part_transforms"][..., 1:4].any()
    assert shift[:, :, ours.part_head.active].abs().min() > 0
    torch.testing.assert_close(moving["part_transforms"][..., 4:], still["part_transforms"][..., 4:])
    assert (moving["vertices"] - still["vertices"]).abs().max() > 1e-4


def test_every_command_takes_what_was_converted(world, capsys):
    facts = convert.run(config(world, labels="test"), world)
    shown = capsys.readouterr().out
    assert "articulation: own, parent, ..., root (released: own, root, ..., parent); moves head" in shown
    assert "crop: padded by 0.05" in shown and "keypoints: NDC (2x + 1) / S - 1" in shown
    assert "converted - released on 3 animals of test: AUC" in shown
    stored = json.loads(world.metrics_path("acsm_convert_released").read_text())
    assert stored["measured"]["rows"].keys() == {"released", "order alone", "crops alone", "converted"}

    measured = evaluate.run(evaluate.Config(category="stick", arm="released", bootstrap=20), world)
    rows = facts["measured"]["rows"]
    assert measured["auc"] == pytest.approx(rows["converted"]["auc"])
    assert measured["camera_error_deg"] == pytest.approx(rows["converted"]["camera_error_deg"], abs=1e-3)
    assert generate_pl.run(generate_pl.Config(category="stick", arm="released"), world)["predicted"] == 5
    predictor = wildshape.load("stick", data_root=world.root)
    assert predictor.arm == "released"
    image = read_image(world.images_dir / "12.png")
    assert predictor.predict(image).keypoints.shape == (16, 2)


def test_as_released_means_the_released_order_crops_and_keypoints(world):
    """The row `released` is the golden model measured with the released evaluation's arithmetic."""
    facts = convert.run(config(world, labels="all", arm="all"), world)
    template = template_for(world.category)
    model = acsm.load_published(acsm_golden.state_dict(1), template)
    records, _ = training_data.labelled(world, None, world.category.skeleton)
    predictor = ShapePredictor(model, None, world.category.skeleton.keypoints, device="cpu")
    expected = evaluate.measure(predictor, records, published=True).result
    found = facts["measured"]["rows"]["released"]
    assert found["auc"] == pytest.approx(expected.summary(world.category.skeleton.keypoints)["auc"])
    assert found["instances"] == 12
    kept = convert.run(config(world, labels="all", arm="kept", order="published"), world)
    assert kept["measured"]["rows"].keys() == {"released", "converted"}
    assert "articulation" not in {row["what"] for row in kept["differences"]}
    # Without the order, half a pixel and the crops remain: the same figure as of that one change.
    alone = facts["measured"]["rows"]["crops alone"]["auc"]
    assert kept["measured"]["rows"]["converted"]["auc"] == alone


def test_training_starts_from_it(world):
    short = {
        "category": "stick", "image_size": 64, "steps": 1, "batch_size": 3, "lr": 0.0, "device": "cpu",
        "precision": "float32",
    }  # fmt: skip
    convert.run(config(world, out=world.root / "ours.pt"), world)
    ours = torch.load(world.root / "ours.pt", weights_only=True)["model"]

    def trained(arm, **settings):
        metrics = train.run(train.Config(**short, arm=arm, **settings), world)
        path = world.checkpoint_dir(f"acsm/{arm}") / "last.pt"
        return metrics["weights_from"], torch.load(path, weights_only=True)["model"]

    origin, same = trained("same", init=world.root / "ours.pt", camera="quaternion")
    assert origin == str(world.root / "ours.pt")
    torch.testing.assert_close(same["camera_head.output.weight"], ours["camera_head.output.weight"])
    # A turntable reads other angles off the same numbers: its head starts anew.
    origin, other = trained("other", init=world.root / "ours.pt")
    assert origin.startswith("encoder, part_head, trunk of")
    assert not torch.equal(other["camera_head.output.weight"], ours["camera_head.output.weight"])
    torch.testing.assert_close(other["part_head.axis"], ours["part_head.axis"])
    with pytest.raises(UserError, match="it is a released 3D model: run wildshape acsm-convert first"):
        trained("raw", init=world.root / "released1.pth")


def test_nothing_else_is_overwritten(world, tmp_path):
    convert.run(config(world, arm="mine"), world)
    best = world.checkpoint_dir("acsm/mine") / "best.pt"
    convert.run(config(world, arm="mine"), world)  # the same again
    with pytest.raises(UserError, match="expected nothing else at .*best.pt; .* or choose another --arm"):
        convert.run(config(world, arm="mine", order="published"), world)
    convert.run(config(world, arm="mine", order="published", overwrite=True), world)
    assert torch.load(best, weights_only=True)["extra"]["arch"]["order"] == "published"
    with pytest.raises(UserError, match="mine exists with other settings .made by acsm-convert"):
        train.run(train.Config(category="stick", image_size=64, steps=1, batch_size=3, arm="mine"), world)
    other = tmp_path / "other.pt"
    other.write_bytes(b"mine")
    with pytest.raises(UserError, match="or choose another --out"):
        convert.run(config(world, out=other), world)
    assert other.read_bytes() == b"mine"


def test_another_template_is_told_of(world, tmp_path):
    template = template_for(world.category)
    scaled = ArticulatedTemplate(**{**vars(template), "vertices": 1.1 * template.vertices})
    scaled.save(tmp_path / "mine.npz")
    facts = convert.run(config(world, template=tmp_path / "mine.npz", out=tmp_path / "o.pt"), world)
    assert "put template: {file: " in facts["note"] and "mine.npz} into its YAML" in facts["note"]
    packed = torch.load(tmp_path / "o.pt", weights_only=True)["extra"]["template"]
    np.testing.assert_allclose(packed["vertices"], scaled.vertices)
    with pytest.raises(UserError, match="present template of stick"):
        ShapePredictor.from_checkpoint(tmp_path / "o.pt", world.category)
    for bad, message in (
        ({"scale": "published"}, "--scale: expected --template"),
        ({"labels": "nowhere"}, "--labels: expected train"),
    ):
        with pytest.raises(UserError, match=message):
            convert.run(config(world, out=tmp_path / "x.pt", **bad), world)
    for bad in ({"padding": 2.0}, {"arm": "a/b"}):
        with pytest.raises(UserError, match="--" + next(iter(bad))):
            config(world, **bad)
