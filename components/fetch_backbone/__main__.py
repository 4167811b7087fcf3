"""The program of the step `fetch_backbone`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import BackboneSettings


def run(step: StepRun[BackboneSettings]) -> None:
    """Brings the backbone and notes where it comes from."""
    from llm_retriever.backbone import fetch
    from llm_retriever.card import load_lineage

    output = step.outputs["backbone"]
    fetch(step.settings, step.inputs["collection"], output)
    lineage = load_lineage(output)
    step.metadata["backbone"] = {
        "source": lineage.source,
        "revision": lineage.revision,
        "weights_sha256": lineage.digest,
        "stages": ", ".join(stage.stage for stage in lineage.stages),
    }


STEP = Step(
    name="fetch_backbone",
    settings=BackboneSettings,
    run=run,
    inputs={"collection": "Collection that a scratch: backbone is trained on (prepare_corpus)."},
    outputs={"backbone": "Directory of the causal LM: configuration, safetensors, fast tokenizer, backbone.json."},
    restarts=True,
)

if __name__ == "__main__":
    STEP.main()
