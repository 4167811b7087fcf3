"""The version in production on a changed collection: what it has is taken over, and it is measured like everything else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_retriever import files
from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_queries import write_training_queries
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.evaluation import systems
from llm_retriever.evaluation.production import Production, settings_of
from llm_retriever.files.seal import SEAL
from llm_retriever.indexing.build import build_index, write_index
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import Manifest
from llm_retriever.models.card import RetrieverCard, weights_digest
from llm_retriever.settings import CorpusSettings, IndexSettings
from llm_retriever.stores.registry import Registry, model_digest
from tests.conftest import passages, write_backbone
from tests.evaluation.conftest import write_runs, write_source
from tests.evaluation.test_baselines import another_retriever, in_two_copies
from tests.evaluation.test_evaluate import refused, run

IN_SHARDS = IndexSettings(precision="fp32", shard_passages=16)
NEW = [{**row, "_id": f"new-{row['_id']}", "text": f"{row['text']} More."} for row in passages(10)]


def with_corpus(inputs: dict[str, Path], directory: Path, rows: list[dict[str, str]]) -> dict[str, Path]:
    """The inputs of a run on the same queries over another corpus."""
    source = write_source(directory / "source")
    (source / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = inputs | {name: directory / name for name in ("collection", "index", "bm25_runs")}
    preparation.prepare(CorpusSettings(uri=str(source)), made["collection"])
    build_index(made["retriever"], made["collection"], made["index"], IndexSettings(precision="fp32"))
    write_runs(made["bm25_runs"], Collection.open(made["collection"]))
    return made


def old_rows(inputs: dict[str, Path]) -> list[dict[str, str]]:
    return [json.loads(line) for line in (inputs["collection"].parent / "source" / "corpus.jsonl").open()]


def published(uri: str, retriever: Path, index: Path) -> str:
    """URI of a version, as promote publishes it."""
    registry, card = Registry(uri), RetrieverCard.load(retriever).digest()
    folders = {"retriever": retriever, "index": index}
    return registry.uri_of(registry.publish(folders, model_digest(retriever, index), card))


@pytest.fixture(scope="module")
def theirs(unspoilt_inputs, tmp_path_factory) -> dict[str, Path]:
    """The inputs with another retriever and its index of the old corpus; not to be changed."""
    directory = tmp_path_factory.mktemp("theirs")
    another_retriever(unspoilt_inputs, directory / "retriever")
    build_index(directory / "retriever", unspoilt_inputs["collection"], directory / "index", IN_SHARDS)
    return unspoilt_inputs | {name: directory / name for name in ("retriever", "index")}


@pytest.fixture(scope="module")
def version(theirs, tmp_path_factory) -> str:
    """URI of that retriever, published; not to be changed."""
    return published(str(tmp_path_factory.mktemp("published")), theirs["retriever"], theirs["index"])


@pytest.fixture(scope="module")
def grown(unspoilt_inputs, tmp_path_factory) -> dict[str, Path]:
    """The inputs of a run on the old corpus and ten passages more; not to be changed."""
    rows = old_rows(unspoilt_inputs)
    return with_corpus(unspoilt_inputs, tmp_path_factory.mktemp("grown"), [*rows[:5], *NEW, *rows[5:]])


@pytest.fixture
def encoded(monkeypatch) -> list[Any]:
    """Every passage that goes through any model from now on, as its tokens."""
    rows_seen, encode_rows = [], Retriever.encode_rows

    def seen(self, side, rows, *rest):
        rows_seen.extend(rows if side == "passage" else [])
        return encode_rows(self, side, rows, *rest)

    monkeypatch.setattr(Retriever, "encode_rows", seen)
    return rows_seen


def vectors(index: Path) -> dict[str, bytes]:
    """The bytes of every vector by passage id."""
    found = {}
    for matrix in sorted(index.glob("vectors-*.npy")):
        ids = (index / matrix.name.replace("vectors", "ids").replace("npy", "txt")).read_text().splitlines()
        found |= {name: row.tobytes() for name, row in zip(ids, np.load(matrix), strict=True)}
    return found


def told(directory: Path) -> dict[str, Any]:
    return files.read_json(directory / "refreshed" / "refreshed.json")


@pytest.fixture(scope="module")
def evaluated(grown, version, tmp_path_factory):
    """An evaluation on the grown corpus; not to be changed."""
    directory = tmp_path_factory.mktemp("evaluated")
    return run(grown, directory, production_uri=f"{version}/"), directory


def test_of_ten_new_passages_exactly_these_are_encoded(grown, version, theirs, tmp_path, encoded):
    _, content = run(grown, tmp_path, production_uri=version, untuned_passages=0)
    assert len(encoded) == 10
    name = version.rsplit("/", 1)[-1]
    counts = {"version": name, "encoded": 10, "reused": 40}
    assert content["production"] == {"uri": version, **counts, "trained_on": None}
    assert told(tmp_path) == {"production_uri": version, **counts, "index": True}
    before, now = vectors(theirs["index"]), vectors(tmp_path / "refreshed" / "index")
    assert before.items() <= now.items()
    assert now.keys() - before.keys() == {row["_id"] for row in NEW}
    note = f"version in production, {name}, was brought to this collection: of 50 vectors, 40 were taken over and 10 made anew."
    assert any(note in text for text in content["notes"])
    assert note in (tmp_path / "summary.md").read_text()


def test_small_vectors_are_refreshed_and_compared_as_small_ones(unspoilt_inputs, theirs, grown, tmp_path, monkeypatch):
    """Ours has 20 numbers in int8, and so has the un-tuned backbone; the version in production has 24."""
    small = {name: tmp_path / "in" / name for name in ("ours", "theirs")}
    for name, inputs, dimension in (("ours", grown, 20), ("theirs", unspoilt_inputs | theirs, 24)):
        settings = dataclasses.replace(IN_SHARDS, dimension=dimension, dtype="int8")
        build_index(inputs["retriever"], inputs["collection"], small[name], settings)
    version = published(str(tmp_path / "in" / "published"), theirs["retriever"], small["theirs"])
    built = []
    monkeypatch.setattr(systems, "write_index", lambda *args: built.append(args[3]) or write_index(*args))

    _, content = run(grown | {"index": small["ours"]}, tmp_path, production_uri=version)
    assert [(settings.dimension, settings.dtype) for settings in built] == [(20, "int8")]
    assert content["systems"].keys() >= {"retriever", "production", "BM25", "backbone"}
    figures = {"bytes_per_passage": 24, "dimension": 20, "dtype": "int8"}
    assert {name: content["efficiency"][name] for name in figures} == figures
    refreshed = Manifest.load(tmp_path / "refreshed" / "index")
    assert (refreshed.dimension, refreshed.encoder_dimension, refreshed.dtype, refreshed.reused) == (24, 64, "int8", 40)
    assert vectors(small["theirs"]).items() <= vectors(tmp_path / "refreshed" / "index").items()
    assert "24 bytes per passage, 20 dimensions, in int8" in (tmp_path / "report.html").read_text()


def test_the_refreshed_index_is_a_whole_one_of_the_new_collection(grown, theirs, evaluated):
    index = evaluated[1] / "refreshed" / "index"
    opened = Index.open(index, RetrieverCard.load(theirs["retriever"]), verify=True)
    assert opened.manifest.collection == Collection.open(grown["collection"]).fingerprint
    assert [opened.passage_id(i) for i in range(50)] == [p.id for p in Collection.open(grown["collection"]).passages()]
    assert len(opened.manifest.shards) == 4
    assert (opened.manifest.reused, opened.manifest.shards_uri) == (40, "")


def test_the_new_retriever_is_compared_with_the_one_in_production_first_of_all(evaluated):
    (metrics, content), _ = evaluated
    for split in content["splits"].values():
        names = ["retriever", "hybrid", "production", "BM25", "backbone"]
        assert list(split["systems"]) == list(split["per_query"]) == names
        assert [c["baseline"] for c in split["comparisons"]] == ["production", "BM25", "backbone"]
        ours, other = (np.array(list(split["per_query"][name].values())) for name in ("retriever", "production"))
        assert split["comparisons"][0]["mean_difference"] == pytest.approx((ours - other).mean())
    assert metrics["test_ndcg_at_10_production"] == content["splits"]["test"]["systems"]["production"]["ndcg@10"]
    assert list(content["systems"])[:3] == ["retriever", "hybrid", "production"]
    assert content["systems"]["production"]["description"].startswith("the retriever in production, version 2")
    assert content["costs"]["production_seconds"] > 0


def test_its_figures_are_those_of_an_evaluation_of_its_own(grown, theirs, evaluated, tmp_path):
    build_index(theirs["retriever"], grown["collection"], tmp_path / "in" / "index", IN_SHARDS)
    own = {**grown, "retriever": theirs["retriever"], "index": tmp_path / "in" / "index"}
    _, content = run(own, tmp_path, untuned_passages=0)
    for name, split in evaluated[0][1]["splits"].items():
        assert split["per_query"]["production"] == content["splits"][name]["per_query"]["retriever"]
    assert told(tmp_path) == {"production_uri": "", "version": "", "encoded": 0, "reused": 0, "index": False}
    assert "production" not in content
    assert {path.name for path in (tmp_path / "refreshed").iterdir()} == {SEAL, "refreshed.json"}


def test_report_and_summary_say_first_how_it_compares_with_production(evaluated):
    directory = evaluated[1]
    page, summary = (directory / "report.html").read_text(), (directory / "summary.md").read_text()
    assert summary.index("the version in production") < summary.index("BM25")
    assert page.index("the version in production") < page.index("BM25")
    assert "evaluating the version in production" in page
    assert "40 were taken over and 10 made anew" in page


@pytest.mark.slow
def test_with_many_baselines_the_page_still_begins_with_production(grown, version, theirs, tmp_path):
    run(grown, tmp_path, production_uri=version, encoders=f"again={theirs['retriever']}")
    page = (tmp_path / "report.html").read_text()
    first = page.index("the version in production")
    assert first < page.index("of 6 systems")
    assert page.count("95\N{NO-BREAK SPACE}% interval") == 2  # one a split


@pytest.mark.slow
def test_a_changed_passage_is_encoded_anew_and_a_renamed_one_is_not(
    unspoilt_inputs, version, theirs, tmp_path, encoded
):
    rows = old_rows(unspoilt_inputs)
    rows[12]["text"] += " Or was it?"
    rows[37]["_id"] = "renamed"  # nothing is judged to be in it
    rows[15] |= {"title": "", "text": rows[15]["title"] + rows[15]["text"]}
    inputs = with_corpus(unspoilt_inputs, tmp_path / "in", rows)
    encoded.clear()
    run(inputs, tmp_path, production_uri=version, untuned_passages=0)
    assert len(encoded) == 2
    before, now = vectors(theirs["index"]), vectors(tmp_path / "refreshed" / "index")
    assert now.pop("renamed") == before.pop("p37")
    assert {name for name in before if before[name] != now[name]} == {"p12", "p15"}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_version_of_this_collection_is_searched_as_it_is(place, unspoilt_inputs, theirs, tmp_path, encoded, request):
    uri = str(tmp_path / "in") if place == "local" else f"s3://{request.getfixturevalue('s3').bucket}/published"
    version = published(uri, theirs["retriever"], theirs["index"])
    _, content = run(unspoilt_inputs, tmp_path, production_uri=version, untuned_passages=0)
    assert encoded == []
    assert told(tmp_path)["index"] is False
    assert not (tmp_path / "refreshed" / "index").exists()
    assert (content["production"]["encoded"], content["production"]["reused"]) == (0, 40)
    assert any("in its published index, which holds this corpus" in note for note in content["notes"])
    _, own = run(theirs, tmp_path / "own", untuned_passages=0)
    for name, split in own["splits"].items():
        assert content["splits"][name]["per_query"]["production"] == split["per_query"]["retriever"]


def test_where_only_judgments_have_changed_there_is_no_index_to_publish(unspoilt_inputs, version, tmp_path, encoded):
    source = write_source(tmp_path / "source")
    (source / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old_rows(unspoilt_inputs)))
    judgments = source / "qrels" / "test.tsv"
    judgments.write_text("".join(judgments.read_text().splitlines(keepends=True)[:-1]))
    inputs = unspoilt_inputs | {name: tmp_path / "in" / name for name in ("collection", "index", "bm25_runs")}
    preparation.prepare(CorpusSettings(uri=str(source)), inputs["collection"])
    build_index(inputs["retriever"], inputs["collection"], inputs["index"], IndexSettings(precision="fp32"))
    write_runs(inputs["bm25_runs"], Collection.open(inputs["collection"]))
    encoded.clear()
    run(inputs, tmp_path, production_uri=version, untuned_passages=0)
    assert encoded == []
    assert told(tmp_path)["index"] is False
    assert not (tmp_path / "refreshed" / "index").exists()


def test_a_kept_version_that_was_published_with_its_new_index_is_measured_the_same_again(
    grown, theirs, evaluated, s3, tmp_path, encoded
):
    (_, content), directory = evaluated
    again = published(f"s3://{s3.bucket}/published", theirs["retriever"], directory / "refreshed" / "index")
    _, repeated = run(grown, tmp_path, production_uri=again, untuned_passages=0)
    assert encoded == []
    for name, split in content["splits"].items():
        assert repeated["splits"][name]["per_query"]["production"] == split["per_query"]["production"]


def test_an_index_in_a_bucket_is_brought_to_the_new_collection(grown, theirs, s3, tmp_path, encoded):
    version = published(f"s3://{s3.bucket}/published", theirs["retriever"], theirs["index"])
    run(grown, tmp_path, production_uri=version, untuned_passages=0)
    assert len(encoded) == 10
    assert vectors(theirs["index"]).items() <= vectors(tmp_path / "refreshed" / "index").items()


@pytest.mark.slow
def test_the_refreshed_index_is_made_as_the_published_one_was(grown, theirs, unspoilt_inputs, tmp_path, encoded):
    settings = IndexSettings(
        kind="sq8", dtype="fp16", precision="bf16", passage_length=120, shard_passages=7, memory_gib=1
    )
    apart = dataclasses.replace(settings, shards_uri=str(tmp_path / "in" / "shards"))
    build_index(theirs["retriever"], unspoilt_inputs["collection"], tmp_path / "in" / "index", apart)
    version = published(str(tmp_path / "in" / "published"), theirs["retriever"], tmp_path / "in" / "index")
    encoded.clear()
    run(grown, tmp_path, production_uri=version, untuned_passages=0)
    assert len(encoded) == 10
    made = Manifest.load(tmp_path / "refreshed" / "index")
    assert (made.kind, made.dtype, len(made.shards), made.shards_uri) == ("sq8", "fp16", 8, "")
    assert {name: made.settings[name] for name in ("precision", "passage_length")} == {
        "precision": "bf16",
        "passage_length": 120,
    }
    assert (settings_of(made).processes, settings_of(made).memory_gib) == (0, 0.0)


def test_an_index_that_does_not_list_its_passages_is_encoded_anew(grown, theirs, tmp_path, encoded):
    index = shutil.copytree(theirs["index"], tmp_path / "in" / "index")
    manifest = files.read_json(index / "manifest.json")
    del manifest["passages"]
    files.write_json(index / "manifest.json", manifest)
    (index / "passages.npy").unlink()
    version = published(str(tmp_path / "in" / "published"), theirs["retriever"], index)
    _, content = run(grown, tmp_path, production_uri=version, untuned_passages=0)
    assert len(encoded) == 50
    assert (told(tmp_path)["encoded"], told(tmp_path)["reused"]) == (50, 0)
    assert any("does not say which passages it holds" in note for note in content["notes"])


@pytest.mark.slow
def test_production_may_be_another_method_on_another_backbone(grown, unspoilt_inputs, tmp_path, encoded):
    other = in_two_copies(unspoilt_inputs, tmp_path / "in")
    card = RetrieverCard.load(other["retriever"])
    shutil.rmtree(other["retriever"] / "model")
    write_backbone(other["retriever"] / "model", seed=11, layers=2, heads=2)
    weights = weights_digest(other["retriever"] / "model")
    dataclasses.replace(card, method="echo", weights=weights).save(other["retriever"])
    build_index(other["retriever"], other["collection"], other["index"], IndexSettings(passage_length=120))
    version = published(str(tmp_path / "in" / "published"), other["retriever"], other["index"])
    encoded.clear()
    _, content = run(grown, tmp_path, production_uri=version, untuned_passages=0, query_length=125)
    assert len(encoded) == 10
    assert "echo" in content["systems"]["production"]["description"]
    assert Manifest.load(tmp_path / "refreshed" / "index").settings["passage_length"] == 240


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("version.json", "not a published version, there is no version.json; give the URI of a version"),
        ("retriever/retriever_card.json", "there is no retriever/retriever_card.json"),
        ("index/manifest.json", "there is no index/manifest.json"),
    ],
)
def test_what_is_no_version_is_refused_before_anything_is_encoded(gone, message, grown, version, tmp_path, encoded):
    copy = shutil.copytree(version, tmp_path / "in" / "version")
    (copy / gone).unlink()
    assert message in refused(grown, tmp_path, production_uri=str(copy))
    assert encoded == []


def test_a_registry_a_foreign_index_and_a_spoilt_version_are_refused(version, unspoilt_inputs, tmp_path):
    with pytest.raises(InputError, match=r'field "production_uri": not a published version.*REGISTRY/versions/NAME'):
        Production(str(Path(version).parents[1]))
    with pytest.raises(InputError, match="not a published version"):
        Production("/nowhere")
    copy = shutil.copytree(version, tmp_path / "version")
    shutil.copy(unspoilt_inputs["index"] / "manifest.json", copy / "index" / "manifest.json")
    with pytest.raises(InputError, match="its index was made by another retriever"):
        Production(str(copy))
    (copy / "version.json").write_text("[]")
    with pytest.raises(InputError, match=r'version.json: field "name": does not name a version'):
        Production(str(copy))


def test_a_changed_vector_of_production_is_not_taken_over(grown, version, tmp_path):
    copy = shutil.copytree(version, tmp_path / "in" / "version")
    with (copy / "index" / "vectors-00001.npy").open("r+b") as file:
        file.seek(500)
        file.write(b"\x01\x02")
    assert "vectors-00001.npy: does not have its checksum" in refused(grown, tmp_path, production_uri=str(copy))


# ---- shards that lie elsewhere


def test_shards_of_the_refreshed_index_go_straight_to_their_place(grown, version, evaluated, s3, tmp_path, encoded):
    place = f"s3://{s3.bucket}/shards"
    given = {"production_uri": version, "production_shards_uri": place, "untuned_passages": 0}
    _, content = run(grown, tmp_path, **given)
    assert len(encoded) == 10
    index = tmp_path / "refreshed" / "index"
    assert sorted(path.name for path in index.iterdir()) == [SEAL, "manifest.json", "passages.npy"]
    manifest = Manifest.load(index)
    assert manifest.shards_uri.rpartition("/")[0] == place
    assert (manifest.reused, manifest.count) == (40, 50)
    before = Manifest.load(evaluated[1] / "refreshed" / "index")
    assert [shard.file for shard in manifest.shards] == [shard.file for shard in before.shards]
    for name, split in evaluated[0][1]["splits"].items():
        assert content["splits"][name]["systems"]["production"] == pytest.approx(split["systems"]["production"])


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_at_the_shards_that_are_missing(grown, version, s3, tmp_path):
    given = {"production_uri": version, "production_shards_uri": f"s3://{s3.bucket}/shards", "untuned_passages": 0}
    s3.fault = lambda request: ("403 Forbidden", b"") if request["PATH_INFO"].endswith("vectors-00002.npy") else None
    with pytest.raises(InputError, match="access is refused"):
        run(grown, tmp_path / "first", **given)
    s3.fault = None
    assert not (tmp_path / "first" / "refreshed").exists()
    s3.requests.clear()
    _, content = run(grown, tmp_path / "second", **given)
    sent = {path.rsplit("/", 1)[-1] for method, path, *_ in s3.requests if method == "PUT" and "/vectors-" in path}
    # The last shard may have been sent before the refusal ended the run.
    assert {"vectors-00002.npy"} <= sent <= {"vectors-00002.npy", "vectors-00003.npy"}
    assert (content["production"]["encoded"], content["production"]["reused"]) == (10, 40)


def test_a_place_that_shards_cannot_go_to_is_refused_before_anything_is_encoded(grown, version, tmp_path, encoded):
    given = {"production_uri": version, "production_shards_uri": "ftp://host/shards"}
    assert "ftp:// is not a kind of URI that can be used here" in refused(grown, tmp_path, **given)
    assert encoded == []


# ---- queries from the training of the version in production


def trained(inputs: dict[str, Path], directory: Path, texts: list[str]) -> dict[str, Path]:
    """The inputs with a retriever that was trained on some queries."""
    retriever = Path(shutil.copytree(inputs["retriever"], directory))
    write_training_queries(retriever, texts)
    return inputs | {"retriever": retriever}


def test_queries_that_only_production_was_trained_on_are_counted_and_told(unspoilt_inputs, theirs, tmp_path):
    asked = {name: list(Collection.open(theirs["collection"]).queries(name).values()) for name in ("test", "graded")}
    old = trained(theirs, tmp_path / "in" / "old", [*asked["test"][:3], asked["test"][5].upper(), asked["graded"][0]])
    new = trained(unspoilt_inputs, tmp_path / "in" / "new", [asked["graded"][0], asked["test"][5], asked["test"][9]])
    version = published(str(tmp_path / "in" / "published"), old["retriever"], old["index"])
    _, content = run(new, tmp_path, production_uri=version, untuned_passages=0)
    assert content["production"]["trained_on"] == {"test": 3}
    note = "3 of 10 queries of test were in the training of the version in production alone, which favours it."
    assert note in content["splits"]["test"]["notes"]
    assert not any("in the training of" in text for text in content["splits"]["graded"]["notes"])
    assert note in (tmp_path / "report.html").read_text()
    assert note in (tmp_path / "summary.md").read_text()


def test_where_production_was_trained_on_other_queries_nothing_is_told(unspoilt_inputs, theirs, tmp_path):
    old = trained(
        theirs, tmp_path / "in" / "old", list(Collection.open(theirs["collection"]).queries("train").values())
    )
    version = published(str(tmp_path / "in" / "published"), old["retriever"], old["index"])
    _, content = run(unspoilt_inputs, tmp_path, production_uri=version, untuned_passages=0)
    assert content["production"]["trained_on"] == {}
    assert "trained on" not in " ".join(content["notes"])
    assert "in the training of" not in (tmp_path / "summary.md").read_text()


def test_a_version_that_does_not_say_what_it_was_trained_on_is_told_of(evaluated):
    assert any("does not say which queries it was trained on" in note for note in evaluated[0][1]["notes"])


def test_no_other_system_may_be_called_production(unspoilt_inputs, tmp_path):
    message = refused(unspoilt_inputs, tmp_path, encoders=f"production={unspoilt_inputs['retriever']}")
    assert "'production' is taken" in message
