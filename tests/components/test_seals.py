"""Steps refuse what was changed since the step before wrote it: exit code 2, the file is named, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.adapt_backbone.__main__ import STEP as ADAPT
from components.entrypoint import Step, StepRun
from components.fetch_backbone.__main__ import STEP as FETCH
from components.mine_negatives.__main__ import STEP as MINE
from components.tune_retriever.__main__ import STEP as TUNE
from llm_retriever.files.seal import SEAL, write_seal
from llm_retriever.settings.corpus import CorpusSettings


def swapped(file: Path) -> None:
    """The first positive becomes the first negative; the size stays."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    row = next(row for row in rows if len(row["negatives"][0]["id"]) == len(row["positives"][0]["id"]))
    row["positives"][0]["id"], row["negatives"][0]["id"] = row["negatives"][0]["id"], row["positives"][0]["id"]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def flipped(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def more_norm(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.1}))


@pytest.fixture
def inputs(
    tmp_path: Path, collection_directory: Path, training_set_directory: Path, backbone_directory: Path
) -> dict[str, Path]:
    """Sealed copies, as steps write them."""
    found = {"collection": collection_directory, "training_set": training_set_directory, "adapted": backbone_directory}
    for name, source in found.items():
        shutil.copytree(source, tmp_path / name)
        write_seal(tmp_path / name)
    return {name: tmp_path / name for name in found}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("training_set/training_set.jsonl", swapped),
        ("training_set/training_set.json", flipped),
        ("adapted/model.safetensors", flipped),
        ("adapted/tokenizer.json", flipped),
        ("adapted/config.json", more_norm),
        ("collection/queries.jsonl", flipped),
        ("collection/qrels/train.tsv", Path.unlink),
    ],
)
def test_tuning_refuses_inputs_that_were_changed(
    tmp_path: Path,
    inputs: dict[str, Path],
    file: str,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(tmp_path / file)
    outputs = [f"--{name}={tmp_path / name}" for name in ("retriever", "curves", "metrics")]
    flags = [f"--{name.replace('_', '-')}={path}" for name, path in inputs.items()]
    assert TUNE.execute([*flags, *outputs, "--max-steps=1", "--processes=1"]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / file) in told
    assert "make it anew" in told
    assert not (tmp_path / "retriever").exists()


def test_what_steps_write_is_sealed(tmp_path: Path, collection_directory: Path, backbone_directory: Path) -> None:
    flags = [f"--collection={collection_directory}", f"--source={backbone_directory}"]
    assert FETCH.execute([*flags, f"--backbone={tmp_path / 'backbone'}"]) == 0
    mined = [f"--{name}={tmp_path / name}" for name in ("training-set", "bm25-runs", "statistics", "picture")]
    assert MINE.execute([flags[0], *mined, "--depth=20"]) == 0
    for name in ("backbone", "training-set", "bm25-runs"):
        assert (tmp_path / name / SEAL).is_file()
    runs = (tmp_path / "bm25-runs" / SEAL).read_text()
    assert all(name in runs for name in ("runs.json", "test.trec", "lucene.json", "lucene/"))
    flags = [f"--{name}={tmp_path / name}" for name in ("backbone", "training-set", "adapted", "curves", "metrics")]
    assert ADAPT.execute([f"--collection={collection_directory}", *flags, "--method=none"]) == 0
    assert (tmp_path / "adapted" / SEAL).is_file()


def test_collected_inputs_are_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(step: StepRun[CorpusSettings]) -> None:
        raise AssertionError("no work is done")

    step = Step("gather", CorpusSettings, work, collected={"part": "Parts."})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.json").write_text("{}")
        write_seal(tmp_path / name)
    (tmp_path / "b" / "part.json").write_text("{ }")
    assert step.execute(["--parts", f"one={tmp_path / 'a'}", f"two={tmp_path / 'b'}", "--uri", "x"]) == 2
    assert str(tmp_path / "b" / "part.json") in capsys.readouterr().err
