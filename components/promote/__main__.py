"""The program of the step `promote`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import PromotionSettings


def run(step: StepRun[PromotionSettings]) -> None:
    """Decides, and publishes if the rule says so."""
    from llm_retriever.metrics.conventions import REFRESHED_FOLDER
    from llm_retriever.promotion import promote

    inputs = step.inputs
    uri, promoted = promote(
        step.settings,
        inputs["evaluation"],
        inputs["retriever"],
        inputs["index"],
        step.outputs["decision"],
        inputs["evaluation"] / REFRESHED_FOLDER,
    )
    step.results.update(published_uri=uri, promoted=promoted)
    step.metadata["decision"] = {"promoted": promoted, "published_uri": uri}


STEP = Step(
    name="promote",
    stage="promote",
    cached=False,
    settings=PromotionSettings,
    run=run,
    inputs={
        "evaluation": "What evaluate found: evaluation.json and the runs.",
        "retriever": "The retriever that was evaluated.",
        "index": "The index that was evaluated.",
    },
    outputs={"decision": "The decision with its reasons, as Markdown."},
    results={
        "published_uri": "URI of the version that is in production afterwards; empty if none.",
        "promoted": "Whether that is the new one.",
    },
)

if __name__ == "__main__":
    STEP.main()
