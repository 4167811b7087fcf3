"""The part of both pipelines that encodes a large corpus on several pods, before `build_index` makes one index of it.

It is a pipeline of its own because a loop cannot run over another step's output where pipelines run locally; its loop runs
over a parameter. The pods put their shards to `index_shards_uri`; what links them to `build_index` is that place alone, so
nothing large travels through Kubeflow, and `build_index` encodes whatever is not there.
"""

import inspect
from collections.abc import Mapping
from typing import Any, List  # noqa: UP035 - Kubeflow takes the items of `list[int]` for texts

from kfp import dsl
from kfp.dsl import Dataset, Input, Model

from components.encode_corpus import component as encoding
from llm_retriever.settings import PartSettings
from pipelines.stages import on_gpu, stage, with_store


@dsl.pipeline(name="encode-in-parts")
def encode_in_parts(
    retriever: Input[Model],
    collection: Input[Dataset],
    part_numbers: List[int],  # noqa: UP006
    index_parts: int,
    index_passage_length: int,
    index_batch_tokens: int,
    index_shard_passages: int,
    index_dtype: str,
    index_shards_uri: str,
    index_gpus: int,
    index_cpus: str,
    index_memory: str,
    run_precision: str,
    run_gpu_type: str,
    run_gpu_node_selector: dict,
    run_gpu_tolerations: list,
    run_gpu_image: str,
) -> None:
    """Encodes the parts of a corpus at the same time, one pod each; does nothing where there is only one part."""
    given = dict(locals())
    with dsl.If(index_parts > 1, "several-parts"), dsl.ParallelFor(part_numbers, "parts") as part:
        task = encoding.encode_corpus(
            retriever=retriever, collection=collection, **stage(given, "index", PartSettings, part=part)
        )
        with_store(on_gpu(task, given, "index"))


def encoded_in_parts(given: Mapping[str, Any], part_numbers: Any, retriever: Any, collection: Any) -> dsl.PipelineTask:
    """The task of this pipeline inside another one.

    Args:
        given: The parameters of the other pipeline.
        part_numbers: The list that `fingerprint_sources` made of `index_parts`.
        retriever: Encodes.
        collection: The corpus.
    """
    names = inspect.signature(encode_in_parts.pipeline_func).parameters
    own = {name: given[name] for name in names if name.split("_")[0] in ("index", "run")}
    return encode_in_parts(retriever=retriever, collection=collection, part_numbers=part_numbers, **own)
