"""Watching a training: what is told, and that no server can stop it."""

import json
import os
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from toy_task import ToyTask, fit_toy

from wildshape import monitor, training
from wildshape.errors import UserError
from wildshape.monitor import MonitorOptions, VisdomMonitor
from wildshape.stage import Provenance

PROVENANCE = Provenance("toy", {})


class Recorder:
    def __init__(self):
        self.told, self.shown, self.closed = [], [], 0

    def scalars(self, step, values):
        self.told.append((step, dict(values)))

    def earlier(self, rows):
        self.told.append(rows)

    def pictures(self, step, pictures):
        self.shown.append((step, sorted(pictures)))

    def close(self):
        self.closed += 1


class Drawing(ToyTask):
    def pictures(self):
        assert not self.model.training
        return {"weights": np.zeros((4, 6, 3), np.uint8)}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_monitor_is_told_what_the_log_holds(tmp_path):
    recorder = Recorder()
    config = training.FitConfig(steps=6, batch_size=4, eval_every=3, log_every=2, metric="-error")
    training.fit(Drawing(), config, tmp_path, PROVENANCE, {"kind": "toy"}, recorder)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [step for step, _ in recorder.told] == [2, 3, 4, 6, 6]
    for line, (_, values) in zip(lines, recorder.told):
        assert values == {name: value for name, value in line.items() if name not in ("step", "seconds")}
    assert recorder.shown == [(3, ["weights"]), (6, ["weights"])] and recorder.closed == 1


def test_without_the_flag_there_is_none(tmp_path):
    assert MonitorOptions().monitor("run", "pose", tmp_path) is None


def test_without_visdom_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", None)
    with pytest.raises(UserError, match=r'pip install "wildshape\[visdom\]"'):
        MonitorOptions(visdom=True).monitor("run", "pose", tmp_path)


class FakeVisdom:
    """Keeps what it is sent; may hang, or fail from some call on."""

    def __init__(self, fail_from=10**9, hang=None):
        self.calls, self.fail_from, self.hang = [], fail_from, hang

    def __call__(self, **settings):
        self.settings = settings
        return self

    def _take(self, *call):
        if self.hang is not None:
            self.hang.wait(30)
        if len(self.calls) >= self.fail_from:
            self.calls.append("refused")
            raise ConnectionError("gone")
        self.calls.append(call)

    def line(self, X, Y, win, update, opts):
        self._take("line", win, X.tolist(), Y.tolist(), update)

    def image(self, picture, win, opts):
        self._take("image", win, picture.shape, opts["caption"])


@pytest.fixture
def fake(monkeypatch):
    def use(server):
        monkeypatch.setitem(sys.modules, "visdom", SimpleNamespace(Visdom=server))
        monkeypatch.setattr(monitor, "_answers", lambda host, port: True)
        return server

    return use


def test_curves_and_pictures(tmp_path, fake):
    server = fake(FakeVisdom())
    watch = MonitorOptions(visdom=True, visdom_port=7).monitor("my_run", "pose", tmp_path)
    watch.scalars(10, {"loss": 2.0, "val_pck": 0.5})
    watch.pictures(10, {"animals": np.zeros((4, 6, 3), np.uint8)})
    watch.scalars(20, {"loss": 1.0})
    watch.close()
    assert server.settings["port"] == 7 and server.settings["env"] == "my-run"  # visdom nests by "_"
    assert server.calls == [
        ("line", "pose: training, loss", [10], [2.0], None),
        ("line", "pose: validation, pck", [10], [0.5], None),
        ("image", "pose: animals", (3, 4, 6), "step 10"),
        ("line", "pose: training, loss", [20], [1.0], "append"),
    ]


def test_a_training_that_goes_on_shows_its_curves_whole(tmp_path, fake):
    """A step a call; each call has a server that knows nothing of the ones before."""
    config = training.FitConfig(
        steps=4, batch_size=4, eval_every=2, log_every=1, metric="-error", time_limit=0.0
    )
    for _ in range(3):
        server = fake(FakeVisdom())
        watch = VisdomMonitor("localhost", 7, "run", "pose", tmp_path)
        training.fit(ToyTask(), config, tmp_path / "a", PROVENANCE, {"kind": "toy"}, watch)
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    (error,) = [line["val_error"] for line in lines if "val_error" in line]
    assert [call[2:] for call in server.calls if call[1] == "pose: training, loss"] == [
        ([1, 2], losses[:2], None),
        ([3], losses[2:], "append"),
    ]
    shown = [call[2:] for call in server.calls if call[1] == "pose: validation, error"]
    assert shown == [([2], [error], None)]


def test_a_server_that_dies_is_told_once_and_left(tmp_path, fake, capsys):
    server = fake(FakeVisdom(fail_from=2))
    watch = VisdomMonitor("localhost", 7, "run", "pose", tmp_path)
    for step in range(20):
        watch.scalars(step, {"loss": 1.0})
    watch.close()
    assert server.calls[2:] == ["refused"] * 3
    out = capsys.readouterr().out
    assert out.count("no longer answers (ConnectionError); the training goes on without it") == 1


def test_a_server_that_hangs_keeps_nobody_waiting(tmp_path, fake):
    hang = threading.Event()
    fake(FakeVisdom(hang=hang))
    watch = VisdomMonitor("localhost", 7, "run", "pose", tmp_path)
    began = time.monotonic()
    for step in range(2000):  # more than may wait
        watch.scalars(step, {"loss": 1.0})
    assert time.monotonic() - began < 5
    hang.set()
    watch.close()


def test_an_absent_server_elsewhere_is_told_and_a_training_ends_the_same(tmp_path, capsys):
    fit_toy(ToyTask(), tmp_path / "alone")
    pytest.importorskip("visdom", reason="needs the extra wildshape[visdom]")
    watch = MonitorOptions(visdom=True, visdom_server="127.0.0.2", visdom_port=free_port())
    task = ToyTask()
    config = training.FitConfig(steps=4, batch_size=4, eval_every=2, metric="-error")
    result = training.fit(
        task, config, tmp_path / "fit", PROVENANCE, {"kind": "toy"}, watch.monitor("r", "toy", tmp_path)
    )
    assert result.finished
    assert "does not answer; the training goes on without it" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # visdom's logging calls
def test_a_real_server_is_started_and_shows_it(tmp_path, capsys, monkeypatch):
    pytest.importorskip("visdom", reason="needs the extra wildshape[visdom]")
    import requests

    started = []
    popen = monitor.subprocess.Popen

    def keep(*arguments, **settings):
        started.append(popen(*arguments, **settings))
        return started[-1]

    monkeypatch.setattr(monitor.subprocess, "Popen", keep)
    monkeypatch.setattr(monitor, "_START_SECONDS", 90.0)
    # Its scripts need a network, which a test has not.
    monkeypatch.setattr(monitor, "_SERVER", monitor._SERVER.replace("download_scripts()", "pass"))
    port = free_port()
    try:
        watch = VisdomMonitor("localhost", port, "run", "pose", tmp_path / "visdom")
        watch.scalars(10, {"loss": 2.0})
        watch.scalars(20, {"loss": 1.5})
        watch.pictures(20, {"animals": np.zeros((8, 8, 3), np.uint8)})
        watch._thread.join(timeout=0)
        limit = time.monotonic() + 90
        while watch._waiting.qsize() and time.monotonic() < limit:
            time.sleep(0.05)
        watch.close()
        window = requests.post(
            f"http://127.0.0.1:{port}/win_data",
            json={"win": "pose: training, loss", "eid": "run"},
            timeout=10,
        ).json()
        content = json.loads(window) if isinstance(window, str) else window
        curve = content["content"]["data"][0]
        assert curve["x"] == [10, 20] and curve["y"] == [2.0, 1.5]
        assert f"started at http://localhost:{port}" in capsys.readouterr().out
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
