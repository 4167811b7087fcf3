"""The collection: passages, queries and judgments in the layout that every step reads.

`corpus.jsonl` {_id, title, text}, `queries.jsonl` {_id, text}, `qrels/<split>.tsv` (BEIR's columns, with header) and
`collection.json`. Where there is anything to say: `articles.jsonl` {_id, passages}, which passages follow each other;
`merged.tsv` (id, id of the kept passage), which passages became one; `teacher_scores.tsv` (query, passage, score), what a
teacher gives them. Passages are streamed or looked up by id; they are never all in memory.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from json.encoder import encode_basestring
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

import numpy as np
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from llm_retriever import files
from llm_retriever.data.grades import grade_of
from llm_retriever.data.lines import LineReader
from llm_retriever.errors import InputError
from llm_retriever.files.checksums import sha256_of_large_file

CORPUS_FILE = "corpus.jsonl"
QUERIES_FILE = "queries.jsonl"
QRELS_DIRECTORY = "qrels"
ARTICLES_FILE = "articles.jsonl"
MERGED_FILE = "merged.tsv"
TEACHER_FILE = "teacher_scores.tsv"
MANIFEST_FILE = "collection.json"
BAD_LINES_FILE = "bad_lines.jsonl"
QRELS_HEADER = "query-id\tcorpus-id\tscore\n"
OWN_PASSAGES = "own_passages"
LEFT_OUT = "left_out"
RELEVANT = 1
"""Lowest grade of a relevant passage, but for measures with a level of their own."""
FORMAT = 1
HINT = "give the output of prepare_corpus"
AGAIN = "prepare the collection again"
ID_PREFIX = b'{"_id": "'


_Count = Annotated[int, Field(strict=True, ge=0)]
_Name = Annotated[str, Field(strict=True, pattern=r"^[^/\\\x00]+$")]


class _Counts(TypedDict):
    passages: _Count
    queries: _Count


class _Split(TypedDict):
    queries: _Count
    judgments: _Count


class _Source(TypedDict):
    uri: Annotated[str, Field(strict=True)]


class _Manifest(TypedDict):
    """The fields of `collection.json` that readers rely on."""

    counts: _Counts
    splits: dict[_Name, _Split]
    files: dict[Annotated[str, Field(pattern=r"^(qrels/)?[^/\\\x00]+$")], _Count]
    fingerprint: Annotated[str, Field(strict=True)]
    source: _Source
    own_passages: NotRequired[dict[str, Any]]


_MANIFEST = TypeAdapter(_Manifest)


class Passage(NamedTuple):
    """A passage of the corpus: `id`, `title`, which may be empty, and `text`."""

    id: str
    title: str
    text: str


class Collection:
    """A prepared collection.

    Args:
        directory: Where it lies.
        manifest: The content of its `collection.json`.

    Attributes:
        fingerprint: SHA-256 (hex) over the normalised content: equal for equal collections, wherever they come from.
        splits: Names of the splits, train first where there is one.
        passage_count: Number of passages.
        has_articles: Whether it is known which passages follow each other.
        removes_own_passages: Whether rankings leave out the passage that has the query's id. Collections of earlier releases
            do not say; their rankings always did.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.splits: list[str] = list(manifest["splits"])
        self.passage_count: int = manifest["counts"]["passages"]
        self.has_articles = ARTICLES_FILE in manifest["files"]
        self.removes_own_passages = bool(manifest.get(OWN_PASSAGES, {}).get("removed", True))

    @classmethod
    def open(cls, path: str | Path) -> Collection:
        """Opens a directory that `prepare` wrote.

        Raises:
            InputError: It is not one, or it is not whole.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise InputError("no such directory", file=directory, hint=HINT)
        manifest = files.read_json(directory / MANIFEST_FILE, hint=HINT)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(f"not a collection of format {FORMAT}", file=directory / MANIFEST_FILE, hint=HINT)
        files.checked(_MANIFEST, manifest, directory / MANIFEST_FILE, hint=AGAIN)
        for name, size in manifest["files"].items():
            file = directory / name
            if not file.is_file() or file.stat().st_size != size:
                raise InputError("is missing or was changed", file=file, hint=AGAIN)
        if fingerprint_of(directory, manifest["files"]) != manifest["fingerprint"]:
            # A change that keeps the size would pass for the collection that the fingerprint names.
            raise InputError("a file was changed", file=directory, field="fingerprint", hint=AGAIN)
        return cls(directory, manifest)

    def passages(self) -> Iterator[Passage]:
        """Streams the corpus in its order."""
        with (self.directory / CORPUS_FILE).open("rb") as corpus:
            for line in corpus:
                yield _passage(line)

    def spans(self, positions: Iterable[range]) -> Iterator[list[Passage]]:
        """Streams the passages at some positions, a list for each range; lines before and between are not parsed.

        Args:
            positions: Ranges in ascending order that do not overlap.
        """
        with (self.directory / CORPUS_FILE).open("rb") as corpus:
            at = 0
            for span in positions:
                collections.deque(itertools.islice(corpus, span.start - at), maxlen=0)
                yield [_passage(line) for line in itertools.islice(corpus, len(span))]
                at = span.stop

    def articles(self) -> Iterator[list[str]]:
        """Streams the articles, each as the ids of its passages in their order; none if the source has no articles."""
        if self.has_articles:
            with (self.directory / ARTICLES_FILE).open("rb") as lines:
                for line in lines:
                    yield json.loads(line)["passages"]

    def kept_ids(self, ids: Container[str]) -> dict[str, str]:
        """Maps ids of passages that were merged into another one to the id of that one; of the ids given."""
        return {one: kept for one, kept in self._table(MERGED_FILE) if one in ids}

    def teacher_scores(self) -> dict[str, dict[str, float]]:
        """Reads a teacher's score by passage id by query id; {} where the source has none."""
        scores: dict[str, dict[str, float]] = {}
        for query, passage, score in self._table(TEACHER_FILE):
            scores.setdefault(query, {})[passage] = float(score)
        return scores

    def _table(self, name: str) -> Iterator[list[str]]:
        """Reads the lines of an optional file of tab-separated columns; the fingerprint vouches for them."""
        if name in self.manifest["files"]:
            with (self.directory / name).open(encoding="utf-8") as lines:
                for line in lines:
                    yield line.rstrip("\n").split("\t")

    def queries(self, split: str) -> dict[str, str]:
        """Reads text by query id for the queries that a split judges, in the order of the source.

        Raises:
            InputError: There is no such split.
        """
        judged = {query for query, _, _ in self._judgments(split)}
        with (self.directory / QUERIES_FILE).open("rb") as lines:
            rows = (json.loads(line) for line in lines)
            return {row["_id"]: row["text"] for row in rows if row["_id"] in judged}

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """Reads grade by passage id by query id; grades of 1 and more are relevant.

        Raises:
            InputError: There is no such split.
        """
        qrels: dict[str, dict[str, int]] = {}
        for query, passage, grade in self._judgments(split):
            qrels.setdefault(query, {})[passage] = grade
        return qrels

    def own_passages(self, split: str) -> frozenset[str]:
        """Queries of a split whose rankings must leave out the passage of the same id, whether or not it exists.

        None where the collection keeps such passages; never one whose own passage is judged relevant to it.

        Raises:
            InputError: There is no such split.
        """
        if not self.removes_own_passages:
            return frozenset()
        return frozenset(query for query, grades in self.qrels(split).items() if grades.get(query, 0) < RELEVANT)

    def lookup(self) -> PassageLookup:
        """Opens random access to the passages by id; reads the corpus once to find where they lie."""
        return PassageLookup(self.directory / CORPUS_FILE)

    def _judgments(self, split: str) -> Iterator[tuple[str, str, int]]:
        if split not in self.splits:
            raise InputError(
                f"there is no split {split!r}",
                file=self.directory / MANIFEST_FILE,
                field="splits",
                hint=f"the collection has {', '.join(self.splits)}",
            )
        file = self.directory / QRELS_DIRECTORY / f"{split}.tsv"
        with file.open(encoding="utf-8") as lines:
            if next(lines, None) != QRELS_HEADER:
                raise InputError(f"the header is not {' '.join(QRELS_HEADER.split())}", file=file, line=1, hint=AGAIN)
            for number, line in enumerate(lines, start=2):
                columns = line.rstrip("\n").split("\t")
                if len(columns) != 3:
                    raise InputError(f"{len(columns)} columns instead of 3", file=file, line=number, hint=AGAIN)
                yield columns[0], columns[1], grade_of(columns[2], file=file, line=number, field="score")


class PassageLookup:
    """Passages by id in 16 bytes of memory each: sorted 8-byte hashes of the ids, and where each line begins.

    Two ids may share a hash; the id that is read decides. It can be pickled, and shared by forked processes.

    Args:
        corpus: A `corpus.jsonl` that `prepare` wrote.
    """

    def __init__(self, corpus: Path) -> None:
        self._lines = LineReader(corpus)
        hashes, offsets = array("Q"), array("Q")
        offset = 0
        with corpus.open("rb") as lines:
            for line in lines:
                hashes.append(_hash(_id(line)))
                offsets.append(offset)
                offset += len(line)
        unsorted = np.frombuffer(hashes, np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self._hashes, self._offsets = unsorted[order], np.frombuffer(offsets, np.uint64)[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, passage_id: object) -> bool:
        return isinstance(passage_id, str) and self._find(passage_id) is not None

    def __getitem__(self, passage_id: str) -> Passage:
        """Reads a passage; KeyError when there is none of this id."""
        passage = self._find(passage_id)
        if passage is None:
            raise KeyError(passage_id)
        return passage

    def _find(self, passage_id: str) -> Passage | None:
        hashed = np.uint64(_hash(passage_id.encode("utf-8", "surrogatepass")))
        position = int(np.searchsorted(self._hashes, hashed))
        while position < len(self._hashes) and self._hashes[position] == hashed:
            passage = _passage(self._lines.line(int(self._offsets[position])))
            if passage.id == passage_id:
                return passage
            position += 1
        return None


def fingerprint_of(directory: Path, names: Iterable[str]) -> str:
    """SHA-256 (hex) over the names and bytes of a collection's files, in the order of its manifest."""
    return files.digest([[name, sha256_of_large_file(directory / name)] for name in names])


def passage_line(passage: Passage) -> str:
    """Formats the line of `corpus.jsonl` for a passage, with its end; several times quicker than `json.dumps`."""
    name, title, text = (encode_basestring(part) for part in passage)
    return f'{{"_id": {name}, "title": {title}, "text": {text}}}\n'


def same_texts(corpus: Path, texts: Mapping[str, str]) -> int:
    """Counts the passages whose text is the one given for their id, letter case aside.

    Args:
        corpus: A `corpus.jsonl` that `prepare` wrote; it is streamed, and only lines with these ids are parsed.
        texts: Normalised, by passage id; compared with the passage's text, and with title and text together.
    """
    expected = {name.encode(): text.casefold() for name, text in texts.items()}
    same = 0
    with corpus.open("rb") as lines:
        for line in lines if expected else ():
            text = expected.get(_id(line))
            if text is not None:
                passage = _passage(line)
                same += text in (passage.text.casefold(), f"{passage.title} {passage.text}".casefold())
    return same


def _passage(line: bytes) -> Passage:
    row = json.loads(line)
    return Passage(row["_id"], row["title"], row["text"])


def _id(line: bytes) -> bytes:
    """Reads the id of a corpus line, without parsing the line where the id needs no unescaping."""
    if line.startswith(ID_PREFIX):
        end = line.index(b'"', len(ID_PREFIX))
        passage_id = line[len(ID_PREFIX) : end]
        if b"\\" not in passage_id:
            return passage_id
    return _passage(line).id.encode()


def _hash(passage_id: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(passage_id, digest_size=8).digest(), "little")
