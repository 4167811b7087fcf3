"""The flat names of a run's parameters, and how each reaches its step.

Everything that a step can be told has one flat name, `tune_lora_rank`; commands, presets and variants take these. The form
of a pipeline has those that people really set, and for the rest of a stage one JSON object, `tune_options`. What does not
change a result is written into the pods when the pipeline is compiled. All of it is made of the settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.settings import Parameter, PartSettings, Place, parameters
from llm_retriever.settings.options import OPTIONS, as_type, checked_options, option_names
from llm_retriever.settings.variant import VARIANT_STAGES, variant_options
from pipelines import steps
from pipelines.pods import GPU_STAGES, REQUESTS, STAGES, PodSettings

SETTINGS: dict[str, type] = {
    stage: step.settings
    for stage, step in steps.STAGES.items()
    if any(parameter.place is not Place.STEP for parameter in parameters(step.settings).values())
}
"""Settings class of every stage that people can tell something."""
RUN = "run"
RECIPE = "run_recipe"
"""A parameter of retrain alone: what else decides what a run makes."""
OF_THE_RUN = ("seed", "precision", "checkpoint_minutes", "node_runtime", "node_account", "node_labels")
"""Settings that have one flat name for all stages, as the place of checkpoints has, and are no parameters of the form."""
RENAMED = {"tune": "weights"}
"""Settings whose flat name would be odd: `tune_tune`."""
PARTS = "index_parts"
"""Flat name that decides how a pipeline is laid out: the pods that encode the corpus at the same time."""
OF_A_VARIANT = tuple(VARIANT_STAGES)
"""Stages that one pod does for a variant of a comparison; there each has one JSON object for all of its settings."""
POD_OF_A_VARIANT = "tune"
"""The stage whose pods those of variants are like, GPUs, processors and memory."""
GPUS_HELP = "GPUs of the pod: 0 (it computes on the processor), 1, 2, 4, 8 or 16."
DEFAULTS = {f"{stage}_gpus": steps.STAGES[stage].gpus for stage in GPU_STAGES}
"""Where a cluster must be told what a machine can see for itself."""
MODEL_STAGES = tuple(stage for stage, step in steps.STAGES.items() if step.images[0] == "gpu")
_OTHERS = tuple(stage for stage in STAGES if stage not in GPU_STAGES)
OF_ALL_PODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_gpu_type": ("gpu_type", STAGES),
    "run_gpu_image": ("image", MODEL_STAGES),
    "run_cpu_image": ("image", tuple(stage for stage in STAGES if stage not in MODEL_STAGES)),
    "run_gpu_node_selector": ("node_selector", GPU_STAGES),
    "run_gpu_tolerations": ("tolerations", GPU_STAGES),
    "run_cpu_node_selector": ("node_selector", _OTHERS),
    "run_cpu_tolerations": ("tolerations", _OTHERS),
}
"""Flat names of what several stages' pods are given: key of `PodSettings`, stages."""
OPTION_WIDTH = 46
"""Characters of a key's help in the form; the READMEs of the components have all of it."""
_GPUS = f"{POD_OF_A_VARIANT}_gpus"
_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD


@dataclass(frozen=True)
class FlatName:
    """One parameter of a run.

    Attributes:
        name: As people write it.
        parameter: Type, default and help.
        place: How it reaches the step; None = it is a key of `PodSettings`.
        stages: Those it is for.
        key: Name of the setting, or key of `PodSettings`.
    """

    name: str
    parameter: Parameter
    place: Place | None
    stages: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Told:
    """A run's parameters, sorted by how they reach the steps.

    Attributes:
        form: Values of the form's parameters, options folded into their objects.
        pods: Keys of `PodSettings`, by stage.
        settings: Settings that the pods hold, by stage.
        parts: Pods that encode the corpus.
    """

    form: dict[str, Any] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: int = 1


def flat_name(stage: str, setting: str) -> str:
    """The flat name of a step's setting.

    >>> flat_name("mine", "depth"), flat_name("backbone", "source"), flat_name("tune", "seed"), flat_name("tune", "tune")
    ('mine_depth', 'backbone', 'run_seed', 'tune_weights')
    """
    parameter = parameters(SETTINGS[stage]).get(setting)
    if (parameter and parameter.place is Place.RUN) or setting in OF_THE_RUN:
        return f"{RUN}_{setting}"
    if (stage, setting) == ("backbone", "source"):
        return "backbone"
    return f"{stage}_{RENAMED.get(setting, setting)}"


@functools.cache
def flat_names() -> dict[str, FlatName]:
    """All parameters of a run, by name; in the order of the stages."""
    names: dict[str, FlatName] = {}
    for stage, settings in SETTINGS.items():
        for key, parameter in parameters(settings).items():
            if parameter.place is not Place.STEP:
                name = flat_name(stage, key)
                stages = (*(names[name].stages if name in names else ()), stage)
                text, default = GPUS_HELP if key == "gpus" else parameter.help, DEFAULTS.get(name, parameter.default)
                given = Parameter(name, parameter.type, default, text, parameter.choices)
                names[name] = FlatName(name, given, parameter.place, stages, key)
    of_pods = parameters(PodSettings)
    for stage in STAGES:
        for key, default in zip(("cpus", "memory"), REQUESTS[stage], strict=True):
            parameter = dataclasses.replace(of_pods[key], default=default)
            names[f"{stage}_{key}"] = FlatName(f"{stage}_{key}", parameter, None, (stage,), key)
    for name, (key, stages) in OF_ALL_PODS.items():
        names[name] = FlatName(name, of_pods[key], None, stages, key)
    names[PARTS] = FlatName(PARTS, parameters(PartSettings)["parts"], Place.STEP, ("index",), "parts")
    return names


def signature(stages: Iterable[str], whole: Collection[str] = ()) -> inspect.Signature:
    """Builds the form of a pipeline with these stages; parameters are sorted by stage, those of the run come last.

    Args:
        stages: In order.
        whole: Those of which all settings are keys of their JSON objects, because one pod does them.

    >>> list(signature(["compare"]).parameters)
    ['compare_reference']
    """
    chosen = list(stages)
    own: list[inspect.Parameter] = []
    for stage in chosen:
        own += [_taken(flat) for flat in _of(stage, Place.FORM) if stage not in whole or flat.name == _GPUS]
        if option_names(SETTINGS[stage]):
            own.append(inspect.Parameter(f"{stage}_{OPTIONS}", _KIND, annotation=dict, default={}))
    shared = [flat for flat in flat_names().values() if flat.place is Place.RUN and set(flat.stages) & set(chosen)]
    return inspect.Signature([*own, *(_taken(flat) for flat in shared)])


def _of(stage: str, place: Place) -> list[FlatName]:
    return [flat for flat in flat_names().values() if flat.place is place and stage in flat.stages]


def _taken(flat: FlatName) -> inspect.Parameter:
    return inspect.Parameter(flat.name, _KIND, annotation=flat.parameter.type, default=flat.parameter.default)


def meanings(names: Iterable[str], whole: Collection[str] = ()) -> dict[str, str]:
    """Builds the help of a form's parameters; that of an object of options lists its keys with meaning and default.

    Args:
        names: Of the form.
        whole: As for `signature`.
    """
    known, suffix = flat_names(), f"_{OPTIONS}"
    return {
        name: _options_help(name.removesuffix(suffix), whole) if name.endswith(suffix) else known[name].parameter.help
        for name in names
    }


def _options_help(stage: str, whole: Collection[str]) -> str:
    own = parameters(SETTINGS[stage])
    keys = variant_options(stage) if stage in whole else option_names(SETTINGS[stage])
    listed = "; ".join(f"{key} = {json.dumps(own[key].default)}: {_short(own[key].help)}" for key in keys)
    return f'JSON object of any of these keys, shown with their defaults (-1 and "": the recipe\'s). {listed}.'


def _short(text: str) -> str:
    """Cuts a help to its beginning: the form's help stands several times in the object in which Argo keeps a run."""
    clause = re.split(r"\.(?: |$)", text, maxsplit=1)[0]
    return textwrap.shorten(clause, OPTION_WIDTH, placeholder=" …")


def defaults() -> dict[str, Any]:
    """All parameters of a run, with their defaults."""
    return {name: flat.parameter.default for name, flat in flat_names().items()}


def unfolded(given: Mapping[str, Any]) -> dict[str, Any]:
    """Spells keys of options as flat names; everything else stays.

    Args:
        given: Flat names and objects of options; also what a pipeline has a parameter for may be a key of these.

    Raises:
        InputError: Options are not what they should be, or a key is given flat as well.
    """
    flat: dict[str, Any] = {}
    for name, value in given.items():
        stage = name.removesuffix(f"_{OPTIONS}")
        if name == stage or stage not in SETTINGS:
            flat[name] = value
            continue
        keys = [flat.key for place in (Place.OPTIONS, Place.FORM) for flat in _of(stage, place)]
        for key, own in checked_options(SETTINGS[stage], value, name, keys).items():
            known = flat_name(stage, key)
            if known.startswith(f"{RUN}_"):
                hint = f"give {known} to a command, or leave the object to those who fill in the form"
                raise InputError("is one value for all stages here", field=f"{name}.{key}", hint=hint)
            if known in given:
                raise InputError(f"{known} is given as well", field=f"{name}.{key}", hint="give one of the two")
            flat[known] = own
    return flat


def typed(name: str, value: Any, known: Iterable[str] | None = None) -> Any:
    """Converts a value of a flat name to its type.

    Args:
        name: The flat name.
        value: JSON, or what TOML holds.
        known: The names that may be given; None = all.

    Raises:
        InputError: There is no such name, or the value is of another type.
    """
    names = flat_names() if known is None else {n: f for n, f in flat_names().items() if n in set(known)}
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else ""
        raise InputError("is no parameter of this pipeline", field=name, hint=hint)
    parameter = names[name].parameter
    if name.endswith("_gpus") and names[name].key == "gpus" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # Kubernetes' quantities are texts; people write numbers
    return as_type(value, parameter, name)


def folded(flat: Mapping[str, Any], whole: Collection[str] = (), within: Collection[str] = ()) -> Told:
    """Sorts a run's parameters by how they reach the steps; settings that are given their defaults again change nothing.

    What pods are given is kept even so: it may differ from what a preset gives them.

    Args:
        flat: By flat name.
        whole: As for `signature`.
        within: Stages of the pipeline; empty = all.
    """
    told = Told(parts=int(flat.get(PARTS, 1)))
    for name, value in flat.items():
        known = flat_names().get(name)
        place = known.place if known else Place.FORM  # of a pipeline itself, as the recipe of retrain
        if known and place is Place.FORM and known.stages[0] in whole and name != _GPUS:
            place = Place.OPTIONS
        if known is None or place in (Place.FORM, Place.RUN):
            told.form[name] = value
            continue
        stages = [stage for stage in known.stages if not within or stage in within or place is None]
        if place is None:
            for stage in stages:
                told.pods.setdefault(stage, {})[known.key] = value
        elif value != known.parameter.default:
            for stage in stages:
                if place is Place.OPTIONS:
                    told.form.setdefault(f"{stage}_{OPTIONS}", {})[known.key] = value
                elif place is Place.POD:
                    told.settings.setdefault(stage, {})[known.key] = value
    return told


def with_accelerator(told: Told, given: Collection[str]) -> Told:
    """Gives the nodes of a TrainJob the accelerator of the step's own pod, unless they are given one of their own.

    Args:
        told: With what a preset gives the pods.
        given: Flat names.
    """
    settings = {stage: dict(values) for stage, values in told.settings.items()}
    for stage in ("adapt", "tune"):
        kind = told.pods.get(stage, {}).get("gpu_type", PodSettings.gpu_type)
        if kind != PodSettings.gpu_type and f"{stage}_node_gpu_type" not in given:
            settings.setdefault(stage, {})["node_gpu_type"] = kind
    return dataclasses.replace(told, settings=settings)
