"""Presets and parameters are checked before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_retriever import methods
from llm_retriever.adaptation import adapt as adaptation
from llm_retriever.contrastive import tuning
from llm_retriever.errors import InputError
from llm_retriever.precision import has_native_bf16
from llm_retriever.settings import AdaptationSettings, TuningSettings, build, parameters
from llm_retriever.training.train import planned
from pipelines import demo, presets, variants
from pipelines.__main__ import main
from pipelines.choice import TRAINING, choose, names_of
from pipelines.estimate import GPUS, Workload, estimate
from pipelines.form import defaults, flat_name

PUBLISHED = [name for name in presets.names() if not name.startswith("demo")]
QUERIES = 491_000
"""Training queries of MS MARCO."""


def settings_of(name: str, prefix: str, kind: type) -> Any:
    """The settings of a step that a preset makes."""
    given = {**defaults(), **presets.load(name)}
    named = {setting: flat_name(prefix, setting) for setting in parameters(kind)}
    return build(kind, {setting: given[parameter] for setting, parameter in named.items() if parameter in given})


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_fits_the_pipeline_and_says_what_it_is_for(name: str) -> None:
    given = {**defaults(), **presets.load(name)}
    presets.check(given)
    assert set(given) == set(defaults())
    types = {key: type(value) for key, value in defaults().items()}
    assert {key: type(value) for key, value in given.items()} == types
    assert len(presets.description(name)) > 30


def test_every_published_method_has_a_preset_on_both_backbones() -> None:
    seven_billion = {f"{name}-llama2-7b" for name in methods.METHODS}
    small = {f"{name}-qwen3-0.6b" for name in ("llm-ql", "llama2vec", "repllama", "llm2vec")}
    assert set(PUBLISHED) == seven_billion | small
    for name in PUBLISHED:
        assert presets.load(name)["tune_method"] == name.removesuffix("-llama2-7b").removesuffix("-qwen3-0.6b")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_of_the_hub_is_pinned_to_a_commit(name: str) -> None:
    given = presets.load(name)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", given["backbone"])
    assert re.fullmatch(r"[0-9a-f]{40}", given["backbone_revision"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_stages_of_a_preset_train_the_same_method_with_the_same_prompts(name: str) -> None:
    adapting, tuned = settings_of(name, "adapt", AdaptationSettings), settings_of(name, "tune", TuningSettings)
    row = tuning.resolved_method(tuned)
    if adapting.method == "none":
        assert row.name in ("repllama", "echo", "summarize")
    else:
        one = adaptation.resolved_method(adapting)
        assert (one.name, one.query, one.passage, one.attention) == (row.name, row.query, row.passage, row.attention)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_trains_the_published_batches_on_its_processes(name: str) -> None:
    adapting, tuned = settings_of(name, "adapt", AdaptationSettings), settings_of(name, "tune", TuningSettings)
    plan = planned(tuning.resolved_method(tuned).tuning.schedule, QUERIES, int(tuned.gpus))
    published = (8, 8) if (tuned.method, tuned.recipe) == ("llama2vec", "released") else (32, 128)
    assert (plan.micro_batch_size * plan.world, plan.micro_batch_size * plan.world * plan.accumulation) == published
    if adapting.method != "none":
        schedule = adaptation.resolved_recipe(adapting).schedule
        plan = planned(schedule, QUERIES, int(adapting.gpus))
        assert plan.micro_batch_size * plan.world * plan.accumulation == schedule.batch_size


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_preset_names_is_what_the_estimate_says(name: str) -> None:
    told = re.search(
        r"estimated, not measured: (\d+) GiB per GPU, (\d+) GPU-hours of training\.$", presets.description(name)
    )
    assert told
    costs = estimate({**defaults(), **presets.load(name)}, Workload(8_841_823, QUERIES), GPUS["a100-80"])
    training = [cost for cost in costs if cost.step.startswith(("adapt_backbone", "tune_retriever"))]
    assert len(training) == 2
    assert int(told[1]) == round(max(cost.gpu_bytes or 0 for cost in training) / 2**30)
    assert int(told[2]) == round(sum(cost.gpu_hours or 0 for cost in training))


def test_values_are_typed_as_the_pipeline_declares_them() -> None:
    texts = ["mine_depth=50", "tune_epochs=2", "corpus_deduplicate=False", "adapt_cpus=4", "corpus_uri=a=b"]
    values = presets.parsed(names_of(TRAINING), [*texts, "tune_learning_rate=1e-4"])
    assert isinstance(values["tune_epochs"], float)
    assert values == {
        "mine_depth": 50,
        "tune_epochs": 2.0,
        "corpus_deduplicate": False,
        "adapt_cpus": "4",
        "corpus_uri": "a=b",
        "tune_learning_rate": 1e-4,
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("adapt_methd=none", 'field "adapt_methd": is no parameter of this pipeline; did you mean adapt_method?'),
        ("mine_depth=1.5", 'field "mine_depth": 1.5 is not of type int; give for instance 200'),
        ("corpus_deduplicate=perhaps", "is not of type bool"),
        ("none", "'none' is not of the form key=value; write for instance adapt_method=none"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused(text: str, error: str) -> None:
    with pytest.raises(InputError, match=re.escape(error)):
        presets.parsed(names_of(TRAINING), [text])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["run-local", "--preset", "demo"],
            "'demo' is no preset; use one of demo-cluster-cpu, demo-compare, demo-cpu, demo-scratch",
        ),
        (
            ["run-local", "adapt_method=magic"],
            "field \"adapt_method\": 'magic' is refused; input should be 'none', 'ql', 'ebae_ebar'",
        ),
        (["run-local", "tune_weights=some"], "field \"tune_weights\": 'some' is refused"),
        (["compile", "mine_depth=0"], 'field "mine_depth": 0 is refused; input should be greater than or equal to 1'),
    ],
)
def test_commands_end_with_code_2_before_anything_starts(
    arguments: list[str],
    error: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("pipelines: ")
    assert error in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("flags : fpu avx512f avx512_bf16 amx_tile", "bf16 in hardware, on two cores some 7 to 14 minutes"),
        ("flags : fpu amx_bf16", "bf16 in hardware, on two cores some 7 to 14 minutes"),
        ("flags : fpu avx2 fma", "computes in fp32, on two cores some 10 to 25 minutes"),
    ],
)
def test_the_demo_says_what_to_expect_of_the_processor(flags: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    chosen, why = demo.preset(tmp_path / "cpuinfo")
    assert chosen == "demo-cpu"
    assert told in why
    assert demo.preset(tmp_path / "cpuinfo", compared=True)[0] == "demo-compare"


def test_the_demo_compares_the_methods_of_the_main_comparison_but_for_one_rate() -> None:
    main_, own = (variants.load(name).variants for name in (variants.DEFAULT, demo.VARIANTS))
    assert [variant.name for variant in own] == [variant.name for variant in main_]
    for variant, other in zip(own, main_, strict=True):
        changed = {"tune_learning_rate": 5e-4} if variant.parameters["tune_method"] == "llm2vec" else {}
        assert variant.parameters == other.parameters | changed
    assert demo.variants(["corpus_uri=corpus", "backbone=models/own", "tune_max_steps=9"]) == demo.VARIANTS
    assert demo.variants(["tune_learning_rate=2e-4"]) is None


def test_the_demo_goes_by_the_flags_that_training_goes_by() -> None:
    assert ("fp32" not in demo.preset()[1]) == has_native_bf16() or torch.cuda.is_available()


def test_presets_can_be_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert "demo-cpu: " in capsys.readouterr().out
    assert main(["presets", "demo-cpu"]) == 0
    assert "corpus_uri=demo:python-docs\n" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_preset_says_of_its_backbone_does_not_hold_for_another_one(tmp_path: Path) -> None:
    assert choose([], preset="demo-cpu").flat["backbone_layers"] == 6
    assert choose(["backbone=models/own"], preset="demo-cpu").flat["backbone_layers"] == 0
    assert choose(["backbone=models/own", "backbone_layers=3"], preset="demo-cpu").flat["backbone_layers"] == 3
    own = tmp_path / "own.toml"
    own.write_text('base = "demo-cpu"\n[parameters]\nbackbone = "models/own"\n', encoding="utf-8-sig")
    assert presets.load(str(own)) == {
        name: value for name, value in presets.load("demo-cpu").items() if name != "backbone_layers"
    } | {"backbone": "models/own"}
