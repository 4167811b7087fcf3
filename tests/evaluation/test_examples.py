from __future__ import annotations

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.metrics.measures import parse_measures
from llm_retriever.reporting.examples import Examples, judge, most_different, snippet

MEASURES = parse_measures("mrr@10")


def test_the_largest_gains_and_losses_are_chosen_in_order_and_ties_by_id():
    theirs = dict.fromkeys("abcdefgh", 0.5)
    ours = dict(zip("abcdefgh", [0.5, 1.0, 0.6, 1.0, 0.9, 0.0, 0.4, 0.5], strict=True))
    assert most_different(ours, theirs) == (["b", "d", "e"], ["f", "g"])


def test_equal_runs_give_no_examples():
    assert most_different({"a": 0.5}, {"a": 0.5}) == ([], [])


def test_the_first_passages_and_the_rank_of_the_first_relevant_one_follow_trec_eval():
    run = {"q": {f"p{i:02}": 1.0 for i in range(20)}, "r": {"x": 2.0}}
    judged = judge(MEASURES, {"q": {"p05": 1}, "r": {"y": 1}, "s": {"z": 1}}, run, 1)
    assert judged.top == {"q": ["p19", "p18", "p17"], "r": ["x"], "s": []}
    assert judged.first_relevant == {"q": 15, "r": 0, "s": 0}
    assert judged.scores["mrr@10"] == {"q": 0.0, "r": 0.0, "s": 0.0}


def test_an_example_shows_what_each_system_returned_and_marks_what_is_relevant(unspoilt_inputs):
    corpus = Collection.open(unspoilt_inputs["collection"])
    qrels = corpus.qrels("graded")
    systems = {
        "retriever": judge(MEASURES, qrels, {"q30": {"p33": 3.0, "p0": 2.0, "p31": 1.0}}, 2),
        "BM25": judge(MEASURES, qrels, {"q30": {"p1": 1.0}}, 2),
    }
    found = Examples(corpus.queries("graded"), qrels, corpus.lookup(), 2).example("q30", systems, "mrr@10")
    assert found.query == corpus.queries("graded")["q30"]
    assert ([shown.id for shown in found.relevant], found.more_relevant) == (["p33"], 1)
    ours, theirs = found.answers
    assert [(p.id, p.grade, p.is_relevant) for p in ours.passages] == [
        ("p33", 3, True),
        ("p0", None, False),
        ("p31", 1, False),
    ]
    assert (ours.system, ours.value, ours.first_relevant) == ("retriever", 1.0, 1)
    assert (theirs.system, theirs.value, theirs.first_relevant) == ("BM25", 0.0, 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short text", "short text"),
        (" several\n lines\tand  spaces ", "several lines and spaces"),
        ("one two, three", "one two …"),
        ("unbreakablelongword", "unbreakabl …"),
    ],
)
def test_a_snippet_is_one_line_cut_between_words(text, shown):
    length = 10 if shown.endswith("…") else 240
    assert snippet(text, length) == shown
