"""How the pipeline that compares variants is laid out: what they share is done once, what they set is a constant."""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Markdown, Metrics

from components.adapt_backbone import component as adaptation
from components.build_index import component as indexing
from components.compare import component as comparing
from components.definition import with_arguments
from components.entrypoint import collected_name
from components.evaluate import component as evaluation
from components.fetch_backbone import component as fetching
from components.fingerprint_sources import component as fingerprinting
from components.mine_negatives import component as mining
from components.prepare_corpus import component as preparation
from components.tune_retriever import component as tuning
from llm_retriever.settings import (
    AdaptationSettings,
    BackboneSettings,
    CompareSettings,
    CorpusSettings,
    EvaluationSettings,
    IndexSettings,
    MiningSettings,
    TuningSettings,
)
from pipelines import encoding
from pipelines import train_retriever as training
from pipelines.stages import on_cpu, on_gpu, on_model_image, parameter_help, stage, with_store
from pipelines.variants import Variant

OWN_PARAMETERS = {"compare_reference": CompareSettings.reference, "compare_cpus": "1", "compare_memory": "4Gi"}


class Compared(NamedTuple):
    """What a comparison leaves behind."""

    comparison: Artifact
    report: HTML
    summary: Markdown
    metrics: Metrics


def form() -> inspect.Signature:
    """Parameters of the pipeline: those of train_retriever but for publishing, and those of the last step."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    taken = inspect.signature(training.train_retriever.pipeline_func).parameters.values()
    kept = [parameter for parameter in taken if not parameter.name.startswith("promote_")]
    own = [inspect.Parameter(name, kind, annotation=str, default=value) for name, value in OWN_PARAMETERS.items()]
    return inspect.Signature([*kept, *own], return_annotation=Compared)


def comparison_of(variants: Sequence[Variant]) -> Any:
    """The pipeline `compare-methods` for these variants."""
    signature = form()

    def compare_methods(*values: Any) -> Compared:
        """Trains and evaluates several variants of a retriever on the same corpus, and tests their differences."""
        given = dict(zip(signature.parameters, values, strict=True))
        return _Layout(given, variants).compared()

    compare_methods.__signature__ = signature  # type: ignore[attr-defined]
    documented = with_arguments({n: text for n, text in parameter_help().items() if n in signature.parameters})
    return dsl.pipeline(name="compare-methods")(documented(compare_methods))


class _Layout:
    """The tasks of the pipeline; variants that agree up to a stage share its task."""

    def __init__(self, given: dict[str, Any], variants: Sequence[Variant]) -> None:
        self.given, self.variants = given, variants
        self.shared: dict[Any, Any] = {}
        self.fingerprint = self._fingerprinted(given)
        fingerprint = self.fingerprint.outputs["corpus_fingerprint"]
        corpus = preparation.prepare_corpus(**stage(given, "corpus", CorpusSettings, source_fingerprint=fingerprint))
        with_store(on_cpu(corpus, given, "corpus"))
        self.collection = corpus.outputs["collection"]
        self.mined = mining.mine_negatives(collection=self.collection, **stage(given, "mine", MiningSettings))
        with_store(on_gpu(self.mined, given, "mine"))

    def compared(self) -> Compared:
        """Every variant's tasks, and the last step."""
        evaluations = {v.name: self._evaluated(v).outputs["evaluation"] for v in self.variants}
        task = comparing.comparing(list(evaluations))(
            reference=self.given["compare_reference"],
            variants=json.dumps({v.name: v.description for v in self.variants}, ensure_ascii=False),
            **{collected_name("evaluation", name): artifact for name, artifact in evaluations.items()},
        )
        on_cpu(task, self.given, "compare")
        return Compared(**{name: task.outputs[name] for name in Compared._fields})

    def _once(self, component: str, variant: Variant, stages: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """The task of `component` for all variants that agree on the parameters of these stages."""
        key = (component, self._key(variant, stages))
        if key not in self.shared:
            sharing = [other.name for other in self.variants if self._key(other, stages) == key[1]]
            self.shared[key] = make()
            if len(sharing) < len(self.variants):
                self.shared[key].set_display_name(f"{component}: {', '.join(sharing)}")
        return self.shared[key]

    def _key(self, variant: Variant, stages: tuple[str, ...]) -> Any:
        return tuple(sorted((n, v) for n, v in variant.parameters.items() if n.split("_")[0] in stages))

    def _fingerprinted(self, given: dict[str, Any]) -> Any:
        task = fingerprinting.fingerprint_sources(
            corpus_uri=given["corpus_uri"],
            backbone=given["backbone"],
            parts=given["index_parts"],
            published_uri="",
            recipe="",
        )
        task.set_caching_options(False)
        return with_store(on_cpu(task, given, "compare"))

    def _fetched(self, variant: Variant) -> Any:
        given = self.given | variant.parameters

        def make() -> Any:
            looked = self.fingerprint
            if "backbone" in variant.parameters:
                looked = self._once("fingerprint-sources", variant, ("backbone",), lambda: self._fingerprinted(given))
            fingerprint = looked.outputs["backbone_fingerprint"]
            settings = stage(given, "backbone", BackboneSettings, source_fingerprint=fingerprint)
            task = fetching.fetch_backbone(collection=self.collection, **settings)
            return with_store(on_model_image(task, given, "backbone"))

        return self._once("fetch-backbone", variant, ("backbone",), make)

    def _adapted(self, variant: Variant) -> Any:
        given = self.given | variant.parameters
        backbone = self._fetched(variant).outputs["backbone"]

        def make() -> Any:
            task = adaptation.adapt_backbone(
                backbone=backbone,
                collection=self.collection,
                training_set=self.mined.outputs["training_set"],
                **stage(given, "adapt", AdaptationSettings),
            )
            return with_store(on_gpu(task, given, "adapt"))

        return self._once("adapt-backbone", variant, ("backbone", "adapt"), make)

    def _tuned(self, variant: Variant) -> Any:
        given = self.given | variant.parameters
        adapted = self._adapted(variant).outputs["adapted"]

        def make() -> Any:
            task = tuning.tune_retriever(
                adapted=adapted,
                collection=self.collection,
                training_set=self.mined.outputs["training_set"],
                **stage(given, "tune", TuningSettings),
            )
            return with_store(on_gpu(task, given, "tune"))

        return self._once("tune-retriever", variant, ("backbone", "adapt", "tune"), make)

    def _indexed(self, variant: Variant) -> Any:
        given = self.given | variant.parameters
        retriever, stages = self._tuned(variant).outputs["retriever"], ("backbone", "adapt", "tune", "index")
        numbers = self.fingerprint.outputs["part_numbers"]
        encoded = self._once(
            "encode-in-parts",
            variant,
            stages,
            lambda: encoding.encoded_in_parts(given, numbers, retriever, self.collection),
        )

        def make() -> Any:
            settings = stage(given, "index", IndexSettings)
            task = indexing.build_index(retriever=retriever, collection=self.collection, **settings)
            return with_store(on_gpu(task, given, "index")).after(encoded)

        return self._once("build-index", variant, stages, make)

    def _evaluated(self, variant: Variant) -> Any:
        """The evaluation; the un-tuned backbone is left to its first variant, and published encoders to the first of all."""
        given = self.given | variant.parameters
        alike = [v for v in self.variants if self._key(v, ("backbone",)) == self._key(variant, ("backbone",))]
        first = next((v for v in alike if not _reads_new_tokens(v)), alike[0])
        if variant is not first:
            given["eval_untuned_passages"] = 0
        if variant is not self.variants[0]:
            given["eval_encoders"] = ""
        task = evaluation.evaluate(
            index=self._indexed(variant).outputs["index"],
            retriever=self._tuned(variant).outputs["retriever"],
            backbone=self._fetched(variant).outputs["backbone"],
            adapted=self._adapted(variant).outputs["adapted"],
            collection=self.collection,
            bm25_runs=self.mined.outputs["bm25_runs"],
            **stage(given, "eval", EvaluationSettings, production_uri="", production_shards_uri=""),
        )
        return with_store(on_gpu(task, given, "eval")).set_display_name(f"evaluate: {variant.name}")


def _reads_new_tokens(variant: Variant) -> bool:
    """Whether a variant is read out at tokens that an un-tuned backbone does not have."""
    return variant.parameters.get("tune_method") == "llama2vec" or variant.parameters.get("tune_embedding") == "new4"
