"""The picture of quality against cost: which variants are on its line, and where its points and names stand."""

from __future__ import annotations

import itertools
import re

import pytest

from llm_retriever.reporting.frontier import LINE_HEIGHT, Point, cost_axis, frontier, name_levels, panels, plot
from tests.reporting.test_plots import parsed

POINTS = [
    Point("whole", 3072, 0.62),
    Point("bytes", 772, 0.619),
    Point("half", 1536, 0.60),
    Point("eighth", 388, 0.55),
    Point("as dear as an eighth", 388, 0.5),
]


def names(points: list[Point]) -> list[str]:
    return [point.name for point in points]


def test_the_line_goes_through_what_nothing_beats():
    assert names(frontier(POINTS, more_is_better=False)) == ["eighth", "bytes", "whole"]
    assert names(frontier(POINTS, more_is_better=True)) == ["whole"]


def test_equal_variants_do_not_beat_each_other():
    assert names(frontier([*POINTS, Point("again", 388, 0.55)], more_is_better=False))[:2] == ["eighth", "again"]


def test_points_stand_where_their_figures_say_and_the_line_joins_the_best():
    tree = parsed(plot(POINTS, "bytes", "nDCG", more_is_better=False))
    circles = dict(zip(names(POINTS), tree.iter("circle"), strict=True))
    x = {name: float(c.get("cx").rstrip("%")) for name, c in circles.items()}
    y = {name: float(c.get("cy")) for name, c in circles.items()}
    assert x["eighth"] == x["as dear as an eighth"] < x["bytes"] < x["half"] < x["whole"]
    assert x["whole"] - x["half"] == pytest.approx((x["whole"] - x["bytes"]) * 0.502, rel=0.01)  # doublings are alike
    assert y["whole"] < y["bytes"] < y["half"] < y["eighth"] < y["as dear as an eighth"]
    lines = [line for line in tree.iter("line") if line.get("class") == "front"]
    assert [float(line.get("x1").rstrip("%")) for line in lines] == [x["eighth"], x["bytes"]]
    assert [float(line.get("y2")) for line in lines] == [y["bytes"], y["whole"]]
    assert [c.get("class") for c in circles.values()] == ["front", "front", "behind", "front", "behind"]


@pytest.mark.parametrize("count", [2, 9, 25])
def test_names_have_a_line_each_however_close_the_points(count):
    points = [Point(f"n{i}", 100 + i, 0.5 + 1e-9 * i) for i in range(count)]
    drawn = plot(points, "bytes", "nDCG", more_is_better=False)
    size = float(re.search(r'<svg class="plot" width="100%" height="([\d.]+)"', drawn)[1])
    marks = [svg for svg in parsed(drawn).iter("svg") if svg.get("class") == "mark"]
    heights = sorted(float(mark.get("y")) + float(mark.find("text").get("y")) for mark in marks)
    assert len(heights) == count
    assert all(b - a >= LINE_HEIGHT - 0.3 for a, b in itertools.pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] < size


def test_names_that_have_room_stay_at_their_points():
    assert name_levels([100.0, 20.0, 150.0], 300.0) == [100.0, 20.0, 150.0]


@pytest.mark.parametrize(
    "values", [[68.0, 3072.0], [260.0, 16_384.0], [1.0, 1e9], [9.0, 40.0], [97.2, 101.4], [3.0, 3.1]]
)
def test_ticks_of_costs_are_few_and_surround_them(values):
    axis = cost_axis(values)
    assert 2 <= len(axis.ticks) <= 11
    assert axis.place(axis.ticks[0]) == 0
    assert axis.place(axis.ticks[-1]) == pytest.approx(1)
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values)


def test_names_are_escaped_and_long_ones_cut_with_the_whole_at_hand():
    long = "a variant that is called <b>by far too much</b>"
    drawn = plot([Point(long, 1, 0.1), Point("b", 2, 0.2)], "<i>", "<u>", more_is_better=True)
    assert not re.search("<(b|i|u)>", drawn)
    texts = {text.text: text.find("title").text for text in parsed(drawn).iter("text")}
    assert texts["a variant that is ca…"] == f"{long}: 0.100, 1"


def test_a_cost_that_is_the_same_for_all_or_unknown_makes_no_panel():
    systems = {name: {"ndcg@10": 0.5} for name in ("a", "b")}
    comparison = {"primary_metric": "ndcg@10", "splits": {"test": {"systems": systems}}}
    same = {"a": {"bytes_per_passage": 256.0}, "b": {"bytes_per_passage": 256.0}}
    assert panels({**comparison, "costs": same}) == []
    other = {**same, "b": {"bytes_per_passage": 68.0, "passages_per_second": 100.0}}
    (panel,) = panels({**comparison, "costs": other})
    assert 'aria-label="nDCG@10, test against bytes per passage"' in panel
