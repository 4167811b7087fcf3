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

from components.run_variant.__main__ import STEP
from llm_retriever.errors import InputError
from llm_retriever.settings import build
from llm_retriever.settings.options import POD_SETTINGS
from llm_retriever.settings.variant import VariantSettings, stage_settings
from pipelines import choice, variants
from pipelines.__main__ import main
from pipelines.choice import COMPARISON, choose
from pipelines.comparison import FORM, comparison_of
from pipelines.compilation import compile_pipeline
from pipelines.variants import Variant
from pipelines.workflow_size import LIMIT, workflow_size
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


def overrides(tasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each variant sets itself, by stage."""
    return {v.name: constant(tasks[f"run-variant: {v.name}"], "overrides") for v in OWN_BACKBONE}


@pytest.mark.slow
def test_variants_have_one_task_each_and_share_the_rest(tasks: dict[str, dict[str, Any]]) -> None:
    assert sorted(tasks) == sorted(
        [
            "fingerprint-sources",
            "fingerprint-sources: tiny",
            "prepare-corpus",
            "mine-for-variants",
            "fetch-backbone: tiny",
            "fetch-backbone: lower rate, short queries, plain",
            *(f"run-variant: {variant.name}" for variant in OWN_BACKBONE),
            "compare",
        ]
    )


def test_every_variant_reads_its_own_backbone(spec: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> None:
    by_key = spec["root"]["dag"]["tasks"]
    read = {v.name: by_key[producer(tasks[f"run-variant: {v.name}"], "backbone")] for v in OWN_BACKBONE}
    assert read["tiny"] is not read["plain"]
    assert read["lower rate"] is read["short queries"] is read["plain"]
    assert constant(read["tiny"], "source") == "scratch:tiny"
    assert read["plain"]["inputs"]["parameters"]["source"] == {"componentInputParameter": "backbone"}
    looked = {key: task["inputs"]["parameters"]["source_fingerprint"] for key, task in read.items()}
    assert looked["tiny"] != looked["plain"]


def test_what_a_variant_sets_is_a_constant_and_the_form_decides_the_rest(tasks: dict[str, dict[str, Any]]) -> None:
    found = overrides(tasks)
    assert found["tiny"] == {"tune": {"method": "repllama"}}
    assert found["lower rate"]["tune"] == {"method": "repllama", "learning_rate": 1e-5}
    assert found["short queries"]["eval"]["query_length"] == 20
    task = tasks["run-variant: plain"]
    for stage in ("adapt", "tune", "index", "eval"):
        assert task["inputs"]["parameters"][stage] == {"componentInputParameter": f"{stage}_options"}
    assert task["inputs"]["parameters"]["gpus"] == {"componentInputParameter": "tune_gpus"}


def test_the_step_s_settings_are_those_of_form_and_variant(tasks: dict[str, dict[str, Any]]) -> None:
    given = {"tune": {"method": "llm-ql", "learning_rate": 1e-3, "lora_rank": 8}, "eval": {"untuned_passages": 7}}
    found = overrides(tasks)["lower rate"]
    settings = stage_settings(build(VariantSettings, STEP.told({**given, "overrides": found, "gpus": "2"})))
    assert (settings.tune.method, settings.tune.learning_rate, settings.tune.lora_rank) == ("repllama", 1e-5, 8)
    assert settings.eval.untuned_passages == 7
    assert {s.gpus for s in (settings.adapt, settings.tune, settings.index, settings.eval)} == {"2"}


def test_the_untuned_backbone_is_evaluated_once_for_every_backbone(tasks: dict[str, dict[str, Any]]) -> None:
    without = {name for name, found in overrides(tasks).items() if found.get("eval", {}).get("untuned_passages") == 0}
    assert without == {"short queries", "plain"}


def test_published_encoders_are_evaluated_once(tasks: dict[str, dict[str, Any]]) -> None:
    without = [name for name, found in overrides(tasks).items() if found.get("eval", {}).get("encoders") == ""]
    assert without == [variant.name for variant in OWN_BACKBONE[1:]]


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


def test_the_form_has_one_object_for_each_stage_of_a_variant(spec: dict[str, Any]) -> None:
    form = spec["root"]["inputDefinitions"]["parameters"]
    assert set(form) == set(FORM.parameters)
    own = {name for name in form if name.split("_")[0] in ("adapt", "tune", "index", "eval")}
    assert own == {"adapt_options", "tune_options", "tune_gpus", "index_options", "eval_options"}
    assert not [name for name in form if name.startswith("promote")]
    assert "learning_rate = -1.0: Peak learning rate" in form["tune_options"]["description"]
    assert "gpus =" not in form["tune_options"]["description"]
    assert form["tune_gpus"]["defaultValue"] == "1"


@pytest.mark.slow
def test_flat_names_are_folded_into_the_objects() -> None:
    words = ["tune_learning_rate=1e-4", "tune_lora_rank=8", "adapt_method=ql", "adapt_epochs=2", "run_seed=3"]
    found = choose([COMPARISON, *words, "tune_gpus=2", "mine_depth=50", 'eval_options={"depth": 2000}'])
    assert found.told.form["tune_options"] == {"learning_rate": 1e-4, "lora_rank": 8, "seed": 3}
    assert found.told.form["adapt_options"] == {"epochs": 2.0, "seed": 3}
    assert found.told.form["eval_options"] == {"depth": 2000}
    assert (found.told.form["tune_gpus"], found.told.form["mine_depth"]) == ("2", 50)
    assert set(found.told.form) <= set(FORM.parameters)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["llm-ql-llama2-7b", "demo-cpu"])
def test_presets_are_those_of_the_other_pipelines(preset: str, tmp_path: Path) -> None:
    found = choose([COMPARISON], preset=preset)
    assert set(found.told.form) <= set(FORM.parameters)
    assert set(found.told.settings) <= {"corpus", "backbone", "mine", "tune"}
    compiled = compile_pipeline(found.pipeline, tmp_path / "pipeline.yaml", found.told)
    pipeline = next(yaml.safe_load_all(compiled.read_text()))
    form = pipeline["root"]["inputDefinitions"]["parameters"]
    settings = stage_settings(build(VariantSettings, {"tune": form["tune_options"]["defaultValue"]}))
    trained = choose([], preset=preset).flat
    assert (settings.tune.epochs, settings.tune.batch_size) == (trained["tune_epochs"], trained["tune_batch_size"])


@pytest.mark.slow
def test_settings_of_pods_arrive_by_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run_checkpoint_minutes=3", "index_memory_gib=9", "tune_memory=99Gi", "run_gpu_type=amd.com/gpu"]
    found = choose([COMPARISON, *words])
    pipeline = next(yaml.safe_load_all(compile_pipeline(found.pipeline, tmp_path / "p.yaml", found.told).read_text()))
    executors = pipeline["deploymentSpec"]["executors"]
    container = next(e["container"] for name, e in executors.items() if name.startswith("exec-run-variant"))
    assert container["resources"]["resourceMemoryRequest"] == "99Gi"
    assert container["resources"]["accelerator"]["resourceType"] == "amd.com/gpu"
    [held] = [item["value"] for item in container["env"] if item["name"] == POD_SETTINGS]
    monkeypatch.setenv(POD_SETTINGS, held)
    settings = stage_settings(build(VariantSettings, STEP.told({})))
    assert settings.adapt.checkpoint_minutes == settings.tune.checkpoint_minutes == 3.0
    assert settings.index.memory_gib == 9.0


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("adapt_gpus=2", "one pod does all stages of a variant; give tune_gpus"),
        ("index_gpus=2", "give tune_gpus"),
        ("eval_gpus=2", "give tune_gpus"),
        ("eval_memory=9Gi", "give tune_memory"),
        ("index_cpus=4", "give tune_cpus"),
        ("index_parts=2", "leave it out, or train this variant with train_retriever"),
        ("tune_nodes=2", "a comparison trains and encodes every variant in one pod; leave it out"),
        ('tune_options={"nodes": 2}', "a comparison trains and encodes every variant in one pod; leave it out"),
        ("run_node_account=x", "leave it out"),
        ("adapt_lora_rnak=2", "did you mean adapt_lora_rank?"),
        ('tune_options={"lora_rnak": 2}', 'field "tune_options.lora_rnak": is not a key of these options'),
        ("tune_lora_rank=0", 'field "tune_lora_rank": 0 is refused'),
        ("promote_uri=x", "is no parameter of this pipeline"),
    ],
)
def test_what_one_pod_cannot_do_is_refused_on_the_command_line(word: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        choose([COMPARISON, word])


@pytest.mark.slow
def test_eight_variants_stay_well_below_the_limit() -> None:
    found = choose([COMPARISON])
    assert len(found.variants) == 8
    assert workflow_size(found.pipeline.pipeline_spec, found.pipeline.platform_spec).total < 700_000 < LIMIT
    choice.check_room(found)


@pytest.mark.slow
def test_more_variants_than_fit_are_refused_but_for_a_run_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(
        f'[[variant]]\nname = "V{n}"\ndescription = "Number {n}."\n[variant.parameters]\ntune_max_steps = {n}\n'
        for n in range(1, 26)
    )
    (tmp_path / "many.toml").write_text('description = "Many variants."\n' + text)
    flags = ["--variants", str(tmp_path / "many.toml"), "--output", str(tmp_path / "many.yaml")]
    assert main(["compile", COMPARISON, *flags]) == 2
    told = capsys.readouterr().err
    fits = re.search(r'field "--variants": 25 variants .* at most (\d+) fit; split the file of variants', told)
    assert fits
    assert 10 < int(fits[1]) < 25
    assert not (tmp_path / "many.yaml").exists()
    assert len(choose([COMPARISON], file=str(tmp_path / "many.toml")).variants) == 25


@pytest.mark.parametrize("name", variants.names())
def test_the_files_that_come_along_are_sound(name: str) -> None:
    loaded = variants.load(name)
    assert len(loaded.description) > 30
    assert len(loaded.variants) >= 3
    assert len({json.dumps(v.parameters, sort_keys=True) for v in loaded.variants}) == len(loaded.variants)


def test_the_default_file_has_all_methods() -> None:
    found = {v.parameters["tune_method"] for v in variants.load(variants.DEFAULT).variants}
    assert found == {"llm-ql", "llama2vec", "llm2vec", "repllama", "echo", "summarize"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            'adapt_method = "none"',
            'adapt_methd = "none"',
            'field "adapt_methd": variant LLM-QL: is no parameter of this',
        ),
        ('adapt_method = "none"', 'adapt_methd = "none"', "did you mean adapt_method?"),
        (
            '"repllama"',
            "3",
            'field "tune_method": variant RepLLaMA: 3 is not of type str; give for instance "llm-ql"',
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
        (
            '"repllama"',
            '"repllama"\ntune_nodes = 2',
            "variant RepLLaMA: a comparison trains and encodes every variant in one",
        ),
        (
            '"repllama"',
            '"repllama"\nadapt_gpus = 2',
            "variant RepLLaMA: one pod does all stages of a variant; give tune_gpus",
        ),
        ('"repllama"', '"llm-ql"', "LLM-QL and RepLLaMA are the same; leave one of them out"),
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
        variants.load(str(file))
    assert line in str(error.value)
    assert str(file) in str(error.value)


def test_one_variant_is_no_comparison(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(TWO[: TWO.rindex("[[variant]]")])
    with pytest.raises(InputError, match="fewer than two variants"):
        variants.load(str(tmp_path / "one.toml"))


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


@pytest.mark.slow
def test_parameters_may_follow_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    target = tmp_path / "two.yaml"
    flags = ["--variants", str(tmp_path / "two.toml"), "--output", str(target)]
    assert main(["compile", "compare_methods", *flags, "tune_max_steps=3"]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    form = next(yaml.safe_load_all(target.read_text()))["root"]["inputDefinitions"]["parameters"]
    assert form["tune_options"]["defaultValue"] == {"max_steps": 3}


@pytest.mark.slow
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
    given = [f"{name}={value}" for name, value in {**small, **own, "eval_untuned_passages": 1000}.items()]
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
            *("fingerprint_sources", "prepare_corpus", "fetch_backbone", "mine_for_variants", "compare"),
            *("run_variant: LLM-QL", "run_variant: RepLLaMA"),
        ]
    )
    assert re.search(r"\[[56]/7\] run_variant: LLM-QL …", run.stderr)  # KFP runs the two in either order.
    assert "encode" in run.stderr.split("run_variant: LLM-QL …")[1]
    [path] = root.glob("runs/*/compare/comparison/comparison.json")
    systems = json.loads(path.read_text())["splits"]["test"]["systems"]
    hybrids = ["hybrid of LLM-QL", "hybrid of RepLLaMA"]
    assert list(systems) == ["LLM-QL", "RepLLaMA", *hybrids, "BM25", "un-tuned backbone"]
    assert len({values["ndcg@10"] for values in systems.values()}) > 1
    assert "# Comparison" in run.stdout
    assert (root / "comparison.html").read_text().startswith("<!doctype html>")
