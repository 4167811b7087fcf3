"""The program of the step `fetch_backbone`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import BackboneSettings


def run(step: StepRun[BackboneSettings]) -> None:
    """Brings the backbone and notes where it comes from."""
    from llm_retriever.adaptation.backbone import fetch

    fetch(step.settings, step.inputs["collection"], step.outputs["backbone"])


STEP = Step(
    name="fetch_backbone",
    stage="backbone",
    images=("gpu",),
    requests=("4", "16Gi"),
    settings=BackboneSettings,
    run=run,
    inputs={"collection": "Collection that a scratch: backbone is trained on (prepare_corpus)."},
    outputs={"backbone": "Directory of the causal LM: configuration, safetensors, fast tokenizer, backbone.json."},
    restarts=True,
)

if __name__ == "__main__":
    STEP.main()
