"""Building an index: what is written, and what is left when something goes wrong in the middle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llm_retriever import files
from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.files.seal import SEAL
from llm_retriever.indexing import corpus as corpus_module
from llm_retriever.indexing.build import build_index, draft_directory, write_index
from llm_retriever.indexing.corpus import encode_corpus, encoding_key, resolved
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shard_store import LocalPlace
from llm_retriever.settings import CorpusSettings, IndexSettings
from tests.conftest import write_beir

IN_SHARDS = IndexSettings(shard_passages=16, precision="fp32")


def files_of(index: Path) -> dict[str, bytes]:
    """Vectors and ids; the manifest holds timings."""
    return {
        path.name: path.read_bytes() for path in sorted(index.iterdir()) if path.name not in ("manifest.json", SEAL)
    }


def draft_of(index: Path, retriever: Retriever, corpus: Collection, settings: IndexSettings) -> Path:
    settings = resolved(settings, retriever)
    return draft_directory(index, encoding_key(retriever, corpus, settings), settings)


@pytest.fixture(scope="module")
def killed(retriever_directory, collection_directory, tmp_path_factory) -> Path:
    """The directory in which a build was killed (SIGKILL) after its second of four shards; not to be changed."""
    program = (
        "import sys, time; from pathlib import Path; from llm_retriever.indexing import build, shard_store\n"
        "from llm_retriever.settings import IndexSettings\n"
        "accept = shard_store.LocalPlace.accept\n"
        "shard_store.LocalPlace.accept = lambda *a: (accept(*a), time.sleep(0.5))[0]\n"
        "build.build_index(*map(Path, sys.argv[1:]), IndexSettings(shard_passages=16, precision='fp32'))\n"
    )
    place = tmp_path_factory.mktemp("killed")
    paths = (retriever_directory, collection_directory, place / "index")
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, paths)])
    try:
        deadline = time.monotonic() + 180
        while len(list(place.glob(".index.*.partial/shard-*.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return place


@pytest.fixture
def left(killed, tmp_path) -> Path:
    """What the killed build left, for a test that goes on with it."""
    return Path(shutil.copytree(killed, tmp_path / "left"))


def test_an_index_holds_the_vectors_of_all_passages_in_their_order(
    retriever_directory, retriever, collection_directory, tmp_path
):
    manifest = build_index(retriever_directory, collection_directory, tmp_path / "index", IN_SHARDS)
    corpus = Collection.open(collection_directory)
    expected = list(corpus.passages())
    assert [shard["count"] for shard in manifest["shards"]] == [16, 16, 16, 12]
    matrices = [np.load(tmp_path / "index" / shard["file"]) for shard in manifest["shards"]]
    ids = [line for s in manifest["shards"] for line in (tmp_path / "index" / s["ids"]).read_text().splitlines()]
    assert ids == [passage.id for passage in expected]
    np.testing.assert_allclose(np.concatenate(matrices), retriever.encode_passages(expected), atol=1e-5)


def test_the_manifest_says_what_the_index_is_and_what_it_was_made_of(
    retriever_directory, retriever, collection_directory, tmp_path
):
    build_index(retriever_directory, collection_directory, tmp_path / "index", IN_SHARDS)
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["metric"], manifest["count"]) == ("flat", "inner_product", 60)
    assert (manifest["dimension"], manifest["dtype"]) == (64, "fp32")
    assert manifest["card"] == retriever.card.digest()
    assert manifest["collection"] == Collection.open(collection_directory).fingerprint
    assert manifest["settings"]["passage_length"] == retriever.card.passage_length
    assert manifest["settings"]["precision"] == "fp32"
    for shard in manifest["shards"]:
        assert shard["sha256"] == files.sha256_of_file(tmp_path / "index" / shard["file"])
        assert shard["ids_sha256"] == files.sha256_of_file(tmp_path / "index" / shard["ids"])
        assert shard["largest_norm"] == pytest.approx(1)
        assert 0 < shard["tokens"] <= shard["slots"]
    assert 0 <= manifest["timings"]["padding_share"] < 0.3
    assert manifest["timings"]["passages_per_second"] > 0
    assert {"llm-retriever", "torch", "transformers"} <= set(manifest["versions"])


def test_nothing_but_the_index_is_left_behind(retriever_directory, collection_directory, tmp_path):
    build_index(retriever_directory, collection_directory, tmp_path / "index", IN_SHARDS)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    names = {path.name for path in (tmp_path / "index").iterdir()}
    kinds = {f"{kind}-{i:05d}.{end}" for i in range(4) for kind, end in (("vectors", "npy"), ("ids", "txt"))}
    assert names == {SEAL, "manifest.json", "passages.npy", *kinds}


def test_an_earlier_index_at_the_same_place_is_replaced(retriever, collection_directory, tmp_path):
    corpus = Collection.open(collection_directory)
    write_index(retriever, corpus, tmp_path / "index", IN_SHARDS)
    write_index(retriever, corpus, tmp_path / "index", IndexSettings(shard_passages=50, precision="fp32"))
    assert len(Index.open(tmp_path / "index", retriever.card).manifest.shards) == 2
    assert len(list((tmp_path / "index").iterdir())) == 7


def test_the_same_inputs_give_the_same_bytes(retriever, collection_directory, tmp_path):
    corpus = Collection.open(collection_directory)
    write_index(retriever, corpus, tmp_path / "a", IN_SHARDS)
    write_index(retriever, corpus, tmp_path / "b", IN_SHARDS)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_killed_run_leaves_no_index(killed):
    (draft,) = killed.iterdir()
    assert draft.name.startswith(".index.")
    assert not (draft / "manifest.json").exists()


def test_a_killed_run_is_continued_and_ends_with_the_same_bytes(
    retriever_directory, collection_directory, left, tmp_path, monkeypatch
):
    build_index(retriever_directory, collection_directory, tmp_path / "whole", IN_SHARDS)
    (draft,) = left.iterdir()
    (draft / ".vectors-00003.npy.1.partial").write_bytes(b"half a shard")

    written = []
    accept = LocalPlace.accept
    monkeypatch.setattr(LocalPlace, "accept", lambda *a: (written.append(a[1]), accept(*a))[1])
    build_index(retriever_directory, collection_directory, left / "index", IN_SHARDS)
    assert written in ([2, 3], [3])
    assert files_of(left / "index") == files_of(tmp_path / "whole")
    assert [path.name for path in left.iterdir()] == ["index"]


def test_a_run_killed_before_the_last_rename_is_only_renamed(
    retriever_directory, collection_directory, retriever, tmp_path, monkeypatch
):
    index = tmp_path / "index"
    build_index(retriever_directory, collection_directory, index, IN_SHARDS)
    whole, corpus = files_of(index), Collection.open(collection_directory)
    index.rename(draft_of(index, retriever, corpus, IN_SHARDS))
    monkeypatch.setattr(LocalPlace, "accept", None)
    build_index(retriever_directory, collection_directory, index, IN_SHARDS)
    assert files_of(index) == whole


def test_a_finished_shard_that_was_damaged_is_encoded_again(retriever_directory, collection_directory, left, tmp_path):
    build_index(retriever_directory, collection_directory, tmp_path / "whole", IN_SHARDS)
    (draft,) = left.iterdir()
    with (draft / "vectors-00000.npy").open("r+b") as file:
        file.seek(500)
        file.write(b"\xff\xff\xff")
    build_index(retriever_directory, collection_directory, left / "index", IN_SHARDS)
    assert files_of(left / "index") == files_of(tmp_path / "whole")


def test_a_run_with_other_settings_does_not_continue_the_killed_one(retriever, collection_directory, tmp_path):
    corpus = Collection.open(collection_directory)
    places = {
        draft_of(tmp_path / "index", retriever, corpus, settings)
        for settings in (IN_SHARDS, IndexSettings(shard_passages=16, passage_length=120), IndexSettings(dtype="fp16"))
    }
    assert len(places) == 3


def test_half_precision_takes_half_the_space(retriever, collection_directory, tmp_path):
    corpus = Collection.open(collection_directory)
    manifest = write_index(retriever, corpus, tmp_path / "index", IndexSettings(dtype="fp16", precision="fp32"))
    matrix = np.load(tmp_path / "index" / manifest["shards"][0]["file"])
    assert matrix.dtype == np.float16
    np.testing.assert_allclose(matrix, retriever.encode_passages(list(corpus.passages())), atol=1e-3)


def test_a_shorter_passage_length_gives_other_vectors(retriever, collection_directory, tmp_path):
    corpus = Collection.open(collection_directory)
    settings = IndexSettings(passage_length=85, precision="fp32")
    manifest = write_index(retriever, corpus, tmp_path / "index", settings)
    matrix = np.load(tmp_path / "index" / manifest["shards"][0]["file"])
    np.testing.assert_allclose(matrix, retriever.encode_passages(list(corpus.passages()), length=85), atol=1e-5)
    assert np.abs(matrix - retriever.encode_passages(list(corpus.passages()))).max() > 1e-3


def test_ids_may_be_any_text_and_titles_may_be_empty(retriever, collection_of, tmp_path):
    names = ["Größe", "文書-2", "𝔭3", "é", "http://host/5?x=ü"]
    corpus = collection_of(
        [{"_id": name, "title": "" if i % 2 else "Title", "text": f"Text number {i}."} for i, name in enumerate(names)]
    )
    assert [passage.id for passage in corpus.passages()] == names
    write_index(retriever, corpus, tmp_path / "index", IndexSettings(shard_passages=2, precision="fp32"))
    index = Index.open(tmp_path / "index", retriever.card)
    for passage in corpus.passages():
        scores, ids = index.search(retriever.encode_passages([passage]), 1)
        assert ids == [[passage.id]]
        assert scores[0, 0] == pytest.approx(1, abs=1e-5)


def test_a_vector_that_is_not_a_number_names_its_passage_and_leaves_no_index(
    retriever_directory, collection_of, tmp_path
):
    broken = Retriever.load(retriever_directory, precision="fp32")
    broken.model.embed_tokens.weight.data[broken.tokenizer("@", add_special_tokens=False)["input_ids"][0]] = np.nan
    rows = [{"_id": f"p{i}", "title": "", "text": "mail me @ home" if i == 7 else f"Text {i}."} for i in range(10)]
    with pytest.raises(InputError, match="the vector of passage 'p7' is not finite"):
        write_index(broken, collection_of(rows), tmp_path / "index", IN_SHARDS)
    assert not (tmp_path / "index").exists()


def test_no_more_than_a_few_windows_are_read_ahead_of_the_model(retriever, collection_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "WINDOW_PASSAGES", 5)
    taken, encoded = [], []
    corpus = Collection.open(collection_directory)
    spans, encode_rows = corpus.spans, retriever.encode_rows
    monkeypatch.setattr(corpus, "spans", lambda ranges: (taken.append(len(found)) or found for found in spans(ranges)))

    def watched(*arguments):
        time.sleep(0.02)
        encoded.append((sum(taken[1:]), len(encoded) * 5))  # the first ones were read to list the passages
        return encode_rows(*arguments)

    monkeypatch.setattr(retriever, "encode_rows", watched)
    write_index(retriever, corpus, tmp_path / "index", IN_SHARDS)
    assert len(encoded) == 60 / 5
    assert max(read - done for read, done in encoded) <= 5 * 5


def test_a_collection_that_ends_early_is_refused(retriever, tmp_path):
    source = write_beir(tmp_path / "source", number=20)
    preparation.prepare(CorpusSettings(uri=str(source)), tmp_path / "collection")
    corpus = Collection.open(tmp_path / "collection")
    corpus.passage_count += 3
    with pytest.raises(InputError, match="the collection has 20 passages, not 23"):
        write_index(retriever, corpus, tmp_path / "index", IN_SHARDS)
    with pytest.raises(InputError, match="3 passages early"):
        encode_corpus(retriever, corpus, LocalPlace(tmp_path / "place"), resolved(IN_SHARDS, retriever))
    assert not (tmp_path / "index").exists()
