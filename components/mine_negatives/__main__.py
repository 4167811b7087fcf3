"""The program of the step `mine_negatives`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import MiningSettings


def run(step: StepRun[MiningSettings]) -> None:
    """Mines the negatives and makes the sparse runs."""
    from llm_retriever.mining import negatives

    names = ("training_set", "bm25_runs", "statistics", "picture")
    manifest = negatives.mine(step.settings, step.inputs["collection"], *(step.outputs[name] for name in names))
    counts = manifest["counts"]
    step.metadata["picture"] = {name: counts[name] for name in ("queries", "examples", "negatives")}


STEP = Step(
    name="mine_negatives",
    stage="mine",
    images=("gpu", "cpu"),
    requests=("4", "8Gi"),
    gpus="0",
    settings=MiningSettings,
    run=run,
    inputs={"collection": "The output of prepare_corpus; it must have a split `train`."},
    outputs={
        "training_set": "Training queries with their positives, their hard negatives and where each was found.",
        "bm25_runs": "TREC runs of BM25 and of the further `baselines` for every other split, and Lucene's index.",
        "statistics": "What was mined, as Markdown: counts, ranks, scores, queries dropped and why.",
        "picture": "The same to look at: ranks, scores, overlap of the sources, likely false negatives.",
    },
    restarts=True,
)

if __name__ == "__main__":
    STEP.main()
