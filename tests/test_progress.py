"""Progress: count, share, rate, time left and figures, in lines that a pod's log can hold."""

from __future__ import annotations

import re

import pytest

from llm_retriever import progress
from llm_retriever.progress import Progress, seconds_as_text


@pytest.mark.parametrize(("seconds", "text"), [(8, "8s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_are_written_as_people_write_them(seconds: float, text: str) -> None:
    assert seconds_as_text(seconds) == text


def test_a_line_tells_count_share_rate_time_left_and_figures() -> None:
    bar = Progress("encode", 200, "passages", quiet=True)
    bar.update(50, loss=0.51234567)
    assert re.fullmatch(r"encode: 50/200 \(25%\) passages, [\d,]+/s, \d+s left, loss 0\.5123", bar.line())


def test_a_total_that_was_a_guess_is_dropped_when_it_is_passed() -> None:
    bar = Progress("read", 10, "lines", quiet=True)
    bar.update(11)
    assert bar.line().startswith("read: 11 lines, ")


def test_work_done_before_does_not_count_into_the_rate() -> None:
    bar = Progress("train", 100, "pairs", done=90, quiet=True)
    assert ", 0.00/s, " in bar.line()


def test_without_a_terminal_lines_are_seconds_apart_and_the_last_one_always_comes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress("count", 3, "steps") as bar:
        for _ in range(3):
            bar.update()
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress("count", 3, "steps") as bar:
        for _ in range(3):
            bar.update()
    assert capsys.readouterr().err.count("\n") == 3
