"""From a name to an encoder: rows, rows with weights of one's own, retrievers made here, and what is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llm_retriever import encoders
from llm_retriever.encoders.__main__ import main
from llm_retriever.encoders.interface import Side
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.encoders.rows import Wiring
from llm_retriever.encoders.table import TABLE
from llm_retriever.errors import InputError
from llm_retriever.exporting.export import export_merged, export_sentence_transformers
from llm_retriever.stores.opening import open_store
from tests.adaptation.test_backbone import COMMIT
from tests.adaptation.test_backbone_hub import Hub
from tests.encoders import models
from tests.encoders.models import PASSAGES, QUERIES
from tests.encoders.test_retriever import write_retriever
from tests.s3_server import S3Server


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.bert(tmp_path_factory.mktemp("bert") / "model")


def test_every_row_says_where_its_facts_come_from_and_pins_whole_commits() -> None:
    for name, row in TABLE.items():
        assert row.name == name
        assert row.source
        assert row.parts
        assert all(len(part.revision) in (0, 40) for part in row.parts)
        assert row.wiring.query_length > 0
        assert row.wiring.passage_length > 0
        if isinstance(row.wiring, Wiring):
            assert [part.name for part in row.parts] in (["model"], list(get_args(Side)))


def test_importing_the_package_and_its_table_is_light() -> None:
    program = "import sys, llm_retriever.encoders, llm_retriever.encoders.table; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "peft", "faiss", "huggingface_hub", "scipy"} & set(loaded)


@pytest.mark.slow
def test_two_models_come_from_two_places_or_from_two_folders_of_one(tmp_path: Path) -> None:
    directory = models.dragon(tmp_path / "dragon")
    one = encoders.load(f"dragon-plus={directory}", precision="fp32")
    two = encoders.load(f"dragon-plus={directory}/query,{directory}/passage", precision="fp32")
    turned = encoders.load(f"dragon-plus={directory}/passage,{directory}/query", precision="fp32")
    assert one.identity() == two.identity() != turned.identity()
    np.testing.assert_array_equal(one.encode_queries(QUERIES), two.encode_queries(QUERIES))
    assert np.abs(turned.encode_queries(QUERIES) - one.encode_queries(QUERIES)).max() > 0.1


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "dragon-plus={bert}",
            "dragon-plus consists of query and passage; give dragon-plus=QUERY,PASSAGE or a directory",
        ),
        ("tas-b={bert},{bert}", "tas-b consists of model; give tas-b=MODEL"),
        ("tas-b={bert}/no", "no such directory"),
        ("cocondensor", "neither a published encoder nor a directory; did you mean cocondenser"),
        ("{bert}", "does not say how it encodes .* name the row that it is wired like, as ROW="),
        ("tas-b@main", "'main' can move or is cut short; give the 40 digits of a commit"),
        ("tas-b", "no commit of sebastian-hofstaetter/distilbert-dot-tas_b-b256-msmarco is known here; .* tas-b@MODEL"),
        (
            f"dpr@{COMMIT}",
            "no commit of facebook/dpr-ctx_encoder-single-nq-base is known here; .* as dpr@QUERY,PASSAGE",
        ),
        (f"tas-b@{COMMIT},{COMMIT}", "tas-b has 1 models, not 2"),
        ("bge-base-en-v1.5", "BAAI/bge-base-en-v1.5: .* the hub cannot be reached; check"),
        ("ftp://host/model", "ftp.* is not a kind of URI"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_in_one_line(name: str, problem: str, bert: Path) -> None:
    with pytest.raises(InputError, match=problem) as error:
        encoders.load(name.format(bert=bert))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_identity_is_that_of_wiring_and_weights_and_not_of_their_place(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "copy")
    first = encoders.load(f"cocondenser={bert}").identity()
    assert encoders.load(f"cocondenser={tmp_path / 'copy'}").identity() == first
    assert encoders.load(f"tas-b={bert}").identity() != first
    assert encoders.load(f"cocondenser={models.bert(tmp_path / 'other', seed=1)}").identity() != first
    models.change_json(tmp_path / "copy" / "tokenizer_config.json", do_lower_case=False)
    assert encoders.load(f"cocondenser={tmp_path / 'copy'}").identity() != first


def test_weights_may_lie_in_a_bucket(bert: Path, s3: S3Server) -> None:
    uri = f"s3://{s3.bucket}/encoders/simlm"
    open_store(uri).upload(bert)
    there, here = encoders.load(f"simlm={uri}", precision="fp32"), encoders.load(f"simlm={bert}", precision="fp32")
    assert there.identity() == here.identity()
    np.testing.assert_array_equal(there.encode_passages(PASSAGES), here.encode_passages(PASSAGES))


@pytest.mark.slow
def test_retrievers_made_here_and_their_exports_are_encoders(tmp_path: Path) -> None:
    directory = write_retriever(tmp_path / "retriever")
    expected = Retriever.load(directory, precision="fp32")
    queries, passages = expected.encode_queries(QUERIES), expected.encode_passages(PASSAGES)
    merged, sentences = tmp_path / "merged", tmp_path / "sentences"
    export_merged(expected, merged)
    simple = dataclasses.replace(expected.card, query=expected.card.passage)
    export_sentence_transformers(Retriever(expected.model, expected.tokenizer, simple), sentences)
    for place in (directory, merged):
        encoder = encoders.load(str(place), precision="fp32")
        assert encoder.name == "llm-ql"
        np.testing.assert_allclose(encoder.encode_queries(QUERIES), queries, atol=1e-5)
        np.testing.assert_allclose(encoder.encode_passages(PASSAGES), passages, atol=1e-5)
    encoder = encoders.load(str(sentences), precision="fp32")
    assert encoder.name == "sentences"
    np.testing.assert_allclose(encoder.encode_passages(PASSAGES), passages, atol=1e-5)


def test_a_merged_export_with_other_weights_is_refused(tmp_path: Path) -> None:
    export_merged(write_retriever(tmp_path / "retriever"), tmp_path / "merged")
    export_merged(write_retriever(tmp_path / "other", seed=1), tmp_path / "other-merged")
    shutil.copy(tmp_path / "other-merged" / "model.safetensors", tmp_path / "merged" / "model.safetensors")
    with pytest.raises(InputError, match="the weights are not those that the card belongs to"):
        encoders.load(str(tmp_path / "merged"))


def test_the_table_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == ["name", *TABLE]
    assert (
        "facebook/dragon-plus-query-encoder* + facebook/dragon-plus-context-encoder*"
        in lines[1 + list(TABLE).index("dragon-plus")]
    )
    assert max(len(line) for line in lines) < 220


def pickled(directory: Path, copy: Path) -> Path:
    """A copy with its weights as other people pickle them; a tied weight shares its memory with another one."""
    shutil.copytree(directory, copy)
    for path in list(copy.rglob("*.safetensors")):
        weights = load_file(path)
        if "embeddings.word_embeddings.weight" in weights:
            weights["cls.predictions.decoder.weight"] = weights["embeddings.word_embeddings.weight"]
        torch.save(weights, path.with_name("pytorch_model.bin"))
        path.unlink()
    return copy


@pytest.mark.parametrize("name", ["cocondenser", "gtr-base"])
def test_pickled_weights_are_refused_and_converted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = models.gtr(tmp_path / "model") if name == "gtr-base" else models.bert(tmp_path / "model")
    source = pickled(original, tmp_path / "pickled")
    with pytest.raises(InputError, match=f"llm-retriever encoders convert {source} OUT, and give OUT"):
        encoders.load(f"{name}={source}")
    assert main(["convert", str(source), str(tmp_path / "converted")]) == 0
    assert "pytorch_model.bin" in capsys.readouterr().out
    assert not list((tmp_path / "converted").rglob("*.bin"))
    got = encoders.load(f"{name}={tmp_path / 'converted'}", precision="fp32").encode_passages(PASSAGES)
    np.testing.assert_array_equal(got, encoders.load(f"{name}={original}", precision="fp32").encode_passages(PASSAGES))


def test_pickled_shards_keep_their_index(bert: Path, tmp_path: Path) -> None:
    source, weights = tmp_path / "sharded", load_file(bert / "model.safetensors")
    shutil.copytree(bert, source)
    (source / "model.safetensors").unlink()
    halves = {f"pytorch_model-0000{i}-of-00002.bin": sorted(weights)[i - 1 :: 2] for i in (1, 2)}
    for file, names in halves.items():
        torch.save({name: weights[name] for name in names}, source / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert main(["convert", str(source), str(tmp_path / "converted")]) == 0
    got = encoders.load(f"tas-b={tmp_path / 'converted'}", precision="fp32").encode_queries(QUERIES)
    np.testing.assert_array_equal(got, encoders.load(f"tas-b={bert}", precision="fp32").encode_queries(QUERIES))


class Exploit:
    """What a pickle from somewhere may hold."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("exploited",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = pickled(bert, tmp_path / "pickled")
    torch.save({"weight": Exploit()}, source / "pytorch_model.bin")
    assert main(["convert", str(source), str(tmp_path / "out")]) == 2
    assert "pytorch_model.bin: not a file of weights alone" in capsys.readouterr().err
    assert not (tmp_path / "exploited").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("output", "problem"), [("model/out", "lies within"), ("model", "lies within"), (".", "holds")]
)
def test_a_copy_must_not_replace_what_is_converted(
    output: str, problem: str, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pickled(bert, tmp_path / "work" / "model")
    assert main(["convert", str(source), str(tmp_path / "work" / output)]) == 2
    assert f"{problem} what is converted" in capsys.readouterr().err
    assert (source / "pytorch_model.bin").is_file()


def test_there_must_be_something_to_convert(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(bert), str(tmp_path / "out")]) == 2
    assert "no pickled weights" in capsys.readouterr().err


class RowHub(Hub):
    """A hub that has one model under the name of a row's."""

    def answer(self, request: Any, model: Path) -> None:
        request.path = request.path.replace("Luyu/co-condenser-marco-retriever", "owner/tiny")
        super().answer(request, model)


@pytest.fixture
def hub_model(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "published"))


@pytest.fixture
def hub(hub_model: Path) -> Iterator[RowHub]:
    server = RowHub(hub_model)
    yield server
    server.server.shutdown()
    server.server.server_close()


def downloaded_from(hub: RowHub, home: Path) -> subprocess.CompletedProcess[str]:
    """Downloads a row in a process of its own: the hub's client reads the environment once."""
    program = (
        "import sys; from llm_retriever.encoders import opening, table; from llm_retriever.errors import InputError\n"
        "try: print(*opening.published(table.TABLE['cocondenser'], sys.argv[1:]))\n"
        "except InputError as error: sys.exit(str(error))"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server.server_port}",
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", program, COMMIT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_row_is_downloaded_at_its_commit_and_without_pickles(
    hub: RowHub, hub_model: Path, bert: Path, tmp_path: Path
) -> None:
    (hub_model / "pytorch_model.bin").write_bytes(b"pickle")
    done = downloaded_from(hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    encoder = encoders.load(f"cocondenser={done.stdout.strip()}")
    assert encoder.identity() == encoders.load(f"cocondenser={bert}").identity()
    assert not [path for path in hub.paths if path.endswith(".bin")]


def test_a_hub_model_without_safetensors_is_refused_with_what_to_do(
    hub: RowHub, hub_model: Path, tmp_path: Path
) -> None:
    (hub_model / "model.safetensors").rename(hub_model / "pytorch_model.bin")
    done = downloaded_from(hub, tmp_path / "home")
    assert done.returncode == 1
    assert "the hub has no safetensors of it at 01234567; hf download Luyu/co-condenser-marco-retriever" in done.stderr
    assert "llm-retriever encoders convert DIR OUT; cocondenser=OUT" in done.stderr
