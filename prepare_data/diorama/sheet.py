"""A contact sheet of every species, to be looked at.

python -m prepare_data.diorama.sheet --out docs/images/diorama.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from prepare_data.diorama.anatomy import SPECIES
from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.scene import WEB, render_picture
from prepare_data.diorama.zoo import Zoo
from wildshape.files import atomic_write
from wildshape.skeleton import load_skeleton


def contact_sheet(config: DioramaConfig, columns: int = 8, side: int = 192) -> np.ndarray:
    """One row of pictures a species, RGB uint8 [6 * side, columns * side, 3]."""
    zoo = Zoo(config.seed, load_skeleton("quadruped16").keypoints, config.variety)
    rows = []
    for species in SPECIES:
        pictures = [render_picture(zoo, config, species, WEB, n).image for n in range(columns)]
        tiles = [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pictures]
        rows.append(np.hstack(tiles))
    return np.vstack(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--difficulty", type=float, default=0.5)
    arguments = parser.parse_args(argv)
    config = DioramaConfig(
        seed=arguments.seed, difficulty=arguments.difficulty, aspect_jitter=False, identities=8
    )
    sheet = cv2.cvtColor(contact_sheet(config), cv2.COLOR_RGB2BGR)
    with atomic_write(arguments.out) as handle:
        handle.write(cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes())
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e3:.0f} KB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
