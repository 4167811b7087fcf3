"""Downloads files of one commit of a model from the Hugging Face hub; reports its errors in one line each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llm_retriever.errors import InputError

COMMIT = re.compile(r"[0-9a-f]{40}")
PIN = "give the 40 digits of a commit, so that the run can be repeated"


def snapshot(
    source: str, revision: str, patterns: Sequence[str], directory: Path | None = None, *, before: str = ""
) -> Path:
    """Downloads the files of a model that match one of the patterns.

    Args:
        source: Hugging Face id.
        revision: A commit.
        patterns: As `fnmatch` reads them.
        directory: Where to; None = the hub's own cache (`HF_HOME`), where a second call finds them.
        before: What else was tried, to begin a message with.

    Returns:
        The directory of the files.

    Raises:
        InputError: There is no such model or commit, access is refused, or the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    # They fill a pod's log with redrawn lines and are silent about bytes there.
    disable_progress_bars()
    try:
        return Path(snapshot_download(source, revision=revision, local_dir=directory, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        problem, hint = "access is refused", "accept its licence on the hub and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        problem, hint = f"{before}no such model on the hub", "check the name; a private one needs HF_TOKEN"
    except errors.RevisionNotFoundError:
        problem, hint = f"the hub has no revision {revision}", "check the commit"
    except errors.LocalEntryNotFoundError:
        problem = f"{before}the hub cannot be reached"
        hint = "check the path or the network (HF_ENDPOINT, HF_HUB_OFFLINE), or give a directory or s3:// prefix"
    raise InputError(problem, file=source, field="source", hint=hint)
