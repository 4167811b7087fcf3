"""The training set: every training query with its positives and its mined hard negatives, each with its provenance.

Texts stay in the collection; `training_set.jsonl` holds ids, one query a line, and `training_set.json` the recipe that
made it and its counts. A line is

    {"query_id", "query", "source", "positives": [{"id", "score_teacher"}],
     "negatives": [{"id", "source", "rank", "score", "also", "score_teacher"}]}

where some fields are optional: `source`, the data set that the query comes from, `also`, where else a negative was found
({"source", "rank", "score"} each), and `score_teacher`, what a teacher (a cross-encoder, say) gives the passage for the
query, which distillation needs.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.files import layouts

if TYPE_CHECKING:
    from llm_retriever.data.collection import Collection

EXAMPLES_FILE = "training_set.jsonl"
MANIFEST_FILE = "training_set.json"
FORMAT = 1
FIELDS = (("query_id", str, "text"), ("query", str, "text"), ("positives", list, "list"), ("negatives", list, "list"))
HINT_DIRECTORY = "give the output of mine_negatives"


@dataclass(frozen=True, slots=True)
class Found:
    """Source, rank and score by which a passage was found.

    Attributes:
        source: Which miner found it: ``"bm25"``, ``"dense"``, or ``"random"``, which nobody found.
        rank: Its 1-based rank in that miner's list; 0 = random.
        score: Its score there, in that miner's own unit; 0 = random.
    """

    source: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Negative:
    """A hard negative and where it was found.

    Attributes:
        id: Id of the passage.
        source: Which miner found it; of several, the one that ranks it best, and at equal ranks the first.
        rank: Its 1-based rank in that miner's list; 0 = drawn at random.
        score: Its score there, in that miner's own unit.
        also: Where else it was found.
        score_teacher: A teacher's score, in its own unit; None = there is none.
    """

    id: str
    source: str
    rank: int
    score: float
    also: tuple[Found, ...] = ()
    score_teacher: float | None = None


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A training query with the ids of its positives (at least one) and its negatives (there may be none).

    Attributes:
        query_id: Its id.
        query: Its text.
        positives: Ids.
        negatives: Ids, and where they were found.
        source: The data set that the query comes from; "" where that is not known.
        positives_teacher: A teacher's score of each positive; () where there is none for one of them.
    """

    query_id: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[Negative, ...]
    source: str = ""
    positives_teacher: tuple[float, ...] = ()

    @property
    def has_teacher(self) -> bool:
        """Whether every passage has a teacher's score."""
        return bool(self.positives_teacher) and all(n.score_teacher is not None for n in self.negatives)


class TrainingSet:
    """A training set on disk; examples are read one at a time.

    Args:
        directory: Where `training_set.jsonl` and `training_set.json` lie.
        manifest: The content of `training_set.json`.
        known: The ids that positives and negatives may name; None = they are not checked.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], known: Container[str] | None = None) -> None:
        self.directory, self.manifest, self._known = directory, manifest, known

    @classmethod
    def open(cls, path: str | Path, collection: Collection | None = None) -> TrainingSet:
        """Opens a training set; with the `collection` it belongs to, every id that it names is checked as it is read.

        Raises:
            InputError: The directory is not a training set, or was mined from another collection.
        """
        directory = Path(path)
        file = directory / MANIFEST_FILE
        manifest = files.read_json(file, hint=HINT_DIRECTORY)
        number = manifest.get("examples") if isinstance(manifest, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < sys.maxsize:
            raise InputError("not the manifest of a training set", file=file, field="examples", hint=HINT_DIRECTORY)
        if not (directory / EXAMPLES_FILE).is_file():
            raise InputError("no such file", file=directory / EXAMPLES_FILE, hint=HINT_DIRECTORY)
        if collection is None:
            return cls(directory, manifest)
        if manifest.get("collection") != collection.fingerprint:
            raise InputError(
                f"mined from another collection than {collection.directory}",
                file=file,
                field="collection",
                hint="mine the negatives again from this collection",
            )
        return cls(directory, manifest, collection.lookup())

    def __len__(self) -> int:
        return int(self.manifest["examples"])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the examples."""
        return files.sha256_of_file(self.directory / EXAMPLES_FILE)

    def examples(self) -> Iterator[TrainingExample]:
        """Streams the examples in the order of the file.

        Raises:
            InputError: A line is not a usable example, or there are not as many as the manifest says.
        """
        path = self.directory / EXAMPLES_FILE
        number = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield _example(line, path, number, self._known)
        if number != len(self):
            raise InputError(
                f"has {number} examples where {MANIFEST_FILE} says {len(self)}", file=path, hint="mine it again"
            )


def check(training_set: TrainingSet, collection: Collection) -> None:
    """Reads every example and looks every id up in `collection`.

    Raises:
        InputError: The first line that is unusable or names a passage that the collection does not have.
    """
    for _ in TrainingSet(training_set.directory, training_set.manifest, collection.lookup()).examples():
        pass


def write_training_set(
    directory: str | Path,
    examples: Iterable[TrainingExample],
    recipe: Mapping[str, Any],
    counts: Mapping[str, Any],
    collection: Collection,
) -> dict[str, Any]:
    """Writes a training set; `directory` appears when it is complete.

    Args:
        directory: Where to; an existing training set is replaced.
        examples: Read once, written as they come.
        recipe: How the negatives were chosen: sources, depth, rank floor, score ceiling, seed.
        counts: What came of it. Read after the last example, so that a generator can fill it.
        collection: Where the ids belong to.

    Returns:
        The manifest.
    """
    written = 0
    with layouts.TRAINING_SET.output(directory) as draft:
        with (draft / EXAMPLES_FILE).open("w", encoding="utf-8", newline="\n") as lines:
            for example in examples:
                lines.write(_as_line(example))
                written += 1
        manifest = {
            "format": FORMAT,
            "examples": written,
            "collection": collection.fingerprint,
            "recipe": dict(recipe),
            "counts": dict(counts),
        }
        files.write_json(draft / MANIFEST_FILE, manifest)
    return manifest


def _as_line(example: TrainingExample) -> str:
    row = {
        "query_id": example.query_id,
        "query": example.query,
        **({"source": example.source} if example.source else {}),
        "positives": [
            {"id": passage, **_teacher(score)}
            for passage, score in itertools.zip_longest(example.positives, example.positives_teacher)
        ],
        "negatives": [{"id": n.id, **_as_row(n), **_also(n), **_teacher(n.score_teacher)} for n in example.negatives],
    }
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _as_row(found: Found | Negative) -> dict[str, Any]:
    return {"source": found.source, "rank": found.rank, "score": found.score}


def _teacher(score: float | None) -> dict[str, float]:
    return {} if score is None else {"score_teacher": score}


def _also(negative: Negative) -> dict[str, Any]:
    return {"also": [_as_row(found) for found in negative.also]} if negative.also else {}


def _example(line: bytes, path: Path, number: int, known: Container[str] | None) -> TrainingExample:
    try:
        return _validated(json.loads(line), known)
    except ValueError as error:
        problem, field = f"not valid JSON ({error})", None
    except _LineError as fault:
        problem, field = fault.problem, fault.field
    raise InputError(problem, file=path, line=number, field=field, hint="correct the line, or mine again")


class _LineError(Exception):
    def __init__(self, problem: str, field: str | None = None) -> None:
        self.problem, self.field = problem, field


def _validated(row: Any, known: Container[str] | None) -> TrainingExample:
    if not isinstance(row, dict):
        raise _LineError("not a JSON object")
    for field, kind, expected in FIELDS:
        if field not in row:
            raise _LineError("is missing", field)
        if not isinstance(row[field], kind):
            raise _LineError(f"is not a {expected}", field)
    if not row["query"].strip():
        raise _LineError("the query is empty", "query")
    if not row["positives"]:
        raise _LineError("the query has no positives", "positives")
    positives = tuple(_passage_id(entry, "positives", known) for entry in row["positives"])
    source = row.get("source", "")
    if not isinstance(source, str):
        raise _LineError("is not a text", "source")
    teacher = tuple(score for entry in row["positives"] if (score := _score_teacher(entry, "positives")) is not None)
    return TrainingExample(
        row["query_id"],
        row["query"],
        positives,
        tuple(_negative(entry, known) for entry in row["negatives"]),
        source,
        teacher if len(teacher) == len(positives) else (),
    )


def _passage_id(entry: Any, field: str, known: Container[str] | None) -> str:
    identifier = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(identifier, str):
        raise _LineError("an entry has no id", field)
    if known is not None and identifier not in known:
        raise _LineError(f"names passage {identifier!r}, which is not in the collection", field)
    return identifier


def _negative(entry: Any, known: Container[str] | None) -> Negative:
    identifier = _passage_id(entry, "negatives", known)
    first = _found(entry, identifier)
    also = entry.get("also", [])
    if not isinstance(also, list):
        raise _LineError(f"`also` of passage {identifier!r} is not a list", "negatives")
    others = tuple(_found(other, identifier) for other in also)
    teacher = _score_teacher(entry, "negatives")
    return Negative(identifier, first.source, first.rank, first.score, others, teacher)


def _score_teacher(entry: dict[str, Any], field: str) -> float | None:
    score = entry.get("score_teacher")
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise _LineError(f"score_teacher of passage {entry['id']!r} is not a number", field)
    return float(score)


def _found(entry: Any, identifier: str) -> Found:
    source, rank, score = (entry.get(name) if isinstance(entry, dict) else None for name in ("source", "rank", "score"))
    if not isinstance(source, str) or not isinstance(rank, int):
        raise _LineError(f"passage {identifier!r} lacks its source or its rank", "negatives")
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise _LineError(f"the score of passage {identifier!r} is not a number", "negatives")
    return Found(source, rank, float(score))
