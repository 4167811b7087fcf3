"""Vectors and losses are those of the authors' released code, given the same weights, texts and tokenizers.

`released_values.json` holds numbers alone: the first eight of each vector (scaled to length 1 where the code leaves them as they
are) and losses. They were made once, in fp32 on a processor, by the released functions as they stand under transformers 4.44.2
and torch 2.13.0, with the weights, tokenizers and texts of `tests/released.py`, the tokenizers in the class `LlamaTokenizerFast`,
which puts `<s>` first:

- LLM-QL (Trustworthy-Information-Access/llm-ql at 25d7475), stage one: `TrainDatasetForEmbedding`, `EmbedCollator` and
  `PreLlamaModel.forward` of `ql-learning`, with `mask_probability` 0; stage two: `TrainDataset`, `TrainCollator` and
  `DenseModel.forward` of `contrastive_learning`.
- Llama2Vec (FlagOpen/FlagEmbedding at 7ed43d6, `research/LLARA`): `TrainDatasetForEmbedding` and `EmbedCollator` of both stages,
  `PreLlamaModel.forward`, whose two lists of Llama-2's ids were replaced by those that the tokenizer gives, and
  `BiEncoderModel.forward`.
- LLM2Vec (McGill-NLP/llm2vec at 312adcf): `LLM2Vec.encode`; `LLM2Vec.tokenize` and `forward` with `HardNegativeNLLLoss` (scale
  50, and 20 for SimCSE); `tokenize_function` and `group_texts` of `run_mntp.py` with `LlamaBiForMNTP.forward`.
- RepLLaMA (texttron/tevatron), `paper`: branch tevatron-v1 at 2e5d00e, `TrainPreProcessor`, `TrainDataset`, `TrainCollator` and
  `RepLLaMA.forward` of `examples/repllama`; `released`: main at dd06310, the classes that LLM-QL's stage two is made from.
- Echo (jakespringer/echo-embeddings at c752c46): `EchoParser`, `EchoEmbeddingsMistral.forward`, `EchoPooling`. Its training is
  not released, so there is no loss.
- Summarize (kongds/scaling_sentemb at 8567aa0): `batcher` of `evaluation.py`; `generate_and_tokenize_prompt`,
  `DataCollatorForSeq2SeqForNeg` and `SentembTrainer.compute_loss` of `ft_llm.py`, in fp32 and not in 4 bits, texts uncut.

`llama-2` has how many tokens the prompts take as Llama-2 tokenises them, by the npm package llama-tokenizer-js 1.2.2, whose ids
of Llama2Vec's prompts are those that its code lists. `stop words` is the SHA-256 of NLTK's English stop words without an
apostrophe, sorted, one a line: Llama2Vec's code leaves them out of its targets, after it has parted words at apostrophes.

Where this project differs on purpose, the tests below say by how much.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_retriever.adaptation import bag_of_words
from llm_retriever.adaptation.consecutive import TextPair
from llm_retriever.adaptation.ebae_ebar import EbaeEbarLoss, JointCollator
from llm_retriever.adaptation.mntp import MaskedLoss, mask_id, token_stream
from llm_retriever.adaptation.query_likelihood import Pair, PairCollator, QueryLikelihoodLoss
from llm_retriever.adaptation.simcse import PassageCollator, SimcseLoss
from llm_retriever.contrastive.dataset import Group, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.data.collection import Passage
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.methods import EBAE_EBAR, QUERY_LIKELIHOOD, SIMCSE, Method, method
from llm_retriever.methods.types import Attention
from llm_retriever.models.attention import set_attention
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.prompts import passage_text
from tests import released

VALUES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("released_values.json").read_text(encoding="utf-8")
)
VECTOR, LOSS = 2e-6, 2e-5
"""What numbers may differ by: vectors absolutely, losses relatively (cosines are divided by a temperature down to 0.01)."""
PASSAGES = {f"p{i}": Passage(f"p{i}", *parts) for i, parts in enumerate(released.PASSAGES)}
GROUPS = [Group(query, (f"p{2 * i}", f"p{2 * i + 1}")) for i, query in enumerate(released.QUERIES)]
LENGTHS = {
    "llm-ql released": (300, 300),
    "llama2vec released": (90, 100),
    "llm2vec released": (512, 512),
    "repllama paper": (31, 71),  # 32 and 72 in the code, which leaves one of them unused
    "repllama released": (32, 72),
    "summarize released": (300, 300),
}
"""Tokens of queries and passages; some cut the texts."""
each_kind = pytest.mark.parametrize("kind", released.TOKENIZERS)


def row_of(name: str, lengths: tuple[int, int]) -> Method:
    return replace(method(*name.split()), query_length=lengths[0], passage_length=lengths[1])


def backbone(kind: str, attention: Attention = "causal") -> tuple[Any, Any]:
    tokenizer = released.with_new_tokens(released.TOKENIZERS[kind]())
    model = released.llama(len(tokenizer))
    set_attention(model, attention)
    return tokenizer, model


def retriever(kind: str, row: Method) -> Retriever:
    tokenizer, model = backbone(kind)
    return Retriever(model.model, tokenizer, RetrieverCard.of(row, Lineage("a formula")))


def vectors(found: Retriever, queries: list[str], passages: list[str]) -> dict[str, np.ndarray]:
    asked, given = found.tokenise_queries(queries), found.tokenise_passages(passages)
    return {"query": found.embed("query", asked)[:, :8], "passage": found.embed("passage", given)[:, :8]}


def texts() -> list[str]:
    return [passage_text(*parts) for parts in released.PASSAGES]


def contrastive_loss(kind: str, row: Method) -> float:
    found = retriever(kind, row)
    batch = GroupCollator(row, found.tokenizer, PASSAGES)(GROUPS)
    with torch.no_grad():
        return ContrastiveLoss(row)(found.model, batch).item()


@each_kind
@pytest.mark.parametrize("name", [name for name in LENGTHS if name != "summarize released"])
def test_vectors_are_those_of_the_released_code(name: str, kind: str):
    found = vectors(retriever(kind, row_of(name, LENGTHS[name])), released.QUERIES, texts())
    for side, values in found.items():
        np.testing.assert_allclose(values, VALUES[kind][name][side], atol=VECTOR)


@each_kind
@pytest.mark.parametrize("name", LENGTHS)
def test_contrastive_losses_are_those_of_the_released_code(name: str, kind: str):
    loss = contrastive_loss(kind, row_of(name, LENGTHS[name]))
    assert loss == pytest.approx(VALUES[kind][name]["loss"], rel=LOSS)


@each_kind
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_echo_is_read_out_as_released_and_cuts_both_copies_alike(recipe: str, kind: str):
    """The last text is longer than the 80 tokens that a copy may have; the prompts of a passage take 29 or 27."""
    row = row_of(f"echo {recipe}", (400, 160 + {"sentencepiece": 29, "byte-level": 27}[kind]))
    found = vectors(retriever(kind, row), released.QUERIES, [*texts(), released.FOLLOWED[0][0]])
    for side, values in found.items():
        np.testing.assert_allclose(values, VALUES[kind][f"echo {recipe}"][side], atol=VECTOR)


@each_kind
def test_summarize_is_read_out_as_released_but_for_the_full_stop_of_its_evaluation(kind: str):
    """The evaluation puts a full stop behind what has none, and behind an exclamation mark."""
    found, expected = retriever(kind, row_of("summarize released", (300, 300))), VALUES[kind]["summarize released"]
    ended = [[text if text[-1] == "." else f"{text}." for text in side] for side in (released.QUERIES, texts())]
    for side, values in vectors(found, *ended).items():
        np.testing.assert_allclose(values, expected[side], atol=VECTOR)
    difference = np.abs(vectors(found, released.QUERIES, texts())["query"] - expected["query"]).max()
    assert difference == pytest.approx({"sentencepiece": 0.1133, "byte-level": 0.1530}[kind], abs=1e-4)


@each_kind
def test_llm2vec_training_joins_the_instruction_with_a_semicolon_and_encoding_with_a_colon(kind: str):
    row, loss = row_of("llm2vec released", (512, 512)), VALUES[kind]["llm2vec released"]["loss with ;"]
    difference = contrastive_loss(kind, row) - loss
    assert difference == pytest.approx({"sentencepiece": -0.1647, "byte-level": -0.0457}[kind], abs=1e-3)
    joined = replace(row, query=replace(row.query, prefix=row.query.prefix.replace(":", ";")))
    assert contrastive_loss(kind, joined) == pytest.approx(loss, rel=LOSS)


@each_kind
def test_query_likelihood_has_the_released_loss_but_for_the_beginning_of_sequence(kind: str):
    """The authors' rows are padded on the left, and a pad is to predict `<s>`, one of about 140 targets of a row."""
    tokenizer, model = backbone(kind)
    recipe = replace(QUERY_LIKELIHOOD["released"], corruption_ratio=0.0)
    pairs = [Pair(group.query, group.passages[0], "") for group in GROUPS]
    batch = PairCollator(recipe, ("eos",), tokenizer, PASSAGES)(pairs)
    with torch.no_grad():
        loss = QueryLikelihoodLoss(recipe.attention_block)(model, batch).item()
    assert loss == pytest.approx(VALUES[kind]["ql"]["loss without <s>"], rel=LOSS)
    difference = loss - VALUES[kind]["ql"]["loss"]
    assert difference == pytest.approx({"sentencepiece": -0.0076, "byte-level": -0.0112}[kind], abs=3e-4)


@each_kind
def test_ebae_and_ebar_have_the_released_rows_bags_and_losses(kind: str):
    """With `cutoff_len` 190, which cuts the first text and the second bag."""
    tokenizer, model = backbone(kind)
    prompts = {"sentencepiece": 3 + 60 + 61, "byte-level": 2 + 59 + 60}[kind]
    recipe = replace(EBAE_EBAR["released"], passage_length=190 - prompts, target_length=189)
    pairs = [TextPair(*pair) for pair in released.FOLLOWED]
    batch = JointCollator(recipe, method("llama2vec", "released"), tokenizer)(pairs)
    ids, expected = released.IDS[kind]["ebae_ebar"], VALUES[kind]["ebae_ebar"]
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    assert [row[real.bool()].tolist() for row, real in rows] == ids["ids"]
    for side in ("self", "next"):
        assert [sorted(set(bag.tolist()) - {bag_of_words.IGNORED}) for bag in batch[f"{side}_targets"]] == ids[side]
    with torch.no_grad():
        both = EbaeEbarLoss(recipe)(model, batch).item()
        text = EbaeEbarLoss(replace(recipe, bag_weight=0.0))(model, batch).item()
    assert both == pytest.approx(expected["loss"], rel=LOSS)
    assert text == pytest.approx(expected["ar"], rel=LOSS)
    assert both - text == pytest.approx((expected["ebae"] + expected["ebar"]) / 2, rel=LOSS)


def test_the_stop_words_are_nltks():
    lines = "\n".join(sorted(bag_of_words.STOP_WORDS))
    assert hashlib.sha256(lines.encode()).hexdigest() == VALUES["nltk"]["stop words"]


@each_kind
def test_masked_next_tokens_have_the_released_blocks_and_loss(kind: str):
    tokenizer, model = backbone(kind, attention="bidirectional")
    ids = released.IDS[kind]["mntp"]
    stream, width = token_stream(iter(texts()), tokenizer), len(ids["blocks"][0])
    assert [stream[i : i + width].tolist() for i in range(0, len(stream) - width + 1, width)] == ids["blocks"]
    assert mask_id(tokenizer, "_") == ids["mask"]
    masked, labels = torch.tensor(ids["ids"]), torch.tensor(ids["labels"])
    batch = {"input_ids": masked, "attention_mask": torch.ones_like(masked), "labels": labels}
    with torch.no_grad():
        loss = MaskedLoss()(model, batch).item()
    assert loss == pytest.approx(VALUES[kind]["mntp"]["loss"], rel=LOSS)


@each_kind
def test_simcse_has_the_released_loss_but_for_what_a_vector_is_the_mean_of(kind: str):
    """Without dropout. The authors' means are over whole rows, `<s>` and pads among them; the loss without pads is of texts
    that were encoded one by one."""
    tokenizer, model = backbone(kind, attention="bidirectional")
    row = method("llm2vec", "released")
    batch = PassageCollator(row, tokenizer, 128)(texts())
    loss = SimcseLoss(SIMCSE["released"].temperature, row.pooling)
    assert batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist() == released.IDS[kind]["simcse"]["ids"]
    whole = {**batch, "pooled": batch["attention_mask"].sum(dim=1)}
    with torch.no_grad():
        ours, with_opening = (loss(model.model, rows).item() for rows in (batch, whole))
    expected = VALUES[kind]["simcse"]
    assert with_opening == pytest.approx(expected["loss without pads"], rel=LOSS)
    difference = ours - expected["loss"]
    assert difference == pytest.approx({"sentencepiece": -0.0069, "byte-level": 0.0508}[kind], abs=1e-4)


def test_lengths_that_are_counted_in_llama_2s_tokens_leave_the_released_room_for_a_text():
    """`cutoff_len` 128 of both of Llama2Vec's prompts, 300 tokens in each of Echo's copies, 32 in Summarize."""
    prompts = VALUES["llama-2"]
    assert EBAE_EBAR["released"].passage_length == 128 - prompts["ebae_ebar"]
    for side in ("query", "passage"):
        assert getattr(method("echo", "released"), f"{side}_length") == 2 * 300 + prompts[f"echo {side}"]
        assert getattr(method("summarize", "released"), f"{side}_length") == 32 + prompts["summarize"]
