"""What the figures of `benchmarks.zero123plus_points` come to over seeds."""

from __future__ import annotations

from typing import Any

from benchmarks.pseudo_labels import number, spread
from wildshape.metrics import paired_change

PARTS = ("works", "switches", "labels", "sweep")
FIGURES = ("pck", "error", "moved_px", "same_part", "by_chance", "information")


def summarise(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every part that some seeds have: mean and deviation by arm, and what ours gains over each."""
    summary: dict[str, Any] = {}
    for part in PARTS:
        rows = [seed[part] for seed in seeds if part in seed]
        if not rows:
            continue
        if part == "labels":
            summary[part] = {arm: _by_number([row[arm] for row in rows]) for arm in rows[0]}
            continue
        arms = {arm: {key: spread([row[arm][key] for row in rows]) for key in FIGURES} for arm in rows[0]}
        gains = {arm: ours_over(rows, arm) for arm in rows[0] if arm != "ours"}
        summary[part] = {"seeds": len(rows), "arms": arms, "ours_over": gains}
    return summary


def ours_over(rows: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """What ours gains over another arm, with intervals over the animals of all seeds.

    Returns:
        ``pck`` in points, and ``error`` in percent of the box (less is better).
    """
    gains = {}
    for figure, counted in (("pck", "keypoints_right"), ("error", "error_sum")):
        sides = [
            [
                {**row[name]["by_instance"], "keypoints_right": row[name]["by_instance"][counted]}
                for row in rows
            ]
            for name in ("ours", arm)
        ]
        gains[figure] = paired_change(sides[0], sides[1], "auc")
    return gains


def _by_number(seeds: list[dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Mean and deviation over the draws of all seeds, by number of labels."""
    return {
        count: {
            key: spread([draw[key] for seed in seeds for draw in seed[count]]) for key in ("pck", "error")
        }
        for count in seeds[0]
    }


def table(summary: dict[str, Any]) -> str:
    """The figures as text."""
    titles = ("PCK@.1", "error %", "moved, px", "same part %", "by chance %", "information %")
    lines = []
    for part, node in summary.items():
        if part == "labels":
            counts = list(next(iter(node.values())))
            lines += ["", f"{'PCK by labels':<22}" + "".join(f"{count:>16}" for count in counts)]
            lines += [
                f"{arm:<22}" + "".join(f"{number(row[count]['pck']):>16}" for count in counts)
                for arm, row in node.items()
            ]
            continue
        lines += ["", f"{part:<22}" + "".join(f"{title:>16}" for title in titles) + f"{'ours gains':>24}"]
        for arm, row in node["arms"].items():
            cells = "".join(f"{number(row[key]):>16}" for key in FIGURES)
            gain = node["ours_over"].get(arm)
            last = ""
            if gain:
                low, high = gain["pck"]["interval"]
                last = f"{gain['pck']['gain']:+.1f} [{low:+.1f}, {high:+.1f}]"
            lines.append(f"{arm:<22}{cells}{last:>24}")
    return "\n".join(lines[1:])


def without_animals(seed: dict[str, Any]) -> dict[str, Any]:
    """The figures of a seed, less those of every animal."""

    def bare(arms: dict[str, Any]) -> dict[str, Any]:
        return {
            arm: {key: value for key, value in row.items() if key != "by_instance"}
            for arm, row in arms.items()
        }

    return {part: bare(seed[part]) if part in PARTS else seed[part] for part in seed}
