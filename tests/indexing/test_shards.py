"""Shards: passage ids are read back one by one from their mapped file."""

from __future__ import annotations

import pytest

from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import PassageIds, write_ids


def test_ids_are_read_back_by_row(tmp_path):
    names = ["p1", "Größe", "", "a\u2028b", "\x85", "文書", " spaces "]
    write_ids(tmp_path / "ids.txt", names)
    ids = PassageIds(tmp_path / "ids.txt")
    assert len(ids) == len(names)
    assert [ids[row] for row in range(len(names))] == names


def test_no_ids_are_no_error(tmp_path):
    write_ids(tmp_path / "ids.txt", [])
    assert len(PassageIds(tmp_path / "ids.txt")) == 0


def test_an_id_with_a_line_break_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="'a\\\\nb' holds a line break"):
        write_ids(tmp_path / "ids.txt", ["a\nb"])
    assert not list(tmp_path.iterdir())
