"""How the pipeline that compares variants is laid out: what they share is done once, what they set is a constant."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Markdown, Metrics

from components.adapt_backbone import component as adaptation
from components.build_index import component as indexing
from components.compare import component as comparing
from components.definition import overridable, with_arguments, with_signature
from components.entrypoint import collected_name
from components.evaluate import component as evaluation
from components.fetch_backbone import component as fetching
from components.fingerprint_sources import component as fingerprinting
from components.mine_negatives import component as mining
from components.prepare_corpus import component as preparation
from components.tune_retriever import component as tuning
from llm_retriever.settings import Place
from llm_retriever.settings.options import OVERRIDES
from pipelines import form
from pipelines.form import SETTINGS
from pipelines.pods import counted
from pipelines.stages import on_cpu, on_gpu, stage
from pipelines.variants import Variant

STAGES = tuple(name for name in SETTINGS if name != "promote")


class Compared(NamedTuple):
    """What a comparison leaves behind."""

    comparison: Artifact
    report: HTML
    summary: Markdown
    metrics: Metrics


FORM = form.signature(STAGES).replace(return_annotation=Compared)


def comparison_of(variants: Sequence[Variant], parts: int = 1) -> Any:
    """The pipeline `compare-methods` for these variants.

    Args:
        variants: What is compared.
        parts: Pods that encode the corpus at the same time, for every variant.
    """

    def compare_methods(*values: Any) -> Compared:
        """Trains and evaluates several variants of a retriever on the same corpus, and tests their differences."""
        given = dict(zip(FORM.parameters, values, strict=True))
        return _Layout(given, variants, parts).compared()

    documented = with_arguments(form.meanings(FORM.parameters))(with_signature(compare_methods, FORM))
    return counted(dsl.pipeline(name="compare-methods")(documented))


class _Layout:
    """The tasks of the pipeline; variants that agree up to a stage share its task."""

    def __init__(self, given: dict[str, Any], variants: Sequence[Variant], parts: int) -> None:
        self.given, self.variants, self.parts = given, variants, parts
        self.shared: dict[Any, Any] = {}
        self.fingerprint = self._fingerprinted(given["backbone"])
        fingerprint = self.fingerprint.outputs["corpus_fingerprint"]
        corpus = preparation.prepare_corpus(**stage(given, "corpus", source_fingerprint=fingerprint))
        on_cpu(corpus, "corpus")
        self.collection = corpus.outputs["collection"]
        self.mined = mining.mine_negatives(collection=self.collection, **stage(given, "mine"))
        on_gpu(self.mined, "mine")

    def compared(self) -> Compared:
        """Every variant's tasks, and the last step."""
        evaluations = {v.name: self._evaluated(v).outputs["evaluation"] for v in self.variants}
        task = comparing.comparing(list(evaluations))(
            reference=self.given["compare_reference"],
            variants=json.dumps({v.name: v.description for v in self.variants}, ensure_ascii=False),
            **{collected_name("evaluation", name): artifact for name, artifact in evaluations.items()},
        )
        on_cpu(task, "compare")
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

    def _task(
        self, component: Any, prefix: str, own: Mapping[str, Any], artifacts: Mapping[str, Any], **seen: Any
    ) -> Any:
        """The task of a step: the form's values, but for what the variant sets."""
        flat = {name: value for name, value in own.items() if name in form.flat_names()}
        chosen = [form.flat_names()[name] for name in flat if prefix in form.flat_names()[name].stages]
        constants = {known.name: flat[known.name] for known in chosen if known.place in (Place.FORM, Place.RUN)}
        settings = stage({**self.given, **constants}, prefix, **seen)
        overrides = {known.key: flat[known.name] for known in chosen if known.place is Place.OPTIONS}
        if overrides:
            return overridable(component)(**artifacts, **settings, **{OVERRIDES: overrides})
        return component(**artifacts, **settings)

    def _fingerprinted(self, backbone: Any) -> Any:
        task = fingerprinting.fingerprint_sources(
            corpus_uri=self.given["corpus_uri"], backbone=backbone, published_uri="", recipe=""
        )
        task.set_caching_options(False)
        return on_cpu(task, "fingerprint")

    def _fetched(self, variant: Variant) -> Any:
        own = variant.parameters

        def make() -> Any:
            looked = self.fingerprint
            if "backbone" in own:
                make_fingerprint = functools.partial(self._fingerprinted, own["backbone"])
                looked = self._once("fingerprint-sources", variant, ("backbone",), make_fingerprint)
            seen = {"source_fingerprint": looked.outputs["backbone_fingerprint"]}
            artifacts = {"collection": self.collection}
            return on_cpu(self._task(fetching.fetch_backbone, "backbone", own, artifacts, **seen), "backbone")

        return self._once("fetch-backbone", variant, ("backbone",), make)

    def _adapted(self, variant: Variant) -> Any:
        artifacts = {"backbone": self._fetched(variant).outputs["backbone"], **self._training_data()}

        def make() -> Any:
            task = self._task(adaptation.adapt_backbone, "adapt", variant.parameters, artifacts)
            return on_gpu(task, "adapt")

        return self._once("adapt-backbone", variant, ("backbone", "adapt"), make)

    def _tuned(self, variant: Variant) -> Any:
        artifacts = {"adapted": self._adapted(variant).outputs["adapted"], **self._training_data()}

        def make() -> Any:
            task = self._task(tuning.tune_retriever, "tune", variant.parameters, artifacts)
            return on_gpu(task, "tune")

        return self._once("tune-retriever", variant, ("backbone", "adapt", "tune"), make)

    def _training_data(self) -> dict[str, Any]:
        return {"collection": self.collection, "training_set": self.mined.outputs["training_set"]}

    def _gpus(self, variant: Variant, prefix: str) -> Any:
        return variant.parameters.get(f"{prefix}_gpus", self.given[f"{prefix}_gpus"])

    def _indexed(self, variant: Variant) -> Any:
        stages = ("backbone", "adapt", "tune", "index")
        artifacts = {"retriever": self._tuned(variant).outputs["retriever"], "collection": self.collection}

        def make() -> Any:
            task = self._task(indexing.build_index, "index", variant.parameters, artifacts)
            return on_gpu(task, "index")

        return self._once("build-index", variant, stages, make)

    def _evaluated(self, variant: Variant) -> Any:
        """The evaluation; the un-tuned backbone is left to its first variant, and published encoders to the first of all."""
        own = dict(variant.parameters)
        alike = [v for v in self.variants if self._key(v, ("backbone",)) == self._key(variant, ("backbone",))]
        first = next((v for v in alike if not _reads_new_tokens(v)), alike[0])
        if variant is not first:
            own["eval_untuned_passages"] = 0
        if variant is not self.variants[0]:
            own["eval_encoders"] = ""
        artifacts = {
            "index": self._indexed(variant).outputs["index"],
            "retriever": self._tuned(variant).outputs["retriever"],
            "backbone": self._fetched(variant).outputs["backbone"],
            "adapted": self._adapted(variant).outputs["adapted"],
            "collection": self.collection,
            "bm25_runs": self.mined.outputs["bm25_runs"],
        }
        task = self._task(evaluation.evaluate, "eval", own, artifacts, production_uri="", production_shards_uri="")
        return on_gpu(task, "eval").set_display_name(f"evaluate: {variant.name}")


def _reads_new_tokens(variant: Variant) -> bool:
    """Whether a variant is read out at tokens that an un-tuned backbone does not have."""
    return variant.parameters.get("tune_method") == "llama2vec" or variant.parameters.get("tune_embedding") == "new4"
