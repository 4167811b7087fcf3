"""Shards: passage ids are read back one by one from their mapped file."""

from __future__ import annotations

from llm_retriever.indexing.shards import PassageIds


def test_ids_are_read_back_by_row(tmp_path):
    names = ["p1", "Größe", "", "a\u2028b", "\x85", "文書", " spaces "]
    (tmp_path / "ids.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
    ids = PassageIds(tmp_path / "ids.txt")
    assert len(ids) == len(names)
    assert [ids[row] for row in range(len(names))] == names


def test_no_ids_are_no_error(tmp_path):
    (tmp_path / "ids.txt").touch()
    assert len(PassageIds(tmp_path / "ids.txt")) == 0
