"""Data sets of the Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION]`, downloaded at one commit.

A branch or tag is resolved to its commit first, and the commit is what the manifest records. BEIR's own repositories keep
their judgments in a second one (`BeIR/NAME-qrels`), which is fetched along.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_retriever.data.sources.source_files import SUFFIXES, TABLES
from llm_retriever.errors import InputError

SCHEME = "hf://datasets/"
NAME = r"[A-Za-z0-9][\w.-]*"
ADDRESS = re.compile(rf"{SCHEME}(?P<repository>{NAME}/{NAME})(@(?P<revision>[\w./-]+))?/?")
COMMIT = re.compile(r"[0-9a-f]{40}")
PATTERNS = [f"*{suffix}" for suffix in (*SUFFIXES, *TABLES)]
QRELS_OWNER, QRELS_SUFFIX = "BeIR/", "-qrels"


class Address(NamedTuple):
    """A data set on the hub; no revision means its main branch."""

    repository: str
    revision: str

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Parses `hf://datasets/OWNER/NAME[@REVISION]`.

        Raises:
            InputError: It is something else.
        """
        match = ADDRESS.fullmatch(uri)
        if not match:
            raise InputError(
                f"not an address of a data set: {uri!r}", field="uri", hint=f"write {SCHEME}OWNER/NAME@COMMIT"
            )
        return cls(match["repository"], match["revision"] or "main")

    def qrels(self) -> Address | None:
        """Address of the judgments, when they are in a repository of their own."""
        if self.repository.startswith(QRELS_OWNER) and not self.repository.endswith(QRELS_SUFFIX):
            return Address(self.repository + QRELS_SUFFIX, "main")
        return None


def resolved_revision(uri: str) -> str:
    """Commit that a data set's address stands for (two, joined by ``+``, where judgments have their own repository).

    Raises:
        InputError: There is no such data set or revision, or the hub cannot be reached.
    """
    address = Address.parse(uri)
    qrels = address.qrels()
    return "+".join(_commit(part) for part in (address, qrels) if part)


@contextlib.contextmanager
def downloaded(uri: str) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Yields the directory of a data set's files, its description for the manifest, and its licence.

    Files stay in the hub's cache (`HF_HOME`), so that an interrupted download continues and a second one is quick.

    Raises:
        InputError: There is no such data set or revision, or the hub cannot be reached.
    """
    address = Address.parse(uri)
    commit = _commit(address)
    description = {"uri": uri, "repository": address.repository, "revision": commit}
    directory, licence = _snapshot(address.repository, commit), _licence(address.repository, commit)
    qrels = address.qrels()
    if qrels is None:
        yield directory, description, licence
        return
    description["qrels_revision"] = _commit(qrels)
    with tempfile.TemporaryDirectory() as together:
        for part in directory.iterdir():
            (Path(together) / part.name).symlink_to(part)
        (Path(together) / "qrels").symlink_to(_snapshot(qrels.repository, description["qrels_revision"]))
        yield Path(together), description, licence


def _commit(address: Address) -> str:
    if COMMIT.fullmatch(address.revision):
        return address.revision
    from huggingface_hub import HfApi

    with _reached(address.repository):
        return str(HfApi().dataset_info(address.repository, revision=address.revision).sha)


def _snapshot(repository: str, commit: str) -> Path:
    from huggingface_hub import snapshot_download

    with _reached(repository):
        return Path(snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=PATTERNS))


def _licence(repository: str, commit: str) -> str:
    """Licence on the data set's card; a card that cannot be read is no reason to stop."""
    from huggingface_hub import HfApi

    with contextlib.suppress(InputError), _reached(repository):
        licence = getattr(HfApi().dataset_info(repository, revision=commit).card_data, "license", None)
        if licence:
            return ", ".join(licence) if isinstance(licence, list) else str(licence)
    return "not stated by the source"


@contextlib.contextmanager
def _reached(repository: str) -> Iterator[None]:
    """Turns the hub's refusals into errors with a hint."""
    from huggingface_hub import errors

    shown = SCHEME + repository
    try:
        yield
    except errors.GatedRepoError:
        hint = "accept its terms on the hub, and give the step a token in HF_TOKEN"
        raise InputError("the data set is gated", file=shown, field="uri", hint=hint) from None
    except errors.RepositoryNotFoundError:
        hint = "correct the name; for a private one give the step a token in HF_TOKEN"
        raise InputError("there is no such data set", file=shown, field="uri", hint=hint) from None
    except errors.RevisionNotFoundError:
        raise InputError("there is no such revision", file=shown, field="uri", hint="correct what follows @") from None
    except errors.OfflineModeIsEnabled:
        hint = "unset HF_HUB_OFFLINE, or name a commit that is in the cache"
        raise InputError("the hub may not be reached in offline mode", file=shown, field="uri", hint=hint) from None
    except (OSError, errors.HTTPError) as error:
        first = str(error).strip().partition("\n")[0]
        problem, hint = f"the hub could not be read ({first})", "check the connection, and try again"
        raise InputError(problem, file=shown, field="uri", hint=hint) from None
