"""save_masks: the masks table, its join, resume, what stays up to date, labels, measures, errors."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mask_plug_in import Red
from mask_world import BOXES, CONFIG, PLUG_IN, write_world
from PIL import Image

from prepare_data import mask_stage, save_boxes, save_masks
from prepare_data.mask_metrics import spread
from prepare_data.save_masks import Config, main, run
from wildshape import status
from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.formats.masks import decode_mask
from wildshape.stage import input_hashes, publish, up_to_date
from wildshape.tables import read_facts, table_hash

RED = f"{PLUG_IN}:Red"
QUALITY = [1.0, 1.0, 1.0, 400 / 600, np.nan]  # red pixels by pixels of the box; the last box has none


def config(**changes) -> Config:
    return Config(**{"category": "cow", "segmenter": RED, "batch_size": 2, **changes})


@pytest.fixture
def world(workspace):
    write_world(workspace)
    return workspace


def test_masks_and_their_quality_come_into_the_instances(world, capsys):
    metrics = run(config(), world)
    masks, instances = world.load("masks"), world.load("instances")
    assert masks["status"].tolist() == ["ok"] * 4 + ["no_mask"]
    assert masks["error"].tolist() == [None] * 4 + ["nothing red"]
    assert set(masks["segmenter"]) == {"mask_plug_in:Red"}
    np.testing.assert_allclose(instances["mask_quality"], QUALITY)
    assert instances["mask_rle"][4] is None
    expected = np.zeros((50, 60), np.uint8)
    expected[20:40, 10:30] = 1
    np.testing.assert_array_equal(decode_mask(instances["mask_rle"][1]), expected)
    assert json.loads(instances["mask_rle"][0])["size"] == [50, 60]
    # The masks' own boxes are the given ones, but for one that is half as wide again.
    assert metrics["box_iou"] == spread([1, 1, 1, 400 / 600])
    assert metrics["by_status"] == {"ok": 4, "no_mask": 1} and metrics["masks"] == 4
    assert metrics["quality"]["n"] == 4 and metrics["quality"]["p50"] == 1
    assert metrics["problems"] == ["no_mask: nothing red (1)"]
    assert read_json(world.metrics_path("save_masks"))["box_iou"]["mean"] == pytest.approx(11 / 12)
    out = capsys.readouterr().out
    assert out.startswith(
        "save_masks: 4 masks of 5 cow boxes by mask_plug_in:Red; 1 no_mask; "
        "mean quality 0.917, box IoU 0.917"
    )


def test_what_was_made_from_the_instances_does_not_go_stale(world):
    path = world.table_path("instances")
    before = read_facts(path)
    run(config(), world)
    after = read_facts(path)
    assert after["content"] == before["content"] and after["provenance"] == before["provenance"]
    assert up_to_date(path, CONFIG)  # the command that made the boxes has nothing to do
    again = run(config(), world)
    assert "seconds" not in again  # nor has this one


def test_boxes_that_are_found_again_keep_their_masks(world, capsys):
    run(config(), world)
    written = world.table_path("instances").stat().st_mtime_ns
    Red.calls.clear()
    run(config(), world)
    assert "(done before)" in capsys.readouterr().out
    assert world.table_path("instances").stat().st_mtime_ns == written
    # The same boxes, written again without masks, as a detector that runs again writes them.
    instances = write_world(world)
    assert world.load("instances")["mask_rle"].tolist() == [None] * 5
    run(config(), world)
    np.testing.assert_allclose(world.load("instances")["mask_quality"], QUALITY)
    # One box moves and keeps its id: it alone is segmented again.
    moved = instances["box_xyxy"].copy()
    moved[2, 2] -= 5
    publish(instances.with_columns(box_xyxy=moved), world.table_path("instances"), CONFIG)
    with pytest.raises(
        UserError, match="masks.parquet exists.*instances.parquet has changed since.*--overwrite"
    ):
        run(config(), world)
    assert not Red.calls or sum(map(sum, Red.calls)) == 0
    metrics = run(config(overwrite=True), world)
    [loaded] = [
        module
        for name, module in sys.modules.items()
        if name.startswith("segmenter_") and module.__file__ == str(PLUG_IN)
    ]
    assert metrics["reused"] == 4 and loaded.Red.calls[-1:] == [(1,)]
    assert decode_mask(world.load("instances")["mask_rle"][2]).sum() == 50
    assert "4 from before" in capsys.readouterr().out
    # With other settings nothing is taken over.
    with pytest.raises(UserError, match="shrink=None then, 1 now"):
        run(config(opts=("shrink", "1")), world)
    assert "reused" not in run(config(opts=("shrink", "1"), overwrite=True), world)
    assert decode_mask(world.load("instances")["mask_rle"][0]).sum() == 18 * 18


def test_boxes_stay_up_to_date_through_save_boxes(workspace, capsys):
    """From pictures: boxes, masks, boxes again."""
    write_world(workspace)
    workspace.table_path("instances").unlink()
    detector = f"{Path(__file__).with_name('plug_in.py')}:Squares"
    boxes = save_boxes.Config(category="cow", detector=detector)
    save_boxes.run(boxes, workspace)
    run(config(), workspace)
    capsys.readouterr()
    save_boxes.run(boxes, workspace)
    assert "(done before)" in capsys.readouterr().out
    assert all(mask is not None for mask in workspace.load("instances")["mask_rle"])
    save_boxes.run(save_boxes.Config(category="cow", detector=detector, overwrite=True), workspace)
    assert all(mask is None for mask in workspace.load("instances")["mask_rle"])
    run(config(), workspace)
    assert "(done before)" in capsys.readouterr().out
    assert all(mask is not None for mask in workspace.load("instances")["mask_rle"])


def test_a_stopped_run_ends_with_the_same_table(world, make_workspace, monkeypatch):
    run(config(), world)
    expected = table_hash(world.table_path("masks"))
    world.table_path("masks").unlink()
    write_world(world)
    monkeypatch.setattr(save_masks, "max", lambda *values: 2, raising=False)  # shards of two boxes
    real, calls = mask_stage.segment, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(mask_stage, "segment", stops)
    with pytest.raises(KeyboardInterrupt):
        run(config(), world)
    assert world.load("instances")["mask_rle"].tolist() == [None] * 5
    states = {
        state.step.title: state.state
        for state in map(lambda s: status.examine(world, s), status.steps(world))
    }
    assert states["masks"] == "unfinished"
    monkeypatch.setattr(mask_stage, "segment", real)
    metrics = run(config(), world)
    assert table_hash(world.table_path("masks")) == expected and metrics["masks"] == 4
    np.testing.assert_allclose(world.load("instances")["mask_quality"], QUALITY)


def test_a_killed_command_goes_on(world, tmp_path):
    """SIGKILL in the middle, as a user's machine does it."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import pathlib, time\nimport numpy as np\n"
        "def every(images, boxes):\n"
        "    time.sleep(.1)\n"
        "    with open(pathlib.Path(__file__).with_name('calls'), 'a') as log:\n"
        "        log.write('.')\n"
        "    return [[(np.ones(i.shape[:2], bool), 1.0)] * len(b) for i, b in zip(images, boxes)]\n"
    )
    write_world(world, BOXES * 30)
    command = [
        sys.executable, "-m", "prepare_data.save_masks", "--category", "cow", "--data-root",
        str(world.root), "--segmenter", f"{slow}:every", "--batch-size", "8",
    ]  # fmt: skip
    parts = world.table_path("masks").with_suffix(".parts")
    with subprocess.Popen(command) as process:
        deadline = time.time() + 60
        while not list(parts.glob("shard-*")) and process.poll() is None and time.time() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    done, calls = len(list(parts.glob("shard-*.parquet"))), tmp_path / "calls"
    assert done and not world.table_path("masks").exists()
    calls.unlink()
    subprocess.run(command, check=True, capture_output=True)
    assert len(calls.read_text()) == 19 - 8 * done  # 150 boxes in eights; 64 a shard
    assert len(world.load("masks")) == 150 and not parts.exists()
    assert set(world.load("instances")["mask_quality"]) == {1.0}


def test_the_order_and_size_of_batches_change_nothing(world):
    hashes = set()
    for batch_size, workers in ((1, 0), (5, 0), (3, 1)):
        run(config(batch_size=batch_size, workers=workers, overwrite=True), world)
        hashes.add(table_hash(world.table_path("masks")))
    assert len(hashes) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:ray")
def test_ray_makes_the_same_masks(world):
    pytest.importorskip("ray", reason="needs the extra wildshape[ray]")
    run(config(), world)
    expected = table_hash(world.table_path("masks"))
    world.table_path("masks").unlink()
    run(config(engine="ray", num_workers=1), world)
    assert table_hash(world.table_path("masks")) == expected


def test_labels_keep_the_masks_that_they_came_with(world, capsys):
    before = world.load("labels")
    metrics = run(config(labelled=True), world)
    labels = world.load("labels")
    assert labels["mask_rle"][0] == before["mask_rle"][0] and np.isnan(labels["mask_quality"][0])
    np.testing.assert_allclose(labels["mask_quality"][1:], QUALITY[1:])
    assert metrics["true_masks_kept"] == 1
    assert metrics["true_iou"]["n"] == 1 and metrics["true_iou"]["mean"] == 0.5
    # Two corners of three seen points; the hidden one lies outside.
    assert metrics["keypoints_inside"] == {
        "visible": pytest.approx(2 / 3), "visible_keypoints": 3, "labelled": 0.5, "labelled_keypoints": 4,
    }  # fmt: skip
    assert table_hash(world.table_path("labels")) == read_facts(world.table_path("labels"))["content"]
    assert not world.table_path("masks").exists()
    assert world.load("instances")["mask_rle"].tolist() == [None] * 5
    assert "1 true masks stay" in capsys.readouterr().out
    # Nor does --overwrite touch them; their own flag does.
    run(config(labelled=True, opts=("shrink", "1"), overwrite=True), world)
    assert world.load("labels")["mask_rle"][0] == before["mask_rle"][0]
    metrics = run(config(labelled=True, overwrite=True, replace_true_masks=True), world)
    assert decode_mask(world.load("labels")["mask_rle"][0]).sum() == 400
    assert metrics["true_iou"]["mean"] == 0.5  # measured before they are replaced
    assert "true_iou" not in run(config(labelled=True), world)  # a segmenter's mask is no truth
    assert read_json(world.metrics_path("save_masks_labelled"))["true_masks_kept"] == 0


def test_masks_of_imported_boxes_stay_too(world):
    table = world.load("instances")
    mask = world.load("labels")["mask_rle"][0]
    masked = table.with_columns(mask_rle=[mask, None, None, None, None])
    publish(masked, world.table_path("instances"), CONFIG)
    assert run(config(), world)["true_masks_kept"] == 1
    assert world.load("instances")["mask_rle"][0] == mask
    assert run(config(replace_true_masks=True), world)["true_masks_kept"] == 0
    np.testing.assert_allclose(world.load("instances")["mask_quality"], QUALITY)


def test_boxes_and_masks_that_cannot_be(world, capsys):
    boxes = [(0, (2, 2, 8, 18)), (1, (70, 5, 80, 10)), (2, (-5, 20, 35, 40)), (3, (10, 20, 30, 40))]
    write_world(world, boxes)
    (world.images_dir / "3.png").write_bytes(b"no picture")
    metrics = run(config(opts=("shrink", "1"), min_quality=0.9), world)
    masks = world.load("masks")
    assert masks["status"].tolist() == ["empty", "bad_box", "low_quality", "unreadable"]
    assert masks["mask_rle"].tolist() == [None] * 4
    assert masks["quality"][2] == pytest.approx(20 * 18 / (35 * 20))  # the box is cut at the picture's edge
    assert "expected an image in" in masks["error"][3]
    assert masks["error"][1] == "a box of no area in the image"
    assert metrics["masks"] == 0 and metrics["quality"] is None and metrics["box_iou"] is None
    assert "1 empty, 1 bad_box, 1 low_quality, 1 unreadable" in capsys.readouterr().out
    for path in world.images_dir.glob("*.png"):
        path.unlink()
    with pytest.raises(
        UserError, match="expected readable images; found none of 4 .*run: python prepare_data"
    ):
        run(config(overwrite=True), world)


def test_a_mask_of_probabilities(world):
    run(config(segmenter=f"{PLUG_IN}:probabilities"), world)
    assert decode_mask(world.load("instances")["mask_rle"][0]).sum() == 6


@pytest.mark.parametrize(
    ("segmenter", "opts", "message"),
    [
        ("seg", (), "expected torchvision, sam, sam2, grounded-sam, simulated or path/to/.*found seg"),
        ("none.py:X", (), "--segmenter: expected a Python file at none.py"),
        (f"{PLUG_IN}:Blue", (), "expected a class Blue; found Red, probabilities"),
        (RED, ("colour", "3"), "cannot be made with --opts"),
        (f"{PLUG_IN}:too_few", (), "expected 1 results, one an image; found 0"),
        (f"{PLUG_IN}:too_few_boxes", (), "expected 1 results, one a box; found 0"),
        (f"{PLUG_IN}:small_mask", (), r"a mask of numbers \[50, 60\], as the image; found bool \[3, 4\]"),
        (f"{PLUG_IN}:sure", (), "expected a quality in 0..1; found 1.5"),
        (f"{PLUG_IN}:bare", (), r"expected \(mask, quality\) or a text for each box; found int"),
        ("torchvision:fcos_resnet50_fpn", (), "--segmenter torchvision: expected a model among maskrcnn"),
        ("torchvision", ("MODEL.WEIGHTS", "no.pt"), "expected a file at no.pt"),
        ("simulated", (), "the simulated segmenter needs data/cow/truth.parquet"),
    ],
)  # fmt: skip
def test_segmenters_that_cannot_be_had(world, segmenter, opts, message):
    with pytest.raises(UserError, match=message):
        run(config(segmenter=segmenter, opts=opts, batch_size=1), world)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_quality": 2}, "--min_quality: expected 0 to 1; found 2"),
        ({"batch_size": 0}, "--batch_size: expected at least 1; found 0"),
        ({"matting_dir": Path("x")}, "--matting_dir: expected --matting"),
        ({"background": "cowish"}, "--background: expected a colour by name or as #rrggbb; found cowish"),
        ({"matting_size": 0}, "--matting_size: expected at least 1"),
        ({"matting_margin": 0.0}, "--matting_margin: expected over 0"),
        ({"feather": -1.0}, "--feather: expected 0 to 100"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_needs_boxes(workspace, capsys):
    assert main(["--category", "cow", "--data-root", str(workspace.root), "--segmenter", RED]) == 2
    assert "save_masks needs data/cow/instances.parquet for cow; run: python" in capsys.readouterr().err
    write_world(workspace, [])
    with pytest.raises(UserError, match="save_masks needs instances; found none"):
        run(config(), workspace)


def test_command_line(world, tmp_path):
    """As a user types it, from another directory; status tells of it."""
    script = Path(importlib.util.find_spec("prepare_data").origin).with_name("save_masks.py")
    assert "masks" not in {step.title for step in status.steps(world)}
    command = [
        sys.executable, str(script), "--category", "cow", "--data-root", str(world.root),
        "--segmenter", RED, "--opts", "quality", "0.5", "--visualize",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("save_masks: 4 masks of 5 cow boxes")
    state = next(status.examine(world, step) for step in status.steps(world) if step.title == "masks")
    assert state.state == "done"
    with Image.open(world.pictures_dir / "save_masks.png") as sheet:
        assert sheet.width == 4 * 196 + 4  # a tile for each mask
        colours = {colour for _, colour in sheet.getcolors(10**6)}
    # The red squares under the tint, and the outline.
    assert (255, 0, 70) in colours and (255, 0, 200) in colours
    world.table_path("instances").unlink()
    assert status.examine(world, state.step).detail == "data/cow/instances.parquet is gone"


def test_a_sheet_of_no_masks(world):
    metrics = run(config(segmenter=f"{PLUG_IN}:Red", opts=("shrink", "30"), visualize=True), world)
    assert metrics["masks"] == 0 and metrics["sheet"] is None


def test_inputs_of_the_masks(world):
    run(config(), world)
    facts = read_facts(world.table_path("masks"))["provenance"]
    assert facts["inputs"] == input_hashes(world.root, world.table_path("instances"))
    assert facts["config"]["segmenter"] == "mask_plug_in.py:Red" and facts["config"]["file hash"]


# grounded-sam: text to boxes to masks


def test_grounded_sam_finds_boxes_and_segments_them(workspace, monkeypatch, capsys):
    write_world(workspace)
    workspace.table_path("instances").unlink()
    asked = {}

    def stand_in(spec, workspace, opts, device):
        asked[spec] = tuple(opts)
        return real(RED, workspace, (), device)

    real = save_masks.find_segmenter
    monkeypatch.setattr(save_masks, "find_segmenter", stand_in)
    squares = f"{Path(__file__).with_name('plug_in.py')}:Squares"
    settings = config(segmenter="grounded-sam:some/model", text_detector=squares, opts=("x", "1"))
    run(settings, workspace)
    assert asked == {"sam:some/model": ("x=1",)}
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("save_boxes: 4 cow boxes") and out[1].startswith(
        "save_masks: 4 masks of 4 cow"
    )
    with pytest.raises(UserError, match="cannot be made with --opts {'text': 'Moo.'}"):
        run(
            config(segmenter="grounded-sam", text_detector=squares, opts=("text", "Moo."), overwrite=True),
            workspace,
        )
    with pytest.raises(UserError, match="expected web images, whose boxes it finds; found --labelled"):
        run(config(segmenter="grounded-sam", labelled=True), workspace)
