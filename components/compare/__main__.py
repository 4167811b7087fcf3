"""The program of the step `compare`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import CompareSettings


def run(step: StepRun[CompareSettings]) -> None:
    """Compares the evaluations and writes tables and report."""
    from llm_retriever import files
    from llm_retriever.evaluation.comparison import compare_evaluations

    written = {name: step.outputs[name] for name in ("comparison", "report", "summary")}
    metrics = compare_evaluations(step.settings, step.collected["evaluation"], **written)
    files.write_json(step.outputs["metrics"], metrics)
    step.metadata["metrics"] = dict(metrics)


STEP = Step(
    name="compare",
    stage="compare",
    settings=CompareSettings,
    run=run,
    collected={"evaluation": "The outputs evaluation of several evaluate steps, one for each variant."},
    outputs={
        "comparison": "Every figure (comparison.json).",
        "report": "The tables and tests, as a page to look at.",
        "summary": "The tables in Markdown.",
        "metrics": "The figures of every variant, as numbers of the run.",
    },
)

if __name__ == "__main__":
    STEP.main()
