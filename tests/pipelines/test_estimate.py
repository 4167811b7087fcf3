"""The arithmetic of a run's cost, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llm_retriever.errors import InputError
from pipelines import presets
from pipelines.__main__ import main
from pipelines.estimate import GPUS, SHAPES, UTILISATION, Cost, estimate, shape_of
from pipelines.train_retriever import train_retriever

PASSAGES, QUERIES = 8_841_823, 491_000


def costs(preset: str, **changes: object) -> dict[str, Cost]:
    given = {**presets.defaults(train_retriever), **presets.load(preset), **changes}
    return {cost.step.split()[0]: cost for cost in estimate(given, PASSAGES, QUERIES, GPUS["a100-80"])}


def test_gpu_hours_of_the_published_recipe() -> None:
    found = costs("llm-ql-llama2-7b")
    rate = 312e12 * UTILISATION * 3600
    # two epochs of 200 + 200 tokens, all weights, recomputed: 8 FLOP a parameter and token
    assert found["adapt_backbone"].gpu_hours == pytest.approx(8 * 6.74e9 * 2 * QUERIES * 400 / rate)
    # one epoch of a query and 16 passages, LoRA, recomputed: 6 FLOP a parameter and token
    assert found["tune_retriever"].gpu_hours == pytest.approx(6 * 6.74e9 * QUERIES * (64 + 16 * 200) / rate)
    assert found["build_index"].gpu_hours == pytest.approx(2 * 6.74e9 * PASSAGES * 200 / rate)
    # Table 9 of the LLM-QL paper: 23 hours on 8 GPUs for both stages
    both = sum(found[step].gpu_hours or 0 for step in ("adapt_backbone", "tune_retriever"))
    assert 20 < both / 8 < 28


def test_the_index_has_the_size_that_the_paper_prints() -> None:
    found = costs("llm-ql-llama2-7b", index_dtype="fp32")
    assert found["build_index"].s3_bytes / 2**30 == pytest.approx(135, abs=1)
    assert costs("llm-ql-llama2-7b", index_dtype="fp16")["build_index"].s3_bytes == found["build_index"].s3_bytes / 2


def test_more_gpus_under_zero_need_less_memory_each_and_the_same_hours() -> None:
    eight, four = (costs("llm-ql-llama2-7b", adapt_gpus=n)["adapt_backbone"] for n in (8, 4))
    assert four.gpu_bytes - eight.gpu_bytes == pytest.approx(16 * 6.74e9 / 8)
    assert four.gpu_hours == eight.gpu_hours


def test_a_method_without_stage_one_has_no_such_step() -> None:
    assert "adapt_backbone" not in costs("repllama-llama2-7b")


def test_parameters_of_a_model_directory_are_those_of_the_model(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config.save_pretrained(tmp_path)
    exact = sum(
        parameter.numel() for name, parameter in LlamaForCausalLM(config).named_parameters() if "norm" not in name
    )
    assert shape_of(str(tmp_path)).parameters == exact


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match=r"Qwen/Qwen3-0\.6B"):
        shape_of("somebody/something")


def test_every_preset_can_be_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    for name in presets.names():
        assert main(["estimate", "--preset", name, "--passages", "1000", "--queries", "100"]) == 0
        assert "| **all** |" in capsys.readouterr().out
        assert presets.load(name)["backbone"] in SHAPES


def test_what_does_not_fit_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "llm-ql-llama2-7b", "--passages", "1000", "--queries", "100", "--gpu", "a100-40"]
    assert main(["estimate", *options, "adapt_deepspeed=off"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| adapt_backbone")]
    assert "too much" in line
    assert main(["estimate", *options[:-1], "abacus"]) == 2
