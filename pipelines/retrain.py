"""The pipeline to be scheduled: looks whether the sources have changed, and only then trains, judges and promotes.

What depends on a step's answer is a pipeline of its own, because a condition on another step's output is skipped in silence
where pipelines run locally; its condition is on a parameter.
"""

import inspect
from collections.abc import Mapping
from typing import Any, List  # noqa: UP035 - Kubeflow takes the items of `list[int]` for texts

from kfp import dsl

from components.definition import with_arguments
from llm_retriever import files
from llm_retriever.errors import InputError
from pipelines.chain import Seen, looked_at, trained
from pipelines.stages import parameter_help
from pipelines.train_retriever import train_retriever

RECIPE = "run_recipe"
RECIPE_HELP = (
    "Any text: with another one a run trains although the sources have not changed. The commands put a digest of all other "
    "parameters here."
)
NOT_IN_RECIPE = (
    *("_cpus", "_memory", "_shards_uri", "_node_selector", "_tolerations", "run_gpu_type"),
    *("mine_gpus", "mine_threads", "index_gpus", "index_parts", "index_memory_gib", "eval_gpus"),
    *("run_checkpoint_uri", "run_checkpoint_minutes", "run_node_runtime", "run_node_account", "run_node_labels"),
)
"""Ends of the names of parameters that change what a run costs, and not what it makes. The GPUs of a training are not among
them: every one has negatives of its own."""

SEEN: dict[str, Any] = {
    "corpus_fingerprint": str,
    "backbone_fingerprint": str,
    "part_numbers": List[int],  # noqa: UP006
    "fingerprint": str,
    "changed": bool,
    "production_uri": str,
}
_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD
_FORM = inspect.signature(train_retriever.pipeline_func)


def form() -> inspect.Signature:
    """Parameters of the pipeline: those of train_retriever, and the recipe."""
    recipe = inspect.Parameter(RECIPE, _KIND, annotation=str, default="1")
    return inspect.Signature([*_FORM.parameters.values(), recipe])


def _inner_form() -> inspect.Signature:
    seen = [inspect.Parameter(name, _KIND, annotation=kind) for name, kind in SEEN.items()]
    given = [parameter.replace(default=inspect.Parameter.empty) for parameter in _FORM.parameters.values()]
    return inspect.Signature([*seen, *given])


def _train_when_changed(*values: Any) -> None:
    """Trains, judges and promotes, if there is anything new."""
    given = dict(zip(_inner_form().parameters, values, strict=True))
    seen = Seen(*(given.pop(name) for name in Seen._fields))
    with dsl.If(seen.changed == True, "sources-changed"):  # noqa: E712 - Kubeflow's own comparison
        trained(given, seen)


def _retrain(*values: Any) -> None:
    """Trains a retriever anew when the corpus or the backbone has changed, and replaces the one in production if it is better."""
    given = dict(zip(form().parameters, values, strict=True))
    recipe = given.pop(RECIPE)
    seen = looked_at(given, given["promote_uri"], recipe)
    train_when_changed(**seen._asdict(), **given)


_train_when_changed.__name__, _train_when_changed.__signature__ = "train_when_changed", _inner_form()  # type: ignore[attr-defined]
_retrain.__name__, _retrain.__signature__ = "retrain", form()  # type: ignore[attr-defined]
train_when_changed: Any = dsl.pipeline(name="train-when-changed")(_train_when_changed)
retrain: Any = dsl.pipeline(name="retrain")(with_arguments(parameter_help() | {RECIPE: RECIPE_HELP})(_retrain))


def with_recipe(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a run, with the recipe: a digest of all those that decide what the run makes.

    Args:
        known: Defaults of all parameters.
        given: What differs from them.
    """
    everything = {**known, **given}
    made = {name: value for name, value in everything.items() if name != RECIPE and not name.endswith(NOT_IN_RECIPE)}
    return {RECIPE: files.digest(sorted(made.items())), **given}


def check_published(given: Mapping[str, Any]) -> None:
    """Refuses a run without a place that says what has been judged before.

    Args:
        given: What differs from the defaults.

    Raises:
        InputError: There is none.
    """
    if not given.get("promote_uri"):
        raise InputError(
            "retraining compares with what is published, and notes there what it has judged",
            field="promote_uri",
            mend="give the directory or s3:// prefix of published versions",
        )
