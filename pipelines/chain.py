"""The steps that turn a corpus into a retriever, one after the other: the body of `train_retriever` and `retrain`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl

from components.adapt_backbone import component as adaptation
from components.build_index import component as indexing
from components.evaluate import component as evaluation
from components.fetch_backbone import component as fetching
from components.fingerprint_sources import component as fingerprinting
from components.mine_negatives import component as mining
from components.prepare_corpus import component as preparation
from components.promote import component as promotion
from components.tune_retriever import component as tuning
from pipelines import encoding
from pipelines.stages import on_cpu, on_gpu, stage


class Seen(NamedTuple):
    """Outputs of `fingerprint_sources`, of these names, as parameters of the steps behind it."""

    corpus_fingerprint: Any
    backbone_fingerprint: Any
    fingerprint: Any
    changed: Any
    production_uri: Any


def looked_at(given: Mapping[str, Any], published_uri: Any = "", recipe: Any = "") -> Seen:
    """Adds the step that looks at the sources and at production, in every run anew.

    Args:
        given: The pipeline's parameters.
        published_uri: Where what is in production is published.
        recipe: What else decides what the run makes, as text.
    """
    task = fingerprinting.fingerprint_sources(
        corpus_uri=given["corpus_uri"], backbone=given["backbone"], published_uri=published_uri, recipe=recipe
    )
    task.set_caching_options(False)
    on_cpu(task, "fingerprint")
    return Seen(*(task.outputs[name] for name in Seen._fields))


def trained(given: Mapping[str, Any], seen: Seen, encode: Any) -> None:
    """Adds all steps behind `fingerprint_sources`.

    Args:
        given: The pipeline's parameters.
        seen: What that step found.
        encode: The pipeline that encodes the corpus on several pods; None = build_index does.
    """
    corpus = preparation.prepare_corpus(**stage(given, "corpus", source_fingerprint=seen.corpus_fingerprint))
    on_cpu(corpus, "corpus")
    collection = corpus.outputs["collection"]

    fetched = fetching.fetch_backbone(
        collection=collection, **stage(given, "backbone", source_fingerprint=seen.backbone_fingerprint)
    )
    on_cpu(fetched, "backbone")

    mined = mining.mine_negatives(collection=collection, **stage(given, "mine"))
    on_gpu(mined, "mine")

    adapted, tuned = _model(given, fetched.outputs["backbone"], collection, mined.outputs["training_set"])
    retriever = tuned.outputs["retriever"]

    encoded = encoding.encoded_in_parts(given, encode, retriever, collection)
    built = indexing.build_index(retriever=retriever, collection=collection, **stage(given, "index"))
    on_gpu(built, "index").after(*encoded)

    production = {"production_uri": seen.production_uri, "production_shards_uri": given["index_shards_uri"]}
    judged = evaluation.evaluate(
        index=built.outputs["index"],
        retriever=retriever,
        backbone=fetched.outputs["backbone"],
        adapted=adapted.outputs["adapted"],
        collection=collection,
        bm25_runs=mined.outputs["bm25_runs"],
        **stage(given, "eval", **production),
    )
    on_gpu(judged, "eval")
    _promoted(given, seen, tuned, built, judged)


def _model(given: Mapping[str, Any], backbone: Any, collection: Any, pairs: Any) -> tuple[Any, Any]:
    """Adds the tasks of both training stages."""
    adapted = adaptation.adapt_backbone(
        backbone=backbone, collection=collection, training_set=pairs, **stage(given, "adapt")
    )
    on_gpu(adapted, "adapt")
    tuned = tuning.tune_retriever(
        adapted=adapted.outputs["adapted"], collection=collection, training_set=pairs, **stage(given, "tune")
    )
    return adapted, on_gpu(tuned, "tune")


def _promoted(
    given: Mapping[str, Any], seen: Seen, tuned: dsl.PipelineTask, built: dsl.PipelineTask, judged: dsl.PipelineTask
) -> None:
    retriever, index = tuned.outputs["retriever"], built.outputs["index"]
    decided = promotion.promote(
        evaluation=judged.outputs["evaluation"],
        retriever=retriever,
        index=index,
        **stage(given, "promote", source_fingerprint=seen.fingerprint),
    )
    decided.set_caching_options(False)
    on_cpu(decided, "promote")
