"""How large runs become in Argo: spec and nodes of small pipelines, counted by hand."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, List  # noqa: UP035 - Kubeflow takes the items of `list[int]` for texts

import pytest
import yaml
from kfp import compiler, dsl, kubernetes

from llm_retriever.errors import InputError
from pipelines import workflow_size as sizes
from pipelines.argo.ir import Pipeline, dumps
from pipelines.argo.nodes import Nodes, condition_holds
from pipelines.argo.spec import arguments, templates
from pipelines.workflow_size import WorkflowSize, check_size, check_variants, largest_that_fits, workflow_size

OF_THE_ROOT = 6
OF_A_TASK = 6


@dsl.container_component
def hello() -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="alpine", command=["echo"], args=["hello"])


@dsl.container_component
def say(text: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="alpine", command=["echo"], args=["--executor-input", "{{$}}"])


@dsl.container_component
def count(number: int) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="alpine", command=["echo"], args=["--executor-input", "{{$}}"])


@dsl.container_component
def write(artifact: dsl.Output[dsl.Dataset]) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="alpine", command=["touch"], args=["--executor-input", "{{$}}"])


@dsl.container_component
def read(artifact: dsl.Input[dsl.Dataset]) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="alpine", command=["cat"], args=["--executor-input", "{{$}}"])


@dsl.pipeline(name="greeting")
def greeting() -> None:
    hello()


@dsl.pipeline(name="speech")
def speech(text: str = "") -> None:
    say(text=text)


@dsl.pipeline(name="counting")
def counting(numbers: List[int] = [1, 2], wanted: bool = True) -> None:  # noqa: B006, UP006
    with dsl.If(wanted == True), dsl.ParallelFor(numbers) as number:  # noqa: E712
        count(number=number)


@dsl.pipeline(name="inner")
def inner(text: str) -> None:
    say(text=text)


@dsl.pipeline(name="outer")
def outer() -> None:
    inner(text="a")
    read(artifact=dsl.importer(artifact_uri="s3://bucket/key", artifact_class=dsl.Dataset).output)


def speeches(number: int, length: int = 10) -> Any:
    """A pipeline that says `number` texts of so many letters."""

    @dsl.pipeline(name="speeches")
    def made() -> None:
        for index in range(number):
            say(text=f"{index:0{length}}")

    return made


def measured(pipeline: Any, parameters: dict[str, Any] | None = None, **options: Any) -> WorkflowSize:
    return workflow_size(pipeline.pipeline_spec, pipeline.platform_spec, parameters, **options)


def model(pipeline: Any, **parameters: Any) -> Pipeline:
    return Pipeline.of(pipeline.pipeline_spec, pipeline.platform_spec, parameters)


def nodes_by_task(pipeline: Any, *, cached: bool = False, items: int = 1, **parameters: Any) -> dict[str, int]:
    return {
        path: len(keys)
        for path, keys in Nodes.of(model(pipeline, **parameters), cached=cached, items=items).tasks.items()
    }


def test_the_arguments_are_components_and_containers_as_texts() -> None:
    found = arguments(model(greeting))
    (digest,) = {name.split("-", 1)[1] for name in found} - {"root"}
    task = '{"cachingOptions":{"enableCache":true},"componentRef":{"name":"comp-hello"},"taskInfo":{"name":"hello"}}'
    assert found == {
        f"components-{digest}": '{"executorLabel":"exec-hello"}',
        f"implementations-{digest}": '{"args":["hello"],"command":["echo"],"image":"alpine"}',
        "components-root": '{"dag":{"tasks":{"hello":' + task + "}}}",
    }
    assert len(digest) == 64
    # As JSON: names and values in objects of a list, and a backslash before each of their quotation marks.
    texts = [(len(name), len(text) + text.count('"')) for name, text in found.items()]
    assert measured(greeting).arguments == sum(len('{"name":"","value":""},') + sum(pair) for pair in texts) - 1 + len(
        "[]"
    )


def test_a_template_holds_its_tasks_as_a_driver_and_what_it_starts() -> None:
    root = templates(model(greeting))["root"]
    driver, executor = root["dag"]["tasks"]
    given = {item["name"]: item["value"] for item in driver["arguments"]["parameters"]}
    assert given.keys() == {"component", "task", "container", "task-name", "parent-dag-id"}
    assert json.loads(given["task"])["componentRef"] == {"name": "comp-hello"}
    assert [item["name"] for item in executor["arguments"]["parameters"]] == ["pod-spec-patch", "cached-decision"]
    assert (driver["template"], executor["template"]) == ("system-container-driver", "system-container-executor")


def test_a_task_has_six_nodes_and_its_patch_stands_in_each_of_them() -> None:
    found = Nodes.of(model(speech, text="good morning")).found.values()
    kinds = Counter(
        (node["templateName"], node["type"]) for node in found if "system-container" in node["templateName"]
    )
    assert kinds == {
        (f"system-container-{template}", kind): 1
        for template, own in (("driver", "Pod"), ("executor", "DAG"), ("impl", "Pod"))
        for kind in ("Retry", own)
    }
    assert sum("good morning" in dumps(node) and "/kfp-launcher/launch" in dumps(node) for node in found) == OF_A_TASK
    assert len(found) == OF_THE_ROOT + OF_A_TASK


@pytest.mark.parametrize(
    ("letter", "in_a_patch", "in_the_root"),
    [
        ("x", 1, 1),
        ('"', 8, 4),  # a text in JSON, that in the patch's JSON, that in the node's
        ("é", 2, 2),
        (
            "<",
            7,
            7,
        ),  # \\u003c: Protobuf's JSON leaves it, that of the patch escapes it, and the node doubles the backslash
    ],
)
def test_a_parameter_s_value_is_counted_at_every_place_as_it_is_written_there(
    letter: str, in_a_patch: int, in_the_root: int
) -> None:
    one, two = measured(speech, {"text": letter}), measured(speech, {"text": 2 * letter})
    # Six patches and both nodes of the root's driver; in the spec, the arguments of that driver.
    assert two.nodes - one.nodes == 6 * in_a_patch + 2 * in_the_root
    assert two.spec - one.spec == in_the_root


def test_a_description_weighs_as_often_as_its_component_is_kept() -> None:
    @dsl.container_component
    def described(text: str) -> dsl.ContainerSpec:
        """Says.

        Args:
            text: Twenty letters, all in all
        """
        return dsl.ContainerSpec(image="alpine", command=["echo"], args=["--executor-input", "{{$}}"])

    @dsl.pipeline(name="speech")
    def pipeline(text: str = "") -> None:
        described(text=text)

    specification = yaml.safe_load(json.dumps(model(pipeline).spec))
    parameter = specification["components"]["comp-described"]["inputDefinitions"]["parameters"]["text"]
    parameter["description"] = ""
    empty = workflow_size(specification)
    parameter["description"] = "x" * 20
    full = workflow_size(specification)
    # Six patches, and the component among the inputs of both nodes of the driver.
    assert (full.spec - empty.spec, full.nodes - empty.nodes) == (20, 20 * (6 + 2))


def test_what_components_share_is_counted_once() -> None:
    once, twice, thrice = (measured(speeches(number)) for number in (1, 2, 3))
    assert sum(name.startswith("implementations-") for name in arguments(model(speeches(3)))) == 1
    # A further task is one more in components-root, and nothing else.
    task = model(speeches(3)).tasks("root")["say-3"]
    assert thrice.arguments - twice.arguments == len('\\"say-3\\":,') + len(dumps(dumps(task))) - len('""')
    assert once.arguments < twice.arguments


def test_more_tasks_are_larger_and_every_task_is_named() -> None:
    found = [measured(speeches(number)) for number in (1, 2, 3)]
    for smaller, larger in itertools.pairwise(found):
        assert smaller.spec < larger.spec
        assert smaller.nodes < larger.nodes
        assert smaller.total < larger.total
        assert smaller.compressed < larger.compressed
    assert found[2].tasks.keys() == {"root", "say", "say-2", "say-3"}
    # Beside the tasks there are only the keys of the nodes.
    assert 0 < found[2].nodes - sum(found[2].tasks.values()) < 40 * (OF_THE_ROOT + 3 * OF_A_TASK)


def test_what_comes_from_the_cache_has_no_patch() -> None:
    assert measured(speech, cached=True).nodes < measured(speech).nodes - 6 * 1000
    assert nodes_by_task(speech, cached=True) == {"root": OF_THE_ROOT, "say": 5}

    @dsl.pipeline(name="anew")
    def anew() -> None:
        hello().set_caching_options(False)

    assert measured(anew, cached=True) == measured(anew)


def test_a_nested_pipeline_has_its_own_nodes_and_those_of_its_tasks() -> None:
    assert nodes_by_task(outer) == {
        "root": OF_THE_ROOT,
        "importer": 2,
        "inner": 4,
        "inner/say": OF_A_TASK,
        "read": OF_A_TASK,
    }


def test_a_loop_repeats_its_tasks_for_every_item() -> None:
    for numbers in ([], [1], [1, 2, 3]):
        found = nodes_by_task(counting, numbers=numbers)
        tasks = [path for path in found if path.endswith("/count")]
        assert len(tasks) == len(numbers)
        assert all(found[path] == OF_A_TASK for path in tasks)
    one, two, three = (measured(counting, {"numbers": [7] * number}).nodes for number in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=0.02)


def test_a_loop_over_what_only_the_run_knows_has_the_items_that_are_asked_for() -> None:
    @dsl.container_component
    def numbers(found: dsl.OutputPath(List[int])) -> dsl.ContainerSpec:  # type: ignore[valid-type]  # noqa: UP006
        return dsl.ContainerSpec(image="alpine", command=["echo"], args=["--executor-input", "{{$}}"])

    @dsl.pipeline(name="unknown")
    def unknown() -> None:
        with dsl.ParallelFor(numbers().outputs["found"]) as number:
            count(number=number)

    assert sum(path.endswith("/count") for path in nodes_by_task(unknown, items=4)) == 4
    assert measured(unknown, items=4).spec == measured(unknown).spec


def test_what_a_condition_leaves_out_is_not_counted() -> None:
    left_out = nodes_by_task(counting, wanted=False)
    assert [number for path, number in left_out.items() if path != "root"] == [3]
    assert measured(counting, {"wanted": False}).nodes < measured(counting, {"wanted": True}).nodes


@pytest.mark.parametrize(
    ("condition", "values", "runs"),
    [
        ("int(inputs.parameter_values['n']) > 1", {"n": 1}, False),
        ("int(inputs.parameter_values['n']) > 1", {"n": 2.0}, True),
        ("inputs.parameter_values['n'] == 'yes'", {"n": "no"}, False),
        ("inputs.parameter_values['n'] == false", {"n": False}, True),
        ("int(inputs.parameter_values['n']) > 1", {"n": "many"}, True),  # no number
        ("inputs.parameter_values['n'] == 'yes'", {}, True),  # only the run knows it
        ("!(inputs.parameter_values['n'] == 'yes')", {"n": "yes"}, True),  # more than a comparison
        ("", {}, True),
    ],
)
def test_a_condition_decides_where_its_value_is_known(condition: str, values: dict[str, Any], runs: bool) -> None:
    assert condition_holds({"triggerPolicy": {"condition": condition}}, values) is runs


def test_what_is_given_to_pods_stands_in_their_patch() -> None:
    @dsl.pipeline(name="given")
    def given(selector: dict = {}, memory: str = "8Gi") -> None:  # noqa: B006
        task = hello().set_memory_limit(memory)
        kubernetes.use_secret_as_env(task, "keys", {"ID": "KEY_ID", "KEY": "SECRET_KEY"}, optional=True)
        kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit="16Gi")
        kubernetes.add_node_selector_json(task, selector)
        kubernetes.add_pod_label(task, "queue", "gpu")

    nodes = Nodes.of(model(given, selector={"pool": "a100"}, memory="9Gi")).found.values()
    executors = [node for node in nodes if node["templateName"] == "system-container-impl"]
    inputs = {item["name"]: item["value"] for item in executors[0]["inputs"]["parameters"]}
    pod = json.loads(inputs["pod-spec-patch"])
    assert [item["name"] for item in pod["containers"][0]["env"]] == ["KEY_ID", "SECRET_KEY"]
    assert pod["containers"][0]["resources"] == {"limits": {"memory": "9Gi"}}
    assert pod["volumes"] == [{"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}]
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert (inputs["pod-metadata-label-key"], inputs["pod-metadata-label-val"]) == ("queue", "gpu")
    assert "kubernetes-comp-hello" in arguments(model(given))


def test_messages_and_yaml_have_the_same_size(tmp_path: Path) -> None:
    for pipeline in (outer, counting, speeches(2)):
        compiler.Compiler().compile(pipeline, str(tmp_path / "pipeline.yaml"))
        assert workflow_size(*yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())) == measured(pipeline)


def test_a_pipeline_that_argo_holds_passes() -> None:
    check_size(measured(speeches(3)), compressed=False)
    check_variants(speeches, 3, compressed=False)


def test_a_pipeline_beyond_the_limit_is_refused_and_its_heaviest_tasks_are_named() -> None:
    heavy = measured(speech, {"text": "x" * 200_000})
    assert heavy.total > sizes.LIMIT > sizes.ROOM > heavy.total_compressed
    check_size(heavy)  # a run that Argo compresses does its work
    with pytest.raises(
        InputError, match=r"the pipeline .* 1\.\d+ MB, and Argo has room for 1\.00 MB; give fewer .* to say$"
    ):
        check_size(heavy, compressed=False)


def test_too_many_variants_are_refused_with_the_number_that_fits() -> None:
    def pipeline_of(number: int) -> Any:
        return speeches(number, length=15_000)

    fits = largest_that_fits(pipeline_of, 8, compressed=False)
    assert 1 < fits < 8
    assert measured(pipeline_of(fits)).total <= sizes.ROOM < measured(pipeline_of(fits + 1)).total
    with pytest.raises(InputError, match=rf'field "variants": 8 variants .* at most {fits} fit; split the file'):
        check_variants(pipeline_of, 8, compressed=False)


def test_variants_of_which_none_fits_are_refused() -> None:
    def pipeline_of(number: int) -> Any:
        return speeches(number, length=200_000)

    assert largest_that_fits(pipeline_of, 3, compressed=False) == 0
    with pytest.raises(InputError, match="not even two fit"):
        check_variants(pipeline_of, 3, compressed=False)
