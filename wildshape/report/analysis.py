"""All that the report says in numbers, computed once for the page and for metrics.json."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wildshape.report import quality
from wildshape.report.facts import machine_facts
from wildshape.report.funnel import (
    FunnelStep,
    count_funnel,
    criterion_of,
    criterion_order,
    sorted_selections,
)
from wildshape.report.inputs import RunInputs
from wildshape.report.ranking import Ranking, rank_all
from wildshape.report.results import Arm, Verdict, judge, read_arms


@dataclass(frozen=True)
class Selected:
    """One selection: its file's stem, its criterion and its size."""

    stem: str
    criterion: str
    count: int


@dataclass
class Analysis:
    """Numbers of a run.

    Attributes:
        inputs: What they come from.
        facts: Date, machine, versions.
        funnel: Steps from addresses to selections.
        selections: Those there are, by criterion and size.
        rankings: All candidates by criterion.
        arms: Measured 3D models.
        verdict: What they say.
        compared: Pseudo-labels against the truth; None where there is none.
        quality: `quality.quality_table` of them, or None.
        curves: By criterion AUC of the first n; with `counts`, and `random` as lower, mean, upper.
    """

    inputs: RunInputs
    facts: dict[str, Any]
    funnel: list[FunnelStep]
    selections: list[Selected]
    rankings: dict[str, Ranking]
    arms: list[Arm]
    verdict: Verdict
    compared: quality.Compared | None = None
    quality: dict[str, Any] | None = None
    curves: dict[str, Any] = field(default_factory=dict)


def analyse(inputs: RunInputs) -> Analysis:
    """Compute everything that the run allows."""
    selections = [
        Selected(stem, criterion_of(table, stem), len(table)) for stem, table in sorted_selections(inputs)
    ]
    rankings = dict(sorted(rank_all(inputs).items(), key=lambda item: criterion_order(item[0])))
    arms = read_arms(inputs)
    analysis = Analysis(
        inputs, machine_facts(), count_funnel(inputs), selections, rankings, arms, judge(arms)
    )
    _measure_quality(analysis)
    return analysis


def _measure_quality(analysis: Analysis) -> None:
    inputs = analysis.inputs
    truth, pose = inputs.keypoints.get("truth"), inputs.keypoints.get("pose")
    instances = inputs.tables.get("instances")
    if truth is None or pose is None or instances is None:
        return
    candidates = next((r.ids for r in analysis.rankings.values() if r.complete), None)
    if candidates is not None:
        wanted = set(candidates)
        pose = pose.take(np.array([name in wanted for name in pose["instance_id"]], dtype=bool))
    try:
        compared = quality.compare(pose, truth, instances)
    except ValueError as error:
        inputs.problems.append(f"pseudo-labels and truth do not compare: {error}")
        return
    if not compared.known.any():
        inputs.problems.append("keypoints/truth has none of the detected animals")
        return
    analysis.compared = compared
    ids = {s.stem: inputs.selections[s.stem]["instance_id"] for s in analysis.selections}
    analysis.quality = quality.quality_table(compared, ids)
    analysis.curves = _curves(compared, analysis.rankings)


def _curves(compared: quality.Compared, rankings: dict[str, Ranking]) -> dict[str, Any]:
    counts = quality.grid_of_counts(len(compared.ids))
    drawn = quality.random_curves(compared, counts)
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    lines: dict[str, Any] = {
        "counts": counts,
        "random": {"low": low, "mean": np.nanmean(drawn, axis=0), "high": high},
    }
    for name, ranking in rankings.items():
        order = compared.rows_of(ranking.ids)
        if not len(order):
            continue
        values = np.full(len(counts), math.nan)
        reach = counts <= len(order)
        values[reach] = quality.curve(compared, order, counts[reach])
        lines[name] = values
    return lines
