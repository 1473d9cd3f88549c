"""--engine ray: the same tables as the local engine, on a cluster of two nodes with a worker each."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cluster_stage import Worker
from slow_stage import PROVENANCE, instances

from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.stage import MapOptions, run_map
from wildshape.tables import content_hash, read_facts, read_table

ray = pytest.importorskip("ray", reason="needs the extra wildshape[ray]")


pytestmark = [
    # Ray's own: it reads closed files and deprecated settings in its threads.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray"),
]
STORE = 80 * 1024 * 1024


@pytest.fixture(scope="module")
def address():
    """A cluster of two nodes, one processor each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        root = Path(__file__).parents[2]  # what an installed wildshape is to a real cluster's workers
        paths = (root, Path(__file__).parent, *(root / "tests" / name for name in ("prepare_data", "acsm")))
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def two(address):
    """The flags of a command that runs on the cluster."""
    return {"engine": "ray", "num_workers": 2, "ray_address": address}


def run(folder, factory, count=40, engine=None):
    engine = EngineOptions(**(engine or {}))
    options = MapOptions(shard_size=4, batch_size=3, title="toy", engine=engine)
    out = folder / "out.parquet"
    return run_map(factory, instances(count), out, "keypoints", PROVENANCE, options=options)


def done(pids):
    """(process, first row) of every batch so far."""
    return [tuple(line.split()) for line in pids.read_text().splitlines()] if pids.exists() else []


@pytest.fixture
def local(tmp_path):
    """What the local engine makes of the toy stage."""
    (tmp_path / "local").mkdir()
    run(tmp_path / "local", Worker)
    return tmp_path / "local"


def same_files(one, other):
    table, again = (read_table(folder / "out.parquet", "keypoints") for folder in (one, other))
    assert content_hash(table) == content_hash(again)
    assert read_facts(one / "out.parquet") == read_facts(other / "out.parquet")
    logs = [(folder / "out.log.jsonl").read_text() for folder in (one, other)]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == len(table)
    names = {path.name for path in other.glob("out.*")}
    assert names == {"out.parquet", "out.manifest.json", "out.log.jsonl"}


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(tmp_path, local, two):
    """Also: the same table, log and provenance as the local engine."""
    pids, killed = tmp_path / "pids", []

    def kill():
        while not killed:
            time.sleep(0.01)
            found = done(pids)
            if len(found) >= 3:
                killed.append(int(found[-1][0]))
                os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run(tmp_path, partial(Worker, pids, 0.15), engine=two)
    thread.join(timeout=5)
    same_files(local, tmp_path)
    batches = done(pids)
    assert len({pid for pid, _ in batches} - {str(killed[0])}) >= 1
    assert 20 <= len(batches) <= 22  # of the killed worker's shard at most both batches were done twice
    assert str(killed[0]) not in {pid for pid, _ in batches[6:]}
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_run_that_stopped_under_one_engine_ends_under_the_other(tmp_path, local, two):
    message = r"^expected an image in x\.jpg; found none$"
    with pytest.raises(UserError, match=message):
        run(tmp_path, partial(Worker, bad="a0013"))
    parts = tmp_path / "out.parts"
    assert len(list(parts.glob("shard-*.parquet"))) == 3
    with pytest.raises(UserError, match=message):
        run(tmp_path, partial(Worker, tmp_path / "pids", bad="a0037"), engine=two)
    assert {name for _, name in done(tmp_path / "pids")} <= {f"a{i:04d}" for i in range(12, 40)}
    kept = len(list(parts.glob("shard-*.parquet")))
    assert 3 < kept < 10 and not (parts / "ray").exists()
    pids = tmp_path / "pids2"
    run(tmp_path, partial(Worker, pids))
    assert len(done(pids)) == 2 * (10 - kept)
    same_files(local, tmp_path)


def test_boxes(tmp_path, workspace, two, capsys, monkeypatch):
    from PIL import Image

    from prepare_data import add_folder, save_boxes

    plug_in = Path(__file__).parents[1] / "prepare_data" / "plug_in.py"
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        image = rng.integers(60, 100, (100, 110 + i, 3), dtype=np.uint8)
        image[:: 1 + i] = 140
        image[30 + i : 60 + i, 20:50] = (255, 0, 0) if i % 4 else (0, 0, 255)
        Image.fromarray(image).save(folder / f"{i}.png")
    common = {"category": "cow", "overwrite": True}
    add_folder.run(add_folder.Config(**common, folder=folder, max_distance=0), workspace)
    (folder / "7.png").write_bytes(b"")
    monkeypatch.setattr(save_boxes, "max", lambda *values: 4, raising=False)  # shards of four images
    out, made, tables = workspace.table_path("instances"), {}, []
    for name, engine in (("local", {}), ("ray", two)):
        out.unlink(missing_ok=True)  # it would hand its ids on
        config = save_boxes.Config(**common, detector=f"{plug_in}:Squares", batch_size=2, **engine)
        metrics = save_boxes.run(config, workspace)
        assert read_json(workspace.metrics_path("save_boxes")) == metrics
        assert metrics.pop("images_per_second") > 0 and metrics.pop("seconds") > 0
        log = out.with_suffix(".log.jsonl").read_text()
        made[name] = metrics, log, capsys.readouterr().out.splitlines()[-2:]
        tables.append(workspace.load("instances"))
    assert content_hash(tables[0]) == content_hash(tables[1])
    assert len(tables[1]) == 14 and made["ray"][0]["images"]["unreadable"] == 1
    assert made["local"] == made["ray"]


@pytest.mark.slow
def test_keypoints(tmp_path, two, monkeypatch):
    from pose_world import make_world
    from test_generate import save_model

    from pose import generate_pl_mt, pseudo_labels

    monkeypatch.setattr(pseudo_labels, "MapOptions", lambda **k: MapOptions(**k, shard_size=2))
    world = make_world(tmp_path, splits=(("train", 1),))
    save_model(world)
    tables, metrics = [], []
    common = {"category": "cow", "overwrite": True, "batch_size": 2}
    for engine in ({"workers": 0}, two):
        metrics.append(generate_pl_mt.run(generate_pl_mt.Config(**common, **engine), world))
        tables.append(read_table(world.keypoints_path("pose_mt"), "keypoints"))
    one, other = tables
    assert len(one) == 7 * 7 and one.meta == other.meta
    for column in ("instance_id", "transform"):
        assert one[column].tolist() == other[column].tolist()
    np.testing.assert_allclose(one["xy"], other["xy"], atol=1e-4)
    np.testing.assert_allclose(one["confidence"], other["confidence"], atol=1e-4)
    counts = ("source", "instances", "labelled", "skipped", "skipped_first")
    assert [metrics[0][key] for key in counts] == [metrics[1][key] for key in counts]


@pytest.mark.slow
def test_shapes(tmp_path, two):
    import acsm_world
    from test_acsm_train import config

    from acsm import generate_pl, train

    world = acsm_world.build(tmp_path)
    train.run(config(), world)
    tables, counts, metrics = [], [], []
    for engine in ({}, two):
        settings = generate_pl.Config(category="stick", batch_size=2, overwrite=True, **engine)
        counts.append(generate_pl.run(settings, world))
        metrics.append(read_json(world.metrics_path("keypoints_acsm")))
        tables.append((read_table(world.shapes_path("acsm"), "shapes"), world.load_keypoints("acsm")))
    assert counts[0] == counts[1] == {"instances": 5, "predicted": 5, "skipped": 0}
    assert metrics[0] == metrics[1] == {"arm": "labels", **counts[0], "skipped_first": []}
    for one, other in zip(*tables):
        assert one["instance_id"].tolist() == other["instance_id"].tolist() and one.meta == other.meta
        for name, column in one.columns.items():
            if column.dtype.kind == "f":
                np.testing.assert_allclose(column, other[name], atol=1e-4)


@pytest.mark.slow
def test_downloads(tmp_path, make_workspace, two):
    from bad_server import Server, photo

    from prepare_data import download_images
    from prepare_data.journal import Journal
    from wildshape.stage import Provenance, publish
    from wildshape.tables import Table, make_record_id

    servers = [Server(0.01), Server(0.01)]
    urls = []
    for number in range(60):
        server = servers[number % 2 if number < 40 else 0]
        path = f"/{number}"
        page = [{"code": 503}, photo(number)] if number % 7 == 0 else photo(number)
        page = {"code": 404} if number % 5 == 0 else page
        server.pages[path] = photo(number)[:-400] if number % 11 == 0 else page
        urls.append(server.url + path)
    urls += [None, "http://[bad"]
    rows = [
        {"record_id": make_record_id("urls", str(url)), "url": url, "source": "urls", "width": -1,
         "height": -1, "status": "pending"}
        for url in urls
    ]  # fmt: skip
    made = {}
    for name, engine in (("local", {}), ("ray", two)):
        workspace = type(make_workspace())(tmp_path / name, "cow")
        publish(Table.from_rows("images", rows), workspace.table_path("candidates"), Provenance("test"))
        if name == "ray":  # what a worker had done when an earlier run was killed
            out = workspace.table_path("downloads")
            with Journal(out.with_name("downloads.journal-0000.jsonl")) as journal:
                journal.append({"record_id": "", "settings": "of another run"})
        config = download_images.Config(category="cow", concurrency=4, retries=2, **engine)
        metrics = download_images.run(config, workspace)
        seconds = metrics.pop("seconds"), metrics.pop("addresses_per_second")
        assert min(seconds) > 0
        made[name] = workspace.load("downloads"), workspace.load("images"), metrics
        files = {path.name for path in workspace.data_dir.iterdir()}
        assert not {name for name in files if "journal" in name or "parts" in name}
        hits = {(i, path): count for i, server in enumerate(servers) for path, count in server.hits.items()}
        made[name] += (hits,)
        for server in servers:
            server.hits.clear()
    for server in servers:
        server.close()
    for one, other in zip(made["local"][:2], made["ray"][:2]):
        assert content_hash(one) == content_hash(other)
    assert made["local"][2:] == made["ray"][2:]
    assert set(made["ray"][0]["status"]) == {"ok", "not_found", "truncated", "http_error"}
