"""The program of the step `tune_retriever`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import TuningSettings


def run(step: StepRun[TuningSettings]) -> None:
    """Tunes the retriever and draws its training curves."""
    from llm_retriever import files
    from llm_retriever.contrastive.tuning import tune
    from llm_retriever.models.card import RetrieverCard
    from llm_retriever.reporting.training_page import training_html

    retriever = step.outputs["retriever"]
    log = tune(step.settings, **step.inputs, retriever=retriever)
    card = RetrieverCard.load(retriever)
    files.write_text(step.outputs["curves"], training_html(log, f"Contrastive tuning, {card.method}"))
    files.write_json(step.outputs["metrics"], log.metrics())
    step.metadata["curves"] = {**log.metrics(), "method": card.method, "recipe": card.recipe, "card": card.digest()}


STEP = Step(
    name="tune_retriever",
    stage="tune",
    images=("gpu",),
    requests=("8", "64Gi"),
    settings=TuningSettings,
    run=run,
    inputs={
        "adapted": "The output of adapt_backbone, or of fetch_backbone.",
        "collection": "The output of prepare_corpus.",
        "training_set": "The output of mine_negatives.",
    },
    outputs={
        "retriever": "The retriever: card, merged model, and the adapter where one was trained.",
        "curves": "Loss and learning rate over the updates, as a page to look at.",
        "metrics": "Loss at the start and the end, updates, pairs, seconds.",
    },
    restarts=True,
)

if __name__ == "__main__":
    STEP.main()
