"""Which real photos are taken for near-duplicates: every merged pair counted, and drawn to be looked at.

    WILDSHAPE_REAL_DATA=DIR python -m benchmarks real_near_duplicates
    python -m benchmarks.real_near_duplicates --data DIR --pictures FOLDER

DIR holds web_cow/ (photos, the pool) and animal_pose/ (the labelled set). A pair is merged by its hashes
(two of `MAX_DISTANCE` bits or less) or by its pixels; chains of pairs merge more, and every photo that is
left out is drawn beside the one that is kept for it too. What the pictures in FOLDER show is kept below as
`JUDGEMENT`, with a digest of the pairs that it holds for: for other pairs it is not reported.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.machine import save
from prepare_data import add_folder, pool
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.near_duplicates import MAX_DISTANCE, close_pairs, hamming
from wildshape.tables import Table
from wildshape.workspace import Workspace

# All pairs were looked at. Copies: one photograph, also mirrored, cut out or with a caption. Frames: the
# same animal a moment later, its head turned or the camera moved. Other shots of labelled animals are meant
# to be left out. False: two photographs of which both could have been kept.
JUDGEMENT: dict[str, Any] = {
    "digest": "b82b2279772fd3c4",
    "copies": 75,
    "frames": 6,
    "other_shots_of_labelled_animals": 1,
    "false": 3,
    "false_numbers": [20, 76, 84],
}
_SIDE = 240
_SHEET = 12


@dataclass(frozen=True)
class Pair:
    """Two photos that were merged: their files, why, and the bits between their hashes."""

    first: Path
    second: Path
    why: str
    bits: int


@dataclass(frozen=True)
class Pool:
    """The labelled images (none without labels) and the web images, as the command leaves them."""

    workspace: Workspace
    labelled: Table
    images: Table


def make_pool(data: Path, root: Path) -> Pool:
    """Import the labels, take the folder."""
    workspace = Workspace(root, "cow")
    importer = importlib.import_module("wildshape.formats.import_command")
    settings = importer.Config(
        format="animal_pose", root=data / "animal_pose", category="cow", data_root=root
    )
    importer.run(settings, workspace)
    config = add_folder.Config(category="cow", folder=data / "web_cow", data_root=root)
    add_folder.run(config, workspace)
    return Pool(workspace, workspace.load("labelled_images"), workspace.load("images"))


def merged_pairs(found: Pool) -> list[Pair]:
    """Pairs merged by hash, by pixels, and by a chain alone, in a fixed order."""
    images, labelled, workspace = found.images, found.labelled, found.workspace
    downloads = workspace.load("downloads")
    hashes = pool.labelled_hashes(labelled, workspace)
    web = pool.usable_hashes(downloads)
    everyone = [*hashes, *web]
    count = len(hashes)
    close = close_pairs(everyone, everyone, MAX_DISTANCE, ordered=True)
    links = pool.find_repetitions(downloads, labelled, hashes, workspace).links
    why = {(i, j): "hash" for i, j in zip(close.first.tolist(), close.second.tolist()) if j >= count}
    for i, j in np.sort(links, axis=1).tolist():
        why.setdefault((i, j), "pixels")
    place = {f"repeats {name}": row + count for row, name in enumerate(images["record_id"])}
    place |= {f"repeats the labelled image {name}": row for row, name in enumerate(labelled["image_id"])}
    for row, error in enumerate(images["error"]):
        if error in place:
            one, other = sorted((place[error], row + count))
            why.setdefault((one, other), "chain")
    paths = [workspace.image_file(path) for path in (*labelled["path"], *images["path"])]
    bits = hamming(everyone, everyone)
    return [Pair(paths[i], paths[j], why[i, j], int(bits[i, j])) for i, j in sorted(why)]


def digest(pairs: Sequence[Pair]) -> str:
    """Of the names of the files, to tell whether these are the pairs that were looked at."""
    names = "".join(f"{pair.first.name}\t{pair.second.name}\n" for pair in pairs)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def draw(pairs: Sequence[Pair], folder: Path) -> int:
    """Sheets of numbered pairs, left and right; returns how many sheets."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pairs), _SHEET):
        part = pairs[start : start + _SHEET]
        sheet = Image.new("RGB", (3 * (2 * _SIDE + 20), -(-len(part) // 3) * (_SIDE + 20)), "white")
        for place, pair in enumerate(part):
            x, y = place % 3 * (2 * _SIDE + 20), place // 3 * (_SIDE + 20)
            for side, path in enumerate((pair.first, pair.second)):
                picture = Image.fromarray(read_image(path))
                picture.thumbnail((_SIDE, _SIDE))
                sheet.paste(picture, (x + side * _SIDE, y + 16))
            label = f"{start + place}: {pair.why}, {pair.bits} bits"
            ImageDraw.Draw(sheet).text((x + 2, y + 2), label, fill="black")
        sheet.save(folder / f"pairs_{start // _SHEET:02d}.png")
    return -(-len(pairs) // _SHEET)


def smaller_than_left_out(images: Table) -> int:
    """How many duplicates are larger than the image that is kept for them; none should be."""
    pixels = dict(zip(images["record_id"], images["width"] * images["height"]))
    return sum(
        pixels[row["record_id"]] > pixels[row["error"].removeprefix("repeats ")]
        for row in images.rows()
        if row["status"] == "duplicate"
    )


def measure(data: Path, pictures: Path | None) -> dict[str, Any]:
    """Make the pool in a folder of its own and count what was merged."""
    with tempfile.TemporaryDirectory() as folder:
        found = make_pool(data, Path(folder))
        pairs = merged_pairs(found)
        if pictures is not None:
            print(f"   {draw(pairs, pictures)} sheets of pairs in {pictures}")
        status = found.images["status"].tolist()
        figures = {
            "photos": len(found.images),
            "labelled": len(found.labelled),
            "max_distance": MAX_DISTANCE,
            "left": status.count("ok"),
            "duplicates": status.count("duplicate"),
            "in_labels": status.count("in_labels"),
            "larger_than_the_kept": smaller_than_left_out(found.images),
            "pairs": {why: sum(pair.why == why for pair in pairs) for why in ("hash", "pixels", "chain")},
            "digest": digest(pairs),
        }
    same = JUDGEMENT.get("digest") == figures["digest"]
    figures["seen_in_the_pictures"] = JUDGEMENT if same else None
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print, and keep the figures; returns 1 if a kept photo is not the largest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("WILDSHAPE_REAL_DATA"))
    parser.add_argument("--pictures", type=Path, default=None, help="folder for sheets of the merged pairs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(argv)
    if options.data is None:
        raise UserError("expected photos of cows; found no WILDSHAPE_REAL_DATA; run it with --data DIR")
    figures = measure(Path(options.data), options.pictures)
    for name, value in figures.items():
        print(f"   {name}: {value}")
    print(save("real_near_duplicates", figures, options.out))
    return int(figures["larger_than_the_kept"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
