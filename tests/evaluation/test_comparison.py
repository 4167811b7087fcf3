"""Several evaluations side by side: what is tested, what is refused, what the page says."""

from __future__ import annotations

import contextlib
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.errors import InputError
from llm_retriever.evaluation.comparison import EFFICIENCY, compare_evaluations, pairs
from llm_retriever.metrics.content import sealed
from llm_retriever.metrics.significance import compare, hommel
from llm_retriever.settings import CompareSettings
from tests.evaluation.test_report import Page

TRICK = "<b>trick</b>"
QUERIES = [f"q{i}" for i in range(40)]


def scores(mean: float, seed: int) -> dict[str, float]:
    """A value in [0, 1] for every query; the difficulty of a query is the same for all systems."""
    own, shared = random.Random(seed), random.Random(0)
    return {q: min(1.0, max(0.0, mean + shared.gauss(0, 0.2) + own.gauss(0, 0.05))) for q in QUERIES}


def evaluation(mean: float, seed: int, *, untuned: bool = False, splits: tuple[str, ...] = ("test",)) -> dict[str, Any]:
    """An `evaluation.json` as the step evaluate writes it."""
    per_query = {"retriever": scores(mean, seed), "BM25": scores(0.4, 99)}
    if untuned:
        per_query["backbone"] = scores(0.1, 98)
    means = {name: math.fsum(values.values()) / len(values) for name, values in per_query.items()}
    split = {
        "queries": len(QUERIES),
        "judgments": 55,
        "relevance_level": 1,
        "systems": {name: {"ndcg@10": value, "mrr@10": value / 2} for name, value in means.items()},
        "per_query": per_query,
        "comparisons": [],
        "notes": [],
    }
    stages = [{"stage": stage, "seconds": 90.0 + seed, "examples": 1000} for stage in ("ql", "contrastive")]
    notes = [] if untuned else ["The un-tuned backbone was not evaluated: 50 passages are more than the limit of 0."]
    return {
        "format": 1,
        "collection": "f" * 64,
        "corpus": "python-docs",
        "primary_metric": "ndcg@10",
        "measures": ["ndcg@10", "mrr@10"],
        "depth": 100,
        "splits": dict.fromkeys(splits, split),
        "notes": ["BM25 was searched to depth 50 only.", *notes],
        "card": "c" * 64,
        "method": "llm-ql",
        "recipe": "default",
        "lineage": {"source": "scratch:tiny", "stages": stages},
        "costs": {
            "training": stages,
            "index_seconds": 4.0,
            "index_bytes": 15_200_000,
            "passages_per_second": 1234.5,
            "query_encoding_ms": 2.0,
            "query_search_ms": 0.5,
        },
    }


def write(directory: Path, **contents: dict[str, Any]) -> dict[str, Path]:
    """Evaluations as directories, by name; each is sealed unless it has a seal, or numbers that cannot be sealed."""
    for name, content in contents.items():
        (directory / name).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ValueError):
            content = content if "checksum" in content else sealed(content)
        (directory / name / "evaluation.json").write_text(json.dumps(content))
    return {name: directory / name for name in contents}


def three(directory: Path) -> dict[str, Path]:
    """A good variant, one about as good, a bad one; the first has the un-tuned backbone."""
    first = evaluation(0.6, 1, untuned=True)
    return write(directory, good=first, similar=evaluation(0.6, 4), bad=evaluation(0.3, 3))


def run(evaluations: dict[str, Path], directory: Path, **settings: str) -> dict[str, float]:
    names = {"comparison": "comparison", "report": "report.html", "summary": "summary.md"}
    paths = {key: directory / name for key, name in names.items()}
    return compare_evaluations(CompareSettings(**settings), evaluations, **paths)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("comparison")
    run(three(directory / "in"), directory)
    return directory


@pytest.fixture(scope="module")
def content(written: Path) -> dict[str, Any]:
    return json.loads((written / "comparison" / "comparison.json").read_text())


def test_the_table_has_variants_bm25_and_the_untuned_backbone_once(content: dict[str, Any]) -> None:
    assert list(content["splits"]["test"]["systems"]) == ["good", "similar", "bad", "BM25", "un-tuned backbone"]
    assert content["reference"] == "good"
    assert content["untuned"] == {"un-tuned backbone": "good"}
    assert content["notes"] == ["BM25 was searched to depth 50 only."]


def test_all_others_are_tested_against_the_reference_as_one_family(content: dict[str, Any]) -> None:
    split = content["splits"]["test"]
    per_query = split["per_query"]
    expected = compare("ndcg@10", per_query["good"], {n: v for n, v in per_query.items() if n != "good"})
    assert [c["baseline"] for c in split["comparisons"]] == ["similar", "bad", "BM25", "un-tuned backbone"]
    assert [c["t_test_hommel"] for c in split["comparisons"]] == [e.t_test_hommel for e in expected]
    found = {c["baseline"]: c["verdict"] for c in split["comparisons"]}
    assert found["similar"] == "not significant"
    assert found["bad"] == found["BM25"] == "significant"


def test_pairs_are_corrected_over_all_pairs() -> None:
    systems = {name: scores(mean, seed) for seed, (name, mean) in enumerate({"a": 0.5, "b": 0.52, "c": 0.55}.items())}
    found = pairs("ndcg@10", systems)
    assert [(pair["system"], pair["baseline"]) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair["t_test_hommel"] for pair in found] == hommel([pair["t_test"] for pair in found])
    assert found[0]["mean_difference"] == pytest.approx(
        sum(systems["a"].values()) / 40 - sum(systems["b"].values()) / 40
    )


def test_metrics_are_flat_finite_numbers_that_end_with_the_system(tmp_path: Path) -> None:
    metrics = run(three(tmp_path / "in"), tmp_path)
    assert {"test_ndcg_at_10_good", "test_mrr_at_10_bm25", "test_ndcg_at_10_un_tuned_backbone"} <= set(metrics)
    assert metrics["training_seconds_good"] == 182.0
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())


def test_costs_tell_stage_one_from_tuning(content: dict[str, Any]) -> None:
    costs = content["costs"]["good"]
    assert (costs["adaptation_seconds"], costs["tuning_seconds"]) == (91.0, 91.0)
    assert (costs["tuning_examples"], costs["index_bytes"], costs["query_ms"]) == (1000, 15_200_000, 2.5)
    assert costs["pretraining_seconds"] == 0


def test_another_reference_and_the_order_of_the_variants_can_be_chosen(tmp_path: Path) -> None:
    order = json.dumps({"Bad": "a bad one", "Good": "a good one", "Similar": TRICK})
    run(three(tmp_path / "in"), tmp_path, variants=order, reference="similar")
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert list(content["variants"]) == ["Bad", "Good", "Similar"]
    assert content["reference"] == "Similar"
    page = Page((tmp_path / "report.html").read_text())
    assert TRICK in page.text
    assert "a good one" in page.text


def test_two_untuned_backbones_are_told_apart(tmp_path: Path) -> None:
    evaluations = write(tmp_path / "in", tiny=evaluation(0.5, 1, untuned=True), small=evaluation(0.6, 2, untuned=True))
    metrics = run(evaluations, tmp_path)
    assert {"test_ndcg_at_10_un_tuned_backbone_of_tiny", "test_ndcg_at_10_un_tuned_backbone_of_small"} <= set(metrics)


def changed(**changes: Any) -> dict[str, Any]:
    return evaluation(0.5, 7) | changes


def costing(**changes: Any) -> dict[str, Any]:
    found = evaluation(0.5, 7)
    return found | {"costs": found["costs"] | changes}


def other_queries() -> dict[str, Any]:
    found = evaluation(0.5, 7)
    for values in found["splits"]["test"]["per_query"].values():
        values.pop("q7")
    return found


def spoilt(part: str, system: str, value: Any) -> dict[str, Any]:
    found = evaluation(0.5, 7)
    found["splits"]["test"][part][system]["ndcg@10"] = value
    return found


def other_bm25() -> dict[str, Any]:
    found = evaluation(0.5, 7)
    found["splits"]["test"]["per_query"]["BM25"] = scores(0.5, 50)
    return found


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            changed(collection="e" * 64),
            "of other differs from ffffffffffff… of good; evaluate all variants on the output",
        ),
        (changed(primary_metric="mrr@10"), 'field "primary_metric": mrr@10 of other differs from ndcg@10 of good'),
        (changed(depth=10), 'field "depth": 10 of other differs from 100 of good'),
        (evaluation(0.5, 7, splits=("test", "dev")), 'field "splits": test, dev of other differs from test of good'),
        (other_queries(), "not evaluated on the same queries of test: 0 only of other, 1 only of good"),
        (other_bm25(), "BM25 of other differs from that of good on test"),
        (changed(measures=["map"]), 'field "splits.test.systems.retriever": has no map; evaluate again'),
        (changed(costs={"training": [{"stage": "ql"}]}), 'field "costs.training.0.seconds": '),
        (changed(lineage=None), 'field "lineage": '),
        (changed(lineage={"source": "x", "stages": [], "layers": "two"}), 'field "lineage.layers": '),
        (changed(lineage={"source": "x", "stages": [], "layers": [2]}), 'field "lineage.layers": '),
        (costing(query_encoding_ms=None), 'field "costs.query_encoding_ms": '),
        (costing(query_search_ms=[1.0]), 'field "costs.query_search_ms": '),
        (costing(index_bytes="15 MB"), 'field "costs.index_bytes": '),
        (costing(index_seconds="4"), 'field "costs.index_seconds": '),
        (costing(passages_per_second="x"), 'field "costs.passages_per_second": '),
        *((changed(efficiency={name: "x"}), f'field "efficiency.{name}": ') for name in EFFICIENCY),
        (changed(checksum="0" * 64), 'field "checksum": was changed since it was written; evaluate again'),
        (changed(notes="none"), 'field "notes": '),
        (spoilt("systems", "retriever", float("nan")), "not valid JSON (NaN is no JSON)"),
        (spoilt("systems", "retriever", None), 'field "splits.test.systems.retriever.ndcg@10": '),
        (spoilt("per_query", "BM25", "0.5"), 'field "splits.test.per_query.BM25.ndcg@10": '),
        (spoilt("per_query", "BM25", 0.5), 'field "splits.test.per_query.BM25": its queries are not those of the'),
        (changed(format=2), "not an evaluation of this version (format)"),
        ({"format": 1}, 'field "splits": Field required'),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(other: dict[str, Any], words: str, tmp_path: Path) -> None:
    evaluations = write(tmp_path / "in", good=evaluation(0.6, 1), other=other)
    with pytest.raises(InputError) as error:
        run(evaluations, tmp_path)
    assert words in str(error.value)
    assert str(tmp_path / "in" / "other" / "evaluation.json") in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_evaluation_without_its_checksum_is_refused(tmp_path: Path) -> None:
    evaluations = write(tmp_path / "in", good=evaluation(0.6, 1), other=evaluation(0.5, 7))
    file = tmp_path / "in" / "other" / "evaluation.json"
    content = json.loads(file.read_text())
    del content["checksum"]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r'other/evaluation\.json: field "checksum": is missing; evaluate again'):
        run(evaluations, tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reference": "best"}, "'best' is no variant; use one of good, similar, bad"),
        ({"variants": '{"good": "", "bad": ""}'}, "the names good, bad are not those of the evaluations"),
        ({"variants": "good,bad"}, "not a JSON object"),
        ({"variants": '["good"]'}, "not a JSON object"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        run(three(tmp_path / "in"), tmp_path, **settings)
    assert words in str(error.value)


def test_notes_of_some_variants_carry_their_names_and_those_on_single_tests_are_dropped(tmp_path: Path) -> None:
    contents = {name: evaluation(0.5 + i / 10, i) for i, name in enumerate("abc")}
    for name in "ab":
        contents[name]["notes"].append("x was not evaluated.")
        tied = "MRR@10 is the same for the retriever and BM25 on 30 of 40 queries; the tests rest on the others."
        contents[name]["splits"]["test"]["notes"] += [tied, "There is no x run."]
    run(write(tmp_path / "in", **contents), tmp_path)
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert content["notes"] == ["BM25 was searched to depth 50 only.", "a, b: x was not evaluated."]
    assert content["splits"]["test"]["notes"] == ["a, b: There is no x run."]


def test_a_backbone_that_was_wanted_and_left_out_is_told(tmp_path: Path) -> None:
    contents = {name: evaluation(0.5, i) for i, name in enumerate("ab")}
    told = "The un-tuned backbone was not evaluated: 50 passages are more than the limit of 10."
    contents["a"]["notes"] = [told]
    run(write(tmp_path / "in", **contents), tmp_path)
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert content["notes"] == [f"a: {told}", "b: BM25 was searched to depth 50 only."]


def test_names_of_other_systems_and_single_evaluations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer than two"):
        run(write(tmp_path / "in", good=evaluation(0.6, 1)), tmp_path)
    for name in ("bm25", "retriever", "backbone"):
        with pytest.raises(InputError, match=f"'{name}' cannot name a variant"):
            run(write(tmp_path / "in", good=evaluation(0.6, 1)) | {name: tmp_path}, tmp_path)


def test_the_page_needs_nothing_from_outside_and_suits_light_dark_and_narrow(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe"}
    assert not [name for _, attributes in page.tags for name in attributes if name in {"src", "href"}]
    assert "prefers-color-scheme: dark" in text
    assert 'content="width=device-width, initial-scale=1"' in text
    tables = [i for i, (tag, _) in enumerate(page.tags) if tag == "table"]
    assert len(tables) == 5
    assert all(page.tags[i - 1] == ("div", {"class": "scroll"}) for i in tables)


def test_page_and_summary_say_who_is_ahead_and_show_every_value(written: Path, content: dict[str, Any]) -> None:
    page, summary = Page((written / "report.html").read_text()), (written / "summary.md").read_text()
    for text in (page.text, summary):
        assert "On test, good has the highest nDCG@10 of 3 variants" in text
        assert "good is significantly better than bad, BM25 and the un-tuned backbone." in text
        assert "There is no significant difference between good and similar." in text
        for values in content["splits"]["test"]["systems"].values():
            assert all(f"{value:.3f}" in text for value in values.values())
        assert "1m31s" in text
        assert "15.2 MB" in text


def test_the_matrix_of_pairs_is_antisymmetric(written: Path, content: dict[str, Any]) -> None:
    from llm_retriever.reporting.comparison_report import matrix

    rows = dict(matrix(content["splits"]["test"], ["good", "similar", "bad"]))
    assert rows["good"][0] is None
    assert rows["good"][2]["difference"] == -rows["bad"][0]["difference"]
    assert (rows["good"][2]["kind"], rows["bad"][0]["kind"]) == ("better", "worse")
    assert rows["good"][1]["kind"] == "open"


def test_comparing_does_not_load_torch() -> None:
    code = "import sys, llm_retriever.evaluation.comparison; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def with_zero_shot(content: dict[str, Any], **more: dict[str, float]) -> dict[str, Any]:
    """An evaluation with three zero-shot splits of two collections, and further baselines on all splits."""
    split = content["splits"]["test"]
    per_query = split["per_query"] | more
    systems = {name: {"ndcg@10": 0.5, "mrr@10": 0.25} for name in more} | split["systems"]
    shifted = {name: {metric: value / 2 for metric, value in values.items()} for name, values in systems.items()}
    made = {"test": split | {"per_query": per_query, "systems": systems}}
    for name, values in (("scifact/test", systems), ("cqa/android/test", systems), ("cqa/english/test", shifted)):
        zero_shot = name.partition("/")[0]
        made[name] = split | {"per_query": per_query, "systems": values, "collection": name, "zero_shot": zero_shot}
    collections = {"scifact": {"splits": ["scifact/test"]}, "cqa": {"splits": list(made)[2:]}}
    efficiency = {"training_process_hours": 1.5, "batch_size": 32, "padding_share": 0.1}
    return content | {"splits": made, "zero_shot": {"collections": collections}, "efficiency": efficiency}


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, Any], Path]:
    """A comparison with zero-shot collections and further baselines: its metrics, its content and its directory."""
    directory = tmp_path_factory.mktemp("zero-shot")
    first = with_zero_shot(evaluation(0.6, 1), **{"QLM-D": scores(0.3, 50), "BM25+QL": scores(0.5, 51)})
    second = with_zero_shot(evaluation(0.4, 2), **{"QLM-D": scores(0.3, 50), "BM25+QL": scores(0.45, 52)})
    metrics = run(write(directory / "in", a=first, b=second), directory)
    return metrics, json.loads((directory / "comparison" / "comparison.json").read_text()), directory


def test_baselines_that_all_variants_share_stand_once_and_others_for_each_variant(zero_shot) -> None:
    _, content, _ = zero_shot
    expected = ["a", "b", "BM25", "QLM-D", "BM25+QL of a", "BM25+QL of b"]
    assert list(content["splits"]["test"]["systems"]) == expected
    assert [c["baseline"] for c in content["splits"]["cqa/english/test"]["comparisons"]] == expected[1:]


def test_zero_shot_collections_are_compared_with_their_means(zero_shot) -> None:
    metrics, content, directory = zero_shot
    value = content["splits"]["test"]["systems"]["a"]["ndcg@10"]
    told = content["zero_shot"]
    assert told["collections"]["scifact"]["a"]["ndcg@10"] == pytest.approx(value)
    assert told["collections"]["cqa"]["a"]["ndcg@10"] == pytest.approx(0.75 * value)
    assert told["mean"]["a"]["ndcg@10"] == pytest.approx(0.875 * value)
    assert metrics["zero_shot_ndcg_at_10_a"] == told["mean"]["a"]["ndcg@10"]
    assert metrics["cqa_ndcg_at_10_bm25"] == told["collections"]["cqa"]["BM25"]["ndcg@10"]
    assert content["splits"]["scifact/test"]["zero_shot"] == "scifact"
    assert "scifact/test" in (directory / "report.html").read_text()


def test_what_the_evaluations_say_on_efficiency_is_compared(zero_shot) -> None:
    _, content, _ = zero_shot
    costs = content["costs"]["a"]
    assert (costs["training_process_hours"], costs["batch_size"], costs["padding_share"]) == (1.5, 32, 0.1)


def test_a_zero_shot_collection_that_has_changed_is_refused(tmp_path: Path) -> None:
    first, second = with_zero_shot(evaluation(0.6, 1)), with_zero_shot(evaluation(0.4, 2))
    second["splits"]["scifact/test"]["collection"] = "changed"
    with pytest.raises(InputError, match="changed of b differs from scifact/test of a") as caught:
        run(write(tmp_path / "in", a=first, b=second), tmp_path)
    assert caught.value.field == "collection of scifact/test"


def with_hybrid(content: dict[str, Any], mean: float, seed: int) -> dict[str, Any]:
    """An evaluation with hybrid search among its systems."""
    for split in content["splits"].values():
        split["per_query"]["hybrid"] = scores(mean, seed)
        value = math.fsum(split["per_query"]["hybrid"].values()) / len(QUERIES)
        split["systems"]["hybrid"] = {"ndcg@10": value, "mrr@10": value / 2}
    return content


def test_every_variant_shows_its_hybrid_which_has_a_family_of_its_own(tmp_path: Path) -> None:
    first, second = with_hybrid(evaluation(0.5, 1), 0.6, 5), with_hybrid(evaluation(0.5, 2), 0.4, 6)
    metrics = run(write(tmp_path / "in", a=first, b=second, plain=evaluation(0.5, 3)), tmp_path)
    split = json.loads((tmp_path / "comparison" / "comparison.json").read_text())["splits"]["test"]
    assert list(split["systems"]) == ["a", "b", "plain", "hybrid of a", "hybrid of b", "BM25"]
    assert [c["baseline"] for c in split["comparisons"]] == ["b", "plain", "BM25"]
    compared = split["hybrid_comparisons"]
    assert [c["baseline"] for c in compared] == ["a", "b", "plain", "hybrid of b", "BM25"]
    assert [c["t_test_hommel"] for c in compared] == pytest.approx(hommel([c["t_test"] for c in compared]))
    assert metrics["test_ndcg_at_10_hybrid_of_b"] == split["systems"]["hybrid of b"]["ndcg@10"]
    page, summary = (tmp_path / "report.html").read_text(), (tmp_path / "summary.md").read_text()
    sentence = "hybrid of a is significantly better than a, b, plain, hybrid of b and BM25."
    assert sentence in page
    assert sentence in summary
    value = split["systems"]["hybrid of b"]["ndcg@10"]
    assert f"| hybrid of b | {value:.3f}†‡ |" in summary


def test_a_variant_cannot_be_called_like_the_hybrid_of_another(tmp_path: Path) -> None:
    names = {"a": evaluation(0.5, 1), "hybrid of a": evaluation(0.5, 2)}
    with pytest.raises(InputError, match="cannot name a variant"):
        run(write(tmp_path / "in", **names), tmp_path)
