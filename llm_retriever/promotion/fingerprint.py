"""Digests of the present sources: the steps that read them run again exactly when these change.

A record beside the published versions says whether a digest was judged already.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.models.gguf_files import SUFFIX
from llm_retriever.models.packages import PACKAGED
from llm_retriever.stores.uris import SOURCES, check_scheme


def corpus_fingerprint(uri: str) -> str:
    """Digest of a corpus source.

    Directories: names and contents. `s3://`: keys, sizes and ETags. `hf://`: the pinned revision or the commit that the
    name points to. `demo:`: versions of what it is made of.

    Raises:
        InputError: The source does not exist, is empty or cannot be listed.
    """
    check_scheme(uri, SOURCES, field="corpus_uri")
    if uri.startswith("demo:"):
        from llm_retriever.data.sources.python_docs import versions

        return files.digest([uri, versions()])
    if uri.startswith("hf://"):
        from llm_retriever.data.sources.hub import resolved_revision

        return files.digest([uri, resolved_revision(uri)])
    return _listing_digest(uri)


def backbone_fingerprint(backbone: str) -> str:
    """Digest of a backbone; a hub model is identified by its pinned revision, which is a parameter of its own.

    Raises:
        InputError: A directory or prefix does not exist, is empty or cannot be listed.
    """
    if backbone in PACKAGED:
        return files.digest([backbone, PACKAGED[backbone].sha256])
    if backbone.startswith("s3://") and backbone.endswith(SUFFIX):
        place, _, name = backbone.rpartition("/")
        return files.digest([row for row in _s3_listing(place) if row[0] == name] or backbone)
    if Path(backbone).is_file():
        return files.sha256_of_file(Path(backbone))
    if backbone.startswith("s3://") or Path(backbone).is_dir():
        return _listing_digest(backbone)
    return files.digest(backbone)


@dataclasses.dataclass(frozen=True)
class State:
    """The present sources, and whether they were judged already.

    Attributes:
        fingerprint: Digest over the recipe, a hyphen, digest over corpus and backbone.
        changed: False only if a record says that this very fingerprint was what its recipe has judged last; a record that
            names a version does not count where nothing is in production any more.
        production_uri: URI of the version in production, without a slash at its end; "" if there is none.
    """

    fingerprint: str
    changed: bool
    production_uri: str


def state(corpus: str, backbone: str, recipe: str, published_uri: str) -> State:
    """Compares the present sources with what was judged.

    Args:
        corpus: `corpus_fingerprint`.
        backbone: `backbone_fingerprint`.
        recipe: Whatever else decides what a run makes.
        published_uri: Directory or s3:// prefix of published versions; "" = none, and everything is news.

    Raises:
        InputError: A recipe is given without a registry, the registry cannot be read, or it names a version in production
            that is not complete.
    """
    if recipe and not published_uri:
        raise InputError(
            "retraining needs a place for its records",
            field="published_uri",
            hint="give the directory or s3:// prefix of published versions, which the pipeline retrain calls promote_uri",
        )
    fingerprint = f"{files.digest(recipe)[:16]}-{files.digest({'corpus': corpus, 'backbone': backbone})}"
    if not published_uri:
        return State(fingerprint, True, "")
    from llm_retriever.stores.records import Records
    from llm_retriever.stores.registry import Registry

    registry = Registry(published_uri)
    version, record = registry.production(), Records(published_uri).of(fingerprint)
    changed = not record or (version is None and bool(record.get("version")))
    return State(fingerprint, changed, registry.uri_of(version) if version else "")


def _listing_digest(uri: str) -> str:
    listing = _s3_listing(uri) if uri.startswith("s3://") else _local_listing(Path(uri))
    if not listing:
        raise InputError("nothing is there", file=uri, field="uri", hint="check the path or URI, or fill it first")
    return files.digest(listing)


def _local_listing(directory: Path) -> list[list[str]]:
    if not directory.is_dir():
        raise InputError(
            "no such directory", file=directory, field="uri", hint="give a directory, s3://, hf:// or demo: source"
        )
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [[path.relative_to(directory).as_posix(), files.sha256_of_file(path)] for path in paths]


def _s3_listing(uri: str) -> list[list[str]]:
    from llm_retriever.stores.opening import open_store

    return sorted([entry.key, str(entry.size), entry.etag] for entry in open_store(uri).list())
