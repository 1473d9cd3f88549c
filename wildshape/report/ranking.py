"""All pseudo-labels in the order of each criterion, chosen or not.

A selection holds the chosen ones only; curves and the worst examples need the rest. The criteria
themselves are asked by name, as the console command asks its stages, so that there is one definition.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np

from wildshape.errors import UserError
from wildshape.report.funnel import criterion_of
from wildshape.report.inputs import RunInputs

_LEFT_OUT = ("random", "all")


@dataclass(frozen=True)
class Ranking:
    """Every candidate, best first.

    Attributes:
        criterion: Canonical name.
        ids: [N] instance ids.
        values: [N] the criterion's values.
        complete: Whether all candidates are here, not the chosen ones only.
    """

    criterion: str
    ids: np.ndarray
    values: np.ndarray
    complete: bool = True


def rank_all(inputs: RunInputs) -> dict[str, Ranking]:
    """A ranking for every criterion whose keypoint sources the run has, or that made a selection."""
    rankings = _from_criteria(inputs)
    for stem, selection in inputs.selections.items():
        name = criterion_of(selection, stem)
        known = rankings.get(name)
        if name in _LEFT_OUT or (known is not None and len(known.ids) >= len(selection)):
            continue
        order = np.argsort(selection["rank"], kind="stable")
        ids, values = selection["instance_id"][order], selection["value"][order]
        rankings[name] = Ranking(name, ids, values, complete=False)
    return rankings


def _from_criteria(inputs: RunInputs) -> dict[str, Ranking]:
    instances = inputs.tables.get("instances")
    if instances is None or "pose" not in inputs.keypoints:
        return {}
    try:
        criteria = importlib.import_module("pseudolabels.criteria")
        gather = importlib.import_module("pseudolabels.candidates").gather_candidates
    except ImportError as error:
        inputs.problems.append(f"selections can be shown, but not what they left out: {error}")
        return {}
    rankings = {}
    for known in criteria.CRITERIA.values():
        if known.name in _LEFT_OUT or any(s not in inputs.keypoints for s in known.sources):
            continue
        criterion = known
        try:
            criterion = known.fitted(inputs.workspace)
            tables = {source: inputs.keypoints[source] for source in criterion.sources}
            candidates, ids, _ = gather(instances, tables, inputs.tables.get("images"))
            values = criterion.value(candidates)
            order = criteria.rank(values, candidates.ids, criterion.descending)
        except UserError as error:
            inputs.problems.append(f"{criterion.title}: {error}")
            continue
        rankings[criterion.name] = Ranking(criterion.name, ids[order], values[order])
    return rankings
