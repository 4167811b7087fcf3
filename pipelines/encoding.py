"""Encodes a large corpus on several pods, before `build_index` makes one index of it.

The pods put their shards to `index_shards_uri`; what links them to `build_index` is that place alone, so nothing large travels
through Kubeflow, and `build_index` encodes whatever is not there. It is a pipeline of its own, because a step cannot wait for
the tasks of a loop.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Model

from components.definition import with_signature
from components.encode_corpus import component as encoding
from llm_retriever.settings import PartSettings
from pipelines.form import signature
from pipelines.stages import on_gpu, stage

_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD
_FORM = {name: p for name, p in signature(["index"]).parameters.items() if name != "index_kind"}


def encode_in_parts(parts: int) -> Any:
    """Builds a pipeline that encodes the parts of a corpus at the same time, one pod each; None where there is only one.

    Args:
        parts: Their number.
    """
    if parts == 1:
        return None
    artifacts = {"retriever": Input[Model], "collection": Input[Dataset]}
    taken = [inspect.Parameter(name, _KIND, annotation=kind) for name, kind in artifacts.items()]
    taken += [parameter.replace(default=inspect.Parameter.empty) for parameter in _FORM.values()]

    def encode(*values: Any) -> None:
        form = dict(zip([*artifacts, *_FORM], values, strict=True))
        with dsl.ParallelFor(list(range(parts)), "parts") as part:
            settings = stage(form, "index", PartSettings, part=part, parts=parts)
            read = {name: form[name] for name in artifacts}
            on_gpu(encoding.encode_corpus(**read, **settings), "index")

    return dsl.pipeline(name="encode-in-parts")(with_signature(encode, inspect.Signature(taken)))


def encoded_in_parts(form: Mapping[str, Any], encode: Any, retriever: Any, collection: Any) -> list[dsl.PipelineTask]:
    """Adds the task of this pipeline inside another one; none where one pod encodes everything.

    Args:
        form: The parameters of the other pipeline.
        encode: The pipeline of `encode_in_parts`, which must be called outside of pipelines.
        retriever: Encodes.
        collection: The corpus.
    """
    own = {name: form[name] for name in _FORM}
    return [encode(retriever=retriever, collection=collection, **own)] if encode else []
