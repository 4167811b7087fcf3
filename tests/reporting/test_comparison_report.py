"""The page of a comparison: its tables say what `comparison.json` says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llm_retriever.metrics.measures import mean_of_systems
from llm_retriever.metrics.significance import compare
from llm_retriever.reporting.comparison_report import cost_table, render, summary_markdown
from tests.evaluation.test_comparison import scores
from tests.evaluation.test_report import Page, number

SYSTEMS = {"llm-ql": 0.6, "echo": 0.55, "BM25": 0.4, "un-tuned backbone": 0.1}


def split(seed: int, **more: Any) -> dict[str, Any]:
    """One split of a `comparison.json`; the variants are `llm-ql`, the reference, and `echo`."""
    from llm_retriever.evaluation.comparison import pairs

    per_query = {name: scores(mean, seed + i) for i, (name, mean) in enumerate(SYSTEMS.items())}
    others = {name: values for name, values in per_query.items() if name != "llm-ql"}
    means = {name: sum(values.values()) / len(values) for name, values in per_query.items()}
    return {
        "queries": 40,
        "judgments": 55,
        "relevance_level": 1,
        "systems": {name: {"ndcg@10": value, "mrr@10": value / 3} for name, value in means.items()},
        "comparisons": [c.as_json() for c in compare("ndcg@10", per_query["llm-ql"], others)],
        "pairs": pairs("ndcg@10", {name: per_query[name] for name in ("llm-ql", "echo")}),
        "per_query": per_query,
        "notes": [],
        **more,
    }


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    facts = {"description": "", "method": "m", "recipe": "default", "backbone": "b", "stages": ["ql"], "card": "c" * 64}
    splits = {"test": split(0)}
    splits |= {f"{name}/test": split(9 * i, zero_shot=name) for i, name in enumerate(("scifact", "fever"), 1)}
    collections = {name: splits[f"{name}/test"]["systems"] for name in ("scifact", "fever")}
    costs = {
        "adaptation_seconds": 100.0,
        "tuning_seconds": 260.0,
        "batch_size": 128,
        "padding_share": 0.0625,
        "parameters": 6_740_000_000,
        "index_bytes": 145e9,
        "bytes_per_passage": 16_384.0,
        "query_ms": 2.5,
    }
    families = {"comparisons": "all other systems", "pairs": "all pairs"}
    return {
        "corpus": "msmarco",
        "collection": "f" * 64,
        "primary_metric": "ndcg@10",
        "measures": ["ndcg@10", "mrr@10"],
        "depth": 100,
        "reference": "llm-ql",
        "variants": {"llm-ql": facts, "echo": facts},
        "untuned": {"un-tuned backbone": "llm-ql"},
        "significance": {"families": families, "draws": 100_000},
        "splits": splits,
        "zero_shot": {"collections": collections, "mean": mean_of_systems(list(collections.values()))},
        "costs": {"llm-ql": costs, "echo": {"tuning_seconds": 500.0, "index_bytes": 145e9, "bytes_per_passage": 260.0}},
        "versions": {"torch": "2.13.0"},
        "notes": [],
    }


@pytest.fixture(scope="module")
def page(content) -> Page:
    return Page(render(content))


def test_every_value_of_the_tables_of_systems_and_differences_is_that_of_the_comparison(page, content):
    systems = [rows for rows in page.tables if rows[0][0] == "System"]
    differences = [rows for rows in page.tables if rows[0][0] == "Other system"]
    splits = content["splits"]
    for rows, found in zip(systems, splits.values(), strict=True):
        for row, (name, values) in zip(rows[1:], found["systems"].items(), strict=True):
            assert row[0].removesuffix("reference").strip() == name
            assert [number(cell) for cell in row[1:]] == pytest.approx(list(values.values()), abs=5e-4)
    for rows, name in zip(differences, ("scifact/test", "fever/test", "test"), strict=True):
        for row, c in zip(rows[1:], splits[name]["comparisons"], strict=True):
            assert row[0] == c["baseline"]
            assert number(row[1]) == pytest.approx(c["mean_difference"], abs=5e-4)
            assert number(row[2]) == pytest.approx(100 * c["relative_difference"], abs=0.05)
            assert number(row[4]) == pytest.approx(c["effect_size"], abs=5e-3)
            assert row[5] == f"{c['wins']}/{c['ties']}/{c['losses']}"


def test_zero_shot_collections_have_a_row_each_their_mean_and_sentences(page, content):
    table = page.table("Collection")
    assert list(table) == ["Collection", "scifact", "fever", "mean of 2"]
    mean = content["zero_shot"]["mean"]
    expected = [values["ndcg@10"] for values in mean.values()]
    assert [number(cell) for cell in table["mean of 2"]] == pytest.approx(expected, abs=5e-4)
    sentence = f"nDCG@10 of llm-ql on 2 zero-shot collections: {mean['llm-ql']['ndcg@10']:.3f} on average;"
    assert sentence in page.text
    assert sentence in summary_markdown(content)
    assert "Against BM25, llm-ql is significantly better on 2 and worse on 0 of 2 query sets." in page.text
    assert "On scifact/test" not in page.text


def test_the_table_of_costs_starts_with_quality_and_has_both_stages_together(content):
    table = cost_table(content)
    value = content["splits"]["test"]["systems"]["llm-ql"]["ndcg@10"]
    row = dict(zip(table["heads"], table["rows"]["llm-ql"], strict=True))
    assert table["heads"][0] == "nDCG@10, test"
    assert row == {
        "nDCG@10, test": f"{value:.3f}",
        "batch size": "128",
        "training": "6m00s",
        "stage one": "1m40s",
        "tuning": "4m20s",
        "index size": "145.0 GB",
        "bytes/passage": "16,384",
        "padding": "6.2 %",
        "ms a query": "2.5",
        "weights": "6.74 billion",
    }
    assert table["rows"]["echo"][table["heads"].index("stage one")] == "–"
    assert table["rows"]["echo"][table["heads"].index("training")] == "8m20s"


def test_the_reference_is_shown_query_by_query_against_the_best_other_variant_and_bm25(page):
    plots = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "query by query" in a["aria-label"]]
    assert plots == [
        "nDCG@10 of llm-ql against nDCG@10 of echo, query by query",
        "nDCG@10 of llm-ql against nDCG@10 of BM25, query by query",
    ]
    assert len(re.findall("above the diagonal", page.text)) == 2


def test_quality_is_drawn_against_the_costs_in_which_variants_differ(page):
    drawn = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "per" in a["aria-label"].split()]
    assert drawn == ["nDCG@10, test against bytes per passage"]
    assert page.text.count("Pareto's frontier") == 1


def test_lineage_and_versions_stand_at_the_end(page):
    assert page.table("Variant", "What it is")["llm-ql"] == ["–", "m, default", "ql", "b", "c" * 12]
    assert "Versions: torch 2.13.0." in page.text
