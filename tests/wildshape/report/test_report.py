import html.parser
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from small_run import make_run

from wildshape.cli import COMMANDS
from wildshape.errors import UserError
from wildshape.report import command
from wildshape.report.analysis import Selected
from wildshape.report.build import build_report
from wildshape.report.funnel import FunnelStep, count_funnel
from wildshape.report.inputs import read_inputs
from wildshape.report.pictures import Budget
from wildshape.report.quality import selection_quality
from wildshape.report.ranking import rank_all
from wildshape.report.sections import labels
from wildshape.workspace import Workspace

ANCHORS = ("headline", "funnel", "quality", "examples", "pose", "shape", "training", "run", "appendix")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The root of a finished run."""
    root = tmp_path_factory.mktemp("whole")
    make_run(Workspace(root, "cow"))
    return root


@pytest.fixture
def run(whole, tmp_path) -> Workspace:
    """A finished run that a test may spoil."""
    shutil.copytree(whole, tmp_path / "root")
    return Workspace(tmp_path / "root", "cow")


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; complains of tags that do not close."""

    VOID = {"meta", "img", "br", "link", "path", "rect", "circle"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def read(workspace: Workspace) -> Page:
    page = Page(workspace.report_path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_of_a_whole_run(run):
    summary = build_report(run)
    page = read(run)
    assert [name for name in page.ids if name in ANCHORS] == list(ANCHORS)
    assert "No clear" not in page.words and summary["verdict"]["text"] in page.words
    assert summary["verdict"]["tone"] == "good"
    assert "Run:" not in page.words, "a whole run waits for nothing"
    for words in (
        "borderline",
        "labels + 20 pseudo-labels (CF-CM)",
        "gone (404)",
        "train pose network",
        "CF-CM), test animals: the photo",
        "after learning from arm cf_cm",
        "2D networks, as each arm's encoder: training loss",
    ):
        assert words in page.words
    tiles = [value for name, value in page.attributes if name == "src" and value]
    assert len(tiles) == 4 * 3 * 6 + 1
    assert run.report_path.stat().st_size < 5e6


def test_the_page_needs_nothing_beside_it(run):
    build_report(run)
    page = read(run)
    loads = [v for name, v in page.attributes if name in ("src", "href", "data", "srcset", "poster") and v]
    assert loads and all(value.startswith(("data:image/jpeg;base64,", "#")) for value in loads)
    text = run.report_path.read_text(encoding="utf-8")
    assert "@import" not in text and "url(" not in text and "fetch(" not in text


def test_the_summary_holds_the_numbers(run):
    build_report(run)
    summary = json.loads(run.summary_path.read_text())
    assert [arm["role"] for arm in summary["arms"]] == ["labels", "selected", "ceiling"]
    assert summary["arms"][1]["auc_over_labels"] == pytest.approx(5.7)
    assert summary["quality"]["all"]["instances"] == 60
    assert summary["quality"]["all"]["without_truth"] == 3
    assert set(summary["quality"]["selections"]) == {
        f"{c}_20" for c in ("kpconf", "cf_mt", "cf_cm", "cf_cm2", "random")
    }
    assert summary["stages"]["pose_test"]["instances"] == 312
    assert summary["timings"]["draw"] == 3.0
    assert summary["training"]["acsm/cf_cm"]["steps"] == 1000


def test_funnel_steps_account_for_every_row(run):
    steps = {step.key: step for step in count_funnel(read_inputs(run))}
    for step in steps.values():
        if step.total is not None:
            assert step.kept + sum(step.losses.values()) == step.total, step.key
    images = read_inputs(run).tables["images"]
    assert steps["matched"].kept == len(images)
    assert steps["downloaded"].losses["gone (404)"] == (images["status"] == "not_found").sum()
    assert steps["distinct"].kept == (images["status"] == "ok").sum()
    assert steps["distinct"].losses == {
        "near-duplicates of another": (images["status"] == "duplicate").sum(),
        "also in the labelled set": (images["status"] == "in_labels").sum(),
    }
    assert steps["instances"].kept == steps["keypoints"].kept == 60
    assert steps["selected_cf_mt_20"] == FunnelStep(
        "selected_cf_mt_20", "selected by CF-MT", "animals", 60, 20, {"ranked lower": 40}
    )


def test_the_same_bytes_at_two_addresses_lose_no_animal(run):
    inputs = read_inputs(run)
    images = inputs.tables["images"]
    first, twin = np.flatnonzero(images["image_id"] == inputs.tables["instances"]["image_id"][0])[0], 3
    ids, status = images["image_id"].copy(), images["status"].copy()
    ids[twin], status[twin] = ids[first], "duplicate"
    inputs.tables["images"] = images.with_columns(image_id=ids, status=status)
    steps = {step.key: step for step in count_funnel(inputs)}
    assert steps["keypoints"].kept == 60 and steps["keypoints"].losses == {}


def test_selection_quality_is_that_of_the_table(run):
    summary = build_report(run)
    found = selection_quality(run, "cf_cm", 20)
    assert found == pytest.approx(100 * summary["quality"]["selections"]["cf_cm_20"]["pck"]["0.10"])
    with pytest.raises(UserError, match=r"--filter cf_cm --selection_num 21"):
        selection_quality(run, "cf_cm", 21)


def test_rankings_begin_with_the_selections(run):
    inputs = read_inputs(run)
    rankings = rank_all(inputs)
    assert set(rankings) == {"kpconf", "cf_mt", "cf_cm", "cf_cm2", "cf_all"}
    for name, ranking in rankings.items():
        assert ranking.complete and len(ranking.ids) == 60
        if name != "cf_all":  # which made no selection
            assert ranking.ids[:20].tolist() == inputs.selections[f"{name}_20"]["instance_id"].tolist()


def test_the_weights_of_combined_sources_are_told():
    facts = {"weights": {"pose": 0.25, "acsm": 0.75}, "val_animals": 31, "note": ""}
    plain = {**facts, "val_animals": 0, "note": "equal weights: no labelled photos"}
    metrics = {"selection_cf_all_20": facts, "selection_cf_all_9": plain, "selection_cf_mt_20": {}}
    chosen = [Selected("cf_all_20", "cf_all", 20), Selected("cf_all_9", "cf_all", 9)]
    chosen.append(Selected("cf_mt_20", "cf_mt", 20))
    analysis = SimpleNamespace(selections=chosen, inputs=SimpleNamespace(metrics=metrics))
    assert labels._weights(analysis) == [
        "CF-All, 20, weighs pose 0.25, acsm 0.75: fitted on 31 labelled animals of val.",
        "CF-All, 9, weighs pose 0.25, acsm 0.75: equal weights: no labelled photos.",
    ]


def test_a_run_without_anything(workspace):
    build_report(workspace)
    page = read(workspace)
    assert "python prepare_data/search_metadata.py --category cow" in page.words
    assert "python acsm/evaluate.py --category cow" in page.words
    assert "No verdict yet" in page.words


@pytest.mark.parametrize(
    "absent",
    [
        "data/cow/instances.parquet", "data/cow/images.parquet", "data/cow/candidates.parquet",
        "data/cow/labels.parquet", "data/cow/images", "runs/cow/keypoints",
        "runs/cow/keypoints/truth.parquet", "runs/cow/keypoints/pose.parquet",
        "runs/cow/keypoints/pose_aux.parquet", "runs/cow/selections",
        "runs/cow/metrics", "runs/cow/checkpoints", "runs/cow/pictures",
    ],
)  # fmt: skip
def test_a_run_without_a_part(run, absent):
    place = run.root / absent
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    build_report(run)
    read(run)


def test_without_truth_it_says_so(run):
    run.keypoints_path("truth").unlink()
    summary = build_report(run)
    assert summary["quality"] == {"available": False}
    assert "There is no ground truth for these web images" in " ".join(read(run).words.split())


def test_without_a_ceiling_the_page_speaks_of_none(run):
    said = "with the true labels of the same web images in their place"
    build_report(run)
    assert said in " ".join(read(run).words.split())
    for file in run.metrics_path("x").parent.glob("acsm_*.json"):
        if "ceiling" in file.name or "truth" in file.name:
            file.unlink()
    summary = build_report(run)
    assert [arm["role"] for arm in summary["arms"]] == ["labels", "selected"]
    words = " ".join(read(run).words.split())
    assert said not in words and "There is no ceiling" in words


def test_files_that_cannot_be_read_are_named(run):
    run.table_path("labels").write_bytes(b"no parquet")
    run.metrics_path("pose_test").write_text("{")
    (run.checkpoint_dir("pose") / "manifest.json").write_text("[")
    (run.pictures_dir / "broken.png").write_bytes(b"no picture")
    summary = build_report(run)
    assert len(summary["problems"]) == 3
    words = read(run).words
    assert "labels.parquet" in words and "expected JSON" in words


def test_names_cannot_break_the_page(run):
    name = run.pictures_dir / "acsm_x.png"
    shutil.copy(next(run.pictures_dir.glob("*.png")), name)
    name.with_suffix(".json").write_text(json.dumps({"caption": "<script>alert(1)</script>"}))
    build_report(run)
    text = run.report_path.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_turning_animals_and_3d_files_are_shown_and_linked(run):
    build_report(run)
    before = read(run)
    assert "gallery" not in before.ids and "Animals to turn" not in before.words
    folder = run.pictures_dir / "acsm_cf_cm_test"
    folder.mkdir(parents=True)
    red, blue = (Image.new("RGB", (90, 30), colour) for colour in ("red", "blue"))
    red.save(folder / "d1 & #2.gif", save_all=True, append_images=[blue])
    for name in ("d1 & #2.mp4", "d1 & #2.glb", "d3.glb", "broken.gif", "broken.glb"):
        (folder / name).write_bytes(b"x")
    (run.pictures_dir / "empty").mkdir()
    red.save(run.pictures_dir / "zero123plus_points.png")
    build_report(run)
    page = read(run)
    assert page.ids.count("gallery") == 1 and "empty" not in page.words
    links = [value for name, value in page.attributes if name == "href" and not value.startswith("#")]
    places = [run.report_path.parent / unquote(link) for link in links]
    assert all(place.is_file() for place in places)
    assert sorted(place.name for place in places) == sorted(path.name for path in folder.iterdir())
    # One GIF can be read: its first picture stands for it. The points are shown once.
    shown = [value for name, value in page.attributes if name == "alt"]
    assert shown.count("d1 & #2") == 1 and "broken" not in shown
    assert sum("diffusion model found" in (words or "") for words in shown) == 1
    assert "zero123plus points" not in page.words
    assert "d3: 3D file (GLB)" in page.words
    assert "d1 & #2: turning (GIF), film (MP4), 3D file (GLB)" in page.words


def test_the_caption_of_a_model_trained_with_masks(run):
    words = "each pixel in the colour of its place on the animal"
    build_report(run)
    assert words not in read(run).words
    manifest = run.checkpoint_dir("acsm/cf_cm") / "manifest.json"
    facts = json.loads(manifest.read_text())
    facts["config"]["supervise"] = "both"
    manifest.write_text(json.dumps(facts))
    build_report(run)
    assert words in read(run).words


def test_pictures_stay_within_the_budget():
    picture = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    budget = Budget(10_000)
    embedded = [budget.embed(picture, "x") for _ in range(4)]
    kept = [p for p in embedded if p is not None]
    assert 0 < len(kept) < 4 and budget.refused == 4 - len(kept)
    assert sum(len(p.source) for p in kept) < 10_200


def test_the_command(run, capsys):
    assert COMMANDS["report"][0] == "wildshape.report.command"
    assert command.main(["--category", "cow", "--data-root", str(run.root)]) == 0
    out = capsys.readouterr().out
    assert "Pseudo-labels help" in out and re.search(r"wrote runs/cow/report.html \(\d\.\d MB\)", out)
