from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import Negative, TrainingExample, TrainingSet, check, write_training_set
from llm_retriever.errors import InputError

EXAMPLES = [
    TrainingExample("q1", "which river — 東京 🚀", ("p1", "p2"), (Negative("p3", "bm25", 4, 7.25),)),
    TrainingExample("q2", "which engine", ("p4",), ()),
]
ROW = {
    "query_id": "q1",
    "query": "which river",
    "positives": [{"id": "p1"}],
    "negatives": [{"id": "p3", "source": "bm25", "rank": 4, "score": 7.25}],
}


@pytest.fixture
def collection(collection_directory: Path) -> Collection:
    return Collection.open(collection_directory)


@pytest.fixture
def written(tmp_path: Path, collection: Collection) -> Path:
    write_training_set(tmp_path / "set", EXAMPLES, {"seed": 17}, {"queries": 2}, collection)
    return tmp_path / "set"


def with_second_line(directory: Path, line: str | bytes) -> TrainingSet:
    """The training set with its second line replaced."""
    path = directory / "training_set.jsonl"
    first = path.read_bytes().split(b"\n")[0]
    path.write_bytes(first + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    return TrainingSet.open(directory)


def test_what_is_written_is_read_again(written: Path, collection: Collection) -> None:
    training_set = TrainingSet.open(written, collection)
    assert list(training_set.examples()) == EXAMPLES
    assert len(training_set) == 2
    assert training_set.manifest["recipe"] == {"seed": 17}
    assert training_set.manifest["counts"] == {"queries": 2}
    assert training_set.manifest["collection"] == collection.fingerprint


def test_texts_of_passages_stay_in_the_corpus(written: Path) -> None:
    row = json.loads((written / "training_set.jsonl").read_text().splitlines()[0])
    assert row["positives"] == [{"id": "p1"}, {"id": "p2"}]
    assert row["negatives"] == [{"id": "p3", "source": "bm25", "rank": 4, "score": 7.25}]


def test_digest_tells_training_sets_apart(written: Path, tmp_path: Path, collection: Collection) -> None:
    write_training_set(tmp_path / "same", EXAMPLES, {"seed": 1}, {}, collection)
    write_training_set(tmp_path / "other", EXAMPLES[:1], {}, {}, collection)
    digests = [TrainingSet.open(path).digest for path in (written, tmp_path / "same", tmp_path / "other")]
    assert digests[0] == digests[1] != digests[2]


def test_counts_are_read_after_the_last_example(tmp_path: Path, collection: Collection) -> None:
    counts = {"seen": 0}

    def counted() -> Iterator[TrainingExample]:
        for example in EXAMPLES:
            counts["seen"] += 1
            yield example

    assert write_training_set(tmp_path / "set", counted(), {}, counts, collection)["counts"] == {"seen": 2}


def test_a_failure_leaves_nothing_behind(tmp_path: Path, collection: Collection) -> None:
    def failing() -> Iterator[TrainingExample]:
        yield EXAMPLES[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_training_set(tmp_path / "out" / "set", failing(), {}, {}, collection)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ("{oh", None, "not valid JSON"),
        (b'{"query": "\xff"}', None, "not valid JSON"),
        ("[1]", None, "not a JSON object"),
        ({"query_id": 7}, "query_id", "is not a text"),
        ({"query": None}, "query", "is not a text"),
        ({"query": "  "}, "query", "is empty"),
        ({"positives": []}, "positives", "no positives"),
        ({"positives": ["p1"]}, "positives", "has no id"),
        ({"negatives": {}}, "negatives", "is not a list"),
        ({"negatives": [{"id": "p3", "source": "bm25", "score": 1.0}]}, "negatives", "lacks its source or its rank"),
        ({"negatives": [{"id": "p3", "source": "bm25", "rank": 1}]}, "negatives", "is not a number"),
        (
            {"negatives": [{"id": "p3", "source": "bm25", "rank": 1, "score": float("nan")}]},
            "negatives",
            "not a number",
        ),
    ],
)
def test_an_unusable_line_is_named_with_its_field(written: Path, line: Any, field: str | None, words: str) -> None:
    text = json.dumps({**ROW, **line}) if isinstance(line, dict) else line
    with pytest.raises(InputError, match=words) as caught:
        list(with_second_line(written, text).examples())
    assert (caught.value.file, caught.value.line) == (written / "training_set.jsonl", 2)
    assert caught.value.field == field
    assert caught.value.hint


@pytest.mark.parametrize("field", ["query_id", "query", "positives", "negatives"])
def test_a_missing_field_is_named(written: Path, field: str) -> None:
    row = {name: value for name, value in ROW.items() if name != field}
    with pytest.raises(InputError, match="is missing") as caught:
        list(with_second_line(written, json.dumps(row)).examples())
    assert (caught.value.line, caught.value.field) == (2, field)


@pytest.mark.parametrize("field", ["positives", "negatives"])
def test_an_id_that_the_collection_lacks_is_named(written: Path, collection: Collection, field: str) -> None:
    row = {**ROW, field: [{"id": "nobody", "source": "bm25", "rank": 1, "score": 1.0}]}
    spoilt = with_second_line(written, json.dumps(row))
    assert len(list(spoilt.examples())) == 2
    for read in (lambda: check(spoilt, collection), lambda: list(TrainingSet.open(written, collection).examples())):
        with pytest.raises(InputError, match="'nobody', which is not in the collection") as caught:
            read()
        assert (caught.value.line, caught.value.field) == (2, field)


def test_a_good_training_set_passes_the_check_and_one_with_an_unknown_passage_does_not(
    written: Path, collection: Collection
) -> None:
    check(TrainingSet.open(written), collection)
    unknown = with_second_line(written, json.dumps({**ROW, "positives": [{"id": "p999"}]}))
    with pytest.raises(InputError, match="p999"):
        check(unknown, collection)


def test_a_file_cut_short_is_noticed(written: Path) -> None:
    path = written / "training_set.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"has 1 examples where training_set\.json says 2"):
        list(TrainingSet.open(written).examples())


def test_a_training_set_of_another_collection_is_refused(written: Path, collection: Collection) -> None:
    manifest = json.loads((written / "training_set.json").read_text())
    (written / "training_set.json").write_text(json.dumps({**manifest, "collection": "another"}))
    with pytest.raises(InputError, match="mined from another collection"):
        TrainingSet.open(written, collection)


@pytest.mark.parametrize("missing", ["training_set.json", "training_set.jsonl"])
def test_a_directory_without_its_files_is_no_training_set(written: Path, missing: str) -> None:
    (written / missing).unlink()
    with pytest.raises(InputError, match="no such file") as caught:
        TrainingSet.open(written)
    assert "mine_negatives" in caught.value.hint


def test_a_foreign_manifest_is_refused(written: Path) -> None:
    (written / "training_set.json").write_text("[]")
    with pytest.raises(InputError, match="not the manifest of a training set"):
        TrainingSet.open(written)
