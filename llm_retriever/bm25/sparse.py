"""Sparse search over a collection: starts Lucene in a process of its own, queries it, and ends it."""

from __future__ import annotations

import itertools
import json
import operator
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

from llm_retriever.bm25.similarities import Similarity
from llm_retriever.data.collection import Collection
from llm_retriever.data.scripts import language_of
from llm_retriever.errors import InputError
from llm_retriever.processes.crashes import Crash, ProcessFailedError

LUCENE_FOLDER, LUCENE_FILE = "lucene", "lucene.json"
"""Lucene's index (postings and passage ids, without texts and positions), and its checksums beside mine_negatives' runs."""
WORKER = "llm_retriever.bm25.lucene"
SECONDS_TO_END = 10.0
PASSAGES_LOOKED_AT = 1000

Ranking = list[tuple[str, float]]


class SparseIndex:
    """Searches the passages of a collection with Lucene.

    Used in a `with` statement. Indexing begins at once, beside whatever this process does next; it is waited for by the
    first search.

    Args:
        collection: What to search. Title and text are one field. None = what the index in `directory` holds, which is not
            changed.
        threads: Threads that index and search; 0 = one per processor that this process may use.
        language: How they are analysed, as in `settings.mining.Language`; auto = by the script of the first passages. Of an
            index that is there already, the one that it was made with.
        directory: Where the index is kept; None = in a temporary directory that goes when the statement ends.

    Attributes:
        language: The one that it is.

    Example:
        ``with SparseIndex(collection) as index: dict(index.search({"q1": "what is a glacier"}, 10, bm25(0.9, 0.4)))``
    """

    def __init__(
        self, collection: Collection | None, *, threads: int = 0, language: str = "auto", directory: Path | None = None
    ) -> None:
        self._collection, self._threads, self._kept = collection, threads, directory
        self.language = language
        if language == "auto" and collection is not None:
            first = (passage.text for passage in itertools.islice(collection.passages(), PASSAGES_LOOKED_AT))
            self.language = language_of(first)

    def __enter__(self) -> SparseIndex:
        self._directory = tempfile.TemporaryDirectory(prefix="lucene-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii"
        )
        self._requests, self._answers = cast(TextIO, self._process.stdin), cast(TextIO, self._process.stdout)
        self._indexed = -1
        source = None if self._collection is None else str(self._collection.directory.resolve())
        index = str(self._kept.resolve()) if self._kept else self._directory.name
        job = {"collection": source, "index": index, "keep": self._kept is not None}
        self._ask({**job, "threads": self._threads, "language": self.language})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._process.kill()
            self._process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        finally:
            self._directory.cleanup()

    def wait(self) -> int:
        """Waits until the index can be searched; returns how many passages are in it."""
        if self._indexed < 0:
            self._indexed = int(self._answer()["indexed"])
        return self._indexed

    def search(self, queries: Mapping[str, str], depth: int, similarity: Similarity) -> Iterator[tuple[str, Ranking]]:
        """Searches, and yields the query id and its at most `depth` passages with their scores, best first.

        Equal scores are in the order of the passage ids, whatever the number of threads. A query of which no word is
        in the collection has an empty ranking. To be read to its end before the next search.

        Raises:
            InputError: There is no Java to run Lucene on.
            ProcessFailedError: Lucene's process ended; its own messages stand before this one.
        """
        if not queries:
            return
        self.wait()
        self._ask({"queries": list(queries.values()), "depth": depth, "similarity": similarity.as_request()})
        names = iter(queries)
        answered = 0
        while answered < len(queries):
            answered_hits = self._answer()["hits"]
            answered += len(answered_hits)
            for hits in answered_hits:
                yield next(names), [(_from_hex(passage), score) for score, passage in map(_fields, hits["scoreDocs"])]

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line.endswith("\n"):
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise InputError(**answer)
        return answer

    def _died(self) -> ProcessFailedError:
        code = self._process.wait()
        # A negative code is the number of the signal that killed it.
        crash = Crash.PASSING if code < 0 else Crash.LASTING
        return ProcessFailedError(f"Lucene's process ended with code {code}; see its messages above", crash)


def without_own(query: str, ranking: Ranking, own: Set[str]) -> Ranking:
    """Removes the passage of the query's id, where the query is among `own` (`Collection.own_passages`)."""
    return [hit for hit in ranking if hit[0] != query] if query in own else ranking


_fields = operator.itemgetter("fields")


def _from_hex(text: str) -> str:
    """Decodes the passage id in Lucene's "[hex hex …]"."""
    return bytes.fromhex(text[1:-1]).decode()
