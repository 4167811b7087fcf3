"""What retraining has judged: a record for every state of the sources, beside the published versions.

URI/judged/FINGERPRINT.json: fingerprint, promoted, version, reasons, when. One for each, because several schedules may share the
published versions, and because a source may go back to what it was.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.store import open_store

FOLDER, _SUFFIX = "judged", ".json"


class Records:
    """The records beside the versions under one URI.

    Args:
        uri: A directory or s3:// prefix of published versions.
    """

    def __init__(self, uri: str) -> None:
        self.store = open_store(uri)

    def of(self, fingerprint: str) -> dict[str, Any]:
        """The record of one state; {} if it was not judged.

        Raises:
            InputError: The file is not a record.
        """
        key = _key(fingerprint)
        if not self.store.exists(key):
            return {}
        try:
            content = json.loads(self.store.read(key))
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise InputError("not a JSON object", file=self.store.uri_of(key), mend="remove it")
        return content

    def fingerprints(self) -> list[str]:
        """What was judged, the latest last."""
        found = [entry for entry in self.store.list(FOLDER) if entry.key.endswith(_SUFFIX)]
        found.sort(key=lambda entry: (entry.modified, entry.key))
        return [entry.key.removeprefix(f"{FOLDER}/").removesuffix(_SUFFIX) for entry in found]

    def write(self, fingerprint: str, promoted: bool, version: str, reasons: Sequence[str]) -> None:
        """Writes the record of one state, in a single write.

        Args:
            fingerprint: Of the sources, as fingerprint_sources gave it.
            promoted: Whether the new retriever went into production.
            version: Name of what is in production afterwards; "" if nothing.
            reasons: Sentences.
        """
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        told = {"fingerprint": fingerprint, "promoted": promoted, "version": version, "reasons": list(reasons)}
        self.store.write(_key(fingerprint), (json.dumps(told | {"when": when}, indent=2) + "\n").encode())

    def forget(self, fingerprint: str = "") -> list[str]:
        """Removes records, so that the next retraining trains although nothing has changed.

        Args:
            fingerprint: Whose; "" = all.

        Returns:
            The fingerprints of those that are gone.
        """
        gone = [known for known in self.fingerprints() if fingerprint in ("", known)]
        for known in gone:
            self.store.delete(_key(known))
        return gone


def _key(fingerprint: str) -> str:
    return f"{FOLDER}/{fingerprint}{_SUFFIX}"
