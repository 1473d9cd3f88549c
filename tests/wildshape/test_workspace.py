from pathlib import Path

import pytest

from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.tables import Table, write_table
from wildshape.workspace import TABLES, Workspace, find_root


def test_data_is_by_category_and_results_by_run(tmp_path):
    workspace = Workspace(tmp_path, "cow", "trial")
    paths = [
        workspace.table_path("labels"),
        workspace.images_dir,
        workspace.labelled_images_dir,
        workspace.metadata_dir,
        workspace.keypoints_path("pose_mt"),
        workspace.shapes_path(),
        workspace.selection_path("cf_mt", 100),
        workspace.checkpoint_dir("acsm/labels"),
        workspace.metrics_path("pose-train"),
        workspace.pictures_dir,
        workspace.report_path,
        workspace.summary_path,
    ]
    assert [path.relative_to(workspace.root).as_posix() for path in paths] == [
        "data/cow/labels.parquet",
        "data/cow/images",
        "data/cow/labelled_images",
        "data/cow/metadata",
        "runs/trial/keypoints/pose_mt.parquet",
        "runs/trial/shapes/acsm.parquet",
        "runs/trial/selections/cf_mt_100.parquet",
        "runs/trial/checkpoints/acsm/labels",
        "runs/trial/metrics/pose-train.json",
        "runs/trial/pictures",
        "runs/trial/report.html",
        "runs/trial/metrics.json",
    ]
    assert not any(tmp_path.iterdir()), "asking for a path makes nothing"
    assert Workspace(tmp_path, "cow").name == "cow"
    assert workspace.sibling("horse").data_dir == workspace.root / "data/horse"
    with pytest.raises(ValueError, match="expected a table among"):
        workspace.table_path("joints")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "../x"])
def test_a_runs_name_is_a_plain_name(tmp_path, name):
    with pytest.raises(UserError, match="--name: expected a plain name; found"):
        Workspace(tmp_path, "cow", name)


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_table_names_the_command_that_makes_it(workspace, table):
    with pytest.raises(
        UserError, match=rf"pose-train needs data/cow/{table}\.parquet for cow; run: .*--category cow"
    ):
        workspace.load(table, "pose-train")


def test_missing_keypoints_name_the_command_that_makes_them(make_workspace):
    with pytest.raises(UserError) as error:
        make_workspace("cow").load_keypoints("pose_aux", "cf_cm")
    expected = (
        "cf_cm needs keypoints/pose_aux for cow; run: python pose/generate_pl.py --category cow --is_aux"
    )
    assert str(error.value) == expected
    with pytest.raises(UserError, match=r"acsm/generate_pl\.py --category cow --name two$"):
        make_workspace("cow", "two").load_keypoints("acsm", "cf_cm2")
    with pytest.raises(UserError, match="run: the stage that predicts it"):
        make_workspace("cow").load_keypoints("mine")


def test_tables_are_loaded_by_their_kind(workspace):
    write_table(Table.empty("images"), workspace.table_path("labelled_images"))
    assert workspace.load("labelled_images").kind == "images"
    write_table(Table.empty("keypoints", num_keypoints=4), workspace.keypoints_path("pose"))
    assert workspace.load_keypoints("pose")["xy"].shape == (0, 4, 2)


def test_files_are_named_relative_to_the_root_where_they_lie_under_it(workspace, tmp_path):
    inside = workspace.images_dir / "a.jpg"
    assert workspace.relative(inside) == "data/cow/images/a.jpg"
    assert workspace.image_file("data/cow/images/a.jpg") == inside
    outside = tmp_path.parent / "elsewhere.jpg"
    assert workspace.image_file(workspace.relative(outside)) == outside.resolve()


def test_metrics_are_written_as_json(workspace):
    workspace.write_metrics("pose-evaluate", {"pck@0.1": float("nan"), "n": 3})
    assert read_json(workspace.metrics_path("pose-evaluate")) == {"pck@0.1": None, "n": 3}


def test_the_root_is_found_upwards(tmp_path, monkeypatch):
    monkeypatch.delenv("WILDSHAPE_ROOT", raising=False)
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_root() == Path.cwd()
    Workspace(tmp_path / "a", "cow").mark()
    assert find_root() == (tmp_path / "a").resolve()
    monkeypatch.setenv("WILDSHAPE_ROOT", str(tmp_path))
    assert find_root() == tmp_path.resolve()


def test_a_checkout_is_a_root(tmp_path, monkeypatch):
    monkeypatch.delenv("WILDSHAPE_ROOT", raising=False)
    (tmp_path / "wildshape").mkdir()
    (tmp_path / "wildshape/category.py").touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "pose").mkdir()
    monkeypatch.chdir(tmp_path / "pose")
    assert find_root() == tmp_path.resolve()
