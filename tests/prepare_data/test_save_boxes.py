"""save_boxes and detectors: plug-ins, torchvision, detectron2, resume, ids, bad images."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prepare_data.add_folder import Config as FolderConfig
from prepare_data.add_folder import run as add_folder
from prepare_data.detectors import DetectorRequest, find_detector, parse_opts
from prepare_data.detectors.coco import COCO_CLASSES
from prepare_data.save_boxes import Config, main, run
from wildshape.errors import UserError
from wildshape.stage import input_hashes
from wildshape.tables import content_hash, make_instance_id

PLUG_IN = Path(__file__).with_name("plug_in.py")
SQUARES = f"{PLUG_IN}:Squares"


def picture(path: Path, seed: int, cow: bool = True, dog: bool = False) -> None:
    """Grey noise with a red square of 30 pixels from (20 + seed, 40) and maybe a blue one."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 100, (100 + seed, 120, 3), dtype=np.uint8)
    image[:: 1 + seed] = 140
    if cow:
        image[40:70, 20 + seed : 50 + seed] = (255, 0, 0)
    if dog:
        image[5:25, 80:110] = (0, 0, 255)
    Image.fromarray(image).save(path)


@pytest.fixture
def photos(tmp_path, workspace):
    """A folder with six pictures, one of them without a cow, and three bad files."""
    folder = tmp_path / "my photos"
    (folder / "deeper").mkdir(parents=True)
    for seed in range(6):
        picture(folder / ("deeper" if seed == 5 else "") / f"{seed}.png", seed, seed != 3, seed in (1, 3))
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"not an image")
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:3000])
    (folder / "notes.txt").write_text("grazing")
    add_folder(FolderConfig(category="cow", folder=folder, max_distance=0), workspace)
    return folder


def config(**changes) -> Config:
    return Config(**{"category": "cow", "detector": SQUARES, "batch_size": 2, **changes})


def test_folder_gives_rows_for_good_and_bad_files(photos, workspace, capsys):
    table = workspace.load("images")
    status = dict(zip(table["source_id"], table["status"]))
    assert status == {
        **{f"{i}.png": "ok" for i in range(5)},
        "deeper/5.png": "ok",
        "zero.jpg": "not_image",
        "text.jpg": "not_image",
        "cut.png": "truncated",
    }
    assert all(error for error, value in zip(table["error"], table["status"]) if value != "ok")
    row = next(row for row in table.rows() if row["source_id"] == "deeper/5.png")
    assert (row["width"], row["height"], row["source"], row["url"]) == (120, 105, "folder", None)
    assert workspace.image_file(row["path"]) == photos / "deeper" / "5.png"


def test_folder_copy_and_repeats(photos, workspace, capsys):
    (photos / "again.png").write_bytes((photos / "0.png").read_bytes())
    settings = FolderConfig(category="cow", folder=photos, copy=True, max_distance=0, overwrite=True)
    metrics = add_folder(settings, workspace)
    assert metrics["by_status"] == {"ok": 6, "truncated": 1, "not_image": 2, "duplicate": 1}
    assert "1 files are no photos" in capsys.readouterr().out
    table = workspace.load("images")
    good = table.take(table["status"] == "ok")
    assert all(path.startswith("data/cow/images/") for path in good["path"])
    assert workspace.image_file(good["path"][0]).read_bytes() == (photos / "0.png").read_bytes()


def test_folder_without_photos(tmp_path, workspace):
    with pytest.raises(UserError, match="expected a folder of photos"):
        add_folder(FolderConfig(category="cow", folder=tmp_path / "none"), workspace)
    with pytest.raises(UserError, match="found 0 other files"):
        add_folder(FolderConfig(category="cow", folder=tmp_path), workspace)


def test_boxes_become_instances(photos, workspace, capsys):
    metrics = run(config(), workspace)
    table = workspace.load("instances")
    images = workspace.load("images")
    assert len(table) == 5 and set(table["category"]) == {"cow"}
    by_image = images.lookup("image_id")
    for row in table.rows():
        seed = int(images["source_id"][by_image[row["image_id"]]].rpartition("/")[2][0])
        assert row["box_xyxy"].tolist() == [19.5 + seed, 39.5, 49.5 + seed, 69.5]
        assert row["instance_id"] == make_instance_id(row["image_id"], "plug_in:Squares", row["box_xyxy"])
        assert row["flags"] == "small" and row["score"] == 0.6
    assert metrics["images"] == {"with_animals": 5, "without_animals": 1}
    assert metrics["boxes"] == {"kept": 5, "other_label": 2}
    assert (
        "5 cow boxes in 5 of 6 images by plug_in:Squares; dropped: 2 other_label" in capsys.readouterr().out
    )
    again = run(config(), workspace)
    assert again["boxes"] == metrics["boxes"]
    assert "(done before)" in capsys.readouterr().out


def test_images_that_became_unreadable_are_counted(photos, workspace, capsys):
    (photos / "0.png").write_bytes(b"")
    (photos / "1.png").unlink()
    metrics = run(config(workers=1), workspace)
    assert metrics["images"] == {"with_animals": 3, "without_animals": 1, "unreadable": 2}
    assert "2 images unreadable" in capsys.readouterr().out
    for name in ("2.png", "3.png", "4.png", "deeper/5.png"):
        (photos / name).write_bytes(b"x")
    with pytest.raises(UserError, match="expected readable images; found none of 6"):
        run(config(overwrite=True), workspace)


def test_ids_survive_a_shifted_rerun(photos, workspace):
    run(config(), workspace)
    before = workspace.load("instances")
    with pytest.raises(UserError, match="shift=None then, 0.6 now.*--overwrite"):
        run(config(opts=("shift", "0.6")), workspace)
    run(config(opts=("shift", "0.6"), overwrite=True), workspace)
    after = workspace.load("instances")
    assert after["instance_id"].tolist() == before["instance_id"].tolist()
    np.testing.assert_allclose(after["box_xyxy"] - before["box_xyxy"], 0.6, atol=1e-5)
    run(config(opts=("shift", "9"), overwrite=True), workspace)
    assert not set(workspace.load("instances")["instance_id"]) & set(before["instance_id"])


def test_an_interrupted_run_ends_with_the_same_table(photos, workspace, monkeypatch):
    import prepare_data.save_boxes as module

    monkeypatch.setattr(module, "max", lambda *values: 2, raising=False)  # shards of two images
    whole = run(config(), workspace)
    expected = content_hash(workspace.load("instances"))
    workspace.table_path("instances").unlink()
    real, calls = module.detect, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "detect", stops)
    with pytest.raises(KeyboardInterrupt):
        run(config(), workspace)
    monkeypatch.setattr(module, "detect", real)
    again = run(config(), workspace)
    assert content_hash(workspace.load("instances")) == expected
    assert (again["boxes"], again["images"]) == (whole["boxes"], whole["images"])


def test_thresholds(photos, workspace, capsys):
    assert run(config(score_threshold=0.7), workspace)["boxes"] == {"low_score": 5, "other_label": 2}
    assert "try a lower --score_threshold" in capsys.readouterr().out
    assert len(workspace.load("instances")) == 0
    opts = ("score", "0.94")
    assert len_boxes(config(opts=opts, overwrite=True), workspace) == 5  # the plug-in's own: .4
    plain = f"{PLUG_IN}:function"
    assert len_boxes(config(detector=plain, overwrite=True), workspace) == 0


def len_boxes(settings: Config, workspace) -> int:
    run(settings, workspace)
    return len(workspace.load("instances"))


@pytest.mark.parametrize(
    ("detector", "opts", "message"),
    [
        (
            "yolo",
            (),
            "expected torchvision, detectron2, transformers, mayaku, .*simulated or path/to/.*yolo",
        ),
        ("none.py:X", (), "expected a Python file at none.py"),
        (f"{PLUG_IN}:Circles", (), "expected a class Circles; found Squares, function, wrong"),
        (f"{PLUG_IN}:not_callable", (), "expected a class not_callable"),
        (
            f"{PLUG_IN}:wrong",
            (),
            r"expected boxes \[N, 4\], N scores and N labels; found boxes \[2, 4\], 1",
        ),
        (SQUARES, ("colour", "3"), "cannot be made with --opts"),
        (SQUARES, ("score",), "--opts: expected pairs"),
        ("torchvision:resnet18", (), "expected a model among fasterrcnn.*found resnet18"),
        ("torchvision", ("MODEL.WEIGHTS", "no.pt"), "expected a file at no.pt"),
        ("torchvision", ("MODEL.WEIGHTS", str(PLUG_IN)), "expected weights saved by torch"),
        ("torchvision", ("MODEL.X", "1"), "expected --opts MODEL.WEIGHTS FILE"),
    ],
)
def test_detectors_that_cannot_be_had(photos, workspace, detector, opts, message):
    with pytest.raises(UserError, match=message):
        run(config(detector=detector, opts=opts), workspace)


def test_plug_in_with_a_missing_package(photos, workspace, tmp_path):
    file = tmp_path / "needy.py"
    file.write_text("import no_such_package\nclass D: pass\n")
    with pytest.raises(UserError, match="needs no_such_package; run: pip install no_such_package"):
        run(config(detector=f"{file}:D"), workspace)


def test_needs_images_and_a_coco_class(workspace, capsys):
    assert main(["--category", "cow", "--data-root", str(workspace.root), "--detector", SQUARES]) == 2
    assert "save_boxes needs data/cow/images.parquet for cow; run: python" in capsys.readouterr().err
    with pytest.raises(UserError, match="--score_threshold: expected 0 to 1; found 2"):
        config(score_threshold=2)


def test_parse_opts():
    assert parse_opts(["MODEL.WEIGHTS", "a=b/c.pkl", "x=1"]) == {"MODEL.WEIGHTS": "a=b/c.pkl", "x": "1"}


def test_command_line(photos, workspace, tmp_path):
    """As a user types it, from another directory."""
    script = Path(importlib.util.find_spec("prepare_data").origin).with_name("save_boxes.py")
    command = [
        sys.executable, str(script), "--category", "cow", "--data-root", str(workspace.root),
        "--detector", SQUARES, "--opts", "score", "0.5", "--score_threshold", "0.3",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("save_boxes: 5 cow boxes")


# torchvision


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights of the smallest model, for three classes of its own."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save({"model": model.state_dict(), "categories": ["__background__", "cow", "dog"]}, path)
    return path


def test_torchvision_from_a_file(photos, workspace, weights):
    name = "torchvision:ssdlite320_mobilenet_v3_large"
    opts = ("MODEL.WEIGHTS", str(weights))
    found = find_detector(name, workspace, opts)
    assert "MODEL.WEIGHTS hash" in found.settings
    detector = found.make()
    assert detector.default_threshold == 0.5
    images = [np.full((90, 120, 3), 90, np.uint8), np.full((60, 50, 3), 30, np.uint8)]
    results = detector(images)
    assert len(results) == 2
    for (boxes, scores, labels), image in zip(results, images):
        assert boxes.dtype == np.float32 and boxes.shape == (len(scores), 4) and len(scores) > 0
        assert set(labels) <= {"cow", "dog"}
        assert (boxes >= 0).all() and (boxes[:, 2] <= image.shape[1]).all()
        assert (boxes[:, 3] <= image.shape[0]).all()
    metrics = run(config(detector=name, opts=opts, score_threshold=0.05, max_per_image=3), workspace)
    assert 0 < metrics["instances"] <= 18 and metrics["boxes"]["other_label"] > 0


def test_torchvision_weights_of_another_model(workspace, weights, tmp_path):
    plain = tmp_path / "plain.pt"
    torch.save(torch.load(weights, weights_only=True)["model"], plain)
    name = "torchvision:ssdlite320_mobilenet_v3_large"
    with pytest.raises(UserError, match="expected weights of ssdlite.* with 91 classes; size mismatch"):
        find_detector(name, workspace, ("MODEL.WEIGHTS", str(plain))).make()


def test_torchvision_offline(workspace, monkeypatch, tmp_path):
    import urllib.request

    def no_network(*arguments, **keywords):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(UserError, match=r"needs its weights.*no network.*--opts MODEL.WEIGHTS FILE"):
        find_detector("torchvision", workspace).make()


# detectron2


class FakePredictor:
    """The parts of Detectron2's DefaultPredictor that the adapter reads."""

    def __init__(self, cfg):
        self.cfg, self.input_format = cfg, "BGR"
        self.seen: list[dict] = []
        self.aug = types.SimpleNamespace(get_transform=lambda image: self)

    def apply_image(self, image):
        return image[::2, ::2]

    def model(self, inputs):
        self.seen += inputs
        boxes = types.SimpleNamespace(tensor=torch.tensor([[1.0, 2.0, 30.0, 40.0], [0.0, 0.0, 5.0, 5.0]]))
        found = types.SimpleNamespace(
            pred_boxes=boxes, scores=torch.tensor([0.99, 0.97]), pred_classes=torch.tensor([19, 17])
        )
        found.to = lambda device: found
        return [{"instances": found} for _ in inputs]


@pytest.fixture
def fake_detectron2(monkeypatch):
    """A stand-in package that records its configuration."""

    class Node(types.SimpleNamespace):
        def merge_from_file(self, path):
            self.files.append(path)

        def merge_from_list(self, items):
            self.items += items

    def get_cfg():
        model = types.SimpleNamespace(
            ROI_HEADS=types.SimpleNamespace(), RETINANET=types.SimpleNamespace(), WEIGHTS="", DEVICE="cuda"
        )
        return Node(MODEL=model, files=[], items=[])

    modules = {
        "detectron2": types.ModuleType("detectron2"),
        "detectron2.model_zoo": types.SimpleNamespace(
            get_config_file=lambda name: f"zoo/{name}", get_checkpoint_url=lambda name: f"web/{name}"
        ),
        "detectron2.config": types.SimpleNamespace(get_cfg=get_cfg),
        "detectron2.engine": types.SimpleNamespace(DefaultPredictor=FakePredictor),
    }
    modules["detectron2"].model_zoo = modules["detectron2.model_zoo"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_detectron2_adapter(workspace, fake_detectron2):
    from prepare_data.detectors.detectron2_models import make

    detector = make(DetectorRequest("", {"MODEL.WEIGHTS": str(PLUG_IN)}, "cpu", workspace))
    predictor = detector._predictor
    assert predictor.cfg.files == ["zoo/COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml"]
    assert predictor.cfg.items == ["MODEL.WEIGHTS", str(PLUG_IN)]
    assert detector.default_threshold == 0.95
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = 200
    boxes, scores, labels = detector([image])[0]
    assert labels == ["cow", "horse"] and scores.tolist() == pytest.approx([0.99, 0.97])
    assert boxes[0].tolist() == [1, 2, 30, 40]
    seen = predictor.seen[0]
    assert (seen["height"], seen["width"], tuple(seen["image"].shape)) == (40, 60, (3, 20, 30))
    assert seen["image"].float().mean(dim=(1, 2)).tolist() == [0, 0, 200]  # red comes last in BGR


def test_detectron2_uses_the_zoo_without_weights(photos, workspace, fake_detectron2):
    from prepare_data.detectors.detectron2_models import make

    name = "COCO-Detection/retinanet_R_50_FPN_3x"
    found = make(DetectorRequest(name, {}, "auto", workspace))
    assert f"web/{name}.yaml" == found._predictor.cfg.MODEL.WEIGHTS
    metrics = run(config(detector="detectron2"), workspace)
    assert metrics["boxes"] == {"kept": 6, "other_label": 6}


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is not None, reason="Detectron2 is installed")
def test_detectron2_missing(photos, workspace):
    with pytest.raises(UserError, match="needs Detectron2; run: pip install"):
        run(config(detector="detectron2"), workspace)


@pytest.mark.parametrize(
    ("index", "name"),
    [(17, "horse"), (18, "sheep"), (19, "cow"), (21, "bear"), (23, "giraffe"), (16, "dog")],
)
def test_coco_order(index, name):
    assert COCO_CLASSES[index] == name and len(COCO_CLASSES) == 80


def test_provenance_names_the_images(photos, workspace):
    run(config(), workspace)
    assert list(input_hashes(workspace.root, workspace.table_path("images"))) == ["data/cow/images.parquet"]


def test_the_simulated_detector_is_called_so(workspace):
    assert find_detector("simulated", workspace).title.startswith("simulated (ground truth")
    assert find_detector("torchvision", workspace).title == "torchvision"
