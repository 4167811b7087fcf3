"""The demo collection, made for real from what is installed here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.data.sources import python_docs
from llm_retriever.data.sources.near_duplicates import NearDuplicates
from llm_retriever.settings import CorpusSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """The demo collection."""
    directory = tmp_path_factory.mktemp("demo") / "collection"
    preparation.prepare(CorpusSettings(uri="demo:python-docs"), directory)
    return Collection.open(directory)


def test_it_has_enough_of_everything(demo: Collection) -> None:
    assert 8_000 <= demo.passage_count <= 12_000
    sizes = {split: len(demo.queries(split)) for split in demo.splits}
    assert 5_000 <= sizes["train"] <= 8_000
    assert 350 <= sizes["dev"] <= 450
    assert 550 <= sizes["test"] <= 650


def test_a_query_is_answered_by_the_passage_it_came_from_and_does_not_stand_in_it(demo: Collection) -> None:
    lookup = demo.lookup()
    for split in demo.splits:
        asked = demo.queries(split)
        for query_id, found in demo.qrels(split).items():
            assert found == {query_id.removeprefix("q:"): 1}
            passage = lookup[query_id.removeprefix("q:")]
            assert passage.title == passage.id
            assert asked[query_id].lower().rstrip(".") not in passage.text.lower()


def test_splits_share_no_module_and_no_package(demo: Collection) -> None:
    groups = {
        split: {name.removeprefix("q:").partition(".")[0] for name in demo.queries(split)} for split in demo.splits
    }
    assert not groups["train"] & (groups["dev"] | groups["test"])
    assert not groups["dev"] & groups["test"]
    assert min(len(found) for found in groups.values()) >= 10


def test_no_query_is_nearly_another(demo: Collection) -> None:
    seen = NearDuplicates(shingle=1, similarity=0.75)
    assert all(seen.adds(text) for split in demo.splits for text in demo.queries(split).values())


def test_queries_read_like_sentences(demo: Collection) -> None:
    asked = [text for split in demo.splits for text in demo.queries(split).values()]
    assert all(5 <= len(text.split()) <= 30 for text in asked)
    assert not [text for text in asked if re.match(r"(See |Deprecated|Initiali[sz]e |Base class)", text)]
    assert not [text for text in asked if "`" in text or "::" in text]


def test_no_path_of_this_machine_is_in_a_text(demo: Collection) -> None:
    places = {str(Path.home()), sys.prefix, sys.base_prefix, str(Path(python_docs.__file__).parents[3])} - {"/", "/usr"}
    texts = (demo.directory / "corpus.jsonl").read_text()
    assert not [place for place in places if f"{place}/" in texts]


def test_the_manifest_names_what_it_was_made_of(demo: Collection) -> None:
    versions = demo.manifest["source"]["versions"]
    assert versions == python_docs.versions()
    assert {"python", "numpy", "torch"} <= set(versions)


def test_nothing_that_is_documented_is_imported() -> None:
    code = (
        "import sys; from llm_retriever.data.sources import python_docs as d; "
        "assert sum(1 for _ in d._of_package('pydantic')) > 200; assert sum(1 for _ in d._of_package('torch.optim')) > 20; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_packages_give_the_same_selection() -> None:
    names = [
        [entry.thing.name for entry in python_docs._selection(list(python_docs._of_package("pydantic")))] for _ in "ab"
    ]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0]) > 100


def test_a_package_that_is_not_installed_gives_nothing() -> None:
    assert list(python_docs._of_package("no_such_package_here.inner")) == []
