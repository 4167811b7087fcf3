"""A part of a collection's passages, as a collection of its own."""

from __future__ import annotations

import random
from collections.abc import Container
from pathlib import Path

from llm_retriever import files
from llm_retriever.data.collection import CORPUS_FILE, MANIFEST_FILE, Collection, fingerprint_of, passage_line


def part_of(whole: Collection, directory: Path, number: int, judged: Container[str]) -> Collection:
    """Writes a collection without queries: passages that are judged, and random others.

    Args:
        whole: What it is a part of.
        directory: An empty one, which it becomes.
        number: Others are drawn from so many places of the corpus, with a fixed seed.
        judged: Ids of passages that are kept in any case.
    """
    drawn = set(random.Random(0).sample(range(whole.passage_count), min(number, whole.passage_count)))  # noqa: S311
    count, path = 0, directory / CORPUS_FILE
    with path.open("w", encoding="utf-8") as corpus:
        for position, passage in enumerate(whole.passages()):
            if position in drawn or passage.id in judged:
                corpus.write(passage_line(passage))
                count += 1
    manifest = {
        **whole.manifest,
        "counts": {"passages": count, "queries": 0},
        "splits": {},
        "files": {CORPUS_FILE: path.stat().st_size},
        "fingerprint": fingerprint_of(directory, [CORPUS_FILE]),
    }
    files.write_json(directory / MANIFEST_FILE, manifest)
    return Collection(directory, manifest)
