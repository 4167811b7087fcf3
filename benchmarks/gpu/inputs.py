"""Inputs without a network: texts of natural lengths, a collection with judgements, and models of random weights."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection, Passage
from llm_retriever.data.training_set import Negative, TrainingExample, write_training_set
from llm_retriever.methods import METHODS
from llm_retriever.models.card import Lineage, save_lineage, weights_digest
from llm_retriever.settings import CorpusSettings

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "ra", "lo", "ke", "st")]
"""Each becomes one token, with the space before it."""
MEDIAN, SPREAD, LONGEST = 70, 0.5, 180
"""Words of a passage: log-normal, about as the passages of MS MARCO."""
NEGATIVES = 8
SMALL = {"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 1024}


class Shape(NamedTuple):
    """A model's sizes, and how much of it fits.

    Attributes:
        config: Of transformers.
        queries: Of a contrastive update, with 8 passages each.
        rows: Of an update of stage one.
        checkpointed: Whether stage one needs gradient checkpointing to fit.
    """

    config: Any
    queries: int
    rows: int
    checkpointed: bool


def shapes(tiny: bool) -> dict[str, Shape]:
    """The shapes that are measured; tiny = the same architectures in small."""
    llama = {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
    llama |= {"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096}
    qwen = {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
    qwen |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096}
    one, two = (SMALL, SMALL) if tiny else (llama, qwen)
    few, many = (2, 4) if tiny else (4, 16)
    return {
        "Llama-2-7B": Shape(LlamaConfig(**one), few, 2 * few, checkpointed=True),
        "Qwen3-0.6B": Shape(Qwen3Config(**two, tie_word_embeddings=True), many, 2 * many, checkpointed=False),
    }


def passages(number: int, median: int = MEDIAN) -> list[Passage]:
    """Distinct passages of natural lengths."""
    draw = random.Random(17)
    lengths = [round(draw.lognormvariate(math.log(median), SPREAD)) for _ in range(number)]
    texts = [" ".join(draw.choices(WORDS, k=min(LONGEST, max(6, length)))) for length in lengths]
    return [Passage(f"p{i}", "", text) for i, text in enumerate(texts)]


def query(passage: Passage) -> str:
    """A question that a passage answers: some of its words."""
    return f"which {' '.join(passage.text.split()[:5])}"


def tokenizer() -> Any:
    """A byte-level BPE tokenizer that knows the words of the texts and of the prompts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [
        " ".join((*side.prefix_pieces, side.suffix))
        for r in METHODS.values()
        for side in (r["default"].query, r["default"].passage)
    ]
    made.train_from_iterator([passage.text for passage in passages(200)] + 20 * prompts, trainer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def random_model(config: Any, device: str, *, head: bool, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model of random weights, made where it is used: the large one would take minutes elsewhere."""
    torch.manual_seed(0)
    kind: Any = AutoModelForCausalLM if head else AutoModel
    with torch.device(device):
        return kind.from_config(config, dtype=dtype)


def write_backbone(directory: Path) -> Path:
    """Writes a tiny random Llama as fetch_backbone leaves it."""
    words = tokenizer()
    config = LlamaConfig(**SMALL | {"vocab_size": len(words)}, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    random_model(config, "cpu", head=True, dtype=torch.float32).save_pretrained(directory)
    words.save_pretrained(directory)
    save_lineage(directory, Lineage(source="random", digest=weights_digest(directory)))
    return directory


def write_collection(directory: Path, number: int = 64) -> Path:
    """Writes a collection with the splits train and test, as prepare_corpus leaves it."""
    source, rows = directory.with_name("source"), passages(number, median=20)
    (source / "qrels").mkdir(parents=True)
    (source / "corpus.jsonl").write_text(_lines({"_id": row.id, "text": row.text} for row in rows))
    (source / "queries.jsonl").write_text(_lines({"_id": f"q{row.id}", "text": query(row)} for row in rows))
    for split, part in (("train", rows[: number // 2]), ("test", rows[number // 2 :])):
        judged = "".join(f"q{row.id}\t{row.id}\t1\n" for row in part)
        (source / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    preparation.prepare(CorpusSettings(uri=str(source)), directory)
    return directory


def _lines(rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def write_negatives(collection: Path, directory: Path) -> Path:
    """Writes a training set as mine_negatives leaves it; the negatives are drawn, not mined."""
    source, draw = Collection.open(collection), random.Random(17)
    ids, texts, judged = [p.id for p in source.passages()], source.queries("train"), source.qrels("train")
    examples = []
    for name, text in texts.items():
        others = draw.sample([i for i in ids if i not in judged[name]], NEGATIVES)
        found = tuple(Negative(other, "random", rank, -float(rank)) for rank, other in enumerate(others, 1))
        examples.append(TrainingExample(name, text, tuple(judged[name]), found))
    write_training_set(directory, examples, {"source": "random"}, {"queries": len(examples)}, source)
    return directory
