"""The program of the step `mine_for_variants`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import MiningSettings


def run(step: StepRun[MiningSettings]) -> None:
    """Mines, with the collection beside what was mined from it."""
    from llm_retriever import files, layouts
    from llm_retriever.mining import negatives

    outputs, collection = step.outputs, step.inputs["collection"]
    with files.atomic_directory(outputs["data"], layouts.MINED) as draft:
        files.link_tree(collection, draft / "collection")
        mined = (draft / "training_set", draft / "bm25_runs", outputs["statistics"], outputs["picture"])
        negatives.mine(step.settings, collection, *mined)


STEP = Step(
    name="mine_for_variants",
    stage="mine",
    settings=MiningSettings,
    run=run,
    restarts=True,
    inputs={"collection": "The output of prepare_corpus."},
    outputs={
        "data": "What all variants read: collection/, the output of prepare_corpus, and training_set/ and bm25_runs/, those of "
        "mine_negatives.",
        "statistics": "What was mined, as numbers of the run.",
        "picture": "What was mined, as a page to look at.",
    },
)

if __name__ == "__main__":
    STEP.main()
