"""Lucene, in a process of its own: indexes a collection, then answers searches until its input ends.

A Java machine inside a process that later forks workers makes those hang, so nothing imports this module; `sparse` starts
it with ``python -m llm_retriever.bm25.lucene``. It reads JSON lines from standard input and answers with JSON lines on
standard output; Java's own messages go to standard error.

The first line is the job: ``{"collection", "index", "keep", "threads", "language"}``; the answer ``{"indexed": number}``.
Without a collection the index is there already; without `keep` it goes at the end. Every further line is a search:
``{"queries": [text, …], "depth", "similarity": {"java": class, "arguments": [number, …]}}``; the answers are ``{"hits":
[query's hits, …]}``, as many lines as it takes. ``{"problem", …}`` is an error of the input. The index does not depend on the
similarity: any number of them search the same one.

Passages are analysed as Anserini does for their language; for English that is a tokeniser, Lucene's 33 stop words and the Porter
stemmer. Thai and its like are pairs of characters: the Java of the image has no dictionary of them. Title and text, joined by a
space, are one field. The order is by score, then passage id (Anserini's); scores are
Lucene's own, where Anserini rounds them to four digits and sets equal ones apart in the sixth.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from llm_retriever.bm25.java import find_java
from llm_retriever.data.collection import CORPUS_FILE, Collection, Passage
from llm_retriever.data.scripts import ENGLISH, PAIRED, as_pairs
from llm_retriever.errors import InputError
from llm_retriever.progress import Progress

HEAP = "2g"
INDEX_BUFFER_MEGABYTES = 256.0
MAXIMUM_CLAUSES = 1_000_000
PASSAGES_AT_ONCE = 4000
CHARACTERS_AT_ONCE = 8_000_000
QUERIES_AT_ONCE = 50
HITS_AT_ONCE = 20_000
PARTS_AHEAD = 4
LOCK = "write.lock"
"""An empty file that Lucene leaves in an index that it has written."""

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
    """Stubs pyserini's neural encoders: its BM25 never calls them, and they would import torch for 10 seconds."""
    placeholder = types.ModuleType("pyserini.encode")
    placeholder.__getattr__ = lambda name: object  # type: ignore[method-assign]
    sys.modules.setdefault("pyserini.encode", placeholder)


def index_passages(
    passages: Iterable[Passage], total: int, directory: str, threads: int, language: str = ENGLISH
) -> int:
    """Indexes passages as they stream by, in memory that does not grow with their number.

    Returns:
        How many were indexed.
    """
    from pyserini.index.lucene import LuceneIndexer

    arguments = None if language in (ENGLISH, PAIRED) else ["-index", directory, "-language", language]
    indexer = LuceneIndexer(directory, args=arguments, threads=threads)
    # Its default of 2 GB would not fit into the heap.
    indexer.object.writer.getConfig().setRAMBufferSizeMB(INDEX_BUFFER_MEGABYTES)
    indexed = 0
    with Progress("index passages for Lucene", total, "passages") as progress:
        for batch in _batches(passages, language):
            indexed += indexer.object.addRawDocuments(batch)
            progress.update(len(batch))
        indexer.close()
    return indexed


def _batches(passages: Iterable[Passage], language: str) -> Iterator[list[str]]:
    """Yields passages as Anserini's JSON documents, which Java parses in its threads; ASCII carries everything."""
    batch: list[str] = []
    size = 0
    for passage in passages:
        batch.append(json.dumps({"id": passage.id, "contents": _worded(contents(passage), language)}))
        size += len(batch[-1])
        if len(batch) == PASSAGES_AT_ONCE or size > CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def contents(passage: Passage) -> str:
    """Text of the one field that is searched."""
    return f"{passage.title} {passage.text}".strip()


def _worded(text: str, language: str) -> str:
    return as_pairs(text) if language == PAIRED else text


class Searcher:
    """Searches an index: the hits of pyserini's `batch_search`, in less than half of its time.

    That one reads a stored document and makes a Python object of every hit, which costs more than to find it. Here the
    passage ids come from the values that equal scores are sorted by, and Java writes a query's hits as one text.

    Args:
        directory: Where the index lies.
        threads: How many threads search.
        language: That it was indexed as.

    Attributes:
        passages: How many are in the index.
    """

    def __init__(self, directory: str, threads: int, language: str = ENGLISH) -> None:
        from pyserini.pyclass import autoclass
        from pyserini.search.lucene import LuceneSearcher

        pyserini = LuceneSearcher(directory)
        if language not in (ENGLISH, PAIRED):
            pyserini.set_language(language)
        self.passages = int(pyserini.object.reader.numDocs())
        self._searcher = autoclass("org.apache.lucene.search.IndexSearcher")(pyserini.object.reader)
        self._analyzer = pyserini.object.get_analyzer()
        self._words = autoclass("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._by_score_then_id = autoclass("io.anserini.search.SearchCollection").BREAK_SCORE_TIES_BY_DOCID
        self._json = _hits_as_json()
        self._threads, self._language = threads, language

    def use(self, java: str, arguments: list[float]) -> None:
        """Ranks by Lucene's similarity of this class and constructor arguments from now on."""
        from pyserini.pyclass import autoclass

        self._searcher.setSimilarity(autoclass(java)(*arguments))

    def search(self, queries: list[str], depth: int) -> Iterator[list[str]]:
        """Yields the hits of the queries in their order, some queries at a time: for each a JSON text from Java."""
        at_once = max(1, min(QUERIES_AT_ONCE, HITS_AT_ONCE // depth))
        parts = (queries[start : start + at_once] for start in range(0, len(queries), at_once))
        with ThreadPoolExecutor(self._threads) as pool:
            pending: deque[Future[list[str]]] = deque()
            for part in parts:
                pending.append(pool.submit(self._search, part, depth))
                # What is found waits for its reader in bounded memory.
                if len(pending) > PARTS_AHEAD * self._threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _search(self, queries: list[str], depth: int) -> list[str]:
        texts = []
        for text in queries:
            query = self._words.buildQuery("contents", self._analyzer, _as_java(_worded(text, self._language)))
            hits = self._searcher.search(query, depth, self._by_score_then_id, False)
            texts.append(self._json.writeValueAsString(hits))
        return texts


def _as_java(text: str) -> str:
    """Strips lone surrogates, which pyjnius refuses, from a text."""
    return text.encode("utf-8", "replace").decode()


def _hits_as_json() -> Any:
    """Makes a JSON writer in Java that leaves of Lucene's hits the score and the id, the latter as "[hex hex …]"."""
    from pyserini.pyclass import autoclass

    name = autoclass("java.lang.Class").forName
    jackson = "com.fasterxml.jackson"
    module = autoclass(f"{jackson}.databind.module.SimpleModule")()
    as_text = autoclass(f"{jackson}.databind.ser.std.ToStringSerializer")()
    module.addSerializer(name("org.apache.lucene.util.BytesRef"), as_text)
    writer = autoclass(f"{jackson}.databind.ObjectMapper")()
    writer.registerModule(module)
    ignored = {"FieldDoc": ("doc", "score", "shardIndex"), "TopFieldDocs": ("fields", "totalHits")}
    for kind, properties in ignored.items():
        names = autoclass("java.util.HashSet")()
        for each in properties:
            names.add(each)
        value = autoclass(f"{jackson}.annotation.JsonIgnoreProperties$Value").forIgnoredProperties(names)
        writer.configOverride(name(f"org.apache.lucene.search.{kind}")).setIgnorals(value)
    return writer


def answer(requests: TextIO, answers: TextIO) -> None:
    """Runs the job in the first line of `requests`, then answers its searches."""
    job: dict[str, Any] = json.loads(requests.readline())
    try:
        threads = start_java(job["threads"])
        searcher = _indexed(job["collection"], job["index"], threads, job["language"])
        _write(answers, json.dumps({"indexed": searcher.passages}))
        for line in requests:
            search = json.loads(line)
            searcher.use(**search["similarity"])
            for hits in searcher.search(search["queries"], search["depth"]):
                _write(answers, f'{{"hits":[{",".join(hits)}]}}')
    except InputError as error:
        _write(answers, json.dumps(error.fields()))
    finally:
        if not job["keep"]:
            shutil.rmtree(job["index"], ignore_errors=True)


def _indexed(source: str | None, directory: str, threads: int, language: str) -> Searcher:
    """Opens a searcher of an index, which is made of a collection if one is named."""
    if source is None:
        return Searcher(directory, threads, language)
    collection = Collection.open(source)
    indexed = index_passages(collection.passages(), collection.passage_count, directory, threads, language)
    (Path(directory) / LOCK).unlink(missing_ok=True)
    searcher = Searcher(directory, threads, language)
    _check_whole(min(indexed, searcher.passages), collection)
    return searcher


def _check_whole(indexed: int, collection: Collection) -> None:
    """Raises InputError for an index that lacks passages: Java logs those it could not take, and goes on."""
    if indexed != collection.passage_count:
        raise InputError(
            f"Lucene has indexed {indexed:,} of {collection.passage_count:,} passages",
            file=collection.directory / CORPUS_FILE,
            hint="see its messages above; prepare the collection again, which refuses ids that Lucene does not hold",
        )


def _write(answers: TextIO, line: str) -> None:
    answers.write(line + "\n")
    answers.flush()


def main() -> None:
    """Answers over the original standard output, and sends what Java prints there to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="ascii") as answers:
        os.dup2(2, 1)
        answer(sys.stdin, answers)


if __name__ == "__main__":
    main()
