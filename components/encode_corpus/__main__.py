"""The program of the step `encode_corpus`."""

from __future__ import annotations

from components.entrypoint import Step, StepRun
from llm_retriever.settings import IndexSettings, PartSettings


def run(step: StepRun[PartSettings]) -> None:
    """Encodes the part's shards and puts them where build_index finds them."""
    from llm_retriever.indexing.corpus import encode_part

    inputs = step.inputs
    content = encode_part(inputs["retriever"], inputs["collection"], step.outputs["encoded"], step.settings)
    shown = {name: content[name] for name in ("part", "parts", "card", "collection", "shards_uri")}
    step.metadata["encoded"] = {**shown, **content["timings"], "shards": len(content["shards"])}


STEP = Step(
    name="encode_corpus",
    stage="index",
    images=("gpu",),
    settings=PartSettings,
    stage_settings=IndexSettings,
    run=run,
    inputs={
        "retriever": "Retriever from tune_retriever.",
        "collection": "Collection from prepare_corpus.",
    },
    outputs={"encoded": "part.json: which shards were encoded, where they are, and what they cost."},
    restarts=True,
)

if __name__ == "__main__":
    STEP.main()
