"""Resolves a command line to a pipeline and a run's parameters: presets, flat names and variants put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm_retriever.errors import InputError
from pipelines import form, one_pod, presets, variants
from pipelines.form import RECIPE, Told
from pipelines.variants import Variant

TRAINING, RETRAINING, COMPARISON, RERUN = "train_retriever", "retrain", "compare_methods", "rerun_"
WHOLE = (TRAINING, RETRAINING, COMPARISON)


@dataclass(frozen=True)
class Choice:
    """A pipeline and a run's parameters.

    Attributes:
        name: As on the command line.
        pipeline: What `@dsl.pipeline` made.
        told: Values that differ from the defaults, sorted by how they reach the steps.
        flat: All values by flat name, those with their defaults included.
        variants: What a comparison compares.
    """

    name: str
    pipeline: Any
    told: Told
    flat: dict[str, Any]
    variants: tuple[Variant, ...] = ()


def choose(
    words: Sequence[str],
    *,
    preset: str | None = None,
    file: str | None = None,
    own: Mapping[str, Any] | None = None,
    default: str = TRAINING,
    complete: bool = True,
) -> Choice:
    """Resolves the pipeline that a command line names, and its parameters.

    Args:
        words: `[PIPELINE] [key=value …]`.
        preset: Name or file of a preset; what the words say comes after it.
        file: Name or file of variants, for the comparison.
        own: Values that preset and words may change.
        default: The pipeline where none is named.
        complete: Whether the values are those of a run, and not of a form that is filled in later.

    Raises:
        InputError: A name or a value does not fit.
    """
    assignments = list(words)
    named = assignments and (assignments[0] in WHOLE or assignments[0].startswith(RERUN))
    name = assignments.pop(0) if named else default
    known = names_of(name)
    given = {**(own or {}), **(presets.load(preset) if preset else {})}
    given = {key: value for key, value in given.items() if key in known}
    given = presets.over(given, _words(name, assignments))
    return chosen(name, given, preset=preset, file=file, complete=complete)


def _words(name: str, assignments: list[str]) -> dict[str, Any]:
    """Parses the words; what a comparison has no use for is refused here, and left out of a preset."""
    if name != COMPARISON:
        return presets.parsed(names_of(name), assignments)
    given = presets.parsed(_names(stages_of(name)), assignments)
    for key in given:
        one_pod.check_in_one_pod(key)
    return given


def chosen(
    name: str, given: Mapping[str, Any], *, preset: str | None = None, file: str | None = None, complete: bool = True
) -> Choice:
    """Resolves values that are parsed already.

    Args:
        name: Name of the pipeline.
        given: By flat name; for a rerun also URIs of artifacts.
        preset: Whose `[cluster]` the pods have.
        file: File of variants.
        complete: As for `choose`.

    Raises:
        InputError: A value does not fit.
    """
    flat = {**form.defaults(), **given}
    presets.check(flat)
    told = form.folded(given, form.OF_A_VARIANT if name == COMPARISON else (), stages_of(name))
    pods = {stage: {**values, **told.pods.get(stage, {})} for stage, values in presets.cluster(preset).items()}
    told = form.with_accelerator(replace(told, pods={**told.pods, **pods}), given)
    if name == COMPARISON:
        told = replace(told, settings=one_pod.in_one_pod(told.settings))
    if name == COMPARISON:
        told = replace(told, pods=one_pod.with_time_for_all(told.pods))
    compared: tuple[Variant, ...] = ()
    if file and name != COMPARISON:
        raise InputError(f"{name} has no variants", field="--variants", hint=f"name the pipeline {COMPARISON}")
    if name == COMPARISON:
        compared = variants.load(file or variants.DEFAULT).variants
        variants.check_reference(compared, flat["compare_reference"])
    if name == RETRAINING:
        told = _as_scheduled(told, complete)
    return Choice(name, _pipeline(name, told.parts, compared), told, flat, compared)


def check_room(choice: Choice) -> None:
    """Raises InputError for a pipeline whose run Kubeflow could not show: Argo keeps it in one object of 1 MiB.

    Raises:
        InputError: It says how many variants fit, or what makes the run so large.
    """
    from pipelines import pods
    from pipelines.workflow_size import check_size, check_variants, workflow_size

    def applied(pipeline: Any) -> Any:
        return pods.applied(pipeline, choice.told.pods, choice.told.settings)

    if choice.name == COMPARISON:
        from pipelines.comparison import comparison_of

        def pipeline_of(count: int) -> Any:
            return applied(comparison_of(choice.variants[:count]))

        check_variants(pipeline_of, len(choice.variants), choice.told.form, compressed=False, field="--variants")
    elif not choice.name.startswith(RERUN):
        made = applied(choice.pipeline)
        size = workflow_size(made.pipeline_spec, made.platform_spec, choice.told.form)
        field, hint = (
            (form.PARTS, "encode in fewer parts, each with more GPUs") if choice.told.parts > 1 else (None, "")
        )
        check_size(size, what=choice.name, compressed=False, field=field, hint=hint)


def _as_scheduled(told: Told, complete: bool) -> Told:
    from components.definition import image
    from pipelines.retrain import check_published, with_recipe

    if complete:
        check_published(told.form)
    given = {values["image"] for values in told.pods.values() if "image" in values}
    given |= {values["node_image"] for values in told.settings.values() if "node_image" in values}
    return replace(told, form=with_recipe(told.form, {image("cpu"), image("gpu")} | given))


def names_of(name: str) -> set[str]:
    """Flat names of a pipeline's parameters.

    Args:
        name: Name of the pipeline.

    Raises:
        InputError: There is no such step to rerun.
    """
    stages = stages_of(name)
    if name.startswith(RERUN):
        return set(_names(stages)) - {form.PARTS}
    names = set(_names((*stages, "fingerprint"))) | ({RECIPE} if name == RETRAINING else set())
    return {key for key in names if one_pod.fits_one_pod(key)} if name == COMPARISON else names


def _names(stages: Iterable[str]) -> list[str]:
    own = set(stages)
    return [name for name, flat in form.flat_names().items() if own & set(flat.stages)]


def stages_of(name: str) -> tuple[str, ...]:
    """Stages of a pipeline that have parameters, by the pipeline's name."""
    if name.startswith(RERUN):
        from pipelines.rerun import step_of

        return (step_of(name.removeprefix(RERUN)).prefix,)
    without = {TRAINING: "compare", RETRAINING: "compare", COMPARISON: "promote"}[name]
    return tuple(stage for stage in form.SETTINGS if stage != without)


def _pipeline(name: str, parts: int, compared: tuple[Variant, ...]) -> Any:
    if name.startswith(RERUN):
        from pipelines.rerun import rerun_of

        return rerun_of(name.removeprefix(RERUN))
    if name == COMPARISON:
        from pipelines.comparison import comparison_of

        return comparison_of(compared)
    if name == RETRAINING:
        from pipelines.retrain import retrain_of

        return retrain_of(parts)
    from pipelines.train_retriever import train_retriever_of

    return train_retriever_of(parts)
