"""Layouts of outputs, so that a run replaces what an earlier run of the same step wrote, and nothing else.

A directory is a step's own if it holds the file that the step always writes, with the content that it always has, and no
file beyond those that the step writes. A file is its own by how it begins. An empty directory or file is free.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.files.drafts import is_draft
from llm_retriever.files.seal import SEAL, checksums_of, is_left_out, write_seal

ELSEWHERE = "move it away, or give another path"


@dataclass(frozen=True)
class Layout:
    """The files of a directory.

    Attributes:
        name: What it is called in messages.
        mark: The file, relative to the directory, that is always there.
        is_mark: Whether a text is that file's.
        files: Patterns of the other files, relative; `*` stands for a part of a name, `**` for any number of folders.
        folders: Layouts of folders within, by name.
    """

    name: str
    mark: str
    is_mark: Callable[[str], bool]
    files: tuple[str, ...] = ()
    folders: Mapping[str, Layout] = field(default_factory=dict)

    @contextlib.contextmanager
    def output(self, path: str | Path) -> Iterator[Path]:
        """Yields an empty directory that becomes `path`, sealed, when the block ends without an exception.

        Args:
            path: Where to, as people choose it; an earlier output of the kind is replaced.

        Raises:
            InputError: Something else is there.
        """
        self.check(path)
        with files.atomic_directory(path) as draft:
            yield draft
            write_seal(draft)

    def check(self, path: str | Path, *, argument: str | None = None) -> None:
        """Raises InputError for what is no earlier output of this kind.

        Args:
            path: Where the output is to go; nothing, or an empty directory, may be there.
            argument: The flag that names it, for the message.

        Raises:
            InputError: A file is there, or a directory with anything else in it.
        """
        path = Path(path)
        if not os.path.lexists(path):
            return
        if not path.is_dir():
            raise InputError("a file is where a directory goes", file=path, field=argument, hint=ELSEWHERE)
        existing = sorted(_contents(path))
        known, listed = self.patterns(), _listed(path)
        own = (*(listed or ()), SEAL)
        foreign = next((name for name in existing if not any(pattern.fullmatch(name) for pattern in known)), None)
        if listed is not None and foreign is None:
            foreign = next((name for name in existing if name not in own and not is_left_out(name)), None)
        if foreign is not None:
            problem = f"it would be erased, and no earlier run of this step wrote it as a part of {self.name}"
            raise InputError(problem, file=path / foreign, field=argument, hint=ELSEWHERE)
        if existing and not self._has_mark(path):
            problem = f"the directory would be erased, and is not known as {self.name} ({self.mark})"
            raise InputError(problem, file=path, field=argument, hint=ELSEWHERE)

    def patterns(self) -> list[re.Pattern[str]]:
        """Patterns of all files, relative to the directory."""
        return [_pattern(text) for text in self._texts()]

    def _texts(self) -> Iterator[str]:
        yield from (self.mark, SEAL, *self.files)
        for folder, layout in self.folders.items():
            yield from (f"{folder}/{text}" for text in layout._texts())

    def _has_mark(self, path: Path) -> bool:
        try:
            return self.is_mark((path / self.mark).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return False


@dataclass(frozen=True)
class Page:
    """A file.

    Attributes:
        name: What it is called in messages.
        is_one: Whether a text is one that a step wrote.
    """

    name: str
    is_one: Callable[[str], bool]

    def check(self, path: str | Path, *, argument: str | None = None) -> None:
        """Raises InputError for what is no earlier output of this kind.

        Args:
            path: Where the output is to go; nothing, or an empty file, may be there.
            argument: The flag that names it, for the message.

        Raises:
            InputError: Something else is there.
        """
        path = Path(path)
        if path.is_dir():
            raise InputError("a directory is where a file goes", file=path, field=argument, hint=ELSEWHERE)
        if not os.path.lexists(path):
            return
        if not path.is_file():
            raise InputError("is no regular file and cannot be replaced", file=path, field=argument, hint=ELSEWHERE)
        if path.stat().st_size and not self.is_one(path.read_text(encoding="utf-8", errors="replace")):
            problem = f"it would be overwritten, and is not known as {self.name}"
            raise InputError(problem, file=path, field=argument, hint=ELSEWHERE)


@dataclass(frozen=True)
class Unknown:
    """An output of no known form: it replaces nothing."""

    def check(self, path: str | Path, *, argument: str | None = None) -> None:
        """Raises InputError for a file or directory that is not empty."""
        path = Path(path)
        if any(_contents(path)) if path.is_dir() else os.path.lexists(path) and path.stat().st_size:
            raise InputError("it would be replaced", file=path, field=argument, hint=ELSEWHERE)


def _listed(path: Path) -> Collection[str] | None:
    """Names that the seal of an earlier output has; None where it has none.

    Raises:
        InputError: The seal is damaged, so that nobody knows what may be erased.
    """
    try:
        return checksums_of(path)
    except InputError as error:
        raise InputError(error.problem, file=error.file, line=error.line, hint=ELSEWHERE) from None


def _contents(path: Path) -> Iterator[str]:
    """Yields relative names of all files, links among them; drafts, which killed writers leave, are nobody's."""
    for folder, folders, names in os.walk(path, onerror=_refused):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        folders[:] = [name for name in folders if not is_draft(name)]
        for name in (*links, *names):
            if not is_draft(name):
                yield Path(folder, name).relative_to(path).as_posix()


def _refused(error: OSError) -> NoReturn:
    raise InputError("cannot be looked into", file=error.filename, hint=ELSEWHERE) from None


def _pattern(text: str) -> re.Pattern[str]:
    parts = [r"(?:[^/]+/)*" if part == "**/" else r"[^/]*" if part == "*" else re.escape(part) for part in _SPLIT(text)]
    return re.compile("".join(parts))


_SPLIT = re.compile(r"(\*\*/|\*)").split


def _object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _has(*keys: str) -> Callable[[str], bool]:
    return lambda text: set(keys) <= set(_object(text))


def _begins(*beginnings: str) -> Callable[[str], bool]:
    return lambda text: text.lstrip().lower().startswith(tuple(beginning.lower() for beginning in beginnings))


def _are_numbers(text: str) -> bool:
    numbers = _object(text).values()
    return bool(numbers) and all(isinstance(value, int | float) for value in numbers)


MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "model*.safetensors",
    "model.safetensors.index.json",
    "backbone.json",
    "LICENSE*",
    "NOTICE*",
)
COLLECTION = Layout(
    "a collection",
    "collection.json",
    _has("format", "fingerprint", "splits"),
    (
        "corpus.jsonl",
        "queries.jsonl",
        "qrels/*.tsv",
        "articles.jsonl",
        "merged.tsv",
        "teacher_scores.tsv",
        "bad_lines.jsonl",
    ),
)
TRAINING_SET = Layout(
    "a training set", "training_set.json", _has("format", "examples", "collection"), ("training_set.jsonl",)
)
BM25_RUNS = Layout(
    "runs of BM25", "runs.json", _has("system", "parameters", "collection"), ("**/*.trec", "lucene.json", "lucene/*")
)
MINED = Layout(
    "what variants share",
    "collection/collection.json",
    COLLECTION.is_mark,
    folders={"collection": COLLECTION, "training_set": TRAINING_SET, "bm25_runs": BM25_RUNS},
)
ADAPTER_FILES = ("adapter/adapter_config.json", "adapter/adapter_model*", "adapter/README.md")
BACKBONE = Layout(
    "a backbone",
    "backbone.json",
    _has("source", "digest", "stages"),
    (*MODEL_FILES, *ADAPTER_FILES, "training_log.json"),
)
RETRIEVER = Layout(
    "a retriever",
    "retriever_card.json",
    _has("method", "weights", "lineage"),
    (
        "training_log.json",
        "training_queries.npy",
        *(f"model/{name}" for name in MODEL_FILES),
        *ADAPTER_FILES,
    ),
)
INDEX = Layout(
    "an index",
    "manifest.json",
    _has("format", "kind", "shards", "card"),
    ("vectors-*.npy", "ids-*.txt", "shard-*.json", "passages.npy", "index.faiss"),
)
ENCODED = Layout("an encoded part", "part.json", _has("part", "parts", "shards"))
REFRESHED = Layout("a refreshed index", "refreshed.json", _has("production_uri", "version"), folders={"index": INDEX})
HYBRID = Layout("what hybrid search needs", "hybrid.json", _has("fusion", "bm25", "files"), ("lucene/*",))
EVALUATION = Layout(
    "an evaluation",
    "evaluation.json",
    _has("format", "splits", "card"),
    ("runs/**/*.trec", "report.html", "summary.md"),
    {"refreshed": REFRESHED, "hybrid": HYBRID},
)
COMPARISON = Layout("a comparison", "comparison.json", _has("format", "variants", "splits"))
EXPORT = Layout(
    "an export",
    "README.md",
    lambda text: ": a dense retriever" in text.partition("\n")[0],
    (
        *MODEL_FILES,
        "retriever_card.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "2_Normalize/config.json",
    ),
)
HTML = Page("a page of this step", _begins("<!doctype html>"))
NUMBERS = Page("numbers of a run", _are_numbers)
UNKNOWN = Unknown()
OUTPUTS: dict[str, Layout | Page] = {
    "collection": COLLECTION,
    "training_set": TRAINING_SET,
    "bm25_runs": BM25_RUNS,
    "data": MINED,
    "backbone": BACKBONE,
    "adapted": BACKBONE,
    "retriever": RETRIEVER,
    "index": INDEX,
    "encoded": ENCODED,
    "evaluation": EVALUATION,
    "comparison": COMPARISON,
    "picture": HTML,
    "curves": HTML,
    "report": HTML,
    "metrics": NUMBERS,
    "statistics": Page("statistics of this step", _begins("# Collection\n", "# Hard negatives\n")),
    "summary": Page("a summary of this step", _begins("# Evaluation\n", "# Comparison\n")),
    "decision": Page(
        "a decision of this step",
        _begins("# Promoted: ", "# Not promoted\n", "# Kept: ", "# Good enough to", "# Not good enough to"),
    ),
}
"""Of the steps, by the output's name."""
