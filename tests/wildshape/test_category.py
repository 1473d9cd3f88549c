import numpy as np
import pytest

from wildshape.category import list_categories, load_category
from wildshape.errors import UserError

ZEBRA = """\
name: zebra
skeleton: quadruped16
coco_label: zebra
synonyms:
  - zebra
template:
  file: zebra.npz
"""


def write(root, text, name="zebra"):
    folder = root / "categories"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


def test_the_shipped_categories():
    assert list_categories() == ["bear", "cow", "dog", "giraffe", "horse", "sheep"]


@pytest.mark.parametrize("name", list_categories())
def test_every_shipped_category_loads(name):
    spec = load_category(name)
    assert spec.name == name == spec.path.stem
    assert spec.skeleton.name == "quadruped16"
    assert spec.coco_label == name
    assert name in spec.synonyms
    assert not set(spec.synonyms) & set(spec.exclude)


@pytest.mark.parametrize("name", list_categories())
def test_every_shipped_category_has_a_template_that_fits_its_skeleton(name):
    from acsm.template import template_for

    spec = load_category(name)
    template = template_for(spec)
    assert template.num_keypoints == spec.skeleton.num_keypoints
    np.testing.assert_array_equal(template.keypoint_flip, spec.skeleton.flip)
    assert 1000 <= template.num_vertices <= 2500
    assert template.is_closed() and template.is_manifold()
    assert template.diameter() == pytest.approx(2)


def test_a_template_file_that_mirrors_other_keypoints_is_refused(tmp_path):
    from dataclasses import replace

    from acsm.template import template_for

    write(tmp_path, ZEBRA)
    template = template_for(load_category("horse"))
    path = tmp_path / "categories/zebra.npz"
    template.save(path)
    assert template_for(load_category("zebra", tmp_path)).num_vertices == template.num_vertices
    replace(template, keypoint_flip=np.arange(16)).save(path)
    with pytest.raises(UserError, match=r"zebra\.npz: expected keypoint_flip \[1, 0, .* found \[0, 1, 2"):
        template_for(load_category("zebra", tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"expected a template file; found nothing at .*zebra\.npz"):
        template_for(load_category("zebra", tmp_path))


def test_unknown_category_lists_those_there_are_and_guesses(tmp_path):
    with pytest.raises(
        UserError,
        match=r"unknown category hors \(did you mean horse\?\); there are: bear, cow, dog, giraffe, horse",
    ):
        load_category("hors", tmp_path)
    with pytest.raises(
        UserError, match=r"unknown category zzz; there are: .* categories/ under the data root"
    ):
        load_category("zzz", tmp_path)


def test_a_users_category_is_found_listed_and_goes_first(tmp_path):
    write(tmp_path, ZEBRA)
    spec = load_category("zebra", tmp_path)
    assert spec.template == {"file": str(tmp_path / "categories/zebra.npz")}
    assert spec.exclude == () and spec.active_parts is None and spec.diorama == {}
    assert "zebra" in list_categories(tmp_path)
    with pytest.raises(UserError, match="did you mean zebra"):
        load_category("zebras", tmp_path)
    write(tmp_path, "name: cow\ntemplate: {procedural: {}}\nsynonyms: [yak]\n", "cow")
    assert load_category("cow", tmp_path).synonyms == ("yak",)


def test_defaults(tmp_path):
    write(tmp_path, "name: zebra\ntemplate: {procedural: {}}\n")
    spec = load_category("zebra", tmp_path)
    assert spec.skeleton.name == "quadruped16"
    assert spec.synonyms == ("zebra",) and spec.coco_label is None


def test_a_category_may_bring_its_skeleton(tmp_path):
    write(tmp_path, ZEBRA.replace("skeleton: quadruped16", "skeleton: two.yaml"))
    (tmp_path / "categories/two.yaml").write_text("name: two\nkeypoints: [nose, tail]\n")
    assert load_category("zebra", tmp_path).skeleton.keypoints == ("nose", "tail")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "expected YAML"),
        ("- a\n", "expected a mapping with name: zebra"),
        ("name: horse\n", "expected a mapping with name: zebra"),
        (ZEBRA + "colour: striped\n", r"found also \['colour'\]"),
        ("name: zebra\n", "expected template: with procedural: or file:; found None"),
        (ZEBRA + "exclude: crossing\n", "expected exclude: as a list.*found crossing"),
        (ZEBRA.replace("quadruped16", "octopod"), "unknown skeleton octopod"),
    ],
)
def test_a_broken_category_says_what_was_expected(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(UserError, match=message):
        load_category("zebra", tmp_path)
