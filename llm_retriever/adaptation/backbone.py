"""Fetches the causal LM that everything starts from: a directory, an s3:// prefix, the hub, a package, or from scratch.

What arrives is a plain Hugging Face directory: configuration, safetensors weights, fast tokenizer, and `backbone.json` with
its lineage. No code of the source runs, and a source is looked at before its weights are copied. Models are loaded only where
something is to change: weights of GGUF files are de-quantised, and layers dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.models.card import LINEAGE_FILE, Lineage, load_lineage, save_lineage, weights_digest
from llm_retriever.models.gguf_files import SUFFIX, load_gguf
from llm_retriever.models.layers import keep_layers
from llm_retriever.models.model_files import DESCRIPTION_FILES, WEIGHTS, WEIGHTS_INDEX, ModelFiles, check_safetensors
from llm_retriever.models.packages import PACKAGED
from llm_retriever.progress import Progress
from llm_retriever.settings import BackboneSettings
from llm_retriever.stores import hub
from llm_retriever.stores.opening import LocalStore, Store, open_store
from llm_retriever.stores.uris import BACKBONES, check_scheme

SCRATCH = "scratch:"
_ON_HUB = re.compile(
    r"hf://(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^/]*))?(/(?P<file>.+\.gguf))?/?"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def fetch(settings: BackboneSettings, collection_directory: Path, output: Path) -> None:
    """Writes the backbone that the settings name to `output`, complete or not at all.

    Args:
        settings: Where it comes from.
        collection_directory: What `scratch:` models are trained on; other sources do not look at it.
        output: The directory to write.

    Raises:
        InputError: The source is missing, refuses, or is not a causal LM with a fast tokenizer and safetensors weights.
    """
    check_scheme(settings.source, BACKBONES, field="source")
    with layouts.BACKBONE.output(output) as draft:
        lineage = _brought(settings, collection_directory, draft)
        if settings.layers and not lineage.layers:
            lineage = _cut(draft, lineage, settings)
        save_lineage(draft, lineage)


def _brought(settings: BackboneSettings, collection_directory: Path, draft: Path) -> Lineage:
    source = settings.source
    if source.startswith(SCRATCH):
        return _from_scratch(settings, collection_directory, draft)
    if source in PACKAGED:
        package = PACKAGED[source]
        lineage = _from_gguf(package.path(), source, draft, settings, Lineage(source, package.version))
        return dataclasses.replace(lineage, licence=package.licence, origin=package.origin)
    if on_hub := _ON_HUB.fullmatch(source):
        return _from_hub_address(on_hub, settings, draft)
    if source.endswith(SUFFIX):
        return _from_gguf_uri(settings, draft)
    if "://" in source or Path(source).exists():
        return _from_store(settings, draft)
    return _from_hub(source, settings.revision, draft)


def _cut(draft: Path, lineage: Lineage, settings: BackboneSettings) -> Lineage:
    """Drops the upper layers of the model in a directory."""
    from transformers import AutoModelForCausalLM

    from llm_retriever.models.loading import free_memory, whole

    with whole(settings.source):
        model = AutoModelForCausalLM.from_pretrained(draft, dtype="auto")
    had = keep_layers(model, settings.layers, settings.source)
    for old in [*draft.glob(WEIGHTS), *draft.glob(WEIGHTS_INDEX)]:
        old.unlink()  # What is still read of it stays until the model is let go.
    model.save_pretrained(draft)
    del model
    free_memory()
    return dataclasses.replace(lineage, digest=weights_digest(draft), layers=(settings.layers, had))


def _from_gguf(path: Path, label: str, draft: Path, settings: BackboneSettings, origin: Lineage) -> Lineage:
    """De-quantises a GGUF file; layers that are not kept are never written."""
    model, tokenizer = load_gguf(path, label)
    had = keep_layers(model, settings.layers, label) if settings.layers else 0
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    ModelFiles(LocalStore(draft), label).check()
    layers = (settings.layers, had) if settings.layers else ()
    return dataclasses.replace(origin, digest=weights_digest(draft), layers=layers)


def _from_gguf_uri(settings: BackboneSettings, draft: Path) -> Lineage:
    name = settings.source.rpartition("/")[2]
    store = open_store(settings.source.removesuffix(name) or ".")
    if not store.exists(name):
        raise InputError("no such file", file=settings.source, field="source", hint="check the path or the URI")
    return _from_gguf_in(store, name, settings, draft)


def _from_gguf_in(store: Store, name: str, settings: BackboneSettings, draft: Path) -> Lineage:
    if isinstance(store, LocalStore):
        return _from_gguf(store.directory / name, settings.source, draft, settings, Lineage(settings.source))
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=draft) as folder:
        store.download("", Path(folder), only=name.__eq__)
        return _from_gguf(Path(folder) / name, settings.source, draft, settings, Lineage(settings.source))


def _only_gguf(store: Store, source: str) -> str | None:
    """Name of the GGUF file of a place without safetensors; None where there is none.

    Raises:
        InputError: There are several.
    """
    names = sorted(entry.key for entry in store.list())
    files = [name for name in names if name.endswith(SUFFIX) and "/" not in name]
    if not files or any(fnmatch(name, WEIGHTS) for name in names):
        return None
    if len(files) > 1:
        shown = ", ".join(files)
        raise InputError(f"holds several models: {shown}", file=source, field="source", hint="name one of the files")
    return files[0]


def _from_scratch(settings: BackboneSettings, collection_directory: Path, draft: Path) -> Lineage:
    from llm_retriever.adaptation.pretraining import pretrain_from_scratch
    from llm_retriever.data.collection import Collection

    size = settings.source.removeprefix(SCRATCH)
    return pretrain_from_scratch(size, Collection.open(collection_directory), draft, settings)


def _from_store(settings: BackboneSettings, draft: Path) -> Lineage:
    source = settings.source
    store = open_store(source)
    if isinstance(store, LocalStore) and not store.directory.is_dir():
        raise InputError("not a directory", file=source, field="source", hint="give the directory of a model")
    if gguf := _only_gguf(store, source):
        return _from_gguf_in(store, gguf, settings, draft)
    model = ModelFiles(store, source)
    model.check()
    names = model.wanted()
    if isinstance(store, LocalStore):
        _check_weights(store.directory, model.weight_files(), source)
    store.download("", draft, only=names.__contains__)
    return _lineage(draft, model, Lineage(source))


def _from_hub_address(address: re.Match[str], settings: BackboneSettings, draft: Path) -> Lineage:
    name, revision, file = address["name"], address["revision"] or settings.revision, address["file"]
    if not file:
        return _from_hub(name, revision, draft)
    _check_revision(name, revision)
    with tempfile.TemporaryDirectory(prefix=".hub-", dir=draft) as folder:
        with _growth(Path(folder), f"fetch {file}"):
            _snapshot(name, revision, Path(folder), [file])
        path = Path(folder) / file
        if not path.is_file():
            raise InputError("has no such file", file=settings.source, field="source", hint="check the file's name")
        return _from_gguf(path, settings.source, draft, settings, Lineage(f"{name}/{file}", revision))


def _from_hub(source: str, revision: str, draft: Path) -> Lineage:
    if not _HUB_ID.fullmatch(source):
        raise InputError("no such directory", file=source, field="source", hint="check the path")
    _check_revision(source, revision)
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


def _check_revision(source: str, revision: str) -> None:
    if not revision:
        raise InputError(
            f"no such directory, and as a Hugging Face model {source} needs one", field="revision", hint=hub.PIN
        )
    if not hub.COMMIT.fullmatch(revision):
        raise InputError(f"{revision!r} can move or is cut short", field="revision", hint=hub.PIN)


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
                error.problem, file=f"{model.label}/{LINEAGE_FILE}", field=error.field, hint=error.hint
            ) from None
        if kept.stages:  # What was trained before stays known; the weights are those that are here.
            return dataclasses.replace(kept, digest=weights_digest(draft))
    return Lineage(origin.source, origin.revision, weights_digest(draft))


def _check_weights(directory: Path, names: set[str], label: str) -> None:
    for name in sorted(names):
        check_safetensors(directory / name, label)
