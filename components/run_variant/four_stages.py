"""One variant of a comparison from the backbone to its evaluation, in one pod: the work of four steps, one after the other.

Every part runs in a process of its own. A part that is finished is kept, under a name made of all that decides it: what a
killed run leaves, another run of the same variant takes, and so does a variant that agrees with it so far.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import TrainingSet
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.files.code_digest import code_digest
from llm_retriever.models.card import RetrieverCard, weights_digest
from llm_retriever.processes.own_process import in_own_process
from llm_retriever.settings import (
    AdaptationSettings,
    EvaluationSettings,
    IndexSettings,
    Place,
    TuningSettings,
    VariantSettings,
    as_dict,
    parameters,
)
from llm_retriever.settings.variant import OF_THE_MACHINE, StageSettings, stage_settings
from llm_retriever.stores.kept_results import KeptResults
from llm_retriever.training.launching import processes_of

RESULTS, CHECKPOINTS = "results", "variants"
"""Folders below checkpoint_uri: finished parts of all variants, and the checkpoints of each."""
REPORT, SUMMARY = "report.html", "summary.md"
FORMAT = 1


@dataclass(frozen=True)
class VariantInputs:
    """Directories that all variants share: outputs of fetch_backbone, prepare_corpus and mine_negatives."""

    backbone: Path
    collection: Path
    training_set: Path
    bm25_runs: Path


def run_variant(
    settings: VariantSettings, inputs: VariantInputs, *, evaluation: Path, retriever: Path
) -> dict[str, float]:
    """Adapts, tunes, indexes and evaluates.

    Args:
        settings: Settings of all four stages.
        inputs: What the stages read.
        evaluation: Directory to write: that of `evaluate`, with its report and summary in it.
        retriever: Directory to write: that of `tune`.

    Returns:
        The flat numbers of `evaluate`.

    Raises:
        InputError: A setting or an input cannot be used.
        SystemExit: 143, after SIGTERM; finished parts and the checkpoint of a training are kept.
    """
    layouts.EVALUATION.check(evaluation)
    layouts.RETRIEVER.check(retriever)
    stages = _with_checkpoints_of_its_own(stage_settings(settings), settings)
    work = retriever.with_name(f".{retriever.name}.parts")
    kept = KeptResults(f"{settings.checkpoint_uri.rstrip('/')}/{RESULTS}") if settings.checkpoint_uri else None
    parts = _Parts(work, kept)
    adapted, tuned, index = _made(parts, stages, inputs)
    metrics = _judged(stages.eval, inputs, work, (adapted, tuned, index), evaluation)
    files.put_in_place(tuned, retriever)
    shutil.rmtree(work)
    return metrics


def _with_checkpoints_of_its_own(stages: StageSettings, settings: VariantSettings) -> StageSettings:
    """Variants that agree on a stage may train it at the same time, and must not write to the same checkpoints."""
    if not settings.checkpoint_uri:
        return stages
    own = files.digest(settings.overrides)[:16]
    uri = f"{settings.checkpoint_uri.rstrip('/')}/{CHECKPOINTS}/{own}"
    return dataclasses.replace(
        stages,
        adapt=dataclasses.replace(stages.adapt, checkpoint_uri=uri),
        tune=dataclasses.replace(stages.tune, checkpoint_uri=uri),
    )


@dataclass(frozen=True)
class _Parts:
    """The finished parts of a variant.

    Attributes:
        work: Directory beside the output in which they grow.
        kept: Where they outlive it; None = nowhere.
    """

    work: Path
    kept: KeptResults | None

    def bring(
        self,
        part: str,
        key: str,
        make: Callable[[Path], Any],
        *,
        check: Callable[[Path], Any] = lambda directory: None,
        keep: bool = True,
    ) -> Path:
        """Returns the directory of a part: as it was finished before, or made now.

        Args:
            part: Name of the directory.
            key: Digest of all that decides it.
            make: Writes the directory, all of it or nothing.
            check: Raises `InputError` where a part that was taken cannot be used any more.
            keep: Whether it is worth keeping elsewhere.
        """
        directory, name = self.work / key / part, f"{part}-{key}"
        kept = self.kept if keep else None
        source = self._taken(name, directory, kept)
        if source:
            try:
                check(directory)
                print(f"{part}: taken from {source}", file=sys.stderr, flush=True)
                return directory
            except InputError as error:
                print(f"{part}: made anew; {error}", file=sys.stderr, flush=True)
                self._discard(name, directory, kept)
        _remove_drafts(directory)
        make(directory)
        if kept and not kept.keep(name, directory):
            # Another variant was faster. All go on from the same, so that what follows has the same key in every run.
            kept.take(name, directory)
        return directory

    @staticmethod
    def _taken(name: str, directory: Path, kept: KeptResults | None) -> str:
        """Takes over a finished part, and returns where it was; "" = nowhere."""
        if directory.exists():
            return str(directory)
        return kept.store.uri_of(name) if kept and kept.take(name, directory) else ""

    @staticmethod
    def _discard(name: str, directory: Path, kept: KeptResults | None) -> None:
        shutil.rmtree(directory)
        if kept:
            kept.discard(name)


def _remove_drafts(directory: Path) -> None:
    """Removes what a killed process has half written; nobody else writes there."""
    for draft in directory.parent.glob(f".{directory.name}.*.partial"):
        if (
            draft.suffixes[-2].lstrip(".").isdecimal()
        ):  # a process id, and not the digest of an index that is gone on with
            shutil.rmtree(draft, ignore_errors=True)


def _made(parts: _Parts, stages: StageSettings, inputs: VariantInputs) -> tuple[Path, Path, Path]:
    """Makes the adapted backbone, the retriever and the index."""
    source = Collection.open(inputs.collection)
    data = [source.fingerprint, TrainingSet.open(inputs.training_set, source).digest]
    trains = stages.adapt.method != "none"
    decisive = _decisive(stages.adapt) if trains else {"method": "none"}
    first = _key("adapt", decisive, weights_digest(inputs.backbone), *(data if trains else ()))
    adapted = parts.bring(
        "adapted", first, lambda directory: in_own_process(_adapt, stages.adapt, inputs, directory), keep=trains
    )
    second = _key("tune", _decisive(stages.tune), first, weights_digest(adapted), *data)
    tuned = parts.bring(
        "retriever", second, lambda directory: in_own_process(_tune, stages.tune, adapted, inputs, directory)
    )
    third = _key("index", _decisive(stages.index), RetrieverCard.load(tuned).digest(), source.fingerprint)
    index = parts.bring(
        "index",
        third,
        lambda directory: in_own_process(_build_index, stages.index, tuned, inputs, directory),
        check=_check_index,
    )
    return adapted, tuned, index


def _key(part: str, *told: Any) -> str:
    return files.digest([FORMAT, code_digest(), part, *told])[:32]


def _decisive(settings: AdaptationSettings | TuningSettings | IndexSettings) -> dict[str, Any]:
    """Settings of a stage that decide its result: on how many GPUs a training runs only through its processes."""
    known = parameters(type(settings))
    without = (*OF_THE_MACHINE, "checkpoint_uri", "processes")
    values = {n: v for n, v in as_dict(settings).items() if known[n].place is not Place.POD and n not in without}
    return values if isinstance(settings, IndexSettings) else {**values, "processes": processes_of(settings)}


def _check_index(directory: Path) -> None:
    from llm_retriever.indexing.shard_store import check_shards
    from llm_retriever.indexing.shards import Manifest

    check_shards(Manifest.load(directory))


def _judged(
    settings: EvaluationSettings,
    inputs: VariantInputs,
    work: Path,
    made: tuple[Path, Path, Path],
    evaluation: Path,
) -> dict[str, float]:
    """Evaluates; the output appears with report and summary in it."""
    metrics = in_own_process(_evaluate, settings, inputs, made, work)
    with layouts.EVALUATION.output(evaluation) as draft:
        shutil.copytree(work / "evaluation", draft, dirs_exist_ok=True)
        for name in (REPORT, SUMMARY):
            shutil.copyfile(work / name, draft / name)
    return metrics


def _adapt(settings: AdaptationSettings, inputs: VariantInputs, adapted: Path) -> None:
    from llm_retriever.adaptation.adapt import adapt

    adapt(settings, inputs.backbone, inputs.collection, inputs.training_set, adapted)


def _tune(settings: TuningSettings, adapted: Path, inputs: VariantInputs, retriever: Path) -> None:
    from llm_retriever.contrastive.tuning import tune

    tune(settings, adapted, inputs.collection, inputs.training_set, retriever)


def _build_index(settings: IndexSettings, retriever: Path, inputs: VariantInputs, index: Path) -> None:
    from llm_retriever.indexing.build import build_index

    build_index(retriever, inputs.collection, index, settings)


def _evaluate(
    settings: EvaluationSettings, inputs: VariantInputs, made: tuple[Path, Path, Path], work: Path
) -> dict[str, float]:
    from llm_retriever.evaluation.evaluate import evaluate

    adapted, retriever, index = made
    return evaluate(
        settings,
        index=index,
        retriever=retriever,
        backbone=inputs.backbone,
        collection=inputs.collection,
        bm25_runs=inputs.bm25_runs,
        adapted=adapted,
        evaluation=work / "evaluation",
        report=work / REPORT,
        summary=work / SUMMARY,
        refreshed=work / "refreshed",
    )
