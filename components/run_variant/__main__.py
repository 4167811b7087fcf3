"""The program of the step `run_variant`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import VariantSettings


def run(step: StepRun[VariantSettings]) -> None:
    """Trains and evaluates the variant."""
    from components.run_variant.four_stages import VariantInputs, run_variant
    from llm_retriever.models.card import RetrieverCard

    data = {name: step.inputs["data"] / name for name in ("collection", "training_set", "bm25_runs")}
    run_variant(step.settings, VariantInputs(step.inputs["backbone"], **data), **step.outputs)
    card = RetrieverCard.load(step.outputs["retriever"])
    step.metadata["retriever"] = {"method": card.method, "recipe": card.recipe, "card": card.digest()}


STEP = Step(
    name="run_variant",
    stage="tune",
    images=("gpu",),
    settings=VariantSettings,
    run=run,
    restarts=True,
    memory_settings=("adapt_micro_batch_size", "tune_micro_batch_size", "tune_gradient_cache"),
    inputs={
        "backbone": "The output of fetch_backbone.",
        "data": "The output of mine_for_variants: collection/, training_set/ and bm25_runs/.",
    },
    outputs={
        "evaluation": "Every figure (evaluation.json), the TREC runs of all systems, report.html and summary.md.",
        "retriever": "The retriever: card, merged model, and the adapter where one was trained.",
    },
)

if __name__ == "__main__":
    STEP.main()
