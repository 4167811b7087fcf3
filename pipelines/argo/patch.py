r"""Predicts the patch of a pod, which Kubeflow's driver makes of a task and Argo keeps in the task's nodes.

A model of Kubeflow Pipelines 2.17 (backend/src/v2/driver). The patch is JSON in a text. The launcher's command in it
holds two more JSON texts: the executor input, with the values of all parameters and the places of all artifacts, and
the component, with the definitions of all parameters. In the workflow a quotation mark of these two takes four bytes
(\\\"), and one of what is noted about an artifact's store eight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.argo.ir import Json, Pipeline, digits, dumps, message_dumps

STORE = "minio://mlpipeline/v2/artifacts"
"""Pipeline root of a stock installation."""
STORE_INFO = (
    '{"Provider":"minio","Params":{"accessKeyKey":"accesskey","disableSSL":"true","endpoint":"seaweedfs.kubeflow:9000",'
    '"fromEnv":"false","maxRetries":"5","region":"minio",'
    '"secretKeyKey":"secretkey","secretName":"mlpipeline-minio-artifact"}}'
)
"""What Kubeflow notes with every artifact about its store."""
LIMITS = {"resourceCpuLimit": "cpu", "resourceMemoryLimit": "memory"}
REQUESTS = {"resourceCpuRequest": "cpu", "resourceMemoryRequest": "memory"}


def pod_patch(
    pipeline: Pipeline, path: str, component: str, values: Mapping[str, Any], around: Mapping[str, Any]
) -> str:
    """Builds the patch as the driver writes it.

    Args:
        pipeline: That the task belongs to.
        path: The task's name behind those of the pipelines around it: `evaluate`, `encode-in-parts/evaluate`.
        component: That the task runs.
        values: Values of the task's parameters.
        around: Those of the pipeline around it, which kfp-kubernetes reads.
    """
    container, config = pipeline.executor(component)["container"], pipeline.pod_config(component) or {}
    mounts = config.get("emptyDirMounts", [])
    main = {
        "name": "main",
        "image": _filled_in(container["image"], values),
        "command": _launcher(pipeline, path, component, values),
        "args": [*container.get("command", []), *container.get("args", [])],
        "resources": _resources(container.get("resources", {}), values),
        **_present(
            env=[*container.get("env", []), *_environment(config)],
            volumeMounts=[{"name": item["volumeName"], "mountPath": item["mountPath"]} for item in mounts],
        ),
    }
    volumes = [{"name": item["volumeName"], "emptyDir": _empty_dir(item)} for item in mounts]
    return dumps({"containers": [main], **_present(volumes=volumes, **_placement(config, around))})


def executor_input(pipeline: Pipeline, path: str, component: str, values: Mapping[str, Any]) -> Json:
    """Builds the launcher's message about a task: parameters, artifacts, places of outputs; arguments as of `pod_patch`."""
    declared = pipeline.component(component)
    artifacts = {name: _read(pipeline, name) for name in declared.get("inputDefinitions", {}).get("artifacts", {})}
    inputs = _present(parameterValues=dict(values), artifacts=artifacts)
    return {"inputs": inputs, "outputs": _outputs(pipeline, path, declared.get("outputDefinitions", {}))}


def _read(pipeline: Pipeline, name: str) -> Json:
    """An artifact of another task."""
    uri = f"{_place(pipeline, 'another-task', name)}/{name}"
    metadata = {"display_name": name, "store_session_info": STORE_INFO}
    return {"artifacts": [{"name": "1234", "uri": uri, "metadata": metadata}]}


def _outputs(pipeline: Pipeline, path: str, declared: Json) -> Json:
    place = _place(pipeline, path.rpartition("/")[2], path)
    log = {"executor-logs": {"artifactType": {"schemaTitle": "system.Artifact"}}}
    artifacts = {
        name: {"artifacts": [{"name": name, "type": item["artifactType"], "uri": f"{place}/{name}"}]}
        for name, item in (declared.get("artifacts", {}) | log).items()
    }
    files = {name: {"outputFile": f"/tmp/kfp/outputs/{name}"} for name in declared.get("parameters", {})}  # noqa: S108
    file = f"/{place.replace('://', '/')}/output_metadata.json"
    return {"artifacts": artifacts, "outputFile": file, **_present(parameters=files)}


def _place(pipeline: Pipeline, task: str, salt: str) -> str:
    """Where a task's outputs go."""
    return f"{STORE}/{pipeline.name}/{_uuid(pipeline.name)}/{task}/{_uuid(salt)}"


def _uuid(text: str) -> str:
    hexadecimal = digits(text, 32)
    return "-".join((hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[16:20], hexadecimal[20:]))


def _launcher(pipeline: Pipeline, path: str, component: str, values: Mapping[str, Any]) -> list[str]:
    options = {
        "pipeline_name": pipeline.name,
        "run_id": _uuid(pipeline.name),
        "execution_id": "1234",
        "executor_input": message_dumps(executor_input(pipeline, path, component, values)),
        "component_spec": message_dumps(pipeline.component(component)),
        "pod_name": "$(KFP_POD_NAME)",
        "pod_uid": "$(KFP_POD_UID)",
        "ml_pipeline_server_address": "ml-pipeline.kubeflow.svc.cluster.local",
        "ml_pipeline_server_port": "8887",
        "mlmd_server_address": "metadata-grpc-service.kubeflow.svc.cluster.local",
        "mlmd_server_port": "8080",
        "publish_logs": "true",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ["/kfp-launcher/launch", *words, "--publish_logs", "true", "--"]


def _environment(config: Json) -> list[Json]:
    """Variables from secrets, config maps and the pod itself."""
    variables = []
    for kind, reference in (("secret", "secretKeyRef"), ("configMap", "configMapKeyRef")):
        for source in config.get(f"{kind}AsEnv", []):
            for key in source.get("keyToEnv", []):
                selector = {"name": source.get(f"{kind}Name", ""), "key": key[f"{kind}Key"]}
                selector |= {"optional": source["optional"]} if "optional" in source else {}
                variables.append({"name": key["envVar"], "valueFrom": {reference: selector}})
    for item in config.get("fieldPathAsEnv", []):
        variables.append({"name": item["name"], "valueFrom": {"fieldRef": {"fieldPath": item["fieldPath"]}}})
    return variables


def _resources(asked: Json, values: Mapping[str, Any]) -> Json:
    limits = {name: _filled_in(asked[key], values) for key, name in LIMITS.items() if key in asked}
    requests = {name: _filled_in(asked[key], values) for key, name in REQUESTS.items() if key in asked}
    accelerator = asked.get("accelerator", {})
    if accelerator:
        kind = _filled_in(accelerator.get("resourceType", accelerator.get("type", "")), values)
        limits[kind] = _filled_in(accelerator.get("resourceCount", accelerator.get("count", "")), values)
    return _present(limits=limits, requests=requests)


def _empty_dir(mount: Json) -> Json:
    return {key: mount[key] for key in ("medium", "sizeLimit") if key in mount}


def _placement(config: Json, around: Mapping[str, Any]) -> Json:
    """Which nodes a pod may run on, and for how long."""
    selector, tolerations = config.get("nodeSelector", {}), []
    for item in config.get("tolerations", []):
        toleration = _value(item["tolerationJson"], around) if "tolerationJson" in item else item
        tolerations += toleration if isinstance(toleration, list) else [toleration]
    labels = _value(selector["nodeSelectorJson"], around) if "nodeSelectorJson" in selector else selector.get("labels")
    seconds = int(config.get("activeDeadlineSeconds", 0))
    return {"nodeSelector": labels, "tolerations": tolerations, "activeDeadlineSeconds": seconds}


def _value(source: Json, around: Mapping[str, Any]) -> Any:
    """A value that kfp-kubernetes takes from a parameter; {} where only the run knows it."""
    if "runtimeValue" in source:
        return source["runtimeValue"].get("constant")
    return around.get(source.get("componentInputParameter", ""), {})


def _filled_in(text: str, values: Mapping[str, Any]) -> str:
    """A text of the container with the parameter that it refers to."""
    for name, value in values.items():
        text = text.replace(f"{{{{$.inputs.parameters['{name}']}}}}", str(value))
    return text


def _present(**fields: Any) -> Json:
    """The fields that are not empty: Go leaves out the others."""
    return {name: value for name, value in fields.items() if value}
