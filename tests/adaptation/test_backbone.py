"""Bringing a backbone: every kind of source, and every way in which one can be unfit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.fetch_backbone.__main__ import STEP
from llm_retriever.adaptation.backbone import fetch
from llm_retriever.errors import InputError
from llm_retriever.files.seal import SEAL
from llm_retriever.models.card import Lineage, Stage, load_lineage, save_lineage, weights_digest
from llm_retriever.settings import BackboneSettings
from llm_retriever.stores.opening import publish
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(backbone_directory: Path, tmp_path: Path) -> Path:
    return as_others_publish_it(backbone_directory, tmp_path / "model")


def as_others_publish_it(backbone: Path, path: Path) -> Path:
    """A copy of a backbone without our lineage file, which a test may spoil."""
    shutil.copytree(backbone, path)
    (path / "backbone.json").unlink()
    return path


def fetched_from(source: str | Path, output: Path, **settings: Any) -> Path:
    fetch(BackboneSettings(source=str(source), **settings), output.parent / "no-collection", output)
    return output


def change(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text())
    for name, value in fields.items():
        if value is None:
            content.pop(name, None)
        else:
            content[name] = value
    path.write_text(json.dumps(content))


def test_a_fetched_directory_loads_and_knows_where_it_comes_from(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = fetched_from(model, tmp_path / "backbone")
    assert AutoModelForCausalLM.from_pretrained(output).config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(output).eos_token == "</s>"
    assert load_lineage(output) == Lineage(source=str(model), digest=weights_digest(model))


def test_a_prefix_in_a_bucket_is_fetched_like_a_directory(s3: S3Server, model: Path, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/backbones/tiny"
    publish(model, uri)
    output = fetched_from(uri, tmp_path / "backbone")
    assert load_lineage(output) == Lineage(source=uri, digest=weights_digest(model))
    assert (output / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not (output / "published.json").exists()


def test_the_lineage_of_a_trained_backbone_is_kept(model: Path, tmp_path: Path) -> None:
    lineage = Lineage("other", "r", "d", (Stage("ql", {"epochs": 1}, data="t", seconds=2.0, examples=3),))
    save_lineage(model, lineage)
    found = load_lineage(fetched_from(model, tmp_path / "backbone"))
    assert found == dataclasses.replace(lineage, digest=weights_digest(model))


def test_only_the_files_of_a_model_are_copied(model: Path, tmp_path: Path) -> None:
    before = {path.name for path in model.iterdir()}
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "modeling_own.py").write_text("raise SystemExit")
    (model / "consolidated.safetensors").write_bytes(b"the same weights again")
    (model / "original").mkdir()
    (model / "original" / "model.safetensors").write_bytes(b"another layout")
    (model / "LICENSE").write_text("terms")
    output = fetched_from(model, tmp_path / "backbone")
    assert {path.name for path in output.iterdir()} == before | {"LICENSE", "backbone.json", SEAL}


def sharded(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    whole.save_pretrained(model, max_shard_size="100KB")


def test_all_shards_of_a_model_are_copied(model: Path, tmp_path: Path) -> None:
    sharded(model)
    output = fetched_from(model, tmp_path / "backbone")
    shards = sorted(path.name for path in model.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert sorted(path.name for path in output.glob("*.safetensors")) == shards
    assert (output / "model.safetensors.index.json").exists()


def lose_a_shard(model: Path) -> None:
    sharded(model)
    min(model.glob("model-*.safetensors")).unlink()


def cut_weights_off(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def leave_a_git_pointer(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def pickle_the_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def leave_only_an_adapter(model: Path) -> None:
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda m: (m / "config.json").unlink(), r"/config.json: no such file; give a directory in Hugging"),
    "broken config": (lambda m: (m / "config.json").write_text("{\n,"), r"/config.json:2: not valid JSON; fetch the"),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), r"/config.json: not a JSON object"),
    "encoder": (
        lambda m: change(m / "config.json", architectures=["BertModel"], model_type="bert"),
        r'/config.json: field "architectures": BertModel is not a causal language model; give a decoder such as Llama',
    ),
    "sequence to sequence": (
        lambda m: change(m / "config.json", architectures=["T5ForConditionalGeneration"]),
        "T5ForConditionalGeneration is not a causal language model",
    ),
    "no architecture": (lambda m: change(m / "config.json", architectures=None), "nothing is not a causal language"),
    "no fast tokenizer": (
        lambda m: (m / "tokenizer.json").unlink(),
        r"/tokenizer.json: there is no fast tokenizer; load the tokenizer with transformers and save it again",
    ),
    "no end-of-sequence token": (
        lambda m: change(m / "tokenizer_config.json", eos_token=None),
        r'/tokenizer_config.json: field "eos_token": the tokenizer has no end-of-sequence token',
    ),
    "unknown end-of-sequence token": (
        lambda m: change(m / "tokenizer_config.json", eos_token="<|none|>"),
        r"'<|none|>' is not in the vocabulary",
    ),
    "pickled weights": (pickle_the_weights, r"/model.safetensors: the weights are pickled.*; save the model as saf"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), r"/model.safetensors: no such file"),
    "adapter": (leave_only_an_adapter, r"an adapter without its base model; merge it"),
    "missing shard": (lose_a_shard, r"/model.safetensors.index.json: the shard 'model-00001-of.*' is missing"),
    "cut-off weights": (cut_weights_off, r"/model.safetensors: has [\d,]+ bytes in place of [\d,]+; fetch the model"),
    "git pointer": (leave_a_git_pointer, r"/model.safetensors: not a safetensors file; .*git lfs pull"),
    "broken lineage": (lambda m: (m / "backbone.json").write_text('{"stages": 3}'), r"model/backbone.json"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_unfit_model_is_bad_input_and_leaves_nothing(model: Path, tmp_path: Path, case: str) -> None:
    spoil, problem = UNFIT[case]
    spoil(model)
    with pytest.raises(InputError, match=problem) as error:
        fetched_from(model, tmp_path / "out" / "backbone")
    assert str(error.value).startswith(str(model))
    assert error.value.hint
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unfit_model_in_a_bucket_is_refused_before_its_weights_are_copied(
    s3: S3Server, model: Path, tmp_path: Path
) -> None:
    change(model / "config.json", architectures=["BertModel"])
    publish(model, f"s3://{s3.bucket}/bert")
    s3.requests.clear()
    with pytest.raises(InputError, match=f"s3://{s3.bucket}/bert/config.json: .*BertModel"):
        fetched_from(f"s3://{s3.bucket}/bert", tmp_path / "out" / "backbone")
    assert not [path for method, path in s3.requests if method == "GET" and path.endswith(".safetensors")]
    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_prefix_is_bad_input(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"s3://{s3.bucket}/none: nothing is there"):
        fetched_from(f"s3://{s3.bucket}/none", tmp_path / "backbone")


@pytest.mark.parametrize(
    ("source", "revision", "problem"),
    [
        ("/no/such/model", "", r"/no/such/model: field \"source\": no such directory; check the path"),
        (
            "meta/model",
            "",
            r'field "revision": no such directory, and as a Hugging Face model meta/model needs one; give',
        ),
        ("meta/model", "main", r"field \"revision\": 'main' can move or is cut short; give the 40 digits of a commit"),
        ("meta/model", COMMIT[:8], "can move or is cut short"),
        ("gs://bucket/model", "", "gs:// is not a kind of URI"),
    ],
)
def test_a_source_that_is_nowhere_is_bad_input(tmp_path: Path, source: str, revision: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        fetched_from(source, tmp_path / "backbone", revision=revision)


def test_a_file_is_not_a_model(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a directory"):
        fetched_from(model / "config.json", tmp_path / "backbone")


# ---- the step


def flags_of(directory: Path, source: str) -> list[str]:
    """The step's command line; the collection is one that these backbones are not made from."""
    (directory / "collection").mkdir(exist_ok=True)
    paths = ["--collection", str(directory / "collection"), "--backbone", str(directory / "backbone")]
    return [*paths, "--source", source]


def test_the_step_runs_with_plain_flags(model: Path, tmp_path: Path) -> None:
    flags = flags_of(tmp_path, str(model))
    assert STEP.execute(flags) == 0
    assert load_lineage(tmp_path / "backbone").digest == weights_digest(model)


def test_the_step_runs_with_kubeflows_message(model: Path, tmp_path: Path) -> None:
    (tmp_path / "collection").mkdir()
    artifact = {"name": "backbone", "uri": "minio://bucket/run/backbone", "customPath": str(tmp_path / "backbone")}
    message = {
        "inputs": {
            "parameterValues": {"source": str(model), "seed": 3.0},
            "artifacts": {"collection": {"artifacts": [{"uri": str(tmp_path / "collection")}]}},
        },
        "outputs": {
            "artifacts": {"backbone": {"artifacts": [artifact]}},
            "outputFile": str(tmp_path / "executor_output.json"),
        },
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((tmp_path / "executor_output.json").read_text())
    (told,) = answer["artifacts"]["backbone"]["artifacts"]
    assert (told["uri"], told["metadata"]) == ("minio://bucket/run/backbone", {})
    lineage = load_lineage(tmp_path / "backbone")
    assert (lineage.source, lineage.revision, lineage.digest) == (str(model), "", weights_digest(model))


def test_a_refused_backbone_ends_the_step_with_exit_code_2_and_one_line(
    s3: S3Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(tmp_path, "s3://nowhere/x")
    assert STEP.execute(flags) == 2
    said = capfd.readouterr()
    assert said.err.splitlines() == [
        "fetch_backbone: s3://nowhere/x: the bucket does not exist; create it, or correct the URI and the endpoint"
    ]
    assert not (tmp_path / "backbone").exists()


def test_credentials_of_the_environment_appear_nowhere(
    s3: S3Server, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    publish(model, f"s3://{s3.bucket}/tiny")
    for source, code in ((f"s3://{s3.bucket}/tiny", 0), ("s3://nowhere/x", 2)):
        flags = flags_of(tmp_path, source)
        assert STEP.execute([*flags, "--debug"]) == code
    said = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in (tmp_path / "backbone").rglob("*") if path.is_file())
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert secret not in said.out + said.err
        assert secret.encode() not in written
