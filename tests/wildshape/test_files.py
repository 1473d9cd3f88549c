import errno
import hashlib
import json
import os

import numpy as np
import pytest

from wildshape.errors import UserError
from wildshape.files import (
    atomic_path,
    atomic_write,
    distinct,
    file_hash,
    read_json,
    same_content,
    sha256_bytes,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_leaves_one_file_and_makes_folders(tmp_path):
    with atomic_write(tmp_path / "a/b.bin") as handle:
        handle.write(b"one")
        assert not (tmp_path / "a/b.bin").exists()
    assert (tmp_path / "a/b.bin").read_bytes() == b"one"
    assert names(tmp_path / "a") == ["b.bin"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failed_write_keeps_the_old_file_and_no_other(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_write(target, "w") as handle:
        handle.write("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_move_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(target, "w") as handle:
        handle.write("new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_path_keeps_the_suffix(tmp_path):
    with atomic_path(tmp_path / "mesh.npz") as temporary:
        assert temporary.suffix == ".npz" and temporary.parent == tmp_path
        temporary.write_bytes(b"x")
    assert names(tmp_path) == ["mesh.npz"]


@pytest.mark.parametrize("links", [True, False])
def test_same_content_replaces_and_later_writes_do_not_reach_the_other(tmp_path, monkeypatch, links):
    if not links:  # as on a file system that has none

        def refuse(*_):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    best, last = tmp_path / "best.pt", tmp_path / "last.pt"
    best.write_bytes(b"one")
    last.write_bytes(b"old")
    for _ in range(2):
        same_content(best, last)
        assert last.read_bytes() == b"one" and os.path.samefile(best, last) == links
        assert names(tmp_path) == ["best.pt", "last.pt"]
    with atomic_write(last) as handle:
        handle.write(b"two")
    assert best.read_bytes() == b"one"


def test_json_round_trip_makes_numpy_plain_and_nan_null(tmp_path):
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": (1, None), 4: float("nan"), "p": tmp_path / "x"}
    write_json(tmp_path / "v.json", value)
    found = read_json(tmp_path / "v.json")
    assert found == {"a": 0.5, "b": [0, 1, 2], "c": [1, None], "4": None, "p": f"{tmp_path.as_posix()}/x"}
    assert (tmp_path / "v.json").read_text().endswith("}\n")
    json.loads((tmp_path / "v.json").read_text(), parse_constant=pytest.fail)


def test_read_json_names_the_file_it_cannot_read(tmp_path):
    with pytest.raises(UserError, match=r"expected a JSON file at .*none\.json; found none"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{'a': 1}")
    with pytest.raises(UserError, match=r"expected JSON in .*bad\.json; found .*line 1"):
        read_json(tmp_path / "bad.json")


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"wild")
    assert file_hash(tmp_path / "f") == sha256_bytes(b"wild") == hashlib.sha256(b"wild").hexdigest()


def test_repeated_names_are_numbered():
    assert distinct(["a", "b", "A", "a-2", "a"]) == ["a", "b", "A-2", "a-2-2", "a-3"]
