"""The program of the step `evaluate`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import EvaluationSettings


def run(step: StepRun[EvaluationSettings]) -> None:
    """Evaluates the retriever and writes the report."""
    from llm_retriever import files
    from llm_retriever.evaluation.evaluate import evaluate

    written = {name: step.outputs[name] for name in ("evaluation", "report", "summary")}
    metrics = evaluate(step.settings, **step.inputs, **written)
    files.write_json(step.outputs["metrics"], metrics)
    step.metadata["metrics"] = dict(metrics)


STEP = Step(
    name="evaluate",
    stage="eval",
    images=("gpu",),
    requests=("8", "32Gi"),
    settings=EvaluationSettings,
    run=run,
    inputs={
        "index": "The output of build_index.",
        "retriever": "The output of tune_retriever.",
        "backbone": "The output of fetch_backbone: the un-tuned baseline.",
        "adapted": "The output of adapt_backbone: re-ranks by query likelihood, and shows where attention goes.",
        "collection": "The output of prepare_corpus: queries and judgments.",
        "bm25_runs": "The BM25 runs of mine_negatives.",
    },
    outputs={
        "evaluation": "Every figure (evaluation.json), the TREC runs of all systems, and in refreshed/ the index of the version "
        "in production, brought to this collection, where its own is of another.",
        "report": "The report, as a page to look at.",
        "summary": "The result in a few lines of Markdown.",
        "metrics": "The figures, as numbers of the run.",
    },
    restarts=True,
)

if __name__ == "__main__":
    STEP.main()
