"""What a preset gives the pods beyond the form: read, refused, and written into the compiled pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import dsl, kubernetes
from kubernetes.utils import quantity

from llm_retriever.errors import InputError
from llm_retriever.settings.options import POD_SETTINGS
from pipelines import estimate, form, pods, presets
from pipelines.__main__ import main
from pipelines.choice import choose
from pipelines.compilation import compile_pipeline
from pipelines.costs import Workload
from pipelines.form import Told
from pipelines.model_shapes import GPUS
from pipelines.train_retriever import train_retriever
from tests.manifests.rendering import rendered
from tests.pipelines.api_server import serving

PUBLISHED = [name for name in presets.names() if not name.startswith("demo")]
MS_MARCO = Workload(passages=8_840_000, queries=491_000)
OURS = """
description = "Ours."
base = "llm-ql-llama2-7b"

[parameters]
corpus_uri = "s3://bucket/corpus"
tune_epochs = 2
run_gpu_node_selector = { "cloud.example/pool" = "a100" }
run_gpu_tolerations = [{ key = "nvidia.com/gpu", operator = "Exists" }]

[cluster]
queue = "gpu"
retries = 1

[cluster.tune]
timeout_hours = 0.5
shared_memory = "128Gi"

[cluster.promote]
retries = 0
"""


@pytest.fixture
def ours(tmp_path: Path) -> str:
    path = tmp_path / "ours.toml"
    path.write_text(OURS)
    return str(path)


def settings_of(preset: str) -> dict[str, pods.PodSettings]:
    return {stage: pods.settings_of(stage, presets.cluster(preset)) for stage in pods.STAGES}


def written(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tasks, those of loops included, and pods of a compiled pipeline, by name."""
    pipeline, platform = yaml.safe_load_all(path.read_text())
    dags = [pipeline["root"], *(c for c in pipeline["components"].values() if "dag" in c)]
    tasks = {name: task for dag in dags for name, task in dag["dag"]["tasks"].items()}
    found = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return tasks, {name.removeprefix("exec-"): pod for name, pod in found.items()}


def test_a_file_of_ones_own_is_laid_over_its_base(ours: str) -> None:
    values, base = presets.load(ours), presets.load("llm-ql-llama2-7b")
    settings, base_settings = settings_of(ours), settings_of("llm-ql-llama2-7b")
    assert presets.description(ours) == "Ours."
    assert values == base | {
        "corpus_uri": "s3://bucket/corpus",
        "tune_epochs": 2.0,
        "run_gpu_node_selector": {"cloud.example/pool": "a100"},
        "run_gpu_tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    }
    assert isinstance(values["tune_epochs"], float)
    common = {"retries": 1, "queue": "gpu"}
    tuned = {"timeout_hours": 0.5, "shared_memory": "128Gi"}
    assert settings["tune"] == replace(base_settings["tune"], **common, **tuned)
    assert settings["adapt"] == replace(base_settings["adapt"], **common)
    assert base_settings["adapt"].shared_memory == "64Gi"
    assert settings["corpus"] == replace(base_settings["corpus"], **common)


@pytest.mark.slow
def test_the_settings_stand_in_the_compiled_pipeline(ours: str, tmp_path: Path) -> None:
    target = tmp_path / "pipeline.yaml"
    parts = ["index_parts=2", "index_shards_uri=s3://bucket/shards"]
    assert main(["compile", "--preset", ours, "--output", str(target), *parts]) == 0
    tasks, found = written(target)
    assert {pod["podMetadata"]["labels"][pods.QUEUE_LABEL] for pod in found.values()} == {"gpu"}
    assert found["tune-retriever"]["activeDeadlineSeconds"] == "1800"
    assert found["tune-retriever"]["emptyDirMounts"][0]["sizeLimit"] == "128Gi"
    assert found["encode-corpus"]["activeDeadlineSeconds"] == found["build-index"]["activeDeadlineSeconds"]
    assert tasks["prepare-corpus"]["retryPolicy"]["maxRetryCount"] == 1
    assert tasks["encode-corpus"]["retryPolicy"]["maxRetryCount"] == 1
    assert "retryPolicy" not in tasks["promote"]


def test_retries_outlast_all_attempts(tmp_path: Path) -> None:
    settings = pods.read({"tune": {"timeout_hours": 100.0, "retries": 5}})
    tasks, _ = written(compile_pipeline(train_retriever, tmp_path / "pipeline.yaml", Told(pods=settings)))
    assert tasks["tune-retriever"]["retryPolicy"]["backoffMaxDuration"] == f"{6 * 100 * 3600}s"
    assert "retryPolicy" not in tasks["adapt-backbone"]


def test_what_is_written_is_what_kfps_own_functions_write() -> None:
    def step(gpus: str):  # type: ignore[no-untyped-def]
        return dsl.ContainerSpec(image="x", command=["python", "-m", "components.tune_retriever"], args=[])

    step.__annotations__["gpus"] = str  # annotations are texts in this file, and KFP reads them

    def pipeline(by_kfp: bool) -> Any:
        component = dsl.container_component(step)

        @dsl.pipeline(name="one")
        def one():  # type: ignore[no-untyped-def]
            task = component(gpus="2")
            task.set_cpu_request("12" if by_kfp else "8").set_memory_request("96Gi" if by_kfp else "64Gi")
            task.set_memory_limit("96Gi" if by_kfp else "64Gi")
            task.set_accelerator_type("amd.com/gpu" if by_kfp else pods.PodSettings.gpu_type)
            size = "64Gi" if by_kfp else pods.PodSettings.shared_memory
            kubernetes.empty_dir_mount(task, pods.SHARED_MEMORY_VOLUME, "/dev/shm", medium="Memory", size_limit=size)
            kubernetes.add_pod_label(task, "ours", "yes")
            if by_kfp:
                task.set_retry(3, backoff_duration="60s", backoff_factor=2, backoff_max_duration="604800s")
                task.set_env_variable(pods.RESTARTS, "5").set_env_variable(POD_SETTINGS, '{"checkpoint_minutes": 2.0}')
                task.set_container_image("y")
                kubernetes.set_timeout(task, 7200)
                kubernetes.add_pod_label(task, pods.QUEUE_LABEL, "gpu")
                kubernetes.add_node_selector(task, "pool", "a100")
                kubernetes.add_toleration(task, key="gpu", operator="Exists", toleration_seconds=30)

        return pods.counted(one)

    given = {"timeout_hours": 2, "queue": "gpu", "shared_memory": "64Gi", "retries": 3, "restarts": 5, "image": "y"}
    given |= {"cpus": "12", "memory": "96Gi", "gpu_type": "amd.com/gpu", "node_selector": {"pool": "a100"}}
    given |= {"tolerations": [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 30}]}
    settings = {"tune": {"checkpoint_minutes": 2.0}}
    ours, theirs = pods.applied(pipeline(by_kfp=False), pods.read(given), settings), pipeline(by_kfp=True)
    assert json_format.MessageToDict(ours.pipeline_spec) == json_format.MessageToDict(theirs.pipeline_spec)
    assert json_format.MessageToDict(ours.platform_spec) == json_format.MessageToDict(theirs.platform_spec)


@pytest.mark.slow
def test_what_only_costs_is_written_into_the_pods(tmp_path: Path) -> None:
    told = [
        "run_checkpoint_minutes=2",
        "tune_memory=96Gi",
        "corpus_cpus=500m",
        "run_gpu_type=amd.com/gpu",
        "mine_threads=3",
    ]
    assert main(["compile", "--output", str(tmp_path / "p.yaml"), *told]) == 0
    pipeline, _ = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    containers = {n.removeprefix("exec-"): e["container"] for n, e in pipeline["deploymentSpec"]["executors"].items()}
    held = {
        name: {variable["name"]: json.loads(variable["value"]) for variable in container.get("env", [])}
        for name, container in containers.items()
    }
    node = {"checkpoint_minutes": 2.0, "node_gpu_type": "amd.com/gpu"}
    assert held["tune-retriever"] == held["adapt-backbone"] == {POD_SETTINGS: node}
    assert held["mine-negatives"] == {POD_SETTINGS: {"threads": 3}}
    assert held["prepare-corpus"] == {}
    assert containers["tune-retriever"]["resources"]["resourceMemoryLimit"] == "96Gi"
    assert containers["prepare-corpus"]["resources"]["resourceCpuRequest"] == "500m"
    assert containers["evaluate"]["resources"]["accelerator"]["resourceType"] == "amd.com/gpu"
    form = pipeline["root"]["inputDefinitions"]["parameters"]
    assert not [name for name in form if name.endswith(("_memory", "_cpus", "_minutes", "_threads", "_type"))]


def test_without_a_preset_nothing_is_changed(tmp_path: Path) -> None:
    before = train_retriever.pipeline_spec.SerializeToString(deterministic=True)
    assert pods.applied(train_retriever, presets.cluster(None)) is train_retriever
    compile_pipeline(train_retriever, tmp_path / "pipeline.yaml", Told(pods=pods.read({"queue": "gpu", "retries": 1})))
    assert train_retriever.pipeline_spec.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[cluster]\nquee = 'gpu'", 'field "cluster.quee": is no key of this table; use cpus, memory'),
        ("[cluster.train]\nretries = 1", 'field "cluster.train": is no stage; '),
        ("[cluster.tune]\nretries = -1", 'field "cluster.tune.retries": -1 is refused'),
        ("[cluster.tune]\nretries = '1'", "field \"cluster.tune.retries\": '1' is not a number"),
        ("[cluster]\nretries = true", 'field "cluster.retries": True is not a number'),
        ("[cluster]\nshared_memory = '64'", "field \"cluster.shared_memory\": '64' is refused"),
        ("[cluster]\nshared_memory = 64", 'field "cluster.shared_memory": 64 is not a text'),
        ("[cluster]\nqueue = 'GPU queue'", "field \"cluster.queue\": 'GPU queue' is refused"),
        ("[cluster]\ntimeout_hours = -1", 'field "cluster.timeout_hours": -1 is refused'),
        ("cluster = 1", 'field "cluster": is no key of a preset, or of another type'),
        ("[clusters]", 'field "clusters": is no key of a preset'),
        ("base = 'llama'", "field \"base\": 'llama' is no preset of the project"),
        ("[parameters]\ntune_gpu = 1", 'field "tune_gpu": is no parameter of this pipeline; did you mean tune_gpus?'),
        ("[parameters]\ntune_epochs = '8'", "field \"tune_epochs\": '8' is not of type float"),
        (
            "[parameters]\ntune_options = { lora_rnak = 8 }",
            'field "tune_options.lora_rnak": is not a key of these options',
        ),
        ("[parameters]\ntune_options = { lora_rank = 8 }\ntune_lora_rank = 8", "tune_lora_rank is given as well"),
        ("[parameters", "not valid TOML"),
    ],
)
def test_a_slip_in_a_file_is_refused_with_file_and_field(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(text)
    for read in (presets.load, presets.cluster):
        with pytest.raises(InputError) as refused:
            read(str(path))
        assert told in str(refused.value)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        (
            'run_gpu_node_selector={"pool": 1}',
            'field "run_gpu_node_selector": 1 is refused; input should be a valid string',
        ),
        ("run_gpu_node_selector=a100", "is not of type dict"),
        ('run_cpu_tolerations=[{"taint": "gpu"}]', "tolerations have keys of key, operator"),
        ("run_cpu_tolerations={}", "is not of type list"),
    ],
)
def test_nodes_that_kubernetes_would_refuse_are_refused_here(
    parameter: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", parameter]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_submitted_scheduled_and_rerun_pipelines_have_the_settings_too(
    ours: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    schedule = ["schedule", "--name", "nightly", "--every-seconds", "60", "promote_uri=s3://bucket/published"]
    rerun = ["rerun", "prepare_corpus", "--from-run", "s3://bucket/artifacts/run", "corpus_uri=s3://bucket/corpus"]
    with serving() as server:
        for command in (["submit"], schedule, rerun):
            assert main([*command, "--endpoint", server.url, "--preset", ours]) == 0
        sent = [
            request.body["pipeline_spec"]["platform_spec"]
            for request in server.requests
            if "runtime_config" in (request.body or {})
        ]
        (again,) = [
            body for body in (r.body or {} for r in server.asked("POST", "/runs")) if "rerun" in body["display_name"]
        ]
    assert len(sent) == 3
    for platform in sent:
        found = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        assert {pod["podMetadata"]["labels"][pods.QUEUE_LABEL] for pod in found.values()} == {"gpu"}
    # What of the preset belongs to the step is told, and the command line comes first.
    assert again["runtime_config"]["parameters"]["corpus_uri"] == "s3://bucket/corpus"


@pytest.mark.parametrize("name", PUBLISHED)
def test_deadlines_of_the_presets_leave_room_for_what_is_estimated(name: str) -> None:
    given, settings = {**form.defaults(), **presets.load(name)}, settings_of(name)
    costs = estimate.estimate(given, MS_MARCO, GPUS["a100-80"])
    for cost in (cost for cost in costs if cost.gpu_hours is not None):
        stage = pods.STAGE_OF[cost.step.split()[0]]
        hours = cost.gpu_hours / max(1, int(given[f"{stage}_gpus"]))
        assert 2 * hours <= settings[stage].timeout_hours <= max(12, 5 * hours), cost.step


@pytest.mark.parametrize("name", PUBLISHED)
def test_shared_memory_of_the_presets_fits_into_the_memory_of_the_step(name: str) -> None:
    given, settings = {**form.defaults(), **presets.load(name)}, settings_of(name)
    size = quantity.parse_quantity
    for stage in ("mine", "adapt", "tune", "index", "eval"):
        if int(given[f"{stage}_gpus"]) > 1:
            assert size(settings[stage].shared_memory) == size("64Gi")
            assert 4 * size(settings[stage].shared_memory) <= size(given[f"{stage}_memory"])


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_can_be_a_base(name: str, tmp_path: Path) -> None:
    """`backbone` is the name of a parameter and of a stage."""
    path = tmp_path / "ours.toml"
    path.write_text(
        f'base = "{name}"\n[parameters]\nbackbone = "s3://bucket/llama"\n[cluster.backbone]\nmemory = "32Gi"\n'
    )
    of_another = {key: value for key, value in presets.load(name).items() if not key.startswith("backbone")}
    assert presets.load(str(path)) == of_another | {"backbone": "s3://bucket/llama"}
    expected = settings_of(name)
    assert settings_of(str(path)) == expected | {"backbone": replace(expected["backbone"], memory="32Gi")}


def test_the_preset_without_gpus_fits_into_the_quota_of_the_overlay_kind() -> None:
    hard = next(d["spec"]["hard"] for d in rendered("kind") if d["kind"] == "ResourceQuota")
    size = quantity.parse_quantity
    given, own = {**form.defaults(), **presets.load("demo-cluster-cpu")}, settings_of("demo-cluster-cpu")
    assert {given[f"{stage}_gpus"] for stage in pods.GPU_STAGES} == {"0"}
    assert hard["requests.nvidia.com/gpu"] in ("0", 0)
    # The object store, and two drivers beside what runs at the same time: Argo's own container in each of them included.
    room = {"cpu": size(hard["requests.cpu"]) - size("250m") - 2 * size("200m")}
    room["memory"] = size(hard["requests.memory"]) - size("512Mi") - 2 * size("320Mi")
    together = [("backbone", "mine"), *((stage,) for stage in pods.STAGES)]
    for stages in together:
        assert sum(size(own[stage].cpus) + size("100m") for stage in stages) <= room["cpu"]
        assert sum(size(own[stage].memory) + size("256Mi") for stage in stages) <= room["memory"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "seconds"), [("timeout_hours = 1", 4 * 3600), ("[cluster.index]\ntimeout_hours = 1", 0)]
)
def test_the_pod_of_a_variant_has_the_time_of_all_its_stages(text: str, seconds: int, tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text(f"[cluster]\n{text}\n")
    words = ["compare_methods", "--variants", "read-out", "--preset", str(tmp_path / "ours.toml")]
    assert main(["compile", *words, "--output", str(tmp_path / "p.yaml")]) == 0
    _, found = written(tmp_path / "p.yaml")
    assert int(found["run-variant"].get("activeDeadlineSeconds", 0)) == seconds


@pytest.mark.slow
def test_the_command_line_comes_before_a_preset_also_with_a_default(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text(
        '[cluster]\ngpu_type = "amd.com/gpu"\nnode_selector = { pool = "a" }\n[cluster.tune]\nmemory = "200Gi"\n'
    )
    words = ["tune_memory=64Gi", "run_gpu_type=nvidia.com/gpu", "run_gpu_node_selector={}"]
    own = choose(words, preset=str(tmp_path / "ours.toml")).told
    assert pods.settings_of("tune", own.pods) == pods.settings_of("tune", {})
    assert pods.settings_of("corpus", own.pods).node_selector == {"pool": "a"}
    assert own.settings == {}
    theirs = choose([], preset=str(tmp_path / "ours.toml")).told
    assert pods.settings_of("tune", theirs.pods).memory == "200Gi"
    assert theirs.settings == {stage: {"node_gpu_type": "amd.com/gpu"} for stage in ("adapt", "tune")}


@pytest.mark.slow
def test_more_parts_than_argo_can_hold_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["index_shards_uri=s3://bucket/shards", "--output", str(tmp_path / "p.yaml")]
    assert main(["compile", "index_parts=4", *words]) == 0
    assert main(["compile", "index_parts=64", *words]) == 2
    printed = capsys.readouterr().err
    assert 'field "index_parts"' in printed
    assert "encode in fewer parts" in printed
