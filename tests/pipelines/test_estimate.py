"""The arithmetic of a run's cost, against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llm_retriever.adaptation.pretraining import BLOCK, SIZES
from llm_retriever.errors import InputError
from pipelines import artifacts, estimate, form, presets, variants
from pipelines.__main__ import main
from pipelines.estimate import GPUS, SHAPES, UTILISATION, Cost, Workload
from pipelines.model_shapes import shape_of

PASSAGES, QUERIES = 8_841_823, 491_000
MS_MARCO = Workload(PASSAGES, QUERIES, 6980)
GPU = GPUS["a100-80"]
RATE = 312e12 * UTILISATION * 3600
BODY, TABLE = 32 * (4 * 4096**2 + 3 * 4096 * 11_008), 32_000 * 4096


def parameters_of(preset: str, **changes: object) -> dict[str, Any]:
    return {**form.defaults(), **presets.load(preset), **changes}


def costs(preset: str, work: Workload = MS_MARCO, **changes: object) -> dict[str, Cost]:
    return {cost.step.split()[0]: cost for cost in estimate.estimate(parameters_of(preset, **changes), work, GPU)}


def test_gpu_hours_of_the_published_recipe() -> None:
    found = costs("llm-ql-llama2-7b")
    # two epochs of 200 + 200 tokens, all weights, recomputed: four passes; logits of the query's 200, three
    rows = 2 * QUERIES * (400 * 4 * (2 * BODY + 4 * 32 * 400 * 4096) + 200 * 6 * TABLE)
    assert found["adapt_backbone"].gpu_hours == pytest.approx(rows / RATE)
    # one epoch of a query and 16 passages, LoRA, recomputed: three passes and the adapter's own gradients
    adapter = 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11_008))
    assert 79e6 < adapter < 81e6
    tokens = [(64, 64), (16 * 200, 200)]
    row = sum(n * (3 * (2 * (BODY + adapter) + 4 * 32 * length * 4096) + 2 * adapter) for n, length in tokens)
    assert found["tune_retriever"].gpu_hours == pytest.approx(QUERIES * row / RATE)
    assert found["build_index"].gpu_hours == pytest.approx(PASSAGES * 200 * (2 * BODY + 4 * 32 * 200 * 4096) / RATE)
    # Table 9 of the LLM-QL paper: 23 hours on 8 GPUs for both stages
    both = sum(found[step].gpu_hours or 0 for step in ("adapt_backbone", "tune_retriever"))
    assert 20 < both / 8 < 28


def test_shorter_texts_take_less_and_longer_ones_are_cut() -> None:
    full, short, long = (
        costs("llm-ql-llama2-7b", Workload(PASSAGES, QUERIES, 6980, passage_tokens=n))["build_index"].gpu_hours or 0
        for n in (0, 100, 900)
    )
    assert full == long
    assert 0.49 < short / full < 0.5  # attention is shorter, too


def test_the_index_has_the_size_that_the_paper_prints() -> None:
    single = costs("llm-ql-llama2-7b", index_dtype="fp32")["build_index"].s3_bytes
    assert single / 2**30 == pytest.approx(135, abs=1)
    half = costs("llm-ql-llama2-7b", index_dtype="fp16")["build_index"].s3_bytes
    assert single - half == pytest.approx(PASSAGES * 4096 * 2)
    graph = costs("llm-ql-llama2-7b", index_dtype="fp32", index_kind="hnsw")["build_index"].s3_bytes
    assert graph - single == pytest.approx(PASSAGES * (2 * 4096 + 2 * 32 * 4))


def test_small_vectors_take_the_bytes_of_their_numbers_and_scales() -> None:
    whole, small = (
        costs("llm-ql-llama2-7b", index_dtype=dtype, index_dimension=dimension)["build_index"].s3_bytes
        for dtype, dimension in (("fp32", 0), ("int8", 256))
    )
    assert whole - small == pytest.approx(PASSAGES * (4 * 4096 - 260))


def test_shards_that_lie_apart_are_sent_by_the_step_and_fetched_by_nobody() -> None:
    within, apart = (costs("llm-ql-llama2-7b", index_shards_uri=uri) for uri in ("", "s3://bucket/shards"))
    assert apart["build_index"].s3_bytes == pytest.approx(within["build_index"].s3_bytes)
    assert apart["build_index"].requests < within["build_index"].requests / 2  # larger parts
    assert within["evaluate"].fetched_bytes - apart["evaluate"].fetched_bytes > PASSAGES * 4096 * 2


def test_more_gpus_under_zero_need_less_memory_each_and_the_same_hours() -> None:
    eight, four = (costs("llm-ql-llama2-7b", adapt_gpus=n)["adapt_backbone"] for n in (8, 4))
    assert (four.gpu_bytes or 0) - (eight.gpu_bytes or 0) == pytest.approx(16 * (BODY + 2 * TABLE) / 8)
    assert four.gpu_hours == eight.gpu_hours


def test_the_gpus_of_several_nodes_count() -> None:
    one = costs("llm-ql-llama2-7b", adapt_gpus=16)["adapt_backbone"]
    two = costs("llm-ql-llama2-7b", adapt_nodes=2, adapt_node_gpus=8, adapt_gpus=1)["adapt_backbone"]
    assert (two.gpu_bytes, two.gpu_hours) == (one.gpu_bytes, one.gpu_hours)


def test_activations_that_are_not_recomputed_take_memory_and_save_time() -> None:
    kept, recomputed = (
        costs("llm-ql-llama2-7b", adapt_gradient_checkpointing=switch)["adapt_backbone"] for switch in ("off", "on")
    )
    assert (kept.gpu_bytes or 0) > 4 * (recomputed.gpu_bytes or 0)
    assert 0.74 < (kept.gpu_hours or 0) / (recomputed.gpu_hours or 1) < 0.76


def test_checkpoints_go_to_s3_as_often_as_they_are_asked_for() -> None:
    without = costs("llm-ql-llama2-7b")["adapt_backbone"]
    every = costs("llm-ql-llama2-7b", run_checkpoint_uri="s3://b/c", run_checkpoint_minutes=60.0)["adapt_backbone"]
    hours = (without.gpu_hours or 0) / 8
    assert every.s3_bytes - without.s3_bytes == pytest.approx(int(hours) * 14 * (BODY + 2 * TABLE))
    assert every.requests > without.requests


def test_a_step_without_a_stage_one_still_hands_the_backbone_on() -> None:
    none = costs("repllama-llama2-7b")["adapt_backbone"]
    assert none.gpu_hours is None
    assert none.s3_bytes == pytest.approx(2 * (BODY + 2 * TABLE), rel=1e-3)


def test_requests_are_those_of_parts_and_of_small_files() -> None:
    part = artifacts.LAUNCHER_PART
    assert artifacts.uploads([(1.0, part), (part + 1.0,)]) == 1 + 1 + (2 + 2)
    assert artifacts.downloads([(1.0, part), (part + 1.0,)]) == (1 + 2) + (1 + 1)


def test_everything_is_told_of_every_step() -> None:
    found = costs("llm-ql-qwen3-0.6b")
    model_steps = {"adapt_backbone", "tune_retriever", "build_index", "evaluate"}
    assert {step for step, cost in found.items() if cost.gpu_hours and cost.gpu_bytes} == model_steps
    assert all(cost.disk_bytes > 0 and cost.requests > 0 for cost in found.values())
    assert {step for step, cost in found.items() if not cost.s3_bytes} == set()
    assert {step for step, cost in found.items() if not cost.fetched_bytes} == {"prepare_corpus"}


def compared(work: Workload = MS_MARCO, preset: str = "llm-ql-llama2-7b", **changes: object) -> dict[str, Cost]:
    """The costs of a comparison of all methods, by step."""
    given = parameters_of(preset, **changes)
    found = estimate.estimate_comparison(given, variants.load("methods").variants, work, GPU)
    assert len({cost.step for cost in found}) == len(found)
    return {cost.step: cost for cost in found}


def test_a_variant_is_one_step_and_costs_what_its_four_stages_cost() -> None:
    found, alone = compared(eval_untuned_passages=0), costs("llm-ql-llama2-7b", eval_untuned_passages=0)
    names = [variant.name for variant in variants.load("methods").variants]
    shared = ["prepare_corpus", "mine_for_variants", "fetch_backbone"]
    assert list(found) == [*shared, *(f"run_variant: {name}" for name in names), "compare"]
    stages = [alone[step] for step in ("adapt_backbone", "tune_retriever", "build_index", "evaluate")]
    ours = found["run_variant: LLM-QL"]
    assert ours.gpu_hours == pytest.approx(sum(cost.gpu_hours or 0 for cost in stages))
    assert ours.gpu_bytes == max(cost.gpu_bytes or 0 for cost in stages)
    assert ours.s3_bytes == pytest.approx(alone["tune_retriever"].s3_bytes + alone["evaluate"].s3_bytes, rel=0.01)


def test_finished_parts_are_sent_where_checkpoints_go() -> None:
    without, kept = compared(), compared(run_checkpoint_uri="s3://b/c", run_checkpoint_minutes=1e9)
    alone = costs("llm-ql-llama2-7b")
    more = kept["run_variant: LLM-QL"].s3_bytes - without["run_variant: LLM-QL"].s3_bytes
    made = sum(alone[step].s3_bytes for step in ("adapt_backbone", "tune_retriever", "build_index"))
    assert more == pytest.approx(made, rel=0.01)
    more = kept["run_variant: RepLLaMA"].s3_bytes - without["run_variant: RepLLaMA"].s3_bytes
    assert more < made - alone["adapt_backbone"].s3_bytes * 0.9  # a backbone that was not adapted is kept by nobody


def test_all_stages_of_a_variant_have_the_gpus_of_its_pod() -> None:
    eight = compared(tune_gpus="8", adapt_gpus="1", adapt_deepspeed="zero3")["run_variant: LLM-QL"]
    one = compared(tune_gpus="1", adapt_gpus="8", adapt_deepspeed="zero3")["run_variant: LLM-QL"]
    assert (eight.gpu_bytes or 0) < (one.gpu_bytes or 0)
    assert eight.gpu_hours == one.gpu_hours


def test_only_the_first_variant_of_a_backbone_encodes_with_the_untuned_one() -> None:
    small = Workload(1000, 1)
    with_, without = (compared(small, "llm-ql-qwen3-0.6b", eval_untuned_passages=n) for n in (1000, 0))
    more = [(with_[step].gpu_hours or 0) - (without[step].gpu_hours or 0) for step in with_ if step.startswith("run_")]
    assert more[0] > 0
    assert set(more[1:]) == {0}


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_of_a_model_directory_are_those_of_the_model(tied: bool, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    config.save_pretrained(tmp_path)
    exact = sum(
        parameter.numel() for name, parameter in LlamaForCausalLM(config).named_parameters() if "norm" not in name
    )
    assert shape_of({"backbone": str(tmp_path)}).parameters == exact


def test_backbones_from_scratch_have_the_shapes_that_are_made() -> None:
    for name, size in SIZES.items():
        shape = SHAPES[f"scratch:{name}"]
        assert (shape.layers, shape.hidden, shape.inner) == (size.layers, size.hidden, size.inner)
    assert shape_of({"backbone": "scratch:tiny", "backbone_scratch_vocabulary": 4000}).vocabulary == 4032
    assert estimate.SCRATCH_LENGTH == BLOCK


def test_known_backbones_have_as_many_parameters_as_they_are_named_for() -> None:
    millions = {name: shape.parameters / 1e6 for name, shape in SHAPES.items()}
    assert millions["meta-llama/Llama-2-7b-hf"] == pytest.approx(6738, abs=1)
    assert millions["mistralai/Mistral-7B-v0.1"] == pytest.approx(7241, abs=1)
    assert millions["meta-llama/Llama-3.1-8B"] == pytest.approx(8030, abs=1)
    assert millions["Qwen/Qwen3-0.6B"] == pytest.approx(596, abs=1)
    assert millions["scratch:tiny"] == pytest.approx(1.8, abs=0.1)


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match=r"Qwen/Qwen3-0\.6B"):
        shape_of({"backbone": "somebody/something"})


def test_every_preset_can_be_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    for name in presets.names():
        assert main(["estimate", "--preset", name, "--passages", "1000", "--queries", "100"]) == 0
        assert "| **all** |" in capsys.readouterr().out
        assert presets.load(name)["backbone"] in SHAPES


@pytest.mark.slow
def test_all_pipelines_can_be_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "llm-ql-qwen3-0.6b", "--passages", "1000", "--queries", "100"]
    tables = []
    for pipeline in ([], ["retrain"], ["compare_methods", "--variants", "ql-ablation"]):
        assert main(["estimate", *pipeline, *options]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "| compare |" in tables[2]
    assert main(["estimate", "rerun_evaluate", *options]) == 2
    assert main(["estimate", *options, "--variants", "methods"]) == 2


def test_what_does_not_fit_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "llm-ql-llama2-7b", "--passages", "1000", "--queries", "100", "--gpu", "a100-40"]
    assert main(["estimate", *options, "adapt_deepspeed=off"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| adapt_backbone")]
    assert "too much" in line
    assert main(["estimate", *options[:-1], "abacus"]) == 2
