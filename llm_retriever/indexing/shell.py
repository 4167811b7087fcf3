"""A question from a shell, answered for people: rank, score, id and the beginning of each passage."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from contextlib import ExitStack
from typing import Any

from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from llm_retriever.indexing.search import Index
from llm_retriever.retriever import Retriever
from llm_retriever.store import fetched

SNIPPET_CHARACTERS = 240


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 bad input."""
    given = _parser().parse_args(arguments)
    try:
        print(_answer(given))
    except InputError as error:
        print(f"search: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llm_retriever.indexing.search", description="Searches an index with a question."
    )
    parser.add_argument("question", help="What to search for.")
    parser.add_argument("--index", required=True, metavar="DIR", help="Output of build_index: directory or s3://.")
    parser.add_argument("--retriever", required=True, metavar="DIR", help="The retriever that made the index.")
    parser.add_argument("--collection", metavar="DIR", help="Its collection, to show titles and texts.")
    parser.add_argument("--depth", type=_positive, default=10, metavar="N", help="Passages to show (default: 10).")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _answer(given: argparse.Namespace) -> str:
    from llm_retriever.collection import Collection

    with ExitStack() as stack:
        retriever = Retriever.load(given.retriever)
        index = Index.open(stack.enter_context(fetched(given.index)), retriever.card)
        lookup = None
        if given.collection:
            collection = Collection.open(stack.enter_context(fetched(given.collection)))
            _check_same(index, collection)
            lookup = collection.lookup()
        scores, ids = index.search(retriever.encode_queries([given.question]), given.depth)
        found = zip(scores[0].tolist(), ids[0], strict=True)
        return "\n".join(_entry(rank, *pair, lookup) for rank, pair in enumerate(found, start=1))


def _check_same(index: Index, collection: Any) -> None:
    if index.manifest.collection != collection.fingerprint:
        raise InputError(
            "the index was made of another collection",
            file=collection.directory,
            field="--collection",
            mend="give the one that the index was built from",
        )


def _entry(rank: int, score: float, passage_id: str, lookup: Any) -> str:
    head = f"{rank:>3}  {score:.4f}  {passage_id}"
    if lookup is None:
        return head
    passage = lookup[passage_id]
    if passage.title:
        head += f"  {passage.title}"
    width = max(40, min(100, shutil.get_terminal_size().columns))
    snippet = textwrap.shorten(passage.text, SNIPPET_CHARACTERS, placeholder=" …")
    return head + "\n" + textwrap.fill(snippet, width, initial_indent=" " * 13, subsequent_indent=" " * 13)
