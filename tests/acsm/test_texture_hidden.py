"""Which texels the photo shows."""

from dataclasses import replace

import numpy as np
from acsm_mask_world import ball
from test_acsm_texture import box, from_the_left, locate, middles, photo

from acsm.texture import FILLED, PHOTO, surface_colours


def test_what_another_part_hides_is_not_read_from_the_photo():
    """A second box behind the first one, its side towards the viewer."""
    one = box()
    both = replace(
        one,
        vertices=np.concatenate([one.vertices, one.vertices * [1, 0.5, 0.5] - [3, 0, 0]]),
        faces=np.concatenate([one.faces, one.faces + 8]),
        membership=np.ones((16, 1)),
    )
    surface = locate(both, np.array([[0.2, -0.3, 0.1], [-2.8, -0.3, 0.1]]))
    _, source = surface_colours(photo(), from_the_left(both.vertices), both, surface)
    assert source.tolist() == [PHOTO, FILLED]


def test_as_much_is_read_from_a_large_photo_as_from_a_small_one():
    """Faces that slant away by more than a limit are not read, whatever the crop's scale."""
    points, faces = ball(3)
    template = replace(box(), vertices=points, faces=faces, membership=np.ones((len(points), 1)))
    shares = []
    for size in (30, 200, 2500):
        image = np.full((size, size, 3), 90, np.uint8)
        vertices = 0.45 * size * np.stack([points[:, 1], -points[:, 2], -points[:, 0]], axis=1)
        vertices += [size / 2 - 0.5, size / 2 - 0.5, 0]
        _, source = surface_colours(image, vertices, template, middles(template))
        shares.append((source == PHOTO).mean())
    np.testing.assert_allclose(shares, 0.4, atol=0.03)  # where the cosine is above .2
