"""Query-likelihood re-ranking against plain causal language models, the training-time loss, and hand computation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_retriever.adaptation.query_likelihood import Pair, PairCollator, QueryLikelihoodLoss
from llm_retriever.data.collection import Passage
from llm_retriever.errors import InputError
from llm_retriever.methods import QUERY_LIKELIHOOD
from llm_retriever.models import masks
from llm_retriever.models.card import EMBEDDING_TOKENS, Lineage, Stage
from llm_retriever.reranking import rerank
from llm_retriever.reranking.likelihood import QueryLikelihood, QueryPrompt, load_language_model
from llm_retriever.reranking.rerank import Reranker, interpolated, reordered

PASSAGES = {
    "short": Passage("short", "River", "is old"),
    "untitled": Passage("untitled", "", "The  engine\nwas built   by hand"),
    "long": Passage("long", "Long", "the glacier moves slowly near the coast " * 40),
    "unicode": Passage("unicode", "Köln", "🙂 naïve 你好 </s> <s>"),
}
QUERIES = ["which river is old", "who built the engine " * 20, "</s> 🙂?"]
PAIRS = [(query, passage) for query in QUERIES for passage in PASSAGES]


def template(**changes) -> QueryPrompt:
    found = QueryPrompt.of(Lineage("random"))
    return replace(found, recipe=replace(found.recipe, passage_length=90, query_length=24), **changes)


@pytest.fixture(scope="module")
def model(backbone_directory: Path):
    """A random Llama whose weights are large enough for its outputs to differ from row to row."""
    llm, _ = load_language_model(backbone_directory, precision="fp32", device="cpu")
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
    return llm


@pytest.fixture(scope="module")
def tokenizer(backbone_directory: Path):
    return AutoTokenizer.from_pretrained(backbone_directory)


def scorer(model, tokenizer, **options) -> QueryLikelihood:
    return QueryLikelihood(model, tokenizer, options.pop("template", template()), PASSAGES, **options)


def pieces(tokenizer, query: str, passage: str) -> tuple[list[int], list[int]]:
    """Document part with [E], and query part, put together by hand from the words of the prompt."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    found, document = PASSAGES[passage], QUERY_LIKELIHOOD["default"].document
    text = f"{found.title} {found.text}".strip()
    while len(worded := ids(document.prefix + text + document.suffix)) > 90 - 1:
        text = text[:-1].rstrip()
    return [tokenizer.bos_token_id, *worded, tokenizer.eos_token_id], [*ids(query.strip())[:23], tokenizer.eos_token_id]


@torch.no_grad()
def naive(model, tokenizer, query: str, passage: str, *, block: bool = False, end: bool = True) -> float:
    """One row at a time, logits at every position, no padding."""
    document, generated = pieces(tokenizer, query, passage)
    ids = torch.tensor([document + generated])
    mask = None
    if block:
        mask = masks.attention_block(torch.ones_like(ids), torch.tensor([len(document) - 1]), torch.float32)
    probabilities = model(input_ids=ids, attention_mask=mask).logits[0].log_softmax(dim=-1)
    wanted = generated if end else generated[:-1]
    return sum(probabilities[len(document) - 1 + i, token].item() for i, token in enumerate(wanted))


@pytest.mark.parametrize("block", [False, True], ids=["causal", "block"])
@pytest.mark.parametrize("end", [True, False], ids=["with-end", "without-end"])
def test_scores_are_those_of_a_naive_loop_over_full_logits(model, tokenizer, block: bool, end: bool):
    found = scorer(model, tokenizer, end_of_sequence=end, batch_tokens=600).scores(PAIRS, attention_block=block)
    expected = [naive(model, tokenizer, q, p, block=block, end=end) for q, p in PAIRS]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert len({round(score, 3) for score in found}) == len(PAIRS)


@pytest.mark.parametrize("block", [False, True], ids=["causal", "block"])
def test_the_mean_over_tokens_is_the_loss_of_stage_one_on_whole_passages(model, tokenizer, block: bool):
    recipe = template().recipe
    batch = PairCollator(recipe, ("eos",), tokenizer, PASSAGES)([Pair(q, p, "0") for q, p in PAIRS])
    with torch.no_grad():
        loss = QueryLikelihoodLoss(block)(model, batch).item()
    scores = scorer(model, tokenizer).scores(PAIRS, attention_block=block)
    assert -sum(scores) / int(batch["targets"].sum()) == pytest.approx(loss, rel=1e-5)


def test_under_the_block_what_the_query_reads_of_the_passage_goes_through_the_embedding_token(model, tokenizer):
    open_, blocked = (scorer(model, tokenizer).scores(PAIRS, attention_block=block) for block in (False, True))
    assert all(abs(one - other) > 1e-3 for one, other in zip(open_, blocked, strict=True))


def test_batches_do_not_change_scores_and_are_bounded(model, tokenizer):
    small, large = (scorer(model, tokenizer, batch_tokens=tokens) for tokens in (130, 2048))
    one, other = (each.scores(PAIRS, attention_block=True) for each in (small, large))
    assert one == pytest.approx(other, abs=1e-3)
    assert small.tokens < large.tokens


def test_a_passage_goes_through_the_model_once_for_several_queries(model, tokenizer):
    together, alone = (scorer(model, tokenizer) for _ in range(2))
    queries = [f"which {word} is old" for word in ("river", "bridge", "engine", "poem")]
    pairs = [(query, "long") for query in queries]
    found = together.scores(pairs, attention_block=False)
    assert found == pytest.approx([alone.scores([pair], attention_block=False)[0] for pair in pairs], rel=1e-5)
    assert together.tokens < alone.tokens / 2


def test_a_score_that_is_not_finite_is_refused_with_query_and_passage(backbone_directory, tokenizer):
    broken = AutoModelForCausalLM.from_pretrained(backbone_directory)
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    with pytest.raises(InputError, match="'which river is old' given passage 'short' is not finite"):
        scorer(broken, tokenizer).scores(PAIRS[:1], attention_block=False)


def trained(**changes) -> Lineage:
    told = {
        "document": {"prefix": "Passage: ", "suffix": " In short:", "tokenise": "pieces", "embedding_tokens": ["eos"]},
        "corruption_ratio": 0.6,
        "query_length": 40,
        "passage_length": 70,
        EMBEDDING_TOKENS: [["<s1>", "<s2>"], ["eos"]],
    }
    return Lineage("model").then(Stage("ql", {**told, **changes})).then(Stage("contrastive", {"temperature": 1.0}))


def test_the_wording_is_the_one_that_stage_one_trained():
    found = QueryPrompt.of(trained())
    assert (found.recipe.document.prefix, found.recipe.document.suffix) == ("Passage: ", " In short:")
    assert (found.recipe.query_length, found.recipe.passage_length) == (40, 70)
    assert (found.embedding_tokens, found.is_trained) == (("<s1>", "<s2>"), True)
    assert (found.recipe.corruption_ratio, found.recipe.loss_on) == (0.0, "query")


def test_a_model_that_never_learned_to_ask_is_worded_by_default():
    found = QueryPrompt.of(Lineage("model").then(Stage("mntp", {"corruption_ratio": 0.2})))
    assert found.recipe.document == QUERY_LIKELIHOOD["default"].document
    assert (found.embedding_tokens, found.is_trained) == (("eos",), False)


def test_a_bidirectional_model_is_read_causally(tmp_path: Path, backbone_directory: Path):
    llm = AutoModelForCausalLM.from_pretrained(backbone_directory)
    llm.config.is_causal = False
    llm.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(backbone_directory).save_pretrained(tmp_path)
    scores = []
    for directory in (tmp_path, backbone_directory):
        loaded, tokenizer = load_language_model(directory, precision="fp32", device="cpu")
        scores.append(scorer(loaded, tokenizer).scores(PAIRS, attention_block=False))
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_interpolation_by_hand():
    first = {"a": 12.0, "b": 10.0, "c": 2.0, "beyond": 1.0}
    second = {"a": -30.0, "b": -10.0, "c": -20.0}
    mixed = interpolated(first, second, 0.2)
    assert mixed == pytest.approx({"a": 0.2 * 1.0 + 0.8 * 0.0, "b": 0.2 * 0.8 + 0.8 * 1.0, "c": 0.2 * 0.0 + 0.8 * 0.5})


def test_equal_scores_of_one_system_leave_the_order_to_the_other():
    assert interpolated({"a": 7.0, "b": 7.0}, {"a": -4.0, "b": -2.0}, 0.2) == pytest.approx({"a": 0.2, "b": 1.0})
    assert interpolated({"beyond": 1.0}, {}, 0.2) == {}


def test_what_is_not_re_ranked_stays_behind_in_its_order():
    first = {"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0}
    assert list(reordered(first, {"a": -50.0, "b": -40.0})) == ["b", "a", "c", "d"]
    values = list(reordered(first, {"a": -50.0, "b": -40.0}).values())
    assert values == [-40.0, -50.0, -51.0, -52.0]


def test_equal_scores_are_ordered_as_trec_eval_does():
    assert list(reordered({"a": 2.0, "b": 1.0}, {"a": -1.0, "b": -1.0})) == ["b", "a"]


@pytest.mark.parametrize("weight", [-1.0, 0.2])
def test_a_run_is_re_ranked_to_its_depth_whatever_is_held_at_a_time(model, tokenizer, monkeypatch, weight: float):
    queries = {"q1": QUERIES[0], "q2": QUERIES[2], "none": "nothing found"}
    first = {"q1": {"long": 3.0, "short": 2.0, "unicode": 1.0}, "q2": {"unicode": 5.0, "long": 4.0}, "none": {}}
    reranker = Reranker(scorer(model, tokenizer), depth=2, weight=weight)
    found = reranker.run(first, queries, attention_block=True)
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 2)
    again = reranker.run(first, queries, attention_block=True)
    assert list(found) == list(again) == list(queries)
    assert all(found[query] == pytest.approx(again[query], abs=1e-3) for query in queries)
    assert (list(found["q1"])[2], found["none"]) == ("unicode", {})
    scores = {p: naive(model, tokenizer, queries["q1"], p, block=True) for p in ("long", "short")}
    expected = scores if weight < 0 else interpolated(first["q1"], scores, weight)
    assert {p: found["q1"][p] for p in expected} == pytest.approx(expected, rel=1e-4)
