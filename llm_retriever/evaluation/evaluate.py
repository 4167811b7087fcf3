"""The step `evaluate`: measures every system on every split, tests the differences, and reports them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.evaluation import efficiency, provenance
from llm_retriever.evaluation.baselines import Baselines, Task, add_lexical, add_untuned, tokens_of_all_copies
from llm_retriever.evaluation.cut_texts import note_cuts
from llm_retriever.evaluation.evaluation_run import Bench
from llm_retriever.evaluation.hybrid import Hybrid
from llm_retriever.evaluation.optional_analyses import Paths, check_analyses, run_analyses
from llm_retriever.evaluation.production import Added, Production
from llm_retriever.evaluation.splits import ZERO_SHOT, in_order
from llm_retriever.evaluation.systems import BM25Runs, DenseSystem, check_fingerprint
from llm_retriever.evaluation.zero_shot import ZeroShot
from llm_retriever.files import layouts
from llm_retriever.files.names import slug
from llm_retriever.indexing.index import Index
from llm_retriever.metrics.content import sealed
from llm_retriever.metrics.conventions import (
    ALPHA,
    EVALUATION_FILE,
    HYBRID,
    REFRESHED_FOLDER,
    RETRIEVER,
    RUNS_DIRECTORY,
)
from llm_retriever.metrics.measures import parse_measures
from llm_retriever.metrics.significance import DRAWS, FAMILY
from llm_retriever.models.card import RetrieverCard, load_lineage, weights_digest
from llm_retriever.reporting import report as report_page
from llm_retriever.reporting import verdict
from llm_retriever.settings import EvaluationSettings, is_unset

FORMAT = 1


def evaluate(
    settings: EvaluationSettings,
    *,
    index: Path,
    retriever: Path,
    backbone: Path,
    collection: Path,
    bm25_runs: Path,
    evaluation: Path,
    report: Path,
    summary: Path,
    refreshed: Path | None = None,
    adapted: Path | None = None,
) -> dict[str, float]:
    """Evaluates a retriever against BM25, its un-tuned backbone and what else the settings name, on all splits.

    The version in production, if `production_uri` names one, is a baseline in an index that is brought to this collection.

    Args:
        settings: What to measure, and on what.
        index: Output of build_index.
        retriever: Output of tune_retriever.
        backbone: Output of fetch_backbone.
        collection: Output of prepare_corpus.
        bm25_runs: Output of mine_negatives.
        evaluation: Directory to write: `evaluation.json` and `runs/<split>/<system>.trec`.
        report: HTML file to write.
        summary: Markdown file to write.
        refreshed: Directory to write: `refreshed.json`, and `index/` where the index of the version in production was of
            another collection; None = `refreshed/` in the evaluation.
        adapted: Output of adapt_backbone, which query-likelihood re-ranking and the attention analysis read.

    Returns:
        Flat finite numbers: ``test_ndcg_at_10`` of the retriever, ``test_ndcg_at_10_bm25`` of a baseline, and so on.

    Raises:
        InputError: A setting or an input cannot be used; nothing is written.
    """
    corpus = Collection.open(collection)
    with (
        layouts.EVALUATION.output(evaluation) as draft,
        layouts.REFRESHED.output(refreshed or draft / REFRESHED_FOLDER) as renewed,
        tempfile.TemporaryDirectory(prefix="zero-shot-") as scratch,
    ):
        paths = Paths(index, retriever, backbone, adapted, collection, bm25_runs, draft, renewed)
        bench = Bench(settings, corpus, draft / RUNS_DIRECTORY)
        zero_shot = ZeroShot(settings, corpus.splits)
        card = RetrieverCard.load(retriever)
        _check_backbone(backbone, card)
        check_analyses(settings, card, paths)
        content = _content(bench, zero_shot, card, paths, Path(scratch))
        files.write_json(draft / EVALUATION_FILE, sealed(content))
        examples = {split.name: bench.examples(split) for split in bench.splits} | zero_shot.examples
        files.write_text(report, report_page.render(content, corpus.manifest, examples))
        files.write_text(summary, verdict.summary_markdown(content))
    return flat_metrics(content)


def _content(bench: Bench, zero_shot: ZeroShot, card: RetrieverCard, paths: Paths, scratch: Path) -> dict[str, Any]:
    """Builds the content of `evaluation.json`, in which the collection's own splits come first."""
    settings, runs = bench.settings, BM25Runs(paths.bm25_runs, bench.corpus)
    others = Baselines(settings, runs.others)
    # Whatever is wrong with an input shows before the hours of encoding.
    uris = settings.production_uri, settings.production_shards_uri
    production = Production(*uris) if settings.production_uri else None
    hybrid = Hybrid(bench, runs, scratch)
    zero_shot.prepare(scratch)
    others.check_runs(((split.name, split.qrels) for split in bench.splits), zero_shot.judged())
    tuned = _tuned_system(settings, paths, card, bench)
    cuts = note_cuts(tuned, bench.corpus, bench.splits)
    bench.add_dense(RETRIEVER, tuned, **provenance.description(card))
    zero_shot.add_retriever(tuned, bench.runs)
    hybrid.search(tuned)
    tuned.release()  # One model at a time: each system loads its own.
    add_lexical(bench, runs)
    before = production.add(bench, paths.refreshed, paths.retriever) if production else Added()
    before.refreshed.save(paths.refreshed)
    untuned_seconds = add_untuned(bench, paths.backbone, tuned, card)
    encoder_seconds = others.add([Task(bench), *zero_shot.tasks()])
    hybrid.add(task.bench for task in zero_shot.tasks())
    if production:
        production.add_hybrid(bench)
    zero_shot.conclude()
    hybrid.publish(paths.draft / HYBRID, card.digest())
    costs = provenance.costs(card, tuned, untuned_seconds, encoder_seconds, before.seconds)
    extras = run_analyses(settings, bench, card, paths)
    return {
        "format": FORMAT,
        "collection": bench.corpus.fingerprint,
        "corpus": provenance.corpus_name(bench.corpus),
        "primary_metric": bench.primary.name,
        "measures": [measure.name for measure in bench.measures],
        "depth": settings.depth,
        "significance": {"level": ALPHA, "correction": "Hommel", "family": FAMILY, "draws": DRAWS},
        "splits": bench.results() | zero_shot.splits,
        **zero_shot.content(),
        **hybrid.content(),
        "notes": bench.notes + cuts + zero_shot.notes,
        "card": card.digest(),
        "method": card.method,
        "recipe": card.recipe,
        "systems": in_order(zero_shot.systems | bench.systems),
        "costs": costs,
        "efficiency": efficiency.table(card, tuned),
        "lineage": dataclasses.asdict(card.lineage),
        "versions": provenance.versions(),
        **before.content(),
        **extras,
    }


def _check_backbone(backbone: Path, card: RetrieverCard) -> None:
    lineage = load_lineage(backbone)
    if lineage.digest != card.lineage.digest:
        raise InputError(
            f"not the backbone that the retriever was made from ({card.lineage.source})",
            file=backbone,
            field="backbone",
            hint="give the output of fetch_backbone of the same run",
        )
    if weights_digest(backbone) != lineage.digest:
        raise InputError("the weights are not those that it was fetched with", file=backbone, hint="fetch it again")


def _tuned_system(settings: EvaluationSettings, paths: Paths, card: RetrieverCard, bench: Bench) -> DenseSystem:
    opened = Index.open(paths.index, card)
    check_fingerprint(opened.manifest.collection, bench.corpus, paths.index)
    opened.verify()
    loaded = Retriever.load(paths.retriever, precision=settings.precision)
    length = None if is_unset(settings.query_length) else tokens_of_all_copies(loaded, "query", settings.query_length)
    return DenseSystem(loaded, opened, length)


def flat_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """Flattens the means of an `evaluation.json` to names that Kubeflow can show; baselines carry their name at the end."""
    measures = parse_measures(",".join(content["measures"]))
    places = {name: split["systems"] for name, split in content["splits"].items()}
    if zero_shot := content.get(ZERO_SHOT):
        places |= {name: one["systems"] for name, one in zero_shot["collections"].items() if one["splits"][1:]}
        places[ZERO_SHOT] = zero_shot["mean"]
    return {
        slug(f"{place}_{measure.key}" + ("" if system == RETRIEVER else f"_{system}")): values[measure.name]
        for place, systems in places.items()
        for system, values in systems.items()
        for measure in measures
    }
