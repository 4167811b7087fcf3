"""Published versions of a retriever under one URI, and the alias that names the one in production.

    URI/production.json                      the alias: which version is in production, and why
    URI/judged/                              which states of the sources retraining has judged (`llm_retriever.records`)
    URI/versions/2026-03-14-0f1e2d3c4b5a/
        retriever/ index/ evaluation/        each with a manifest of its files, `published.json`
        version.json                         written last: a version without it is not one

A version is never changed. Its name is the day and a digest of its content, so that a killed run, started again, completes
the version it began. The alias is one small object that is replaced in a single write: a reader finds the old version or
the new one, both complete. A *refreshed* version is an earlier one's retriever with an index of a newer collection. The
alias also knows which versions of other models were in production before this one, so that a model can be taken out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.evaluation.conventions import EVALUATION_FILE
from llm_retriever.store import MANIFEST, manifest_of, open_store, publish

ALIAS, VERSIONS, VERSION_FILE = "production.json", "versions", "version.json"
_EARLIER_MODELS = 20
_DIGITS, _DAY = 12, len("2026-03-14")


@dataclasses.dataclass(frozen=True)
class Version:
    """A published version.

    Attributes:
        name: Day and short digest.
        model: Digest over the files of retriever and index: the same model, however often it was evaluated.
        card: Digest of the retriever's card.
        refreshed_from: Name of the version whose retriever it has, with another index; "" if it brought its own.
        published: When, ISO 8601; "" if an earlier release published it.
        reason: Why, for people.
    """

    name: str
    model: str
    card: str
    refreshed_from: str = ""
    published: str = ""
    reason: str = ""

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
        alias = self.alias()
        if not alias:
            return None
        name = str(alias.get("version", ""))
        key = f"{VERSIONS}/{name}/{VERSION_FILE}"
        if not name or not self.store.exists(key):
            raise InputError(
                f"names the version {name!r}, which is not complete",
                file=self.store.uri_of(ALIAS),
                field="version",
                mend="restore that version, or remove the alias",
            )
        return self._version(key)

    def alias(self) -> dict[str, Any]:
        """The content of the alias: version, since when, why, and the version before; {} where nothing was ever promoted."""
        return self._json(ALIAS) if self.store.exists(ALIAS) else {}

    def evaluation(self, version: Version) -> dict[str, Any]:
        """What `evaluate` found about a version."""
        return self._json(f"{version.key}/evaluation/{EVALUATION_FILE}")

    def manifest(self, version: Version, folder: str) -> dict[str, Any]:
        """Names, sizes and checksums of the files in a folder of a version, as `manifest_of` gives them."""
        return self._json(f"{version.key}/{folder}/{MANIFEST}")

    def publish(
        self,
        folders: Mapping[str, Path | Version],
        model: str,
        card: str,
        *,
        refreshed_from: str = "",
        reason: str = "",
    ) -> Version:
        """Publishes a version: its folders, and last `version.json`. What a killed run has left of it is completed.

        Args:
            folders: Where every folder comes from: a local directory, or an earlier version's folder of the same name.
            model: Digest over the manifests of retriever and index.
            card: Digest of the retriever's card.
            refreshed_from: Name of the version whose retriever is taken over, if one is.
            reason: Why, for people.

        Raises:
            InputError: The earlier version's folder lacks files.
        """
        manifests = {
            folder: self.manifest(source, folder) if isinstance(source, Version) else manifest_of(source)
            for folder, source in folders.items()
        }
        short = files.digest(manifests)[:_DIGITS]
        name = self._begun(short) or f"{_now()[:_DAY]}-{short}"
        version = Version(name, model, card, refreshed_from, _now(), reason)
        for folder, source in folders.items():
            if isinstance(source, Version):
                self._copy(folder, source, version)
            else:
                publish(source, f"{self.uri_of(version)}/{folder}", manifests[folder])
        with contextlib.suppress(FileExistsError):
            self._write(f"{version.key}/{VERSION_FILE}", dataclasses.asdict(version), only_if_absent=True)
        return self._version(f"{version.key}/{VERSION_FILE}")

    def _copy(self, folder: str, source: Version, target: Version) -> None:
        """Copies a published folder within the store, its manifest last."""
        start, end = f"{source.key}/{folder}", f"{target.key}/{folder}"
        if self.store.exists(f"{end}/{MANIFEST}"):
            return
        sizes = {row["name"]: row["size"] for row in self.manifest(source, folder)["files"]}
        there = {entry.key.removeprefix(f"{start}/"): entry.size for entry in self.store.list(start)}
        for name, size in sizes.items():
            if there.get(name) != size:
                raise InputError(
                    "is missing or has another size", file=self.store.uri_of(f"{start}/{name}"), mend="restore it"
                )
        self.store.copy(start, end, only=sizes.__contains__)
        with contextlib.suppress(FileExistsError):
            self.store.write(f"{end}/{MANIFEST}", self.store.read(f"{start}/{MANIFEST}"), only_if_absent=True)

    def put_into_production(self, version: Version, reason: Mapping[str, Any]) -> None:
        """Moves the alias to a version, in a single write.

        Args:
            version: A published one.
            reason: What the decision rests on; kept in the alias for people.
        """
        old = self.alias()
        before = str(old.get("version", ""))
        alias: dict[str, Any] = {"version": version.name, "path": version.key, "card": version.card, "since": _now()}
        alias |= {"previous": before} if before not in ("", version.name) else {}
        models = {**old.get("earlier", {}), **({before: old.get("card")} if before else {})}
        # Of a model that comes back, what came after it was taken out, and is nothing to go back to.
        earlier = list(itertools.takewhile(lambda item: item[1] != version.card, models.items()))[-_EARLIER_MODELS:]
        self._write(ALIAS, alias | {"earlier": dict(earlier)} | dict(reason))

    def versions(self) -> list[Version]:
        """All complete versions, the oldest first."""
        suffix = f"/{VERSION_FILE}"
        keys = [entry.key for entry in self.store.list(VERSIONS) if entry.key.endswith(suffix)]
        found = [self._version(key) for key in keys if key.count("/") == 2]
        return sorted(found, key=lambda version: (version.name[:_DAY], version.published, version.name))

    def named(self, name: str) -> Version:
        """The complete version of a name.

        Raises:
            InputError: There is none.
        """
        known = {version.name: version for version in self.versions()}
        if name not in known:
            mend = f"known: {', '.join(known) or 'none'}"
            raise InputError(f"there is no version {name!r}", file=self.store.uri_of(VERSIONS), mend=mend)
        return known[name]

    def previous(self) -> Version:
        """The version that the alias named before: another model, or the same one with another index.

        Raises:
            InputError: None was in production before, or it is gone.
        """
        name = str(self.alias().get("previous", ""))
        if not name:
            raise InputError("no version before is known", file=self.store.uri_of(ALIAS), mend="name a version")
        return self.named(name)

    def earlier_model(self) -> Version | None:
        """The newest version of the model that was in production before the present one; None if no such is known.

        Where an earlier release wrote the alias, it is the newest version of another model that was published before the
        present model was for the first time.
        """
        alias, known = self.alias(), self.versions()
        if not alias:
            return None
        if "earlier" in alias:
            by_name = {version.name: version for version in known}
            left = [by_name[name] for name in alias["earlier"] if name in by_name]
        else:
            left = list(itertools.takewhile(lambda version: version.card != alias.get("card"), known))
        return left[-1] if left else None

    def roll_back(self, name: str = "") -> Version:
        """Puts an earlier version into production again.

        Args:
            name: Of the version; empty = that of the earlier model.

        Raises:
            InputError: There is no such version, or no other model was in production before.
        """
        version = self.named(name) if name else self.earlier_model()
        if version is None:
            mend = "name a version (list shows all)"
            raise InputError("no earlier model is known", file=self.store.uri_of(ALIAS), field="earlier", mend=mend)
        self.put_into_production(version, {"reason": "rolled back by hand"})
        return version

    def prune(self, keep: int) -> list[Version]:
        """Deletes all but the newest `keep`, the one in production, the one before it, and that of the earlier model.

        `version.json` goes first, so that a version of which something is gone is no version.

        Returns:
            What was deleted.
        """
        alias, known, earlier = self.alias(), self.versions(), self.earlier_model()
        safe = {alias.get("version"), alias.get("previous"), earlier.name if earlier else ""}
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
        names = [field.name for field in dataclasses.fields(Version) if field.name in content]
        try:
            return Version(**{name: str(content[name]) for name in ("name", "model", "card", *names)})
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
            mend = "restore it, or remove the alias" if key == ALIAS else "restore it"
            raise InputError("not a JSON object", file=self.store.uri_of(key), mend=mend)
        return content

    def _write(self, key: str, content: Mapping[str, Any], *, only_if_absent: bool = False) -> None:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        self.store.write(key, text.encode(), only_if_absent=only_if_absent)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


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
