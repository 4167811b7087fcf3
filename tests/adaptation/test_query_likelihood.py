"""LLM-QL stage one, to the token: rows, corruption, labels, who sees whom, and the loss."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_retriever.adaptation.query_likelihood import (
    Pair,
    PairCollator,
    PairDataset,
    QueryLikelihoodLoss,
    corrupt_tokens,
    corrupt_words,
    target_logits,
)
from llm_retriever.data.collection import Passage
from llm_retriever.errors import InputError
from llm_retriever.methods import QUERY_LIKELIHOOD, QueryLikelihoodRecipe
from llm_retriever.models import masks
from tests import released

DEFAULT = replace(QUERY_LIKELIHOOD["default"], passage_length=90, query_length=24)
CLEAN = replace(DEFAULT, corruption_ratio=0.0)
EOS = ("eos",)
PASSAGES = {
    "short": Passage("short", "River", "is old"),
    "untitled": Passage("untitled", "", "The  engine\nwas built   by hand"),
    "long": Passage("long", "Long", "the glacier moves slowly near the coast " * 40),
    "unicode": Passage("unicode", "Köln", "🙂 naïve 你好 </s> <s>"),
}
PAIRS = [
    Pair("which river is old", "short", "0"),
    Pair("who built the engine " * 20, "untitled", "1"),
    Pair("glacier", "long", "2"),
    Pair("</s> 🙂?", "unicode", "3"),
]


@pytest.fixture(scope="module")
def tokenizer(backbone_directory: Path):
    return AutoTokenizer.from_pretrained(backbone_directory)


@pytest.fixture
def model(backbone_directory: Path):
    """A random Llama whose weights are large enough for its outputs to differ from row to row."""
    llm = AutoModelForCausalLM.from_pretrained(backbone_directory, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
    return llm


def collator(tokenizer, recipe: QueryLikelihoodRecipe = CLEAN, **options) -> PairCollator:
    return PairCollator(recipe, options.pop("embedding_tokens", EOS), tokenizer, PASSAGES, **options)


def plain(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def real_rows(batch: dict[str, Tensor]) -> list[list[int]]:
    return [ids[real.bool()].tolist() for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def embedded(model, batch: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Input embeddings that gather gradients, and the logits at every position."""
    inputs = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    return inputs, model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits


def test_a_row_is_prompt_passage_suffix_embedding_token_query_end(tokenizer):
    row = real_rows(collator(tokenizer)([PAIRS[0]]))[0]
    expected = [
        tokenizer.bos_token_id,
        *plain(
            tokenizer,
            "Instruct: Given a retrieved passage, summarize the passage.\nPassage:  River is old\nSummarization:",
        ),
        tokenizer.eos_token_id,
        *plain(tokenizer, "which river is old"),
        tokenizer.eos_token_id,
    ]
    assert row == expected


def test_released_wording_keeps_its_space_before_the_embedding_token(tokenizer):
    recipe = replace(QUERY_LIKELIHOOD["released"], corruption_ratio=0.0)
    batch = collator(tokenizer, recipe)([PAIRS[0]])
    before = batch["input_ids"][0, : batch["embedding"][0]]
    assert before[-len(plain(tokenizer, "\nSummarization: ")) :].tolist() == plain(tokenizer, "\nSummarization: ")


@pytest.mark.parametrize("recipe", QUERY_LIKELIHOOD)
@pytest.mark.parametrize("passage_length", [75, 90, 200])
@pytest.mark.parametrize("query_length", [2, 5, 200])
def test_suffix_embedding_token_and_end_survive_any_length(
    tokenizer, recipe: str, passage_length: int, query_length: int
):
    row = replace(QUERY_LIKELIHOOD[recipe], passage_length=passage_length, query_length=query_length)
    batch = collator(tokenizer, row)(PAIRS)
    suffix = plain(tokenizer, row.document.suffix)
    for ids, real, e in zip(batch["input_ids"], batch["attention_mask"], batch["embedding"], strict=True):
        ids = ids[real.bool()]
        assert ids[e - len(suffix) : e].tolist() == suffix
        assert ids[e] == tokenizer.eos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert e <= passage_length
        assert len(ids) - 1 - e <= query_length


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_are_the_query_and_its_end_only(tokenizer, side: str):
    batch = collator(tokenizer, padding_side=side)(PAIRS)
    for pair, ids, targets in zip(PAIRS, batch["input_ids"], batch["targets"], strict=True):
        query = plain(tokenizer, pair.query.strip())[: CLEAN.query_length - 1]
        assert ids[targets].tolist() == [*query, tokenizer.eos_token_id]


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_on_all_labels_every_token_but_pads_and_the_first(tokenizer, side: str):
    batch = collator(tokenizer, replace(CLEAN, loss_on="all"), padding_side=side)(PAIRS)
    for row, ids, targets in zip(real_rows(batch), batch["input_ids"], batch["targets"], strict=True):
        assert ids[targets].tolist() == row[1:]


def test_labels_do_not_depend_on_which_id_pads(tokenizer):
    """Pads share the id of end-of-sequence here, and the end of the query must stay a label."""
    batch = collator(tokenizer)(PAIRS)
    pads = batch["attention_mask"] == 0
    assert (batch["input_ids"][pads] == tokenizer.eos_token_id).all()
    assert not batch["targets"][pads].any()
    ends = batch["attention_mask"].sum(dim=1) - 1
    assert batch["targets"][torch.arange(len(ends)), ends].all()


def test_the_first_query_token_is_read_at_the_embedding_token(tokenizer, model):
    batch = collator(tokenizer)([PAIRS[0]])
    loss = QueryLikelihoodLoss(attention_block=True)
    mask = loss.mask(model, batch)
    full = model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits
    e = int(batch["embedding"][0])
    torch.testing.assert_close(target_logits(model, batch, mask)[0], full[0, e], atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss_on", ["query", "all"])
def test_the_head_at_the_labels_equals_the_full_head(tokenizer, model, loss_on: str):
    batch = collator(tokenizer, replace(CLEAN, loss_on=loss_on))(PAIRS)
    loss = QueryLikelihoodLoss(attention_block=True)
    full = model(input_ids=batch["input_ids"], attention_mask=loss.mask(model, batch), use_cache=False).logits
    labels = batch["input_ids"].masked_fill(~batch["targets"], -100)
    expected = functional.cross_entropy(full[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss(model, batch), expected, atol=1e-6, rtol=0)


def test_the_loss_is_the_equation(tokenizer, model):
    """Eq. 8 by a loop over single rows and single tokens, causal and without batching."""
    total, count = 0.0, 0
    for row, pair in zip(real_rows(collator(tokenizer)(PAIRS)), PAIRS, strict=True):
        single = collator(tokenizer)([pair])
        e, ids = int(single["embedding"][0]), single["input_ids"]
        mask = masks.attention_block(torch.ones_like(ids), torch.tensor([e]), torch.float32)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        for i in range(e + 1, len(row)):
            total -= logits[i - 1].log_softmax(-1)[row[i]].item()
            count += 1
    value = QueryLikelihoodLoss(attention_block=True)(model, collator(tokenizer)(PAIRS))
    assert value.item() == pytest.approx(total / count, abs=1e-5)


def test_query_tokens_cannot_see_the_passage(tokenizer, model):
    """With [E]'s own view of the passage cut, nothing of the passage reaches the query: its gradient is exactly 0."""
    batch = collator(tokenizer)(PAIRS[:3])
    mask = masks.attention_block(batch["attention_mask"], batch["embedding"], torch.float32)
    for i, e in enumerate(batch["embedding"]):
        mask[i, 0, e, :e] = mask.min()
    inputs, logits = embedded(model, batch, mask)
    for i, e in enumerate(batch["embedding"]):
        (gradient,) = torch.autograd.grad(logits[i, e:].square().sum(), inputs, retain_graph=True)
        assert gradient[i, :e].abs().max() == 0
        assert gradient[i, e:].abs().max() > 0


def test_the_passage_reaches_the_query_through_the_embedding_token(tokenizer, model):
    batch = collator(tokenizer, padding_side="left")(PAIRS[:3])
    mask = QueryLikelihoodLoss(attention_block=True).mask(model, batch)
    inputs, logits = embedded(model, batch, mask)
    for i, e in enumerate(batch["embedding"]):
        (gradient,) = torch.autograd.grad(logits[i, e + 1 :].square().sum(), inputs, retain_graph=True)
        start = int((batch["attention_mask"][i] == 0).sum())
        assert (gradient[i, start:e].norm(dim=-1) > 0).all()
        assert gradient[i, :start].abs().max() == 0 if start else True


def test_without_attention_block_the_query_sees_the_passage_directly(tokenizer, model):
    batch = collator(tokenizer)(PAIRS[:1])
    mask = QueryLikelihoodLoss(attention_block=False).mask(model, batch)
    e = int(batch["embedding"][0])
    mask[0, 0, e, :e] = masks.causal(torch.ones(1, 2), torch.float32).min()
    inputs, logits = embedded(model, batch, mask)
    (gradient,) = torch.autograd.grad(logits[0, e + 1 :].square().sum(), inputs)
    assert (gradient[0, :e].norm(dim=-1) > 0).all()


def test_each_row_of_a_batch_is_blocked_at_its_own_embedding_token(tokenizer, model):
    """Rows of unequal lengths together: what one row predicts is what it predicts alone."""
    loss = QueryLikelihoodLoss(attention_block=True)
    batch = collator(tokenizer)(PAIRS)
    together = target_logits(model, batch, loss.mask(model, batch))
    alone = []
    for pair in PAIRS:
        single = collator(tokenizer)([pair])
        alone.append(target_logits(model, single, loss.mask(model, single)))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("loss_on", ["query", "all"])
def test_the_loss_does_not_depend_on_padding_side_order_or_micro_batches(tokenizer, model, block: bool, loss_on: str):
    recipe, loss = replace(CLEAN, loss_on=loss_on), QueryLikelihoodLoss(block)
    right = loss(model, collator(tokenizer, recipe)(PAIRS))
    left = loss(model, collator(tokenizer, recipe, padding_side="left")(PAIRS[::-1]))
    parts = [collator(tokenizer, recipe)(PAIRS[:1]), collator(tokenizer, recipe)(PAIRS[1:])]
    counts = [int(part["targets"].sum()) for part in parts]
    split = sum(loss(model, part) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    torch.testing.assert_close(left, split, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_eager_and_sdpa_give_the_same_loss_and_gradients(
    tokenizer, backbone_directory: Path, dtype: torch.dtype, tolerance: float
):
    batch, outcome = collator(tokenizer)(PAIRS), []
    for attention in ("eager", "sdpa"):
        llm = AutoModelForCausalLM.from_pretrained(backbone_directory, attn_implementation=attention, dtype=dtype)
        value = QueryLikelihoodLoss(attention_block=True)(llm, batch)
        value.backward()
        outcome.append([value.detach(), *(p.grad for p in llm.parameters())])
    for eager, sdpa in zip(*outcome, strict=True):
        torch.testing.assert_close(eager, sdpa, atol=tolerance, rtol=0)


def test_checkpointed_layers_give_the_same_gradients(tokenizer, model):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train().zero_grad()
        QueryLikelihoodLoss(attention_block=True)(model, collator(tokenizer)(PAIRS)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for without, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(without, checkpointed, atol=1e-6, rtol=0)


def test_a_boolean_mask_is_rejected(tokenizer, model):
    batch = collator(tokenizer)(PAIRS)
    with pytest.raises(ValueError, match="silently wrong"):
        target_logits(model, batch, QueryLikelihoodLoss(True).mask(model, batch) == 0)


def test_several_embedding_tokens_are_blocked_from_the_first(tokenizer):
    batch = collator(tokenizer, embedding_tokens=("eos", "eos", "<pad>"))([PAIRS[0]])
    e = int(batch["embedding"][0])
    assert batch["input_ids"][0, e : e + 3].tolist() == [2, 2, 3]
    assert batch["targets"][0].nonzero()[0] == e + 3


@pytest.mark.parametrize("ratio", [0.2, 0.6, 1.0])
def test_words_are_hidden_at_the_given_rate(ratio: float):
    text = " ".join(f"word{i}" for i in range(100_000))
    hidden = corrupt_words(text, ratio, random.Random("seed")).split(" ")
    assert len(hidden) == 100_000
    assert hidden.count("_") / 100_000 == pytest.approx(ratio, abs=0.01)
    assert all(was in ("_", f"word{i}") for i, was in enumerate(hidden))


@pytest.mark.parametrize("ratio", [0.0, 0.6])
def test_tokens_are_hidden_at_the_given_rate(ratio: float):
    hidden = corrupt_tokens(list(range(5, 100_005)), ratio, random.Random("seed"), hidden=4)
    assert len(hidden) == 100_000
    assert hidden.count(4) / 100_000 == pytest.approx(ratio, abs=0.01)


def test_ratio_zero_leaves_the_text_untouched():
    assert corrupt_words("  two \n\n lines\t", 0.0, random.Random(0)) == "  two \n\n lines\t"


def test_hidden_words_are_joined_by_single_spaces():
    assert corrupt_words("  two \n\n lines\t", 1.0, random.Random(0)) == "_ _"


@pytest.mark.parametrize("unit", ["word", "token"])
def test_the_same_draw_hides_the_same_and_another_draw_something_else(tokenizer, unit: str):
    collate = collator(tokenizer, replace(DEFAULT, corruption_unit=unit, passage_length=200))
    one, same, other = (collate([Pair("q", "long", draw)])["input_ids"].tolist() for draw in ("a", "a", "b"))
    assert one == same
    assert one != other


@pytest.mark.parametrize("unit", ["word", "token"])
def test_corruption_never_touches_prompt_or_query(tokenizer, unit: str):
    recipe = replace(DEFAULT, corruption_ratio=1.0, corruption_unit=unit)
    row = real_rows(collator(tokenizer, recipe)([PAIRS[0]]))[0]
    head = [tokenizer.bos_token_id, *plain(tokenizer, recipe.document.prefix.rstrip())]
    tail = [*plain(tokenizer, recipe.document.suffix), 2, *plain(tokenizer, "which river is old"), 2]
    assert row[: len(head)] == head
    assert row[-len(tail) :] == tail
    hidden = tokenizer.decode(row[len(head) : -len(tail)])
    assert set(hidden.replace(" ", "")) == {"_"}


@pytest.mark.parametrize("kind", released.TOKENIZERS)
def test_a_row_has_the_ids_that_the_released_code_gives(kind: str):
    lookup = {"p": Passage("p", released.TITLE, released.TEXT)}
    recipe = replace(QUERY_LIKELIHOOD["released"], corruption_ratio=0.0, passage_length=400)
    batch = PairCollator(recipe, EOS, released.TOKENIZERS[kind](), lookup)([Pair(released.QUERY, "p", "")])
    assert batch["input_ids"][0].tolist() == released.IDS[kind]["ql"]["ids"]


def write_lines(directory: Path, lines: list[str]) -> Path:
    (directory / "training_set.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory


def test_one_example_for_every_query_and_positive(tmp_path: Path):
    lines = [
        '{"query_id": "1", "query": "größe", "positives": [{"id": "a"}, {"id": "b"}], "negatives": []}\n',
        '{"query_id": "2", "query": "two", "positives": [{"id": "c"}], "negatives": []}\n',
    ]
    dataset = PairDataset(write_lines(tmp_path, lines), seed=17)
    assert [dataset[i][:2] for i in range(len(dataset))] == [("größe", "a"), ("größe", "b"), ("two", "c")]


def test_with_one_positive_a_query_is_one_example_whose_positive_changes_with_the_epochs(tmp_path: Path):
    lines = [
        f'{{"query_id": "{i}", "query": "q", "positives": [{{"id": "a"}}, {{"id": "b"}}], "negatives": []}}\n'
        for i in range(8)
    ]
    dataset, resumed = (PairDataset(write_lines(tmp_path, lines), 17, one_positive=True) for _ in range(2))
    epochs = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        epochs.append([dataset[i].passage for i in range(len(dataset))])
    resumed.set_epoch(3)
    assert [resumed[i].passage for i in range(len(resumed))] == epochs[-1]
    assert {len(passages) for passages in epochs} == {8}
    assert len({tuple(passages) for passages in epochs}) == 4
    assert {passage for passages in epochs for passage in passages} == {"a", "b"}


def test_every_epoch_hides_something_else_and_a_resumed_one_the_same(tmp_path: Path):
    lines = ['{"query_id": "1", "query": "q", "positives": [{"id": "a"}, {"id": "b"}], "negatives": []}\n']
    dataset, resumed = (PairDataset(write_lines(tmp_path, lines), seed=17) for _ in range(2))
    first = [dataset[i].draw for i in range(2)]
    dataset.set_epoch(1)
    resumed.set_epoch(1)
    second = [dataset[i].draw for i in range(2)]
    assert second == [resumed[i].draw for i in range(2)]
    assert len({*first, *second}) == 4
    assert PairDataset(tmp_path, seed=18)[0].draw not in first


def test_a_query_length_without_room_is_refused(tokenizer):
    with pytest.raises(InputError, match="query_length"):
        collator(tokenizer, replace(CLEAN, query_length=1))


def test_a_passage_length_without_room_is_refused(tokenizer):
    with pytest.raises(InputError, match="prompt alone takes"):
        collator(tokenizer, replace(CLEAN, passage_length=20))


def test_a_random_model_starts_at_the_entropy_of_its_vocabulary(tokenizer, backbone_directory: Path):
    llm = AutoModelForCausalLM.from_pretrained(backbone_directory, dtype=torch.float32)
    value = QueryLikelihoodLoss(attention_block=True)(llm, collator(tokenizer)(PAIRS))
    assert float(value) == pytest.approx(math.log(len(tokenizer)), abs=0.3)
