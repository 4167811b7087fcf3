"""Encodes a corpus, or one part of it: finished shards are kept, the missing ones are shared out among processes."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from llm_retriever import files
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.interface import Encoder
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.indexing.encode import WINDOW_PASSAGES, Cut, share
from llm_retriever.indexing.shard_store import Place, place_of
from llm_retriever.indexing.shards import FORMAT, Shard
from llm_retriever.indexing.vector_reuse import Earlier
from llm_retriever.indexing.workers import Load, Work, encode_in_processes, encoded_shards, resolved_processes
from llm_retriever.models.card import RetrieverCard
from llm_retriever.progress import Progress
from llm_retriever.settings import EncodingSettings, PartSettings, is_unset

Settings = TypeVar("Settings", bound=EncodingSettings)

PART_FILE = "part.json"


def encode_corpus(
    encoder: Encoder,
    collection: Collection,
    place: Place,
    settings: EncodingSettings,
    *,
    load: Load | None = None,
    part: int = 0,
    parts: int = 1,
    earlier: Earlier | None = None,
) -> dict[int, Shard]:
    """Writes the vectors of all passages, or of one part of them, to a place as shards.

    What an earlier run finished there is kept. The bytes depend neither on the number of parts or processes nor on what
    was interrupted where (see `llm_retriever.indexing.encode`).

    Args:
        encoder: Encodes.
        collection: Its passages keep their order.
        place: Belongs to this encoder, collection and resolved settings alone.
        settings: As `resolved`.
        load: Loads the same encoder in other processes; without it this process alone encodes.
        part: Number of the part, from 0.
        parts: Number of parts.
        earlier: An index from which the vectors of unchanged passages are taken.

    Returns:
        The part's shards, by number.

    Raises:
        InputError: A vector is not finite in the stored type, the collection has not as many passages as it says, or
            there are more processes than GPUs.
        RuntimeError: A process failed otherwise.
    """
    if not collection.passage_count:
        raise InputError("there are no passages", file=collection.directory)
    cut = Cut(collection.passage_count, settings.shard_passages, WINDOW_PASSAGES)
    numbers = share(range(cut.shards), part, parts)
    finished = {number: place.finished(number, len(cut.shard(number))) for number in numbers}
    shards = {number: shard for number, shard in finished.items() if shard is not None}
    missing = tuple(number for number in numbers if number not in shards)
    if missing:
        work = Work(collection.directory, cut, missing, place, settings, earlier)
        total = sum(len(cut.shard(number)) for number in numbers)
        shards |= _encoded(encoder, load, collection, work, total)
    return dict(sorted(shards.items()))


def _encoded(encoder: Encoder, load: Load | None, collection: Collection, work: Work, total: int) -> dict[int, Shard]:
    """Encodes the missing shards, with progress over all processes."""
    processes = resolved_processes(work.settings.processes, len(work.shards)) if load else 1
    done = total - sum(len(work.cut.shard(number)) for number in work.shards)
    started, sum_of_tokens = time.monotonic(), 0
    with Progress("encode passages", total, "passages", done=done) as progress:

        def report(passages: int, tokens: int) -> None:
            nonlocal sum_of_tokens
            sum_of_tokens += tokens
            rate = sum_of_tokens / max(time.monotonic() - started, 1e-9)
            progress.update(passages, **{"tokens/s": f"{rate:,.0f}"})

        if load and processes > 1:
            return encode_in_processes(encoder, load, work, processes, report)
        return encoded_shards(encoder, collection, work, report)


def encode_part(retriever: Path, collection: Path, part: Path, settings: PartSettings) -> dict[str, Any]:
    """Encodes every `parts`-th shard of a collection, from the `part`-th on, straight to `shards_uri`.

    `build_index` with the same inputs and settings takes the shards from there, and encodes what no part has.

    Args:
        retriever: The output of `tune_retriever`.
        collection: The output of `prepare_corpus`.
        part: Becomes a directory with `part.json`, which says what was encoded.
        settings: Which part, and how the corpus becomes vectors.

    Returns:
        The content of `part.json`.

    Raises:
        InputError: There is no `shards_uri`, an input is not what it should be, or a vector is not finite.
    """
    layouts.ENCODED.check(part)
    if not settings.shards_uri:
        hint = "give a directory or s3:// prefix that all pods can write to"
        raise InputError("parts have nowhere to go", field="shards_uri", hint=hint)
    if settings.part >= settings.parts:
        raise InputError(f"there is no part {settings.part} of {settings.parts}", field="part", hint="count from 0")
    load = functools.partial(Retriever.load, retriever, precision=settings.precision)
    encoder, corpus = load(), Collection.open(collection)
    settings = resolved(of_all_copies(settings, encoder.card), encoder)
    with tempfile.TemporaryDirectory(prefix="encode-") as scratch:
        place = place_of(settings.shards_uri, encoding_key(encoder, corpus, settings), Path(scratch))
        shards = encode_corpus(encoder, corpus, place, settings, load=load, part=settings.part, parts=settings.parts)
    content = {
        "part": settings.part,
        "parts": settings.parts,
        "card": encoder.identity(),
        "collection": corpus.fingerprint,
        "shards_uri": place.uri,
        "shards": {str(number): dataclasses.asdict(shard) for number, shard in shards.items()},
        "timings": timings(list(shards.values())),
    }
    with layouts.ENCODED.output(part) as draft:
        files.write_json(draft / PART_FILE, content)
    return content


def encoding_key(encoder: Encoder, collection: Collection, settings: EncodingSettings, earlier: str = "") -> str:
    """Names shards by a SHA-256 (hex) over all that decides their bytes, and nothing else.

    Args:
        encoder: Its identity counts.
        collection: Its fingerprint counts.
        settings: As resolved.
        earlier: Digest of the index from which vectors are taken over, if any.
    """
    decisive = ("passage_length", "batch_tokens", "shard_passages", "dtype", "dimension", "precision")
    values = {name: getattr(settings, name) for name in decisive}
    content = [FORMAT, WINDOW_PASSAGES, encoder.identity(), collection.fingerprint, values, earlier]
    return files.digest(content)


def of_all_copies(settings: Settings, card: RetrieverCard) -> Settings:
    """Replaces a step's length, which counts one copy of a text, by that of all copies in the card's prompt."""
    return dataclasses.replace(settings, passage_length=card.tokens("passage", settings.passage_length))


def resolved(settings: Settings, encoder: Encoder) -> Settings:
    """Fills in the encoder's own passage length, dimension and arithmetic where the settings leave them open.

    Raises:
        InputError: The encoder's vectors have fewer numbers than are to be kept.
    """
    length = encoder.passage_length if is_unset(settings.passage_length) else settings.passage_length
    dimension = settings.dimension or encoder.dimension
    if dimension > encoder.dimension:
        problem = f"vectors of {encoder.name} have {encoder.dimension:,} numbers, not {dimension:,}"
        raise InputError(problem, field="dimension", hint="give fewer, or 0 for all")
    return dataclasses.replace(settings, passage_length=length, dimension=dimension, precision=encoder.precision)


def timings(shards: Sequence[Shard]) -> dict[str, float]:
    """Cost of shards: seconds of all processes together, passages and tokens per second of one, share of padding."""
    seconds = max(sum(shard.seconds for shard in shards), 1e-3)
    tokens, slots = sum(shard.tokens for shard in shards), sum(shard.slots for shard in shards)
    return {
        "seconds": round(seconds, 3),
        "passages_per_second": round(sum(shard.count for shard in shards) / seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "padding_share": round(1 - tokens / max(slots, 1), 4),
    }
