"""Several camera hypotheses against one, by viewpoint: AUC and camera error of the 3D model.

    python -m benchmarks.acsm_cameras --root bench_arms [--seeds 3] [--time_limit 55]

Arms: one camera; eight cameras (a camera multiplex); and both without the cameras that are fitted to
keypoints, which are there for what several cameras are for, too: not to settle on the wrong side. Worlds,
starts and figures are those of benchmarks.acsm_arms. Photos show animals from all round: .54 of the views
are uniform, the others near the sides (`--variety` of make-diorama, at its default of .9). Changes are over
one camera, on the same animals. Run it again to continue.
`--worlds DIR` takes worlds that benchmarks.pseudo_labels made, with their pose networks.
"""

from __future__ import annotations

from typing import Any

from benchmarks.acsm_arms import parser, run_chosen

ARMS: dict[str, dict[str, Any]] = {
    "one": {"num_cameras": 1},
    "eight": {"num_cameras": 8},
    "one_unguided": {"num_cameras": 1, "camera_guide": 0.0},
    "eight_unguided": {"num_cameras": 8, "camera_guide": 0.0},
}


def main(argv: list[str] | None = None) -> int:
    """Run the seeds that there is time for, and print the table."""
    run_chosen("acsm_cameras", parser(__doc__, time_limit=55.0), ARMS, "one", argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
