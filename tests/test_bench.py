"""The benchmarks' frame: ways that take turns, what work needs by count, and the table that is made of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from benchmarks import bench, measuring, roofline, works

WAY = """
import sys
sys.path.insert(0, sys.argv[1])
from measuring import serve
done = []
def work():
    print("a library that chats")
    done.append(bytearray(int(sys.argv[2]) * 2**20))
    return {"times": len(done)}
def make():
    print("a library that loads")
    return work
serve(make)
"""
BENCHMARKS = str(Path(measuring.__file__).parent)


@pytest.fixture
def ways() -> Any:
    """Two ways of the same work, of which the first keeps 20 MiB a time, the second 1 MiB."""
    started = {size: measuring.Way([sys.executable, "-c", WAY, BENCHMARKS, size]) for size in ("20", "1")}
    yield started
    for way in started.values():
        way.close()


def test_ways_take_turns_and_the_first_round_only_warms_up(ways):
    measuring.take_turns(ways, rounds=4)
    for way in ways.values():
        assert [answer["times"] for answer in way.answers] == [1, 2, 3, 4]
        assert way.seconds() == [answer["seconds"] for answer in way.answers[1:]]
    ratio = measuring.ratios(ways["20"], ways["1"])
    assert 0 < ratio.low <= ratio.median <= ratio.high


def test_memory_is_what_the_work_holds_beyond_what_was_there_before(ways):
    measuring.take_turns(ways, rounds=2)
    large, small = (ways[size].answers[-1]["memory"] for size in ("20", "1"))
    assert 30 < large < 60
    assert small < 20


def test_a_way_that_ends_is_told_of():
    with pytest.raises(RuntimeError, match="ended with 3"):
        measuring.Way([sys.executable, "-c", "import sys; sys.exit(3)"])


def test_a_way_whose_result_is_useless_is_no_peer(tmp_path):
    code = f"import sys; sys.path.insert(0, {BENCHMARKS!r}); from measuring import serve\n"
    ways = {name: tmp_path / f"{name}.py" for name in ("good", "bad")}
    for name, path in ways.items():
        answer = {} if name == "good" else {"useless": "its vectors are not finite"}
        path.write_text(f"{code}serve(lambda: lambda: {answer})")
    commands = {name: works.There(lambda inputs, path=path: [sys.executable, str(path)]) for name, path in ways.items()}
    work = works.Work("w", "a work", commands, 1.0, None, None)
    running, left_out = bench.started(work, works.Inputs(*[tmp_path] * 3, 1, 1))
    assert (list(running), left_out) == (["good"], {"bad": "its vectors are not finite"})
    running["good"].close()


def test_operations_are_those_that_are_counted_by_hand():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaModel(LlamaConfig(vocab_size=32, num_key_value_heads=1, head_dim=4, **sizes))
    weights = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
    attention = 4 * 4 * 2 * 2 * (1 + 2 + 3 + 1)
    assert sum(a * b for a, b in roofline.matrices(model)) == weights
    assert roofline.operations(model, [3, 1], passes=1) == 2 * weights * 4 + attention
    head = 2 * 3 * 5 * 32 * 8
    assert roofline.operations(model, [3, 1], passes=3, head=5) == 6 * weights * 4 + 3 * attention + head
    assert roofline.operations(model, [3, 1], passes=2, adapter=10) == (4 * weights + 60) * 4 + 3 * attention
    rest = 2 * (weights - (8 * 8 + 8 * 8 + 3 * 8 * 16)) * 4 + 2 * (8 * 8 + 8 * 8 + 3 * 8 * 16) * 2
    seen = 4 * 4 * 2 * ((1 + 2 + 3 + 1) + (3 + 1))
    assert roofline.operations(model, [3, 1], passes=1, read=1) == rest + seen
    assert roofline.operations(model, [3, 1], passes=1, read=9) == 2 * weights * 4 + attention
    assert roofline.products(model, torch.float32, times=1)()["operations"] == 2 * roofline.ROWS * weights


def test_every_work_has_a_name_of_its_own_and_something_to_be_measured_against():
    names = [work.name for work in bench.WORKS]
    assert len(names) == len(set(names))
    for work in bench.WORKS:
        assert next(iter(work.ways)) == works.OURS
        assert work.peers
        assert work.target


def test_the_table_says_what_was_measured():
    row: dict[str, Any] = {
        "work": "tune",
        "title": "tuning",
        "target": 2.5,
        "goal": 0.5,
        "agreement": "losses differ by 0.0001",
    }
    row |= {"against": "the peer", "ratio": [2.71, 2.6, 2.8], "share": 0.48, "memory": 0.31}
    row |= {"date": "2026-11-28", "commit": "abc", "machine": "2 cores", "versions": {"torch": "2.13.0"}}
    lines = bench.table([row]).splitlines()
    assert (
        lines[2] == "| tuning | the peer | **2.71 (2.60-2.80)** | 2.50 | 48% | 50% | 0.31 | losses differ by 0.0001 |"
    )
    row["left_out"] = {"another": "its vectors are not finite"}
    said = bench.table([row]).splitlines()[2]
    assert said.endswith("| losses differ by 0.0001; without another: its vectors are not finite |")
    assert lines[4:] == ["Measured on 2026-11-28, commit abc, 2 cores.", "Versions: torch 2.13.0."]
