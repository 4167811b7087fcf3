from __future__ import annotations

import copy
import html.parser
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.evaluation.evaluate import evaluate
from llm_retriever.metrics.measures import mean_of_systems
from llm_retriever.reporting.report import SplitExamples, percent, render
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
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.stack):
            self.tables[-1][-1][-1] += " ".join(data.split())

    def table(self, *heads: str) -> dict[str, list[str]]:
        """The cells of the one table with these first heads, by the first cell of the row."""
        (found,) = [rows for rows in self.tables if rows[0][: len(heads)] == list(heads)]
        return {row[0]: row[1:] for row in found}


@pytest.fixture(scope="module")
def written(asking_inputs, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    settings = EvaluationSettings(
        depth=20, measures="ndcg@10,mrr@10", precision="fp32", rerank_depth=5, attention_queries=4
    )
    names = {"evaluation": "evaluation", "report": "report.html", "summary": "summary.md", "refreshed": "refreshed"}
    evaluate(settings, **asking_inputs, **{key: directory / name for key, name in names.items()})
    return directory


@pytest.fixture(scope="module")
def content(written) -> dict[str, Any]:
    return json.loads((written / "evaluation" / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def zero_shot(content, asking_inputs) -> tuple[dict[str, Any], Page]:
    """The content with four zero-shot collections, one of them of three parts, and its page."""
    draw, told = random.Random(5), copy.deepcopy(content)
    collections = {}
    for name, parts in {"scifact": 1, "nfcorpus": 1, "cqadupstack": 3, "fever": 1}.items():
        splits = [f"{name}/test"] if parts == 1 else [f"{name}/{i}/test" for i in range(parts)]
        for split in splits:
            found = copy.deepcopy(content["splits"]["test"]) | {"zero_shot": name}
            found["systems"] = {s: {m: draw.random() for m in told["measures"]} for s in ("retriever", "BM25")}
            found["comparisons"] = [c for c in found["comparisons"] if c["baseline"] == "BM25"]
            told["splits"][split] = found
        systems = mean_of_systems([told["splits"][split]["systems"] for split in splits])
        collections[name] = {"parts": parts, "splits": splits, "systems": systems}
    mean = mean_of_systems([found["systems"] for found in collections.values()])
    told["zero_shot"] = {"query_length": 512, "passage_length": 512, "collections": collections, "mean": mean}
    manifest = Collection.open(asking_inputs["collection"]).manifest
    return told, Page(render(told, manifest, {}))


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


def number(text: str) -> float:
    """A number as the page writes it; marks of significance and the sign for percent are left out."""
    return float(text.replace("−", "-").replace(",", "").strip("†‡ %\N{NO-BREAK SPACE}"))


def test_every_value_of_a_systems_table_is_that_of_the_evaluation(page, content):
    tables = [rows for rows in page.tables if rows[0][0] == "System"]
    assert len(tables) == len(content["splits"])
    for rows, split in zip(tables, content["splits"].values(), strict=True):
        assert [row[0] for row in rows[1:]] == list(split["systems"])
        for row in rows[1:]:
            expected = [split["systems"][row[0]][metric] for metric in content["measures"]]
            assert [number(cell) for cell in row[1:]] == pytest.approx(expected, abs=5e-4)
            marks = {
                c["baseline"]: (c["t_test_hommel"] < 0.05, c["randomisation"] < 0.05) for c in split["comparisons"]
            }
            against_retriever = split["hybrid_comparisons"][0]
            marks["hybrid"] = tuple(against_retriever[p] < 0.05 for p in ("t_test_hommel", "randomisation"))
            assert ("†" in row[1], "‡" in row[1]) == marks.get(row[0], (False, False))


def test_every_value_of_the_table_of_differences_is_that_of_a_comparison(page, content):
    (rows,) = [rows for rows in page.tables if rows[0][:2] == ["Split", "Baseline"]]
    found = [(name, c) for name, split in content["splits"].items() for c in split["comparisons"]]
    assert len(rows) - 1 == len(found) == 2 * 4
    for row, (name, c) in zip(rows[1:], found, strict=True):
        assert row[:2] == [name, c["baseline"]]
        assert number(row[2]) == pytest.approx(c["mean_difference"], abs=5e-4)
        assert number(row[3]) == pytest.approx(100 * c["relative_difference"], abs=0.05)
        assert [number(end) for end in row[4].split(" to ")] == pytest.approx(c["interval"], abs=5e-4)
        assert number(row[5]) == pytest.approx(c["effect_size"], abs=5e-3)
        assert row[6] == f"{c['wins']}/{c['ties']}/{c['losses']}"
        for cell, p in zip(row[7:], (c["t_test"], c["t_test_hommel"], c["randomisation"]), strict=True):
            assert cell == "< 0.001" if p < 0.001 else number(cell) == pytest.approx(p, abs=5e-4)


def test_every_decimal_number_of_the_page_is_one_of_the_evaluation(page, written, content):
    """All but the settings of the stages, the examples (figures of two digits), versions and axes."""
    leaves = [v for v in _leaves(content) if isinstance(v, (int, float)) and not isinstance(v, bool)]
    written_as = {f"{abs(v) * scale:.{digits}f}" for v in leaves for scale in (1, 100) for digits in (1, 2, 3)}
    written_as |= {f"{abs(v):,.{digits}f}" for v in leaves for digits in (1, 3)} | {"0.001"}
    written_as |= {f"{v / 10**power:.3g}" for v in leaves for power in (3, 6, 9, 12, 15) if v > 0}
    written_as |= {f"{v / 10**power:.1f}" for v in leaves for power in (3, 6, 9)}
    html_text = (written / "report.html").read_text()
    shown = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<details>.*?</details>", "", html_text, flags=re.DOTALL)
    shown = shown[: shown.index("<h2>Where the retriever comes from")]
    text = re.sub(r"<[^>]*>", " ", re.sub(r'<div class="(ticks|y-ticks|x-ticks)">.*?</div>', "", shown))
    text = text.split("lexical search with")[0] + text.split("lexical search with")[1].split("depth 1000", 1)[1]
    decimals = re.findall(r"[0-9][0-9,]*\.[0-9]+", text)
    assert len(decimals) > 60
    assert [d for d in decimals if d not in written_as] == []


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in _leaves(inner)]
    return [leaf for inner in value for leaf in _leaves(inner)] if isinstance(value, list) else [value]


def test_the_zero_shot_table_has_a_row_a_collection_and_their_mean(zero_shot):
    told, page = zero_shot
    table = page.table("Collection", "retriever", "BM25")
    assert list(table) == ["Collection", "scifact", "nfcorpus", "cqadupstackmean of 3 parts", "fever", "mean of 4"]
    sources = [*told["zero_shot"]["collections"].values(), {"systems": told["zero_shot"]["mean"]}]
    for cells, facts in zip(list(table.values())[1:], sources, strict=True):
        expected = [facts["systems"][system]["ndcg@10"] for system in ("retriever", "BM25")]
        assert [number(cell) for cell in cells] == pytest.approx(expected, abs=5e-4)
    significant = next(iter(told["splits"]["scifact/test"]["comparisons"]))["t_test_hommel"] < 0.05
    assert ("†" in table["scifact"][1]) == significant
    assert "†" not in table["cqadupstackmean of 3 parts"][1] + table["mean of 4"][1]


def test_zero_shot_collections_have_a_sentence_on_top_and_their_own_tables_folded_away(zero_shot):
    told, page = zero_shot
    mean = told["zero_shot"]["mean"]
    assert (
        f"nDCG@10 of the retriever on 4 zero-shot collections: {mean['retriever']['ndcg@10']:.3f} on average; "
        f"BM25 {mean['BM25']['ndcg@10']:.3f}."
    ) in page.text
    assert page.text.index("zero-shot collections") < page.text.index("Results")
    assert page.text.count("All metrics and tests of each collection") == 1
    assert all(name in page.text for name in told["splits"])
    assert "On fever/test" not in page.text


def test_of_many_baselines_the_summary_names_the_best_and_gathers_the_rest(page, content):
    split = content["splits"]["test"]
    best = max(split["systems"], key=lambda s: split["systems"][s]["ndcg@10"])
    highest, ours = (split["systems"][s]["ndcg@10"] for s in (best, "retriever"))
    expected = f"On test, {best} has the highest nDCG@10 of 6 systems: {highest:.3f}; the retriever has {ours:.3f}."
    assert expected in page.text


def test_the_attention_of_both_models_is_drawn_with_its_share(page, content):
    shares = [model["embedding_share"] for model in content["attention"]["models"].values()]
    for share in shares:
        assert f"{100 * share:.1f} % of the attention to the text before the query goes to [E]." in page.text
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert [label for label in labels if label.startswith("Attention")] == [
        f"Attention of the {name} by layer" for name in content["attention"]["models"]
    ]


def test_costs_are_those_of_the_evaluation(page, content):
    told, (rows,) = content["efficiency"], [rows for rows in page.tables if rows[0][0].startswith("training: ql")]
    table = {row[0]: row[1] for row in rows}
    assert table["training: ql"].startswith("2s, 40 examples, 1 process, 512 per update, about ")
    assert table["training: contrastive"].startswith("4s, 20 examples")
    assert table["one query, in large batches"].startswith(
        f"{told['query_encoding_ms']:.1f} ms to encode, {told['query_search_ms']:.1f} ms to search"
    )
    assert f"{told['bytes_per_passage']:,.0f} bytes per passage" in table["size of the index"]
    assert f"{100 * told['padding_share']:.1f} % padding" in table["building the index"]
    assert f"{content['rerank']['pairs']} pairs" in table["re-ranking"]


def test_a_relative_difference_is_shown_in_percent_and_none_as_a_dash():
    assert [percent(x).replace("\N{NO-BREAK SPACE}", " ") for x in (0.1234, -0.5, None)] == ["+12.3 %", "−50.0 %", "–"]


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
