"""CF-All: the doubts of all keypoint sources in one number, weighed by what they are worth on val.

Each source gives every animal a doubt about the pose network's keypoints: KP-Conf's with its sign turned,
the distances of CF-MT, CF-CM and CF-CM2, and that to the diffusion model's keypoints. Doubts have different
units, so that each becomes a rank in 0..1 among the animals it is compared with; CF-All is their weighted
mean.

The weights are fitted on the labelled animals of val, whose truth is known and which no network learnt
from (though some chose checkpoints on it): ranks of doubts against the rank of the network's error, by
least squares with weights of 0 or more (Lawson and Hanson, 1974), so that no source counts against its
sense. Val is small (tens of animals): a ridge pulls the weights towards equal ones, as strongly as
leave-one-out error lets it.

NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pseudolabels.criteria import Candidates, cf_mt, keypoint_distance, kp_conf
from wildshape.errors import UserError

FEWEST = 10
"""Animals of val below which weights stay equal."""
PULLS = (np.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.0)
"""Strengths of the ridge, strongest first, in mean squared ranks of the animals; infinite: equal."""


def _distance_to(source: str) -> Callable[[Candidates], np.ndarray]:
    return lambda data: keypoint_distance(data.xy["pose"], data.xy[source], data.box_xyxy)


DOUBTS: Mapping[str, Callable[[Candidates], np.ndarray]] = {
    "pose": lambda data: -kp_conf(data.confidence["pose"]),
    "pose_mt": lambda data: cf_mt(data.xy["pose_mt"][:, 0], data.xy["pose_mt"][:, 1:], data.box_xyxy),
    "pose_aux": _distance_to("pose_aux"),
    "acsm": _distance_to("acsm"),
    "zero123plus": _distance_to("zero123plus"),
}
"""How each source doubts the pose network's keypoints: values [N], less is better."""


@dataclass(frozen=True)
class Calibration:
    """Weights of sources, and what they are worth.

    Attributes:
        weights: by source, 0 or more, in all 1.
        animals: of val that they were fitted on; 0: they are equal because nothing was fitted.
        pull: of `PULLS`.
        left_out_error: mean squared error of an animal's rank, with the animal left out; NaN if not fitted.
        equal_error: likewise of equal weights.
        note: what a user should know, or "".
    """

    weights: Mapping[str, float]
    animals: int = 0
    pull: float = np.inf
    left_out_error: float = float("nan")
    equal_error: float = float("nan")
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        known = np.isfinite(self.left_out_error)
        return {
            "weights": {source: round(float(weight), 4) for source, weight in self.weights.items()},
            "val_animals": self.animals,
            "pull_to_equal": "equal" if np.isinf(self.pull) else self.pull,
            "left_out_error": round(self.left_out_error, 5) if known else None,
            "left_out_error_of_equal_weights": round(self.equal_error, 5) if known else None,
            "note": self.note,
        }


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [N] of values [N] in 0..1, the least near 0; equal values share theirs."""
    from scipy.stats import rankdata

    return (rankdata(values) - 0.5) / max(len(values), 1)


def combine(doubts: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """CF-All: weighted mean [N] of the ranks of doubts, in 0..1; less is better.

    Args:
        doubts: [N] by source.
        weights: by source, in all 1; those of 0 are not looked at.
    """
    used = [source for source, weight in weights.items() if weight > 0]
    return np.sum([weights[source] * ranks(doubts[source]) for source in used], axis=0)


def equal_weights(sources: tuple[str, ...], note: str = "") -> Calibration:
    """The same for every source."""
    return Calibration(dict.fromkeys(sources, 1 / len(sources)), note=note)


def calibrate(doubts: Mapping[str, np.ndarray], error: np.ndarray) -> Calibration:
    """Weights of sources by what their doubts tell of the pose network's error.

    Of the strengths of the ridge the strongest is taken whose leave-one-out error is not worse than the
    best one's by more than one standard error of the difference.

    Args:
        doubts: [N] by source, of animals whose truth is known.
        error: [N] of the pose network, in any unit; NaN where it is not known.

    Returns:
        Weights; equal ones, with a note, where there are fewer than `FEWEST` animals or where no source
        tells anything.

    Raises:
        UserError: no source.
    """
    sources = tuple(doubts)
    if not sources:
        raise UserError("cf_all: expected at least one source of keypoints; found none")
    known = np.isfinite(error)
    count = int(known.sum())
    if count < FEWEST:
        note = (
            f"equal weights: expected {FEWEST} labelled animals of val or more to fit them; found {count}"
        )
        return equal_weights(sources, note)
    x = np.stack([ranks(doubts[source][known]) for source in sources], 1) - 0.5
    y = ranks(error[known]) - 0.5
    losses = np.stack([_left_out(x, y, pull) for pull in PULLS])
    chosen = _strongest(losses)
    weights = _fit(x, y, PULLS[chosen])
    if weights.sum() <= 0:
        note = f"equal weights: on {count} labelled animals of val no source tells of errors"
        return equal_weights(sources, note)
    return Calibration(
        dict(zip(sources, (weights / weights.sum()).tolist())),
        count,
        PULLS[chosen],
        float(losses[chosen].mean()),
        float(losses[0].mean()),
    )


def _fit(x: np.ndarray, y: np.ndarray, pull: float) -> np.ndarray:
    """Weights [S] of 0 or more that take ranks x [N, S] to y [N], pulled towards equal ones."""
    from scipy.optimize import nnls

    together = x.sum(1)
    equal = np.full(x.shape[1], max(0.0, together @ y / max(together @ together, 1e-12)))
    if np.isinf(pull):
        return equal
    strength = np.sqrt(pull * x.var() * len(x))
    rows = np.concatenate((x, strength * np.eye(x.shape[1])))
    return np.asarray(nnls(rows, np.concatenate((y, strength * equal)))[0])


def _left_out(x: np.ndarray, y: np.ndarray, pull: float) -> np.ndarray:
    """Squared error [N] of each animal by the weights of the others."""
    others = ~np.eye(len(x), dtype=bool)
    return np.array([(x[i] @ _fit(x[rest], y[rest], pull) - y[i]) ** 2 for i, rest in enumerate(others)])


def _strongest(losses: np.ndarray) -> int:
    """The first row of losses [P, N] that is as good as the best, within one standard error."""
    best = losses[losses.mean(1).argmin()]
    worse = losses - best
    margin = worse.std(1, ddof=1) / np.sqrt(losses.shape[1])
    return int(np.flatnonzero(worse.mean(1) <= margin + 1e-12)[0])
