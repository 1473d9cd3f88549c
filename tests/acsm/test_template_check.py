"""`wildshape template check`: what it says, writes and refuses; the real rigs."""

import os
from pathlib import Path

import numpy as np
import pytest
import rig_files as rig
from PIL import Image
from scipy.spatial.transform import Rotation

from acsm.template import template_for
from acsm.template_check import Config, measures, random_turns
from acsm.template_file import faults, read_template
from acsm.template_gltf import read_gltf
from wildshape.category import load_category
from wildshape.cli import main
from wildshape.files import read_json
from wildshape.skeleton import load_skeleton


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WILDSHAPE_ROOT", str(tmp_path))
    (tmp_path / "categories").mkdir()
    skeleton = rig.SKELETON.replace("nose, tail, ", "")
    (tmp_path / "categories/wings.yaml").write_text(skeleton.replace("IKTail: tail, ", ""))
    (tmp_path / "tube.template.yaml").write_text("min_share: 0\n")
    return tmp_path


def check(folder, *arguments):
    flags = () if "--category" in arguments else ("--skeleton", str(folder / "categories/wings.yaml"))
    return main(["template", "check", *map(str, arguments), *flags])


def test_a_sound_template_is_described_and_drawn(folder, capsys):
    path = rig.write_glb(folder / "tube.glb", *rig.gltf())
    assert check(folder, path, "--cell", "80") == 0
    said = capsys.readouterr().out
    assert "20 vertices, 36 faces, closed, symmetric within 0.00" in said
    assert "5 parts (2 in pairs, 2 turn): Hips, Head, Wing.L, Wing.R, IKTail" in said
    assert "2 keypoints of tube" in said and "108 vertices welded to 20" in said
    assert "map to the sphere (computed): 0 triangles flipped" in said
    figures = read_json(folder / "tube.check.json")
    assert figures["sphere_map"]["flipped"] == 0 and figures["sphere_map"]["stretch"] > 1
    assert figures["closed"] and figures["border_edges"] == 0 and figures["faults"] == []
    assert figures["diameter"] == pytest.approx(2) and figures["pieces"] == [20]
    assert figures["parts"][2]["mirror"] == "Wing.R" and figures["parts"][2]["parent"] == "Hips"
    left, right = (np.array(point["position"]) for point in figures["keypoints"])
    np.testing.assert_allclose(left, right * [-1, 1, 1], atol=1e-5)
    assert left[0] > 0 and figures["keypoints"][0]["name"] == "left_wing"
    picture = np.asarray(Image.open(folder / "tube.check.png"))
    assert picture.shape == (160, 240, 3)
    for row in range(2):
        for column in range(3):
            cell = picture[80 * row : 80 * row + 80, 80 * column : 80 * column + 80]
            assert (cell[20:] < 250).any(axis=2).mean() > 0.05  # something is drawn in each


@pytest.mark.parametrize(
    "write, message",
    [
        (
            lambda p: rig.write_glb(p, *rig.gltf(open_end=True)),
            "open: expected every edge between two faces",
        ),
        (
            lambda p: rig.write_glb(p, *rig.gltf({"Head": (0, 0.9, 0)})),
            "asymmetric: expected a mirror image",
        ),
        (lambda p: p.write_bytes(b"glTF"), "expected glTF 2.0"),
    ],
)
def test_an_unsound_template_gives_one_line_and_code_2(folder, capsys, write, message):
    write(folder / "tube.glb")
    assert check(folder, folder / "tube.glb", "--cell", "40") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error


def test_a_missing_keypoint_gives_one_line(folder, capsys):
    rig.write_glb(folder / "other.glb", *rig.gltf())
    assert main(["template", "check", str(folder / "other.glb")]) == 2
    error = capsys.readouterr().err.strip()
    assert "expected a vertex for each keypoint of quadruped16; found none for L_eye, R_eye" in error
    assert not (folder / "other.check.png").exists()


def test_the_template_of_a_category(folder, capsys):
    out = folder / "horse.png"
    assert check(folder, "--category", "horse", "--out", out, "--cell", "60") == 0
    assert "12 parts (8 in pairs, 10 turn): body, neck" in capsys.readouterr().out
    assert check(folder, "--category", "horse", "--out", out) == 2
    assert "expected no file at" in capsys.readouterr().err
    assert check(folder, "--category", "horse", "--out", out, "--cell", "30", "--overwrite") == 0
    assert Image.open(out).size == (90, 60)

    rig.write_glb(folder / "categories/tube.glb", *rig.gltf())
    (folder / "categories/tube.yaml").write_text(
        "name: tube\nskeleton: wings.yaml\ntemplate: {file: tube.glb, min_share: 0}\n"
    )
    assert check(folder, "--category", "tube", "--out", folder / "a.png", "--cell", "40") == 0
    rest = (folder / "categories/tube.glb", "--category", "tube", "--cell", "40")
    assert check(folder, *rest) == 0
    assert read_json(folder / "categories/tube.check.json") == read_json(folder / "a.json")


def test_a_template_of_another_skeleton_is_refused(folder, capsys):
    template_for(load_category("horse")).save(folder / "horse.npz")
    assert check(folder, folder / "horse.npz") == 2
    assert "expected 2 keypoint vertices, as tube has keypoints; found 16" in capsys.readouterr().err
    assert main(["template", "check", str(folder / "horse.npz"), "--name", "mine", "--cell", "30"]) == 0
    assert (folder / "mine.check.json").is_file()


def test_how_it_is_called(folder, capsys):
    for wrong, found in (([], "nothing"), (["look", "x.glb"], "look")):
        assert main(["template", *wrong]) == 2
        said = f"expected check; found {found}; run: wildshape template check FILE"
        assert said in capsys.readouterr().err
    assert main(["template", "check"]) == 2
    assert "expected a file or --category" in capsys.readouterr().err
    (folder / "notes.json").write_text("mine")
    assert main(["template", "check", "--category", "cow", "--out", str(folder / "notes.png")]) == 2
    assert "notes.json; found one" in capsys.readouterr().err
    assert (folder / "notes.json").read_text() == "mine"
    assert main(["template", "check", "x.glb", "--category", "cow", "--skeleton", "quadruped16"]) == 2
    assert "found both" in capsys.readouterr().err
    assert Config().file is None


def test_turns_come_from_the_seed():
    template = template_for(load_category("cow"))
    first, again, other = (random_turns(template, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert set(first) == set(np.array(template.part_names)[template.active])
    angles = np.degrees(np.linalg.norm(list(first.values()), axis=1))
    assert angles.min() > 7 and angles.max() <= 25


REAL = {
    "Cow": {"L_eye": {"group": "Eye_Black", "side": "left"}, "L_ear": {"position": [0.95, 4.05, 3.9]}},
    "Horse": {"L_eye": {"group": "Eye_Black", "side": "left"}},
}


@pytest.mark.real_data(reason="rigged models are not part of the project")
@pytest.mark.parametrize("name", sorted(REAL))
def test_rigs_that_others_made(name):
    path = Path(os.environ["WILDSHAPE_REAL_DATA"]) / "rigged" / f"{name}.glb"
    skeleton = load_skeleton("quadruped16")
    template = read_template(path, skeleton, {"keypoints": REAL[name]}).template
    figures = measures(template, skeleton)
    assert 1000 < figures["vertices"] < 1300 and figures["symmetry_error"] < 0.05
    assert 15 <= len(figures["parts"]) <= 24
    pairs = {part["name"]: part["mirror"] for part in figures["parts"]}
    assert all(pairs[name] == name.replace(".L", ".R") for name in pairs if name.endswith(".L"))
    found = [fault for fault in faults(template, skeleton) if not fault.startswith("open")]
    assert not found
    place = {point["name"]: point["position"] for point in figures["keypoints"]}
    assert place["Nose"][1] < place["Throat"][1] < place["Withers"][1] < place["Tail"][1]
    assert place["L_F_paw"][2] < place["L_F_elbow"][2] < place["Withers"][2]
    assert place["L_F_paw"][0] > 0 > place["R_F_paw"][0]
    assert place["L_eye"][1] < place["L_ear"][1]


@pytest.mark.real_data(reason="rigged models are not part of the project")
@pytest.mark.parametrize("name", sorted(REAL))
def test_articulation_of_a_real_rig_is_linear_blend_skinning(name):
    path = Path(os.environ["WILDSHAPE_REAL_DATA"]) / "rigged" / f"{name}.glb"
    settings = {"keypoints": REAL[name], "min_share": 0, "most_parts": 99}
    template = read_template(path, load_skeleton("quadruped16"), settings).template
    mesh = read_gltf(path)
    frame = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    bone = mesh.bones.index("Neck2")
    below = [b for b in range(len(mesh.bones)) if _hangs_on(mesh.bone_parents, b, bone)]
    vector = np.array([0.2, 0.5, -0.3])
    share = mesh.weights[:, below].sum(axis=1)[:, None]
    head = mesh.heads[bone]
    posed = (1 - share) * mesh.vertices
    posed += share * (Rotation.from_rotvec(vector).apply(mesh.vertices - head) + head)
    articulated = template.articulated({"Neck2": tuple(frame @ vector)})
    # From the file's axes to the template's by what both meshes share at rest.
    rest = mesh.vertices @ frame.T
    scale = np.ptp(template.vertices, axis=0)[2] / np.ptp(rest, axis=0)[2]
    shift = template.vertices.min(axis=0) - scale * rest.min(axis=0)
    distance = np.linalg.norm((scale * posed @ frame.T + shift)[:, None] - articulated, axis=2)
    assert distance.min(axis=1).max() < 1e-4


def _hangs_on(parents, bone, top):
    while bone >= 0 and bone != top:
        bone = parents[bone]
    return bone == top
