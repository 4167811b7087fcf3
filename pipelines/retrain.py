"""The pipeline to be scheduled: looks whether the sources have changed, and only then trains, judges and promotes.

What depends on a step's answer is a pipeline of its own, because a condition on another step's output is skipped in silence
where pipelines run locally; its condition is on a parameter.
"""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from kfp import dsl

from components.definition import with_arguments, with_signature
from llm_retriever import files
from llm_retriever.errors import InputError
from pipelines.chain import Seen, looked_at, trained
from pipelines.encoding import encode_in_parts
from pipelines.form import RECIPE, meanings
from pipelines.pods import counted
from pipelines.train_retriever import FORM

RECIPE_HELP = (
    "Any text: with another one a run trains although the sources have not changed. The commands put a digest of all other "
    "parameters here."
)
NOT_IN_RECIPE = ("mine_gpus", "index_gpus", "eval_gpus", "index_shards_uri", "run_checkpoint_uri")
"""Parameters that change what a run costs, and not what it makes. The GPUs of a training are not among them: every one has
negatives of its own."""
SEEN: dict[str, Any] = dict.fromkeys(Seen._fields, str) | {"changed": bool}
_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _form() -> inspect.Signature:
    """Builds the pipeline's parameters: those of train_retriever, and the recipe."""
    recipe = inspect.Parameter(RECIPE, _KIND, annotation=str, default="1")
    return inspect.Signature([*FORM.parameters.values(), recipe])


def _inner_form() -> inspect.Signature:
    seen = [inspect.Parameter(name, _KIND, annotation=kind) for name, kind in SEEN.items()]
    required = [parameter.replace(default=inspect.Parameter.empty) for parameter in FORM.parameters.values()]
    return inspect.Signature([*seen, *required])


def retrain_of(parts: int) -> Any:
    """Builds the pipeline `retrain`.

    Args:
        parts: Pods that encode the corpus at the same time.
    """
    form, inner, encode = _form(), _inner_form(), encode_in_parts(parts)

    def train_when_changed(*values: Any) -> None:
        """Trains, judges and promotes, if there is anything new."""
        form_values = dict(zip(inner.parameters, values, strict=True))
        seen = Seen(*(form_values.pop(name) for name in Seen._fields))
        with dsl.If(seen.changed == True, "sources-changed"):  # noqa: E712 - Kubeflow's own comparison
            trained(form_values, seen, encode)

    within: Any = dsl.pipeline(name="train-when-changed")(with_signature(train_when_changed, inner))

    def retrain(*values: Any) -> None:
        """Trains a retriever anew when the corpus or backbone has changed, and replaces the one in production if it is better."""
        form_values = dict(zip(form.parameters, values, strict=True))
        recipe = form_values.pop(RECIPE)
        within(**looked_at(form_values, form_values["promote_uri"], recipe)._asdict(), **form_values)

    documented = with_arguments(meanings(FORM.parameters) | {RECIPE: RECIPE_HELP})(with_signature(retrain, form))
    return counted(dsl.pipeline(name="retrain")(documented))


retrain = retrain_of(parts=1)


def with_recipe(parameters: Mapping[str, Any], images: Collection[str] = ()) -> dict[str, Any]:
    """Adds the recipe to a run's parameters: a digest of all that decides what the run makes.

    Args:
        parameters: What differs from the form's defaults.
        images: Images of the steps; new code counts as a change.
    """
    everything = {name: parameter.default for name, parameter in FORM.parameters.items()} | dict(parameters)
    made = {name: value for name, value in everything.items() if name != RECIPE and name not in NOT_IN_RECIPE}
    return {RECIPE: files.digest([sorted(made.items()), sorted(images)]), **parameters}


def check_published(parameters: Mapping[str, Any]) -> None:
    """Raises InputError for a run without a place that says what has been judged before.

    Args:
        parameters: What differs from the defaults.

    Raises:
        InputError: There is none.
    """
    if not parameters.get("promote_uri"):
        raise InputError(
            "retraining needs published versions to compare with, and a place for its records",
            field="promote_uri",
            hint="give the directory or s3:// prefix of published versions",
        )
