import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from wildshape.report.svg import (
    Axes,
    Interval,
    Series,
    interval_chart,
    line_chart,
    nice_ticks,
    short_number,
)
from wildshape.report.svg_bars import Bar, bar_chart, funnel_chart


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (58.3, 77.1, [60, 65, 70, 75]),
        (-0.03, 0.04, [-0.02, 0, 0.02, 0.04]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_short_numbers():
    assert [short_number(v) for v in (0.25, 12, 1500, 20_000, 1.5e6)] == [
        "0.25",
        "12",
        "1,500",
        "20k",
        "1.5M",
    ]


def paths(svg: str, css: str) -> list[ET.Element]:
    return [node for node in ET.fromstring(svg).iter() if node.get("class") == css]


def test_a_line_goes_through_its_points():
    svg = line_chart(
        [Series("a", [0, 10], [0, 1])], Axes(x_range=(0, 10), y_range=(0, 1)), width=300, height=200
    )
    (line,) = paths(svg, "line")
    first, last = (point.split() for point in line.get("d")[1:].split("L"))
    assert float(first[1]) == 176 and float(last[1]) == 8  # bottom and top of the frame
    assert float(first[0]) < float(last[0]) < 300


def test_nan_breaks_a_line():
    svg = line_chart([Series("a", [0, 1, 2, 3], [1, math.nan, 2, 3])], Axes())
    assert paths(svg, "line")[0].get("d").count("M") == 2


def test_names_at_the_ends_do_not_overlap():
    series = [Series(name, [0, 1], [0, 1 + k / 1000]) for k, name in enumerate("abcd")]
    root = ET.fromstring(line_chart(series, Axes()))
    heights = sorted(float(t.get("y")) for t in root.iter() if t.text in list("abcd"))
    assert np.diff(heights).min() >= 13.9


def test_charts_without_numbers_are_left_out():
    assert line_chart([Series("a", [0, 1], [math.nan, math.nan])], Axes()) == ""
    assert interval_chart([Interval("a", math.nan, 0, 1)], "t") == ""
    assert bar_chart([]) == ""


def test_intervals_without_ends_are_dots():
    svg = interval_chart([Interval("a", 1, math.nan, math.nan), Interval("b", 2, 1, 3)], "t")
    assert len(paths(svg, "whisker")) == 1
    assert svg.count("<circle") == 2


def test_funnel_bars_are_to_scale():
    svg = funnel_chart([Bar("found", 100, None, [], 100), Bar("kept", 25, 100, [("gone", 75)], 100)])
    rects = [node for node in ET.fromstring(svg).iter() if node.tag.endswith("rect")]
    whole, kept, lost = (float(node.get("width")) for node in rects)
    assert kept == pytest.approx(whole / 4, abs=0.1)
    assert lost == pytest.approx(whole * 3 / 4 - 1, abs=0.1)


def test_names_are_escaped():
    for svg in (
        line_chart([Series("<b>&", [0, 1], [0, 1])], Axes(title="<i>")),
        interval_chart([Interval("<b>", 1, 0, 2)], "<i>"),
        bar_chart([("<b>", 1.0, "<i>")]),
        funnel_chart([Bar("<b>", 1, 2, [("<i>", 1)], 2)]),
    ):
        assert "<b>" not in svg and "<i>" not in svg
        ET.fromstring(svg)
