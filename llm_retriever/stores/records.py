"""Records what retraining has judged last, one record for every recipe, beside the published versions.

URI/judged/RECIPE.json: fingerprint, promoted, version, reasons, when. One for each recipe, because several schedules may share
the published versions; the last one alone, because a source that goes back to what it was has changed.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

from llm_retriever.stores.opening import open_store

FOLDER, _SUFFIX = "judged", ".json"


class Records:
    """The records beside the versions under one URI.

    Args:
        uri: A directory or s3:// prefix of published versions.
    """

    def __init__(self, uri: str) -> None:
        self.store = open_store(uri)

    def of(self, fingerprint: str) -> dict[str, Any]:
        """Reads the record of one state; {} if it is not what was judged last by its recipe.

        Raises:
            InputError: The file is not a record.
        """
        record = self.latest(recipe_of(fingerprint))
        return record if record.get("fingerprint") == fingerprint else {}

    def latest(self, recipe: str) -> dict[str, Any]:
        """Reads the record of what a recipe judged last; errors are those of `of`."""
        key = _key(recipe)
        if not self.store.exists(key):
            return {}
        return self.store.read_object(key, "remove it")

    def recipes(self) -> list[str]:
        """Recipes that have a record, the latest last."""
        entries = [entry for entry in self.store.list(FOLDER) if entry.key.endswith(_SUFFIX)]
        entries.sort(key=lambda entry: (entry.modified, entry.key))
        return [entry.key.removeprefix(f"{FOLDER}/").removesuffix(_SUFFIX) for entry in entries]

    def write(self, fingerprint: str, promoted: bool, version: str, reasons: Sequence[str]) -> None:
        """Writes the record of a state in place of the last one by its recipe, in a single write.

        Args:
            fingerprint: Fingerprint of the sources, as fingerprint_sources gave it.
            promoted: Whether the new retriever went into production.
            version: Name of what is in production afterwards; "" if nothing.
            reasons: Sentences.
        """
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"fingerprint": fingerprint, "promoted": promoted, "version": version, "reasons": list(reasons)}
        self.store.write(_key(recipe_of(fingerprint)), (json.dumps(record | {"when": when}, indent=2) + "\n").encode())

    def forget(self, recipe: str = "") -> list[str]:
        """Removes records, so that the next retraining trains although nothing has changed.

        Args:
            recipe: Whose; "" = all.

        Returns:
            The recipes of those that are gone.
        """
        gone = [known for known in self.recipes() if recipe in ("", known)]
        for known in gone:
            self.store.delete(_key(known))
        return gone


def recipe_of(fingerprint: str) -> str:
    """Part of a fingerprint that names its recipe.

    >>> recipe_of("0f1e2d3c4b5a6978-9a8b")
    '0f1e2d3c4b5a6978'
    """
    return fingerprint.partition("-")[0]


def _key(recipe: str) -> str:
    return f"{FOLDER}/{recipe}{_SUFFIX}"
