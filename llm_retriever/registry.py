"""Published versions of a retriever under one URI, and the alias that names the one in production.

    URI/production.json                      the alias: which version is in production, and why
    URI/versions/2026-03-14-0f1e2d3c4b5a/
        retriever/ index/ evaluation/        each with a manifest of its files, `published.json`
        version.json                         written last: a version without it is not one

A version is never changed. Its name is the day and a digest of its content, so that a killed run, started again, completes
the version it began. The alias is one small object that is replaced in a single write: a reader finds the old version or
the new one, both complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.store import manifest_of, open_store, publish

ALIAS, VERSIONS, VERSION_FILE = "production.json", "versions", "version.json"
_DIGITS = 12


@dataclasses.dataclass(frozen=True)
class Version:
    """A published version.

    Attributes:
        name: Day and short digest.
        model: Digest over the files of retriever and index: the same model, however often it was evaluated.
        card: Digest of the retriever's card.
    """

    name: str
    model: str
    card: str

    @property
    def key(self) -> str:
        """Where it lies, below the registry."""
        return f"{VERSIONS}/{self.name}"


class Registry:
    """The versions under one URI.

    Args:
        uri: A directory or s3:// prefix; made by the first publication.
    """

    def __init__(self, uri: str) -> None:
        self.store = open_store(uri)

    def uri_of(self, version: Version) -> str:
        """The URI of a version, whose folders are `retriever`, `index` and `evaluation`."""
        return self.store.uri_of(version.key)

    def production(self) -> Version | None:
        """The version in production; None where nothing was ever promoted.

        Raises:
            InputError: The alias is not one of ours, or names a version that is not complete.
        """
        if not self.store.exists(ALIAS):
            return None
        name = str(self._json(ALIAS).get("version", ""))
        key = f"{VERSIONS}/{name}/{VERSION_FILE}"
        if not name or not self.store.exists(key):
            raise InputError(
                f"names the version {name!r}, which is not complete",
                file=self.store.uri_of(ALIAS),
                field="version",
                mend="restore that version, or remove the alias",
            )
        return self._version(key)

    def evaluation(self, version: Version) -> dict[str, Any]:
        """What `evaluate` found about a version."""
        return self._json(f"{version.key}/evaluation/evaluation.json")

    def publish(self, directories: Mapping[str, Path], model: str, card: str) -> Version:
        """Uploads a version: its folders, and last `version.json`. What a killed run has left of it is completed.

        Args:
            directories: Every folder's local directory.
            model: The digest that `model_digest` gives.
            card: Digest of the retriever's card.
        """
        manifests = {folder: manifest_of(directory) for folder, directory in directories.items()}
        short = files.digest(manifests)[:_DIGITS]
        version = Version(self._begun(short) or f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{short}", model, card)
        for folder, directory in directories.items():
            publish(directory, f"{self.uri_of(version)}/{folder}", manifests[folder])
        text = json.dumps(dataclasses.asdict(version), indent=2) + "\n"
        with contextlib.suppress(FileExistsError):
            self.store.write(f"{version.key}/{VERSION_FILE}", text.encode(), only_if_absent=True)
        return version

    def put_into_production(self, version: Version, reason: Mapping[str, Any]) -> None:
        """Moves the alias to a version, in a single write.

        Args:
            version: A published one.
            reason: What the decision rests on; kept in the alias for people.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        before = str(self._json(ALIAS).get("version", "")) if self.store.exists(ALIAS) else ""
        alias = {"version": version.name, "path": version.key, "card": version.card, "since": now}
        alias |= {"previous": before} if before not in ("", version.name) else {}
        alias |= reason
        self.store.write(ALIAS, (json.dumps(alias, indent=2, allow_nan=False) + "\n").encode())

    def versions(self) -> list[Version]:
        """All complete versions, the oldest first."""
        suffix = f"/{VERSION_FILE}"
        keys = [entry.key for entry in self.store.list(VERSIONS) if entry.key.endswith(suffix)]
        return [self._version(key) for key in sorted(keys) if key.count("/") == 2]

    def roll_back(self, name: str = "") -> Version:
        """Puts an earlier version into production again.

        Args:
            name: Of the version; empty = the one that was in production before the present one.

        Raises:
            InputError: There is no such version, or none was in production before.
        """
        wanted = name or (str(self._json(ALIAS).get("previous", "")) if self.store.exists(ALIAS) else "")
        if not wanted:
            raise InputError(
                "no earlier version is known", file=self.store.uri_of(ALIAS), field="previous", mend="name a version"
            )
        found = [version for version in self.versions() if version.name == wanted]
        if not found:
            known = ", ".join(version.name for version in self.versions()) or "none"
            raise InputError(
                f"there is no version {wanted!r}", file=self.store.uri_of(VERSIONS), mend=f"known: {known}"
            )
        self.put_into_production(found[0], {"reason": "rolled back by hand"})
        return found[0]

    def prune(self, keep: int) -> list[Version]:
        """Deletes all versions but the newest `keep`, the one in production and the one before it.

        `version.json` goes first, so that a version of which something is gone is no version.

        Returns:
            What was deleted.
        """
        alias = self._json(ALIAS) if self.store.exists(ALIAS) else {}
        known, safe = self.versions(), {alias.get("version"), alias.get("previous")}
        old = [version for version in known[: max(len(known) - keep, 0)] if version.name not in safe]
        for version in old:
            self.store.delete(f"{version.key}/{VERSION_FILE}")
            self.store.delete(version.key)
        return old

    def _begun(self, short: str) -> str | None:
        names = {entry.key.split("/")[1] for entry in self.store.list(VERSIONS)}
        return min((name for name in names if name.endswith(f"-{short}")), default=None)

    def _version(self, key: str) -> Version:
        content = self._json(key)
        try:
            return Version(**{field.name: str(content[field.name]) for field in dataclasses.fields(Version)})
        except KeyError as error:
            raise InputError(
                "is missing", file=self.store.uri_of(key), field=error.args[0], mend="restore that version"
            ) from None

    def _json(self, key: str) -> dict[str, Any]:
        try:
            content = json.loads(self.store.read(key))
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise InputError("not a JSON object", file=self.store.uri_of(key), mend="restore it, or remove the alias")
        return content


def in_production(uri: str) -> str:
    """The URI of the version in production below a registry's URI, with the folders `retriever` and `index`.

    Raises:
        InputError: Nothing was promoted there.
    """
    registry = Registry(uri)
    version = registry.production()
    if version is None:
        raise InputError("nothing is in production there", file=uri, mend="promote a version first, or check the URI")
    return registry.uri_of(version)


def model_digest(retriever: Path, index: Path) -> str:
    """Digest over the files of a retriever and its index."""
    return files.digest([manifest_of(retriever), manifest_of(index)])
