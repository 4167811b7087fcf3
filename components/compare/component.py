"""What Kubeflow sees of the step `compare`: one input for each variant, so its signature depends on their names."""

import inspect
from collections.abc import Sequence
from typing import Any

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Markdown, Metrics, Output

from components.compare.__main__ import STEP
from components.definition import container, with_arguments
from components.entrypoint import collected_name
from llm_retriever.settings import parameters

OUTPUTS: dict[str, Any] = {
    "comparison": Output[Artifact],
    "report": Output[HTML],
    "summary": Output[Markdown],
    "metrics": Output[Metrics],
}


def comparing(variants: Sequence[str]) -> Any:
    """The component that compares these variants; the evaluation of `LLM-QL` is its input `evaluation_llm_ql`."""
    inputs = {collected_name("evaluation", name): Input[Artifact] for name in variants}
    taken: dict[str, Any] = {**inputs, **OUTPUTS, "reference": str, "variants": str}

    def compare(*given: Any) -> dsl.ContainerSpec:
        """Puts the evaluations of several variants side by side and tests their differences."""
        return container(STEP, "cpu")

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    compare.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in taken.items()],
        return_annotation=dsl.ContainerSpec,
    )
    compare.__annotations__ = {**taken, "return": dsl.ContainerSpec}
    meanings = {name: f"The evaluation of {variant}." for name, variant in zip(inputs, variants, strict=True)}
    meanings |= STEP.outputs
    meanings |= {name: parameter.help for name, parameter in parameters(STEP.settings).items()}
    return dsl.container_component(with_arguments(meanings)(compare))


compare = comparing(["first", "second"])
