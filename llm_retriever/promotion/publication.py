"""Publishes the new retriever with its index, or the one in production with its index of the new collection."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.bm25.sparse import LUCENE_FOLDER
from llm_retriever.errors import InputError
from llm_retriever.indexing.hybrid.published import FOLDER, Published, published_in
from llm_retriever.indexing.shard_store import complete
from llm_retriever.indexing.shards import MANIFEST_FILE
from llm_retriever.metrics.content import sealed
from llm_retriever.metrics.conventions import (
    BM25,
    EVALUATION_FILE,
    HYBRID,
    PRODUCTION,
    PRODUCTION_HYBRID,
    REFRESHED_FILE,
    RETRIEVER,
    RUNS_DIRECTORY,
)
from llm_retriever.stores.opening import manifest_of
from llm_retriever.stores.registry import Registry, Version

SAME_RUN = "give the outputs of one and the same run"
_OF_THE_MEASUREMENT = (
    "format",
    "collection",
    "corpus",
    "primary_metric",
    "measures",
    "depth",
    "significance",
    "versions",
)
_OF_THE_RETRIEVER = ("method", "recipe", "lineage", "hybrid")
_KEPT = {PRODUCTION: RETRIEVER, PRODUCTION_HYBRID: HYBRID, BM25: BM25}
"""What a run's evaluation calls the systems of the version in production, and what that version's own does."""
_OF_THE_SPLIT = ("collection", "zero_shot", "queries", "judgments", "relevance_level")


@dataclasses.dataclass(frozen=True)
class Made:
    """The outputs of a run.

    Attributes:
        retriever, index, evaluation: Directories.
        card: Digest of the retriever's card.
        model: Digest over retriever and index.
        refreshed: Output of `evaluate` with an index of the new collection for the retriever in production; None if its
            index is of that collection already.
    """

    retriever: Path
    index: Path
    evaluation: Path
    card: str
    model: str
    refreshed: Path | None = None


def with_index(refreshed: Path | None) -> Path | None:
    """Returns the output `refreshed` of `evaluate`, if it holds an index."""
    return refreshed if refreshed is not None and (refreshed / "index" / MANIFEST_FILE).is_file() else None


def publish_new(registry: Registry, made: Made, reason: str) -> Version:
    """Publishes the new retriever with its index and evaluation."""
    with complete(made.index) as index:
        folders = {"retriever": made.retriever, "index": index, "evaluation": made.evaluation}
        return registry.publish(folders, made.model, made.card, reason=reason)


def refreshed_model(registry: Registry, before: Version, refreshed: Path) -> str:
    """Digest of a version's retriever with the refreshed index."""
    return files.digest([registry.manifest(before, "retriever"), manifest_of(refreshed / "index")])


def publish_refreshed(registry: Registry, before: Version, evaluation: Path, refreshed: Path, reason: str) -> Version:
    """Publishes the retriever of a version with the refreshed index and the evaluation of both.

    The retriever's files are copied where they lie: they are the same to the bit.

    Args:
        registry: Holds the version.
        before: The version whose retriever it is.
        evaluation: The run's evaluation, which measured that version too.
        refreshed: Directory with an index of the run's collection.
        reason: Why, for people.

    Raises:
        InputError: The refreshed index belongs to another version or retriever.
    """
    _check_belongs(refreshed, before)
    model, evaluated = refreshed_model(registry, before, refreshed), registry.evaluation(before)
    fusion = published_in(registry.uri_of(before))
    with complete(refreshed / "index") as index, _taken_out(evaluation, before, evaluated, fusion) as own:
        folders: dict[str, Path | Version] = {"retriever": before, "index": index, "evaluation": own}
        return registry.publish(folders, model, before.card, refreshed_from=before.name, reason=reason)


def _check_belongs(refreshed: Path, before: Version) -> None:
    file, manifest = refreshed / REFRESHED_FILE, refreshed / "index" / MANIFEST_FILE
    if files.read_json(file, hint="give the output of evaluate").get("version") != before.name:
        raise InputError("is of another version", file=file, field="version", hint=SAME_RUN)
    if files.read_json(manifest, hint="give the output of evaluate").get("card") != before.card:
        raise InputError("is of another retriever", file=manifest, field="card", hint=SAME_RUN)


@contextmanager
def _taken_out(
    evaluation: Path, before: Version, evaluated: Mapping[str, Any], fusion: Published | None
) -> Iterator[Path]:
    """Yields a directory with the evaluation of the version in production, taken out of the run's own.

    Where that version has hybrid search, it keeps its fusion and gets Lucene's index of the new collection.
    """
    content = files.read_json(evaluation / EVALUATION_FILE)
    with tempfile.TemporaryDirectory(prefix="evaluation-") as name:
        directory = Path(name) / "evaluation"
        files.write_json(directory / EVALUATION_FILE, sealed(evaluation_of_production(content, before, evaluated)))
        for split in content["splits"]:
            for system, kept in _KEPT.items():
                run = evaluation / RUNS_DIRECTORY / split / f"{system}.trec"
                if run.is_file():
                    (directory / RUNS_DIRECTORY / split).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(run, directory / RUNS_DIRECTORY / split / f"{kept}.trec")
        if fusion is not None and (evaluation / FOLDER).is_dir():
            searched = Published.load(evaluation / FOLDER)
            renewed = dataclasses.replace(
                searched, fusion=fusion.fusion, card=before.card, query_length=fusion.query_length
            )
            renewed.write(directory / FOLDER, evaluation / FOLDER / LUCENE_FOLDER)
        yield directory


def evaluation_of_production(
    content: Mapping[str, Any], before: Version, evaluated: Mapping[str, Any]
) -> dict[str, Any]:
    """Builds an `evaluation.json` of the version in production from the run's.

    Its values stand under the name `retriever`, and `hybrid`, as in every version's evaluation. Of the other systems only
    BM25 stays; comparisons, which are all with the retriever that was not promoted, do not. It depends on its arguments alone, so
    that a killed publication finds its version again.

    Args:
        content: The run's `evaluation.json`.
        before: The version in production.
        evaluated: That version's own `evaluation.json`, which knows how it was made.
    """
    splits = {
        name: _split_of(split, _KEPT) for name, split in content["splits"].items() if PRODUCTION in split["systems"]
    }
    # On collections of their own the same retriever does what it did.
    own = {name: split for name, split in evaluated.get("splits", {}).items() if "zero_shot" in split}
    same = {name: name for name in _KEPT.values()}
    splits |= {name: _split_of(split, same) for name, split in own.items() if name not in splits}
    measurement = {name: content[name] for name in _OF_THE_MEASUREMENT if name in content}
    maker = {name: evaluated[name] for name in _OF_THE_RETRIEVER if name in evaluated}
    note = (
        f"The retriever is that of version {before.name}; it was measured by a later run, on the collection that the "
        "index beside this is of."
    )
    return measurement | {"splits": splits, "notes": [note], "card": before.card, "refreshed_from": before.name} | maker


def _split_of(split: Mapping[str, Any], systems: Mapping[str, str]) -> dict[str, Any]:
    kept = {name: split[name] for name in _OF_THE_SPLIT if name in split}
    for part in ("systems", "per_query"):
        values = split.get(part, {})
        kept[part] = {name: values[old] for old, name in systems.items() if old in values}
    return kept | {"comparisons": [], "wins_and_losses": {}, "notes": list(split.get("notes", []))}
