"""Reads endpoint and keys of the object store, and the hub's token, where a cluster mounts them into a pod as files."""

from __future__ import annotations

import os
from pathlib import Path

STORE_SECRET = "llm-retriever-s3"  # noqa: S105 - the name of a secret, not a secret
SECRET_FOLDER = "/etc/llm-retriever/s3"  # noqa: S105 - a place
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
"""Of the object store."""
MOUNTED = (*VARIABLES, "HF_TOKEN")
"""What the secret may hold."""


def read_secret(folder: Path = Path(SECRET_FOLDER)) -> None:
    """Puts the files of a mounted secret into this process's environment, under their names.

    What the environment has already stays; names that neither a store nor the hub reads are left out.
    """
    for name in MOUNTED:
        path = folder / name
        if name not in os.environ and path.is_file():
            os.environ[name] = path.read_text(encoding="utf-8-sig").strip()
