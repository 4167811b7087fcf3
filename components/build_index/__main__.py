"""The program of the step `build_index`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import IndexSettings


def run(step: StepRun[IndexSettings]) -> None:
    """Encodes the collection with the retriever and writes the index."""
    from llm_retriever.indexing.build import build_index

    inputs, index = step.inputs, step.outputs["index"]
    build_index(inputs["retriever"], inputs["collection"], index, step.settings)


STEP = Step(
    name="build_index",
    stage="index",
    images=("gpu",),
    requests=("8", "32Gi"),
    settings=IndexSettings,
    run=run,
    inputs={
        "retriever": "Retriever from tune_retriever.",
        "collection": "Collection from prepare_corpus.",
    },
    outputs={"index": "manifest.json, and the shards of vectors and passage ids unless they are at shards_uri."},
    restarts=True,
)

if __name__ == "__main__":
    STEP.main()
