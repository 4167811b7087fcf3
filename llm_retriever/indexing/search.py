"""Answers questions from a shell, for people: rank, score, id and the beginning of each passage; or as JSON."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_retriever.errors import InputError
from llm_retriever.processes import command_line, pipes
from llm_retriever.stores.opening import fetched

if TYPE_CHECKING:
    from llm_retriever.encoders.interface import Encoder
    from llm_retriever.indexing.index import Index

PROGRAM = "python -m llm_retriever.indexing.search"
SNIPPET_CHARACTERS = 240
QUESTIONS_AT_ONCE = 256
STANDARD_INPUT = "-"
PROMPT = "question> "
Search = Callable[[list[str], int], list[list[tuple[str, float]]]]
EXAMPLES = """\
A question:             llm-retriever search --index RUN/build-index/index "how old is the bridge"
A file, as JSON lines:  llm-retriever search --index INDEX --queries questions.txt --json
One after the other:    llm-retriever search --index INDEX
With BM25 as well:      llm-retriever search --version s3://bucket/published/versions/NAME --hybrid "how old is the bridge"
"""


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 bad input."""
    return command_line.run(parser(prog), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        _answer_all(options, stack)
    return 0


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Searches an index with a question, with a file of them, or with what is typed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question", nargs="?", help="What to search for; without it, questions are asked for.")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--index", metavar="DIR", help="Output of build_index: directory or s3://.")
    place.add_argument("--version", metavar="URI", help="A published version, whose index it is.")
    parser.add_argument(
        "--hybrid", action="store_true", help="Fuse with BM25, as the evaluation's system of that name."
    )
    parser.add_argument(
        "--retriever",
        metavar="DIR",
        help="The retriever that made the index, or the name of a published encoder (default: found beside the index).",
    )
    parser.add_argument(
        "--collection",
        metavar="DIR",
        help="Its collection, to show titles and texts (default: the one beside the index, if there is one).",
    )
    parser.add_argument("--queries", metavar="FILE", help="Questions, one a line; - = standard input.")
    parser.add_argument("--depth", type=_positive, default=10, metavar="N", help="Passages to show (default: 10).")
    parser.add_argument("--json", action="store_true", help="Print one JSON object a question.")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


@dataclass(frozen=True)
class Searcher:
    """Answers questions with an index.

    Attributes:
        search: Finds so many passages for every question, with their scores.
        lookup: Passages by id; None without a collection.
        depth: Passages per question.
    """

    search: Search
    lookup: Any
    depth: int

    def answers(self, questions: list[str]) -> Iterator[dict[str, Any]]:
        """Yields each question and its results: rank, score, id, and with a collection title and text."""
        for question, ranking in zip(questions, self.search(questions, self.depth), strict=True):
            results = [self._result(rank, score, passage) for rank, (passage, score) in enumerate(ranking, start=1)]
            yield {"question": question, "results": results}

    def _result(self, rank: int, score: float, passage_id: str) -> dict[str, Any]:
        result = {"rank": rank, "score": score, "id": passage_id}
        if self.lookup is None:
            return result
        passage = self.lookup[passage_id]
        return result | {"title": passage.title, "text": passage.text}


def _answer_all(options: argparse.Namespace, stack: ExitStack) -> None:
    questions = _questions(options)
    searcher = _opened(options, stack)
    show = _as_json if options.json else _as_text
    if questions is None:
        _converse(searcher, show)
        return
    several = options.queries is not None
    for number, answer in enumerate(_in_batches(searcher, questions)):
        separator = "\n" if number and several and not options.json else ""
        print(separator + show(answer, headed=several), flush=True)


def _questions(options: argparse.Namespace) -> Iterable[str] | None:
    """Returns the questions; None = ask for them."""
    if options.question is not None and options.queries is not None:
        raise InputError("a question and a file of questions were given", field="--queries", hint="give one of them")
    if options.question is not None:
        if not options.question.strip():
            raise InputError("the question is empty", field="question")
        return [options.question]
    if options.queries == STANDARD_INPUT:
        return _lines(sys.stdin)
    if options.queries is not None:
        return _lines(_read(Path(options.queries)))
    if sys.stdin.isatty():
        return None
    raise InputError(
        "there is no question", field="question", hint="give one, or --queries - to read them from standard input"
    )


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot be read ({reason})", file=path, field="--queries") from None


def _lines(lines: Iterable[str]) -> Iterator[str]:
    stripped = (line.removeprefix("\ufeff").strip() for line in lines)
    return (line for line in stripped if line)


def _in_batches(searcher: Searcher, questions: Iterable[str]) -> Iterator[dict[str, Any]]:
    waiting = iter(questions)
    while batch := list(itertools.islice(waiting, QUESTIONS_AT_ONCE)):
        yield from searcher.answers(batch)


def _converse(searcher: Searcher, show: Any) -> None:
    """Answers what is typed, until an empty line or the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lets `input` edit and remember lines)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while question := input(PROMPT).strip():
            try:
                print(*(show(answer, headed=False) for answer in searcher.answers([question])), flush=True)
            except InputError as error:
                print(f"search: {error}", file=sys.stderr)


def _opened(options: argparse.Namespace, stack: ExitStack) -> Searcher:
    from llm_retriever import encoders
    from llm_retriever.data.collection import Collection
    from llm_retriever.indexing.index import Index
    from llm_retriever.indexing.locate_retriever import collection_of, hybrid_of, retriever_of
    from llm_retriever.indexing.shards import Manifest

    uri = options.index or f"{options.version.rstrip('/')}/index"
    directory = stack.enter_context(fetched(uri))
    manifest = Manifest.load(directory)
    hybrid = stack.enter_context(fetched(hybrid_of(uri, manifest))) if options.hybrid else None
    encoder = encoders.load(options.retriever or retriever_of(uri, manifest))
    index = Index.open(directory, encoder)
    search = _dense(encoder, index) if hybrid is None else _hybrid(encoder, index, hybrid, stack)
    place = options.collection or collection_of(uri, manifest)
    if place is None:
        return Searcher(search, None, options.depth)
    collection = Collection.open(stack.enter_context(fetched(place)))
    _check_same(index, collection)
    return Searcher(search, collection.lookup(), options.depth)


def _dense(encoder: Encoder, index: Index) -> Search:
    def search(questions: list[str], depth: int) -> list[list[tuple[str, float]]]:
        scores, ids = index.search(encoder.encode_queries(questions), depth)
        return [list(zip(passages, values, strict=True)) for passages, values in zip(ids, scores.tolist(), strict=True)]

    return search


def _hybrid(encoder: Encoder, index: Index, directory: Path, stack: ExitStack) -> Search:
    from llm_retriever.indexing.hybrid.search import HybridSearcher

    return stack.enter_context(HybridSearcher(encoder, index, directory)).search


def _check_same(index: Index, collection: Any) -> None:
    if index.manifest.collection != collection.fingerprint:
        raise InputError(
            "the index was made of another collection",
            file=collection.directory,
            field="--collection",
            hint="give the one that the index was built from",
        )


def _as_json(answer: dict[str, Any], *, headed: bool) -> str:
    return json.dumps(answer, ensure_ascii=False)


def _as_text(answer: dict[str, Any], *, headed: bool) -> str:
    head = [f"# {answer['question']}"] if headed else []
    return "\n".join([*head, *map(_entry, answer["results"])])


def _entry(result: dict[str, Any]) -> str:
    head = f"{result['rank']:>3}  {result['score']:.4f}  {result['id']}"
    if "text" not in result:
        return head
    if result["title"]:
        head += f"  {result['title']}"
    width = max(40, min(100, shutil.get_terminal_size().columns))
    snippet = textwrap.shorten(result["text"], SNIPPET_CHARACTERS, placeholder=" …")
    return head + "\n" + textwrap.fill(snippet, width, initial_indent=" " * 13, subsequent_indent=" " * 13)


if __name__ == "__main__":
    raise SystemExit(pipes.run(main))
