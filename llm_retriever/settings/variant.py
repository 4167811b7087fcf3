"""Settings of run_variant: those of four stages, each in a JSON object, and what they share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from llm_retriever.errors import InputError
from llm_retriever.settings.common import IN_FORM, OF_POD, OF_RUN, OF_STEP, Gpus, Place
from llm_retriever.settings.evaluation import EvaluationSettings
from llm_retriever.settings.index import IndexSettings
from llm_retriever.settings.options import OPTIONS, OVERRIDES, checked_options
from llm_retriever.settings.parameters import build, nearest, parameters
from llm_retriever.settings.training import AdaptationSettings, TuningSettings

VARIANT_STAGES: dict[str, type] = {
    "adapt": AdaptationSettings,
    "tune": TuningSettings,
    "index": IndexSettings,
    "eval": EvaluationSettings,
}
"""Settings class of every stage that run_variant does, by the prefix of its parameters."""
OF_THE_MACHINE = ("gpus", "nodes", "node_gpus")
"""Settings of a stage that decide where it computes: the one pod of a variant decides for all of its stages."""
POD = "pod"


def _as_object(value: Any) -> Any:
    """A command line holds the object as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON object ({error})") from None


_Object = Annotated[dict[str, Any], BeforeValidator(_as_object)]


@dataclasses.dataclass(frozen=True)
class VariantSettings:
    """`run_variant`: adaptation, tuning, index and evaluation of one variant of a comparison, in one pod."""

    adapt: Annotated[_Object, Field(description="JSON object with settings of adapt_backbone."), IN_FORM] = (
        dataclasses.field(default_factory=dict)
    )
    tune: Annotated[_Object, Field(description="JSON object with settings of tune_retriever."), IN_FORM] = (
        dataclasses.field(default_factory=dict)
    )
    index: Annotated[_Object, Field(description="JSON object with settings of build_index."), IN_FORM] = (
        dataclasses.field(default_factory=dict)
    )
    eval: Annotated[_Object, Field(description="JSON object with settings of evaluate."), IN_FORM] = dataclasses.field(
        default_factory=dict
    )
    overrides: Annotated[
        _Object,
        Field(
            description='What the variant sets itself, by stage, as {"tune": {"method": "repllama"}}: wins over all else.'
        ),
        OF_STEP,
    ] = dataclasses.field(default_factory=dict)
    pod: Annotated[
        _Object,
        Field(description='Settings that change no result, by stage, as {"tune": {"checkpoint_minutes": 5}}.'),
        OF_POD,
    ] = dataclasses.field(default_factory=dict)
    gpus: Gpus = ""
    checkpoint_uri: Annotated[
        str,
        Field(
            description="Directory or s3:// prefix for checkpoints, and for the adapted backbone, the retriever and the index "
            "once they are complete: whoever needs the same takes them from there. Empty = beside the output, which does not "
            "outlive a pod."
        ),
        OF_RUN,
    ] = ""


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """Settings of the four stages of a variant."""

    adapt: AdaptationSettings
    tune: TuningSettings
    index: IndexSettings
    eval: EvaluationSettings


def variant_options(stage: str) -> list[str]:
    """Names of a stage's settings that are keys of its JSON object: all that decide a result and are not shared.

    >>> [name in variant_options("tune") for name in ("learning_rate", "gpus", "checkpoint_uri")]
    [True, False, False]
    """
    known = parameters(VARIANT_STAGES[stage]).values()
    return [p.name for p in known if p.place in (Place.OPTIONS, Place.FORM) and p.name not in OF_THE_MACHINE]


def stage_settings(settings: VariantSettings) -> StageSettings:
    """Builds and checks the settings of all stages.

    Raises:
        InputError: A key is unknown, or a value is refused; the field is `tune_options.lora_rank`.
    """
    for name in (OVERRIDES, POD):
        for stage in getattr(settings, name):
            if stage not in VARIANT_STAGES:
                raise InputError("is no stage", field=f"{name}.{stage}", hint=nearest(stage, VARIANT_STAGES))
    return StageSettings(**{stage: _of_stage(settings, stage) for stage in VARIANT_STAGES})


def _of_stage(settings: VariantSettings, stage: str) -> Any:
    kind = VARIANT_STAGES[stage]
    keys, known = variant_options(stage), parameters(kind)
    of_pod = [name for name, parameter in known.items() if parameter.place is Place.POD]
    given: dict[str, tuple[str, Any]] = {}
    for field, values, allowed in (
        (f"{POD}.{stage}", settings.pod.get(stage, {}), of_pod),
        (f"{stage}_{OPTIONS}", getattr(settings, stage), keys),
        (f"{OVERRIDES}.{stage}", settings.overrides.get(stage, {}), keys),
    ):
        checked = checked_options(kind, values, field, allowed)
        given |= {name: (f"{field}.{name}", value) for name, value in checked.items()}
    shared = ("gpus", "checkpoint_uri")
    given |= {name: (name, getattr(settings, name)) for name in shared if name in known}
    return _built(kind, given)


def _built(kind: type, given: Mapping[str, tuple[str, Any]]) -> Any:
    """Builds settings from values with the names of where they were given."""
    try:
        return build(kind, {name: value for name, (_, value) in given.items()})
    except InputError as error:
        field, _ = given.get(error.field or "", (error.field, None))
        raise InputError(error.problem, field=field, hint=error.hint) from None
