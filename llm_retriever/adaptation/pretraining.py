"""Pre-trains a backbone from nothing but the collection: a byte-level BPE tokenizer and a small Llama.

It lets the whole pipeline run, and adaptation and tuning show what they are worth, where no model can be downloaded. It is
not a replacement for a real one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.methods import METHODS, QUERY_LIKELIHOOD, Schedule
from llm_retriever.models.card import Lineage, Stage, weights_digest
from llm_retriever.models.prompts import passage_text, plain_ids
from llm_retriever.precision import resolve_precision
from llm_retriever.progress import Progress
from llm_retriever.settings import BackboneSettings
from llm_retriever.training.train import TrainingLog, TrainingRun, train

SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TOKENIZER_PASSAGES = 100_000
"""The vocabulary is learnt on so many passages, taken evenly from the collection."""
BLOCK = 256
UPDATES = 1000
"""Updates that a short training is dealt into, as long as one holds `BLOCKS_PER_UPDATE` blocks."""
BLOCKS_PER_UPDATE = (4, 64)
MICRO_BATCH = 16
POSITIONS = 1024
TEXTS_AT_ONCE = 512
Ids = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Size:
    """Shape of a Llama with tied embeddings.

    Attributes:
        hidden: Dimension of its states, and of the vectors.
        layers: Layers.
        heads: Attention heads.
        inner: Dimension inside the feed-forward layers.
        learning_rate: Peak learning rate of its pre-training.
    """

    hidden: int
    layers: int
    heads: int
    inner: int
    learning_rate: float


SIZES = {
    "tiny": Size(hidden=128, layers=4, heads=4, inner=344, learning_rate=4e-3),
    "small": Size(hidden=256, layers=6, heads=4, inner=688, learning_rate=2e-3),
    "medium": Size(hidden=512, layers=8, heads=8, inner=1376, learning_rate=1e-3),
}
"""With 8,192 tokens: 1.8, 6.8 and 29.5 million parameters."""


def pretrain_from_scratch(size: str, collection: Collection, directory: Path, settings: BackboneSettings) -> Lineage:
    """Makes a tokenizer and a Llama for a collection, pre-trains the Llama on the passages, and writes both.

    Args:
        size: `tiny`, `small` or `medium`.
        collection: Where the passages come from; queries are not looked at.
        directory: An existing directory; gets the Hugging Face files of model and tokenizer.
        settings: scratch_tokens (0 = the weights stay random), scratch_vocabulary, precision, seed.

    Returns:
        The lineage; the caller saves it.

    Raises:
        InputError: There is no such size, or the collection is empty.
    """
    if size not in SIZES:
        raise InputError(f"there is no scratch:{size}", field="source", hint=f"use scratch:{'|'.join(SIZES)}")
    if collection.passage_count == 0:
        raise InputError("has no passages", file=collection.directory, hint="prepare a collection that has some")
    tokenizer = train_tokenizer(collection, settings.scratch_vocabulary)
    model = untrained(SIZES[size], tokenizer, settings.seed)
    precision = resolve_precision(settings.precision)
    log = TrainingLog()
    if settings.scratch_tokens:
        stream = token_stream(collection, tokenizer, settings.scratch_tokens, settings.seed)
        log = _pretrain(model, stream, SIZES[size], settings, precision)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Lineage(f"scratch:{size}", digest=weights_digest(directory)).then(
        Stage(
            "pretraining",
            {
                **dataclasses.asdict(SIZES[size]),
                "tokens": log.examples * BLOCK,
                "vocabulary": len(tokenizer),
                "precision": precision,
                "seed": settings.seed,
            },
            data=collection.fingerprint,
            seconds=log.seconds,
            examples=log.examples,
        )
    )


def train_tokenizer(collection: Collection, vocabulary: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE vocabulary on the passages and the methods' prompts.

    The words of the prompts and `_`, which stands for hidden words, stand in front of every text that will be encoded:
    they are given often enough to become one token each.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sampled = min(collection.passage_count, TOKENIZER_PASSAGES)
    prompts = itertools.repeat(_prompt_texts(), max(100, sampled // 10))
    texts = itertools.chain(itertools.chain.from_iterable(prompts), _sampled_texts(collection, sampled))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL_TOKENS,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _prompt_texts() -> list[str]:
    templates = [
        w for recipes in METHODS.values() for method in recipes.values() for w in (method.query, method.passage)
    ]
    templates += [recipe.document for recipe in QUERY_LIKELIHOOD.values()]
    return [
        *sorted(
            {
                part
                for template in templates
                for part in (*template.prefix_pieces, template.suffix, template.between or "")
            }
        ),
        " _ _",
    ]


def _sampled_texts(collection: Collection, number: int) -> Iterator[str]:
    """Yields every n-th passage, so that about `number` of them come from all over the collection."""
    stride = max(1, collection.passage_count // number)
    progress = Progress("learn vocabulary", collection.passage_count, "passages")
    with progress:
        for passage in itertools.islice(collection.passages(), 0, None, stride):
            yield passage_text(passage.title, passage.text)
            progress.update(min(stride, collection.passage_count - progress.done))


def untrained(size: Size, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Returns a Llama with random weights, fp32, its vocabulary rounded up to a multiple of 64."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=-(-len(tokenizer) // 64) * 64,
            hidden_size=size.hidden,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_stream(collection: Collection, tokenizer: PreTrainedTokenizerFast, target: int, seed: int) -> Ids:
    """Tokenises passages one after the other, each as `<s> title text </s>`: about `target` ids, or all there are.

    Of a collection that holds more, a random part of the passages is taken.

    Returns:
        1-dimensional; 2 bytes an id where the vocabulary allows.
    """
    kind = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    share, draw = _share(collection, tokenizer, target), random.Random(seed)  # noqa: S311
    chosen = (passage for passage in collection.passages() if draw.random() < share)
    parts: list[Ids] = []
    with Progress("tokenise passages", round(collection.passage_count * share), "passages") as progress:
        while texts := [passage_text(p.title, p.text) for p in itertools.islice(chosen, TEXTS_AT_ONCE)]:
            for ids in plain_ids(tokenizer, texts):
                parts.append(np.array([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], dtype=kind))
            progress.update(len(texts))
    stream = np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
    return np.tile(stream, -(-(BLOCK + 1) // len(stream))) if 0 < len(stream) <= BLOCK else stream


def _share(collection: Collection, tokenizer: PreTrainedTokenizerFast, target: int) -> float:
    """Estimates the share of the passages that holds about `target` tokens, from the first ones."""
    texts = [passage_text(p.title, p.text) for p in itertools.islice(collection.passages(), TEXTS_AT_ONCE)]
    mean = sum(len(ids) + 2 for ids in plain_ids(tokenizer, texts)) / len(texts)
    return min(1.0, 1.05 * target / (mean * collection.passage_count))


class Blocks:
    """Stretches of a token stream from random places; the i-th is always the same for a seed.

    Args:
        stream: Token ids, more than a block of them.
        number: How many blocks there are to be.
        seed: Of the places.
    """

    def __init__(self, stream: Ids, number: int, seed: int) -> None:
        self.stream, self.number, self.seed = stream, number, seed

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, item: int) -> Tensor:
        """Returns int64 [BLOCK + 1]: the inputs and, shifted by one, their targets."""
        start = random.Random(f"{self.seed} {item}").randrange(len(self.stream) - BLOCK)  # noqa: S311
        return torch.from_numpy(self.stream[start : start + BLOCK + 1].astype(np.int64))


def _stacked(blocks: Sequence[Tensor]) -> dict[str, Tensor]:
    return {"input_ids": torch.stack(list(blocks))}


def next_token_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of every token given those before it in its block."""
    ids = batch["input_ids"]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def blocks_per_update(blocks: int) -> int:
    """Batch size of a training on so many blocks, a power of two: many small updates rather than few large ones."""
    least, most = BLOCKS_PER_UPDATE
    return min(most, max(least, 2 ** int(math.log2(max(1, blocks // UPDATES)))))


def _pretrain(
    model: LlamaForCausalLM, stream: Ids, size: Size, settings: BackboneSettings, precision: str
) -> TrainingLog:
    blocks = max(1, settings.scratch_tokens // BLOCK)
    per_update = blocks_per_update(blocks)
    schedule = Schedule(
        epochs=1,
        batch_size=per_update,
        micro_batch_size=min(per_update, MICRO_BATCH),
        learning_rate=size.learning_rate,
        warmup=0.1,
        weight_decay=0.1,
        gradient_checkpointing=False,
    )
    run = TrainingRun("pre-train", precision, seed=settings.seed, unit="blocks")
    return train(model, Blocks(stream, blocks, settings.seed), _stacked, next_token_loss, schedule, run)
