import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from slow_stage import PROVENANCE, Doubler, instances, run

import wildshape.stage
from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.stage import (
    MapOptions,
    MapStage,
    Provenance,
    as_columns,
    describe_change,
    input_hashes,
    progress,
    publish,
    run_map,
    run_reduce,
    up_to_date,
)
from wildshape.tables import Table, content_hash, read_facts, read_table, table_hash, write_table

SCRIPT = Path(__file__).with_name("slow_stage.py")


def calls(folder):
    """The batches that were worked on, one list of ids each."""
    log = folder / "calls.log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=60):
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.01)


def shards(folder):
    return sorted(path.name for path in (folder / "out.parts").glob("shard-*.parquet"))


def test_a_map_keeps_order_and_says_what_made_it(tmp_path):
    table = run(tmp_path)
    assert list(table["instance_id"]) == list(instances(20)["instance_id"])
    np.testing.assert_allclose(table["xy"][7], [[14, 14], [7.1, 7.1]])
    assert table.meta == {"skeleton": "two"}
    assert sorted(os.listdir(tmp_path)) == ["calls.log", "out.manifest.json", "out.parquet"]
    manifest = read_json(tmp_path / "out.manifest.json")
    assert manifest["stage"] == "toy" and manifest["config"] == {"factor": 2} and manifest["rows"] == 20
    assert read_facts(tmp_path / "out.parquet")["provenance"]["inputs"] == {"rows": "abc"}


def test_batches_never_cross_shards(tmp_path):
    run(tmp_path, count=10)
    assert [len(batch) for batch in calls(tmp_path)] == [3, 1, 3, 1, 2]


class Several(MapStage):
    """A row for each image 100 wide, and a logged record for every one, with the batch's widths."""

    key = "record_id"

    def __call__(self, batch):
        widths = " ".join(str(width) for width in batch["width"])
        rows = []
        for record_id, width in zip(batch["record_id"], batch["width"]):
            self.note({"record_id": record_id, "widths": widths})
            row = {"record_id": record_id, "source": widths, "status": "ok", "width": width, "height": 1}
            rows += [row] * (width // 100)
        return dict(Table.from_rows("images", rows).columns)


def test_rows_are_batched_by_size_and_come_out_in_order(tmp_path):
    widths = [100, 30, 100, 20, 100, 10, 50, 100, 30, 20]
    rows = Table.from_rows(
        "images",
        [
            {"record_id": f"r{i}", "source": "x", "status": "ok", "width": width, "height": 5}
            for i, width in enumerate(widths)
        ],
    )
    options = MapOptions(shard_size=8, batch_size=3, batch_by=("width", "height"))
    out = tmp_path / "out.parquet"
    table = run_map(Several, rows, out, "images", PROVENANCE, options=options)
    # eight rows by width: 10 20 30, 50 100 100, 100 100; then the other two
    assert list(table["record_id"]) == ["r0", "r2", "r4", "r7"]
    assert list(table["source"]) == ["50 100 100", "50 100 100", "100 100", "100 100"]
    log = [json.loads(line) for line in (tmp_path / "out.log.jsonl").read_text().splitlines()]
    assert [record["record_id"] for record in log] == [f"r{i}" for i in range(10)]
    assert log[1]["widths"] == log[3]["widths"] == "10 20 30" and log[9]["widths"] == "20 30"
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="expected a key of Doubler"):
        run(tmp_path / "other", Doubler(), batch_by=("score",))


def test_the_next_batch_is_prepared_while_the_stage_works(tmp_path):
    """The first call waits for the second batch to be prepared, which needs another thread."""
    prepared = threading.Event()

    class Patient(Doubler):
        def prepare(self, row):
            if row["instance_id"] == "a0003":
                prepared.set()
            return super().prepare(row)

        def __call__(self, batch):
            assert prepared.wait(30)
            return super().__call__(batch)

    table = run(tmp_path, Patient(), count=7)
    assert list(table["instance_id"]) == list(instances(7)["instance_id"])


def test_a_finished_map_is_read_and_not_run_again(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, Doubler(fail_at="a0000"))
    assert content_hash(again) == content_hash(first)


def test_no_rows(tmp_path):
    table = run(tmp_path, Doubler(fail_at="never"), count=0)
    assert len(table) == 0 and len(read_table(tmp_path / "out.parquet", "keypoints")) == 0


def test_rows_that_yield_nothing_or_several(tmp_path):
    class Some(Doubler):
        def __call__(self, batch):
            columns = super().__call__(batch)
            times = np.array([int(name[1:]) % 3 for name in batch["instance_id"]])
            return {name: np.repeat(np.asarray(values), times, axis=0) for name, values in columns.items()}

    whole = run(tmp_path, Some(), count=13)
    assert [int(name[1:]) for name in whole["instance_id"]] == [i for i in range(13) for _ in range(i % 3)]

    class Nothing(Doubler):
        def __call__(self, batch):
            return {name: np.asarray(values)[:0] for name, values in super().__call__(batch).items()}

    (tmp_path / "b").mkdir()
    assert run(tmp_path / "b", Nothing())["xy"].shape == (0, 2, 2)


@pytest.mark.parametrize("size", [4, 7])
def test_after_an_exception_the_finished_shards_are_kept(tmp_path, size):
    """Also where the second call asks for shards of another size."""
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="boom"):
        run(tmp_path, Doubler(tmp_path / "calls.log", fail_at="a0013"))
    assert shards(tmp_path) == [f"shard-{i:09d}.parquet" for i in (0, 4, 8)]
    assert not (tmp_path / "out.parquet").exists()
    before = len(calls(tmp_path))
    table = run(tmp_path, shard_size=size)
    assert content_hash(table) == content_hash(whole)
    redone = [name for batch in calls(tmp_path)[before:] for name in batch]
    assert redone == [f"a{i:04d}" for i in range(12, 20)]
    assert not (tmp_path / "out.parts").exists()


@pytest.mark.parametrize(
    ("problem", "workers"), [("kill", ()), ("interrupt", ()), ("interrupt", ("workers",))]
)
def test_a_stopped_process_continues_where_it_was(tmp_path, problem, workers):
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole")
    process = start("map", tmp_path, 0.15, *workers)
    wait_for(lambda: len(shards(tmp_path)) >= 2, process)
    process.send_signal(signal.SIGKILL if problem == "kill" else signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if problem == "interrupt":
        assert process.returncode == 130
        assert errors.strip() == "stopped; run the same command again to continue"
    kept = len(shards(tmp_path))
    assert 2 <= kept < 5 and not (tmp_path / "out.parquet").exists()
    before = len(calls(tmp_path))
    assert content_hash(run(tmp_path)) == content_hash(whole)
    redone = [name for batch in calls(tmp_path)[before:] for name in batch]
    assert redone == [f"a{i:04d}" for i in range(4 * kept, 20)]
    assert table_hash(tmp_path / "out.parquet") == table_hash(tmp_path / "whole/out.parquet")


def test_a_full_disk_is_one_line_and_exit_code_2(tmp_path):
    process = start("map", tmp_path, 0, "full-disk")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(errors.strip().splitlines()) == 1
    assert "No space left on device; make room" in errors
    assert len(run(tmp_path)) == 20


def test_a_kill_while_the_shards_are_removed_costs_nothing(tmp_path, monkeypatch):
    def killed(path, **_):
        for shard in sorted(Path(path).glob("shard-*"))[:1]:
            shard.unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(wildshape.stage.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    table = run(tmp_path, Doubler(fail_at="a0000"))
    assert len(table) == 20 and not (tmp_path / "out.parts").exists()


def test_workers_give_the_same_table(tmp_path):
    (tmp_path / "b").mkdir()
    assert content_hash(run(tmp_path, workers=2)) == content_hash(run(tmp_path / "b", workers=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_error_in_a_worker_keeps_its_one_line(tmp_path, workers):
    class Unreadable(Doubler):
        def prepare(self, row):
            if row["instance_id"] == "a0009":
                raise UserError("expected an image in x.jpg; found none")
            return super().prepare(row)

    with pytest.raises(UserError, match=r"^expected an image in x\.jpg; found none$"):
        run(tmp_path, Unreadable(), workers=workers)


def other(**changes):
    settings = {"stage": "toy", "config": {"factor": 2}, "inputs": {"rows": "abc"}, **changes}
    return Provenance(**settings)


@pytest.mark.parametrize(("folder", "way_out"), [("runs/cow", "--name"), ("data/cow", "--data-root")])
def test_the_way_out_fits_the_folder(tmp_path, folder, way_out):
    out = tmp_path / folder / "out.parquet"
    out.parent.mkdir(parents=True)
    publish(instances(3), out, other())
    with pytest.raises(UserError, match=f"add --overwrite to replace it, or {way_out} for another"):
        up_to_date(out, other(config={"factor": 3}))


def test_other_settings_are_not_mixed_but_may_replace(tmp_path):
    out = tmp_path / "out.parquet"
    run(tmp_path)
    content = out.read_bytes()

    def again(provenance, **options):
        options = MapOptions(shard_size=4, **options)
        return run_map(Doubler, instances(20), out, "keypoints", provenance, options=options)

    with pytest.raises(
        UserError,
        match=r"out\.parquet exists with other settings \(factor=2 then, 3 now\); add --overwrite",
    ):
        again(other(config={"factor": 3}))
    with pytest.raises(UserError, match=r"\(rows has changed since\)"):
        again(other(inputs={"rows": "def"}))
    with pytest.raises(UserError, match=r"\(rows is read from copy/rows now\)"):
        again(other(inputs={"copy/rows": PROVENANCE.inputs["rows"]}))
    with pytest.raises(UserError, match=r"\(rows is no longer read; lines is read now\)"):
        again(other(inputs={"lines": "def"}))
    with pytest.raises(UserError, match=r"\(made by toy, now tool\)"):
        again(other(stage="tool"))
    assert out.read_bytes() == content
    again(other(config={"factor": 3}), overwrite=True)
    assert read_json(tmp_path / "out.manifest.json")["config"] == {"factor": 3}
    again(other(config={"factor": 3}))


def test_an_unfinished_run_with_other_settings_is_not_mixed(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path, Doubler(fail_at="a0013"))
    changed = other(config={"factor": 3})
    arguments = (Doubler, instances(20), tmp_path / "out.parquet", "keypoints", changed)
    with pytest.raises(
        UserError, match=r"an unfinished out\.parquet exists with other settings \(factor=2 then, 3 now\)"
    ):
        run_map(*arguments)
    assert len(run_map(*arguments, options=MapOptions(overwrite=True))) == 20


def test_overwrite_runs_again(tmp_path):
    run(tmp_path)
    before = len(calls(tmp_path))
    run(tmp_path, overwrite=True)
    assert len(calls(tmp_path)) == 2 * before


def test_a_reduce_runs_once_and_refuses_other_settings(tmp_path):
    count = []

    def reduce():
        count.append(1)
        return instances(3)

    out = tmp_path / "i.parquet"
    assert not up_to_date(out, PROVENANCE)
    assert content_hash(run_reduce(reduce, out, PROVENANCE)) == content_hash(instances(3))
    run_reduce(reduce, out, PROVENANCE)
    assert len(count) == 1 and up_to_date(out, PROVENANCE)
    with pytest.raises(UserError, match=r"i\.parquet exists with other settings"):
        run_reduce(reduce, out, other(config={}))
    run_reduce(reduce, out, other(config={}), overwrite=True)
    assert len(count) == 2 and not up_to_date(out, other(config={}), overwrite=True)


def test_the_packages_version_does_not_make_a_table_stale():
    provenance = {**PROVENANCE.as_dict(), "version": "0"}
    assert wildshape.stage.fingerprint(provenance) == PROVENANCE.fingerprint
    assert describe_change(provenance, PROVENANCE.as_dict()) == "made by an older layout"
    assert (
        Provenance("s", {"a": (1, Path("x"))}).fingerprint == Provenance("s", {"a": [1, "x"]}).fingerprint
    )


def test_input_hashes_are_by_content_and_relative_name(tmp_path):
    write_table(instances(2), tmp_path / "data/a.parquet", {"stage": "one"})
    (tmp_path / "b.txt").write_text("b")
    hashes = input_hashes(tmp_path, tmp_path / "data/a.parquet", tmp_path / "b.txt")
    assert list(hashes) == ["data/a.parquet", "b.txt"]
    write_table(instances(2), tmp_path / "data/a.parquet", {"stage": "two"})
    assert input_hashes(tmp_path, tmp_path / "data/a.parquet") == {
        "data/a.parquet": hashes["data/a.parquet"]
    }


def test_as_columns_stacks_what_fits_and_keeps_the_rest_as_objects():
    rows = [
        {"id": "a", "n": 1, "xy": np.zeros(2), "image": np.zeros((2, 2)), "none": None},
        {"id": "b", "n": 2, "xy": np.ones(2), "image": np.zeros((3, 2)), "none": 1.0},
    ]
    columns = as_columns(rows)
    assert columns["xy"].shape == (2, 2) and columns["n"].tolist() == [1, 2]
    assert columns["id"].dtype == object and columns["id"].tolist() == ["a", "b"]
    assert columns["image"][1].shape == (3, 2) and columns["none"].tolist() == [None, 1.0]


def test_a_stage_without_call_says_so():
    with pytest.raises(TypeError, match="MapStage defines no __call__"):
        MapStage()({})


def test_progress_is_silent_without_a_terminal(capsys):
    assert list(progress(range(3), "work")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_an_empty_keypoints_table_concatenates(tmp_path):
    write_table(Table.empty("keypoints", num_keypoints=2), tmp_path / "e.parquet")
    assert read_table(tmp_path / "e.parquet", "keypoints")["xy"].shape == (0, 2, 2)
