"""Parameters of a comparison, where one pod does all stages of a variant."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.settings.variant import POD
from pipelines.form import OF_A_VARIANT, PARTS, POD_OF_A_VARIANT, flat_names

NODE = "node_"
"""Start of the settings of the nodes that train together, where there are several."""


def in_one_pod(settings: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings of pods, by stage, where one pod does the stages of a variant, which take theirs apart inside of it."""
    nested = {
        stage: {key: value for key, value in settings[stage].items() if not key.startswith(NODE)}
        for stage in OF_A_VARIANT
        if stage in settings
    }
    others = {stage: values for stage, values in settings.items() if stage not in OF_A_VARIANT}
    return others | ({POD_OF_A_VARIANT: {POD: found}} if (found := {s: v for s, v in nested.items() if v}) else {})


def with_time_for_all(pods: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pods by stage, where one pod does the stages of a variant: it has the time of all of them together.

    Args:
        pods: Keys of `PodSettings`, by stage.
    """
    hours = [pods.get(stage, {}).get("timeout_hours", 0) for stage in OF_A_VARIANT]
    own = {"timeout_hours": sum(hours) if all(hours) else 0}  # 0 = one of them may take for ever
    return {stage: dict(values) for stage, values in pods.items()} | {
        POD_OF_A_VARIANT: {**pods.get(POD_OF_A_VARIANT, {}), **(own if any(hours) else {})}
    }


def check_in_one_pod(name: str) -> None:
    """Raises InputError for a parameter that a comparison cannot have, because one pod does all stages of a variant.

    Args:
        name: A flat name.

    Raises:
        InputError: It says what to give instead.
    """
    flat = flat_names()[name]
    if not set(flat.stages) <= set(OF_A_VARIANT):
        return
    if name == PARTS or flat.key == "nodes" or flat.key.startswith(NODE):
        problem = "a comparison trains and encodes every variant in one pod"
        raise InputError(problem, field=name, hint="leave it out, or train this variant with train_retriever")
    if flat.key in ("gpus", "cpus", "memory") and flat.stages != (POD_OF_A_VARIANT,):
        raise InputError("one pod does all stages of a variant", field=name, hint=f"give {POD_OF_A_VARIANT}_{flat.key}")


def fits_one_pod(name: str) -> bool:
    """Whether a comparison can have a parameter, by flat name."""
    with contextlib.suppress(InputError):
        check_in_one_pod(name)
        return True
    return False
