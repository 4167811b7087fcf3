"""Lines of a file, read where they lie."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from llm_retriever.data.lines import LINE_BYTES, JsonItems, LineReader


def written(path: Path, *rows: Any, end: str = "\n") -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + end, encoding="utf-8")
    return path


def test_a_line_of_any_length_is_read_from_where_it_begins(tmp_path: Path) -> None:
    lines = ["short", "", "ü" * 2 * LINE_BYTES, "last"]
    path = tmp_path / "lines"
    path.write_text("\n".join(lines), encoding="utf-8")
    starts = [len("\n".join([*lines[:number], ""]).encode()) for number in range(len(lines))]
    reader = LineReader(path)
    assert [reader.line(start).decode() for start in starts] == lines


def test_lines_are_parsed_by_number(tmp_path: Path) -> None:
    rows = [{"parts": [1, 2]}, {"parts": []}, {"parts": ["ü"]}]
    for end in ("", "\n"):
        lines = JsonItems(written(tmp_path / "rows.jsonl", *rows, end=end))
        assert len(lines) == 3
        assert list(lines) == [lines[number] for number in range(3)] == rows


def test_items_are_counted_in_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", *({"parts": parts} for parts in ([1, 2], [], [3])))
    items = JsonItems(path, lambda row: len(row["parts"]))
    assert len(items) == 3
    assert [items[item]["parts"][items.number(item)] for item in range(3)] == [1, 2, 3]


def test_a_copy_of_another_process_opens_the_file_for_itself(tmp_path: Path) -> None:
    lines = JsonItems(written(tmp_path / "rows.jsonl", "a", "b"))
    copy = pickle.loads(pickle.dumps(lines))
    del lines
    assert list(copy) == ["a", "b"]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert list(JsonItems(tmp_path / "rows.jsonl")) == []
