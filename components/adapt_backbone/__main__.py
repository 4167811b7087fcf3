"""The program of the step `adapt_backbone`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import AdaptationSettings


def run(step: StepRun[AdaptationSettings]) -> None:
    """Adapts the backbone and shows how the training went."""
    from llm_retriever import files
    from llm_retriever.adaptation.adapt import adapt
    from llm_retriever.models.card import load_lineage
    from llm_retriever.reporting.training_page import training_html

    adapted = step.outputs["adapted"]
    backbone, collection, training_set = (step.inputs[name] for name in ("backbone", "collection", "training_set"))
    log = adapt(step.settings, backbone, collection, training_set, adapted)
    files.write_text(step.outputs["curves"], training_html(log, f"Stage one: {step.settings.method}"))
    files.write_json(step.outputs["metrics"], log.metrics())
    stages = ", ".join(stage.stage for stage in load_lineage(adapted).stages)
    step.metadata["curves"] = {**log.metrics(), "stages": stages}


STEP = Step(
    name="adapt_backbone",
    stage="adapt",
    images=("gpu",),
    requests=("8", "64Gi"),
    settings=AdaptationSettings,
    run=run,
    inputs={
        "backbone": "Directory of the causal LM (fetch_backbone).",
        "collection": "Collection that the training set refers to (prepare_corpus).",
        "training_set": "Training queries and their positives (mine_negatives).",
    },
    outputs={
        "adapted": "Directory of the adapted causal LM, with its head, tokenizer and lineage.",
        "curves": "Loss and learning rate over the updates, an HTML page.",
        "metrics": "Updates, pairs, seconds, and the loss at the start and the end.",
    },
    restarts=True,
)

if __name__ == "__main__":
    STEP.main()
