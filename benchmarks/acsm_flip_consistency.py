"""What flip consistency does to the 3D model: AUC, camera error and seconds a step.

    python -m benchmarks.acsm_flip_consistency --root bench_arms [--seeds 3] [--weights 0.3 1.0]

The same arm is trained without it and with each weight, at equal steps and seeds, on synthetic worlds. All
start from the same pose network. Changes are over the arm without, on the same animals. With it a step
looks at twice as many images. Run it again to continue.
`--worlds DIR` takes worlds that benchmarks.pseudo_labels made, with their pose networks.
"""

from __future__ import annotations

from benchmarks.acsm_arms import parser, run_all


def main(argv: list[str] | None = None) -> int:
    """Train and measure every arm, print the table and save the figures."""
    options = parser(__doc__)
    options.add_argument("--weights", nargs="+", type=float, default=[0.3, 1.0])
    options.add_argument("--freeze", action="store_true", help="leave the encoder as it is")
    chosen = options.parse_args(argv)
    frozen = {"freeze": True} if chosen.freeze else {}
    arms = {"without": frozen}
    arms |= {f"flip_{weight:g}": {**frozen, "flip_consistency": weight} for weight in chosen.weights}
    run_all("acsm_flip_consistency", chosen, arms, "without")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
