"""A source's fingerprint changes exactly when the source does."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.fingerprint_sources.__main__ import STEP
from llm_retriever.errors import InputError
from llm_retriever.fingerprint import backbone_fingerprint, corpus_fingerprint


def test_a_directory_is_known_by_names_and_contents(beir_source: Path) -> None:
    before = corpus_fingerprint(str(beir_source))
    (beir_source / "corpus.jsonl").touch()
    assert corpus_fingerprint(str(beir_source)) == before
    with (beir_source / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "new", "text": "one more"}\n')
    changed = corpus_fingerprint(str(beir_source))
    assert changed != before
    (beir_source / "corpus.jsonl").rename(beir_source / "passages.jsonl")
    assert corpus_fingerprint(str(beir_source)) not in {before, changed}


def test_the_demo_is_known_by_the_versions_that_it_is_made_of() -> None:
    assert corpus_fingerprint("demo:python-docs") == corpus_fingerprint("demo:python-docs")


def test_a_backbone_is_known_by_its_files_or_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = backbone_fingerprint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 1}')
    assert backbone_fingerprint(str(tmp_path)) != before
    assert backbone_fingerprint("scratch:tiny") != backbone_fingerprint("scratch:small")


def test_a_source_that_does_not_exist_ends_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no such directory"):
        corpus_fingerprint(str(tmp_path / "none"))
    assert STEP.execute(["--corpus-uri", str(tmp_path / "none"), "--backbone", "scratch:tiny"]) == 2
    assert capsys.readouterr().err.startswith("fingerprint_sources: ")


def test_the_step_prints_both_fingerprints(beir_source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STEP.execute(["--corpus-uri", str(beir_source), "--backbone", "scratch:tiny"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"corpus_fingerprint: {corpus_fingerprint(str(beir_source))}",
        f"backbone_fingerprint: {backbone_fingerprint('scratch:tiny')}",
        "part_numbers: [0]",
    ]
