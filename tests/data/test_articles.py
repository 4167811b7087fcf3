"""The order of passages in their articles: read from a BEIR source, kept in the collection, used for consecutive texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.adaptation.consecutive import NeighbourDataset, consecutive_texts
from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.settings import CorpusSettings
from tests.conftest import passages


def write_articles(source: Path, *rows: Any) -> None:
    (source / "articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepared(source: Path, **settings: Any) -> Collection:
    target = source.with_name("collection")
    preparation.prepare(CorpusSettings(uri=str(source), **settings), target)
    return Collection.open(target)


def article(*numbers: int) -> dict[str, Any]:
    return {"_id": f"a{numbers[0]}", "passages": [f"p{number}" for number in numbers]}


def test_articles_are_carried_into_the_collection(beir_source: Path) -> None:
    without = prepared(beir_source).fingerprint
    write_articles(beir_source, article(5, 3, 4), article(1, 2))
    made = prepared(beir_source)
    assert list(made.articles()) == [["p5", "p3", "p4"], ["p1", "p2"]]
    assert made.manifest["counts"]["articles"] == 2
    assert made.fingerprint != without
    assert not (made.directory / "articles.read").exists()


def test_a_source_without_articles_gives_none(beir_source: Path) -> None:
    made = prepared(beir_source)
    assert list(made.articles()) == []
    assert not made.has_articles
    assert "articles" not in made.manifest["counts"]


def test_merged_passages_are_named_by_the_kept_one(beir_source: Path) -> None:
    copy = {**passages(60)[7], "_id": "copy"}
    with (beir_source / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps(copy) + "\n")
    write_articles(beir_source, {"_id": "a", "passages": ["p1", "copy", "p7", "p2"]})
    assert list(prepared(beir_source).articles()) == [["p1", "p7", "p2"]]


def test_articles_are_parted_where_a_passage_was_left_out(beir_source: Path) -> None:
    for split in ("train", "test"):
        file = beir_source / "qrels" / f"{split}.tsv"
        file.write_text("\n".join(file.read_text().splitlines()[:6]) + "\n")
    write_articles(beir_source, article(0, 1, 30, 2, 3, 31, 4), article(30, 31, 32))
    assert list(prepared(beir_source, max_passages=3).articles()) == [["p0", "p1"], ["p2", "p3"]]


BAD = {
    "no list": ({"_id": "a", "passages": "p1"}, 'field "passages": must be a list of passage ids'),
    "no passages": ({"_id": "a", "passages": []}, 'field "passages": must be a list of passage ids'),
    "no id": ({"passages": ["p1"]}, 'field "_id": the field is missing'),
    "wrong type": ({"_id": "a", "passages": ["p1", None]}, 'field "passages"'),
    "unknown": ({"_id": "a", "passages": ["p1", "nothing"]}, "names the unknown passage 'nothing'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_article_is_named_with_its_file_and_line(beir_source: Path, name: str) -> None:
    row, problem = BAD[name]
    write_articles(beir_source, article(1, 2), row)
    with pytest.raises(InputError) as caught:
        prepared(beir_source)
    assert str(caught.value).startswith(f"{beir_source}/articles.jsonl:2: ")
    assert problem in str(caught.value)
    assert not beir_source.with_name("collection").exists()


def test_a_bad_article_within_the_limit_is_set_aside(beir_source: Path) -> None:
    write_articles(beir_source, {"_id": "a", "passages": ["p1", "p2", "nothing", "p3", "p4"]})
    made = prepared(beir_source, max_bad_lines=1)
    assert list(made.articles()) == [["p1", "p2"], ["p3", "p4"]]
    assert made.manifest["counts"]["bad_lines"] == 1


def test_neighbours_in_an_article_are_consecutive_texts(beir_source: Path) -> None:
    write_articles(beir_source, article(3, 4, 6), article(1, 2))
    dataset = consecutive_texts(prepared(beir_source), seed=17)
    assert isinstance(dataset, NeighbourDataset)
    rows = passages(60)
    expected = [(3, 4), (4, 6), (1, 2)]
    assert [tuple(dataset[i]) for i in range(len(dataset))] == [
        (f"{rows[one]['title']} {rows[one]['text']}".strip(), rows[two]["text"]) for one, two in expected
    ]
