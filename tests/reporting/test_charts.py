"""Charts: what they show, that the page decides on their colours, and that they can stand in one page."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from llm_retriever.reporting.charts import (
    Bars,
    Difference,
    Point,
    bar_plot,
    curve_plot,
    forest_plot,
    frontier,
    frontier_plot,
    scatter_plot,
    signed,
    thinned,
)
from llm_retriever.reporting.comparison_report import frontier_panels

ROWS = [Difference("test", 0.1, (0.0, 0.2), True), Difference("dl19", -0.1, (-0.2, 0.0), False)]
POINTS = [
    Point("whole", 3072, 0.62),
    Point("bytes", 772, 0.619),
    Point("half", 1536, 0.60),
    Point("eighth", 388, 0.55),
    Point("as dear as an eighth", 388, 0.5),
]
SVG = "{http://www.w3.org/2000/svg}"


def parsed(chart: str) -> ElementTree.Element:
    """The chart as a tree; it must be well formed."""
    return ElementTree.fromstring(str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def words(chart: str) -> list[str]:
    return [text.text or "" for text in parsed(chart).iter(f"{SVG}text")]


def uses(chart: str, colour: str) -> int:
    return chart.count(f"var(--{colour})")


@pytest.fixture(scope="module")
def charts() -> list[Markup]:
    """One of each kind."""
    return [
        forest_plot(ROWS),
        scatter_plot([(0.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5)], "BM25", "retriever"),
        curve_plot([(1, 4.0), (2, 2.0), (3, 0.0)], "update", "loss"),
        bar_plot([Bars("accent", [10.0, 0.0, 20.0])], [0, 10, 20, 30], "rank", "negatives"),
        frontier_plot(POINTS, "bytes", "nDCG", more_is_better=False),
    ]


def test_the_page_decides_on_colours_and_font(charts):
    for chart in charts:
        assert uses(chart, "muted")
        assert set(re.findall(r"#[0-9a-f]{6}\b", chart)) <= {"#000000"}  # of shapes that are not drawn
        assert not re.search("font-family|<style", chart)


def test_charts_need_nothing_from_outside_and_no_id_stands_twice(charts):
    page = "".join(charts)
    assert not re.search(r"url\((?!#)|<script|<image|href=\"(?!#)", page)
    for chart in charts:
        ids = re.findall(r' id="([^"]+)"', chart)
        assert len(ids) == len(set(ids))
        assert all(f"#{one}" in chart for one in ids)


def test_the_same_chart_is_drawn_the_same_again():
    assert forest_plot(ROWS) == forest_plot(ROWS)


def test_differences_carry_a_true_minus_sign_and_zero_none():
    assert [signed(x) for x in (0.0414, -0.02, 0.0, -0.0001)] == ["+0.041", "−0.020", "0.000", "0.000"]


def test_a_forest_plot_names_its_rows_and_colours_what_is_significant(charts):
    told = words(charts[0])
    assert {"test", "dl19", "+0.100", "−0.100"} <= set(told)
    assert told.index("+0.100") < told.index("−0.100")
    assert uses(charts[0], "better")
    assert not uses(charts[0], "worse")
    worse = forest_plot([Difference("a", -0.1, (-0.2, -0.05), True)])
    assert uses(worse, "worse")
    assert not uses(worse, "better")


def test_a_forest_plot_of_no_difference_at_all_can_be_drawn():
    assert "0.000" in words(forest_plot([Difference("test", 0.0, (0.0, 0.0), False)]))


def test_words_are_escaped_and_dollars_are_no_mathematics():
    name = "<b>$x^2$ & $"
    page = forest_plot([Difference(name, 0.1, (0.0, 0.2), True)]) + scatter_plot([(0.1, 0.2)], name, name)
    page += curve_plot([(1, 2.0), (2, 1.0)], name, name) + frontier_plot(
        [Point(name, 1, 1), Point("b", 2, 2)], name, name, True
    )
    assert "<b>" not in page
    assert name in words(forest_plot([Difference(name, 0.1, (0.0, 0.2), True)]))


def test_queries_above_the_diagonal_are_better_and_equal_ones_even():
    better, worse, even = (scatter_plot([at], "BM25", "retriever") for at in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.5)))
    assert (uses(better, "better") > 0, uses(better, "worse")) == (True, 0)
    assert (uses(worse, "better"), uses(worse, "worse") > 0) == (0, True)
    assert uses(even, "better") == uses(even, "worse") == 0


def test_a_scatter_plot_has_a_disc_a_cell_however_many_queries():
    few, many = scatter_plot([(0.0, 1.0)] * 3, "x", "y"), scatter_plot([(0.0, 1.0)] * 30_000, "x", "y")
    assert abs(len(few) - len(many)) < 100


def test_a_long_curve_is_thinned_and_keeps_its_level():
    points = thinned([(i, 1.0) for i in range(10_000)])
    assert len(points) <= 400
    assert {y for _, y in points} == {1.0}
    assert (points[0][0], points[-1][0]) == (0, 9999)
    assert len(curve_plot([(i, (i % 7) / 7) for i in range(100_000)], "update", "loss")) < 40_000


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, float("nan")), (2, 1.0)]])
def test_too_few_points_make_no_curve(points):
    assert curve_plot(points, "update", "loss") == ""


def test_bars_between_edges_and_bars_with_a_word_each():
    assert {"0", "20", "rank", "negatives"} <= set(
        words(bar_plot([Bars("accent", [1, 2])], [0, 10, 20], "rank", "negatives"))
    )
    told = words(bar_plot([Bars("accent", [1.0, 2.0]), Bars("worse", [2.0, 1.0])], ["10", "1,000"], "top", "share"))
    assert {"10", "1,000"} <= set(told)


def test_the_line_goes_through_what_nothing_beats():
    names = [[point.name for point in frontier(POINTS, more_is_better=more)] for more in (False, True)]
    assert names == [["eighth", "bytes", "whole"], ["whole"]]


def test_equal_variants_do_not_beat_each_other():
    best = frontier([*POINTS, Point("again", 388, 0.55)], more_is_better=False)
    assert [point.name for point in best[:2]] == ["eighth", "again"]


@pytest.mark.parametrize("count", [2, 9, 25])
def test_names_have_a_line_each_however_close_the_points(count):
    points = [Point(f"n{i}", 100 + i, 0.5 + 1e-9 * i) for i in range(count)]
    texts = [
        t
        for t in parsed(frontier_plot(points, "bytes", "nDCG", False)).iter(f"{SVG}text")
        if re.match("n[0-9]", t.text)
    ]
    heights = sorted(float(re.search(r"[, ](-?[\d.]+)\)", t.get("transform"))[1]) for t in texts)
    assert len(heights) == count
    assert all(b - a > 8.5 for a, b in itertools.pairwise(heights))


def test_a_cost_that_is_the_same_for_all_or_unknown_makes_no_panel():
    systems = {name: {"ndcg@10": 0.5} for name in ("a", "b")}
    comparison = {"primary_metric": "ndcg@10", "splits": {"test": {"systems": systems}}}
    same = {"a": {"bytes_per_passage": 256.0}, "b": {"bytes_per_passage": 256.0}}
    assert frontier_panels({**comparison, "costs": same}) == []
    other = {**same, "b": {"bytes_per_passage": 68.0, "passages_per_second": 100.0}}
    (panel,) = frontier_panels({**comparison, "costs": other})
    assert 'aria-label="nDCG@10, test against bytes per passage"' in panel
