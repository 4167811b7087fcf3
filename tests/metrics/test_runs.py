from __future__ import annotations

import numpy as np
import pytest

from llm_retriever.errors import InputError
from llm_retriever.metrics.runs import line_of, read_run, write_run


def test_a_run_has_six_columns_and_ranks_from_one(tmp_path):
    write_run(tmp_path / "a.trec", [("q1", [("p2", 2.5), ("p1", 1.0)]), ("q2", [("p1", 3.0)])], "BM25")
    assert (tmp_path / "a.trec").read_text().splitlines() == [
        "q1 Q0 p2 1 2.5 BM25",
        "q1 Q0 p1 2 1 BM25",
        "q2 Q0 p1 1 3 BM25",
    ]


def test_neighbouring_float32_scores_stay_apart(tmp_path):
    score = np.float32(17.123456)
    below = np.nextafter(score, np.float32(0))
    write_run(tmp_path / "a.trec", [("q", [("a", float(score)), ("b", float(below))])], "x")
    read = read_run(tmp_path / "a.trec")["q"]
    assert np.float32(read["a"]) == score
    assert np.float32(read["b"]) == below


def test_reading_gives_back_what_was_written_query_by_query(tmp_path):
    write_run(tmp_path / "a.trec", [("q1", [("ü", 2.0)]), ("q0", [("p", -1e-7)])], "x")
    assert read_run(tmp_path / "a.trec") == {"q1": {"ü": 2.0}, "q0": {"p": -1e-7}}


def test_a_query_without_results_has_no_line(tmp_path):
    write_run(tmp_path / "a.trec", [("q1", []), ("q2", [("p", 1.0)])], "x")
    assert list(read_run(tmp_path / "a.trec")) == ["q2"]


def test_a_failing_writer_leaves_no_file(tmp_path):
    def rows():
        yield "q1", [("p", 1.0)]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_run(tmp_path / "a.trec", rows(), "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 p 1 1.0 x\nq Q0 p2 2 0.5\n", ":2: 5 columns instead of 6"),
        ("q Q0 p 1 high x\n", ":1: field \"score\": 'high' is not a finite number"),
        ("q Q0 p 1 1_0 x\n", ":1: field \"score\": '1_0' is not a finite number"),
        ("q Q0 p 1 nan x\n", ":1: field \"score\": 'nan' is not a finite number"),
        ("q Q0 p 1 2.0 x\nr Q0 p 1 1.0 x\nq Q0 p 2 1.0 x\n", ":3: passage 'p' stands twice under query 'q'"),
    ],
)
def test_a_spoilt_run_is_refused_with_file_and_line(tmp_path, text, message):
    (tmp_path / "bad.trec").write_text(text)
    with pytest.raises(InputError) as caught:
        read_run(tmp_path / "bad.trec")
    assert str(tmp_path / "bad.trec") in str(caught.value)
    assert message in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_query(tmp_path):
    (tmp_path / "a.trec").write_bytes(b"\xef\xbb\xbfq7 Q0 p7 1 3 x\nq8 Q0 p1 1 2 x\n")
    assert read_run(tmp_path / "a.trec") == {"q7": {"p7": 3.0}, "q8": {"p1": 2.0}}


def test_the_line_of_a_passage_is_found_in_its_run(tmp_path):
    (tmp_path / "a.trec").write_bytes(b"\xef\xbb\xbfq7 Q0 p7 1 3 x\n\nq8 Q0 p7 1 2 x\n")
    assert [line_of(tmp_path / "a.trec", query, "p7") for query in ("q7", "q8", "q9")] == [1, 3, None]
    assert line_of("s3://bucket/a.trec", "q7", "p7") is None


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_run_is_that_of_a_system_that_found_nothing(tmp_path, text):
    (tmp_path / "empty.trec").write_text(text)
    assert read_run(tmp_path / "empty.trec") == {}


def test_a_missing_or_binary_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such run file"):
        read_run(tmp_path / "none.trec")
    (tmp_path / "binary.trec").write_bytes(b"q Q0 \xff\xfe 1 1.0 x\n")
    with pytest.raises(InputError, match="not valid UTF-8"):
        read_run(tmp_path / "binary.trec")


@pytest.mark.parametrize(("query", "passage"), [("a b", "p"), ("q", "p\t1"), ("", "p"), ("q", "p ")])
def test_an_id_that_the_format_cannot_carry_is_refused(tmp_path, query, passage):
    with pytest.raises(InputError, match="white space"):
        write_run(tmp_path / "a.trec", [(query, [(passage, 1.0)])], "x")


def test_an_infinite_score_is_never_written(tmp_path):
    with pytest.raises(InputError, match="not finite"):
        write_run(tmp_path / "a.trec", [("q", [("p", float("nan"))])], "x")
