"""Files as people have them: other names of columns, arrays, CSV, triples, headers; what is not understood is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from llm_retriever.data.collection import Collection
from llm_retriever.data.collection_report import statistics_markdown
from llm_retriever.data.sources import recognised
from llm_retriever.errors import InputError
from tests.conftest import write_beir
from tests.data.sources.test_layouts import ASKED, PASSAGE, ROWS, prepared, write_lines, write_msmarco

TRAIN = [
    (text, PASSAGE[positive]["text"], ROWS[number]["text"]) for number, (_, text, positive) in enumerate(ASKED[2:20])
]


def write_qrels(file: Path, asked: list[tuple[str, str, str]]) -> None:
    write_lines(file, [f"{name} 0 {passage} 1" for name, _, passage in asked])


def as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    "name", ["test.txt", "test.txt.gz", "test.trec", "test.qrels", "qrels.test.txt", "test.qrels.tsv"]
)
def test_qrels_in_the_folder_are_read_whatever_they_end_in(tmp_path: Path, name: str) -> None:
    expected = prepared(write_beir(tmp_path / "plain"), tmp_path / "a")
    source = write_beir(tmp_path / "source")
    content = (source / "qrels" / "test.tsv").read_bytes()
    (source / "qrels" / "test.tsv").unlink()
    (source / "qrels" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert prepared(source, tmp_path / "b").fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("qrels.dl19.tsv", "dl19"),
        ("qrels.dl19.txt", "dl19"),
        ("qrels-dl19.txt.gz", "dl19"),
        ("2019qrels-pass.txt", "2019-pass"),
        ("2021.qrels.pass.final.txt", "2021.pass.final"),
    ],
)
@pytest.mark.parametrize("layout", ["beir", "msmarco"])
def test_qrels_beside_the_corpus_are_a_split(tmp_path: Path, layout: str, name: str, split: str) -> None:
    source = write_beir(tmp_path / "source", 30) if layout == "beir" else write_msmarco(tmp_path / "source")
    text = "".join(f"{query} 0 {passage} 2\n" for query, _, passage in ASKED[21:25])
    (source / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    made = prepared(source, tmp_path / "collection")
    assert made.qrels(split) == {query: {passage: 2} for query, _, passage in ASKED[21:25]}
    assert "left_out" not in made.manifest


def test_the_queries_of_a_track_are_read_by_its_own_name_of_the_file(tmp_path: Path) -> None:
    source = write_msmarco(tmp_path / "source")
    write_lines(source / "msmarco-test2019-queries.tsv", ["1037798\twho is robert gray", "9\twhat is a glacier"])
    write_lines(source / "2019qrels-pass.txt", ["1037798 Q0 p3 0", "9 Q0 p4 3"])
    assert prepared(source, tmp_path / "collection").qrels("2019-pass") == {"1037798": {"p3": 0}, "9": {"p4": 3}}


def test_what_is_not_understood_is_named_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_beir(tmp_path / "source", 30)
    data = ("qrels/test.parq", "qrels/dev.xlsx", "run.trec", "qrels.tsv", "splits/dev.tsv", "old.zip", "qrels/b.arrow")
    data += (
        "qrels/dev",
        "qrels/dev.qrel",
        "qrels/old.md",
        "qrels/dev.tsv.1",
        "qrels.dl20",
        "qrels.tsv.md5",
        "my-qrels.bak",
    )
    data += (
        "corpus2.ndjson",
        "corpus.part",
        "queries.dev",
        "collection-en.html",
        "collectionandqueries.tar.gz",
        "top1000.dev",
    )
    no_data = (
        "README.md",
        "LICENSE.txt",
        ".cache/x.json",
        "dataset_info.json",
        "plot.png",
        "load.py",
        "qrels/readme.txt",
    )
    for name in (*data, *no_data, "SHA256SUMS.sha256", "Makefile"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    made = prepared(source, tmp_path / "collection")
    known = sorted(data)
    assert made.manifest["left_out"]["files"] == known
    assert f"the layout has no such files: {', '.join(known)}" in capfd.readouterr().err
    assert ", ".join(f"`{name}`" for name in known) in statistics_markdown(made.manifest)


def test_json_lines_by_their_other_endings_are_read(tmp_path: Path) -> None:
    expected = prepared(write_beir(tmp_path / "plain", 30), tmp_path / "a")
    source = write_beir(tmp_path / "source", 30)
    (source / "corpus.jsonl").rename(source / "corpus.ndjson")
    packed = gzip.compress((source / "queries.jsonl").read_bytes())
    (source / "queries.jsonl").unlink()
    (source / "queries.jsonlines.gz").write_bytes(packed)
    assert prepared(source, tmp_path / "b").fingerprint == expected.fingerprint


def parts_of(source: Path, name: str, rows: list[str], numbers: tuple[int, ...], of: int) -> None:
    """Writes parts of the lines of a file, numbered so."""
    for place, number in enumerate(numbers):
        write_lines(source / name.format(f"{number:05}-of-{of:05}"), rows[place :: len(numbers)])


@pytest.mark.parametrize(
    ("numbers", "of", "missing"),
    [((0,), 2, "00001"), ((1,), 2, "00000"), ((2,), 2, "00001"), ((0, 1, 3), 4, "00002"), ((1, 3), 3, "00002")],
)
def test_a_corpus_that_lacks_a_part_is_refused(tmp_path: Path, numbers: tuple[int, ...], of: int, missing: str) -> None:
    source = write_beir(tmp_path / "source", 30)
    rows = (source / "corpus.jsonl").read_text().splitlines()
    (source / "corpus.jsonl").unlink()
    parts_of(source, "corpus/train-{}.jsonl", rows, numbers, of)
    with pytest.raises(InputError, match=f"source/corpus/train-{missing}-of-{of:05}: no such file, and train-"):
        prepared(source, tmp_path / "collection")


@pytest.mark.parametrize("first", [0, 1])
def test_parts_are_counted_from_0_or_1_and_may_end_differently(tmp_path: Path, first: int) -> None:
    expected = prepared(write_beir(tmp_path / "plain", 30), tmp_path / "a")
    source = write_beir(tmp_path / "source", 30)
    rows = (source / "corpus.jsonl").read_text().splitlines()
    (source / "corpus.jsonl").unlink()
    parts_of(source, "corpus/train-{}-0a1b.jsonl", rows[:10], (first,), 2)
    parts_of(source, "corpus/train-{}-2c3d.jsonl.gz", rows[10:], (first + 1,), 2)
    assert prepared(source, tmp_path / "b").manifest["counts"] == expected.manifest["counts"]


@pytest.mark.parametrize("name", ["train-00001-of-00002.jsonl", "test/train-00001-of-00002.ndjson"])
def test_training_examples_that_lack_a_part_are_refused(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / "source" / name, [{"query": q, "pos": [p], "neg": [n]} for q, p, n in TRAIN])
    folder = (tmp_path / "source" / name).parent
    with pytest.raises(InputError, match=f"{folder}/train-00000-of-00002: no such file, and"):
        prepared(tmp_path / "source", tmp_path / "collection")


def test_fields_that_no_layout_knows_are_named_with_their_records(tmp_path: Path) -> None:
    source = write_beir(tmp_path / "source", 30)
    rows = [json.loads(line) for line in (source / "corpus.jsonl").read_text().splitlines()]
    write_lines(
        source / "corpus.jsonl", [row | ({"metadata": {}, "id": "x"} if i < 7 else {}) for i, row in enumerate(rows)]
    )
    made = prepared(source, tmp_path / "collection")
    assert made.manifest["left_out"] == {"files": [], "fields": {"id": 7, "metadata": 7}}
    assert "`metadata` (7 records)" in statistics_markdown(made.manifest)


@pytest.mark.parametrize(
    "names", [("id", "id"), ("docid", "qid"), ("doc_id", "query-id"), ("ID", "Query_ID"), ("pid", "id")]
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".csv.gz", ".parquet"])
def test_a_beir_source_with_other_names_of_ids_in_any_kind_of_file(
    tmp_path: Path, names: tuple[str, str], ending: str
) -> None:
    expected = prepared(write_beir(tmp_path / "plain", 30), tmp_path / "a")
    source = write_beir(tmp_path / "source", 30)
    for kind, name in zip(("corpus", "queries"), names, strict=True):
        rows = [json.loads(line) for line in (source / f"{kind}.jsonl").read_text().splitlines()]
        rows = [{name: row.pop("_id"), **row} for row in rows]
        (source / f"{kind}.jsonl").unlink()
        file = source / (kind + ending)
        if ending == ".parquet":
            parquet.write_table(arrow.Table.from_pylist(rows), file)
            continue
        texts = {".jsonl": "\n".join(map(json.dumps, rows)), ".json": json.dumps(rows, indent=kind == "corpus" or None)}
        text = texts.get(ending) or as_csv(rows)
        file.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    judged = [line.split("\t") for line in (source / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    (source / "qrels" / "test.tsv").unlink()
    rows = [{"score": int(g), "query_id": q, "corpus_id": p} for q, p, g in judged]
    (source / "qrels" / "test.json").write_text(json.dumps(rows))
    assert prepared(source, tmp_path / "b").fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"_id": "p0"', ":1: not valid JSON"),
        ('[{"_id": "p0", "text": "a"}\n {"_id": "p1"}]', r":2: not a valid JSON array \(, or \] was expected\)"),
        ('[{"_id": "p0", "text": "a"},\n\n', ":3: not valid JSON"),
        ('[{"_id": "p0", "text": "a"}] x', "text behind its end"),
        ('[{"_id": "p0", "text": "a"}', "the file ends within the array"),
        ('[{"_id": "p0", "text": "a"},\n 5]', ":2: not a JSON object but int"),
    ],
)
def test_a_spoilt_array_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    source = write_beir(tmp_path / "source", 30)
    (source / "corpus.jsonl").unlink()
    (source / "corpus.json").write_text(text)
    with pytest.raises(InputError, match=problem):
        prepared(source, tmp_path / "collection")


def test_an_array_longer_than_a_part_of_it_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_retriever.data.sources.reading.CHUNK", 7)
    source = write_beir(tmp_path / "source", 30)
    expected = prepared(source, tmp_path / "a")
    rows = [json.loads(line) for line in (source / "corpus.jsonl").read_text().splitlines()]
    (source / "corpus.jsonl").write_text(json.dumps(rows, indent=1))
    assert prepared(source, tmp_path / "b").fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('p99,"no end', r"not valid CSV"),
        ("p99,a,b,c", "corpus.csv:32: 4 columns where the header has 3"),
        ("p99,", "2 columns where the header has 3"),
    ],
)
def test_a_spoilt_csv_is_named(tmp_path: Path, line: str, problem: str) -> None:
    source = write_beir(tmp_path / "source", 30)
    rows = [json.loads(row) for row in (source / "corpus.jsonl").read_text().splitlines()]
    (source / "corpus.jsonl").unlink()
    (source / "corpus.csv").write_text(as_csv(rows) + line + "\n")
    with pytest.raises(InputError, match=problem):
        prepared(source, tmp_path / "collection")


def write_example(kind: str, file: Path, many: list[tuple[str, str, str]]) -> None:
    """Training examples in one of the forms that people have them in."""
    names = {
        "triplet": ("anchor", "positive", "negative"),
        "question": ("question", "answer", "negative_1"),
        "lists": ("query", "positive", "negatives"),
        "csv": ("anchor", "positive", "negative"),
        "parquet": ("anchor", "positive", "negative"),
        "table with header": ("query", "positive", "negative"),
    }.get(kind)
    rows: list[Any] = [dict(zip(names, texts, strict=True)) if names else list(texts) for texts in many]
    if kind == "lists":
        rows = [{"query": q, "positive": [p], "negatives": [n]} for q, p, n in many]
    if kind == "set":
        rows = [{"set": row} for row in rows]
    if kind == "parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), file.with_suffix(".parquet"))
    elif kind == "csv":
        file.with_suffix(".csv").write_text(as_csv(rows))
    elif kind == "array":
        file.with_suffix(".json").write_text(json.dumps(rows, indent=2))
    elif kind.startswith("table"):
        header = ["\t".join(names)] if names else []
        write_lines(file.with_name(f"triples.{file.stem}.small.tsv"), header + ["\t".join(texts) for texts in many])
    else:
        write_lines(file, rows)


@pytest.mark.parametrize(
    "kind",
    ["triplet", "question", "lists", "csv", "parquet", "array", "lines", "set", "table", "table with header"],
)
def test_triples_in_every_form_become_the_same_collection(tmp_path: Path, kind: str) -> None:
    rows = [{"query": query, "pos": [positive], "neg": [negative]} for query, positive, negative in TRAIN]
    write_lines(tmp_path / "plain" / "train.jsonl", rows[:14])
    write_lines(tmp_path / "plain" / "test.jsonl", rows[14:])
    expected = prepared(tmp_path / "plain", tmp_path / "a")
    assert expected.manifest["source"]["format"] == "flagembedding"
    (tmp_path / "source").mkdir()
    write_example(kind, tmp_path / "source" / "train.jsonl", TRAIN[:14])
    write_example(kind, tmp_path / "source" / "test.jsonl", TRAIN[14:])
    assert recognised(tmp_path / "source", "source") == "triples"
    made = prepared(tmp_path / "source", tmp_path / "b")
    assert made.manifest.get("left_out", {}).get("files", []) == []
    assert made.splits == ["train", "test"]
    for split in made.splits:
        assert made.qrels(split) == expected.qrels(split)
        assert made.queries(split) == expected.queries(split)
    assert set(made.passages()) == set(expected.passages())


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"anchor": "a"}, "no example, but an object with anchor"),
        (["a"], "1 texts are no example"),
        (["a", 3], "must be a list of texts"),
        ({"anchor": "a", "positive": ""}, 'field "positive": the query has no positive passage'),
        ({"anchor": 5, "positive": "b"}, 'field "anchor": must be a text'),
        ({"anchor": "a", "positive": "b", "negative": 3}, 'field "negative": must be a list of texts'),
        ({"anchor": "a", "positive": "b", "scores": [1.0, 2.0]}, 'field "scores": must be a list of 1 numbers'),
        (7, "no example, but int"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    rows: list[Any] = [{"anchor": q, "positive": p, "negative": n} for q, p, n in TRAIN]
    write_lines(tmp_path / "source" / "train.jsonl", [*rows[:5], row, *rows[5:]])
    with pytest.raises(InputError, match=rf"train\.jsonl:6: .*{problem}"):
        prepared(tmp_path / "source", tmp_path / "collection")


def test_ids_of_msmarcos_triples_stand_for_qrels_that_are_missing(tmp_path: Path) -> None:
    source = write_msmarco(tmp_path / "source")
    expected = prepared(source, tmp_path / "a")
    (source / "qrels.train.tsv").unlink()
    lines = [f"{name}\t{passage}\tp{number}" for name, _, passage in ASKED[:20] for number in (25, 26, 27)]
    write_lines(source / "qidpidtriples.train.full.2.tsv", lines)
    made = prepared(source, tmp_path / "b")
    assert made.qrels("train") == expected.qrels("train")
    assert made.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("pid\ttext", "it"),
        ("docid\ttitle\tcontents", "iht"),
        ("title\tid\tpassage", "hit"),
        ("text\tpid", "ti"),
        ("pid\tpassage_text", "it"),
        ("Passage_ID\tDocument Text", "it"),
        ("identifier\tpassage_text", "it"),
        ("docno\twords", "it"),
        ("passage_text\tpid", "ti"),
        ("pid\ttitle\tbody_text", "iht"),
    ],
)
def test_a_header_in_the_collection_and_the_queries_is_no_passage(tmp_path: Path, header: str, order: str) -> None:
    plain = write_msmarco(tmp_path / "plain")
    if "h" not in order:
        (plain / "para.title.txt").unlink()
    expected = prepared(plain, tmp_path / "a")
    source = write_msmarco(tmp_path / "source")
    (source / "para.title.txt").unlink()
    parts = [{"i": row["_id"], "t": row["text"], "h": row["title"]} for row in ROWS]
    write_lines(source / "collection.tsv", [header, *("\t".join(part[key] for key in order) for part in parts)])
    queries = (source / "queries.train.tsv").read_text()
    for names in ("qid\tquery", "qid\tquery_text", "Query-ID\tutterance"):
        (source / "queries.train.tsv").write_text(f"{names}\n{queries}")
        assert prepared(source, tmp_path / names).fingerprint == expected.fingerprint


def test_columns_of_a_collection_that_are_not_read_are_named(tmp_path: Path) -> None:
    source = write_msmarco(tmp_path / "source")
    rows = [f"https://x\t{row['_id']}\t{row['text']}\ten" for row in ROWS]
    write_lines(source / "collection.tsv", ["URL\tpid\ttext\tlanguage", *rows])
    made = prepared(source, tmp_path / "collection")
    assert made.manifest["left_out"] == {"files": [], "fields": {"URL": 30, "language": 30}}


@pytest.mark.parametrize("header", ["pid", "pid\turl\twords", "pid\ttext\tText", "pid\tpid\ttext"])
def test_a_header_that_does_not_tell_the_text_is_refused(tmp_path: Path, header: str) -> None:
    source = write_msmarco(tmp_path / "source")
    rows = ["\t".join([row["_id"], row["text"], "x"][: header.count("\t") + 1]) for row in ROWS]
    write_lines(source / "collection.tsv", [header, *rows])
    with pytest.raises(
        InputError, match=r"collection\.tsv:1: the header does not tell which column is the text; it has pid"
    ):
        prepared(source, tmp_path / "collection")


def test_passages_without_an_id_get_one_of_their_content(tmp_path: Path) -> None:
    rows = [{"title": row["title"], "text": row["text"]} for row in ROWS]
    examples = [
        {"query_id": name, "query": text, "positive_passages": [rows[i]], "negative_passages": [rows[-1 - i], rows[0]]}
        for i, (name, text, _) in enumerate(ASKED)
    ]
    write_lines(tmp_path / "tevatron" / "train.jsonl", examples)
    made = prepared(tmp_path / "tevatron", tmp_path / "a")
    texts = {passage.id: passage.text for passage in made.passages()}
    assert sorted(texts.values()) == sorted(row["text"] for row in ROWS)
    assert all(name.startswith("p") and len(name) == 21 for name in texts)
    assert {texts[next(iter(found))] for found in made.qrels("train").values()} <= {row["text"] for row in ROWS}
    source = write_beir(tmp_path / "beir", 30)
    lines = [
        json.dumps({"text": "A passage that nobody has named."}),
        json.dumps({"_id": None, "text": "Another one."}),
    ]
    (source / "corpus.jsonl").write_text((source / "corpus.jsonl").read_text() + "\n".join([*lines, lines[0]]) + "\n")
    assert prepared(source, tmp_path / "b").passage_count == 32


def write_scored(directory: Path) -> Path:
    rows = [
        {"query": q, "pos": [p], "neg": [n, ROWS[-1]["text"]], "pos_scores": [9], "neg_scores": [i / 8, -2.5]}
        | {"prompt": "Find it:", "type": "normal"}
        for i, (q, p, n) in enumerate(TRAIN)
    ]
    write_lines(directory / "train.jsonl", rows)
    return directory


def test_scores_of_flagembedding_are_a_teachers_and_other_fields_are_named(tmp_path: Path) -> None:
    made = prepared(write_scored(tmp_path / "source"), tmp_path / "collection", heldout_queries=0)
    assert made.manifest["left_out"]["fields"] == {"prompt": 18, "type": 18}
    texts = {passage.id: passage.text for passage in made.passages()}
    asked, scores = made.queries("train"), made.teacher_scores()
    found = {asked[q]: {texts[p]: score for p, score in of.items()} for q, of in scores.items()}
    assert found == {q: {p: 9.0, n: i / 8, ROWS[-1]["text"]: -2.5} for i, (q, p, n) in enumerate(TRAIN)}


@pytest.mark.parametrize("scores", [[1], [1, 2, 3], ["1", 2], [True, 1.0], [float("nan"), 1.0], [10**400, 1], 5])
def test_scores_that_are_not_one_number_a_text_are_refused(tmp_path: Path, scores: Any) -> None:
    rows = [{"query": q, "pos": [p], "neg": [n, ROWS[-1]["text"]], "neg_scores": scores} for q, p, n in TRAIN]
    write_lines(tmp_path / "source" / "train.jsonl", rows)
    with pytest.raises(InputError, match=r'train\.jsonl:1: field "neg_scores": must be a list of 2 numbers'):
        prepared(tmp_path / "source", tmp_path / "collection")


@pytest.mark.parametrize("thinned", [False, True])
def test_a_collection_knows_which_passages_were_merged(tmp_path: Path, thinned: bool) -> None:
    source = write_beir(tmp_path / "source")
    for number in (50, 51):
        rows = (source / "corpus.jsonl").read_text().splitlines()
        rows[number] = json.dumps(json.loads(rows[1]) | {"_id": f"p{number}"})
        (source / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    made = prepared(source, tmp_path / "collection", max_passages=59 if thinned else 0)
    assert made.kept_ids({"p50", "p51", "p3", "x"}) == {"p50": "p1", "p51": "p1"}
    (made.directory / "merged.tsv").write_text("p50\tp2\np51\tp1\n")
    with pytest.raises(InputError, match="was changed"):
        Collection.open(made.directory)
