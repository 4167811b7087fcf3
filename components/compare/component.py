"""What Kubeflow sees of the step `compare`: one input for each variant, so its signature depends on their names."""

import inspect
from collections.abc import Sequence
from typing import Any

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Markdown, Metrics, Output

from components.compare.__main__ import STEP
from components.definition import container, with_settings, with_signature
from components.entrypoint import collected_name

OUTPUTS: dict[str, Any] = {
    "comparison": Output[Artifact],
    "report": Output[HTML],
    "summary": Output[Markdown],
    "metrics": Output[Metrics],
}


def comparing(variants: Sequence[str]) -> Any:
    """The component that compares these variants; the evaluation of `LLM-QL` is its input `evaluation_llm_ql`."""
    artifacts = {collected_name("evaluation", name): Input[Artifact] for name in variants} | OUTPUTS
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind, annotation=a) for name, a in artifacts.items()])

    def compare(*given: Any) -> dsl.ContainerSpec:
        """Puts the evaluations of several variants side by side and tests their differences."""
        return container(STEP)

    return dsl.container_component(with_settings(STEP)(with_signature(compare, signature)))


compare = comparing(["first", "second"])
