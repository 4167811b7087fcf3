"""LLM2Vec stage one: masked next-token prediction, which trains a causal LM to attend in both directions.

The collection is one long text, cut into blocks. Some tokens of a block are masked, and each is predicted at the position
before it, where a causal LM has learnt to predict it; the rest of the block is seen from both sides.

Source: BehnamGhader et al. (LLM2Vec, arXiv 2404.05961), section 2.1; masking as in Devlin et al. (BERT), section 3.1.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from llm_retriever import files
from llm_retriever.adaptation.objective import Objective, Task
from llm_retriever.adaptation.query_likelihood import mean_count
from llm_retriever.data.collection import CORPUS_FILE, Collection, Passage
from llm_retriever.errors import InputError
from llm_retriever.methods import MntpRecipe
from llm_retriever.models.batches import pad_id, padded
from llm_retriever.models.prompts import opening_ids, passage_text, plain_ids, symbol_ids
from llm_retriever.training.deepspeed import world_size
from llm_retriever.training.launching import STOP_FILE

IGNORED = -100
"""Label of a position that nothing is predicted for."""
PASSAGES_AT_ONCE = 1000
RUN, MARGIN = 20, 1.1
"""Consecutive passages that are drawn together, and how many more tokens than wanted the guess is to give."""
SHARED_FILE = "tokens.int32"
STALLED_SECONDS = 1800
"""The longest that a process waits for another one to read the collection and tokenise a thousand passages more."""
MASKED, RANDOM = 0.8, 0.1
"""Shares of the tokens to predict that BERT masks, and that it replaces by random ones; the others stay."""


class Block(NamedTuple):
    """A piece of the text, int32 [tokens], and the seed of what is masked in it this time."""

    ids: NDArray[np.int32]
    draw: tuple[int, int, int]


class BlockDataset:
    """The collection's passages, one after the other, as blocks of equal length.

    A block may begin and end inside a passage. What is left after the last whole block is left out, unless it is all there
    is. What is masked follows from (seed, epoch, item): every epoch masks something else, and a resumed run masks what the
    uninterrupted one would have masked. The ids lie on disk, 4 bytes a token, in a file that vanishes with the process.

    Args:
        tokens: As `token_stream` makes them.
        length: Tokens of a block.
        seed: Of the draws.

    Raises:
        InputError: There are no two tokens to make a block of.
    """

    def __init__(self, tokens: NDArray[np.int32], length: int, seed: int) -> None:
        if length < 2:
            raise InputError(f"{length} tokens are no block", field="passage_length", hint="use at least 16")
        if len(tokens) < 2:
            raise InputError("the collection holds no text to train on", hint="give the output of prepare_corpus")
        self.tokens, self.length, self.seed, self.epoch = tokens, min(length, len(tokens)), seed, 0

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def set_epoch(self, epoch: int) -> None:
        """Switches to the draws of an epoch, counted from 0."""
        self.epoch = epoch

    def __getitem__(self, item: int) -> Block:
        ids = np.array(self.tokens[item * self.length : (item + 1) * self.length])
        return Block(ids, (self.seed, self.epoch, item))


def token_stream(texts: Iterator[str], tokenizer: Any) -> NDArray[np.int32]:
    """Tokenises texts into one stream, int32 [tokens], memory-mapped from a nameless file.

    Each begins as it does when it is encoded, with the beginning-of-sequence token; where a tokenizer has none, each ends
    with the end-of-sequence token.

    The texts are tokenised a thousand at a time: memory is the same for every collection.
    """
    with tempfile.TemporaryFile() as file:
        _write_ids(texts, tokenizer, file)
        return _mapped(file)


def shared_stream(texts: Iterator[str], tokenizer: Any) -> NDArray[np.int32]:
    """Makes the stream of `token_stream` once on each machine; the other processes there read it.

    The ids lie in the launch's own directory, which vanishes with it. Every machine has a disk of its own.

    Raises:
        RuntimeError: The process that makes it has added nothing for `STALLED_SECONDS`.
    """
    if world_size() == 1 or STOP_FILE not in os.environ:
        return token_stream(texts, tokenizer)
    path = Path(os.environ[STOP_FILE]).with_name(SHARED_FILE)
    if os.environ["LOCAL_RANK"] == "0":
        with files.atomic_file(path) as draft, draft.open("wb") as file:
            _write_ids(texts, tokenizer, file)
    _wait_for(path)
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        return _mapped(file)


def _wait_for(path: Path) -> None:
    """Waits until a file is there; for long, if need be, but only while its draft grows."""
    size, since = 0, time.monotonic()
    while not path.exists():  # If the one that makes it ends with an error, torchrun ends this process.
        # Drafts may get their name just now.
        with contextlib.suppress(FileNotFoundError):
            grown = sum(draft.stat().st_size for draft in path.parent.glob(f".{path.name}.*"))
            size, since = (grown, time.monotonic()) if grown != size else (size, since)
        if time.monotonic() - since > STALLED_SECONDS:
            raise RuntimeError(f"{path}: nobody on this machine has written to it for {STALLED_SECONDS} s")
        time.sleep(0.1)


def _write_ids(texts: Iterator[str], tokenizer: Any, file: IO[bytes]) -> None:
    opening = opening_ids(tokenizer)
    closing = [] if opening else symbol_ids(tokenizer, ["eos"])
    while some := list(itertools.islice(texts, PASSAGES_AT_ONCE)):
        parted = itertools.chain.from_iterable((*opening, *ids, *closing) for ids in plain_ids(tokenizer, some))
        file.write(np.fromiter(parted, np.int32).tobytes())
    file.flush()


def _mapped(file: IO[bytes]) -> NDArray[np.int32]:
    """Maps an open file up to its present position."""
    return np.memmap(file, np.int32, mode="r") if file.tell() else np.empty(0, np.int32)


def chosen_passages(collection: Collection, tokenizer: Any, target: int | None, seed: int) -> Iterator[Passage]:
    """Picks passages of about `target` tokens, a little more rather than less, in the collection's order; None = all.

    Of a collection that holds more, runs of consecutive passages are drawn by seed. How much it holds is guessed from the
    tokens in the bytes of its first passages.
    """
    runs = -(-collection.passage_count // RUN)
    needed = runs if target is None else math.ceil(MARGIN * runs * target / _tokens(collection, tokenizer)) + 1
    drawn = set(random.Random(f"{seed} passages").sample(range(runs), min(runs, needed)))  # noqa: S311
    return (passage for number, passage in enumerate(collection.passages()) if number // RUN in drawn)


def _tokens(collection: Collection, tokenizer: Any) -> float:
    """Estimates the collection's tokens."""
    with (collection.directory / CORPUS_FILE).open("rb") as corpus:
        lines = list(itertools.islice(corpus, PASSAGES_AT_ONCE))
    rows = [json.loads(line) for line in lines]
    ids = plain_ids(tokenizer, [passage_text(row["title"], row["text"]) for row in rows])
    size = (collection.directory / CORPUS_FILE).stat().st_size
    return sum(len(row) + 1 for row in ids) * size / sum(map(len, lines)) if lines else 1.0


class BlockCollator:
    """Masks blocks.

    Every ordinary token is chosen with the same probability, each for itself; special tokens never are, nor is a block's
    first token, which has no position before it. A block with any token to choose has at least one chosen.

    Args:
        recipe: Probability, way of masking and mask token.
        tokenizer: The backbone's.

    Raises:
        InputError: The probability is 0, or the tokenizer has no single token for the mask.
    """

    def __init__(self, recipe: MntpRecipe, tokenizer: Any) -> None:
        if not 0 < recipe.corruption_ratio <= 1:
            raise InputError(
                f"nothing can be learnt with {recipe.corruption_ratio:g} of the tokens masked",
                field="corruption_ratio",
                hint="use a number above 0, such as 0.2",
            )
        self.recipe, self.mask, self.pad = recipe, mask_id(tokenizer, recipe.mask_token), pad_id(tokenizer)
        self.special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int32)
        self.ordinary = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int32), self.special)

    def __call__(self, blocks: Sequence[Block]) -> dict[str, Tensor]:
        """Makes a batch.

        Returns:
            `input_ids`, `attention_mask` (1 on real tokens) and `labels`, int64 [B, width]; a label is the token that
            stood there before it was masked, or -100 where nothing is predicted.
        """
        masked = [self._masked(block) for block in blocks]
        labels = padded([labels for _, labels in masked], IGNORED)["input_ids"]
        return {**padded([ids for ids, _ in masked], self.pad), "labels": labels}

    def _masked(self, block: Block) -> tuple[list[int], list[int]]:
        draw = np.random.default_rng(block.draw)
        chosen = self._chosen(block.ids, draw)
        labels = np.where(chosen, block.ids, IGNORED)
        kind = draw.random(len(block.ids))
        if self.recipe.masking == "all":
            kind[:] = 0
        drawn = draw.choice(self.ordinary, len(block.ids))
        ids = np.where(chosen & (kind < MASKED), self.mask, block.ids)
        ids = np.where(chosen & (kind >= MASKED) & (kind < MASKED + RANDOM), drawn, ids)
        return ids.tolist(), labels.tolist()

    def _chosen(self, ids: NDArray[np.int32], draw: np.random.Generator) -> NDArray[np.bool_]:
        usable = ~np.isin(ids, self.special)
        usable[0] = False
        chosen = usable & (draw.random(len(ids)) < self.recipe.corruption_ratio)
        if usable.any() and not chosen.any():
            chosen[draw.choice(np.flatnonzero(usable))] = True
        return chosen


def mask_id(tokenizer: Any, token: str) -> int:
    """Id of the mask: the token that is exactly `token`, without the space that a word begins with.

    SentencePiece vocabularies have two tokens for `_`, one with a space before it (`▁_`) and the bare one, which is
    taken, as in the released code. Where the bare one is not in the vocabulary under its own name, as a byte-level one
    may hold a character outside of ASCII, `token` is tokenised, and must give one known token.

    Raises:
        InputError: It gives none, or several.
    """
    known = tokenizer.get_vocab().get(token)
    if known is not None:
        return int(known)
    ids = plain_ids(tokenizer, [token])[0]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(
            f"the tokenizer has no single token for the mask {token!r}",
            file=getattr(tokenizer, "name_or_path", None),
            field="mask_token",
            hint="use a backbone whose tokenizer has one, or another adaptation",
        )
    return int(ids[0])


class MaskedLoss:
    """`-(1/|M|) Σ_{i∈M} log P(x_i | row i-1)`: the label of position i is read one position before it.

    The mean is over the masked tokens M of the micro-batches of all processes together. The model is bidirectional
    (`config.is_causal` False).
    """

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch as `BlockCollator` makes it, a scalar whose mean over the processes is the loss of all."""
        chosen = batch["labels"] != IGNORED
        labels = batch["labels"][chosen]
        # A batch of nothing but special tokens has no labels; its loss is then 0 and not 0/0.
        return self._total(model, batch, chosen, labels) / mean_count(labels).clamp_min(1e-6)

    def _total(self, model: Any, batch: dict[str, Tensor], chosen: Tensor, labels: Tensor) -> Tensor:
        """Sums over the labels; the language-model head runs only where one is read."""
        before = functional.pad(chosen[:, 1:], (0, 1), value=False)
        outputs = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            logits_to_keep=before,
            use_cache=False,
        )
        return functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")


def objective(task: Task) -> Objective:
    """Builds masked next-token prediction on all passages of the collection."""
    recipe = task.recipe
    assert isinstance(recipe, MntpRecipe)  # noqa: S101
    collate, joiner = BlockCollator(recipe, task.tokenizer), task.method.title_joiner
    collection, schedule = Collection.open(task.collection), recipe.schedule
    target = schedule.batch_size * schedule.max_steps * recipe.passage_length if schedule.max_steps > 0 else None
    passages = chosen_passages(collection, task.tokenizer, target, task.seed)
    texts = (passage_text(p.title, p.text, joiner) for p in passages)
    dataset = BlockDataset(shared_stream(texts, task.tokenizer), recipe.passage_length, task.seed)
    return Objective(dataset, collate, MaskedLoss())
