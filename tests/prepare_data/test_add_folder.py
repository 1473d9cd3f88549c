"""A folder of the user's own photos."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from prepare_data import add_folder
from prepare_data.add_folder import Config, run
from wildshape.errors import UserError
from wildshape.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "root", "cow")


@pytest.fixture
def config(tmp_path):
    """Two photos, and one of them twice."""
    folder = tmp_path / "web"
    folder.mkdir()
    for seed in range(2):
        save(folder / f"{seed}.png", seed)
    (folder / "again.png").symlink_to(folder / "1.png")
    return Config(category="cow", folder=folder)


def save(path, seed):
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC))


def statuses(workspace):
    return {row["source_id"]: (row["status"], row["error"]) for row in workspace.load("images").rows()}


def test_a_folder_is_known_by_what_its_photos_show(config, workspace):
    run(config, workspace)
    found = statuses(workspace)
    assert found["0.png"] == found["1.png"] == ("ok", None) and found["again.png"][0] == "duplicate"
    for path in config.folder.iterdir():
        os.utime(path, (1, 1))
    made = workspace.table_path("downloads").stat().st_mtime_ns
    run(config, workspace)
    assert workspace.table_path("downloads").stat().st_mtime_ns == made
    size = (config.folder / "1.png").stat().st_size
    data = (config.folder / "0.png").read_bytes()
    (config.folder / "1.png").write_bytes(data.ljust(size, b"\0")[:size])
    with pytest.raises(UserError, match="web has changed since"):
        run(config, workspace)
    run(replace(config, overwrite=True), workspace)


@pytest.mark.skipif(sys.platform == "darwin", reason="names on a Mac's disk are always UTF-8")
def test_photos_whose_names_are_not_utf8_are_left_out(config, workspace, capsys):
    odd = os.fsdecode(b"\xe9t\xe9")
    (config.folder / odd).mkdir()
    save(config.folder / "2.png", 2)
    (config.folder / "2.png").rename(config.folder / odd / "2.png")
    run(config, workspace)
    assert len(statuses(workspace)) == 3
    out = capsys.readouterr().out
    assert r"left out 1 photos with names that are not UTF-8, first '\udce9t\udce9/2.png'" in out


def test_an_unreadable_photo_does_not_stop_the_others(config, workspace, monkeypatch):
    real = Path.read_bytes

    def denied(path):
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    monkeypatch.setattr(add_folder, "file_hash", lambda path: str(len(denied(path))))
    run(config, workspace)
    assert statuses(workspace)["1.png"] == ("not_image", "cannot be read: Permission denied")
    assert statuses(workspace)["0.png"] == ("ok", None)
