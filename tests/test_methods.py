"""The table of methods: what its rows consist of, and that each words texts and is read out as it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llm_retriever import methods
from llm_retriever.errors import InputError
from llm_retriever.methods import (
    ADAPTATIONS,
    ALL_PROJECTIONS,
    EBAE_EBAR,
    METHODS,
    NEW_TOKENS,
    QUERY_LIKELIHOOD,
    ContrastiveRecipe,
    Lora,
    Method,
    PromptTemplate,
    Schedule,
    descriptor,
    overridden,
    with_embedding,
    with_read_out,
)
from llm_retriever.models.prompts import PromptEncoder
from llm_retriever.settings import AdaptationSettings, TuningSettings, parameters
from tests.models.test_prompts import ROWS, TEXTS, byte_level, plain, prompt_length, sentencepiece_like, without_spaces

RECIPES = {"default", "paper", "released"}


def test_every_method_and_adaptation_has_every_recipe_under_its_own_name():
    for name, recipes in METHODS.items():
        assert set(recipes) == RECIPES
        assert {(row.name, row.recipe) for row in recipes.values()} == {(name, recipe) for recipe in RECIPES}
    assert all(set(recipes) == RECIPES for recipes in ADAPTATIONS.values())


def test_the_settings_offer_exactly_the_methods_of_the_table():
    assert set(parameters(TuningSettings)["method"].choices) == set(METHODS)
    assert set(parameters(AdaptationSettings)["method"].choices) == {"none", "mntp+simcse", *ADAPTATIONS}
    assert set(parameters(TuningSettings)["recipe"].choices) == RECIPES


def test_every_adaptation_is_for_a_method_of_the_table():
    assert {descriptor(name).tuned_for for name in ADAPTATIONS} <= set(METHODS)


def test_every_setting_that_leaves_something_to_the_recipe_is_in_a_recipe():
    """Or it would be taken in silence."""
    known = {f.name for recipes in ADAPTATIONS.values() for f in fields(recipes["default"])}
    known |= {f.name for f in fields(Schedule)} | {f"lora_{f.name}" for f in fields(Lora)}
    tuning = known | {f.name for part in (Method, ContrastiveRecipe) for f in fields(part)}
    for settings, names in ((AdaptationSettings, known), (TuningSettings, tuning)):
        left = {n for n, p in parameters(settings).items() if "the recipe's" in p.help}
        assert left <= names, left - names
        assert "learning_rate" in left


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_stage_one_of_llm_ql_words_passages_as_stage_two_does(recipe: str):
    """But for white space, which the released code has more of in stage two, and the end-of-sequence token."""
    document, passage = QUERY_LIKELIHOOD[recipe].document, METHODS["llm-ql"][recipe].passage
    assert (document.prefix.split(), document.suffix.split()) == (passage.prefix.split(), passage.suffix.split())
    assert document.tokenise == passage.tokenise == "whole"


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_two_prompts_of_llama2vec_begin_alike_and_have_tokens_of_their_own(recipe: str):
    row = METHODS["llama2vec"][recipe]
    assert row.query.prefix == row.passage.prefix
    assert row.query.suffix != row.passage.suffix
    new = {*row.query.embedding_tokens, *row.passage.embedding_tokens} - {"eos"}
    assert new <= set(NEW_TOKENS)
    assert not set(row.query.embedding_tokens) & set(row.passage.embedding_tokens) - {"eos"}
    assert len(new) == (0 if recipe == "paper" else 16)


def test_only_llm2vec_is_bidirectional():
    assert {row.name for row in ROWS.values() if row.attention == "bidirectional"} == {"llm2vec"}
    assert all(row.attention == "bidirectional" for row in METHODS["llm2vec"].values())


def test_every_row_scores_by_cosine_over_a_positive_temperature():
    for row in ROWS.values():
        assert row.normalise
        assert 0 < row.tuning.temperature <= 1
        assert row.tuning.passages_per_query >= 2
        assert set(row.tuning.lora.targets) <= set(ALL_PROJECTIONS)


def test_a_batch_divides_into_its_micro_batches():
    schedules = [row.tuning.schedule for row in ROWS.values()]
    schedules += [recipe.schedule for recipes in ADAPTATIONS.values() for recipe in recipes.values()]
    assert all(s.batch_size % s.micro_batch_size == 0 for s in schedules)
    assert all(s.learning_rate > 0 and s.epochs > 0 and s.warmup >= 0 for s in schedules)


def test_the_defaults_are_tuned_alike_so_that_methods_can_be_compared():
    assert len({recipes["default"].tuning for recipes in METHODS.values()}) == 1
    shared = METHODS["llm-ql"]["default"].tuning
    assert (shared.temperature, shared.passages_per_query, shared.schedule.batch_size) == (0.01, 16, 128)
    assert (shared.lora, shared.schedule.learning_rate, shared.schedule.epochs) == (Lora(32, 64, 0.1), 1e-4, 1)


def test_repllama_as_printed_has_no_adapter_on_the_keys():
    paper, released = METHODS["repllama"]["paper"], METHODS["repllama"]["released"]
    assert set(ALL_PROJECTIONS) - set(paper.tuning.lora.targets) == {"k_proj"}
    assert "k_proj" in released.tuning.lora.targets
    assert (paper.query.prefix, released.query.prefix) == ("query: ", "Query: ")
    assert (paper.query_length, paper.passage_length, released.passage_length) == (31, 195, 156)


def test_released_recipes_plan_their_learning_rate_as_the_scripts_do():
    schedules = {name: recipes["released"].tuning.schedule for name, recipes in METHODS.items()}
    schedules |= {name: recipes["released"].schedule for name, recipes in ADAPTATIONS.items()}
    logarithmic = {name for name, schedule in schedules.items() if schedule.warmup_shape == "logarithmic"}
    assert logarithmic == {"ql", "ebae_ebar", "llm-ql", "llama2vec", "repllama"}
    assert {name for name, s in schedules.items() if s.decay_epochs} == {"mntp", "simcse", "llm2vec"}
    assert schedules["llama2vec"].batch_size == 8


def test_a_number_of_epochs_ends_a_decay_that_was_planned_over_others():
    found = overridden(ADAPTATIONS["mntp"]["released"], AdaptationSettings(epochs=2)).schedule
    assert (found.epochs, found.max_steps, found.decay_epochs) == (2, -1, 0)


def test_where_paper_and_code_of_llm_ql_disagree_the_rows_do():
    paper, released = METHODS["llm-ql"]["paper"], METHODS["llm-ql"]["released"]
    assert (paper.tuning.temperature, released.tuning.temperature) == (1.0, 0.01)
    assert "answers the query. Query: " in paper.query.prefix
    assert "answer the query.\nQuery:  " in released.query.prefix
    printed, run, default = (QUERY_LIKELIHOOD[recipe] for recipe in ("paper", "released", "default"))
    assert [(r.loss_on, r.corruption_unit) for r in (printed, run, default)] == [
        ("query", "token"),
        ("all", "word"),
        ("query", "word"),
    ]
    assert (run.document.suffix, default.document.suffix) == ("\nSummarization: ", "\nSummarization:")


def test_where_paper_and_code_of_llama2vec_disagree_the_rows_do():
    paper, released = EBAE_EBAR["paper"], EBAE_EBAR["released"]
    assert (paper.loss, paper.ar_weight, paper.bag_weight, paper.clean_targets) == ("paper", 0, 1, False)
    assert (released.loss, released.ar_weight, released.bag_weight, released.clean_targets) == (
        "released",
        1,
        0.05,
        True,
    )
    assert (METHODS["llama2vec"]["paper"].pooling, METHODS["llama2vec"]["released"].pooling) == ("last", "embedding")


@pytest.mark.parametrize(
    ("variant", "tokens", "pooling"),
    [
        ("eos", ("eos",), "last"),
        ("eos4", ("eos",) * 4, "embedding"),
        ("new4", ("<s1>", "<s2>", "<s3>", "<s4>"), "embedding"),
    ],
)
def test_another_embedding_changes_the_tokens_of_both_sides_and_the_pooling(variant, tokens, pooling):
    row = METHODS["llm-ql"]["default"]
    other = with_embedding(row, variant)
    assert other.query.embedding_tokens == other.passage.embedding_tokens == tokens
    assert other.pooling == pooling
    back = replace(other, query=row.query, passage=row.passage, pooling=row.pooling)
    assert back == with_embedding(row, "") == row


def test_a_read_out_chooses_the_prompts_of_both_sides():
    row = METHODS["llama2vec"]["default"]
    sides = {name: with_read_out(row, name) for name in ("", "n2s", "s2s", "n2n")}
    assert sides[""] == sides["n2s"] == row
    assert sides["s2s"].query == sides["s2s"].passage == row.passage
    assert sides["n2n"].query == sides["n2n"].passage == row.query


def test_settings_override_a_row_through_all_its_parts_and_nothing_else():
    row = METHODS["echo"]["default"]
    changed = overridden(row, TuningSettings(temperature=0.5, lora_rank=4, epochs=3.0, gradient_checkpointing="off"))
    assert (changed.tuning.temperature, changed.tuning.lora.rank, changed.tuning.schedule.epochs) == (0.5, 4, 3)
    assert changed.tuning.schedule.gradient_checkpointing is False
    schedule = replace(changed.tuning.schedule, epochs=1, gradient_checkpointing=True)
    tuning = replace(changed.tuning, temperature=0.01, lora=Lora(), schedule=schedule)
    assert replace(changed, tuning=tuning) == row == overridden(row, TuningSettings())


@pytest.mark.parametrize("recipe", ["default", "released"])
@pytest.mark.parametrize("name", METHODS)
def test_the_page_on_methods_prints_every_wording(name: str, recipe: str):
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    page = page.replace("⏎", "\n").replace("␠", " ")
    for template in (METHODS[name][recipe].query, METHODS[name][recipe].passage):
        assert all(
            piece in page for piece in ("".join(template.prefix_pieces), template.between or "", template.suffix)
        )


@pytest.mark.parametrize(("name", "recipe", "said"), [("bm25", "paper", "no method"), ("echo", "best", "no recipe")])
def test_what_is_not_in_the_table_is_refused(name: str, recipe: str, said: str):
    with pytest.raises(InputError, match=said):
        methods.method(name, recipe)


@pytest.fixture(scope="module")
def extended_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that has the new embedding tokens."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": list(NEW_TOKENS)}, replace_extra_special_tokens=False)
    return tokenizer


def closing_ids(tokenizer: PreTrainedTokenizerFast, template: PromptTemplate) -> list[int]:
    return [2 if token == "eos" else tokenizer.convert_tokens_to_ids(token) for token in template.embedding_tokens]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("side", ["query", "passage"])
def test_suffix_and_own_embedding_tokens_survive_every_length(
    extended_tokenizer: PreTrainedTokenizerFast, name: str, side: str
):
    row = ROWS[name]
    template, closing = getattr(row, side), closing_ids(extended_tokenizer, getattr(row, side))
    tail = [*plain(extended_tokenizer, template.suffix), *closing]
    least = prompt_length(extended_tokenizer, template) + len(closing) + 1
    for length in (least, least + 1, least + 9, getattr(row, f"{side}_length") + 40):
        encoder = PromptEncoder(extended_tokenizer, template, length)
        for text, ids in zip(TEXTS, encoder.batch(TEXTS), strict=True):
            assert len(ids) <= length, (text, length)
            assert ids[len(ids) - len(closing) :] == closing, (text, length)
            assert sum(ids.count(token) for token in set(closing)) == len(closing), (text, length)
            assert template.tokenise == "whole" or ids[len(ids) - len(tail) :] == tail, (text, length)
            shown = without_spaces(extended_tokenizer.decode(ids[1 : len(ids) - len(closing)]))
            assert shown.endswith(without_spaces(template.suffix)), (text, length)


@pytest.mark.parametrize("recipe", METHODS["echo"])
@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_two_copies_are_cut_alike(make: Callable[[], PreTrainedTokenizerFast], recipe: str):
    tokenizer = make()
    template = METHODS["echo"][recipe].passage
    head, between = (plain(tokenizer, piece) for piece in (template.prefix, template.between))
    prompt = 1 + len(head) + len(between) + len(template.embedding_tokens)
    for length in (prompt + 2, prompt + 3, prompt + 40, 3000):
        encoder, room = PromptEncoder(tokenizer, template, length), (length - prompt) // 2
        for text, ids in zip(TEXTS, encoder.batch(TEXTS), strict=True):
            copy = plain(tokenizer, text.strip())[:room]
            assert ids == [1, *head, *copy, *between, *copy, *closing_ids(tokenizer, template)]


def pooled_ids(tokenizer: PreTrainedTokenizerFast, row: Method, text: str) -> list[int]:
    encoder = PromptEncoder(tokenizer, row.passage, row.passage_length)
    ids = encoder.ids(text)
    return ids[len(ids) - encoder.pooled(ids, row.pooling) :]


def test_the_vector_is_read_at_the_tokens_that_the_method_names(extended_tokenizer: PreTrainedTokenizerFast):
    text = "The river in the north is old."
    body = plain(extended_tokenizer, text)
    read = {name: pooled_ids(extended_tokenizer, row, text) for name, row in ROWS.items()}
    assert read["llm-ql default"] == read["repllama paper"] == read["llama2vec paper"] == [2]
    assert read["llama2vec default"] == closing_ids(extended_tokenizer, ROWS["llama2vec default"].passage)
    assert len(read["llama2vec released"]) == 8
    assert read["llm2vec paper"] == body
    assert read["llm2vec default"] == read["echo default"] == body[-1:]
    assert read["echo paper"] == [*body, 2]
    assert extended_tokenizer.decode(read["summarize paper"]).strip().endswith('"')


def test_a_mean_over_the_text_of_an_empty_text_is_that_of_its_last_token(
    extended_tokenizer: PreTrainedTokenizerFast,
):
    assert pooled_ids(extended_tokenizer, METHODS["llm2vec"]["paper"], "") == [1]


@pytest.mark.parametrize(("name", "pooling"), [("llm2vec default", "embedding"), ("llm-ql default", "mean-ish")])
def test_a_pooling_that_a_wording_has_no_tokens_for_is_an_error(
    extended_tokenizer: PreTrainedTokenizerFast, name: str, pooling: str
):
    encoder = PromptEncoder(extended_tokenizer, ROWS[name].passage, 300)
    with pytest.raises(ValueError, match=f"pooling '{pooling}' does not go with"):
        encoder.pooled(encoder.ids("river"), pooling)


def test_two_copies_need_pieces_to_be_cut_alike():
    with pytest.raises(ValueError, match="tokenised as pieces"):
        replace(METHODS["echo"]["default"].query, tokenise="whole")


def test_epochs_that_are_given_count_more_than_the_recipes_number_of_updates():
    row = ADAPTATIONS["mntp"]["default"]
    assert row.schedule.max_steps == 1000
    assert overridden(row, AdaptationSettings(epochs=2.0)).schedule.max_steps == -1
    assert overridden(row, AdaptationSettings(epochs=2.0, max_steps=7)).schedule.max_steps == 7
