from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest

from llm_retriever.collection import Collection
from llm_retriever.evaluation.evaluate import evaluate
from llm_retriever.evaluation.report import SplitExamples, render, size_as_text
from llm_retriever.settings import EvaluationSettings
from tests.evaluation.conftest import TRICK

VOID = {"meta"}


class Page(html.parser.HTMLParser):
    """Checks that tags are closed, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def written(unspoilt_inputs, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    settings = EvaluationSettings(depth=20, measures="ndcg@10,mrr@10", precision="fp32")
    names = {"evaluation": "evaluation", "report": "report.html", "summary": "summary.md"}
    evaluate(settings, **unspoilt_inputs, **{key: directory / name for key, name in names.items()})
    return directory


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page((written / "report.html").read_text())


def test_the_page_needs_nothing_from_outside(page, written):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    assert not [name for _, attributes in page.tags for name in attributes if name in {"src", "href", "srcset"}]
    style = re.search(r"<style>(.*?)</style>", (written / "report.html").read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_text_of_the_corpus_is_shown_and_never_becomes_markup(page):
    assert TRICK in page.text
    assert not [tag for tag, _ in page.tags if tag == "script"]


def test_the_verdict_comes_before_every_table(page):
    assert page.text.index("On test,") < page.text.index("Results")


def test_every_value_of_the_evaluation_is_in_the_tables(page, written):
    content = json.loads((written / "evaluation" / "evaluation.json").read_text())
    for split in content["splits"].values():
        for values in split["systems"].values():
            assert all(f"{value:.3f}" in page.text for value in values.values())


def test_sections_tell_differences_examples_costs_lineage_and_versions(page):
    for words in (
        "How large the differences are",
        "Query by query",
        "first relevant passage at rank",
        "Loss of the contrastive tuning",
        "training: contrastive",
        "rank 8",
        "pytrec_eval-terrier",
        "1 / rank of the first relevant passage",
        "lexical search with k1 0.9, b 0.4",
    ):
        assert words in page.text


def test_tables_scroll_in_their_own_box(page):
    tables = [i for i, (tag, _) in enumerate(page.tags) if tag == "table"]
    assert tables
    assert all(page.tags[i - 1] == ("div", {"class": "scroll"}) for i in tables)


def test_the_page_suits_light_and_dark_and_narrow_screens(written):
    text = (written / "report.html").read_text()
    assert "prefers-color-scheme: dark" in text
    assert 'content="width=device-width, initial-scale=1"' in text


def test_a_page_without_baselines_and_examples_can_be_drawn(unspoilt_inputs, written):
    content = json.loads((written / "evaluation" / "evaluation.json").read_text())
    split = content["splits"]["test"]
    split["systems"] = {"retriever": split["systems"]["retriever"]}
    split["comparisons"] = []
    content["splits"] = {"test": split}
    manifest = Collection.open(unspoilt_inputs["collection"]).manifest
    page = Page(render(content, manifest, {"test": SplitExamples(against="")}))
    assert "there is no baseline to compare it with" in page.text
    assert "How large the differences are" not in page.text
    assert "Examples" not in page.text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (15_200_000, "15.2 MB"), (145e9, "145.0 GB"), (2e12, "2.0 TB")]
)
def test_sizes_are_shown_in_units_that_people_read(number, text):
    assert size_as_text(number) == text
