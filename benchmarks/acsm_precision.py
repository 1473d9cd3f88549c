"""What bfloat16 and torch.compile do to the 3D model: AUC, camera error and seconds a step.

    python -m benchmarks.acsm_precision --root bench_arms [--seeds 3] [--arms float32 bfloat16 compile]

The same arm is trained in float32, with the encoder in bfloat16, and compiled, at equal steps and seeds, on
synthetic worlds; all start from the same pose network. Changes are over float32, on the same animals.
Run it again to continue.
`--worlds DIR` takes worlds that benchmarks.pseudo_labels made, with their pose networks.
"""

from __future__ import annotations

from benchmarks.acsm_arms import parser, run_chosen

ARMS = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "compile": {"precision": "float32", "compile": True},
    "bfloat16_compile": {"precision": "bfloat16", "compile": True},
}


def main(argv: list[str] | None = None) -> int:
    """Train and measure every arm, print the table and save the figures."""
    run_chosen("acsm_precision", parser(__doc__), ARMS, "float32", argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
