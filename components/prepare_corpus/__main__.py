"""The program of the step `prepare_corpus`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import CorpusSettings


def run(step: StepRun[CorpusSettings]) -> None:
    """Prepares the collection and tells what is in it."""
    from llm_retriever import files
    from llm_retriever.data import preparation
    from llm_retriever.data.collection_report import statistics_markdown

    manifest = preparation.prepare(step.settings, step.outputs["collection"])
    files.write_text(step.outputs["statistics"], statistics_markdown(manifest))
    counts = {name: manifest["counts"][name] for name in ("passages", "queries", "judgments")}
    step.metadata["statistics"] = {**counts, "fingerprint": manifest["fingerprint"]}


STEP = Step(
    name="prepare_corpus",
    stage="corpus",
    requests=("2", "8Gi"),
    settings=CorpusSettings,
    run=run,
    outputs={
        "collection": "The collection: passages, queries, judgments and a manifest.",
        "statistics": "What is in the collection and what was changed on the way, as Markdown.",
    },
)

if __name__ == "__main__":
    STEP.main()
