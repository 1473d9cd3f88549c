"""A workspace of a closed animal with four legs: photos coloured by place, keypoints and true masks."""

import numpy as np
import torch
from acsm_world import write_tables

from acsm import geometry
from acsm.renderer import interpolate, rasterize
from acsm.template import ArticulatedTemplate
from wildshape.formats.masks import encode_mask
from wildshape.geometry import camera_to_image, crop_affine
from wildshape.workspace import Workspace

SIZE = 72
WIDTH, HEIGHT = SIZE + 20, SIZE + 12
FLIP = np.array([1, 0, 3, 2, 4, 5, 6, 7, 9, 8, 11, 10, 13, 12, 15, 14])


def ball(rounds=2):
    """An icosphere with the plane x = 0 through its vertices."""
    upper = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4]])
    faces = np.concatenate([upper, np.where(upper == 4, 5, upper)[:, ::-1]])
    points = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    for _ in range(rounds):
        middle, made, points = {}, [], list(points)
        for face in faces:
            new = []
            for a, b in zip(face, np.roll(face, -1)):
                key = (min(a, b), max(a, b))
                if key not in middle:
                    middle[key] = len(points)
                    point = points[a] + points[b]
                    points.append(point / np.linalg.norm(point))
                new.append(middle[key])
            (a, b, c), (x, y, z) = face, new
            made += [[a, x, z], [x, b, y], [z, y, c], [x, y, z]]
        faces, points = np.array(made), np.array(points)
    return points, faces


def legged(rounds=3):
    """A ball with four long legs, alike on both sides."""
    points, faces = ball(rounds)
    shape = points * [0.35, 0.8, 0.4]
    for x, y in ((0.5, -0.7), (-0.5, -0.7), (0.5, 0.7), (-0.5, 0.7)):
        towards = np.array([x, y, -0.6]) / np.linalg.norm([x, y, -0.6])
        reach = np.clip((points @ towards - 0.93) / 0.07, 0, 1)
        shape[:, 2] -= 1.1 * reach
    return shape, faces


def template(rounds=2):
    """It as a template of a body and four legs, with the sixteen keypoints of quadruped16."""
    vertices, faces = legged(rounds)
    legs = np.array([[0.2, -0.6, -0.5], [-0.2, -0.6, -0.5], [0.2, 0.6, -0.5], [-0.2, 0.6, -0.5]])
    near = np.exp(-8 * ((vertices[:, None] - legs) ** 2).sum(2)) * (vertices[:, 2:] < -0.2)
    membership = np.concatenate([np.maximum(1 - near.sum(1, keepdims=True), 0), near], axis=1)
    membership /= membership.sum(1, keepdims=True)
    left = {0: (0.1, -0.75, 0.2), 2: (0.2, -0.6, 0.4), 8: (0.3, -0.4, -0.2), 10: (0.3, 0.4, -0.2),
            12: (0.2, -0.6, -1), 14: (0.2, 0.6, -1)}  # fmt: skip
    middle = {4: (0, -0.9, 0), 5: (0, -0.6, -0.2), 6: (0, 0.9, 0), 7: (0, -0.2, 0.5)}
    wanted = np.zeros((16, 3))
    for k, place in (*left.items(), *middle.items()):
        wanted[k], wanted[FLIP[k]] = place, np.multiply(place, [-1, 1, 1])
    chosen = ((vertices - wanted[:, None]) ** 2).sum(2).argmin(1)
    names = ("body", "L_F_leg", "R_F_leg", "L_B_leg", "R_B_leg")
    return ArticulatedTemplate(
        vertices=vertices, faces=faces, membership=membership, part_names=names,
        part_parents=(-1, 0, 0, 0, 0), part_centres=np.concatenate([[[0, 0, 0]], legs * [1, 1, 0.2]]),
        part_mirror=np.array([0, 2, 1, 4, 3]), keypoint_vertices=chosen, keypoint_flip=FLIP,
        active_parts=np.array([False, True, True, True, True]),
    )  # fmt: skip


def scene(index, shape):
    """An animal at rest seen from somewhere: vertices in NDC [V, 3] and its camera [7]."""
    rng = np.random.default_rng([5, index])
    around = geometry.quat_from_azimuth_elevation(
        torch.tensor(rng.uniform(-np.pi, np.pi)), torch.tensor(rng.uniform(-0.2, 0.2))
    )
    upright = torch.tensor(geometry.UPRIGHT_QUATERNION, dtype=torch.float64)
    q = geometry.quat_multiply(around.double(), upright)
    camera = torch.cat((torch.tensor([0.85, 0.0, 0.0]), q))
    return geometry.project_with_depth(torch.tensor(shape.vertices), camera), camera


def build(root, *, train=6, val=3, test=2, web=4, masks=True):
    """Write category, template, photos and tables; ``masks`` False leaves the masks away."""
    folder = root / "categories"
    folder.mkdir(parents=True)
    shape = template()
    shape.save(folder / "beast.npz")
    (folder / "beast.yaml").write_text("name: beast\ntemplate:\n  file: beast.npz\n")
    workspace = Workspace(root, "beast")
    count = train + val + test + web
    box = np.array([10.0, 5.0, 10 + SIZE, 5 + SIZE])
    affine = crop_affine(box, SIZE)
    colours = 0.5 + 0.45 * shape.vertices / np.abs(shape.vertices).max(0)
    animals = []
    for index in range(count):
        points, camera = scene(index, shape)
        seen = rasterize(points.numpy()[None], shape.faces, SIZE)
        picture = interpolate(colours, shape.faces, seen)[0]
        photo = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        x, y = np.round(affine.inverse().apply(np.zeros(2))).astype(int)
        drawn = np.where(seen.mask[0][..., None], 255 * picture, 128)
        photo[y : y + SIZE, x : x + SIZE] = drawn.astype(np.uint8)
        mask[y : y + SIZE, x : x + SIZE] = seen.mask[0]
        xy_crop = ((points[shape.keypoint_vertices, :2].numpy() + 1) * SIZE - 1) / 2
        animals.append({
            "photo": photo, "box": box, "xy": affine.inverse().apply(xy_crop),
            "camera": camera_to_image(camera.numpy(), affine, SIZE),
            "mask": encode_mask(mask) if masks else None,
        })  # fmt: skip
    return write_tables(workspace, animals, ["train"] * train + ["val"] * val + ["test"] * test)
