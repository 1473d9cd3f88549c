"""Captioned pictures and rings of views: what they say of an animal is so."""

import json
from dataclasses import replace

import numpy as np
import pytest

from prepare_data import make_views
from prepare_data.diorama.subjects import BONE_PART, COLOURS, PARTS, sample_subject
from prepare_data.diorama.views import (
    GREY,
    RING_AZIMUTHS,
    RING_ELEVATIONS,
    draw_subject,
    facing,
    framed_view,
    orbit_view,
    part_map,
    sample_picture,
    sample_ring,
    studio_light,
)
from prepare_data.diorama.zoo import Zoo
from prepare_data.make_views import Config, run
from wildshape.errors import UserError

SIDE = 32


@pytest.fixture(scope="module")
def zoo():
    return Zoo(9901, (), 0.9)


@pytest.fixture(scope="module")
def painted(zoo):
    return sample_subject(zoo, "horse", 0, np.random.default_rng(1), painted_share=1.0)


def middle(subject, part):
    return subject.vertices[subject.part == PARTS.index(part)].mean(0)


def test_every_bone_belongs_to_a_part():
    assert len(BONE_PART) == 28 and set(BONE_PART) == set(range(len(PARTS)))


def test_painted_parts_have_the_colours_of_their_names(painted):
    names, palette = list(COLOURS), np.array(list(COLOURS.values()))
    assert set(painted.colours) == set(PARTS) and painted.pattern == "painted"
    for number, part in enumerate(PARTS):
        mean = painted.albedo[painted.part == number].mean(0)
        assert names[int(((palette - mean) ** 2).sum(1).argmin())] == painted.colours[part]


def test_a_patched_coat_has_no_one_colour(zoo):
    seen = set()
    for seed in range(12):
        subject = sample_subject(zoo, "horse", 0, np.random.default_rng(seed), painted_share=0.0)
        seen.add(subject.pattern)
        for part, name in subject.colours.items():
            mine = subject.albedo[subject.part == PARTS.index(part)]
            assert mine.mean(1).std() < 0.14 and name in COLOURS
        if subject.pattern == "patched":
            assert "body" not in subject.colours
    assert {"plain", "patched"} <= seen


@pytest.mark.parametrize(("azimuth", "word"), [(0, "left"), (180, "right"), (350, "left")])
def test_the_head_is_where_the_animal_faces(painted, azimuth, word):
    view = orbit_view(painted, azimuth, 10, SIDE)
    head, body = view.project(np.stack([middle(painted, "head"), middle(painted, "body")]))
    assert facing(azimuth) == word
    assert (head[0] < body[0]) == (word == "left")


@pytest.mark.parametrize(("azimuth", "word"), [(90, "back"), (270, "front"), (-90, "front")])
def test_an_animal_that_faces_us_has_its_head_nearer(painted, azimuth, word):
    view = orbit_view(painted, azimuth, 10, SIDE)
    head, body = view.project(np.stack([middle(painted, "head"), middle(painted, "body")]))
    assert facing(azimuth) == word
    assert (head[2] < body[2]) == (word == "front")


@pytest.mark.parametrize("azimuth", RING_AZIMUTHS)
def test_an_orbit_keeps_the_animal_in_the_picture(painted, azimuth):
    for elevation in RING_ELEVATIONS:
        xy = orbit_view(painted, azimuth, elevation, SIDE).project(painted.vertices)[:, :2]
        assert xy.min() > -0.6 and xy.max() < SIDE - 0.4


def test_a_frame_is_filled_as_asked(painted):
    view = framed_view(orbit_view(painted, 20, 5, SIDE), painted.vertices, SIDE, 0.75, np.array([0.0, 1.0]))
    xy = view.project(painted.vertices)[:, :2]
    low, high = xy.min(0), xy.max(0)
    assert (high - low).max() == pytest.approx(0.75 * SIDE)
    assert low[0] == pytest.approx(-0.5) and high[1] == pytest.approx(SIDE - 0.5)


def test_parts_lie_on_the_animal(painted):
    view = orbit_view(painted, 0, 10, SIDE)
    background = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    image, alpha = draw_subject(painted, view, background, studio_light(np.random.default_rng(0)))
    parts = part_map(painted, view, SIDE)
    assert {int(value) for value in np.unique(parts)} == set(range(len(PARTS) + 1))
    assert ((parts > 0) == (alpha > 0.5)).mean() > 0.97
    assert (image[alpha == 0] == 128).all()
    # The head is at the left, the tail at the right, the legs below the body.
    column = {name: np.argwhere(parts == n + 1).mean(0) for n, name in enumerate(PARTS)}
    assert column["head"][1] < column["body"][1] < column["tail"][1]
    assert column["legs"][0] > column["body"][0]


def test_a_picture_names_only_what_it_shows(zoo, painted):
    close = 0
    for seed in range(20):
        picture = sample_picture(painted, np.random.default_rng(seed), SIDE, close_share=0.5)
        named = {phrase.split()[1] for phrase in picture.phrases if phrase.split()[0] in COLOURS}
        shown = {name for n, name in enumerate(PARTS) if (picture.parts == n + 1).sum() > 4}
        assert named == shown
        close += picture.title.startswith("close")
        assert picture.image.shape == (SIDE, SIDE, 3) and picture.image.dtype == np.uint8
    assert 4 < close < 16
    again = sample_picture(painted, np.random.default_rng(3), SIDE)
    np.testing.assert_array_equal(
        again.image, sample_picture(painted, np.random.default_rng(3), SIDE).image
    )


def test_a_part_of_next_to_nothing_is_not_pictured_close_up(painted):
    """A lone vertex has no extent that could fill a picture."""
    alone = np.flatnonzero(painted.part == PARTS.index("tail"))[1:]
    part = painted.part.copy()
    part[alone] = PARTS.index("body")
    bobbed = replace(painted, part=part)
    titles = {
        sample_picture(bobbed, np.random.default_rng(seed), 16, close_share=1.0).title for seed in range(30)
    }
    assert titles == {f"close {name} of a painted horse" for name in PARTS[:-1]}


def test_a_ring_turns_about_the_animal(painted):
    ring = sample_ring(painted, np.random.default_rng(2), SIDE)
    assert ring.inputs.shape == (6, SIDE, SIDE, 4) and ring.targets.shape == (2, 6, SIDE, SIDE, 4)
    # Seen from opposite sides at the same small elevation, the silhouettes are mirror images but for
    # perspective; seen from a quarter further they are not.
    shapes = ring.targets[1, ..., 3] > 127

    def overlap(one, other):
        return (one & other).sum() / (one | other).sum()

    assert overlap(shapes[0], shapes[3][:, ::-1]) > overlap(shapes[0], shapes[1][:, ::-1])
    assert (ring.targets[..., :3][ring.targets[..., 3] == 0] == GREY).all()


def small(tmp_path, **changed):
    settings = {"animals": 0, "rings": 0, "val_animals": 32, "val_rings": 0}
    return Config(out=tmp_path / "views", side=16, val_identities=1, **{**settings, **changed})


def test_files_are_made_once_and_the_same_again(tmp_path):
    config = small(tmp_path)
    facts = run(config)
    path = config.out / "pictures-val-0000.npz"
    assert facts["finished"] and path.is_file()
    with np.load(path) as data:
        first = {name: data[name] for name in data.files}
    assert first["image"].shape == (128, 16, 16, 3) and first["parts"].max() == len(PARTS)
    caption = json.loads(str(first["caption"][0]))
    assert set(caption) == {"title", "phrases"}
    path.unlink()
    assert run(small(tmp_path, threads=2))["finished"]
    with np.load(path) as data:
        for name, column in first.items():
            np.testing.assert_array_equal(data[name], column)
    with pytest.raises(UserError, match=r"seed=9100 then, 1 now\); add --overwrite"):
        run(small(tmp_path, seed=1))


def test_validation_animals_are_others(monkeypatch):
    """Individuals of the validation split are none of the training's."""
    config = Config(identities=3, val_identities=2)
    monkeypatch.setattr(make_views, "sample_subject", lambda zoo, species, number, *rest: number)
    for split, numbers in (("train", {0, 1, 2}), ("val", {3, 4})):
        drawn = [make_views.subject_for(config, None, "rings", split, index)[0] for index in range(40)]
        assert set(drawn) == numbers


def test_settings_out_of_range_are_named():
    with pytest.raises(UserError, match="--val-rings: expected a multiple of 32; found 3"):
        Config(val_rings=3)
    with pytest.raises(UserError, match="--side: expected a multiple of 4"):
        Config(side=18)
