"""The steps that turn a corpus into a retriever, one after the other: the body of `train_retriever` and `retrain`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from components.fingerprint_sources.component import fingerprint_sources
from pipelines import encoding
from pipelines.stages import on_cpu, placed, stage
from pipelines.steps import CHAIN, STEPS, component_of


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
    task = fingerprint_sources(
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
    made: dict[str, Any] = {}
    for name in CHAIN:
        step, artifacts = STEPS[name], {artifact: made[artifact] for artifact in STEPS[name].inputs}
        encoded = encoding.encoded_in_parts(given, encode, **artifacts) if name == "build_index" else []
        answers = _answers(given, seen).get(step.stage, {})
        task = placed(component_of(name)(**artifacts, **stage(given, step.stage, **answers)), step.stage)
        task.after(*encoded)
        if not step.cached:
            task.set_caching_options(False)
        made |= task.outputs


def _answers(given: Mapping[str, Any], seen: Seen) -> dict[str, dict[str, Any]]:
    """Settings of steps that follow from what was looked at, by stage."""
    production = {"production_uri": seen.production_uri, "production_shards_uri": given["index_shards_uri"]}
    return {
        "corpus": {"source_fingerprint": seen.corpus_fingerprint},
        "backbone": {"source_fingerprint": seen.backbone_fingerprint},
        "eval": production,
        "promote": {"source_fingerprint": seen.fingerprint},
    }
