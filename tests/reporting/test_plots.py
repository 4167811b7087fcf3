from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from llm_retriever.reporting.plots import Difference, curve_plot, forest_plot, nice_ticks, scatter_plot, signed


def parsed(markup: str) -> ElementTree.Element:
    """The markup as a tree; it must be well formed."""
    return ElementTree.fromstring(f"<div>{markup}</div>")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.013, 0.021, [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03]),
        (0.0, 7.3, [0.0, 2.0, 4.0, 6.0, 8.0]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_ticks_of_a_single_value_are_not_endless():
    assert len(nice_ticks(0.0, 0.0)) <= 3


def test_differences_carry_a_true_minus_sign_and_zero_none():
    assert [signed(x) for x in (0.0414, -0.02, 0.0, -0.0001)] == ["+0.041", "−0.020", "0.000", "0.000"]


def test_a_forest_row_places_mean_and_interval_on_the_common_axis():
    rows = [Difference("test", 0.1, (0.0, 0.2), True), Difference("dl19", -0.1, (-0.2, 0.0), False)]
    tree = parsed(forest_plot(rows))
    circles = [(c.get("class"), float(c.get("cx").rstrip("%"))) for c in tree.iter("circle")]
    # The axis runs from -0.2 at 3 % to 0.2 at 97 %.
    assert circles == [("better", pytest.approx(73.5)), ("open", pytest.approx(26.5))]
    assert [line.get("x1") for line in tree.iter("line") if line.get("class") == "zero"] == ["50.00%", "50.00%"]


def test_a_forest_plot_of_no_difference_at_all_can_be_drawn():
    assert "0.000" in forest_plot([Difference("test", 0.0, (0.0, 0.0), False)])


def test_labels_are_escaped():
    assert "<b>" not in forest_plot([Difference("<b>", 0.1, (0.0, 0.2), True)])
    assert "<b>" not in scatter_plot([(0.1, 0.2)], "<b>", "<b>")
    assert "<b>" not in curve_plot([(1, 2.0), (2, 1.0)], "<b>", "<b>")


def test_queries_above_the_diagonal_are_better_and_equal_ones_even():
    tree = parsed(scatter_plot([(0.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5)], "BM25", "retriever"))
    discs = {c.get("class"): c for c in tree.iter("circle")}
    assert discs.keys() == {"better", "worse", "even"}
    assert discs["better"].find("title").text == "2 queries"
    assert float(discs["better"].get("cx")) < float(discs["worse"].get("cx"))
    assert float(discs["better"].get("cy")) < float(discs["worse"].get("cy"))
    area = {side: float(disc.get("r")) ** 2 for side, disc in discs.items()}
    assert area["better"] == pytest.approx(2 * area["worse"], rel=0.05)


def test_queries_that_both_systems_answer_do_not_shrink_the_others():
    tree = parsed(scatter_plot([(1.0, 1.0)] * 5000 + [(0.0, 1.0)], "BM25", "retriever"))
    radii = {c.get("class"): float(c.get("r")) for c in tree.iter("circle")}
    assert radii["even"] == radii["better"]


def test_a_curve_goes_from_left_to_right_and_higher_values_stand_higher():
    tree = parsed(curve_plot([(1, 4.0), (2, 2.0), (3, 0.0)], "update", "loss"))
    (line,) = tree.iter("polyline")
    assert line.get("points").split() == ["0.0,0.0", "500.0,150.0", "1000.0,300.0"]


def test_a_long_curve_is_thinned_and_keeps_its_level():
    (line,) = parsed(curve_plot([(i, 1.0) for i in range(10_000)], "update", "loss")).iter("polyline")
    points = line.get("points").split()
    assert len(points) <= 400
    assert {point.split(",")[1] for point in points} == {"0.0"}


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, float("nan")), (2, 1.0)]])
def test_too_few_points_make_no_curve(points):
    assert curve_plot(points, "update", "loss") == ""


def test_plots_name_no_colours_so_that_the_page_decides():
    drawn = forest_plot([Difference("a", 0.1, (0.0, 0.2), True)]) + scatter_plot([(0.1, 0.2)], "x", "y")
    drawn += curve_plot([(1, 2.0), (2, 1.0)], "update", "loss")
    assert not re.search(r"fill=|stroke=|#[0-9a-f]{3,6}", drawn)
