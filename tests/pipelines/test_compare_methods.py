"""The pipeline that compares variants: what they share, what they set, what is refused before anything starts, and a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_retriever.errors import InputError
from pipelines import presets, variants
from pipelines.__main__ import main
from pipelines.comparison import comparison_of
from pipelines.compilation import compile_pipeline
from pipelines.train_retriever import train_retriever
from pipelines.variants import Variant
from tests.conftest import write_backbone, write_beir
from tests.pipelines.test_local import ROOT, SMALL

TWO = """
description = "Two variants."
[[variant]]
name = "LLM-QL"
description = "Contrastive tuning only."
[variant.parameters]
adapt_method = "none"
tune_method = "llm-ql"
[[variant]]
name = "RepLLaMA"
description = "The floor."
[variant.parameters]
adapt_method = "none"
tune_method = "repllama"
"""
EARLY = ("fetch-backbone", "adapt-backbone")
LATE = ("tune-retriever", "encode-in-parts", "build-index")
OWN_BACKBONE = (
    Variant("tiny", "A tiny backbone.", {"backbone": "scratch:tiny", "tune_method": "repllama"}),
    Variant("lower rate", "The form's backbone.", {"tune_method": "repllama", "tune_learning_rate": 1e-5}),
    Variant("short queries", "Differs in the evaluation only.", {"tune_method": "repllama", "eval_query_length": 20}),
    Variant("plain", "The same training.", {"tune_method": "repllama"}),
)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    package = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    return next(yaml.safe_load_all(compile_pipeline(comparison_of(OWN_BACKBONE), package).read_text()))


@pytest.fixture(scope="module")
def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tasks by the name that is shown."""
    return {task["taskInfo"]["name"]: task for task in spec["root"]["dag"]["tasks"].values()}


def constant(task: dict[str, Any], parameter: str) -> Any:
    return task["inputs"]["parameters"][parameter]["runtimeValue"]["constant"]


def producer(task: dict[str, Any], artifact: str) -> str:
    return task["inputs"]["artifacts"][artifact]["taskOutputArtifact"]["producerTask"]


def test_variants_that_agree_up_to_a_stage_share_its_task(tasks: dict[str, dict[str, Any]]) -> None:
    assert sorted(tasks) == sorted(
        [
            "fingerprint-sources",
            "fingerprint-sources: tiny",
            "prepare-corpus",
            "mine-negatives",
            *(f"{step}: tiny" for step in (*EARLY, *LATE)),
            *(f"{step}: lower rate, short queries, plain" for step in EARLY),
            *(f"{step}: lower rate" for step in LATE),
            *(f"{step}: short queries, plain" for step in LATE),
            *(f"evaluate: {variant.name}" for variant in OWN_BACKBONE),
            "compare",
        ]
    )


def test_what_a_variant_sets_is_a_constant_and_the_form_decides_the_rest(tasks: dict[str, dict[str, Any]]) -> None:
    tuned = tasks["tune-retriever: lower rate"]
    assert constant(tuned, "learning_rate") == 1e-5
    assert constant(tuned, "method") == "repllama"
    assert tuned["inputs"]["parameters"]["batch_size"] == {"componentInputParameter": "tune_batch_size"}
    assert constant(tasks["fetch-backbone: tiny"], "source") == "scratch:tiny"
    assert constant(tasks["evaluate: short queries"], "query_length") == 20


def test_the_untuned_backbone_is_evaluated_once_for_every_backbone(tasks: dict[str, dict[str, Any]]) -> None:
    given = {v.name: tasks[f"evaluate: {v.name}"]["inputs"]["parameters"]["untuned_passages"] for v in OWN_BACKBONE}
    from_form = {"componentInputParameter": "eval_untuned_passages"}
    assert given["tiny"] == given["lower rate"] == from_form
    assert given["short queries"] == given["plain"] == {"runtimeValue": {"constant": 0}}


def test_published_encoders_are_evaluated_once(tasks: dict[str, dict[str, Any]]) -> None:
    given = {
        name: task["inputs"]["parameters"]["encoders"] for name, task in tasks.items() if name.startswith("evaluate")
    }
    constants = [value for value in given.values() if value.get("runtimeValue") == {"constant": ""}]
    assert len(constants) == len(given) - 1


def test_the_last_step_gets_every_evaluation_and_the_names(tasks: dict[str, dict[str, Any]]) -> None:
    compared = tasks["compare"]
    assert set(compared["inputs"]["artifacts"]) == {
        "evaluation_tiny",
        "evaluation_lower_rate",
        "evaluation_short_queries",
        "evaluation_plain",
    }
    assert len({producer(compared, name) for name in compared["inputs"]["artifacts"]}) == 4
    assert json.loads(constant(compared, "variants")) == {v.name: v.description for v in OWN_BACKBONE}


def test_the_form_is_that_of_training_without_publishing(spec: dict[str, Any]) -> None:
    form = presets.defaults(comparison_of(OWN_BACKBONE[2:]))
    own = {"compare_reference": "", "compare_cpus": "1", "compare_memory": "4Gi"}
    trained = presets.defaults(train_retriever)
    assert form == {n: v for n, v in trained.items() if not n.startswith("promote_")} | own
    assert set(spec["root"]["inputDefinitions"]["parameters"]) == set(form)


@pytest.mark.parametrize("name", variants.names())
def test_the_files_that_come_along_are_sound(name: str) -> None:
    loaded = variants.load(name, train_retriever)
    assert len(loaded.description) > 30
    assert len(loaded.variants) >= 3
    assert len({json.dumps(v.parameters, sort_keys=True) for v in loaded.variants}) == len(loaded.variants)


def test_the_default_file_has_all_methods() -> None:
    found = {v.parameters["tune_method"] for v in variants.load(variants.DEFAULT, train_retriever).variants}
    assert found == {"llm-ql", "llama2vec", "llm2vec", "repllama", "echo", "summarize"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            'adapt_method = "none"',
            'adapt_methd = "none"',
            'field "adapt_methd": variant LLM-QL: is no parameter of the',
        ),
        ('adapt_method = "none"', 'adapt_methd = "none"', "did you mean adapt_method?"),
        (
            '"repllama"',
            "3",
            "field \"tune_method\": variant RepLLaMA: 3 is not of type str; give for instance 'llm-ql'",
        ),
        ('"repllama"', '"magic"', "field \"tune_method\": variant RepLLaMA: 'magic' is refused"),
        ('"repllama"', '"repllama"\ntune_batch_size = true', "True is not of type int"),
        (
            '"repllama"',
            '"repllama"\npromote_uri = "x"',
            "variant RepLLaMA: a comparison publishes nothing; leave it out",
        ),
        ('"repllama"', '"repllama"\nmine_depth = 3', "variant RepLLaMA: is the same for all variants"),
        ('"repllama"', '"repllama"\nindex_parts = 2', "variant RepLLaMA: is the same for all variants"),
        ('"RepLLaMA"', '"llm ql"', "two variants are called 'LLM-QL' and 'llm ql'"),
        ('"RepLLaMA"', '""', "variant 2: name is missing"),
        ('"RepLLaMA"', '"BM25"', "'BM25' cannot name a variant"),
        ('"The floor."', '""', "variant RepLLaMA: description is missing"),
        ('"The floor."', '"The floor."\nrecipe = "paper"', 'field "recipe": variant RepLLaMA: unknown key'),
        ('"The floor."', '"The floor.', "not valid TOML"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_file_and_variant(
    old: str, new: str, line: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        TWO[: TWO.rindex(old)] + new + TWO[TWO.rindex(old) + len(old) :]
        if "none" not in old
        else TWO.replace(old, new, 1)
    )
    with pytest.raises(InputError) as error:
        variants.load(str(file), train_retriever)
    assert line in str(error.value)
    assert str(file) in str(error.value)


def test_one_variant_is_no_comparison(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(TWO[: TWO.rindex("[[variant]]")])
    with pytest.raises(InputError, match="fewer than two variants"):
        variants.load(str(tmp_path / "one.toml"), train_retriever)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["run-local", "compare_methods", "--variants", "method"],
            "'method' is no file of variants; use one of backbone-size",
        ),
        (
            ["compile", "compare_methods", "--variants", "FILE", "promote_uri=x"],
            'field "promote_uri": is no parameter of',
        ),
        (
            ["compile", "compare_methods", "--variants", "FILE", "compare_reference=x"],
            "'x' is no variant; use one of LLM-QL",
        ),
        (["compile", "--variants", "methods"], "train_retriever has no variants; name the pipeline compare_methods"),
        (["compile", "compare_method"], "'compare_method' is not of the form key=value"),
    ],
)
def test_commands_end_with_code_2_before_anything_starts(
    arguments: list[str],
    error: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.toml").write_text(TWO)
    assert main([word.replace("FILE", "two.toml") for word in arguments]) == 2
    printed = capsys.readouterr().err
    assert error in printed
    assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["two.toml"]


def test_parameters_may_follow_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    target = tmp_path / "two.yaml"
    flags = ["--variants", str(tmp_path / "two.toml"), "--output", str(target)]
    assert main(["compile", "compare_methods", *flags, "tune_max_steps=3"]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    form = next(yaml.safe_load_all(target.read_text()))["root"]["inputDefinitions"]["parameters"]
    assert form["tune_max_steps"]["defaultValue"] == 3


def test_variants_can_be_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants"]) == 0
    assert "ql-ablation: " in capsys.readouterr().out
    assert main(["variants", "read-out"]) == 0
    assert "s2s: Queries and passages ask for themselves.\n" in (printed := capsys.readouterr().out)
    assert "  tune_read_out=s2s\n" in printed


@pytest.mark.slow
def test_two_variants_run_and_are_compared_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    own = {"corpus_uri": write_beir(tmp_path / "corpus"), "backbone": write_backbone(tmp_path / "backbone")}
    small = {name: value for name, value in SMALL.items() if name != "adapt_method"}
    given = [f"{name}={value}" for name, value in {**small, **own}.items()]
    root = tmp_path / "build"
    flags = ["--variants", str(tmp_path / "two.toml"), "--root", str(root)]
    run = subprocess.run(
        [sys.executable, "-m", "pipelines", "run-local", "compare_methods", *flags, *given],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    done = re.findall(r"\] (.*): done in", run.stderr)
    assert sorted(done) == sorted(
        [
            *("fingerprint_sources", "prepare_corpus", "fetch_backbone", "mine_negatives", "adapt_backbone", "compare"),
            *(f"{s}: {v}" for s in ("tune_retriever", "build_index", "evaluate") for v in ("LLM-QL", "RepLLaMA")),
        ]
    )
    [path] = root.glob("runs/*/compare/comparison/comparison.json")
    systems = json.loads(path.read_text())["splits"]["test"]["systems"]
    assert list(systems) == ["LLM-QL", "RepLLaMA", "BM25", "un-tuned backbone"]
    assert len({values["ndcg@10"] for values in systems.values()}) > 1
    assert "# Comparison" in run.stdout
    assert (root / "comparison.html").read_text().startswith("<!doctype html>")
