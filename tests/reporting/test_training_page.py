"""The page of training curves."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from llm_retriever.reporting.training_page import training_html
from llm_retriever.training.train import TrainingLog


def log(updates: int) -> TrainingLog:
    steps = [{"step": i, "loss": 4.0 / i, "learning_rate": 1e-4, "seconds": float(i)} for i in range(1, updates + 1)]
    return TrainingLog(steps, float(updates), 8 * updates)


def test_the_page_plots_loss_and_learning_rate_over_the_updates():
    page = training_html(log(50), "tune")
    assert re.findall(r'aria-label="([^"]+)"', page) == ["loss over update", "learning rate over update"]
    assert re.search(r"first and last tenth of the updates</th><td>1\.827 → 0\.08341", page)


def test_the_page_needs_nothing_from_outside():
    page = training_html(log(5), "tune")
    assert not re.search(r"<script|<link|src=|url\((?!#)|href=\"(?!#)", page)


def test_a_long_training_keeps_the_page_small():
    assert len(training_html(log(50_000), "tune")) < 100_000


@pytest.mark.parametrize("updates", [0, 1])
def test_one_update_or_none_make_a_page_too(updates):
    page = training_html(log(updates), "tune <b>")
    HTMLParser().feed(page)
    assert "tune &lt;b&gt;" in page
    assert "Nothing was trained." in page
