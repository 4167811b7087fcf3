"""One corpus, encoded by one or by several: the same bytes, whoever was killed where, and one index in the end."""

from __future__ import annotations

import dataclasses
import doctest
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_retriever import files
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.files.seal import SEAL, check_seal
from llm_retriever.indexing import corpus as corpus_module
from llm_retriever.indexing import encode, shard_store
from llm_retriever.indexing.build import build_index, write_index
from llm_retriever.indexing.corpus import encode_part
from llm_retriever.indexing.encode import Cut, share
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shard_store import ABANDONED_SECONDS, LocalPlace, complete
from llm_retriever.indexing.shards import Shard
from llm_retriever.indexing.workers import resolved_processes
from llm_retriever.metrics.runs import write_run
from llm_retriever.settings import IndexSettings, PartSettings
from llm_retriever.stores.opening import open_store

IN_SHARDS = IndexSettings(shard_passages=16, precision="fp32")


@pytest.fixture
def corpus(collection_directory) -> Collection:
    return Collection.open(collection_directory)


@pytest.fixture
def one_thread():
    """Kernels may add up in another order with more threads; a process of two has one of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def matrix(index: Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(index.glob("vectors-*.npy"))])


def shards_of(index: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(index.iterdir()) if p.name.startswith(("vectors-", "ids-"))}


def never(*_):
    raise AssertionError("this was encoded again")


def test_vectors_have_the_same_bits_in_whatever_shard_they_lie(retriever, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "WINDOW_PASSAGES", 7)
    found = []
    for number, size in enumerate((60, 16, 7, 5, 1)):
        write_index(retriever, corpus, tmp_path / str(number), dataclasses.replace(IN_SHARDS, shard_passages=size))
        found.append(matrix(tmp_path / str(number)).tobytes())
    assert len(found[0]) == 60 * 64 * 4
    assert set(found) == {found[0]}


def test_one_two_and_four_shards_give_the_same_run_file(retriever, corpus, tmp_path):
    vectors = retriever.encode_queries(list(corpus.queries("test").values()))
    runs = set()
    for shards in (1, 2, 4):
        settings = dataclasses.replace(IN_SHARDS, shard_passages=60 // shards)
        write_index(retriever, corpus, tmp_path / f"index-{shards}", settings)
        index = Index.open(tmp_path / f"index-{shards}", retriever)
        assert len(index.manifest.shards) == shards
        scores, ids = index.search(vectors, 30)
        rows = [list(zip(names, row, strict=True)) for names, row in zip(ids, scores.tolist(), strict=True)]
        write_run(tmp_path / "run.trec", zip(corpus.queries("test"), rows, strict=True), "tiny")
        runs.add((tmp_path / "run.trec").read_bytes())
    assert len(runs) == 1


def test_a_window_that_a_border_cuts_is_read_for_both_shards():
    cut = Cut(passages=100, shard_passages=30, window_passages=20)
    assert [cut.shard(number) for number in range(cut.shards)] == [
        range(30 * i, min(30 * i + 30, 100)) for i in range(4)
    ]
    assert cut.windows([1]) == [range(20, 40), range(40, 60)]
    assert cut.windows([0, 3]) == [range(20), range(20, 40), range(80, 100)]
    assert list(cut.overlapping(range(20, 40))) == [0, 1]


def test_parts_share_out_all_shards_and_none_twice():
    for of in (1, 2, 3, 8):
        taken = [number for index in range(of) for number in share(range(7), index, of)]
        assert sorted(taken) == list(range(7))


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(retriever_directory, collection_directory, tmp_path, one_thread, capfd):
    settings = dataclasses.replace(IN_SHARDS, processes=2)
    build_index(retriever_directory, collection_directory, tmp_path / "one", IN_SHARDS)
    capfd.readouterr()
    build_index(retriever_directory, collection_directory, tmp_path / "two", settings)
    assert shards_of(tmp_path / "two") == shards_of(tmp_path / "one")
    assert capfd.readouterr().err.splitlines()[-1].startswith("encode passages: 60/60 (100%) passages")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_two_killed_processes_are_continued_and_end_with_the_same_bytes(
    retriever_directory, collection_directory, tmp_path, one_thread
):
    program = (
        "import sys, time, torch; from pathlib import Path; from llm_retriever.indexing import build, workers\n"
        "from llm_retriever.settings import IndexSettings\n"
        "torch.set_num_threads(1)\n"
        "workers.encode_shards = lambda *a: time.sleep(60)\n"
        "build.build_index(*map(Path, sys.argv[1:]), IndexSettings(shard_passages=16, precision='fp32', processes=2))\n"
    )
    paths = (retriever_directory, collection_directory, tmp_path / "index")
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, paths)])
    try:
        deadline = time.monotonic() + 180
        # The first process sleeps; the second one has shards 1 and 3.
        while len(list(tmp_path.glob(".index.*.partial/shard-*.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (draft,) = tmp_path.iterdir()
    assert {path.name for path in draft.glob("shard-*.json")} == {"shard-00001.json", "shard-00003.json"}
    before = {path.name: path.stat().st_mtime_ns for path in draft.glob("vectors-*")}

    build_index(*paths, dataclasses.replace(IN_SHARDS, processes=2))
    build_index(*paths[:2], tmp_path / "whole", IN_SHARDS)
    assert shards_of(tmp_path / "index") == shards_of(tmp_path / "whole")
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").iterdir()}.items()


def broken(directory: Path, device: str) -> Retriever:
    """A retriever for which no vector is a number."""
    retriever = Retriever.load(directory, device=device, precision="fp32")
    retriever.model.norm.weight.data[:] = np.nan
    return retriever


def killed(device: str) -> Retriever:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.slow
def test_an_error_of_another_process_names_the_passage(retriever, retriever_directory, corpus, tmp_path):
    settings = dataclasses.replace(IN_SHARDS, processes=2)
    load = functools.partial(broken, retriever_directory)
    with pytest.raises(InputError, match=r"the vector of passage 'p\d+' is not finite"):
        write_index(retriever, corpus, tmp_path / "index", settings, load=load)
    assert not (tmp_path / "index").exists()


def test_a_process_that_was_killed_fails_the_build(retriever, corpus, tmp_path):
    settings = dataclasses.replace(IN_SHARDS, processes=2)
    with pytest.raises(RuntimeError, match="exit code -9"):
        write_index(retriever, corpus, tmp_path / "index", settings, load=killed)
    assert not (tmp_path / "index").exists()


def test_there_are_no_more_processes_than_shards():
    assert resolved_processes(4, shards=2) == 2
    assert resolved_processes(0, shards=2) == 1 or torch.cuda.is_available()


@pytest.fixture(params=["directory", "s3"])
def shards_uri(request, tmp_path) -> str:
    if request.param == "directory":
        return str(tmp_path / "shards")
    return f"s3://{request.getfixturevalue('s3').bucket}/shards"


@pytest.mark.slow
def test_parts_go_to_the_prefix_and_become_one_index(
    retriever_directory, retriever, collection_directory, corpus, shards_uri, tmp_path, monkeypatch
):
    whole = write_index(retriever, corpus, tmp_path / "whole", IN_SHARDS)
    told = {"shard_passages": 16, "precision": "fp32", "shards_uri": shards_uri, "parts": 2}
    for part in (1, 0):
        content = encode_part(
            retriever_directory, collection_directory, tmp_path / f"part-{part}", PartSettings(part=part, **told)
        )
        assert content == files.read_json(tmp_path / f"part-{part}" / "part.json")
        assert list(content["shards"]) == [str(part), str(part + 2)]

    monkeypatch.setattr(corpus_module, "encoded_shards", never)
    settings = dataclasses.replace(IN_SHARDS, shards_uri=shards_uri)
    manifest = build_index(retriever_directory, collection_directory, tmp_path / "index", settings)
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [SEAL, "manifest.json", "passages.npy"]
    assert manifest["passages"] == whole["passages"]
    assert manifest["shards_uri"].startswith(shards_uri)
    assert [s["sha256"] for s in manifest["shards"]] == [s["sha256"] for s in whole["shards"]]

    vectors = retriever.encode_queries(["which river is old"])
    apart, together = (Index.open(tmp_path / name, retriever, verify=True) for name in ("index", "whole"))
    np.testing.assert_array_equal(apart.search(vectors, 9)[0], together.search(vectors, 9)[0])
    assert apart.search(vectors, 9)[1] == together.search(vectors, 9)[1]

    with complete(tmp_path / "index") as copy:
        check_seal(copy)
        assert shards_of(copy) == shards_of(tmp_path / "whole")
        assert Index.open(copy, retriever).manifest.shards_uri == ""
        assert (copy / "passages.npy").read_bytes() == (tmp_path / "whole" / "passages.npy").read_bytes()


def test_the_index_encodes_what_no_part_has(retriever_directory, retriever, collection_directory, corpus, tmp_path):
    told = {"shard_passages": 16, "precision": "fp32", "shards_uri": str(tmp_path / "shards")}
    encode_part(retriever_directory, collection_directory, tmp_path / "part", PartSettings(part=1, parts=2, **told))
    (place,) = (tmp_path / "shards").iterdir()
    (place / "vectors-00001.npy").write_bytes(b"damaged")
    build_index(retriever_directory, collection_directory, tmp_path / "index", IndexSettings(**told))
    write_index(retriever, corpus, tmp_path / "whole", IN_SHARDS)
    assert shards_of(place) == shards_of(tmp_path / "whole")


def test_shards_of_other_settings_have_another_name(retriever, corpus):
    def key(**settings):
        return corpus_module.encoding_key(retriever, corpus, dataclasses.replace(IN_SHARDS, **settings))

    assert key() == key(processes=3) == key(shards_uri="s3://bucket/prefix")
    assert len({key(), key(dtype="fp16"), key(passage_length=99), key(batch_tokens=9), key(shard_passages=9)}) == 5


def test_a_published_index_whose_shards_were_changed_is_refused(retriever, corpus, tmp_path):
    settings = dataclasses.replace(IN_SHARDS, shards_uri=str(tmp_path / "shards"))
    manifest = write_index(retriever, corpus, tmp_path / "index", settings)
    with (Path(manifest["shards_uri"]) / "vectors-00002.npy").open("r+b") as file:
        file.seek(500)
        file.write(b"\xff\xff")
    with (
        pytest.raises(InputError, match=r"vectors-00002\.npy: does not have its checksum"),
        complete(tmp_path / "index"),
    ):
        pass


@pytest.mark.parametrize("gone", ["", "vectors-00002.npy"])
def test_an_index_whose_shards_have_expired_says_how_to_run_again(retriever, corpus, shards_uri, gone, tmp_path):
    settings = dataclasses.replace(IN_SHARDS, shards_uri=shards_uri)
    manifest = write_index(retriever, corpus, tmp_path / "index", settings)
    open_store(manifest["shards_uri"]).delete(gone)
    missing = f"{manifest['shards_uri']}/{gone or 'vectors-00000.npy'}"
    with pytest.raises(InputError, match=rf"{missing}: no such file.*index_shards_uri or with --no-cache"):
        Index.open(tmp_path / "index", retriever)


def test_what_another_live_process_writes_at_the_same_place_stays(tmp_path):
    place = LocalPlace(tmp_path)
    fresh, old = tmp_path / ".ids-00000.txt.aaaa.partial", tmp_path / ".vectors-00000.npy.bbbb.partial"
    renamed = tmp_path / "vectors-00000.npy"
    for path in (fresh, old, renamed):
        path.write_bytes(b"some rows")
    os.utime(old, (time.time() - 2 * ABANDONED_SECONDS,) * 2)
    assert place.finished(0, 16) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, renamed.name]


def test_a_run_survives_another_one_that_looks_for_its_unfinished_shards(retriever, corpus, tmp_path, monkeypatch):
    accept = LocalPlace.accept

    def looked_for(place: LocalPlace, number: int, shard: Shard) -> None:
        assert [LocalPlace(place.directory).finished(n, 16) for n in range(number, 4)] == [None] * (4 - number)
        accept(place, number, shard)

    monkeypatch.setattr(LocalPlace, "accept", looked_for)
    settings = dataclasses.replace(IN_SHARDS, shards_uri=str(tmp_path / "shards"))
    write_index(retriever, corpus, tmp_path / "index", settings)
    assert Index.open(tmp_path / "index", retriever, verify=True).count == 60


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (PartSettings(), "shards_uri"),
        (PartSettings(shards_uri="out", part=2, parts=2), "part"),
        (PartSettings(shards_uri="ftp://host/out"), "ftp://"),
    ],
)
def test_parts_that_cannot_be_are_refused(settings, field, retriever_directory, collection_directory, tmp_path):
    with pytest.raises(InputError, match=field):
        encode_part(retriever_directory, collection_directory, tmp_path / "part", settings)
    assert not (tmp_path / "part").exists()


def test_vectors_in_half_precision_arithmetic_are_close(retriever_directory, retriever, corpus):
    half = Retriever.load(retriever_directory, precision="fp16")
    assert half.precision == "fp16"
    texts = [passage.text for passage in corpus.passages()][:4]
    np.testing.assert_allclose(half.encode_passages(texts), retriever.encode_passages(texts), atol=0.02)


@pytest.mark.parametrize("module", [encode, shard_store])
def test_the_documented_examples_run(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
