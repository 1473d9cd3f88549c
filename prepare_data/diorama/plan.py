"""Which pictures a world consists of, decided before any is rendered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.scene import LABELLED, WEB

PHOTO_ID_BASE = 3_000_000_000


@dataclass(frozen=True)
class Entry:
    """One picture of a world.

    Attributes:
        key: its name: a photo id for the web's, "d0001" for the labelled set's.
        stream, index: what `render_picture` renders; a copy names its original's.
        cast: "animal", "stranger" or "empty".
        copy: 0 for an original, else the number of the copy.
        split: of a labelled picture, else "".
        leak: whether it copies a labelled picture into the web.
    """

    key: str
    stream: int
    index: int
    cast: str
    copy: int = 0
    split: str = ""
    leak: bool = False


def plan_labelled(config: DioramaConfig) -> list[Entry]:
    """The labelled set: copies stand in the split of their original."""
    rng = np.random.default_rng([config.seed, LABELLED, 1 << 30])
    entries: list[Entry] = []
    index = 0
    counts = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    for split, count in counts.items():
        copies = int(round(config.duplicate_share * count * 0.5))
        originals = list(range(index, index + count - copies))
        index += len(originals)
        for i in originals:
            entries.append(Entry(f"d{len(entries):05d}", LABELLED, i, "animal", 0, split))
        for n in range(copies):
            source = int(rng.choice(originals))
            entries.append(Entry(f"d{len(entries):05d}", LABELLED, source, "animal", n + 1, split))
    return entries


def plan_web(config: DioramaConfig, labelled: list[Entry]) -> list[Entry]:
    """The web: originals, copies of one another, and copies of labelled photos, shuffled."""
    rng = np.random.default_rng([config.seed, WEB, 1 << 30])
    total = config.num_web
    sources = [entry for entry in labelled if not entry.copy]
    leaks = min(int(round(config.leak_share * total)), total) if sources else 0
    copies = int(round(config.duplicate_share * total))
    originals = max(total - leaks - copies, 1 if total else 0)
    copies = total - leaks - originals
    empty = int(round(config.empty_share * originals))
    stranger = int(round(config.stranger_share * originals))
    casts = ["empty"] * empty + ["stranger"] * stranger
    casts += ["animal"] * (originals - len(casts))
    rows = [(WEB, i, cast, 0, False) for i, cast in enumerate(rng.permutation(casts))]
    for n in range(copies):
        i = int(rng.integers(originals))
        rows.append((*rows[i][:3], n + 1, False))
    for n in range(leaks):
        source = sources[int(rng.integers(len(sources)))]
        rows.append((LABELLED, source.index, "animal", 10_000 + n, True))
    order = rng.permutation(len(rows))
    ids = PHOTO_ID_BASE + np.cumsum(rng.integers(1000, 900_000, len(rows)))
    return [
        Entry(str(ids[n]), rows[i][0], rows[i][1], str(rows[i][2]), rows[i][3], "", rows[i][4])
        for n, i in enumerate(order)
    ]
