"""A stick animal with eight parts, and pictures of it in which every keypoint is a coloured dot."""

import math

import cv2
import numpy as np
import torch

from acsm import geometry
from acsm.articulation import articulate
from acsm.template import ArticulatedTemplate

NAMES = (
    "L_eye", "R_eye", "L_ear", "R_ear", "Nose", "Throat", "Tail", "Withers", "L_F_elbow",
    "R_F_elbow", "L_B_elbow", "R_B_elbow", "L_F_paw", "R_F_paw", "L_B_paw", "R_B_paw",
)  # fmt: skip
FLIP = np.array([1, 0, 3, 2, 4, 5, 6, 7, 9, 8, 11, 10, 13, 12, 15, 14])


def template(active=None):
    half = {
        "eye": (0.06, -0.80, 0.45), "ear": (0.09, -0.70, 0.55), "F_elbow": (0.15, -0.45, -0.05),
        "B_elbow": (0.15, 0.45, -0.05), "F_paw": (0.15, -0.45, -0.6), "B_paw": (0.15, 0.45, -0.6),
    }  # fmt: skip
    middle = {
        "Nose": (0, -0.98, 0.35), "Throat": (0, -0.6, 0.2), "Tail": (0, 0.6, 0.2),
        "Withers": (0, -0.4, 0.3),
    }  # fmt: skip
    xyz = []
    for name in NAMES:
        if name in middle:
            xyz.append(middle[name])
        else:
            x, y, z = half[name[2:]]
            xyz.append((x if name[0] == "L" else -x, y, z))
    parts = ("body", "neck", "head", "tail", "L_F_leg", "R_F_leg", "L_B_leg", "R_B_leg")
    part_of = [2, 2, 2, 2, 2, 1, 0, 0, 0, 0, 0, 0, 4, 5, 6, 7]
    membership = np.eye(len(parts))[part_of]
    centres = [
        (0, 0, 0), (0, -0.45, 0.2), (0, -0.65, 0.4), (0, 0.55, 0.2), (0.15, -0.45, -0.05),
        (-0.15, -0.45, -0.05), (0.15, 0.45, -0.05), (-0.15, 0.45, -0.05),
    ]  # fmt: skip
    return ArticulatedTemplate(
        vertices=np.array(xyz, float),
        faces=np.array([[4, 5, 7], [7, 6, 8], [7, 9, 6], [8, 12, 9], [10, 14, 11]]),
        membership=membership,
        part_names=parts,
        part_parents=(-1, 0, 1, 0, 0, 0, 0, 0),
        part_centres=np.array(centres, float),
        part_mirror=np.array([0, 1, 2, 3, 5, 4, 7, 6]),
        keypoint_vertices=np.arange(16),
        keypoint_flip=FLIP,
        active_parts=active,
    )


def scenes(count, seed=0, turn=0.35):
    """Random cameras all around [N, 7] and keypoints [N, 16, 2] of randomly turned parts, in NDC."""
    rng = np.random.default_rng(seed)
    shape = template()
    azimuth = torch.tensor(rng.uniform(-math.pi, math.pi, count))
    tilt = torch.tensor(rng.uniform(-0.3, 0.3, count))
    x_axis, y_axis = torch.eye(3, dtype=torch.float64)[:2]
    upright = torch.tensor(geometry.UPRIGHT_QUATERNION, dtype=torch.float64).expand(count, 4)
    around = geometry.quat_from_axis_angle(y_axis, azimuth)
    q = geometry.quat_multiply(geometry.quat_from_axis_angle(x_axis, tilt), around)
    q = geometry.quat_multiply(q, upright)
    transforms = torch.zeros(count, 8, 8, dtype=torch.float64)
    angle = torch.tensor(rng.normal(0, turn, (count, 8)))
    angle[:, 0] = 0
    transforms[..., 4:] = geometry.quat_from_axis_angle(x_axis, angle)
    points = articulate(
        torch.tensor(shape.vertices), torch.tensor(shape.membership), transforms,
        torch.tensor(shape.part_centres), shape.part_parents,
    )  # fmt: skip
    flat = torch.cat((torch.ones(count, 1), torch.zeros(count, 2), q), dim=1)
    xy = geometry.project(points, flat)
    low, high = xy.amin(1), xy.amax(1)
    scale = 1.8 / (high - low).amax(1)
    shift = -(low + high) / 2 * scale[:, None]
    camera = torch.cat((scale[:, None], shift, q), dim=1)
    return camera.numpy(), geometry.project(points, camera).numpy()


def picture(xy_ndc, size):
    """uint8 [S, S, 3]: dots of a colour a keypoint, on grey."""
    image = np.full((size, size, 3), 128, np.uint8)
    palette = cv2.applyColorMap(np.arange(0, 256, 16, dtype=np.uint8), cv2.COLORMAP_HSV)[:, 0]
    for colour, point in zip(palette, (xy_ndc + 1) * size / 2):
        centre = tuple(int(v) for v in np.round(point * 16 - 8))
        cv2.circle(image, centre, size, colour.tolist(), -1, cv2.LINE_AA, shift=4)
    return image
