"""What a source consists of right now, as a digest: the steps that read it run again exactly when this changes."""

from __future__ import annotations

from pathlib import Path

from llm_retriever import files
from llm_retriever.errors import InputError


def corpus_fingerprint(uri: str) -> str:
    """Digest of a corpus source.

    Directories: names and contents. `s3://`: keys, sizes and ETags. `hf://`: the pinned revision or the commit that the
    name points to. `demo:`: versions of what it is made of.

    Raises:
        InputError: The source does not exist or cannot be listed.
    """
    if uri.startswith("demo:"):
        from llm_retriever.sources.python_docs import versions

        return files.digest([uri, versions()])
    if uri.startswith("hf://"):
        from llm_retriever.sources.hub import resolved_revision

        return files.digest([uri, resolved_revision(uri)])
    return _listing_digest(uri)


def backbone_fingerprint(backbone: str) -> str:
    """Digest of a backbone; a hub model is told apart by its pinned revision, which is a parameter of its own.

    Raises:
        InputError: A directory or prefix does not exist or cannot be listed.
    """
    if backbone.startswith("s3://") or Path(backbone).is_dir():
        return _listing_digest(backbone)
    return files.digest(backbone)


def _listing_digest(uri: str) -> str:
    return files.digest(_s3_listing(uri) if uri.startswith("s3://") else _local_listing(Path(uri)))


def _local_listing(directory: Path) -> list[list[str]]:
    if not directory.is_dir():
        raise InputError(
            "no such directory", file=directory, field="uri", mend="give a directory, s3://, hf:// or demo: source"
        )
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return [[path.relative_to(directory).as_posix(), files.sha256_of_file(path)] for path in found]


def _s3_listing(uri: str) -> list[list[str]]:
    from llm_retriever.store import open_store

    return sorted([entry.key, str(entry.size), entry.etag] for entry in open_store(uri).list())
