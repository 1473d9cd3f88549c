"""The arms of the 3D model as they were measured, and what their numbers allow to say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wildshape.metrics import paired_change
from wildshape.report.funnel import criterion_title
from wildshape.report.inputs import RunInputs

ROLES = ("labels", "selected", "ceiling")
_SPLITS = ("test", "val", "train", "all", "truth")


@dataclass(frozen=True)
class Measure:
    """A value with its 95 % interval; NaN where unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __bool__(self) -> bool:
        return math.isfinite(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Arm:
    """One trained 3D model and how it did.

    Attributes:
        name: Name of the arm, as in checkpoints/acsm/<name>.
        title: What it was trained on.
        role: "labels", "selected" or "ceiling".
        split: Which labels it was measured on.
        auc: In percent.
        camera: Camera error in degrees, lower is better.
        facts: All that its metrics file says.
    """

    name: str
    title: str
    role: str
    split: str
    auc: Measure
    camera: Measure
    facts: Mapping[str, Any] = field(default_factory=dict)


def _measure(facts: Mapping[str, Any], *names: str) -> Measure:
    for name in names:
        value = facts.get(name)
        if isinstance(value, int | float):
            ends = facts.get(f"{name}_interval")
            low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
            return Measure(float(value), _number(low), _number(high))
    return Measure(math.nan)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def arm_role(name: str, config: Mapping[str, Any]) -> str:
    """What an arm was trained on, from its settings or, without them, from its name."""
    if config.get("pl_source") == "truth" or name.startswith(("ceiling", "truth")):
        return "ceiling"
    if "use_web_images" in config:
        return "selected" if config["use_web_images"] else "labels"
    return "labels" if name.startswith("labels") else "selected"


def _title(name: str, role: str, config: Mapping[str, Any]) -> str:
    if role == "labels":
        return "labels only"
    if role == "ceiling":
        return "labels + true web labels (ceiling)"
    stem, _, tail = name.rpartition("_")
    criterion = config.get("filter") or (stem if stem and tail.isdigit() else name)
    count = config.get("web_images_num") or tail
    number = f" {count}" if str(count).isdigit() else ""
    return f"labels +{number} pseudo-labels ({criterion_title(str(criterion))})"


def read_arms(inputs: RunInputs) -> list[Arm]:
    """The measured arms: labels only, selected pseudo-labels, ceiling; each on its best-ranking split.

    An arm that was measured on several splits counts on test, else val, else train and so on. Other
    checkpoints of an arm, which ``--opts`` named, are left out.
    """
    found: dict[str, Arm] = {}
    for stem, facts in inputs.metrics.items():
        measured = stem.startswith("acsm") and not stem.startswith("acsm_train")
        if not (measured and isinstance(facts, Mapping) and "auc" in facts):
            continue
        if facts.get("of_arm"):
            continue  # another checkpoint of an arm is no arm
        split = str(facts.get("split", "test"))
        name = str(facts.get("arm") or _arm_from_stem(stem, split))
        checkpoint = inputs.checkpoints.get(f"acsm/{name}")
        config = checkpoint.config if checkpoint is not None else {}
        role = arm_role(name, config)
        arm = Arm(
            name, _title(name, role, config), role, split,
            _measure(facts, "auc"), _measure(facts, "camera_error_deg", "camera_error"), facts,
        )  # fmt: skip
        if name not in found or _split_rank(split) < _split_rank(found[name].split):
            found[name] = arm
    return sorted(found.values(), key=lambda arm: (ROLES.index(arm.role), arm.name))


def _arm_from_stem(stem: str, split: str) -> str:
    name = stem.removeprefix("acsm_").removeprefix("evaluate_").removesuffix(f"_{split}")
    return name or stem


def _split_rank(split: str) -> int:
    return _SPLITS.index(split) if split in _SPLITS else len(_SPLITS)


def difference(new: Measure, old: Measure) -> Measure:
    """new - old with a 95 % interval from the two intervals (Zou and Donner 2008, square-and-add).

    It takes the two as independent: for arms whose animals are not known (see `change`).
    """
    value = new.value - old.value
    if not (new.has_interval and old.has_interval):
        return Measure(value)
    below = math.hypot(new.value - new.low, old.high - old.value)
    above = math.hypot(new.high - new.value, old.value - old.low)
    return Measure(value, value - below, value + above)


def change(new: Arm, old: Arm, what: str, *, draws: int = 2000, seed: int = 0) -> Measure:
    """new - old with a 95 % interval, paired by animal where both arms name the same ones.

    Args:
        new: An arm.
        old: Another one, measured on the same split.
        what: "auc" (points) or "camera" (degrees).
        draws: Bootstrap draws over animals; both arms share each draw.
        seed: Of the draws.
    """
    a, b = new.facts.get("by_instance") or {}, old.facts.get("by_instance") or {}
    old_measure, new_measure = getattr(old, what), getattr(new, what)
    if not a.get("instance_id") or a["instance_id"] != b.get("instance_id"):
        return difference(new_measure, old_measure)
    found = paired_change([a], [b], what, draws, seed)
    if math.isnan(found["gain"]):
        return difference(new_measure, old_measure)
    return Measure(found["gain"], *found["interval"])


@dataclass(frozen=True)
class Verdict:
    """One sentence on what the numbers say; `tone` is "good", "bad", "open" or "missing"."""

    text: str
    tone: str


def judge(arms: Sequence[Arm]) -> Verdict:
    """Whether selected pseudo-labels helped, said from the numbers alone."""
    labels = next((arm for arm in arms if arm.role == "labels" and arm.auc), None)
    chosen = [arm for arm in arms if arm.role == "selected" and arm.auc]
    if labels is None or not chosen:
        absent = "with labels only" if labels is None else "with selected pseudo-labels"
        return Verdict(f"No verdict yet: the 3D model {absent} has not been measured.", "missing")
    same = [arm for arm in arms if arm.split == labels.split]
    ceiling = next((arm for arm in same if arm.role == "ceiling" and arm.auc), None)
    chosen = [arm for arm in chosen if arm.split == labels.split]
    if not chosen:
        return Verdict("No verdict: the arms were measured on different splits.", "missing")
    best = chosen[0] if len(chosen) == 1 else max(chosen, key=lambda arm: arm.auc.value)
    return _judge_pair(labels, best, ceiling, of_several=len(chosen))


def signed(value: float) -> str:
    """A difference with its sign; without one where it rounds to nothing."""
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def _judge_pair(labels: Arm, best: Arm, ceiling: Arm | None, of_several: int) -> Verdict:
    gain = change(best, labels, "auc")
    move = f"from {labels.auc.value:.1f} to {best.auc.value:.1f} ({signed(gain.value)} points"
    if gain.has_interval:
        move += f"; 95 % interval {signed(gain.low)} to {signed(gain.high)}"
    move += ")"
    if not gain.has_interval:
        tone, text = "open", f"With pseudo-labels AUC goes {move}, without an interval to judge it by"
    elif gain.low > 0:
        tone, text = "good", f"Pseudo-labels help: AUC rises {move}"
    elif gain.high < 0:
        tone, text = "bad", f"Pseudo-labels hurt here: AUC falls {move}"
    else:
        tone = "open"
        text = f"No clear effect of pseudo-labels: AUC goes {move}, and the interval includes zero"
    gap = ceiling.auc.value - labels.auc.value if ceiling is not None else math.nan
    if gap > 0 and gain.value > 0:
        text += f"; that is {100 * gain.value / gap:.0f} % of the {gap:.1f} points to the ceiling"
    elif gap <= 0:
        text += f"; even true labels of the same images change it by {signed(gap)} points"
    text += "."
    if labels.camera and best.camera:
        text += " " + _judge_camera(labels, best)
    if of_several > 1:
        text += f" ({best.title[0].upper()}{best.title[1:]} is the best of {of_several}, which favours it.)"
    if best.split != "test":
        text += f" Measured on the {best.split} split, not on test."
    return Verdict(text, tone)


def _judge_camera(labels: Arm, best: Arm) -> str:
    gain = change(best, labels, "camera")
    text = f"Camera error goes from {labels.camera.value:.1f}° to {best.camera.value:.1f}°"
    if not gain.has_interval:
        return f"{text}."
    clear = "" if gain.low > 0 or gain.high < 0 else ", which includes zero"
    return f"{text} ({signed(gain.value)}°; {signed(gain.low)} to {signed(gain.high)}{clear})."
