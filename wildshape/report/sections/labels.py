"""Pseudo-labels: how good they are where the truth is known, and what they look like."""

from __future__ import annotations

from typing import Any

import numpy as np

from wildshape.report.analysis import Analysis, Selected
from wildshape.report.blocks import Block, Figure, Gallery, Grid, Heading, Note, Picture, Section
from wildshape.report.funnel import criterion_title
from wildshape.report.pictures import Budget, Tiles
from wildshape.report.quality import THRESHOLDS
from wildshape.report.ranking import Ranking
from wildshape.report.results import signed
from wildshape.report.sections.words import DASH, missing, percent, threshold
from wildshape.report.svg import Axes, Series, line_chart

PER_GROUP = 6
_TONES = {"kpconf": "1", "cf_mt": "2", "cf_cm": "3", "cf_cm2": "4", "cf_all": "5", "cf_cm_zero123plus": "6"}


def tone_of(criterion: str) -> str:
    """The colour of a criterion."""
    return _TONES.get(criterion, "neutral")


def label_quality(analysis: Analysis) -> Section:
    """PCK of all, random and selected pseudo-labels, and quality against the number selected."""
    lead = (
        "How near pseudo-labels are to the truth: all of them, random ones, and those that each criterion "
        "chose."
    )
    title = "Quality of the pseudo-labels"
    if analysis.quality is None or analysis.compared is None:
        blocks: list[Block] = []
        if "pose" not in analysis.inputs.keypoints:
            blocks.append(missing("No pseudo-labels yet.", analysis.inputs.workspace.made_by("pose")))
        else:
            text = (
                "There is no ground truth for these web images (no keypoints/truth in the run), so the "
                "quality of their pseudo-labels cannot be measured. Look at the examples below. The "
                "synthetic world (wildshape demo) has ground truth."
            )
            blocks.append(Note(text))
        return Section("quality", title, blocks, lead)
    table = analysis.quality
    blocks = []
    weights = _weights(analysis)
    chart = _curves(analysis)
    if chart:
        caption = (
            "AUC (mean PCK at 6 to 10 % of the box's longer side) of the best n pseudo-labels by each "
            "criterion. All curves end at the AUC of all pseudo-labels. The band holds 95 % of random "
            "choices: a criterion is of use where its curve runs above it."
        )
        blocks.append(Figure([chart], caption))
    blocks.append(_table(analysis, table))
    blocks += [Note(text) for text in weights]
    beaten = [s for s in table["selections"].values() if "beats_random" in s]
    losers = [
        criterion_title(s.criterion)
        for s in analysis.selections
        if s.criterion not in ("random", "all")
        and not table["selections"].get(s.stem, {}).get("beats_random", True)
    ]
    if losers:
        text = f"Not better than random choices of the same size: {', '.join(losers)}."
        blocks.append(Note(text, "warning"))
    elif beaten:
        blocks.append(Note("Every selection is better than random choices of its size."))
    unknown = table["all"]["without_truth"]
    if unknown:
        text = (
            f"{unknown:,} of {table['all']['instances']:,} pseudo-labels lie on no true animal (false "
            "alarms, or animals of which nothing is visible). They have no keypoints to compare and are "
            "counted in the column 'no truth' only."
        )
        blocks.append(Note(text))
    return Section("quality", title, blocks, lead)


def _curves(analysis: Analysis) -> str:
    curves = analysis.curves
    if not curves or len(curves["counts"]) < 2:
        return ""
    counts, band = curves["counts"], curves["random"]
    series = [
        Series(
            "random", counts, 100 * band["mean"], "neutral", True, (100 * band["low"], 100 * band["high"])
        )
    ]
    for name in analysis.rankings:
        if name in curves:
            series.append(Series(criterion_title(name), counts, 100 * curves[name], tone_of(name)))
    sizes = sorted({s.count for s in analysis.selections if s.criterion not in ("random", "all")})
    rules = [(float(size), f"{size:,} selected") for size in sizes[:3] if counts[0] <= size <= counts[-1]]
    x_range = (0.0, float(counts[-1]))
    axes = Axes("number of pseudo-labels selected", "AUC (%)", x_range, rules=rules, legend=True)
    return line_chart(series, axes, width=900, height=330)


def _table(analysis: Analysis, table: dict[str, Any]) -> Grid:
    rows = [_row("all", table["all"])]
    for selected in analysis.selections:
        found = table["selections"].get(selected.stem)
        if found is not None and selected.criterion != "all":
            rows.append(_row(f"{criterion_title(selected.criterion)}, {selected.count:,}", found))
    columns = (
        "pseudo-labels", "animals", "no truth", *(threshold(t) for t in THRESHOLDS),
        "AUC", "95 % interval", "random (95 %)", "gain",
    )  # fmt: skip
    return Grid(columns, rows, "PCK and AUC in percent", numeric=range(1, len(columns)), strong=(0,))


def _weights(analysis: Analysis) -> list[str]:
    """What each source weighs in selections that combine several."""
    texts = []
    for selected in analysis.selections:
        facts = analysis.inputs.metrics.get(f"selection_{selected.stem}")
        weights = isinstance(facts, dict) and facts.get("weights")
        if not isinstance(facts, dict) or not isinstance(weights, dict):
            continue
        shares = ", ".join(f"{source} {weight:.2f}" for source, weight in weights.items())
        animals = facts.get("val_animals")
        how = f"fitted on {animals:,} labelled animals of val" if animals else str(facts.get("note"))
        texts.append(f"{criterion_title(selected.criterion)}, {selected.count:,}, weighs {shares}: {how}.")
    return texts


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    low, high = found["auc_interval"]
    random, gain = DASH, DASH
    if "random" in found:
        a, b = found["random_interval"]
        random = f"{percent(found['random'])} [{percent(a)}, {percent(b)}]"
        gain = signed(100 * found["gain"])
    return (
        name,
        f"{found['instances']:,}",
        f"{found['without_truth']:,}",
        *(percent(value) for value in found["pck"].values()),
        percent(found["auc"]),
        f"[{percent(low)}, {percent(high)}]",
        random,
        gain,
    )


def examples(analysis: Analysis, budget: Budget) -> Section:
    """The best, the borderline and the worst pseudo-labels by every criterion that made a selection."""
    lead = (
        "Keypoints as the pose network predicted them: blue on the animal's left, orange on its right, "
        "green in the middle, pale where it is not sure. Borderline: the last that were selected and the "
        "first that were not. Under each picture its rank and the criterion's value and, where the truth "
        "is known, the share of its keypoints within 10 % of the box."
    )
    title = "Best, borderline and worst pseudo-labels"
    inputs = analysis.inputs
    chosen: dict[str, Selected] = {}
    for selected in analysis.selections:
        if selected.criterion in analysis.rankings:
            chosen.setdefault(selected.criterion, selected)
    if not chosen or "instances" not in inputs.tables or "pose" not in inputs.keypoints:
        command = f"python prepare_data/data_selection.py {inputs.run_flags} --filter kpconf"
        return Section("examples", title, [missing("Nothing was selected yet.", command)], lead)
    tiles = Tiles(inputs)
    blocks: list[Block] = []
    for criterion, selected in chosen.items():
        blocks += _criterion_tiles(analysis, analysis.rankings[criterion], selected, tiles, budget)
    if budget.refused:
        blocks.append(Note(f"{budget.refused} pictures were left out to keep the page small.", "warning"))
    return Section("examples", title, blocks, lead)


def _criterion_tiles(
    analysis: Analysis, ranking: Ranking, selected: Selected, tiles: Tiles, budget: Budget
) -> list[Block]:
    total = len(ranking.ids)
    cut = min(selected.count, total)
    heading = f"{criterion_title(ranking.criterion)}: {cut:,} of {total:,} selected"
    places = {"best": range(0, min(PER_GROUP, total))}
    if ranking.complete and cut < total:
        first = int(np.clip(cut - PER_GROUP // 2, 0, max(total - PER_GROUP, 0)))
        places[f"borderline: selected up to #{cut:,}"] = range(first, min(first + PER_GROUP, total))
        places["worst"] = range(max(total - PER_GROUP, 0), total)
    else:
        places["last selected"] = range(max(total - PER_GROUP, 0), total)
    blocks: list[Block] = [Heading(heading)]
    for group, ranks in places.items():
        pictures = [_tile(analysis, ranking, rank, tiles, budget) for rank in ranks]
        shown = [picture for picture in pictures if picture is not None]
        if shown:
            blocks.append(Gallery(shown, group))
    return blocks


def _tile(analysis: Analysis, ranking: Ranking, rank: int, tiles: Tiles, budget: Budget) -> Picture | None:
    name = ranking.ids[rank]
    drawn = tiles.draw(name)
    if drawn is None:
        return None
    caption = f"#{rank + 1:,} · {ranking.values[rank]:.4g}"
    if analysis.compared is not None:
        rows = analysis.compared.rows_of([name])
        error = analysis.compared.error[rows[0]] if len(rows) else np.empty(0)
        counted = np.isfinite(error)
        if counted.any():
            caption += f" · {100 * (error[counted] <= 0.1).mean():.0f} %"
        elif len(rows):
            caption += " · no truth"
    return budget.embed(drawn, caption)
