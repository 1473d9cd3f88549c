"""Templates from released folders: frames, parts, and pickles that are read without running them."""

import pickle

import numpy as np
import pytest
import rig_files as rig
from scipy.io import savemat

from acsm.pickled_arrays import read_arrays_only
from acsm.template_file import read_template
from wildshape.errors import UserError


def test_a_released_folder(tmp_path, skeleton):
    folder = rig.write_cachedir(tmp_path)
    loaded = read_template(folder, skeleton)
    template = loaded.template
    assert template.part_names == ("body", "head", "l_wing", "r_wing")
    assert template.part_parents == (-1, 0, 0, 0)
    assert template.part_mirror.tolist() == [0, 1, 3, 2]
    assert template.active.tolist() == [False, True, True, True]
    assert template.keypoint_vertices.tolist() == [17, 1, 8, 9]
    np.testing.assert_allclose(template.vertices, rig.VERTICES @ rig.FRAME.T * 2 / rig.size(), atol=1e-9)
    head = np.array([0, -1, 0]) * 2 / rig.size()
    np.testing.assert_allclose(template.part_centres[1], head, atol=1e-9)  # moved along
    assert "horn" in " ".join(loaded.notes)

    published = read_template(folder / "mean_shape.mat", skeleton, {"scale": "published"}).template
    np.testing.assert_allclose(published.vertices, template.vertices)
    np.testing.assert_allclose(published.part_centres, [[0, 0, 0], [3, -1, 0], [3.3, 0, 0], [2.7, 0, 0]])
    plain = read_template(folder, skeleton, {"scale": "none"}).template
    assert plain.vertices[:, 0].mean() == pytest.approx(3)


def test_a_released_folder_without_what_lies_above_it(tmp_path, skeleton):
    folder = rig.write_cachedir(tmp_path)
    (tmp_path / "mirror_transforms.txt").unlink()
    (tmp_path / "part_files/tube.txt").rename(tmp_path / "other.txt")
    loaded = read_template(folder, skeleton)
    assert loaded.template.part_mirror.tolist() == [0, 1, 2, 3] and loaded.template.active.all()
    assert len(loaded.notes) == 3
    named = read_template(folder, skeleton, {"part_file": "../other.txt"}).template
    assert named.active.tolist() == [False, True, True, True]
    with pytest.raises(UserError, match=r"expected a file at .*gone.txt, as the settings say"):
        read_template(folder, skeleton, {"mirror": "gone.txt"})


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", ["system", "eval", "open", "getattr"])
def test_a_pickle_that_calls_something_does_nothing(tmp_path, skeleton, protocol, kind):
    import os

    folder, marker = rig.write_cachedir(tmp_path), tmp_path / "marker"
    call = {
        "system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "open": Calls(open, str(marker), "w"),
        "getattr": Calls(getattr, "x", "upper"),
    }[kind]
    data = pickle.dumps({"alpha": np.ones((20, 1)), "nodes": [call]}, protocol=protocol)
    (folder / "parts.pkl").write_bytes(data)
    with pytest.raises(
        UserError, match=r"parts\.pkl: expected a pickle of arrays and plain values; found "
    ):
        read_template(folder, skeleton)
    assert not marker.exists()
    if kind in ("open", "eval"):
        pickle.loads(data)  # what the plain reader would have done
        assert marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_and_plain_values_are_read(tmp_path, protocol):
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3).astype(">i4"))
    value = {
        "f": fortran,
        "o": np.array([{"x": 1}, None], object),
        "a": np.arange(6.0).reshape(2, 3),
        "b": [1, "two", np.float32(3), np.int64(4), None, True, b"5"],
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_arrays_only(tmp_path / "x.pkl")
    np.testing.assert_array_equal(found["a"], value["a"])
    np.testing.assert_array_equal(found["f"], fortran)
    assert found["o"] == [{"x": 1}, None] and found["b"] == value["b"]


@pytest.mark.parametrize(
    "value, message",
    [
        (np.dtype("f8"), "a name|dtype"),
        (np.array(["a"]), "an array of U1"),
        (np.zeros(2, [("x", "f4")]), "an array of V4"),
        (np.empty((2, 2), object), r"4 objects in an array of shape \[2, 2\]"),
        (np.ndarray, ""),
    ],
)
def test_other_arrays_are_refused_or_inert(tmp_path, value, message):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=2))
    if message and "|" not in message:
        with pytest.raises(UserError, match=message):
            read_arrays_only(tmp_path / "x.pkl")
    else:
        assert read_arrays_only(tmp_path / "x.pkl") in (np.dtype("f8"), "numpy.ndarray")


def test_a_released_pickle_with_any_byte_changed_is_read_or_refused(tmp_path):
    """NumPy's own unpickling upsets its types on some of these."""
    data = (rig.write_cachedir(tmp_path) / "parts.pkl").read_bytes()
    head, rng, path, refused = 400, np.random.default_rng(3), tmp_path / "changed.pkl", 0
    for place in range(0, min(head, len(data)), 2):
        changed = bytearray(data)
        changed[place] = rng.integers(256)
        path.write_bytes(bytes(changed))
        try:
            read_arrays_only(path)
        except UserError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: (f / "parts.pkl").write_bytes(b"none"), "expected a pickle of arrays"),
        (lambda f: (f / "parts.pkl").unlink(), "expected a pickle at .*parts.pkl; found No such file"),
        (
            lambda f: (f / "parts.pkl").write_bytes(pickle.dumps([1])),
            "expected alpha and nodes; found list",
        ),
        (
            lambda f: (f / "parts.pkl").write_bytes(
                pickle.dumps({"alpha": np.ones((3, 1)), "nodes": [{}]})
            ),
            r"expected alpha \[20, 1\], as there are vertices and nodes; found \[3, 1\]",
        ),
        (
            lambda f: (f / "parts.pkl").write_bytes(
                pickle.dumps({"alpha": np.ones((20, 1)), "nodes": [{}]})
            ),
            "expected nodes with id, name, is_main, children and rc; found a problem at 'id'",
        ),
        (lambda f: (f / "kp2vertex.txt").write_text("nose 3\ntail 1\n"), "none for left_wing, right_wing"),
        (
            lambda f: (f / "kp2vertex.txt").write_text("nose 20\n"),
            "expected vertices from 0 to 19; found 20",
        ),
        (lambda f: (f.parent / "mirror_transforms.txt").write_text("a b\n"), "expected parts among body"),
        (lambda f: (f / "mean_shape.mat").write_bytes(b"x" * 200), "expected verts and faces"),
        (lambda f: savemat(f / "mean_shape.mat", {"v": 1}), "expected verts and faces; .* 'verts'"),
        (lambda f: (f / "mean_shape.mat").unlink(), "expected mean_shape.mat of a released template"),
    ],
)
def test_a_broken_released_folder_says_what_was_expected(tmp_path, skeleton, change, message):
    folder = rig.write_cachedir(tmp_path)
    change(folder)
    with pytest.raises(UserError, match=message):
        read_template(folder, skeleton)
