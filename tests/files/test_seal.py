"""The seal of an output: what was changed, cut or lost is found, whatever it is; what has none is taken as it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.files.seal import SEAL, check_seal, checksums_of, write_seal

NAMES = ("runs.json", "test.trec", "deep/test.bm25.trec", "lucene/_0.cfs")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    with layouts.BM25_RUNS.output(tmp_path / "runs") as draft:
        for name in NAMES:
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(f"the content of {name}\n")
        (draft / "runs.json").write_text('{"system": "BM25", "parameters": {}, "collection": "c"}')
    return tmp_path / "runs"


def test_every_file_is_named_with_its_checksum_as_sha256sum_does(output: Path) -> None:
    assert sorted(checksums_of(output) or ()) == sorted(NAMES)
    subprocess.run(["sha256sum", "--check", "--strict", SEAL], cwd=output, check=True, stdout=subprocess.DEVNULL)
    check_seal(output)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flipped, halved, Path.unlink])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named(output: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(output / name)
    with pytest.raises(InputError) as raised:
        check_seal(output)
    assert str(raised.value.file) == str(output / name)
    assert "make it anew" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cut off"),
        ("0" * 64 + "  runs.json", "cut off"),
        ("abc  runs.json\n", "no checksum and name"),
        ("0" * 64 + "  ../secret\n", "no checksum and name"),
        ("0" * 64 + "  /etc/passwd\n", "no checksum and name"),
        ("0" * 64 + "  lost.json\n", "is missing"),
    ],
)
def test_a_damaged_seal_is_refused(output: Path, text: str, problem: str) -> None:
    (output / SEAL).write_text(text)
    with pytest.raises(InputError, match=problem):
        check_seal(output)


def test_an_output_with_a_damaged_seal_is_not_replaced_and_what_to_do_is_said(output: Path) -> None:
    (output / SEAL).write_text("0" * 30)
    with pytest.raises(InputError, match="cut off") as raised:
        layouts.BM25_RUNS.check(output)
    assert "another path" in raised.value.hint


def test_a_directory_without_a_seal_and_files_beyond_it_are_taken_as_they_are(output: Path) -> None:
    (output / "notes.txt").write_text("mine")
    check_seal(output)
    (output / SEAL).unlink()
    flipped(output / "test.trec")
    check_seal(output)
    assert checksums_of(output) is None


def test_a_file_of_ones_own_in_an_earlier_output_is_not_erased_though_its_name_would_fit(output: Path) -> None:
    layouts.BM25_RUNS.check(output)
    (output / "mine.trec").write_text("q Q0 p 1 1 x\n")
    with pytest.raises(InputError, match="would be erased") as raised:
        layouts.BM25_RUNS.check(output)
    assert str(raised.value.file) == str(output / "mine.trec")


def test_a_seal_that_is_linked_from_elsewhere_is_replaced_and_not_written_through(output: Path, tmp_path: Path) -> None:
    files.link_tree(output, tmp_path / "copy")
    before = (output / SEAL).read_text()
    (tmp_path / "copy" / "test.trec").unlink()
    write_seal(tmp_path / "copy")
    assert (output / SEAL).read_text() == before
    check_seal(output)
    check_seal(tmp_path / "copy")


def test_vectors_are_left_to_the_index(tmp_path: Path) -> None:
    for name in ("manifest.json", "vectors-00000.npy", "ids-00000.txt", "index.faiss", "passages.npy"):
        (tmp_path / name).write_text(name)
    write_seal(tmp_path)
    assert list(checksums_of(tmp_path) or ()) == ["manifest.json"]
