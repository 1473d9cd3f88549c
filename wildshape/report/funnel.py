"""From addresses to selected labels: how many are left after each step, and why the others are not.

Everything is counted in the tables; only the number of metadata lines, which no table holds, comes from
the metrics of the search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wildshape.report.inputs import RunInputs
from wildshape.tables import Table

STATUS_WORDS: Mapping[str, str] = {
    "pending": "not tried yet",
    "not_found": "gone (404)",
    "rate_limited": "refused, too many requests (429)",
    "http_error": "refused by the server",
    "forbidden": "not to be used for training (X-Robots-Tag)",
    "timeout": "timed out",
    "connection": "without a connection",
    "truncated": "cut short",
    "not_image": "not an image",
    "placeholder": "a picture that says the photo is gone",
    "too_small": "too small",
    "too_large": "too large",
    "duplicate": "near-duplicates of another",
    "in_labels": "also in the labelled set",
}
REPEATS = ("duplicate", "in_labels")
BOX_WORDS: Mapping[str, str] = {
    "other_label": "boxes of something else",
    "low_score": "boxes the detector was not sure of",
    "no_area": "boxes without area",
    "over_limit": "boxes beyond the limit to an image",
}
FLAG_WORDS: Mapping[str, str] = {
    "truncated": "cut by the image's edge", "small": "small", "crowd": "overlapping another",
    "low_score": "under the detector's own threshold",
}  # fmt: skip
SEARCH_WORDS: Mapping[str, str] = {
    "no_word": "without the category's words",
    "excluded": "with an excluding word",
    "videos": "videos",
    "repeated": "listed before",
    "malformed": "malformed lines",
    "license": "under other licences",
    "not_sampled": "not drawn into the sample",
}


@dataclass(frozen=True)
class FunnelStep:
    """One step.

    Attributes:
        key: Short name, for the JSON file.
        name: What is counted.
        unit: "lines", "images" or "animals".
        total: How many came in; None where nothing can be lost.
        kept: How many are left.
        losses: Count by reason.
        note: Anything else to know.
    """

    key: str
    name: str
    unit: str
    total: int | None
    kept: int
    losses: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "losses": dict(self.losses)}


def count_funnel(inputs: RunInputs) -> list[FunnelStep]:
    """The steps that this run's tables allow to count, in order; none without tables."""
    return [*_found(inputs), *_downloaded(inputs), *_detected(inputs), *_selected(inputs)]


def _found(inputs: RunInputs) -> list[FunnelStep]:
    present = [name for name in ("candidates", "downloads", "images") if name in inputs.tables]
    if not present:
        return []
    table = inputs.tables[present[0]]
    folder = _of_a_folder(table)
    name = "photos in the folder" if folder else "addresses found"
    search = inputs.metrics.get("search_metadata")
    lines = search.get("lines") if isinstance(search, Mapping) and not folder else None
    if not isinstance(search, Mapping) or not isinstance(lines, int):
        return [FunnelStep("matched", name, "images", None, len(table))]
    losses = {word: int(search.get(key) or 0) for key, word in SEARCH_WORDS.items()}
    losses = {reason: count for reason, count in losses.items() if count}
    return [
        FunnelStep("metadata", "metadata lines", "lines", None, lines),
        FunnelStep("matched", name, "images", lines, len(table), losses),
    ]


def _of_a_folder(table: Table) -> bool:
    return len(table) > 0 and set(table["source"]) == {"folder"}


def _downloaded(inputs: RunInputs) -> list[FunnelStep]:
    pool = inputs.tables.get("images")
    table = pool if pool is not None else inputs.tables.get("downloads")
    if table is None:
        return []
    counts = Counter(table["status"])
    repeats = {STATUS_WORDS[s]: counts[s] for s in REPEATS if counts[s]}
    failed = {
        STATUS_WORDS.get(status, status): count
        for status, count in sorted(counts.items(), key=lambda item: -item[1])
        if status != "ok" and status not in REPEATS
    }
    downloaded = len(table) - sum(failed.values())
    title = "usable photos" if _of_a_folder(table) else "images downloaded"
    steps = [FunnelStep("downloaded", title, "images", len(table), downloaded, failed)]
    if pool is not None:
        steps.append(FunnelStep("distinct", "distinct images", "images", downloaded, counts["ok"], repeats))
    return steps


def _detected(inputs: RunInputs) -> list[FunnelStep]:
    instances = inputs.tables.get("instances")
    if instances is None:
        return []
    steps = []
    images = inputs.tables.get("images")
    with_animal = {name for name in instances["image_id"] if name is not None}
    if images is not None:
        usable = set(images["image_id"][images["status"] == "ok"])
        kept = len(usable & with_animal)
        losses = {"in which no animal was found": len(usable) - kept}
        name = "images with an animal"
        steps.append(FunnelStep("with_animal", name, "images", len(usable), kept, losses))
    total, dropped = _dropped_boxes(inputs, len(instances))
    note = _flag_words(instances["flags"])
    name = "animals detected"
    steps.append(FunnelStep("instances", name, "animals", total, len(instances), dropped, note))
    return steps


def _dropped_boxes(inputs: RunInputs, kept: int) -> tuple[int | None, dict[str, int]]:
    """The detector's boxes that became no instances: they are in the detection's metrics only."""
    facts = inputs.metrics.get("save_boxes")
    boxes = facts.get("boxes") if isinstance(facts, Mapping) else None
    if not isinstance(boxes, Mapping) or boxes.get("kept") != kept:
        return None, {}
    words = {BOX_WORDS.get(key, key): int(n) for key, n in boxes.items() if key != "kept" and n}
    return kept + sum(words.values()), words


def _flag_words(flags: Any) -> str:
    counts = Counter(flag for text in flags for flag in text.split(",") if flag)
    words = ", ".join(f"{count:,} {FLAG_WORDS.get(flag, flag)}" for flag, count in counts.most_common())
    return f"among those kept {words}" if words else ""


def _selected(inputs: RunInputs) -> list[FunnelStep]:
    instances, pose = inputs.tables.get("instances"), inputs.keypoints.get("pose")
    if instances is None or pose is None:
        return []
    labelled = set(pose["instance_id"])
    with_keypoints = np.array([name in labelled for name in instances["instance_id"]], dtype=bool)
    usable, losses = with_keypoints, {"without keypoints": int((~with_keypoints).sum())}
    if "images" in inputs.tables:
        images = inputs.tables["images"]
        # the same bytes at two addresses are one image, "ok" at one and "duplicate" at the other
        marked = set(images["image_id"][np.isin(images["status"], REPEATS)])
        marked -= set(images["image_id"][images["status"] == "ok"])
        repeats = np.array([name in marked for name in instances["image_id"]], dtype=bool)
        losses["in images that repeat others"] = int((with_keypoints & repeats).sum())
        usable = with_keypoints & ~repeats
    count = int(usable.sum())
    losses = {reason: number for reason, number in losses.items() if number}
    steps = [FunnelStep("keypoints", "pseudo-labels", "animals", len(instances), count, losses)]
    for stem, selection in sorted_selections(inputs):
        criterion = criterion_of(selection, stem)
        if criterion == "all":
            continue
        lost = {"ranked lower": max(count - len(selection), 0)}
        name = f"selected by {criterion_title(criterion)}"
        steps.append(FunnelStep(f"selected_{stem}", name, "animals", count, len(selection), lost))
    return steps


TITLES: Mapping[str, str] = {
    "kpconf": "KP-Conf", "cf_mt": "CF-MT", "cf_cm": "CF-CM", "cf_cm_zero123plus": "CF-CM with Zero123Plus",
    "cf_cm2": "CF-CM2", "cf_all": "CF-All", "random": "random", "all": "all",
}  # fmt: skip


def criterion_order(name: str) -> tuple[int, str]:
    """Sorts criteria as they are listed everywhere."""
    names = list(TITLES)
    return (names.index(name) if name in names else len(names), name)


def sorted_selections(inputs: RunInputs) -> list[tuple[str, Table]]:
    """Selections by criterion and size, with their files' stems."""

    def key(item: tuple[str, Table]) -> tuple[int, str, int]:
        return (*criterion_order(criterion_of(item[1], item[0])), len(item[1]))

    return sorted(inputs.selections.items(), key=key)


def criterion_title(name: str) -> str:
    """How a criterion is written in tables and charts."""
    return TITLES.get(name, name)


def criterion_of(selection: Table, stem: str) -> str:
    """The criterion of a selection table; of an empty one, from its file's name."""
    return str(selection["criterion"][0]) if len(selection) else stem.rsplit("_", 1)[0]
