"""Boxes and affine maps between an image and its crops, in float, in one place.

Image frame: x right, y down, pixels; the centre of the top-left pixel is (0, 0). A square crop of S
pixels spans [-.5, S - .5] in its own frame, and [-1, 1] in NDC.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


@dataclass(frozen=True)
class Affine2D:
    """A map of the plane, `xy -> matrix[:, :2] @ xy + matrix[:, 2]`.

    Attributes:
        matrix: Array [2, 3].
    """

    matrix: np.ndarray

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        if matrix.shape != (2, 3):
            raise ValueError(f"expected a matrix [2, 3], found {list(matrix.shape)}")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls) -> Affine2D:
        """The map that moves nothing."""
        return cls(np.eye(2, 3))

    @classmethod
    def translation(cls, tx: float, ty: float) -> Affine2D:
        """A shift by (tx, ty)."""
        return cls(np.array([[1.0, 0.0, tx], [0.0, 1.0, ty]]))

    @classmethod
    def from_vector(cls, vector: np.ndarray) -> Affine2D:
        """The inverse of `vector`: from six numbers, row by row."""
        return cls(np.asarray(vector, dtype=np.float64).reshape(2, 3))

    @property
    def vector(self) -> np.ndarray:
        """The matrix row by row, [6], as tables store it."""
        return self.matrix.reshape(6).copy()

    @property
    def scale(self) -> float:
        """Square root of the change of area."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    def apply(self, xy: np.ndarray) -> np.ndarray:
        """Map points [..., 2]."""
        return np.asarray(xy, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def inverse(self) -> Affine2D:
        """The map that undoes this one."""
        linear = np.linalg.inv(self.matrix[:, :2])
        return Affine2D(np.concatenate([linear, -linear @ self.matrix[:, 2:]], axis=1))

    def compose(self, other: Affine2D) -> Affine2D:
        """The map that applies `other` first and then this one."""
        linear = self.matrix[:, :2] @ other.matrix[:, :2]
        shift = self.matrix[:, :2] @ other.matrix[:, 2:] + self.matrix[:, 2:]
        return Affine2D(np.concatenate([linear, shift], axis=1))


def xywh_to_xyxy(box_xywh: np.ndarray) -> np.ndarray:
    """Boxes [..., 4] from corner and size to two corners."""
    box = np.asarray(box_xywh, dtype=np.float64)
    return np.concatenate([box[..., :2], box[..., :2] + box[..., 2:]], axis=-1)


def xyxy_to_xywh(box_xyxy: np.ndarray) -> np.ndarray:
    """Boxes [..., 4] from two corners to corner and size."""
    box = np.asarray(box_xyxy, dtype=np.float64)
    return np.concatenate([box[..., :2], box[..., 2:] - box[..., :2]], axis=-1)


def box_side(box_xyxy: np.ndarray) -> np.ndarray:
    """The longer side of boxes [..., 4], in pixels: [...]."""
    box = np.asarray(box_xyxy, dtype=np.float64)
    return np.maximum(box[..., 2] - box[..., 0], box[..., 3] - box[..., 1])


def square_box(box_xyxy: np.ndarray) -> np.ndarray:
    """The square [..., 4] about the same centre whose side is the longer side of the box."""
    box = np.asarray(box_xyxy, dtype=np.float64)
    centre = (box[..., :2] + box[..., 2:]) / 2
    half = box_side(box)[..., None] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def box_iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N, 4] and [M, 4]: [N, M]; 0 where both are empty."""
    a = np.asarray(a_xyxy, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(b_xyxy, dtype=np.float64).reshape(1, -1, 4)
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = size.clip(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def crop_affine(
    box_xyxy: np.ndarray,
    size: int,
    *,
    rotation_deg: float = 0.0,
    scale: float = 1.0,
    flip: bool = False,
) -> Affine2D:
    """The map from image pixels to the pixels of a square crop about a box.

    The square about the box's centre, of side `scale` * max(w, h), fills the crop: its edges land on
    -.5 and size - .5. The picture's content turns by `rotation_deg` (clockwise as seen, since y points
    down, so that +90 takes +x to +y), and is mirrored left to right last.

    Args:
        box_xyxy: Box [4] in image pixels.
        size: Side S of the crop in pixels.
        rotation_deg: Turn of the content about the box's centre, in degrees.
        scale: Side of the square relative to the box's longer side.
        flip: Whether the crop is mirrored.

    Raises:
        ValueError: if the box has no extent.
    """
    box = np.asarray(box_xyxy, dtype=np.float64).reshape(4)
    side = float(box_side(box)) * scale
    if not side > 0:
        raise ValueError(f"expected a box with an extent, found {box.tolist()}")
    angle = np.deg2rad(rotation_deg)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * (size / side)
    if flip:
        linear[0] *= -1
    centre = (box[:2] + box[2:]) / 2
    shift = np.full(2, (size - 1) / 2) - linear @ centre
    return Affine2D(np.concatenate([linear, shift[:, None]], axis=1))


def warp_crop(image: np.ndarray, affine: Affine2D, size: int, fill: int = 0) -> np.ndarray:
    """Resample an image into a square crop; bilinear, with area averaging where it shrinks a lot.

    Args:
        image: uint8 [H, W, 3] (or [H, W]).
        affine: Map from image pixels to crop pixels.
        size: Side of the crop.
        fill: Value outside the image.

    Returns:
        uint8 [size, size, 3] (or [size, size]).
    """
    # Above a factor of two, bilinear sampling skips pixels: average the image down first.
    factor = int(1.0 / max(affine.scale, 1e-9) / 1.5)
    if factor >= 2 and min(image.shape[:2]) >= 2 * factor:
        height, width = image.shape[0] // factor * factor, image.shape[1] // factor * factor
        if height == image.shape[0] and width == image.shape[1]:
            small = cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
        else:
            padded = cv2.copyMakeBorder(
                image,
                0,
                -image.shape[0] % factor,
                0,
                -image.shape[1] % factor,
                cv2.BORDER_REPLICATE,
            )
            small = cv2.resize(
                padded,
                (padded.shape[1] // factor, padded.shape[0] // factor),
                interpolation=cv2.INTER_AREA,
            )
        # Pixel j of the small image covers image pixels factor * j ... factor * j + factor - 1.
        offset = (factor - 1) / 2
        small_to_image = Affine2D(np.array([[factor, 0, offset], [0, factor, offset]], np.float64))
        affine, image = affine.compose(small_to_image), small
    value = (fill, fill, fill) if image.ndim == 3 else fill
    return cv2.warpAffine(
        image,
        affine.matrix,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=value,
    )


def xy_crop_to_ndc(xy_crop: np.ndarray, size: int) -> np.ndarray:
    """Crop pixels to NDC: (2x + 1) / S - 1, so that the crop's edges are -1 and 1."""
    return (2 * np.asarray(xy_crop, dtype=np.float64) + 1) / size - 1


def xy_ndc_to_crop(xy_ndc: np.ndarray, size: int) -> np.ndarray:
    """NDC to crop pixels, the inverse of `xy_crop_to_ndc`."""
    return ((np.asarray(xy_ndc, dtype=np.float64) + 1) * size - 1) / 2


def _move_camera(camera: np.ndarray, affine: Affine2D) -> np.ndarray:
    camera = np.asarray(camera, dtype=np.float64)
    linear = affine.matrix[:, :2]
    mirrored = np.linalg.det(linear) < 0
    result = camera.copy()
    if mirrored:  # the mirror of the animal, seen by the mirrored camera
        w, x, y, z = np.moveaxis(camera[..., 3:], -1, 0)
        result[..., 3:] = np.stack([w, x, -y, -z], axis=-1)
        linear = linear @ np.diag([-1.0, 1.0])
    half = np.arctan2(linear[1, 0], linear[0, 0]) / 2
    w, x, y, z = np.moveaxis(result[..., 3:], -1, 0)
    c, s = np.cos(half), np.sin(half)
    result[..., 3:] = np.stack([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w], axis=-1)
    result[..., 0] = camera[..., 0] * affine.scale
    result[..., 1:3] = affine.apply(camera[..., 1:3])
    return result


def camera_to_crop(camera: np.ndarray, affine: Affine2D, size: int) -> np.ndarray:
    """A camera in image pixels, expressed in the NDC of a crop.

    Weak perspective, `[s, tx, ty, qw, qx, qy, qz]`: xy = s * (R(q) X)_xy + t. Exact where `affine` is a
    similarity; a mirrored crop gives the camera of the mirrored animal (quaternion (w, x, -y, -z)).

    Args:
        camera: [..., 7] in image pixels.
        affine: Map from image pixels to crop pixels.
        size: Side S of the crop.

    Returns:
        [..., 7], with scale and translation in NDC.
    """
    moved = _move_camera(camera, affine)
    moved[..., 0] *= 2 / size
    moved[..., 1:3] = xy_crop_to_ndc(moved[..., 1:3], size)
    return moved


def camera_to_image(camera_ndc: np.ndarray, affine: Affine2D, size: int) -> np.ndarray:
    """A camera in the NDC of a crop, expressed in image pixels: the inverse of `camera_to_crop`.

    Args:
        camera_ndc: [..., 7].
        affine: Map from image pixels to crop pixels, as for `camera_to_crop`.
        size: Side S of the crop.
    """
    camera = np.array(camera_ndc, dtype=np.float64)
    camera[..., 0] *= size / 2
    camera[..., 1:3] = xy_ndc_to_crop(camera[..., 1:3], size)
    return _move_camera(camera, affine.inverse())
