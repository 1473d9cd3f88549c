import numpy as np
import pytest
import torch
from pose_world import SKELETON, make_world

from pose import generate_pl, generate_pl_mt
from pose.model import PoseNet
from pose.predict import PosePredictor
from pose.pseudo_labels import TRANSFORMS, PosePseudoLabels
from wildshape import crops as crops_module
from wildshape.crops import image_paths, read_image
from wildshape.errors import UserError
from wildshape.geometry import warp_crop
from wildshape.tables import read_table, table_hash, write_table
from wildshape.training import save_checkpoint


def save_model(workspace, model="pose", seed=0, keypoints=SKELETON.keypoints):
    """A checkpoint of random weights, sharp enough to have distinct maxima."""
    torch.manual_seed(seed)
    net = PoseNet(len(keypoints), "resnet18", 16)
    torch.nn.init.normal_(net.head.layers[-1].weight, std=1.0)
    path = workspace.checkpoint_dir(model) / "best.pt"
    extra = {
        "kind": "pose",
        "category": "cow",
        "skeleton": SKELETON.name,
        "keypoints": list(keypoints),
        "flip": list(SKELETON.flip),
        "arch": net.arch,
        "image_size": 64,
        "published": False,
    }
    save_checkpoint(path, {"model": net.state_dict(), "extra": extra})
    return path


@pytest.fixture
def world(tmp_path):
    workspace = make_world(tmp_path, splits=(("train", 1),))
    save_model(workspace)
    return workspace


def config(**changes):
    return generate_pl.Config(**{"category": "cow", "device": "cpu", "num_workers": 0} | changes)


def predicted(world, **options):
    predictor = PosePredictor.from_checkpoint(
        world.checkpoint_dir("pose") / "best.pt", device="cpu", **options
    )
    instances = world.load("instances")
    paths = image_paths(world.load("images"), world)
    images = [read_image(paths[i]) for i in instances["image_id"]]
    return predictor.predict(images, instances["box_xyxy"])


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 32), (0, 2), (2, 3)])
def test_generate_pl_equals_predict(world, workers, batch_size):
    metrics = generate_pl.run(config(num_workers=workers, batch_size=batch_size), world)
    table = read_table(world.keypoints_path("pose"), "keypoints")
    assert list(table["instance_id"]) == list(world.load("instances")["instance_id"])
    assert set(table["transform"]) == {"none"} and table.meta["skeleton"] == SKELETON.name
    xy, confidence = predicted(world)
    np.testing.assert_allclose(table["xy"], xy, atol=1e-3)
    np.testing.assert_allclose(table["confidence"], confidence, rtol=1e-3)
    assert metrics["labelled"] == 7 and metrics["skipped"] == 0


def test_flip_average_is_flip_consistent(world):
    """Averaged heatmaps of a mirrored picture are the mirrored, left-right swapped answer."""
    predictor = PosePredictor.from_checkpoint(
        world.checkpoint_dir("pose") / "best.pt", device="cpu", flip_average=True
    )
    instances = world.load("instances")
    paths = image_paths(world.load("images"), world)
    image = read_image(paths[instances["image_id"][0]])
    crop = warp_crop(image, predictor.crop_affine(instances["box_xyxy"][0]), 64)
    identity = np.eye(2, 3)[None]
    xy, confidence = predictor.predict_crops(crop[None], identity)
    xy_mirrored, confidence_mirrored = predictor.predict_crops(crop[None, :, ::-1].copy(), identity)
    flip = list(SKELETON.flip)
    np.testing.assert_allclose(confidence_mirrored[:, flip], confidence, rtol=1e-3)
    np.testing.assert_allclose(63 - xy_mirrored[:, flip, 0], xy[..., 0], atol=1e-2)
    np.testing.assert_allclose(xy_mirrored[:, flip, 1], xy[..., 1], atol=1e-2)
    generate_pl.run(config(flip_average=True), world)
    table = read_table(world.keypoints_path("pose"), "keypoints")
    np.testing.assert_allclose(table["confidence"], predicted(world, flip_average=True)[1], rtol=1e-3)


class ColourFinder(torch.nn.Module):
    """Stands in for a network: heatmaps of the keypoint colours' dots, at a quarter."""

    def __init__(self):
        super().__init__()
        self.num_keypoints = 1

    def forward(self, images):
        bright = images.mean(1, keepdim=True)
        bright = (bright - bright.amin((2, 3), keepdim=True)).square()
        return torch.nn.functional.avg_pool2d(bright, 4)


@pytest.mark.parametrize("box", [[20.0, 10, 99, 89], [11.5, 3.25, 103.5, 80]])
def test_transforms_are_undone(box):
    """A smooth dot is found at the same place of the image under every transform."""
    dot = np.array([63.3, 41.8])
    y, x = np.mgrid[:100, :120]
    blob = 255 * np.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / (2 * 4.0**2))
    image = np.repeat(blob[..., None].astype(np.uint8), 3, -1)
    predictor = PosePredictor(ColourFinder(), 128, ["dot"], device="cpu")
    stage = PosePseudoLabels(predictor, {}, tuple(TRANSFORMS))
    stage.paths, stage._image = {"i": None}, lambda path: image
    stage.paths["i"] = "somewhere"
    row = stage.prepare({"instance_id": "a", "image_id": "i", "box_xyxy": np.array(box)})
    columns = stage({name: np.array([value]) for name, value in row.items()})
    assert list(columns["transform"]) == list(TRANSFORMS)
    np.testing.assert_allclose(columns["xy"][:, 0], np.tile(dot, (7, 1)), atol=0.15)
    crops = row["crops"].astype(int)
    assert all(np.abs(crops[i] - crops[0]).max() > 20 for i in range(1, 7))


def test_mt_has_seven_rows_an_instance_and_begins_with_none(world):
    options = {"category": "cow", "device": "cpu", "num_workers": 0, "batch_size": 3}
    generate_pl_mt.run(generate_pl_mt.Config(**options), world)
    table = read_table(world.keypoints_path("pose_mt"), "keypoints")
    assert len(table) == 7 * 7
    assert list(table["transform"][:7]) == list(TRANSFORMS)
    np.testing.assert_array_equal(table["instance_id"][::7], world.load("instances")["instance_id"])
    np.testing.assert_allclose(table["xy"][::7], predicted(world)[0], atol=1e-3)


def test_labelled_animals_of_val_are_predicted_into_tables_of_their_own(tmp_path):
    world = make_world(tmp_path, splits=(("train", 1), ("val", 2)))
    save_model(world)
    metrics = generate_pl.run(config(labelled=True), world)
    labels, table = world.load("labels"), world.load_keypoints("pose_labelled")
    val = labels["instance_id"][labels["split"] == "val"]
    assert table["instance_id"].tolist() == val.tolist() and metrics["labelled"] == 2
    predictor = PosePredictor.from_checkpoint(world.checkpoint_dir("pose") / "best.pt", device="cpu")
    images = [read_image(world.labelled_images_dir / f"val{i}.png") for i in range(2)]
    expected = predictor.predict(images, labels["box_xyxy"][labels["split"] == "val"])[0]
    np.testing.assert_allclose(table["xy"], expected, atol=1e-3)
    options = {"category": "cow", "device": "cpu", "num_workers": 0, "labelled": True}
    generate_pl_mt.run(generate_pl_mt.Config(**options), world)
    assert len(world.load_keypoints("pose_mt_labelled")) == 14
    assert not world.keypoints_path("pose").exists() and not world.keypoints_path("pose_mt").exists()
    write_table(labels.take(labels["split"] == "train"), world.table_path("labels"))
    with pytest.raises(UserError, match="--labelled: expected labelled animals of val; found none among 1"):
        generate_pl.run(config(labelled=True), world)


def test_one_decode_an_image(world, monkeypatch):
    read = []
    original = crops_module.read_image
    monkeypatch.setattr(crops_module, "read_image", lambda path: read.append(path.name) or original(path))
    options = {"category": "cow", "device": "cpu", "num_workers": 0, "batch_size": 2}
    generate_pl_mt.run(generate_pl_mt.Config(**options), world)
    assert read == ["web0.jpg", "web1.jpg", "web2.jpg", "web3.jpg"]


def test_unreadable_images_and_empty_boxes_are_counted_and_named(world, capsys):
    (world.images_dir / "web1.jpg").write_bytes(b"")
    instances = world.load("instances")
    boxes = instances["box_xyxy"].copy()
    boxes[0, 3] = boxes[0, 1]
    write_table(instances.with_columns(box_xyxy=boxes), world.table_path("instances"))
    metrics = generate_pl.run(config(batch_size=2), world)
    table = read_table(world.keypoints_path("pose"), "keypoints")
    assert list(table["instance_id"]) == list(instances["instance_id"][3:])
    assert (metrics["labelled"], metrics["skipped"]) == (4, 3)
    out = capsys.readouterr().out
    assert "4 of 7 animals" in out and "web1.jpg" in out and "a box of no area" in out


def test_all_images_unreadable_gives_an_empty_table(world):
    for path in world.images_dir.iterdir():
        path.write_bytes(b"no image")
    metrics = generate_pl.run(config(), world)
    assert metrics["labelled"] == 0
    assert read_table(world.keypoints_path("pose"), "keypoints")["xy"].shape == (0, 16, 2)


def test_a_killed_run_continues_and_ends_the_same(world, monkeypatch):
    from pose import pseudo_labels
    from wildshape.stage import MapOptions

    monkeypatch.setattr(pseudo_labels, "MapOptions", lambda **k: MapOptions(**k, shard_size=2))
    generate_pl.run(config(batch_size=2), world)
    whole = table_hash(world.keypoints_path("pose"))
    again = world.sibling(name="again")
    save_model(again)
    original, calls = PosePseudoLabels.__call__, []

    def dies_at_third(self, batch):
        calls.append(len(batch["usable"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(PosePseudoLabels, "__call__", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        generate_pl.run(config(batch_size=2), again)
    assert not again.keypoints_path("pose").exists()
    monkeypatch.setattr(PosePseudoLabels, "__call__", original)
    generate_pl.run(config(batch_size=2), again)
    assert table_hash(again.keypoints_path("pose")) == whole


def test_aux_writes_its_own_table(world):
    with pytest.raises(UserError, match=r"run: python pose/train.py --category cow --is_aux"):
        generate_pl.run(config(is_aux=True), world)
    save_model(world, "pose_aux", seed=3)
    generate_pl.run(config(is_aux=True), world)
    generate_pl.run(config(), world)
    a, b = (read_table(world.keypoints_path(s), "keypoints") for s in ("pose", "pose_aux"))
    assert not np.allclose(a["xy"], b["xy"])


def test_missing_inputs_name_their_commands(tmp_path, world):
    save_model(world, keypoints=[f"k{i}" for i in range(16)])
    with pytest.raises(UserError, match=r"expected a checkpoint for the keypoints L_eye.*found k0"):
        generate_pl.run(config(), world)
    world.table_path("instances").unlink()
    with pytest.raises(UserError, match=r"needs data/cow/instances.parquet .*save_boxes"):
        generate_pl.run(config(), world)


def test_a_new_checkpoint_is_not_mixed_with_the_old(world):
    generate_pl.run(config(), world)
    save_model(world, seed=9)
    with pytest.raises(UserError, match=r"best.pt has changed since.*--overwrite"):
        generate_pl.run(config(), world)
    generate_pl.run(config(overwrite=True), world)
    np.testing.assert_allclose(
        read_table(world.keypoints_path("pose"), "keypoints")["xy"], predicted(world)[0], atol=1e-3
    )


def test_predict_takes_no_images(world):
    xy, confidence = PosePredictor.from_checkpoint(
        world.checkpoint_dir("pose") / "best.pt", device="cpu"
    ).predict([], np.zeros((0, 4)))
    assert xy.shape == (0, 16, 2) and confidence.shape == (0, 16)
