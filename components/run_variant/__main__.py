"""The program of the step `run_variant`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import VariantSettings


def run(step: StepRun[VariantSettings]) -> None:
    """Trains and evaluates the variant."""
    from llm_retriever.card import RetrieverCard
    from llm_retriever.variant_run import VariantInputs, run_variant

    metrics = run_variant(step.settings, VariantInputs(**step.inputs), **step.outputs)
    card = RetrieverCard.load(step.outputs["retriever"])
    step.metadata["retriever"] = {"method": card.method, "recipe": card.recipe, "card": card.digest()}
    step.metadata["evaluation"] = dict(metrics)


STEP = Step(
    name="run_variant",
    stage="tune",
    settings=VariantSettings,
    run=run,
    inputs={
        "backbone": "The output of fetch_backbone.",
        "collection": "The output of prepare_corpus.",
        "training_set": "The output of mine_negatives.",
        "bm25_runs": "The BM25 runs of mine_negatives.",
    },
    outputs={
        "evaluation": "Every figure (evaluation.json), the TREC runs of all systems, report.html and summary.md.",
        "retriever": "The retriever: card, merged model, and the adapter where one was trained.",
    },
)

if __name__ == "__main__":
    STEP.main()
