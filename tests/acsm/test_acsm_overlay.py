"""Meshes over photos: where they are drawn, and that a large photo costs no more."""

import cv2
import numpy as np
import pytest

from acsm import drawing, renderer
from acsm.template import template_for
from wildshape.category import load_category


@pytest.fixture(scope="module")
def cow():
    return template_for(load_category("cow"))


def placed(template, centre, scale):
    """The animal from its left, in pixels."""
    x, y, z = template.vertices.T
    return np.stack([centre[0] + scale * y, centre[1] - scale * z, scale * x], 1)


def test_a_photo_is_changed_where_the_animal_is(cow):
    photo = np.full((90, 160, 3), 200, np.uint8)
    whole = drawing.overlay(photo, placed(cow, (80, 45), 35), cow)
    changed = (whole != 200).any(-1)
    rows, columns = np.nonzero(changed)
    xy = placed(cow, (80, 45), 35)[:, :2]
    np.testing.assert_allclose([columns.min(), rows.min()], xy.min(0), atol=1.5)
    np.testing.assert_allclose([columns.max(), rows.max()], xy.max(0), atol=1.5)
    # Half out of the photo: what remains is what it was.
    part = drawing.overlay(photo[:, 80:], placed(cow, (0, 45), 35), cow)
    assert ((part != 200).any(-1) == changed[:, 80:]).mean() > 0.99 and (photo == 200).all()
    away = drawing.overlay(photo, placed(cow, (900, 45), 35), cow)
    assert (away == photo).all() and away is not photo


def test_a_large_photo_is_drawn_smaller_and_enlarged(cow, monkeypatch):
    photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    vertices = placed(cow, (200, 150), 140)
    plain = drawing.overlay(photo, vertices, cow)
    monkeypatch.setattr(drawing, "LARGEST", 100)
    sizes, draw = [], renderer.render_shaded

    def render(ndc, faces, size, *rest, **more):
        sizes.append(size)
        return draw(ndc, faces, size, *rest, **more)

    monkeypatch.setattr(renderer, "render_shaded", render)
    small = drawing.overlay(photo, vertices, cow)
    assert small.shape == plain.shape and (small[:2] == photo[:2]).all()  # the animal does not reach there
    assert sizes == [100] and (small[140:160, 190:210] != photo[140:160, 190:210]).any(-1).all()
    blurred = [cv2.GaussianBlur(picture, (0, 0), 4).astype(int) for picture in (plain, small)]
    assert np.abs(blurred[0] - blurred[1]).mean() < 6
