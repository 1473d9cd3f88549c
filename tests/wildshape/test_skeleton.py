from pathlib import Path

import numpy as np
import pytest

import wildshape.skeleton
from wildshape.errors import UserError
from wildshape.skeleton import Skeleton, load_skeleton, skeleton_from_mapping

SHIPPED = sorted(
    path.stem for path in Path(wildshape.skeleton.__file__).with_name("skeletons").glob("*.yaml")
)

# Order of the published annotations.
PUBLISHED = (
    *("L_eye", "R_eye", "L_ear", "R_ear", "Nose", "Throat", "Tail", "Withers"),
    *("L_F_elbow", "R_F_elbow", "L_B_elbow", "R_B_elbow", "L_F_paw", "R_F_paw", "L_B_paw", "R_B_paw"),
)


def test_there_are_two_shipped_skeletons():
    assert SHIPPED == ["quadruped16", "quadruped20"]


def test_quadruped16_is_the_published_order():
    skeleton = load_skeleton("quadruped16")
    assert skeleton.keypoints == PUBLISHED
    assert skeleton.flip == (1, 0, 3, 2, 4, 5, 6, 7, 9, 8, 11, 10, 13, 12, 15, 14)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_skeletons_hold_together(name):
    skeleton = load_skeleton(name)
    assert skeleton.name == name
    flip = np.array(skeleton.flip)
    np.testing.assert_array_equal(flip[flip], np.arange(skeleton.num_keypoints))
    edges = {frozenset(edge) for edge in skeleton.edges}
    assert {frozenset(int(flip[i]) for i in edge) for edge in edges} == edges, "bones mirror onto bones"
    assert {i for edge in edges for i in edge} == set(range(skeleton.num_keypoints)), (
        "no keypoint hangs loose"
    )
    for a, b in zip(skeleton.keypoints, np.array(skeleton.keypoints)[flip]):
        left, right = a.lower().startswith("l"), b.lower().startswith("r")
        assert left == (right and a != b)


def test_every_keypoint_of_16_is_one_of_20():
    sixteen, twenty = load_skeleton("quadruped16"), load_skeleton("quadruped20")
    mapping = sixteen.map_from(twenty.keypoints)
    assert sorted(mapping) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 18, 19]
    back = twenty.map_from(sixteen.keypoints)
    knees = [i for i, name in enumerate(twenty.keypoints) if "knee" in name]
    assert [i for i in range(20) if back[i] < 0] == knees
    for i, j in enumerate(mapping):
        assert back[j] == i


def test_names_of_any_script_are_told_apart():
    names = ("левый глаз", "правый глаз", "鼻", "पूंछ")
    skeleton = Skeleton("own", names)
    assert [skeleton.find(name) for name in ("Левый_Глаз", "ПРАВЫЙ ГЛАЗ", "鼻", "पूंछ")] == [0, 1, 2, 3]
    assert skeleton.find("глаз") is None


def test_find_ignores_case_and_separators_and_knows_aliases():
    skeleton = load_skeleton("quadruped16")
    assert skeleton.find("l-f PAW") == 12
    assert skeleton.find("left_front_paw") == 12
    assert skeleton.find("TailBase") == 6
    assert skeleton.find("knee") is None


def test_map_from_marks_what_is_missing_and_prefers_the_exact_name():
    skeleton = Skeleton("s", ("nose", "tail"), aliases={"snout": "nose"})
    np.testing.assert_array_equal(skeleton.map_from(["tail"]), [-1, 0])
    np.testing.assert_array_equal(skeleton.map_from(["snout", "nose"]), [1, -1])
    np.testing.assert_array_equal(skeleton.map_from(["nose", "snout"]), [0, -1])
    np.testing.assert_array_equal(skeleton.map_from([]), [-1, -1])


def test_sides():
    skeleton = Skeleton("s", ("l", "nose", "r"), flip=(2, 1, 0))
    assert skeleton.sides == ("left", "middle", "right")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints": ("a", "A")}, "expected distinct keypoint names"),
        ({"keypoints": ()}, "expected distinct keypoint names"),
        ({"keypoints": ("a", "b", "c"), "flip": (1, 2, 0)}, "expected a flip that undoes itself"),
        ({"keypoints": ("a", "b"), "edges": ((0, 2),)}, r"edge \(0, 2\) leaves the 2 keypoints"),
        ({"keypoints": ("a", "b"), "aliases": {"x": "c"}}, "alias x names no keypoint: c"),
    ],
)
def test_a_skeleton_that_contradicts_itself_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Skeleton("s", **arguments)


def test_unknown_skeleton_lists_those_there_are():
    with pytest.raises(UserError, match=r"unknown skeleton biped; there are: quadruped16, quadruped20"):
        load_skeleton("biped")


def test_a_users_skeleton_is_loaded_by_path(tmp_path):
    path = tmp_path / "bird.yaml"
    path.write_text(
        "name: bird\nkeypoints: [beak, l_wing, r_wing]\npairs: [[l_wing, r_wing]]\nedges: [[beak, l_wing]]"
    )
    skeleton = load_skeleton(path)
    assert skeleton.flip == (0, 2, 1) and skeleton.edges == ((0, 1),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected name, keypoints"),
        ("[1, 2]", "expected name, keypoints"),
        ("name: x\nkeypoints: [a]\npairs: [[a, b]]", "found a problem at 'b'"),
        ("name: [x", "expected YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"broken\.yaml: .*{message}"):
        load_skeleton(path)


def test_from_mapping_names_its_origin():
    with pytest.raises(UserError, match="the input: expected name"):
        skeleton_from_mapping({"name": "x"}, "the input")
