import json
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from acsm import turntable as films
from acsm.glb import to_gltf, write_glb
from acsm.renderer import vertex_normals
from acsm.template import ArticulatedTemplate
from acsm.texture import FILLED, MIRRORED, PHOTO, Surface, make_atlas, surface_colours
from acsm.turntable import render_textured, turntable, write_gif, write_mp4
from wildshape.errors import UserError


def box():
    """A box: x -.2..0..2 (two halves), y -1..1, z -.5..5, faces anticlockwise from outside."""
    vertices = np.array([[x, y, z] for x in (-0.2, 0.2) for y in (-1, 1) for z in (-0.5, 0.5)])
    quads = [(4, 6, 7, 5), (0, 1, 3, 2), (0, 2, 6, 4), (1, 5, 7, 3), (0, 4, 5, 1), (2, 3, 7, 6)]
    faces = np.array([tri for a, b, c, d in quads for tri in ((a, b, c), (a, c, d))])
    return ArticulatedTemplate(
        vertices=vertices, faces=faces, membership=np.ones((8, 1)), part_names=("body",),
        part_parents=(-1,), part_centres=np.zeros((1, 3)), part_mirror=np.zeros(1),
        keypoint_vertices=np.array([0]), keypoint_flip=np.array([0]),
    )  # fmt: skip


# The box from its left (+x is near): head (y = -1) at the left of the picture, 50 pixels a unit.
LEFT, RIGHT, TOP = slice(0, 2), slice(2, 4), slice(6, 8)


def from_the_left(vertices):
    return np.stack([70 + 50 * vertices[:, 1], 50 - 50 * vertices[:, 2], -50 * vertices[:, 0]], axis=1)


def photo():
    """Red before the middle (y < 0), blue behind it, white above and below the animal."""
    image = np.full((100, 141, 3), 255, np.uint8)
    image[20:81, :71] = (200, 20, 10)
    image[20:81, 71:] = (10, 30, 220)
    return image


def middles(template):
    return Surface(np.arange(len(template.faces)), np.full((len(template.faces), 3), 1 / 3))


def test_the_box_is_what_the_tests_take_it_for():
    template = box()
    assert template.is_closed() and template.volume() == pytest.approx(0.8)
    middle = middles(template).at(template.vertices, template.faces)
    assert (middle[LEFT, 0] == 0.2).all() and (middle[RIGHT, 0] == -0.2).all()
    np.testing.assert_allclose(middle[TOP, 2], 0.5)


def test_colours_by_hand():
    template = box()
    assert (np.bincount(middles(template).face) == 1).all()
    # On the left side four places, a quarter of the body each; on the right the same, mirrored.
    places = np.array(
        [[0.2, -0.5, 0.2], [0.2, 0.5, 0.2], [-0.2, -0.5, 0.2], [-0.2, 0.5, 0.2], [0, -0.5, 0.5]]
    )
    surface = locate(template, places)
    np.testing.assert_allclose(surface.at(template.vertices, template.faces), places, atol=1e-9)
    vertices = from_the_left(template.vertices)
    colours, source = surface_colours(photo(), vertices, template, surface)
    red, blue = (200, 20, 10), (10, 30, 220)
    assert colours[:4].tolist() == [list(c) for c in (red, blue, red, blue)]
    assert source[:4].tolist() == [PHOTO, PHOTO, MIRRORED, MIRRORED]
    # The top is seen edge-on: it is filled from what lies nearest.
    assert source[4] == FILLED and colours[4, 0] > colours[4, 2]

    # Beside the mask nothing is read: what is red has to do for all.
    mask = np.zeros((100, 141))
    mask[:, :71] = 1
    colours, source = surface_colours(photo(), vertices, template, surface, mask)
    assert colours[:4].tolist() == [list(red)] * 4
    assert source[:4].tolist() == [PHOTO, FILLED, MIRRORED, FILLED]
    # Neither is beyond the picture's edge.
    colours, source = surface_colours(photo()[:, :71], vertices, template, surface)
    assert colours[:4].tolist() == [list(red)] * 4
    colours, source = surface_colours(photo(), vertices, template, surface, np.zeros((100, 141)))
    assert (colours == 128).all() and (source == FILLED).all()


def locate(template, places):
    """The faces that places lie in, by the smallest distance, and their barycentrics."""
    faces, weights = [], []
    for place in places:
        best = None
        for number, face in enumerate(template.faces):
            system = np.concatenate([template.vertices[face].T, np.ones((1, 3))])
            found, *_ = np.linalg.lstsq(system, np.append(place, 1), rcond=None)
            error = np.abs(system @ found - np.append(place, 1)).max() + max(0, -found.min())
            if best is None or error < best[0] - 1e-9:
                best = (error, number, found)
        faces.append(best[1])
        weights.append(best[2])
    return Surface(np.array(faces), np.array(weights))


@pytest.mark.parametrize("count", [1, 2, 12, 333])
def test_the_atlas_gives_every_face_its_own_texels(count):
    atlas = make_atlas(count, 256)
    place = atlas.texel[:, 1] * atlas.width + atlas.texel[:, 0]
    assert len(np.unique(place)) == len(place) and place.max() < atlas.width * atlas.height
    assert (atlas.surface.barycentric >= -1e-12).all()
    np.testing.assert_allclose(atlas.surface.barycentric.sum(1), 1)
    # Bilinear reading anywhere in a face finds that face's texels alone.
    owner = atlas.paint(np.repeat((atlas.surface.face % 251)[:, None], 3, 1).astype(np.uint8))[..., 0]
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([0.3, 0.3, 0.3], (count, 50))
    uv = np.einsum("flk,fkc->flc", weights, atlas.uv)
    xy = (uv * [atlas.width, atlas.height] - 0.5).astype(np.float32)
    read = cv2.remap(owner.astype(np.float32), xy, None, cv2.INTER_LINEAR)
    np.testing.assert_allclose(read, np.tile((np.arange(count) % 251)[:, None], (1, 50)), atol=1e-3)


def painted():
    template = box()
    atlas = make_atlas(len(template.faces), 128)
    colours, _ = surface_colours(photo(), from_the_left(template.vertices), template, atlas.surface)
    return template, atlas, atlas.paint(colours)


def test_a_textured_picture_shows_the_photo_again():
    template, atlas, texture = painted()
    views = turntable(template.vertices, template.faces, atlas, texture, 64, 4)
    for view, head in ((views[0], 16), (views[2], 48)):  # from the left, then from the right
        tail = 64 - head
        assert view[32, head, 0] > 2 * view[32, head, 2] and view[32, tail, 2] > 2 * view[32, tail, 0]
    assert (views[0][0, 0] == 255).all()
    front, behind = views[3], views[1]  # a left turn from the left side shows the back
    assert front[36, 32, 0] > front[36, 32, 2] and behind[36, 32, 2] > behind[36, 32, 0]
    empty = render_textured(template.vertices + 9, template.faces, atlas, texture, 16)
    assert (empty == 255).all()


def test_a_glb_is_read_back(tmp_path):
    trimesh = pytest.importorskip("trimesh", reason="the extra glb")
    template, atlas, texture = painted()
    path = tmp_path / "a.glb"
    write_glb(path, template.vertices, template.faces, atlas, texture)
    data = path.read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    tree = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    assert tree["samplers"][tree["textures"][0]["sampler"]]["minFilter"] == 9729
    assert {"POSITION", "NORMAL", "TEXCOORD_0"} == set(tree["meshes"][0]["primitives"][0]["attributes"])
    mesh = trimesh.load(path, force="mesh", process=False)
    # Up is y and the head (template -y) looks along z; left stays x.
    np.testing.assert_allclose(mesh.bounds, [[-0.2, -0.5, -1], [0.2, 0.5, 1]], atol=1e-6)
    np.testing.assert_allclose(to_gltf(np.array([1.0, 2, 3])), [1, 3, -2])
    assert mesh.volume == pytest.approx(0.8)  # faces still look outwards
    corners = template.faces.reshape(-1)
    np.testing.assert_allclose(mesh.vertices, to_gltf(template.vertices)[corners], atol=1e-6)
    # Normals are those of the whole mesh's vertices, not of single faces: no edges show.
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]]
    view = tree["bufferViews"][accessor["bufferView"]]
    first = 20 + struct.unpack("<I", data[12:16])[0] + 8 + view["byteOffset"]
    normals = np.frombuffer(data[first : first + 12 * 36], "<f4").reshape(36, 3)
    expected = to_gltf(vertex_normals(template.vertices, template.faces))[corners]
    np.testing.assert_allclose(normals, expected, atol=1e-6)
    assert ((normals * mesh.vertices).sum(1) > 0).all()
    np.testing.assert_array_equal(np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")), texture)
    # What a viewer reads for the head's and the tail's half of either side is the photo's colour.
    for faces in (LEFT, RIGHT):
        for face in range(faces.start, faces.stop):
            weights = np.array([0.2, 0.2, 0.2]) + 0.4 * (template.vertices[template.faces[face], 1] < 0)
            rows = mesh.faces[face]
            weights = weights / weights.sum()
            y = -(weights @ mesh.vertices[rows])[2]
            u, v = weights @ mesh.visual.uv[rows]
            image = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
            pixel = image[int((1 - v) * image.shape[0]), int(u * image.shape[1])]
            assert y < -0.1 and pixel.tolist() == [200, 20, 10]


def test_without_trimesh_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    template, atlas, texture = painted()
    with pytest.raises(UserError, match=r"--glb: expected trimesh; run: pip install 'wildshape\[glb\]'"):
        write_glb(tmp_path / "a.glb", template.vertices, template.faces, atlas, texture)
    assert not list(tmp_path.iterdir())


def moving(count=6):
    """A dark square that goes to the right by 5 pixels a frame, 61 x 48 pixels."""
    frames = np.full((count, 48, 61, 3), 230, np.uint8)
    for number, frame in enumerate(frames):
        frame[10:30, 5 * number : 5 * number + 20] = (30, 60, 120)
    return list(frames)


def test_gifs_are_read_back(tmp_path):
    write_gif(tmp_path / "a.gif", moving())
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 6 and gif.info["loop"] == 0 and gif.info["duration"] == 50
        for number, frame in enumerate(moving()):
            gif.seek(number)
            found = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(found - frame).max() <= 8


@pytest.mark.parametrize("encoder", ["H.264", "VP9", "MPEG-4 part 2"])
def test_films_are_read_back(tmp_path, monkeypatch, encoder):
    if encoder == "H.264":
        pytest.importorskip("imageio_ffmpeg", reason="the extra video")
    else:
        monkeypatch.setattr(films, "_h264", lambda *_: None)
    if encoder == "MPEG-4 part 2":
        original = cv2.VideoWriter
        monkeypatch.setattr(
            films.cv2, "VideoWriter", lambda path, code, *rest: original(path, code, *rest)
            if code == cv2.VideoWriter_fourcc(*"mp4v") else original()
        )  # fmt: skip
    path = tmp_path / "a.mp4"
    assert write_mp4(path, moving()) == encoder
    film = cv2.VideoCapture(str(path))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(20)
    frames = []
    while True:
        there, frame = film.read()
        if not there:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    assert len(frames) == 6 and frames[0].shape == (48, 62, 3)
    for found, frame in zip(frames, moving()):
        assert np.abs(found[:, :61].astype(int) - frame).mean() < 6


def test_a_film_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(films, "_h264", lambda *_: None)
    monkeypatch.setattr(
        films.cv2, "VideoWriter", lambda *_: type("No", (), {"isOpened": lambda _: False})()
    )
    with pytest.raises(UserError, match=r"wildshape\[video\]"):
        write_mp4(tmp_path / "a.mp4", moving())
    assert not list(tmp_path.iterdir())
