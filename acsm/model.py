"""The articulated surface model (Kulkarni, Gupta, Fouhey, Tulsiani; CVPR 2020, sections 3.1-3.3).

One image gives C camera hypotheses with probabilities and, for each, a turn of every part. The
template articulated by the turns and seen by the camera predicts the keypoints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet

from acsm.articulation import Order, articulate
from acsm.geometry import (
    UPRIGHT_QUATERNION,
    project,
    quat_from_axis_angle,
    quat_multiply,
)
from acsm.layers import Stack, StackedLinear
from acsm.pixel_map import PixelMap
from wildshape.errors import UserError

if TYPE_CHECKING:
    from acsm.template import ArticulatedTemplate

START_LENGTH = 0.3
"""Length at which the azimuth's two numbers start."""


@dataclass(frozen=True)
class ACSMArchitecture:
    """What fixes the shapes and the meaning of a model's parameters.

    Attributes:
        image_size: S, side of the square crops.
        num_cameras: C, camera hypotheses.
        features: width of all linear stacks.
        camera: ``turntable`` (azimuth all around, bounded elevation and roll), ``quaternion`` (a
            free rotation, as published for one camera) or ``angles`` (bounded turns about C fixed
            views, as published for several).
        order: how parts compose, see `acsm.articulation`.
        translations: whether parts also move.
        published_scale: report the published, unused part scales in place of ones.
        angle_ranges_deg: most that a camera turns from its fixed view, in degrees: azimuth
            (``angles`` only), elevation, roll; defaults as published.
        pixel_map: whether pixels are also mapped to the surface, for training with masks.
    """

    image_size: int = 256
    num_cameras: int = 1
    features: int = 200
    camera: Literal["turntable", "quaternion", "angles"] = "turntable"
    order: Order = "chain"
    translations: bool = False
    published_scale: bool = False
    angle_ranges_deg: tuple[float, float, float] = (30.0, 60.0, 60.0)
    pixel_map: bool = False


def camera_biases(number: int) -> Tensor:
    """Upright cameras [number, 4] spread evenly around the animal, the first facing it."""
    azimuth = torch.arange(number) * (2 * math.pi / max(number, 1))
    spread = quat_from_axis_angle(torch.tensor((0.0, 1.0, 0.0)), azimuth)
    return quat_multiply(spread, torch.tensor(UPRIGHT_QUATERNION).expand(number, 4))


class Encoder(nn.Module):
    """ResNet-18 to stride 32, a strided 4x4 convolution and two linear layers.

    Args:
        image_size: side of the images, at least 64.
        features: width of the feature vector.
    """

    def __init__(self, image_size: int, features: int) -> None:
        super().__init__()
        if image_size < 64:
            raise UserError(f"expected an image size of at least 64; found {image_size}")
        network = resnet.resnet18(weights=None)
        # The children's places are those of the pose network's backbone, so that either starts the other.
        self.backbone = nn.Sequential(*list(network.children())[:-2])
        self.squeeze = nn.Sequential(
            nn.Conv2d(512, 256, 4, stride=2, padding=1),
            nn.BatchNorm2d(256),
            nn.LeakyReLU(0.2),
        )
        side = (math.ceil(image_size / 32) + 2 - 4) // 2 + 1
        self.stack = Stack(1, 256 * side * side, features)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """ImageNet-normalised images [B, 3, S, S] -> features [B, features], and maps they come from.

        The maps are the ResNet's at strides 4, 8, 16 and 32, the last of which `read` takes.
        """
        maps = []
        for layer in self.backbone:
            images = layer(images)
            maps.append(images)
        return self.read(images), maps[-4:]

    def read(self, feature_map: Tensor) -> Tensor:
        """The ResNet's map [B, 512, S / 32, S / 32] -> features [B, features]."""
        return self.stack(self.squeeze(feature_map).flatten(1)).squeeze(1)


class CameraHead(nn.Module):
    """C weak-perspective cameras and their probabilities from one feature vector."""

    bias: Tensor

    def __init__(self, arch: ACSMArchitecture) -> None:
        super().__init__()
        self.kind = arch.camera
        self.ranges = [math.radians(value) for value in arch.angle_ranges_deg]
        self.rotation_size = 3 if arch.camera == "angles" else 4
        self.stack = Stack(arch.num_cameras, arch.features, arch.features)
        # rotation, probability, scale, translation
        self.output = StackedLinear(arch.num_cameras, arch.features, self.rotation_size + 4)
        self.register_buffer("bias", camera_biases(arch.num_cameras))
        with torch.no_grad():
            # Start upright and centred: with free weights a third of the animals start upside down,
            # and keypoints alone then find the mirrored camera first.
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()
            if arch.camera == "quaternion":
                self.output.bias[:, :4] = self.bias
            elif arch.camera == "turntable":
                # Short, so that the azimuth turns easily at first.
                self.output.bias[:, 0] = START_LENGTH

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F] -> cameras [B, C, 7] (NDC of the crop) and probabilities [B, C]."""
        raw = self.output(self.stack(x))
        turn, logit, scale, shift = raw.split((self.rotation_size, 1, 1, 2), dim=-1)
        if self.kind == "quaternion":
            rotation = nn.functional.normalize(turn, dim=-1)
        else:
            if self.kind == "angles":
                azimuth, elevation, roll = (turn.tanh() * turn.new_tensor(self.ranges)).unbind(-1)
            else:
                # Four numbers that make a quaternion jump where the animal is seen from behind; two
                # that make an azimuth do not (Zhou et al., CVPR 2019).
                azimuth = torch.atan2(turn[..., 1], turn[..., 0])
                tilt_roll = turn[..., 2:].tanh() * turn.new_tensor(self.ranges[1:])
                elevation, roll = tilt_roll.unbind(-1)
            axes = torch.eye(3, dtype=turn.dtype, device=turn.device)
            tilt = quat_from_axis_angle(axes[0], elevation)
            rotation = quat_multiply(tilt, quat_from_axis_angle(axes[1], azimuth))
            rotation = quat_multiply(quat_from_axis_angle(axes[2], roll), rotation)
            rotation = quat_multiply(rotation, self.bias.expand_as(rotation))
        scale = (1 + 0.05 * scale).relu() + 1e-12
        return torch.cat((scale, shift, rotation), dim=-1), logit.squeeze(-1).softmax(dim=-1)


class PartHead(nn.Module):
    """Turns of all parts under all cameras, each about the part's own learnt axis."""

    active: Tensor

    def __init__(self, arch: ACSMArchitecture, active: Tensor) -> None:
        super().__init__()
        self.arch = arch
        cameras, parts = arch.num_cameras, len(active)
        self.trunk = Stack(cameras, arch.features, arch.features)
        self.stack = Stack(cameras * parts, arch.features, arch.features)
        # cosine-like and sine-like part of the angle, scale, translation
        self.output = StackedLinear(cameras * parts, arch.features, 6)
        # Limbs, neck and tail swing about the left-right axis before they do anything else.
        self.axis = nn.Parameter(torch.tensor((1.0, 0.0, 0.0)).repeat(cameras, parts, 1))
        self.register_buffer("active", active, persistent=False)
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()
            self.output.bias[:, 0] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, F] -> part transforms [B, C, P, 8]; inactive parts get the identity."""
        cameras, parts = self.axis.shape[:2]
        shared = self.trunk(x)
        raw = self.output(self.stack(shared.repeat_interleave(parts, dim=1)))
        raw = raw.unflatten(1, (cameras, parts))
        angle = torch.atan2(raw[..., 1], raw[..., 0])
        turn = quat_from_axis_angle(nn.functional.normalize(self.axis, dim=-1), angle)
        scale = torch.ones_like(raw[..., 2:3])
        rest = turn.new_tensor((1.0, 0, 0, 0, 1, 0, 0, 0))
        if self.arch.published_scale:
            scale = 1 + 0.1 * raw[..., 2:3]
            rest = turn.new_tensor((0.0, 0, 0, 0, 1, 0, 0, 0))
        shift = raw[..., 3:] if self.arch.translations else torch.zeros_like(raw[..., 3:])
        transforms = torch.cat((scale, shift, turn), dim=-1)
        return torch.where(self.active[:, None], transforms, rest)


def active_mask(active: Sequence[Any] | np.ndarray | None, part_names: Sequence[str]) -> np.ndarray:
    """Which parts may turn [P] bool, from None (all), a mask [P] of bools or 0 and 1, or names.

    Raises:
        UserError: it is neither, or a name is not a part.
    """
    if active is None:
        return np.ones(len(part_names), dtype=bool)
    values, names = list(active), list(part_names)
    if all(isinstance(value, str) for value in values) and set(values) <= set(names):
        return np.array([name in values for name in names])
    if len(values) == len(names) and all(value in (0, 1) for value in values):
        return np.array(values, dtype=bool)
    raise UserError(
        f"active_parts: expected names among {', '.join(names)}, or a flag for each; found {values}"
    )


class ACSM(nn.Module):
    """Camera, articulation and keypoints from an image.

    The template is part of the model but not of its parameters: its arrays are buffers that
    ``state_dict`` leaves out.

    Args:
        template: an `acsm.template.ArticulatedTemplate` (or anything with its arrays).
        arch: architecture; defaults as in `ACSMArchitecture`.
    """

    vertices: Tensor
    membership: Tensor
    centres: Tensor
    keypoint_vertices: Tensor
    keypoint_flip: Tensor
    part_mirror: Tensor
    faces: Tensor
    sphere: Tensor

    def __init__(self, template: ArticulatedTemplate, arch: ACSMArchitecture | None = None) -> None:
        super().__init__()
        self.arch = arch or ACSMArchitecture()
        self.parents = tuple(int(p) for p in template.part_parents)

        def keep(name: str, values: Any, dtype: torch.dtype) -> None:
            tensor = torch.as_tensor(np.asarray(values), dtype=dtype)
            self.register_buffer(name, tensor, persistent=False)

        keep("vertices", template.vertices, torch.float32)
        keep("membership", template.membership, torch.float32)
        keep("centres", template.part_centres, torch.float32)
        keep("keypoint_vertices", template.keypoint_vertices, torch.int64)
        keep("keypoint_flip", template.keypoint_flip, torch.int64)
        keep("part_mirror", template.part_mirror, torch.int64)
        names = [str(name) for name in template.part_names]
        active = torch.from_numpy(active_mask(template.active_parts, names))
        self.encoder = Encoder(self.arch.image_size, self.arch.features)
        self.trunk = Stack(1, self.arch.features, self.arch.features)
        self.camera_head = CameraHead(self.arch)
        self.part_head = PartHead(self.arch, active)
        if self.arch.pixel_map:  # last, so that the others' first weights are the same without it
            self.pixel_map = PixelMap()
            keep("faces", template.faces, torch.int64)
            # The template's map to the sphere is what the pixel map's answers mean: a checkpoint has it.
            self.register_buffer("sphere", torch.zeros(len(self.vertices), 3, dtype=torch.float64))

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.keypoint_vertices)

    def forward(
        self,
        images: Tensor,
        *,
        articulated: bool = True,
        vertices: bool = False,
        pixels: bool = False,
    ) -> dict[str, Tensor]:
        """Predict with gradients.

        Args:
            images: ImageNet-normalised [B, 3, S, S].
            articulated: False keeps every part at rest (the warm-up).
            vertices: also move the whole mesh; training needs only the keypoints.
            pixels: also map pixels to the surface, which an architecture with ``pixel_map`` can.

        Returns:
            ``camera`` [B, C, 7] (NDC of the crop), ``camera_prob`` [B, C], ``part_transforms``
            [B, C, P, 8], ``keypoints_ndc`` [B, C, K, 2]; with ``vertices`` also ``vertices``
            [B, C, V, 3] in the template frame, and with ``pixels`` ``pixel_sphere`` [B, s, s, 3], unit
            vectors on the template's sphere for cells of 4 x 4 pixels, and ``pixel_logit`` [B, s, s],
            whether they show the animal.

        Raises:
            UserError: the images are not of the size the model was built for.
        """
        size = self.arch.image_size
        if images.shape[1:] != (3, size, size):
            raise UserError(f"expected images [B, 3, {size}, {size}]; found {list(images.shape)}")
        features, maps = self.encoder(images)
        result = self._decode(features, articulated, vertices)
        if pixels:
            result["pixel_sphere"], result["pixel_logit"] = self.pixel_map(maps)
        return result

    def from_features(
        self, feature_map: Tensor, *, articulated: bool = True, vertices: bool = False
    ) -> dict[str, Tensor]:
        """As `forward`, from the feature maps [B, 512, S / 32, S / 32] of the encoder's ResNet."""
        return self._decode(self.encoder.read(feature_map), articulated, vertices)

    def _decode(self, features: Tensor, articulated: bool, vertices: bool) -> dict[str, Tensor]:
        # Rotations and projections keep full precision even where the encoder runs in bf16.
        with torch.autocast(features.device.type, enabled=False):
            features = self.trunk(features.float()).squeeze(1)
            camera, probability = self.camera_head(features)
            if articulated:
                transforms = self.part_head(features)
            else:
                transforms = features.new_zeros(*camera.shape[:2], len(self.parents), 8)
                transforms[..., 0] = transforms[..., 4] = 1.0
            result = {
                "camera": camera, "camera_prob": probability, "part_transforms": transforms
            }  # fmt: skip
            if vertices:
                result["vertices"] = self.articulate(transforms)
                points = result["vertices"][..., self.keypoint_vertices, :]
            else:
                points = self.articulate(transforms, self.keypoint_vertices)
            result["keypoints_ndc"] = project(points, camera)
        return result

    def articulate(self, transforms: Tensor, index: Tensor | None = None) -> Tensor:
        """Template vertices (or those of ``index``) moved by part transforms [..., P, 8]."""
        vertices, membership = self.vertices, self.membership
        if index is not None:
            vertices, membership = vertices[index], membership[index]
        return articulate(vertices, membership, transforms, self.centres, self.parents, self.arch.order)

    @torch.no_grad()
    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Predict in evaluation mode, without gradients, whole meshes included.

        Args:
            images: ImageNet-normalised [B, 3, S, S].

        Returns:
            ``camera`` [B, C, 7], ``camera_prob`` [B, C], ``part_transforms`` [B, C, P, 8],
            ``vertices`` [B, C, V, 3] (template frame), ``keypoints_ndc`` [B, C, K, 2].
        """
        training = self.training
        self.eval()
        try:
            return self.forward(images, vertices=True)
        finally:
            self.train(training)


def best_camera(prediction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A prediction with only each image's most probable camera: every entry loses dimension C."""
    best = prediction["camera_prob"].argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    of_image = ("pixel_sphere", "pixel_logit")
    return {name: value if name in of_image else value[rows, best] for name, value in prediction.items()}


def architecture_from(node: Mapping[str, Any]) -> ACSMArchitecture:
    """The architecture that a checkpoint's ``extra["arch"]`` describes; unknown keys are refused."""
    known = {field.name for field in dataclasses.fields(ACSMArchitecture)}
    unknown = sorted(set(node) - known)
    if unknown:
        raise UserError(f"the checkpoint's architecture has unknown settings {unknown}")
    ranges = node.get("angle_ranges_deg", ACSMArchitecture.angle_ranges_deg)
    return ACSMArchitecture(**{**node, "angle_ranges_deg": tuple(float(value) for value in ranges)})
