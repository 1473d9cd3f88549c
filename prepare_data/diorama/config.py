"""Settings of a synthetic world."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wildshape.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DioramaConfig:
    """Everything a world depends on; the same settings give the same pictures and truth."""

    seed: int = 0
    """Seed of the world."""
    image_size: int = 256
    """Square root of a picture's area, pixels."""
    aspect_jitter: bool = True
    """Whether pictures are landscape, portrait or square; otherwise all are square."""
    num_train: int = 120
    """Labelled photos for training."""
    num_val: int = 30
    """Labelled photos for choices."""
    num_test: int = 300
    """Labelled photos for the final numbers."""
    num_web: int = 1000
    """Web pictures that can be downloaded (failures come on top)."""
    identities: int = 60
    """Different individuals of the category."""
    difficulty: float = 0.3
    """0 to 1: light, clutter, blur, occlusion and truncation grow worse with it."""
    variety: float = 0.9
    """0 to 1: poses, views and body shapes grow more different with it."""
    several_share: float = 0.22
    """Pictures with more than one animal of the category."""
    distractor_share: float = 0.14
    """Pictures with an animal of another category beside it."""
    occluder_share: float = 0.5
    """Pictures with something in front of the animal, at difficulty 1."""
    truncation_share: float = 0.4
    """Pictures in which the animal is cut by the border, at difficulty 1."""
    empty_share: float = 0.06
    """Web pictures without any animal."""
    stranger_share: float = 0.08
    """Web pictures with animals of other categories only."""
    duplicate_share: float = 0.08
    """Pictures that are re-encoded, resized or slightly cropped copies of another one."""
    leak_share: float = 0.03
    """Web pictures that are such copies of a labelled photo."""
    not_found_share: float = 0.04
    """Extra web addresses that answer 404, relative to num_web."""
    rate_limited_share: float = 0.05
    """Web pictures whose first request answers 429 with Retry-After."""
    truncated_share: float = 0.02
    """Extra web addresses whose body ends too soon, relative to num_web."""
    not_image_share: float = 0.02
    """Extra web addresses that answer with a page instead of a picture, relative to num_web."""
    other_subject_share: float = 0.3
    """Extra metadata rows about other things, which a search must not match, relative to num_web."""

    def __post_init__(self) -> None:
        """Checks ranges and names the flag that is out of them."""
        for name, value in asdict(self).items():
            if name.endswith("_share") or name in ("difficulty", "variety"):
                if not 0 <= value <= 1:
                    raise UserError(f"--{name.replace('_', '-')}: expected 0 to 1; found {value}")
            elif name.startswith("num_") and value < 0:
                raise UserError(
                    f"--{name.replace('_', '-')}: expected a count of at least 0; found {value}"
                )
        if self.image_size < 48:
            raise UserError(f"--image-size: expected at least 48 pixels; found {self.image_size}")
        if self.identities < 1:
            raise UserError(f"--identities: expected at least 1; found {self.identities}")
        if self.empty_share + self.stranger_share + self.duplicate_share + self.leak_share > 0.9:
            raise UserError(
                "--empty-share, --stranger-share, --duplicate-share and --leak-share: expected a sum "
                "of at most 0.9"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for manifests."""
        return asdict(self)
