"""Labels beside a template's keypoints: what is wrong with its proportions comes out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from acsm_world import write_tables
from PIL import Image

from acsm.template import ArticulatedTemplate, template_for
from acsm.template_labels import label_shifts
from wildshape.category import load_category
from wildshape.cli import main
from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.records import AnimalRecords

SPEC = load_category("cow")
TEMPLATE = template_for(SPEC)
NAMES = list(SPEC.skeleton.keypoints)


def with_legs(share: float) -> ArticulatedTemplate:
    """The template with the lower end of its legs cut short or drawn out."""
    vertices = TEMPLATE.vertices.copy()
    knee = vertices[TEMPLATE.keypoint_vertices[NAMES.index("L_F_elbow")], 2]
    low = vertices[:, 2] < knee
    vertices[low, 2] = knee + share * (vertices[low, 2] - knee)
    return replace(TEMPLATE, vertices=vertices)


def labels_of(template: ArticulatedTemplate, yaws_deg, noise: float = 0.0) -> AnimalRecords:
    """Keypoints in pictures of animals that are turned by an angle (90: side on) and lean a little."""
    rng = np.random.default_rng(4)
    points = template.vertices[template.keypoint_vertices]
    xy = []
    for yaw in np.radians(yaws_deg):
        side, lean = np.cos(yaw) * points[:, 0] - np.sin(yaw) * points[:, 1], rng.uniform(-0.1, 0.1)
        flat = np.stack([side, -points[:, 2]], axis=-1) @ [
            [np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)],
        ]  # fmt: skip
        xy.append(rng.uniform(40, 90) * flat + rng.uniform(100, 200, 2))
    xy = np.array(xy) + noise * rng.standard_normal((len(xy), len(points), 2))
    count = len(xy)
    return AnimalRecords(
        instance_ids=tuple(map(str, range(count))),
        paths=(Path("x.jpg"),) * count,
        box_xyxy=np.concatenate([xy.min(1), xy.max(1)], axis=1),
        xy=xy,
        weight=np.ones(xy.shape[:2]),
        camera=np.full((count, 7), np.nan),
    )


SIDES = (90, -90, 84, -96, 80, 96, -84)


def test_labels_of_the_template_lie_on_its_keypoints():
    found = label_shifts(TEMPLATE, SPEC.skeleton, labels_of(TEMPLATE, (90, -90, 90, -90, 90, 0, 180, 45)))
    assert found.animals == 5  # those from the front, behind and half-way do not tell
    np.testing.assert_allclose(found.shift, 0, atol=1e-9)
    np.testing.assert_allclose(found.spread, 0, atol=1e-9)
    assert found.mean_distance < 1e-9
    at = TEMPLATE.vertices[TEMPLATE.keypoint_vertices]
    np.testing.assert_allclose(found.places(TEMPLATE), at, atol=1e-9)


@pytest.mark.parametrize(("share", "sign"), [(0.6, 1), (1.4, -1)])
def test_legs_of_another_length_are_seen(share, sign):
    found = label_shifts(TEMPLATE, SPEC.skeleton, labels_of(with_legs(share), SIDES, noise=0.5))
    up = dict(zip(NAMES, found.shift[:, 1]))
    paws = np.array([up[name] for name in NAMES if name.endswith("paw")])
    others = np.array([up[name] for name in NAMES if not name.endswith("paw")])
    # The paws stand .2 too low or high; laying one over the other shares that out.
    assert (sign * paws > 0.06).all() and (sign * paws.min() > sign * others).all()
    assert found.mean_distance > 0.05
    assert up["L_F_paw"] == up["R_F_paw"]
    rows = found.as_dict(SPEC.skeleton.keypoints)["keypoints"]
    assert [row["name"] for row in rows] == NAMES
    assert rows[NAMES.index("Withers")]["seen"] == 7 and rows[NAMES.index("L_eye")]["seen"] == 14


def test_hidden_keypoints_do_not_count():
    records = labels_of(TEMPLATE, SIDES)
    tail = NAMES.index("Tail")
    records.weight[:3, tail] = 0
    records.xy[:3, tail] = 1e6
    found = label_shifts(TEMPLATE, SPEC.skeleton, records)
    assert found.seen[tail] == 4 and np.isnan(found.shift[tail]).all()
    assert np.isfinite(np.delete(found.shift, tail, axis=0)).all() and found.mean_distance < 0.05


def test_animals_from_the_front_do_not_suffice():
    with pytest.raises(UserError, match="at least 5 labelled animals seen from the side; found 0"):
        label_shifts(TEMPLATE, SPEC.skeleton, labels_of(TEMPLATE, (0, 5, 180, 175, -5, 8)))


def test_the_command_says_and_draws_where_labels_lie(workspace, monkeypatch, capsys):
    records = labels_of(with_legs(0.6), SIDES)
    photo = np.zeros((300, 300, 3), np.uint8)
    rows = zip(records.box_xyxy, records.xy, records.camera)
    animals = [{"photo": photo, "box": box, "xy": xy, "camera": camera} for box, xy, camera in rows]
    write_tables(workspace, animals, ["train"] * 6 + ["test"])
    monkeypatch.chdir(workspace.root)
    command = ["template", "check", "--category", "cow", "--data-root", str(workspace.root), "--cell", "90"]
    assert main([*command, "--name", "plain"]) == 0
    assert "seen from the side" not in capsys.readouterr().out
    assert main([*command, "--name", "beside", "--labels"]) == 0
    said = capsys.readouterr().out
    assert "labels of 6 animals seen from the side lie 0." in said
    assert "  Withers        ahead " in said and "R_F_paw" not in said  # pooled with the left one's
    plain, beside = (read_json(workspace.root / f"{name}.check.json") for name in ("plain", "beside"))
    found = beside.pop("labels")
    assert plain == beside
    places = {row["name"]: row["up"] for row in found["keypoints"]}
    assert list(places) == NAMES and places["L_F_paw"] > 0.06 > 0 > places["Withers"]
    pictures = [
        np.asarray(Image.open(workspace.root / f"{name}.check.png")) for name in ("plain", "beside")
    ]
    changed = (pictures[0] != pictures[1]).any(axis=2)
    assert changed[:90, :90].any() and not changed[20:, 90:].any()


def test_labels_need_a_category(capsys):
    assert main(["template", "check", "x.npz", "--labels"]) == 2
    assert "x.npz" in capsys.readouterr().err
    assert main(["template", "check", "--category", "cow", "--labels", "--data-root", "nowhere"]) == 2
    assert "labels" in capsys.readouterr().err
