"""Do masks help? The 3D model trained on keypoints, and on keypoints and masks, on the synthetic world.

    python -m benchmarks.acsm_masks --root bench_masks [--seeds 3] [--steps 1500] [--time_limit 50]

Worlds, starts and figures are those of benchmarks.acsm_arms; changes are over keypoints alone, on the same
animals. Run it again to continue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.acsm_arms import parser, run_chosen

ARMS: dict[str, dict[str, Any]] = {
    "keypoints": {},
    "both": {"supervise": "both"},
    "both_released": {"supervise": "both", "silhouette_weight": 0.0},
    "masks": {"supervise": "masks"},
}
"""Settings of each arm; ``both_released`` has the published terms alone."""


def main(argv: list[str] | None = None) -> int:
    """Run the seeds that there is time for, and print the table."""
    defaults = {"root": Path("bench_masks"), "first_seed": 40, "steps": 1500, "time_limit": 50.0}
    options = parser(__doc__, **defaults, name="masks", arms=["keypoints", "both", "both_released"])
    run_chosen("acsm_masks", options, ARMS, "keypoints", argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
