"""Which column of qrels is which, and what a grade may be: in sources of every layout and in prepared collections."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection, fingerprint_of
from llm_retriever.data.grades import grade_of
from llm_retriever.errors import InputError
from llm_retriever.settings import CorpusSettings

Qrels = dict[str, dict[str, int]]
NUMBERS = range(12)
# Every id is a number that is also that of a passage, of a query and a possible grade: nothing but the columns tells them apart.
JUDGED = [(query, (query * 5 + 3) % 12, 1 + query % 3) for query in NUMBERS]
EXPECTED = {str(query): {str(passage): grade} for query, passage, grade in JUDGED}


def write_corpus(directory: Path) -> Path:
    (directory / "qrels").mkdir(parents=True)
    passages = [{"_id": str(i), "title": "", "text": f"The passage number {i} is about {i * 7}."} for i in NUMBERS]
    queries = [{"_id": str(i), "text": f"what is number {i} about"} for i in NUMBERS]
    for name, rows in (("corpus", passages), ("queries", queries)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def read(tmp_path: Path, lines: list[str], **settings: Any) -> Qrels:
    """The judgments of a BEIR source whose qrels are these lines."""
    source = write_corpus(tmp_path / "source")
    (source / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    preparation.prepare(CorpusSettings(uri=str(source), **settings), tmp_path / "collection")
    return Collection.open(tmp_path / "collection").qrels("test")


LAYOUTS: dict[str, tuple[str | None, Callable[[int, int, int], tuple[object, ...]]]] = {
    "BEIR with its header": ("query-id corpus-id score", lambda q, p, g: (q, p, g)),
    "BEIR without a header": (None, lambda q, p, g: (q, p, g)),
    "grades with a decimal point": (None, lambda q, p, g: (q, p, f"{g}.0")),
    "TREC": (None, lambda q, p, g: (q, 0, p, g)),
    "TREC with Q0": (None, lambda q, p, g: (q, "Q0", p, g)),
    "passage before query": ("corpus-id query-id score", lambda q, p, g: (p, q, g)),
    "grade first": ("Relevance DocID QueryID", lambda q, p, g: (g, p, q)),
    "an annotator at the end": ("query passage grade annotator", lambda q, p, g: (q, p, g, 5)),
    "an annotator at the start": ("annotator qid pid label", lambda q, p, g: (7, q, p, g)),
    "rounds of TREC-COVID": ("topic_id iteration doc_id judgment", lambda q, p, g: (q, 4.5, p, g)),
    "the text beside the id": ("query_id query passage_id passage rel", lambda q, p, g: (q, "x", p, "y", g)),
    "TREC with a header": ("qid 0 docno rel", lambda q, p, g: (q, 0, p, g)),
}


@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("name", LAYOUTS)
def test_columns_are_read_by_the_header_or_as_beirs_and_trecs(tmp_path: Path, name: str, separator: str) -> None:
    header, order = LAYOUTS[name]
    lines = [] if header is None else [header.replace(" ", separator)]
    lines += [separator.join(map(str, order(*judged))) for judged in JUDGED]
    assert read(tmp_path, lines) == EXPECTED


REFUSED = {
    "an annotator without a header": (["11\t2\t1\t5", "10\t2\t1\t5"], 1, "four columns without a header"),
    "an annotator 0 at first": (["11\t0\t1\t5", "10\t2\t1\t5"], 2, "the second is '2' and not 0 or Q0"),
    "no grade": (["query-id\tcorpus-id", "1\t2"], 1, 'field "score": the header has no such column'),
    "no query": (["user\tcorpus-id\tscore", "1\t2\t1"], 1, 'field "query-id": the header has no such column'),
    "two grades": (["qid\tpid\tgrade\tscore", "1\t2\t1\t5"], 1, 'field "score": several columns'),
    "two passages": (["qid\tpid\tdocid\tgrade", "1\t2\t3\t1"], 1, 'field "corpus-id": several columns'),
    "a short line": (["qid\tpid\tgrade\tannotator", "1\t2\t1"], 2, "3 columns; give it the 4 columns of the header"),
    "a long line": (["1\t2\t1", "2\t0\t3\t1"], 2, "4 columns"),
    "TREC without grades": (["1 0 2", "2 0 3", "3 0 1"], None, "whose grades are missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_columns_that_could_be_read_in_two_ways_are_refused_with_file_line_and_hint(tmp_path: Path, name: str) -> None:
    lines, number, problem = REFUSED[name]
    with pytest.raises(InputError) as caught:
        read(tmp_path, lines)
    place = f"{tmp_path}/source/qrels/test.tsv" + (f":{number}" if number else "")
    assert str(caught.value).startswith(f"{place}: ")
    assert problem in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "collection").exists()


def test_an_order_of_columns_that_is_unknown_is_no_bad_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="four columns without a header"):
        read(tmp_path, [f"{q}\t{p}\t{g}\t5" for q, p, g in JUDGED], max_bad_lines=1000)


def test_a_line_of_another_width_is_a_bad_line(tmp_path: Path) -> None:
    lines = ["nothing", *(f"{q} 0 {p} {g}" for q, p, g in JUDGED), "1 2 3"]
    assert read(tmp_path, lines, max_bad_lines=2) == EXPECTED


def test_passage_0_alone_is_read_where_a_header_says_so(tmp_path: Path) -> None:
    assert read(tmp_path, ["qid pid grade", "1 0 2", "2 0 3"]) == {"1": {"0": 2}, "2": {"0": 3}}


def test_ids_that_are_names_of_columns_are_no_header(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "source")
    (source / "corpus.jsonl").write_text('{"_id": "doc", "title": "", "text": "A text."}\n')
    (source / "queries.jsonl").write_text('{"_id": "query", "text": "a question"}\n')
    (source / "qrels" / "test.tsv").write_text("query\tdoc\t1\n")
    preparation.prepare(CorpusSettings(uri=str(source)), tmp_path / "collection")
    assert Collection.open(tmp_path / "collection").qrels("test") == {"query": {"doc": 1}}


GRADES = [(1, 1), ("1", 1), ("1.0", 1), ("1.", 1), (1.0, 1), (Decimal("2.0"), 2), ("+3", 3), ("-2", -2), ("007", 7)]
NO_GRADES = [
    *("1_0", "1e1", "0.5", "", "high", "nan", "inf", "٣", "1 0", "0x1", "--1"),
    *(0.5, float("nan"), float("inf"), True, None, [1], {"grade": 1}, Decimal("NaN"), Decimal("0.5")),
]
TOO_LARGE = ["1732700000", 1732700000, 1732700000123, 1e30, 10**40, "9" * 5000, "1001", -11, Decimal(5000)]


@pytest.mark.parametrize(("value", "grade"), [*GRADES, ("1000", 1000), (-10, -10)])
def test_a_grade_is_a_whole_number_however_it_is_written(value: object, grade: int) -> None:
    assert grade_of(value, file="qrels", line=3, field="score") == grade


@pytest.mark.parametrize("value", [*NO_GRADES, *TOO_LARGE], ids=lambda value: f"{value!r:.20}")
def test_anything_else_is_no_grade(value: object) -> None:
    problem = "is not a whole number" if value in NO_GRADES or value != value else "is not within -10 to 1000"
    with pytest.raises(InputError, match=rf'^qrels:3: field "score": the grade .{{1,60}} {problem}; grades are'):
        grade_of(value, file="qrels", line=3, field="score")


@pytest.mark.parametrize("grade", ["1_0", "1732700000", "1732700000123", "9" * 30, "nan"])
def test_a_source_in_text_json_or_parquet_refuses_the_same_grades(tmp_path: Path, grade: str) -> None:
    with pytest.raises(InputError, match=r"test\.tsv:2: .*the grade"):
        read(tmp_path / "text", ["query-id\tcorpus-id\tscore", f"1\t2\t{grade}"])
    source = write_corpus(tmp_path / "json")
    file = source / "qrels" / "test.jsonl"
    file.write_text(json.dumps({"query-id": "1", "corpus-id": "2", "score": grade}) + "\n")
    with pytest.raises(InputError, match=r"test\.jsonl:1: .*the grade"):
        preparation.prepare(CorpusSettings(uri=str(source)), tmp_path / "collection")


@pytest.mark.parametrize("type_", [arrow.int64(), arrow.float32(), arrow.decimal128(30, 2), arrow.string()])
def test_parquet_of_any_type_has_the_grades_of_the_text_file(tmp_path: Path, type_: arrow.DataType) -> None:
    source = write_corpus(tmp_path / "source")
    (source / "default").mkdir()
    (source / "qrels").rmdir()
    queries, passages, grades = zip(*JUDGED, strict=True)
    plain = [str(grade) if type_ == arrow.string() else grade for grade in grades]
    columns = {"score": arrow.array(plain).cast(type_), "corpus-id": list(passages), "query-id": list(queries)}
    parquet.write_table(arrow.table(columns), source / "default" / "test.parquet")
    preparation.prepare(CorpusSettings(uri=str(source)), tmp_path / "collection")
    assert Collection.open(tmp_path / "collection").qrels("test") == EXPECTED


@pytest.mark.parametrize("grade", [float("nan"), 1e12, 0.5])
def test_parquet_with_a_number_that_is_no_grade_is_refused_with_its_row(tmp_path: Path, grade: float) -> None:
    source = write_corpus(tmp_path / "source")
    columns = {"query-id": ["1", "2"], "corpus-id": ["1", "2"], "score": [1.0, grade]}
    parquet.write_table(arrow.table(columns), source / "qrels" / "test.parquet")
    with pytest.raises(InputError, match=r"test\.parquet:2: field \"score\": the grade"):
        preparation.prepare(CorpusSettings(uri=str(source)), tmp_path / "collection")


def describe_anew(directory: Path) -> None:
    """Makes a changed collection one that somebody has written by hand: its manifest agrees with its files."""
    manifest = json.loads((directory / "collection.json").read_text())
    manifest["files"] = {name: (directory / name).stat().st_size for name in manifest["files"]}
    manifest["fingerprint"] = fingerprint_of(directory, manifest["files"])
    (directory / "collection.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("3\t6\t3", None),
        ("3\t6\tx", r'test\.tsv:5: field "score": the grade \'x\' is not a whole number'),
        ("3\t6 1", r"test\.tsv:5: 2 columns instead of 3; prepare the collection again"),
    ],
)
def test_a_prepared_collection_that_was_changed_is_read_by_the_same_rules(
    tmp_path: Path, line: str, problem: str | None
) -> None:
    read(tmp_path, [f"{q}\t{p}\t{g}" for q, p, g in JUDGED])
    file = tmp_path / "collection" / "qrels" / "test.tsv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:4], line, *lines[5:]]) + "\n")
    describe_anew(tmp_path / "collection")
    collection = Collection.open(tmp_path / "collection")
    if problem is None:
        assert collection.qrels("test")["3"] == {"6": 3}
        return
    with pytest.raises(InputError, match=problem):
        collection.qrels("test")


def test_a_prepared_collection_with_another_header_is_refused(tmp_path: Path) -> None:
    read(tmp_path, [f"{q}\t{p}\t{g}" for q, p, g in JUDGED])
    file = tmp_path / "collection" / "qrels" / "test.tsv"
    file.write_text(file.read_text().replace("query-id\tcorpus-id", "corpus-id\tquery-id"))
    describe_anew(tmp_path / "collection")
    with pytest.raises(InputError, match=r"test\.tsv:1: the header is not query-id corpus-id score"):
        Collection.open(tmp_path / "collection").qrels("test")
