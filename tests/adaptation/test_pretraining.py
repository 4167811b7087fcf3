"""A backbone from scratch: its vocabulary suits the methods, it learns the collection, and it can be made again."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_retriever.adaptation import pretraining
from llm_retriever.adaptation.pretraining import BLOCK, Blocks, next_token_loss, pretrain_from_scratch, token_stream
from llm_retriever.adaptation.query_likelihood import corrupt_words
from llm_retriever.data.collection import Collection
from llm_retriever.data.preparation import prepare
from llm_retriever.errors import InputError
from llm_retriever.methods import METHODS, QUERY_LIKELIHOOD
from llm_retriever.models.card import weights_digest
from llm_retriever.models.prompts import plain_ids
from llm_retriever.settings import BackboneSettings, CorpusSettings
from tests.conftest import write_beir

QUICK = BackboneSettings(source="scratch:tiny", scratch_tokens=16_384, scratch_vocabulary=600, precision="fp32")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    root = tmp_path_factory.mktemp("pretraining")
    prepare(CorpusSettings(uri=str(write_beir(root / "source", number=400))), root / "collection")
    return Collection.open(root / "collection")


@pytest.fixture(scope="module")
def tokenizer(collection: Collection):
    return pretraining.train_tokenizer(collection, 600)


@pytest.fixture(scope="module")
def made(collection: Collection, tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("scratch")
    return directory, pretrain_from_scratch("tiny", collection, directory, QUICK)


def loss_of(model, tokenizer, collection: Collection) -> float:
    stream = token_stream(collection, tokenizer, 10**6, seed=0)
    blocks = Blocks(stream, 8, seed=99)
    with torch.no_grad():
        batch = {"input_ids": torch.stack([blocks[i] for i in range(8)])}
        return next_token_loss(model.eval(), batch).item()


def test_it_is_a_causal_lm_with_a_fast_tokenizer_that_loads(made):
    directory, _ = made
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    assert tokenizer.is_fast
    named = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert named == ("<unk>", "<s>", "</s>", "<pad>")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size >= len(tokenizer)
    assert model.config.tie_word_embeddings
    assert sorted(path.suffix for path in directory.iterdir()).count(".safetensors") == 1


def test_it_has_learnt_the_collection(made, collection: Collection):
    directory, _ = made
    tokenizer = AutoTokenizer.from_pretrained(directory)
    trained = loss_of(AutoModelForCausalLM.from_pretrained(directory), tokenizer, collection)
    untrained = loss_of(pretraining.untrained(pretraining.SIZES["tiny"], tokenizer, 17), tokenizer, collection)
    assert untrained == pytest.approx(math.log(len(tokenizer)), abs=0.3)
    assert trained < untrained - 1.5


def test_the_lineage_names_size_data_and_tokens(made, collection: Collection):
    directory, lineage = made
    (stage,) = lineage.stages
    assert lineage.source == "scratch:tiny"
    assert lineage.digest == weights_digest(directory)
    assert stage.stage == "pretraining"
    assert stage.data == collection.fingerprint
    assert stage.settings["tokens"] == 16_384
    assert stage.settings["vocabulary"] == 600
    assert stage.seconds > 0


def test_the_same_seed_gives_the_same_model_and_tokenizer(collection: Collection, tmp_path: Path):
    settings = [QUICK.__class__(**{**QUICK.__dict__, "scratch_tokens": 1024, "seed": seed}) for seed in (3, 3, 4)]
    digests, vocabularies = [], []
    for i, setting in enumerate(settings):
        (tmp_path / str(i)).mkdir()
        digests.append(pretrain_from_scratch("tiny", collection, tmp_path / str(i), setting).digest)
        vocabularies.append((tmp_path / str(i) / "tokenizer.json").read_bytes())
    assert digests[0] == digests[1] != digests[2]
    assert len(set(vocabularies)) == 1


def test_without_tokens_the_weights_stay_random(collection: Collection, tmp_path: Path):
    settings = BackboneSettings(scratch_tokens=0, scratch_vocabulary=400)
    lineage = pretrain_from_scratch("tiny", collection, tmp_path, settings)
    assert lineage.stages[0].settings["tokens"] == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.hidden_size == 128


@pytest.mark.parametrize(("size", "millions"), [("tiny", 1.84), ("small", 6.8), ("medium", 29.5)])
def test_sizes_are_as_documented(tokenizer, size: str, millions: float):
    class Vocabulary:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 3

        def __len__(self) -> int:
            return 8192

    with torch.device("meta"):
        model = pretraining.untrained(pretraining.SIZES[size], Vocabulary(), 0)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_hidden_words_are_one_token_each(tokenizer):
    assert len(plain_ids(tokenizer, ["_ _ _"])[0]) == 3
    text = "The river in the north is old"
    assert len(plain_ids(tokenizer, [corrupt_words(text, 1.0, random.Random(0))])[0]) == 7


def test_words_of_the_prompts_are_one_token_each(tokenizer):
    templates = [w for recipes in METHODS.values() for m in recipes.values() for w in (m.query, m.passage)]
    templates += [recipe.document for recipe in QUERY_LIKELIHOOD.values()]
    for template in templates:
        for part in (*template.prefix_pieces, template.suffix):
            pieces = len(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(part))
            assert len(plain_ids(tokenizer, [part])[0]) == pieces


@pytest.mark.parametrize("text", ["naïve 你好 🙂", "tabs\tand\n\nlines", "def f(x): return x**2  # ²", "\x00\x7f"])
def test_any_text_survives_the_tokenizer(tokenizer, text: str):
    ids = plain_ids(tokenizer, [text])[0]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_the_stream_is_every_passage_between_its_special_tokens(collection: Collection, tokenizer):
    stream = token_stream(collection, tokenizer, 10**6, seed=0)
    assert stream.dtype == np.uint16
    texts = tokenizer.decode(stream.tolist()).split("</s>")
    expected = [f"{p.title} {p.text}" if p.title else p.text for p in collection.passages()]
    assert [text.removeprefix("<s>") for text in texts[:-1]] == expected


def test_of_a_larger_collection_a_random_part_from_everywhere_is_taken(collection: Collection, tokenizer):
    every, part = (token_stream(collection, tokenizer, wanted, seed=0) for wanted in (10**6, 3000))
    assert 2000 < len(part) < 4500 < len(every)
    taken = set(tokenizer.decode(part.tolist()).split("</s>"))
    places = [i for i, t in enumerate(tokenizer.decode(every.tolist()).split("</s>")[:-1]) if t in taken]
    assert min(places) < 100
    assert max(places) > 300


def test_blocks_come_from_random_places_and_are_always_the_same():
    blocks, again = (Blocks(np.arange(5000, dtype=np.uint16), 40, seed) for seed in (1, 1))
    starts = [int(blocks[i][0]) for i in range(len(blocks))]
    assert starts == [int(again[i][0]) for i in range(40)]
    assert len(set(starts)) > 30
    assert all(blocks[i].tolist() == list(range(start, start + BLOCK + 1)) for i, start in enumerate(starts))


def test_a_collection_shorter_than_a_block_is_repeated(tokenizer, tmp_path: Path):
    source = write_beir(tmp_path / "source", number=2)
    prepare(CorpusSettings(uri=str(source), heldout_queries=0), tmp_path / "collection")
    stream = token_stream(Collection.open(tmp_path / "collection"), tokenizer, 10**6, seed=0)
    assert len(stream) > BLOCK
    assert Blocks(stream, 1, 0)[0].shape == (BLOCK + 1,)


@pytest.mark.parametrize(("blocks", "expected"), [(1, 4), (3900, 4), (23_000, 16), (100_000, 64), (10**7, 64)])
def test_a_short_training_has_many_small_updates(blocks: int, expected: int):
    assert pretraining.blocks_per_update(blocks) == expected


def test_an_unknown_size_is_refused(collection: Collection, tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no scratch:huge; use scratch:tiny\|small\|medium"):
        pretrain_from_scratch("huge", collection, tmp_path, QUICK)


def test_the_loss_predicts_each_token_from_those_before(made):
    directory, _ = made
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = torch.randint(5, 600, (2, 12))
    with torch.no_grad():
        logits = model(input_ids=ids).logits.log_softmax(-1)
        expected = -sum(logits[b, i, ids[b, i + 1]] for b in range(2) for i in range(11)) / 22
        torch.testing.assert_close(next_token_loss(model, {"input_ids": ids}), expected, atol=1e-5, rtol=0)


def test_the_model_is_described_without_machine_paths(made):
    directory, _ = made
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        assert str(Path.home()) not in json.dumps(json.loads((directory / name).read_text()))
