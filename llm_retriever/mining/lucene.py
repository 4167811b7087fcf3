"""Lucene, in a process of its own: indexes a collection, then answers searches until its input ends.

A Java machine inside a process that later forks workers makes those hang, so nothing imports this module; `bm25` starts
it with ``python -m llm_retriever.mining.lucene``. It reads JSON lines from standard input and answers with JSON lines on
standard output; Java's own messages go to standard error.

The first line is the job: ``{"collection", "index", "k1", "b", "threads"}``; the answer ``{"indexed": number}``. Every
further line is a search: ``{"queries": [text, …], "depth"}``; the answers are ``{"hits": {position: [hit, …]}}``, as
many lines as it takes. ``{"problem", …}`` is an error of the input.

Passages are analysed as Anserini does by default: English tokeniser, Lucene's 33 English stop words, Porter stemmer;
title and text, joined by a space, are one field. The order is by score, then passage id; scores are those of Anserini:
rounded to four digits, equal ones set apart in the sixth where float32 allows.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from llm_retriever.collection import Collection, Passage
from llm_retriever.errors import InputError
from llm_retriever.mining.java import find_java
from llm_retriever.progress import Progress

HEAP = "2g"
INDEX_BUFFER_MEGABYTES = 256.0
MAXIMUM_CLAUSES = 1_000_000
PASSAGES_AT_ONCE = 4000
CHARACTERS_AT_ONCE = 8_000_000
QUERIES_AT_ONCE_PER_THREAD = 50
HITS_AT_ONCE = 400_000

_held: list[Any] = []  # Java forgets a logger, and its level, that nobody holds.


def start_java(threads: int) -> int:
    """Starts Java in this process with a bounded heap.

    Args:
        threads: How many processors it is to see, which is how many threads search; 0 = those that this process may
            use, a container's limit included.

    Returns:
        How many processors it sees.

    Raises:
        InputError: There is no Java that Lucene runs on.
    """
    os.environ.update(find_java().variables())
    import jnius_config

    jnius_config.add_options(f"-Xmx{HEAP}", *([f"-XX:ActiveProcessorCount={threads}"] if threads else []))
    _keep_out_encoders()
    from pyserini.pyclass import autoclass

    level = autoclass("org.apache.logging.log4j.Level").WARN
    autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(level)
    log = autoclass("java.util.logging.Logger").getLogger("org.apache.lucene")
    log.setLevel(autoclass("java.util.logging.Level").SEVERE)
    _held.append(log)
    # Lucene refuses queries of more than 1,024 distinct terms otherwise.
    autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(MAXIMUM_CLAUSES)
    return int(autoclass("java.lang.Runtime").getRuntime().availableProcessors())


def _keep_out_encoders() -> None:
    """Stands in for pyserini's neural encoders: its BM25 never calls them, and they would import torch for 10 seconds."""
    placeholder = types.ModuleType("pyserini.encode")
    placeholder.__getattr__ = lambda name: object  # type: ignore[method-assign]
    sys.modules.setdefault("pyserini.encode", placeholder)


def index_passages(passages: Iterable[Passage], total: int, directory: str, threads: int) -> int:
    """Indexes passages as they stream by, in memory that does not grow with their number.

    Returns:
        How many were indexed.
    """
    from pyserini.index.lucene import LuceneIndexer

    indexer = LuceneIndexer(directory, threads=threads)
    # Its default of 2 GB would not fit into the heap.
    indexer.object.writer.getConfig().setRAMBufferSizeMB(INDEX_BUFFER_MEGABYTES)
    indexed = 0
    with Progress("index passages for BM25", total, "passages") as progress:
        for batch in _batches(passages):
            indexed += indexer.object.addRawDocuments(batch)
            progress.update(len(batch))
        indexer.close()
    return indexed


def _batches(passages: Iterable[Passage]) -> Iterator[list[str]]:
    """Passages as Anserini's JSON documents, which Java parses in its threads; ASCII, because pyjnius garbles emoji."""
    batch: list[str] = []
    size = 0
    for passage in passages:
        batch.append(json.dumps({"id": passage.id, "contents": contents(passage)}))
        size += len(batch[-1])
        if len(batch) == PASSAGES_AT_ONCE or size > CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def contents(passage: Passage) -> str:
    """The one field that is searched."""
    return f"{passage.title} {passage.text}".strip()


class Searcher:
    """BM25 over an index.

    Args:
        directory: Where the index lies.
        k1: Term saturation.
        b: Length normalisation.
        threads: How many threads search.
    """

    def __init__(self, directory: str, k1: float, b: float, threads: int) -> None:
        from pyserini.pyclass import autoclass
        from pyserini.search.lucene import LuceneSearcher

        self._searcher = LuceneSearcher(directory)
        self._searcher.set_bm25(k1, b)
        self._threads = threads
        self._list_class = autoclass("java.lang.Class").forName("java.util.ArrayList")
        self._json = autoclass("com.fasterxml.jackson.databind.ObjectMapper")()
        document = autoclass("java.lang.Class").forName("org.apache.lucene.document.Document")
        self._json.configOverride(document).setIsIgnoredType(autoclass("java.lang.Boolean")(True))
        escaped = autoclass("com.fasterxml.jackson.core.JsonGenerator$Feature").ESCAPE_NON_ASCII
        self._json.getFactory().enable(escaped)

    def search(self, queries: list[str], depth: int) -> Iterator[str]:
        """Hits by position of the query, as JSON objects of some queries each.

        Java writes the JSON: to fetch 200 hits a query one by one through JNI costs more time than to find them.
        """
        at_once = max(1, min(QUERIES_AT_ONCE_PER_THREAD * self._threads, HITS_AT_ONCE // depth))
        for start in range(0, len(queries), at_once):
            part = queries[start : start + at_once]
            names = [str(start + i) for i in range(len(part))]
            # The count of threads given here is ignored by Anserini, which takes all processors that Java sees.
            found = self._searcher.object.batch_search(self._java_list(part), self._java_list(names), depth, 1)
            yield self._json.writeValueAsString(found)

    def _java_list(self, texts: list[str]) -> Any:
        return self._json.readValue(json.dumps(texts), self._list_class)


def answer(requests: TextIO, answers: TextIO) -> None:
    """Does the job in the first line of `requests`, then answers its searches."""
    job: dict[str, Any] = json.loads(requests.readline())
    try:
        threads = start_java(job["threads"])
        collection = Collection.open(job["collection"])
        indexed = index_passages(collection.passages(), collection.passage_count, job["index"], threads)
        _write(answers, json.dumps({"indexed": indexed}))
        searcher = Searcher(job["index"], job["k1"], job["b"], threads)
        for line in requests:
            search = json.loads(line)
            for hits in searcher.search(search["queries"], search["depth"]):
                _write(answers, f'{{"hits":{hits}}}')
    except InputError as error:
        _write(answers, json.dumps({"problem": error.problem, **_place(error)}))
    finally:
        shutil.rmtree(job["index"], ignore_errors=True)


def _place(error: InputError) -> dict[str, Any]:
    file = None if error.file is None else str(error.file)
    return {"file": file, "line": error.line, "field": error.field, "mend": error.mend}


def _write(answers: TextIO, line: str) -> None:
    answers.write(line + "\n")
    answers.flush()


def main() -> None:
    """Speaks over the original standard output and sends what Java prints there to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="ascii") as answers:
        os.dup2(2, 1)
        answer(sys.stdin, answers)


if __name__ == "__main__":
    main()
