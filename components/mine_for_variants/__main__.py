"""The program of the step `mine_for_variants`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import MiningSettings


def run(step: StepRun[MiningSettings]) -> None:
    """Mines, with the collection beside what was mined from it."""
    import shutil

    from llm_retriever import files
    from llm_retriever.files import layouts
    from llm_retriever.mining import negatives

    outputs, collection = step.outputs, step.inputs["collection"]
    # A place that outlives a crash: an encoder's vectors beside the training set are what the next attempt goes on from.
    mined = outputs["data"].with_name(f".{outputs['data'].name}.mined")
    training_set, runs = mined / "training_set", mined / "bm25_runs"
    negatives.mine(step.settings, collection, training_set, runs, outputs["statistics"], outputs["picture"])
    with layouts.MINED.output(outputs["data"]) as draft:
        for name, path in (("collection", collection), ("training_set", training_set), ("bm25_runs", runs)):
            files.link_tree(path, draft / name)
    shutil.rmtree(mined)


STEP = Step(
    name="mine_for_variants",
    stage="mine",
    images=("gpu",),
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
