"""Bringing the causal LM that everything starts from: a directory, an s3:// prefix, the Hugging Face hub, or from scratch.

What arrives is a plain Hugging Face directory: configuration, safetensors weights, fast tokenizer, and `backbone.json` with
its lineage. Nothing is loaded and no code of the source runs; a source is looked at before its weights are copied.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from llm_retriever import files, hub, layouts
from llm_retriever.card import LINEAGE_FILE, Lineage, load_lineage, save_lineage, weights_digest
from llm_retriever.errors import InputError
from llm_retriever.model_files import DESCRIPTION_FILES, WEIGHTS, WEIGHTS_INDEX, ModelFiles, check_safetensors
from llm_retriever.progress import Progress
from llm_retriever.settings import BackboneSettings
from llm_retriever.store import LocalStore, open_store
from llm_retriever.uris import BACKBONES, check_scheme

SCRATCH = "scratch:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def fetch(settings: BackboneSettings, collection_directory: Path, output: Path) -> None:
    """Brings the backbone that the settings name into `output`, complete or not at all.

    Args:
        settings: Where it comes from.
        collection_directory: What `scratch:` models are trained on; other sources do not look at it.
        output: The directory to write.

    Raises:
        InputError: The source is missing, refuses, or is not a causal LM with a fast tokenizer and safetensors weights.
    """
    check_scheme(settings.source, BACKBONES, field="source")
    with files.atomic_directory(output, layouts.BACKBONE) as draft:
        if settings.source.startswith(SCRATCH):
            lineage = _from_scratch(settings, collection_directory, draft)
        elif "://" in settings.source or Path(settings.source).exists():
            lineage = _from_store(settings.source, draft)
        else:
            lineage = _from_hub(settings.source, settings.revision, draft)
        save_lineage(draft, lineage)


def _from_scratch(settings: BackboneSettings, collection_directory: Path, draft: Path) -> Lineage:
    from llm_retriever.collection import Collection
    from llm_retriever.pretraining import pretrain_from_scratch

    size = settings.source.removeprefix(SCRATCH)
    return pretrain_from_scratch(size, Collection.open(collection_directory), draft, settings)


def _from_store(source: str, draft: Path) -> Lineage:
    store = open_store(source)
    if isinstance(store, LocalStore) and not store.directory.is_dir():
        raise InputError("not a directory", file=source, field="source", mend="give the directory of a model")
    model = ModelFiles(store, source)
    model.check()
    wanted = model.wanted()
    if isinstance(store, LocalStore):
        _check_weights(store.directory, model.weight_files(), source)
    store.download("", draft, only=wanted.__contains__)
    return _lineage(draft, model, Lineage(source))


def _from_hub(source: str, revision: str, draft: Path) -> Lineage:
    if not _HUB_ID.fullmatch(source):
        raise InputError("no such directory", file=source, field="source", mend="check the path")
    if not revision:
        raise InputError(
            f"no such directory, and as a Hugging Face model {source} needs one", field="revision", mend=hub.PIN
        )
    if not hub.COMMIT.fullmatch(revision):
        raise InputError(f"{revision!r} can move or is cut short", field="revision", mend=hub.PIN)
    label = f"{source}@{revision[:8]}"
    with tempfile.TemporaryDirectory(prefix=".hub-", dir=draft) as folder:
        copy = Path(folder) / "model"
        _snapshot(source, revision, copy, [*DESCRIPTION_FILES, WEIGHTS_INDEX])
        ModelFiles(LocalStore(copy), label).check_description()
        with _growth(copy, f"fetch {label}"):
            _snapshot(source, revision, copy, [*DESCRIPTION_FILES, WEIGHTS_INDEX, WEIGHTS, *_TELLING])
        model = ModelFiles(LocalStore(copy), label)
        for name in model.wanted():
            (copy / name).replace(draft / name)
    return _lineage(draft, model, Lineage(source, revision))


# Small file of a source without usable weights that tells what is wrong with it.
_TELLING = ("adapter_config.json",)


def _snapshot(source: str, revision: str, directory: Path, patterns: list[str]) -> None:
    hub.snapshot(source, revision, patterns, directory, before="no such directory, and ")


@contextlib.contextmanager
def _growth(directory: Path, what: str) -> Iterator[None]:
    """Reports how many megabytes a directory has gained, while another library fills it."""
    ended = threading.Event()

    def report(progress: Progress) -> None:
        while not ended.wait(1):
            progress.update(_megabytes(directory) - progress.done)

    with Progress(what, unit="MB") as progress:
        reporter = threading.Thread(target=report, args=(progress,), daemon=True)
        reporter.start()
        try:
            yield
        finally:
            ended.set()
            reporter.join()
            progress.done = _megabytes(directory)


def _megabytes(directory: Path) -> int:
    size = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Renamed while we look.
            size += path.stat().st_size
    return round(size / 1e6)


def _lineage(draft: Path, model: ModelFiles, origin: Lineage) -> Lineage:
    _check_weights(draft, model.weight_files(), model.label)
    if (draft / LINEAGE_FILE).is_file():
        try:
            kept = load_lineage(draft)
        except InputError as error:
            raise InputError(
                error.problem, file=f"{model.label}/{LINEAGE_FILE}", field=error.field, mend=error.mend
            ) from None
        if kept.stages:
            return kept
    return Lineage(origin.source, origin.revision, weights_digest(draft))


def _check_weights(directory: Path, names: set[str], label: str) -> None:
    for name in sorted(names):
        check_safetensors(directory / name, label)
