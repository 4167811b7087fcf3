"""Every layout becomes the same collection, and is recognised by itself."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.data.sources import recognised
from llm_retriever.errors import InputError
from llm_retriever.settings import CorpusSettings
from tests.conftest import passages, queries, write_beir
from tests.s3_server import S3Server

ROWS = passages(30)
ASKED = queries(ROWS)
PASSAGE = {row["_id"]: row for row in ROWS}


def prepared(source: Path | str, target: Path, **settings: Any) -> Collection:
    preparation.prepare(CorpusSettings(uri=str(source), **settings), target)
    return Collection.open(target)


def write_lines(file: Path, rows: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def write_msmarco(directory: Path) -> Path:
    """MS MARCO's files; passages without title have none in the titles file, or a dash."""
    write_lines(directory / "collection.tsv", [f"{row['_id']}\t{row['text']}" for row in ROWS])
    titles = [f"{row['_id']}\t{row['title'] or '-'}" for row in reversed(ROWS) if row["title"] or row["_id"] < "p2"]
    write_lines(directory / "para.title.txt", titles)
    write_lines(directory / "queries.train.tsv", [f"{name}\t{text}" for name, text, _ in ASKED[:20]])
    write_lines(directory / "queries.dev.tsv", [f"{name}\t{text}" for name, text, _ in ASKED[20:]])
    write_lines(directory / "queries.dev.small.tsv", [f"{name}\t{text}" for name, text, _ in ASKED[25:]])
    write_lines(directory / "qrels.train.tsv", [f"{name}\t0\t{passage}\t1" for name, _, passage in ASKED[:20]])
    write_lines(directory / "qrels.dev.small.tsv", [f"{name} 0 {passage} 1" for name, _, passage in ASKED[25:]])
    return directory


def document(name: str) -> dict[str, str]:
    return {"docid": name, "title": PASSAGE[name]["title"], "text": PASSAGE[name]["text"]}


def write_tevatron_v1(directory: Path) -> Path:
    """Passages stand inside the queries' lines, and come again in others as negatives; a corpus adds the rest."""

    def line(asked: tuple[str, str, str], negative: str) -> dict[str, Any]:
        name, text, positive = asked
        found = {"positive_passages": [document(positive)], "negative_passages": [document(negative)]}
        return {"query_id": name, "query": text, **found}

    write_lines(directory / "train.jsonl", [line(asked, f"p{i + 1}") for i, asked in enumerate(ASKED[:20])])
    write_lines(directory / "dev.jsonl", [line(asked, "p0") for asked in ASKED[20:25]])
    write_lines(
        directory / "test.jsonl", [{**line(asked, "p0"), "query_id": int(asked[0][1:])} for asked in ASKED[25:]]
    )
    return directory


def write_tevatron_v2(directory: Path) -> Path:
    """Ids in the queries' lines, and a corpus beside them, in shards of parquet."""

    def line(asked: tuple[str, str, str]) -> dict[str, Any]:
        name, text, positive = asked
        found = {"positive_document_ids": [positive], "negative_document_ids": ["p0"]}
        return {"query_id": name, "query_text": text, **found}

    write_lines(directory / "train.jsonl", [line(asked) for asked in ASKED[:20]])
    write_lines(directory / "test.jsonl", [line(asked) for asked in ASKED[25:]])
    (directory / "corpus").mkdir()
    for i in range(2):
        table = arrow.Table.from_pylist([document(row["_id"]) for row in ROWS[i * 15 : (i + 1) * 15]])
        parquet.write_table(table, directory / "corpus" / f"train-0000{i}-of-00002.parquet")
    return directory


def write_flagembedding(directory: Path) -> Path:
    """Texts without any id."""
    lines = [
        {"query": text, "pos": [PASSAGE[positive]["text"]], "neg": [ROWS[0]["text"], ROWS[-1]["text"]]}
        for _, text, positive in ASKED
    ]
    write_lines(directory / "train.jsonl", lines[:20])
    write_lines(directory / "dev_part1.jsonl", lines[20:])
    return directory


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_beir, "beir"),
        (write_msmarco, "msmarco"),
        (write_tevatron_v1, "tevatron"),
        (write_tevatron_v2, "tevatron"),
        (write_flagembedding, "flagembedding"),
    ],
)
def test_a_layout_is_recognised(tmp_path: Path, write: Callable[[Path], Path], name: str) -> None:
    assert recognised(write(tmp_path), "source") == name


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "notes.jsonl", [{"note": "buy bread"}])
    with pytest.raises(InputError, match='field "format": the layout is none of those known'):
        prepared(tmp_path, tmp_path / "collection")


def test_a_missing_directory_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        prepared(tmp_path / "nowhere", tmp_path / "collection")
    (tmp_path / "corpus.jsonl").write_text("{}")
    with pytest.raises(InputError, match="is a file, not a directory"):
        prepared(tmp_path / "corpus.jsonl", tmp_path / "collection")


def test_an_unknown_demo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no demo 'demo:cats'; use demo:python-docs"):
        prepared("demo:cats", tmp_path / "collection")


def test_msmarco_files_become_a_collection_with_titles(tmp_path: Path) -> None:
    made = prepared(write_msmarco(tmp_path / "source"), tmp_path / "collection")
    assert [passage._asdict() for passage in made.passages()] == [
        {"id": row["_id"], "title": row["title"], "text": row["text"]} for row in ROWS
    ]
    assert made.splits == ["train", "dev.small"]
    assert made.qrels("dev.small")["q29"] == {"p29": 1}
    assert made.manifest["counts"]["queries_unjudged"] == 5


def test_msmarco_needs_no_titles_and_reads_gzip(tmp_path: Path) -> None:
    source = write_msmarco(tmp_path / "source")
    (source / "para.title.txt").unlink()
    for path in list(source.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    made = prepared(source, tmp_path / "collection")
    assert made.passage_count == 30
    assert {passage.title for passage in made.passages()} == {""}


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("collection.tsv", "p0\tanother text", "passage id 'p0' was there before with another text"),
        ("collection.tsv", "p99", 'field "text": the text is empty'),
        ("collection.tsv", "p 99\ttext", 'field "pid": the id'),
        ("queries.train.tsv", "q0\tanother question", "query id 'q0' was there before with another text"),
        ("qrels.train.tsv", "q0 0 p1", "3 columns"),
        ("qrels.train.tsv", "q0 0 p1 1 1", "5 columns"),
        ("qrels.train.tsv", "q0\t0\tp1\tyes", "'yes' is not a whole number"),
    ],
)
def test_bad_lines_of_msmarco_files_are_named(tmp_path: Path, file: str, line: str, problem: str) -> None:
    source = write_msmarco(tmp_path / "source")
    lines = (source / file).read_text().splitlines()
    (source / file).write_text("\n".join([*lines, line]) + "\n")
    with pytest.raises(InputError, match=rf"{file}:{len(lines) + 1}: .*{problem}"):
        prepared(source, tmp_path / "collection")


@pytest.mark.parametrize("name", ["collection.tsv", "queries.*", "qrels.*"])
def test_missing_msmarco_files_are_refused(tmp_path: Path, name: str) -> None:
    source = write_msmarco(tmp_path / "source")
    for path in source.glob(name):
        path.unlink()
    with pytest.raises(InputError, match="no such file"):
        prepared(source, tmp_path / "collection", format="msmarco")


def test_tevatron_lines_with_passages_inside_become_a_collection(tmp_path: Path) -> None:
    made = prepared(write_tevatron_v1(tmp_path / "source"), tmp_path / "collection")
    lookup = made.lookup()
    assert {passage.id for passage in made.passages()} == set(PASSAGE)
    assert all(lookup[name] == (name, row["title"], row["text"]) for name, row in PASSAGE.items())
    assert made.splits == ["train", "dev", "test"]
    assert made.qrels("train")["q3"] == {"p3": 1}
    assert made.qrels("test")["29"] == {"p29": 1}


def test_a_tevatron_passage_that_comes_with_two_texts_is_refused(tmp_path: Path) -> None:
    source = write_tevatron_v1(tmp_path / "source")
    file = source / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[4]["negative_passages"][0] = {**document("p0"), "text": "another"}
    write_lines(file, rows)
    with pytest.raises(InputError, match=r"train\.jsonl:5: .*'p0' was there before with another text"):
        prepared(source, tmp_path / "collection")


def test_tevatron_ids_beside_a_parquet_corpus_become_a_collection(tmp_path: Path) -> None:
    made = prepared(write_tevatron_v2(tmp_path / "source"), tmp_path / "collection")
    assert made.passage_count == 30
    assert made.qrels("train")["q3"] == {"p3": 1}
    assert made.queries("test")["q29"] == ASKED[29][1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"positive_passages": []}, 'field "positive_passages": the query has no positive passage'),
        ({"positive_passages": "p1"}, 'field "positive_passages": must be a list, not str'),
        ({"positive_passages": ["p1"]}, 'field "positive_passages": must hold objects, not str'),
        ({"positive_passages": [{"docid": "x"}]}, 'field "text": the field is missing'),
        ({"negative_passages": [{"docid": "x", "text": ""}]}, 'field "text": the text is empty'),
        ({"query": None}, 'field "query": the field is missing'),
        ({"query_id": "a b"}, 'field "query_id": the id'),
    ],
)
def test_a_bad_tevatron_line_is_named_and_leaves_nothing_of_itself(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    source = write_tevatron_v1(tmp_path / "source")
    file = source / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2] |= change
    write_lines(file, rows)
    with pytest.raises(InputError, match=rf"train\.jsonl:3: {problem}"):
        prepared(source, tmp_path / "collection")
    assert "q2" not in prepared(source, tmp_path / "collection", max_bad_lines=1).queries("train")


def test_flagembedding_texts_get_ids_of_their_content(tmp_path: Path) -> None:
    source = write_flagembedding(tmp_path / "source")
    made = prepared(source, tmp_path / "collection")
    assert made.splits == ["train", "dev"]
    assert sorted(passage.text for passage in made.passages()) == sorted(row["text"] for row in ROWS)
    lookup, asked = made.lookup(), made.queries("dev")
    answers = {asked[query]: lookup[next(iter(found))].text for query, found in made.qrels("dev").items()}
    assert answers == {text: PASSAGE[positive]["text"] for _, text, positive in ASKED[20:]}
    (source / "dev_part1.jsonl").rename(source / "dev_part2.jsonl")
    assert prepared(source, tmp_path / "again").fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pos": []}, 'field "pos": the query has no positive passage'),
        ({"pos": "text"}, 'field "pos": must be a list of texts'),
        ({"neg": [3]}, 'field "neg": must be a list of texts'),
        ({"neg": [" "]}, 'field "neg": the text is empty'),
        ({"query": ""}, 'field "query": the text is empty'),
    ],
)
def test_a_bad_flagembedding_line_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    source = write_flagembedding(tmp_path / "source")
    rows = [json.loads(line) for line in (source / "train.jsonl").read_text().splitlines()]
    rows[2] |= change
    write_lines(source / "train.jsonl", rows)
    with pytest.raises(InputError, match=rf"train\.jsonl:3: {problem}"):
        prepared(source, tmp_path / "collection")


def test_beir_shards_of_parquet_equal_the_plain_files(tmp_path: Path) -> None:
    plain = write_beir(tmp_path / "plain", 30)
    sharded = tmp_path / "sharded"
    for name in ("corpus", "queries"):
        (sharded / name).mkdir(parents=True)
        rows = [json.loads(line) for line in (plain / f"{name}.jsonl").read_text().splitlines()]
        for i in range(2):
            part = arrow.Table.from_pylist(rows[i * 15 : (i + 1) * 15])
            parquet.write_table(part, sharded / name / f"{name}-0000{i}-of-00002.parquet")
    write_lines(sharded / "qrels" / "train.jsonl", _judgments(plain / "qrels" / "train.tsv"))
    (sharded / "qrels" / "test.tsv.gz").write_bytes(gzip.compress((plain / "qrels" / "test.tsv").read_bytes()))
    expected = prepared(plain, tmp_path / "a").fingerprint
    assert prepared(sharded, tmp_path / "b").fingerprint == expected


def _judgments(file: Path) -> list[dict[str, Any]]:
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    return [{"query-id": query, "corpus-id": passage, "score": float(grade)} for query, passage, grade in rows]


def write_parquet_corpus(source: Path, **columns: Any) -> Path:
    """Replaces a corpus by parquet, with further columns."""
    rows = [json.loads(line) for line in (source / "corpus.jsonl").read_text().splitlines()]
    (source / "corpus.jsonl").unlink()
    table = arrow.Table.from_pylist(rows)
    for name, values in columns.items():
        table = table.append_column(name.rstrip("_"), values)
    parquet.write_table(table, source / "corpus.parquet", compression="none", write_page_checksum=True)
    return source / "corpus.parquet"


def test_a_date_that_python_cannot_hold_in_another_column_of_parquet_hinders_nothing(tmp_path: Path) -> None:
    expected = prepared(write_beir(tmp_path / "plain", 30), tmp_path / "a")
    source = write_beir(tmp_path / "source", 30)
    write_parquet_corpus(
        source, seen=arrow.array([2**62] * 30, arrow.timestamp("us")), day=arrow.array([2**30] * 30, arrow.date32())
    )
    made = prepared(source, tmp_path / "b")
    assert made.manifest["counts"] == expected.manifest["counts"]
    assert made.manifest["left_out"]["fields"] == {"day": 30, "seen": 30}


def test_columns_of_parquet_that_are_called_alike_are_refused(tmp_path: Path) -> None:
    source = write_beir(tmp_path / "source", 30)
    write_parquet_corpus(source, text_=arrow.array(["x"] * 30))
    with pytest.raises(InputError, match=r"corpus\.parquet: several columns are called alike: _id, title, text, text"):
        prepared(source, tmp_path / "collection")


def test_a_damaged_page_of_parquet_is_no_matter_of_permissions(tmp_path: Path) -> None:
    source = write_beir(tmp_path / "source", 30)
    file = write_parquet_corpus(source)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"not a whole parquet file .*; copy it again"):
        prepared(source, tmp_path / "collection")


def test_broken_parquet_and_gzip_files_are_refused(tmp_path: Path) -> None:
    source = write_tevatron_v2(tmp_path / "tevatron")
    (source / "corpus" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(InputError, match="not a whole parquet file"):
        prepared(source, tmp_path / "collection")
    source = write_beir(tmp_path / "beir")
    whole = gzip.compress((source / "corpus.jsonl").read_bytes())
    (source / "corpus.jsonl").unlink()
    (source / "corpus.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole gzip file"):
        prepared(source, tmp_path / "collection")


def test_a_source_in_a_bucket_equals_the_directory(tmp_path: Path, s3: S3Server) -> None:
    source = write_beir(tmp_path / "source")
    client = s3.client()
    for path in sorted(source.rglob("*.*")):
        client.upload_file(str(path), s3.bucket, f"corpora/one/{path.relative_to(source).as_posix()}")
    uri = f"s3://{s3.bucket}/corpora/one"
    expected = prepared(source, tmp_path / "a").fingerprint
    made = prepared(uri, tmp_path / "b")
    assert made.fingerprint == expected
    assert made.manifest["source"] == {"uri": uri, "format": "beir"}


def test_a_bad_line_in_a_bucket_is_named_by_its_uri(tmp_path: Path, s3: S3Server) -> None:
    source = write_beir(tmp_path / "source")
    (source / "corpus.jsonl").write_text("{\n")
    for path in sorted(source.rglob("*.*")):
        s3.client().upload_file(str(path), s3.bucket, f"one/{path.relative_to(source).as_posix()}")
    shutil.rmtree(source)
    with pytest.raises(InputError, match=rf"^s3://{s3.bucket}/one/corpus\.jsonl:1: not valid JSON"):
        prepared(f"s3://{s3.bucket}/one/", tmp_path / "collection")
