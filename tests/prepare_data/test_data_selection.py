import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prepare_data.data_selection import Config, main, run
from pseudolabels.candidates import gather_candidates, stack_transforms
from pseudolabels.train_tokens import unlabelled
from wildshape import status, training_data
from wildshape.errors import UserError
from wildshape.report.inputs import read_inputs
from wildshape.report.ranking import rank_all
from wildshape.tables import TRANSFORMS, Table, make_record_id, read_table, write_table
from wildshape.training_data import selection as training_selection

K = 16


def instances_table(count, images=None):
    return Table.from_rows(
        "instances",
        [
            {
                "instance_id": f"a{number:02d}",
                "image_id": f"i{number:02d}" if images is None else images[number],
                "category": "cow",
                "source_id": None,
                "box_xyxy": np.array([10.0, 10.0, 74.0, 74.0]),
                "score": 0.9,
                "detector": "test",
                "mask_rle": None,
                "flags": "",
            }
            for number in range(count)
        ],
    )


def keypoints_table(ids, xy, transform="none", confidence=None):
    count = len(ids)
    confidence = np.full((count, K), 0.5) if confidence is None else confidence
    columns = {"instance_id": ids, "transform": [transform] * count, "xy": xy, "confidence": confidence}
    return Table("keypoints", columns, {"skeleton": "quadruped16"})


def image_row(number, status="ok", path=None):
    return {
        "record_id": make_record_id("test", str(number)),
        "image_id": f"i{number:02d}",
        "path": path,
        "source": "test",
        "status": status,
        "width": 80,
        "height": 80,
    }


@pytest.fixture
def cows(workspace):
    """Ten cows; the auxiliary keypoints of cow n are n pixels off, its confidence falls with n."""
    rng = np.random.default_rng(0)
    instances = instances_table(10)
    xy = rng.uniform(15, 70, (10, K, 2))
    ids = instances["instance_id"]
    off = xy + np.stack([np.arange(10.0), np.zeros(10)], axis=-1)[:, None]
    confidence = np.repeat(np.linspace(0.9, 0.1, 10)[:, None], K, axis=1)
    write_table(instances, workspace.table_path("instances"))
    write_table(keypoints_table(ids, xy, confidence=confidence), workspace.keypoints_path("pose"))
    write_table(keypoints_table(ids, off), workspace.keypoints_path("pose_aux"))
    return workspace


def config(**changes):
    return Config(**{"category": "cow", "filter": "cf_cm", "selection_num": 4, **changes})


def chosen(workspace, name, count):
    return read_table(workspace.selection_path(name, count), "selections")


def test_selects_the_most_consistent(cows, capsys):
    facts = run(config(), cows)
    selection = chosen(cows, "cf_cm", 4)
    assert selection["instance_id"].tolist() == ["a00", "a01", "a02", "a03"]
    assert selection["rank"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(selection["value"], np.arange(4) * 256 / 64)
    assert (selection["criterion"] == "cf_cm").all()
    assert facts["candidates"] == 10 and facts["selected"] == 4
    assert json.loads(cows.metrics_path("selection_cf_cm_4").read_text())["last_value"] == 12.0
    assert "4 of 10 candidates by CF-CM, value 0 to 12" in capsys.readouterr().out


def test_cf_cm_compares_with_another_source(cows, capsys):
    ids = cows.load("instances")["instance_id"]
    pose = read_table(cows.keypoints_path("pose"), "keypoints")
    off = pose["xy"] + np.stack([9 - np.arange(10.0), np.zeros(10)], axis=-1)[:, None]
    with pytest.raises(UserError, match=r"cf_cm_zero123plus needs keypoints/zero123plus .*generate_pl.py"):
        run(config(aux="zero123plus"), cows)
    write_table(keypoints_table(ids[:9], off[:9]), cows.keypoints_path("zero123plus"))
    facts = run(config(aux="zero123plus", visualize=True), cows)
    selection = chosen(cows, "cf_cm_zero123plus", 4)
    assert selection["instance_id"].tolist() == ["a08", "a07", "a06", "a05"]
    np.testing.assert_allclose(selection["value"], np.arange(1, 5) * 256 / 64)
    assert set(selection["criterion"]) == {"cf_cm_zero123plus"}
    assert facts["dropped"] == {"without keypoints/zero123plus": 1}
    assert facts["picture"].endswith("selection_cf_cm_zero123plus_4.png")
    assert "by CF-CM with zero123plus" in capsys.readouterr().out
    assert not cows.selection_path("cf_cm", 4).exists()
    assert training_selection(cows, "cf_cm_zero123plus", 3)[0]["instance_id"].tolist() == [
        "a08",
        "a07",
        "a06",
    ]
    run(config(aux="pose_aux"), cows)  # the published second source, by name
    assert chosen(cows, "cf_cm", 4)["instance_id"].tolist() == ["a00", "a01", "a02", "a03"]
    with pytest.raises(UserError, match="--aux: expected --filter cf_cm with it; found --filter kpconf"):
        run(config(filter="kpconf", aux="zero123plus"), cows)
    with pytest.raises(
        UserError, match="--aux: expected another source .* than the pose network; found pose"
    ):
        run(config(aux="pose"), cows)


def test_the_file_is_named_as_typed(cows):
    run(config(filter="KP-Conf"), cows)
    selection = chosen(cows, "kp_conf", 4)
    assert (selection["criterion"] == "kpconf").all()
    assert selection["instance_id"].tolist() == ["a00", "a01", "a02", "a03"]


def test_a_second_run_keeps_the_file_and_another_setting_is_refused(cows):
    run(config(filter="random", seed=1), cows)
    path = cows.selection_path("random", 4)
    before = path.stat().st_mtime_ns
    run(config(filter="random", seed=1), cows)
    assert path.stat().st_mtime_ns == before
    first = chosen(cows, "random", 4)["instance_id"].tolist()
    with pytest.raises(UserError, match=r"seed=1 then, 2 now.*--overwrite"):
        run(config(filter="random", seed=2), cows)
    run(config(filter="random", seed=2, overwrite=True), cows)
    assert chosen(cows, "random", 4)["instance_id"].tolist() != first


def test_all_takes_every_candidate(cows):
    run(config(filter="all", selection_num=None), cows)
    assert chosen(cows, "all", 10)["instance_id"].tolist() == [f"a{n:02d}" for n in range(10)]


def test_too_few_candidates(cows):
    with pytest.raises(UserError, match=r"selection_num 11 needs 11 candidates; found 10"):
        run(config(selection_num=11), cows)
    with pytest.raises(UserError, match="1 or more; found 0"):
        run(config(selection_num=0), cows)
    assert not cows.selection_path("cf_cm", 11).exists()


def test_missing_sources_say_what_makes_them(cows, workspace, capsys):
    cows.keypoints_path("pose_aux").unlink()
    message = (
        r"cf_cm needs keypoints/pose_aux for cow; run: python pose/generate_pl.py --category cow --is_aux"
    )
    with pytest.raises(UserError, match=message):
        run(config(), cows)
    code = main(["--category", "cow", "--filter", "cf_cm", "--data_root", str(cows.root)])
    assert code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: cf_cm needs keypoints/pose_aux") and "\n" not in error
    assert main(["--category", "cow", "--filter", "best", "--data_root", str(cows.root)]) == 2
    assert "--filter among kpconf" in capsys.readouterr().err


def test_instances_without_all_sources_or_in_repeated_images_are_counted(cows, capsys):
    table = read_table(cows.keypoints_path("pose_aux"), "keypoints")
    write_table(table.take(np.arange(1, 10)), cows.keypoints_path("pose_aux"))
    rows = [image_row(n, {1: "duplicate", 2: "in_labels"}.get(n, "ok")) for n in range(10)]
    # The bytes of image 3 stand at a second address too, where they are the duplicate.
    rows.append({**image_row(3, "duplicate"), "record_id": make_record_id("test", "3 again")})
    write_table(Table.from_rows("images", rows), cows.table_path("images"))
    facts = run(config(), cows)
    assert facts["candidates"] == 7
    assert facts["dropped"] == {
        "in images that repeat another or stand in the labelled set": 2,
        "without keypoints/pose_aux": 1,
    }
    assert chosen(cows, "cf_cm", 4)["instance_id"].tolist() == ["a03", "a04", "a05", "a06"]
    assert "1 without keypoints/pose_aux" in capsys.readouterr().out
    # Nor does a training without a selection take them, or tokens learn on them.
    for n, row in enumerate(rows[:10]):
        row["path"] = f"{n}.png"
        Image.new("RGB", (80, 80)).save(cows.root / row["path"])
    write_table(Table.from_rows("images", rows), cows.table_path("images"))
    left = [f"a{n:02d}" for n in (0, *range(3, 10))]
    assert list(training_data.web(cows, "pose", None, None, 0)[0].instance_ids) == left
    assert unlabelled(cows)[0]["instance_id"].tolist() == left


def test_cf_mt_from_the_transform_table(cows):
    pose = read_table(cows.keypoints_path("pose"), "keypoints")
    ids, xy = pose["instance_id"], pose["xy"]
    # The transforms of cow n lie n pixels off on average; rows are shuffled, one cow lacks a transform.
    shifts = dict(zip(TRANSFORMS[1:], (0.0, 1.0, 2.0, 0.5, 1.5, 1.0)))
    parts = [(i, name, xy[n] + n * shift) for n, i in enumerate(ids) for name, shift in shifts.items()]
    parts.remove(next(part for part in parts if part[0] == "a03" and part[1] == "rot_10"))
    order = np.random.default_rng(1).permutation(len(parts))
    columns = {
        "instance_id": [parts[n][0] for n in order],
        "transform": [parts[n][1] for n in order],
        "xy": np.stack([parts[n][2] for n in order]),
        "confidence": np.ones((len(parts), K)),
    }
    table = Table("keypoints", columns, {"skeleton": "quadruped16"})
    names, stacked, _ = stack_transforms(table)
    assert stacked.shape == (9, 6, K, 2) and "a03" not in names
    write_table(table, cows.keypoints_path("pose_mt"))
    facts = run(config(filter="cf_mt"), cows)
    assert facts["dropped"] == {"without keypoints/pose_mt": 1}
    selection = chosen(cows, "cf_mt", 4)
    assert selection["instance_id"].tolist() == ["a00", "a01", "a02", "a04"]
    np.testing.assert_allclose(selection["value"], np.array([0, 1, 2, 4]) * np.sqrt(2) * 4, atol=1e-9)


def test_a_transform_twice_and_other_skeletons_are_refused():
    table = keypoints_table(["a00", "a00"], np.zeros((2, K, 2)), "rot_10")
    with pytest.raises(UserError, match="one row a transform"):
        stack_transforms(table)
    other = Table(
        "keypoints",
        {
            "instance_id": ["a00"],
            "transform": ["none"],
            "xy": np.zeros((1, 5, 2)),
            "confidence": np.ones((1, 5)),
        },
    )
    both = {"pose": keypoints_table(["a00"], np.zeros((1, K, 2))), "acsm": other}
    with pytest.raises(UserError, match="one skeleton; found keypoints: pose 16 of quadruped16, acsm 5"):
        gather_candidates(instances_table(1), both)
    points = Table("keypoints", dict(both["pose"].columns), {"skeleton": "points16"})
    with pytest.raises(UserError, match="pose 16 of quadruped16, zero123plus_points 16 of points16"):
        gather_candidates(instances_table(1), {"pose": both["pose"], "zero123plus_points": points})


def test_visualize_draws_with_and_without_pictures(cows, capsys):
    folder = cows.images_dir
    folder.mkdir(parents=True)
    rows = []
    for number in range(10):
        path = None
        if number % 2 == 0:
            path = cows.relative(folder / f"{number}.png")
            Image.fromarray(np.full((80, 80, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
        rows.append(image_row(number, path=path))
    (folder / "4.png").write_bytes(b"broken")
    write_table(Table.from_rows("images", rows), cows.table_path("images"))
    facts = run(config(visualize=True, vis_num=9), cows)
    picture = Image.open(cows.root / facts["picture"])
    assert picture.size[0] > 3 * 192 and picture.size[1] > 3 * 192
    assert np.asarray(picture).std() > 10
    assert "pictures have no image file" in capsys.readouterr().out


def test_script_runs_from_anywhere(cows, tmp_path):
    import subprocess
    import sys

    script = Path(__file__).parents[2] / "prepare_data" / "data_selection.py"
    flags = [
        "--category",
        "cow",
        "--filter",
        "kpconf",
        "--selection_num",
        "2",
        "--data_root",
        str(cows.root),
    ]
    done = subprocess.run(
        [sys.executable, str(script), *flags], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(chosen(cows, "kpconf", 2)) == 2


@pytest.fixture
def judged(cows):
    """The ten cows, and thirty labelled ones of val on which the second network tells of errors, but the
    confidences do not."""
    rng = np.random.default_rng(5)
    count = 30
    ids = [f"v{n:02d}" for n in range(count)]
    truth = rng.uniform(15, 70, (count, K, 2))
    error = rng.uniform(0, 12, count)
    labels = [
        {
            "instance_id": name, "image_id": f"p{n:02d}", "category": "cow", "score": 1.0,
            "detector": "manual", "box_xyxy": np.array([10.0, 10.0, 74.0, 74.0]), "flags": "",
            "split": "val", "skeleton": "quadruped16", "xy": truth[n], "visible": np.full(K, 2),
        }
        for n, name in enumerate(ids)
    ]  # fmt: skip
    photos = [{**image_row(n), "image_id": f"p{n:02d}", "path": f"p{n:02d}.png"} for n in range(count)]
    for photo in photos:
        Image.new("RGB", (80, 80)).save(cows.root / photo["path"])
    write_table(Table.from_rows("labels", labels, num_keypoints=K), cows.table_path("labels"))
    write_table(Table.from_rows("images", photos), cows.table_path("labelled_images"))
    pose = truth + error[:, None, None]
    confidence = np.repeat(rng.uniform(0.1, 0.9, (count, 1)), K, axis=1)
    write_table(keypoints_table(ids, pose, confidence=confidence), cows.keypoints_path("pose_labelled"))
    write_table(keypoints_table(ids, truth), cows.keypoints_path("pose_aux_labelled"))
    return cows


def test_cf_all_trusts_the_sources_that_tell_of_errors_on_val(judged, capsys):
    # On the web confidence and distance disagree: the order is that of who was right on val.
    pose = read_table(judged.keypoints_path("pose"), "keypoints")
    turned = pose.with_columns(confidence=pose["confidence"][::-1])
    write_table(turned, judged.keypoints_path("pose"))
    facts = run(config(filter="cf_all"), judged)
    selection = chosen(judged, "cf_all", 4)
    assert selection["instance_id"].tolist() == ["a00", "a01", "a02", "a03"]
    assert set(selection["criterion"]) == {"cf_all"} and (np.diff(selection["value"]) > 0).all()
    assert facts["weights"]["pose_aux"] > 0.75 and facts["val_animals"] == 30 and not facts["note"]
    stored = json.loads(judged.metrics_path("selection_cf_all_4").read_text())
    assert stored["left_out_error"] < stored["left_out_error_of_equal_weights"]
    out = capsys.readouterr().out
    assert "CF-All weighs pose " in out and "fitted on 30 labelled animals of val" in out
    with pytest.raises(UserError, match="--filter cf_cm --aux zero123plus --selection_num 2"):
        training_selection(judged, "cf_cm_zero123plus", 2)
    assert training_selection(judged, "cf_all", 3)[0]["instance_id"].tolist() == ["a00", "a01", "a02"]

    # The report ranks by it beside the others, all candidates.
    rankings = rank_all(read_inputs(judged))
    assert rankings["cf_all"].complete and rankings["cf_all"].ids[:4].tolist() == [
        "a00",
        "a01",
        "a02",
        "a03",
    ]
    assert {"kpconf", "cf_cm"} <= set(rankings)

    # Other predictions of val make other weights, which ask first.
    table = read_table(judged.keypoints_path("pose_aux_labelled"), "keypoints")
    noise = np.random.default_rng(0).uniform(0, 40, (30, 1, 1))
    write_table(table.with_columns(xy=table["xy"] + noise), judged.keypoints_path("pose_aux_labelled"))
    with pytest.raises(UserError, match=r"weights=.*--overwrite"):
        run(config(filter="cf_all"), judged)


def test_cf_all_says_which_sources_it_does_without(judged, capsys):
    table = read_table(judged.keypoints_path("pose_aux"), "keypoints")
    write_table(table, judged.keypoints_path("acsm"), {"config": {"arm": "cf_cm"}})
    facts = run(config(filter="cf_all"), judged)
    assert set(facts["weights"]) == {"pose", "pose_aux"}
    out = capsys.readouterr().out
    assert "without acsm, of which there are no keypoints of labelled animals" in out
    assert "run: python acsm/generate_pl.py --category cow --labelled --arm cf_cm" in out


def test_cf_all_does_without_what_another_network_said_of_val(judged, capsys):
    def mark(name, network):
        table = read_table(judged.keypoints_path(name), "keypoints")
        inputs = {"data/cow/instances.parquet": name, "runs/cow/checkpoints/pose_aux/best.pt": network}
        write_table(table, judged.keypoints_path(name), {"inputs": inputs})

    for network, used in (("old", {"pose", "pose_aux"}), ("new", {"pose"})):
        mark("pose_aux", "old"), mark("pose_aux_labelled", network)
        assert set(run(config(filter="cf_all", overwrite=True), judged)["weights"]) == used
    out = capsys.readouterr().out
    mark("pose", "old"), mark("pose_labelled", "new")
    assert run(config(filter="cf_all", overwrite=True), judged)["val_animals"] == 0
    assert "not fitted on labelled animals of val (no keypoints of them, or another model's" in (
        capsys.readouterr().out
    )
    assert (
        "without pose_aux" in out and "generate_pl.py --category cow --is_aux --labelled --overwrite" in out
    )
    shown = {step.title: step.command for step in status.steps(judged)}
    assert "--labelled" in shown["labelled photos' pose_aux"]
    assert shown["selection cf_all_4"].endswith("--filter cf_all --selection_num 4")
    assert training_data.selection_flags("cfcm_zero123plus") == "--filter cfcm --aux zero123plus"


def test_cf_all_without_predictions_of_val_weighs_all_alike(cows, capsys):
    facts = run(config(filter="cf_all"), cows)
    assert facts["weights"] == {"pose": 0.5, "pose_aux": 0.5} and facts["val_animals"] == 0
    assert chosen(cows, "cf_all", 4)["instance_id"].tolist() == ["a00", "a01", "a02", "a03"]
    assert (
        "equal weights: not fitted on labelled animals of val (no labelled photos)"
        in capsys.readouterr().out
    )
    cows.keypoints_path("pose").unlink()
    with pytest.raises(
        UserError, match="cf_all needs keypoints/pose for cow; run: python pose/generate_pl"
    ):
        run(config(filter="cf_all"), cows)
