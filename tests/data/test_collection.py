"""Preparing a collection, and reading it back."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_retriever.data import collection, preparation
from llm_retriever.data.collection import Collection, Passage
from llm_retriever.errors import InputError
from llm_retriever.settings import CorpusSettings
from tests.conftest import passages, write_beir


def prepared(source: Path, **settings: Any) -> Collection:
    target = source.with_name("collection")
    preparation.prepare(CorpusSettings(uri=str(source), **settings), target)
    return Collection.open(target)


def append(file: Path, *lines: str) -> None:
    file.write_text(file.read_text() + "".join(line + "\n" for line in lines))


def rewrite(file: Path, line: int, change: Callable[[str], str]) -> None:
    """Changes the line of that 1-based number."""
    lines = file.read_text().splitlines()
    lines[line - 1] = change(lines[line - 1])
    file.write_text("\n".join(lines) + "\n")


def changed(field: str, value: Any) -> Callable[[str], str]:
    """A change of one field of a JSON line; None removes it."""

    def change(line: str) -> str:
        row = json.loads(line)
        row[field] = value
        if value is None:
            del row[field]
        return json.dumps(row)

    return change


def test_everything_in_the_source_is_in_the_collection(beir_source: Path) -> None:
    made = prepared(beir_source)
    rows = passages(60)
    assert list(made.passages()) == [Passage(row["_id"], row["title"], row["text"]) for row in rows]
    assert made.passage_count == 60
    assert made.splits == ["train", "test"]
    assert list(made.queries("train"))[:3] == ["q0", "q1", "q2"]
    assert made.qrels("test")["q42"] == {"p42": 1}
    assert made.manifest["splits"] == {
        "train": {"queries": 42, "judgments": 42},
        "test": {"queries": 18, "judgments": 18},
    }


def test_texts_are_normalised_to_nfc_with_single_spaces_and_no_control_characters(beir_source: Path) -> None:
    rewrite(beir_source / "corpus.jsonl", 1, changed("text", " cafe\u0301\u00a0au\tlait\n\nis\x00 served\u2028here "))
    rewrite(beir_source / "queries.jsonl", 1, changed("text", "where\n is  cafe\u0301"))
    made = prepared(beir_source)
    assert next(made.passages()).text == "café au lait is served here"
    assert made.queries("train")["q0"] == "where is café"


def test_passages_of_the_same_content_become_one_and_their_judgments_move(beir_source: Path) -> None:
    rewrite(beir_source / "corpus.jsonl", 50, changed("text", "  " + passages()[1]["text"].replace(" ", "  ")))
    rewrite(beir_source / "corpus.jsonl", 50, changed("title", ""))
    made = prepared(beir_source)
    assert made.passage_count == 59
    assert "p49" not in made.lookup()
    assert made.qrels("test")["q49"] == {"p1": 1}
    assert made.manifest["counts"]["duplicates_merged"] == 1


def test_a_merged_pair_keeps_its_highest_grade(beir_source: Path) -> None:
    rewrite(beir_source / "corpus.jsonl", 50, lambda _: json.dumps({**passages()[1], "_id": "p49"}))
    append(beir_source / "qrels" / "test.tsv", "q49\tp1\t3")
    made = prepared(beir_source)
    assert made.qrels("test")["q49"] == {"p1": 3}
    assert made.manifest["counts"]["judgments_merged"] == 1


def test_a_title_alone_is_a_passage(beir_source: Path) -> None:
    rewrite(beir_source / "corpus.jsonl", 7, changed("text", ""))
    prepared(beir_source)
    passage = collection.Collection.open(beir_source.with_name("collection")).lookup()["p6"]
    assert (passage.title, passage.text) == ("Violin", "")


def test_duplicates_stay_when_they_are_wanted(beir_source: Path) -> None:
    rewrite(beir_source / "corpus.jsonl", 50, lambda _: json.dumps({**passages()[1], "_id": "p49"}))
    assert prepared(beir_source, deduplicate=False).passage_count == 60


def test_the_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    first = prepared(write_beir(tmp_path / "here" / "a"))
    second_source = write_beir(tmp_path / "there" / "b")
    rewrite(second_source / "corpus.jsonl", 3, lambda line: line.replace("The ", "The   ", 1))
    second = prepared(second_source)
    assert first.fingerprint == second.fingerprint
    rewrite(second_source / "corpus.jsonl", 3, lambda line: line.replace("The ", "A ", 1))
    assert prepared(second_source).fingerprint != first.fingerprint


def test_a_changed_grade_changes_the_fingerprint(beir_source: Path) -> None:
    before = prepared(beir_source).fingerprint
    rewrite(beir_source / "qrels" / "test.tsv", 2, lambda line: line[:-1] + "2")
    assert prepared(beir_source).fingerprint != before


def test_without_an_evaluation_split_training_queries_are_held_out_by_the_seed(beir_source: Path) -> None:
    (beir_source / "qrels" / "test.tsv").unlink()
    made = prepared(beir_source, heldout_queries=5, sample_seed=1)
    held_out = set(made.queries("dev"))
    assert made.splits == ["train", "dev"]
    assert len(held_out) == 5
    assert not held_out & set(made.queries("train"))
    assert set(prepared(beir_source, heldout_queries=5, sample_seed=1).queries("dev")) == held_out
    assert set(prepared(beir_source, heldout_queries=5, sample_seed=2).queries("dev")) != held_out


def test_at_most_a_fifth_of_the_training_queries_is_held_out(beir_source: Path) -> None:
    (beir_source / "qrels" / "test.tsv").unlink()
    made = prepared(beir_source, heldout_queries=500)
    assert (len(made.queries("train")), len(made.queries("dev"))) == (34, 8)


def test_with_an_evaluation_split_training_queries_are_held_out_where_it_is_asked_for(beir_source: Path) -> None:
    assert len(prepared(beir_source).queries("train")) == 42
    made = prepared(beir_source, heldout_queries=5)
    assert {split: len(made.queries(split)) for split in made.splits} == {"train": 37, "test": 18, "dev": 5}


def test_what_another_split_asks_is_not_held_out(beir_source: Path) -> None:
    with (beir_source / "qrels" / "test.tsv").open("a") as judged:
        judged.writelines(f"q{i}\tp{i}\t1\n" for i in range(38))
    made = prepared(beir_source, heldout_queries=8)
    assert set(made.queries("dev")) == {"q38", "q39", "q40", "q41"}
    assert len(made.queries("test")) == 18 + 38


@pytest.mark.parametrize("split", ["dev", "valid"])
def test_a_split_to_choose_on_keeps_all_training_queries(beir_source: Path, split: str) -> None:
    (beir_source / "qrels" / "test.tsv").rename(beir_source / "qrels" / f"{split}.tsv")
    assert len(prepared(beir_source, heldout_queries=5).queries("train")) == 42


def test_a_subset_keeps_the_judged_passages_and_fills_up_by_the_seed(beir_source: Path) -> None:
    for split in ("train", "test"):
        file = beir_source / "qrels" / f"{split}.tsv"
        file.write_text("\n".join(file.read_text().splitlines()[:6]) + "\n")
    made = prepared(beir_source, max_passages=20)
    kept = [passage.id for passage in made.passages()]
    assert len(kept) == made.passage_count == 20
    assert {f"p{i}" for i in (*range(5), *range(42, 47))} <= set(kept)
    assert kept == sorted(kept, key=lambda name: int(name[1:]))
    assert kept == [passage.id for passage in prepared(beir_source, max_passages=20).passages()]
    assert kept != [passage.id for passage in prepared(beir_source, max_passages=20, sample_seed=3).passages()]
    assert prepared(beir_source, max_passages=3).passage_count == 10


def test_queries_that_no_split_judges_are_left_out_and_counted(beir_source: Path) -> None:
    append(beir_source / "queries.jsonl", '{"_id": "idle", "text": "nobody judges me"}')
    made = prepared(beir_source)
    assert made.manifest["counts"]["queries_unjudged"] == 1
    assert "idle" not in (made.directory / "queries.jsonl").read_text()


def test_an_evaluation_query_may_have_no_relevant_passage(beir_source: Path) -> None:
    rewrite(beir_source / "qrels" / "test.tsv", 2, lambda line: line[:-1] + "0")
    assert prepared(beir_source).qrels("test")["q42"] == {"p42": 0}


def test_training_queries_that_are_also_evaluation_queries_are_counted(beir_source: Path) -> None:
    rewrite(
        beir_source / "queries.jsonl",
        1,
        changed("text", json.loads((beir_source / "queries.jsonl").read_text().splitlines()[50])["text"].upper()),
    )
    assert prepared(beir_source).manifest["counts"]["train_queries_in_evaluation"] == 1


BAD_LINES = {
    "invalid JSON": ("corpus.jsonl", 7, lambda line: line[:-1], "not valid JSON"),
    "no object": ("corpus.jsonl", 7, lambda line: "[1, 2]", "not a JSON object"),
    "missing field": ("corpus.jsonl", 7, changed("text", None), 'field "text": the field is missing'),
    "missing id": ("queries.jsonl", 7, changed("_id", None), 'field "_id": the field is missing'),
    "wrong type": ("corpus.jsonl", 7, changed("text", 5), 'field "text": must be a text, not int'),
    "wrong type of title": ("corpus.jsonl", 7, changed("title", ["a"]), 'field "title": must be a text, not list'),
    "wrong type of id": ("corpus.jsonl", 7, changed("_id", True), 'field "_id": must be a text, not bool'),
    "empty text": ("corpus.jsonl", 8, changed("text", " \u00a0\n"), 'field "text": the text is empty'),
    "empty query": ("queries.jsonl", 7, changed("text", ""), 'field "text": the text is empty'),
    "half a character": ("corpus.jsonl", 7, changed("text", "a \ud800 b"), "lone surrogate"),
    "duplicate passage id": ("corpus.jsonl", 7, changed("_id", "p1"), "passage id 'p1' was there before"),
    "duplicate query id": ("queries.jsonl", 7, changed("_id", "q1"), "query id 'q1' was there before"),
    "white space in an id": ("corpus.jsonl", 7, changed("_id", "p 6"), "white space or control characters"),
    "control character in an id": ("queries.jsonl", 7, changed("_id", "q\x1b6"), "white space or control characters"),
    "id beyond Lucene's terms": ("corpus.jsonl", 7, changed("_id", "é" * 16_384), "has 32,768 bytes; Lucene"),
    "long query id": ("queries.jsonl", 7, changed("_id", "q" * 32_767), "has 32,767 bytes; Lucene"),
    "empty id": ("corpus.jsonl", 7, changed("_id", ""), "the id is empty"),
    "unknown query": ("qrels/train.tsv", 7, lambda line: "nobody" + line[2:], "unknown query 'nobody'"),
    "unknown passage": ("qrels/train.tsv", 7, lambda line: line.replace("p5", "nothing"), "unknown passage 'nothing'"),
    "broken grade": ("qrels/train.tsv", 7, lambda line: line[:-1] + "high", "'high' is not a whole number"),
    "fractional grade": ("qrels/test.tsv", 7, lambda line: line[:-1] + "0.5", "'0.5' is not a whole number"),
    "missing column": ("qrels/train.tsv", 7, lambda line: line[:-2], "2 columns"),
    "training query without positives": ("qrels/train.tsv", 7, lambda line: line[:-1] + "0", "has no positive passage"),
    "contradiction": ("qrels/test.tsv", 7, lambda line: f"{line}\n{line[:-1]}0", "were judged before, otherwise"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_ends_the_preparation_and_is_named_with_its_file_and_line(beir_source: Path, name: str) -> None:
    file, line, change, problem = BAD_LINES[name]
    rewrite(beir_source / file, line, change)
    target = beir_source.with_name("collection")
    with pytest.raises(InputError) as caught:
        preparation.prepare(CorpusSettings(uri=str(beir_source)), target)
    at = line + (name == "contradiction")
    assert str(caught.value).startswith(f"{beir_source}/{file}:{at}: ")
    assert problem in str(caught.value)
    assert "; " in str(caught.value), "the hint is missing"
    assert [path.name for path in target.parent.iterdir()] == [beir_source.name], "something half-written was left"


def test_invalid_utf8_is_named_with_its_line(beir_source: Path) -> None:
    file = beir_source / "corpus.jsonl"
    file.write_bytes(file.read_bytes().replace(b"The engine", b"The \xff\xfeengine", 1))
    with pytest.raises(InputError, match=r"corpus\.jsonl:2: not valid UTF-8 \(byte \d+\)"):
        prepared(beir_source)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv"])
def test_an_empty_file_is_refused(beir_source: Path, name: str) -> None:
    (beir_source / name).write_text("")
    with pytest.raises(InputError, match=f"{name}: the file is empty"):
        prepared(beir_source)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_file_is_refused(beir_source: Path, name: str) -> None:
    (beir_source / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        prepared(beir_source)


def test_missing_qrels_are_refused(beir_source: Path) -> None:
    for path in (beir_source / "qrels").iterdir():
        path.unlink()
    (beir_source / "qrels").rmdir()
    with pytest.raises(InputError, match="no qrels"):
        prepared(beir_source)


def test_qrels_with_nothing_but_a_header_are_refused(beir_source: Path) -> None:
    (beir_source / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(InputError, match="holds no judgment"):
        prepared(beir_source)


def test_bad_lines_within_the_limit_are_set_aside_and_kept(beir_source: Path) -> None:
    for name in ("invalid JSON", "unknown query"):
        file, line, change, _ = BAD_LINES[name]
        rewrite(beir_source / file, line, change)
    rewrite(beir_source / "corpus.jsonl", 9, changed("text", ""))
    made = prepared(beir_source, max_bad_lines=4)
    kept = [json.loads(line) for line in (made.directory / "bad_lines.jsonl").read_text().splitlines()]
    assert [(Path(row["file"]).name, row["line"]) for row in kept] == [
        ("corpus.jsonl", 7),
        ("corpus.jsonl", 9),
        ("train.tsv", 7),
        ("train.tsv", 8),  # names the passage of the line that could not even be parsed
    ]
    assert kept[1]["content"]["_id"] == "p8"
    assert made.manifest["counts"]["bad_lines"] == 4
    with pytest.raises(InputError):
        prepared(beir_source, max_bad_lines=3)


def test_what_follows_from_a_bad_line_is_dropped_without_counting_as_bad(beir_source: Path) -> None:
    rewrite(beir_source / "corpus.jsonl", 9, changed("text", ""))
    made = prepared(beir_source, max_bad_lines=1)
    assert made.manifest["counts"]["judgments_dropped"] == 1
    assert "p8" not in made.lookup()
    assert "q8" not in made.queries("train")


def test_an_earlier_collection_survives_a_failed_preparation(beir_source: Path) -> None:
    before = prepared(beir_source).fingerprint
    append(beir_source / "corpus.jsonl", "{")
    with pytest.raises(InputError):
        prepared(beir_source)
    assert Collection.open(beir_source.with_name("collection")).fingerprint == before


def test_a_passage_is_looked_up_by_its_id(collection_directory: Path) -> None:
    made = Collection.open(collection_directory)
    lookup = made.lookup()
    assert all(lookup[passage.id] == passage for passage in made.passages())
    assert len(lookup) == made.passage_count
    assert "p7" in lookup
    assert "p600" not in lookup
    with pytest.raises(KeyError):
        lookup["p600"]


def test_ids_of_the_same_hash_are_told_apart(collection_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "_hash", lambda name: len(name))
    made = Collection.open(collection_directory)
    lookup = made.lookup()
    assert all(lookup[passage.id] == passage for passage in made.passages())
    assert "zz" not in lookup


def test_a_lookup_survives_pickling_and_forking(collection_directory: Path) -> None:
    lookup = Collection.open(collection_directory).lookup()
    copy = pickle.loads(pickle.dumps(lookup))
    assert copy["p5"] == lookup["p5"]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(lookup.__getitem__, [f"p{i}" for i in range(60)] * 5)
    assert [passage.id for passage in found] == [f"p{i}" for i in range(60)] * 5


def test_a_lookup_takes_16_bytes_a_passage(collection_directory: Path) -> None:
    lookup = Collection.open(collection_directory).lookup()
    arrays = [value for value in vars(lookup).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in arrays) == 16 * len(lookup)


def test_unusual_ids_and_long_texts_are_found(tmp_path: Path) -> None:
    names = ['with"quote', "back\\slash", "ümläut", "日本", "a/../b"]
    source = write_beir(tmp_path / "source")
    rows = [json.dumps({"_id": name, "title": "", "text": f"{name} " + "long " * 3000}) for name in names]
    append(source / "corpus.jsonl", *rows)
    lookup = prepared(source).lookup()
    assert [lookup[name].id for name in names] == names
    assert all(len(lookup[name].text) > 14_000 for name in names)


def test_a_directory_that_is_no_collection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the output of prepare_corpus"):
        Collection.open(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        Collection.open(tmp_path / "nowhere")


def test_a_collection_that_was_cut_short_is_refused(beir_source: Path) -> None:
    made = prepared(beir_source)
    corpus = made.directory / "corpus.jsonl"
    corpus.write_bytes(corpus.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"corpus\.jsonl: is missing or was changed"):
        Collection.open(made.directory)


def test_an_unknown_split_is_refused(collection_directory: Path) -> None:
    with pytest.raises(InputError, match="there is no split 'dl20'"):
        Collection.open(collection_directory).qrels("dl20")


def test_wrongly_decoded_characters_stay_as_they_are(beir_source: Path) -> None:
    rewrite(beir_source / "corpus.jsonl", 1, changed("text", "don\u00e2\u0080\u0099t"))
    assert next(prepared(beir_source).passages()).text == "don\u00e2\u0080\u0099t"


def test_passages_at_some_positions_are_streamed_without_the_others(collection_directory):
    collection = Collection.open(collection_directory)
    everything = list(collection.passages())
    found = list(collection.spans([range(3, 5), range(5, 6), range(58, 60)]))
    assert found == [everything[3:5], everything[5:6], everything[58:60]]
    assert [len(part) for part in collection.spans([range(58, 65)])] == [2]
