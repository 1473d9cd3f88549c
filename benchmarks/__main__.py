"""`python -m benchmarks [NAME ...]`: run the short benchmarks, or those that are named."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

LONG = (
    "acsm_cameras", "acsm_flip_consistency", "acsm_masks", "acsm_precision", "masks", "pseudo_labels",
    "real_cows", "real_cows_settings", "real_near_duplicates", "rounds", "zero123plus_helps",
    "zero123plus_points", "zero123plus_speed",
)  # fmt: skip
NOT_BENCHMARKS = (
    "__init__", "__main__", "acsm_arms", "machine", "real_cows_pictures", "run_img2dataset", "scale",
    "zero123plus_baselines", "zero123plus_cost", "zero123plus_measures", "zero123plus_pictures",
    "zero123plus_tables",
)  # fmt: skip


def main(names: list[str]) -> int:
    """Run benchmarks by name; without names all but the long ones."""
    folder = Path(__file__).parent
    known = sorted(path.stem for path in folder.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown benchmark {unknown[0]}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or [name for name in known if name not in LONG]:
        print(f"== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main([])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
