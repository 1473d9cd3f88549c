"""The whole sequence in miniature, from metadata on a localhost server to a report and predictions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny_models import save_tiny

import wildshape
from acsm.predict import ShapePredictor
from wildshape import demo, predict, status
from wildshape.cli import main
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.tables import read_table
from wildshape.workspace import Workspace

TABLES = {"images": "images", "instances": "instances", "labels": "labels", "truth": "labels"}
KEYPOINTS = ("pose", "pose_aux", "pose_mt", "acsm", "truth")
ARMS = ("labels", "cf_cm", "ceiling")


def run_demo(root):
    workspace = Workspace(root, "horse", "demo")
    workspace.mark()
    demo.run(demo.Config(data_root=root, miniature=True), workspace)
    return workspace


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests must not change it."""
    return run_demo(tmp_path_factory.mktemp("demo"))


def columns(path, kind):
    table = read_table(path, kind)
    return {name: np.asarray(value) for name, value in table.columns.items()}


def assert_same_results(one, two):
    places = [(w.table_path(n), kind) for n, kind in TABLES.items() for w in (one, two)]
    places += [(w.keypoints_path(n), "keypoints") for n in KEYPOINTS for w in (one, two)]
    for (first, kind), (second, _) in zip(places[::2], places[1::2]):
        old, new = columns(first, kind), columns(second, kind)
        old.pop("url", None)  # the port of the server is the folder's
        for name, value in old.items():
            np.testing.assert_array_equal(value, new[name], err_msg=f"{first.name} {name}")
    for model in ("pose", "pose_aux", *(f"acsm/{arm}" for arm in ARMS)):
        first, second = (
            torch.load(w.checkpoint_dir(model) / "last.pt", weights_only=True)["model"] for w in (one, two)
        )
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=f"{model} {name}")


def test_a_run_leaves_tables_models_measures_and_a_report(finished):
    images, instances = (read_table(finished.table_path(n), n) for n in ("images", "instances"))
    assert len(images) >= 36 and len(instances) >= 20
    assert set(instances["image_id"]) <= set(images["image_id"])
    for name in KEYPOINTS[:2]:
        assert len(finished.load_keypoints(name)) == len(instances)
    for criterion in ("kpconf", "cf_mt", "cf_cm", "cf_cm2", "cf_all"):
        chosen = read_table(finished.selection_path(criterion, 10), "selections")
        assert len(set(chosen["instance_id"])) == 10
        assert set(chosen["instance_id"]) <= set(instances["instance_id"])
    for arm in ARMS:
        measured = json.loads(finished.metrics_path(f"acsm_{arm}_test").read_text())
        assert measured["instances"] == 12 and 0 <= measured["auc"] <= 100
        assert 0 <= measured["camera_error_deg"] <= 180
    assert finished.report_path.stat().st_size > 100_000
    states = status.run(status.Config(category="horse", name="demo", data_root=finished.root), finished)
    assert set(states.values()) == {"done"}


def test_running_again_changes_nothing(finished):
    outputs = [finished.table_path(n) for n in TABLES] + [finished.keypoints_path(n) for n in KEYPOINTS]
    outputs += [finished.checkpoint_dir(f"acsm/{arm}") / "best.pt" for arm in ARMS]
    before = [path.stat().st_mtime_ns for path in outputs]
    run_demo(finished.root)
    assert [path.stat().st_mtime_ns for path in outputs] == before


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_the_same(finished, tmp_path):
    shutil.copytree(finished.data_dir, tmp_path / "data" / "horse")
    code = "import sys; from wildshape.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "demo", "--miniature", "--data-root", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
    )
    workspace = Workspace(tmp_path, "horse", "demo")
    reached = workspace.checkpoint_dir("acsm/labels") / "last.pt"
    end = time.monotonic() + 120
    while not reached.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not workspace.report_path.exists()
    run_demo(tmp_path)
    assert_same_results(finished, workspace)


@pytest.mark.slow
def test_tokens_of_a_diffusion_model_are_a_further_second_opinion(finished, tmp_path):
    pytest.importorskip("diffusers", reason="needs the extra diffusion")
    model = save_tiny(tmp_path / "model")
    root = tmp_path / "demo"
    shutil.copytree(finished.root, root)
    config = demo.Config(
        name="tokens", data_root=root, miniature=True, tokens=model,
        filter="cf_cm_zero123plus", rounds=2,
    )  # fmt: skip
    workspace = Workspace(root, "horse", "tokens")
    demo.run(config, workspace)
    for place in (workspace, workspace.sibling(name="tokens-round2")):
        assert len(place.load_keypoints("zero123plus")) == len(place.load("instances"))
        assert len(place.load_keypoints("zero123plus_labelled")) > 0
        chosen = read_table(place.selection_path("cf_cm_zero123plus", 10), "selections")
        other = read_table(place.selection_path("cf_cm", 10), "selections")
        assert set(chosen["instance_id"]) != set(other["instance_id"])
        assert (place.checkpoint_dir("acsm/cf_cm_zero123plus") / "best.pt").exists()
    learnt = json.loads(workspace.metrics_path("zero123plus_tokens").read_text())
    assert learnt["crops"] == learnt["matted"] > 10


@pytest.mark.slow
def test_a_second_round_learns_from_the_selection_of_the_first(finished, capsys):
    first = [path for path in finished.run_dir.rglob("*") if path.suffix == ".pt"]
    first += [*finished.run_dir.glob("keypoints/*.parquet"), *finished.run_dir.glob("selections/*.parquet")]
    before = {path: path.stat().st_mtime_ns for path in first}
    config = demo.Config(data_root=finished.root, miniature=True, rounds=2)
    timings = demo.run(config, finished)
    assert {path: path.stat().st_mtime_ns for path in first} == before
    second = finished.sibling(name="demo-round2")
    for model in ("pose", "pose_aux"):
        manifest = json.loads((second.checkpoint_dir(model) / "manifest.json").read_text())
        assert f"runs/demo/keypoints/{model}.parquet" in manifest["inputs"]
        assert f"runs/demo/checkpoints/{model}/best.pt" in manifest["inputs"]
        assert manifest["config"]["web_images_num"] == 10 and manifest["config"]["pl_source"] == model
        old, new = (columns(w.keypoints_path(model), "keypoints") for w in (finished, second))
        assert old["instance_id"].tolist() == new["instance_id"].tolist()
        assert not np.array_equal(old["xy"], new["xy"])
    shapes = read_table(second.keypoints_path("acsm"), "keypoints")
    assert len(shapes) == len(read_table(finished.table_path("instances"), "instances"))
    assert not second.checkpoint_dir("acsm/labels").exists()
    compared = json.loads(finished.comparison_path("test").with_suffix(".json").read_text())
    assert list(compared["measures"]["auc"]) == ["demo/labels", "demo/cf_cm", "demo-round2/cf_cm"]
    assert "round 2: train pose network" in timings and second.report_path.exists()
    states = status.run(
        status.Config(category="horse", name="demo-round2", data_root=finished.root), second
    )
    assert set(states.values()) == {"done"}
    capsys.readouterr()
    demo.run(config, finished)
    assert "(done before)" in capsys.readouterr().out


DETECTOR = """
import numpy as np

class Fixed:
    default_threshold = 0.5

    def __call__(self, images):
        boxes = np.array([[4, 4, 60, 60], [0, 0, 90, 70], [10, 10, 10, 40], [5, 5, 50, 50], [8, 8, 70, 60]])
        labels = ["horse", " Horse", "horse", "horse", "cow"]
        return [(boxes, np.array([0.6, 0.9, 0.99, 0.4, 0.99]), labels) for _ in images]
"""


def test_predicting_photos(finished, tmp_path, capsys):
    photo = next(iter(sorted(finished.images_dir.rglob("*.jpg"))))
    (tmp_path / "fixed.py").write_text(DETECTOR)
    flags = ["predict", "--category", "horse", "--name", "demo", "--data-root", str(finished.root)]
    flags += ["--detector", f"{tmp_path / 'fixed.py'}:Fixed", "--out", str(tmp_path / "out"), str(photo)]
    assert main(flags) == 0
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())[str(photo)]
    # By falling score and without the unsure, the empty and the other animal's; pixel centres are whole.
    assert [item["box_xyxy"] for item in found] == [[-0.5, -0.5, 89.5, 69.5], [3.5, 3.5, 59.5, 59.5]]
    model = wildshape.load("horse", name="demo", data_root=finished.root)
    direct = model.predict(read_image(photo), np.array(found[1]["box_xyxy"]))
    names = finished.category.skeleton.keypoints
    np.testing.assert_allclose(list(found[1]["keypoints"].values()), direct.keypoints, atol=1e-3)
    assert tuple(found[1]["keypoints"]) == names and direct.overlay.shape == read_image(photo).shape
    mesh = (tmp_path / "out" / found[1]["mesh"]).read_text().splitlines()
    assert sum(line.startswith("v ") for line in mesh) == len(direct.vertices)
    assert sum(line.startswith("f ") for line in mesh) == len(direct.faces)
    assert main(flags) == 2
    assert "is not empty; add --overwrite" in capsys.readouterr().err
    with pytest.raises(UserError, match="--box: expected x1 y1 x2 y2"):
        model.predict(read_image(photo), np.array([5, 5, 5, 9]))
    assert predict.best_arm(finished) in ("labels", "cf_cm")


def test_photos_of_one_name_and_unreadable_ones(finished, tmp_path, capsys, monkeypatch):
    photos = sorted(finished.images_dir.rglob("*.jpg"))[:2]
    for folder, photo in zip(("a", "b"), photos):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photo.jpg").write_bytes(photo.read_bytes())
    (tmp_path / "a/broken.jpg").write_bytes(b"none")
    out = tmp_path / "out"
    flags = ["predict", "--category", "horse", "--name", "demo", "--data-root", str(finished.root)]
    flags += ["--device", "cpu", "--out", str(out)]
    given = [str(tmp_path / name) for name in ("a/photo.jpg", "a/broken.jpg", "b/photo.jpg", "a/photo.jpg")]
    assert main([*flags, given[1]]) == 2
    assert "expected an image in" in capsys.readouterr().err
    made = []
    load = ShapePredictor.from_checkpoint
    monkeypatch.setattr(
        ShapePredictor,
        "from_checkpoint",
        lambda *args, **kwargs: made.append(kwargs["device"]) or load(*args, **kwargs),
    )
    assert main([*flags, *given]) == 0
    printed = capsys.readouterr().out
    assert f"{given[1]}: left out: expected an image" in printed and "; 1 could not be read" in printed
    assert made == ["cpu"]
    found = json.loads((out / "predictions.json").read_text())
    assert list(found) == [given[0], given[2]]
    meshes = [found[name][0]["mesh"] for name in (given[0], given[2])]
    assert meshes == ["photo_0.obj", "photo-2_0.obj"]
    assert len({(out / mesh).read_text() for mesh in meshes}) == 2
