"""What of --engine ray needs no cluster: settings, sharing out, and what workers complain of."""

import json
import pickle
import sys

import numpy as np
import pytest

from prepare_data.download_images import Config as DownloadConfig
from prepare_data.download_ray import by_host
from prepare_data.fetch import FetchConfig, _Host
from prepare_data.save_boxes import Config as BoxConfig
from wildshape import engine_ray
from wildshape.engine import EngineOptions
from wildshape.engine_ray import MAX_ATTEMPTS, Workers, choose_workers, connected
from wildshape.errors import UserError
from wildshape.map_stage import MapStage
from wildshape.tables import Table, read_table, write_table


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "ray", "num_workers": 0}, "--num_workers: expected at least 1 worker; found 0"),
        ({"num_workers": -1}, "--num_workers: expected at least 0; found -1"),
        ({"engine": "ray", "gpus_per_worker": -0.5}, "--gpus_per_worker: expected at least 0"),
        ({"ray_address": "auto"}, "--ray_address: expected together with --engine ray"),
        ({"gpus_per_worker": 1}, "--gpus_per_worker: expected together with --engine ray"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        BoxConfig(category="cow", **settings).engine_options  # noqa: B018 - a property that checks


def test_loader_processes():
    """--num_workers are loader processes unless it says --engine ray; --workers always are."""
    assert EngineOptions(num_workers=3).loaders(None) == 3
    assert EngineOptions(num_workers=3).loaders(2) == 2
    assert EngineOptions(engine="ray", num_workers=3).loaders(0) == 0
    assert EngineOptions().loaders(None) is None and EngineOptions().loaders(0) == 0
    with pytest.raises(UserError, match="--num_workers: expected together with --engine ray"):
        DownloadConfig(category="cow", num_workers=2)


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "device", "expected"),
    [
        (8, 0, {}, "cpu", Workers(8, 0.0, 8)),
        (8, 0, {}, "auto", Workers(8, 0.0, 8)),
        (8, 2, {}, "cpu", Workers(8, 0.0, 8)),
        (16, 2, {}, "auto", Workers(2, 1.0, 16)),
        (16, 2, {"gpus_per_worker": 0.5}, "auto", Workers(4, 0.5, 16)),
        (16, 4, {"num_workers": 3}, "cuda", Workers(3, 1.0, 16)),
        (8, 2, {"gpus_per_worker": 0.0, "num_workers": 5}, "auto", Workers(5, 0.0, 8)),
    ],
)
def test_workers_of_a_cluster(cpus, gpus, settings, device, expected):
    resources = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {}), "memory": 1e9}
    assert choose_workers(resources, EngineOptions(engine="ray", **settings), device) == expected


def test_a_cluster_that_is_too_small():
    options = EngineOptions(engine="ray", num_workers=3)
    with pytest.raises(UserError, match="expected 3 CPUs for 3 workers; found 2 CPUs and 0 GPUs"):
        choose_workers({"CPU": 2.0}, options, "cpu")
    with pytest.raises(UserError, match="expected 3 CPUs and 3 GPUs for 3 workers; .* or --device cpu"):
        choose_workers({"CPU": 8.0, "GPU": 2.0}, options, "auto")
    with pytest.raises(UserError, match="expected 1 CPUs and 1 GPUs"):
        choose_workers({"CPU": 8.0}, EngineOptions(engine="ray"), "cuda")


def test_loaders_feed_gpus():
    assert [Workers(2, 1.0, cpus).loaders for cpus in (2, 8, 64)] == [0, 3, 8]
    assert Workers(2, 0.0, 64).loaders == 0


def test_without_ray_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with (
        pytest.raises(UserError, match=r'needs Ray; run: pip install "wildshape\[ray\]"'),
        connected(EngineOptions(engine="ray")),
    ):
        pass


def test_no_cluster_at_the_address():
    pytest.importorskip("ray", reason="needs the extra wildshape[ray]")
    options = EngineOptions(engine="ray", ray_address="127.0.0.1:9")
    with (
        pytest.raises(UserError, match=r"expected a Ray cluster at 127.0.0.1:9; found none .*refused"),
        connected(options),
    ):
        pass


def answers(actor, *jobs):
    batch = {"job": np.array([json.dumps(job) for job in jobs])}
    return [pickle.loads(result) for result in actor(batch)["result"]]


def test_a_worker_that_does_not_see_the_data_root_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    actor = engine_ray._Actor(lambda: dict, tmp_path, tmp_path / "nowhere" / "ray")
    (error,) = answers(actor, {"key": 0, "title": "rows 0 to 3"})
    assert isinstance(error, UserError)
    assert f"expected every worker to see {tmp_path / 'nowhere'}; the one on " in str(error)


def test_errors_come_home_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def work(job):
        raise OSError(28, "No space left on device", "x") if job["key"] else UserError("one line")

    actor = engine_ray._Actor(lambda: work, tmp_path, tmp_path)
    first, second = answers(actor, {"key": 0, "title": "a"}, {"key": 1, "title": "b"})
    assert (type(first), str(first)) == (UserError, "one line")
    assert (second.errno, second.filename) == (28, "x")


def test_a_job_that_kills_its_workers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = {"key": 8, "title": "rows 8 to 11 of toy"}
    for _ in range(MAX_ATTEMPTS):
        actor = engine_ray._Actor(lambda: dict, tmp_path, tmp_path)
        assert answers(actor, job) == [job]
    (error,) = answers(engine_ray._Actor(lambda: dict, tmp_path, tmp_path), job)
    assert "expected a worker to live through rows 8 to 11 of toy; 4 died" in str(error)


def test_parts_keep_hosts_together():
    urls = [
        f"http://{host}/{i}"
        for host, count in (("a", 7), ("b", 3), ("c", 3), ("d", 1))
        for i in range(count)
    ]
    urls += [None, "http://[bad"]
    parts = by_host(urls, 2)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3, 4, 5, 6, 13], [7, 8, 9, 10, 11, 12, 14, 15]]
    assert sorted(np.concatenate(by_host(urls, 99)).tolist()) == list(range(16))
    assert len(by_host(urls, 99)) == 5 and by_host([], 3) == []


def test_a_host_that_all_workers_ask_gives_each_its_part():
    config = FetchConfig(host_concurrency=8, host_rate=10.0, shared_hosts=("m",), sharers=4)
    mine, shared = _Host(config, "h"), _Host(config, "m")
    assert (mine._gap, shared._gap) == (0.1, 0.4)
    assert (mine.slots._value, shared.slots._value) == (8, 2)


def test_a_row_group_is_read_alone(tmp_path):
    rows = [
        {"record_id": f"r{i}", "source": "t", "width": i, "height": -1, "status": "ok"} for i in range(7)
    ]
    table = Table.from_rows("images", rows)
    write_table(table, tmp_path / "t.parquet", group_rows=3)
    groups = [read_table(tmp_path / "t.parquet", "images", group=group) for group in range(3)]
    assert [group["width"].tolist() for group in groups] == [[0, 1, 2], [3, 4, 5], [6]]
    assert read_table(tmp_path / "t.parquet", "images")["record_id"].tolist() == table["record_id"].tolist()


def test_notes_are_drained_once():
    stage = MapStage()
    stage.note({"a": 1})
    assert stage.drain_notes() == [{"a": 1}] and stage.drain_notes() == []
