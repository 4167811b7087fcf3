"""The page of training curves."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from llm_retriever.training.curves import curves_html
from llm_retriever.training.train import TrainingLog


def log(updates: int) -> TrainingLog:
    steps = [{"step": i, "loss": 4.0 / i, "learning_rate": 1e-4, "seconds": float(i)} for i in range(1, updates + 1)]
    return TrainingLog(steps, float(updates), 8 * updates)


def points(page: str, kind: str) -> list[list[str]]:
    return [found.split() for found in re.findall(rf'class="{kind}" points="([^"]*)"', page)]


def test_the_page_plots_loss_and_learning_rate_over_the_updates():
    page = curves_html(log(50), "tune")
    assert [len(line) for line in points(page, "line")] == [50, 50]
    assert len(points(page, "raw")[0]) == 50
    assert "first and last tenth of the updates</td><td>1.827 → 0.08341" in page


def test_the_page_needs_nothing_from_outside():
    page = curves_html(log(5), "tune")
    assert not re.search(r"https?://|<script|<link|src=", page)


def test_a_long_training_keeps_the_page_small():
    assert len(curves_html(log(50_000), "tune")) < 100_000


def test_the_loss_falls_on_the_page_as_it_fell():
    heights = [float(point.split(",")[1]) for point in points(curves_html(log(30), "tune"), "raw")[0]]
    assert heights == sorted(heights)


def test_one_update_or_none_make_a_page_too():
    for updates in (0, 1):
        parser = HTMLParser()
        parser.feed(curves_html(log(updates), "tune <b>"))
        assert "tune &lt;b&gt;" in curves_html(log(updates), "tune <b>")
