"""Lays out the pipeline that compares variants: what they share is done once, and every variant has one pod.

Argo keeps a whole run in one object of Kubernetes, in which a task takes some 40 kB: so one task does all that is a
variant's own.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Markdown, Metrics

from components.compare import component as comparing
from components.definition import overridable, with_arguments, with_signature
from components.entrypoint import collected_name
from components.fetch_backbone import component as fetching
from components.fingerprint_sources import component as fingerprinting
from components.mine_for_variants import component as mining
from components.prepare_corpus import component as preparation
from components.run_variant import component as running
from llm_retriever.settings import Place
from llm_retriever.settings.options import OPTIONS, OVERRIDES
from pipelines import form
from pipelines.form import OF_A_VARIANT, POD_OF_A_VARIANT
from pipelines.pods import counted
from pipelines.stages import on_cpu, on_gpu, stage
from pipelines.variants import Variant, of_backbone, of_variant


class Compared(NamedTuple):
    """The results of a comparison."""

    comparison: Artifact
    report: HTML
    summary: Markdown
    metrics: Metrics


STAGES = ("corpus", "backbone", "mine", *OF_A_VARIANT, "compare")
FORM = form.signature(STAGES, OF_A_VARIANT).replace(return_annotation=Compared)
GPUS = f"{POD_OF_A_VARIANT}_gpus"


def comparison_of(variants: Sequence[Variant]) -> Any:
    """Builds the pipeline `compare-methods` for these variants."""

    def compare_methods(*values: Any) -> Compared:
        """Trains and evaluates several variants of a retriever on the same corpus, and tests their differences."""
        given = dict(zip(FORM.parameters, values, strict=True))
        return _Layout(given, variants).compared()

    meanings = form.meanings(FORM.parameters, OF_A_VARIANT)
    documented = with_arguments(meanings)(with_signature(compare_methods, FORM))
    return counted(dsl.pipeline(name="compare-methods")(documented))


def overrides_of(variants: Sequence[Variant], number: int) -> dict[str, dict[str, Any]]:
    """A variant's own settings, by stage of its pod.

    Args:
        variants: All of them.
        number: Position of the variant.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for name, value in of_variant(variants, number).items():
        known = form.flat_names()[name]
        if known.stages[0] in OF_A_VARIANT and name != GPUS:
            overrides.setdefault(known.stages[0], {})[known.key] = value
    return overrides


class _Layout:
    """The tasks of the pipeline; variants with the same backbone share its tasks."""

    def __init__(self, form: Mapping[str, Any], variants: Sequence[Variant]) -> None:
        self.given, self.variants = form, variants
        self.backbones: list[tuple[dict[str, Any], Any]] = []
        self.fingerprint = self._fingerprinted(form["backbone"])
        seen = {"source_fingerprint": self.fingerprint.outputs["corpus_fingerprint"]}
        corpus = on_cpu(preparation.prepare_corpus(**stage(form, "corpus", **seen)), "corpus")
        self.collection = corpus.outputs["collection"]
        mined = mining.mine_for_variants(collection=self.collection, **stage(form, "mine"))
        self.data = on_gpu(mined, "mine").outputs["data"]

    def compared(self) -> Compared:
        """Adds every variant's task, and the last step."""
        evaluations = {v.name: self._run(n).outputs["evaluation"] for n, v in enumerate(self.variants)}
        task = comparing.comparing(list(evaluations))(
            reference=self.given["compare_reference"],
            variants=json.dumps({v.name: v.description for v in self.variants}, ensure_ascii=False),
            **{collected_name("evaluation", name): artifact for name, artifact in evaluations.items()},
        )
        on_cpu(task, "compare")
        return Compared(**{name: task.outputs[name] for name in Compared._fields})

    def _run(self, number: int) -> Any:
        variant = self.variants[number]
        task = running.run_variant(
            backbone=self._backbone(variant),
            data=self.data,
            **{name: self.given[f"{name}_{OPTIONS}"] for name in OF_A_VARIANT},
            overrides=overrides_of(self.variants, number),
            gpus=variant.parameters.get(GPUS, self.given[GPUS]),
            checkpoint_uri=self.given[f"{form.RUN}_checkpoint_uri"],
        )
        return on_gpu(task, POD_OF_A_VARIANT).set_display_name(f"run-variant: {variant.name}")

    def _backbone(self, variant: Variant) -> Any:
        """Returns the backbone of a variant, fetched once for all that have the same."""
        own = of_backbone(variant)
        for known, artifact in self.backbones:
            if known == own:
                return artifact
        sharing = [other.name for other in self.variants if of_backbone(other) == own]
        task = self._fetched(own, f": {', '.join(sharing)}" if len(sharing) < len(self.variants) else "")
        self.backbones.append((own, task.outputs["backbone"]))
        return task.outputs["backbone"]

    def _fetched(self, own: Mapping[str, Any], sharing: str) -> Any:
        """Adds the task that fetches a backbone: by the form, but for what is given here by flat name."""
        looked = self.fingerprint
        if "backbone" in own:
            looked = self._fingerprinted(own["backbone"]).set_display_name(f"fingerprint-sources{sharing}")
        known = {name: form.flat_names()[name] for name in own}
        constants = {name: value for name, value in own.items() if known[name].place is not Place.OPTIONS}
        overrides = {known[name].key: value for name, value in own.items() if name not in constants}
        seen = {"source_fingerprint": looked.outputs["backbone_fingerprint"]}
        settings = stage({**self.given, **constants}, "backbone", **seen)
        component = fetching.fetch_backbone
        if overrides:
            component = functools.partial(overridable(component), **{OVERRIDES: overrides})
        task = component(collection=self.collection, **settings)
        return on_cpu(task.set_display_name(f"fetch-backbone{sharing}") if sharing else task, "backbone")

    def _fingerprinted(self, backbone: Any) -> Any:
        task = fingerprinting.fingerprint_sources(
            corpus_uri=self.given["corpus_uri"], backbone=backbone, published_uri="", recipe=""
        )
        task.set_caching_options(False)
        return on_cpu(task, "fingerprint")
