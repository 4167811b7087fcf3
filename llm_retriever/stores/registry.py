"""Published versions of a retriever under one URI, and the alias that names the one in production.

    URI/production.json                      the alias: which version is in production, and why
    URI/judged/                              which states of the sources retraining has judged (`llm_retriever.stores.records`)
    URI/versions/2026-03-14-0f1e2d3c4b5a/
        retriever/ index/ evaluation/        each with a manifest of its files, `published.json`
        version.json                         written last: a version without it is not one

A version is never changed. Its name is the day and a digest of its content, so that a killed run, started again, completes
the version it began. The alias is moved in a single write, by one writer at a time (`llm_retriever.stores.alias`): a reader finds
the old version or the new one, both complete. A *refreshed* version is an earlier one's retriever with an index of a newer
collection. The alias also knows which versions of other models were in production before this one, so that a model can be
taken out.
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
from llm_retriever.metrics.conventions import EVALUATION_FILE
from llm_retriever.stores.alias import ALIAS, Alias, MovedError
from llm_retriever.stores.opening import MANIFEST, manifest_of, missing, open_store, publish

VERSIONS, VERSION_FILE = "versions", "version.json"
HINT = "restore it"
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
        """Its prefix below the registry."""
        return f"{VERSIONS}/{self.name}"


class Registry:
    """The versions under one URI.

    Args:
        uri: A directory or s3:// prefix; made by the first publication.
    """

    def __init__(self, uri: str) -> None:
        self.store = open_store(uri)

    def uri_of(self, version: Version) -> str:
        """URI of a version, whose folders are `retriever`, `index` and `evaluation`."""
        return self.store.uri_of(version.key)

    def production(self, alias: Alias | None = None) -> Version | None:
        """Returns the version in production; None where nothing was ever promoted.

        Args:
            alias: As it was read; None reads it.

        Raises:
            InputError: The alias is not one of ours, or names a version that is not complete.
        """
        alias = alias or self.alias()
        if not alias.content:
            return None
        name = alias.version
        key = f"{VERSIONS}/{name}/{VERSION_FILE}"
        if not name or not self.store.exists(key):
            raise InputError(
                f"names the version {name!r}, which is not complete",
                file=self.store.uri_of(ALIAS),
                field="version",
                hint="restore that version, or remove the alias",
            )
        return self._version(key)

    def alias(self) -> Alias:
        """Reads the alias as it is now; errors are those of `Alias.read`."""
        return Alias.read(self.store)

    def evaluation(self, version: Version) -> dict[str, Any]:
        """Reads the evaluation of a version."""
        return self.store.read_object(f"{version.key}/evaluation/{EVALUATION_FILE}", HINT)

    def manifest(self, version: Version, folder: str) -> dict[str, Any]:
        """Reads names, sizes and checksums of the files in a folder of a version, as `manifest_of` gives them."""
        return self.store.read_object(f"{version.key}/{folder}/{MANIFEST}", HINT)

    def publish(
        self,
        folders: Mapping[str, Path | Version],
        model: str,
        card: str,
        *,
        refreshed_from: str = "",
        reason: str = "",
    ) -> Version:
        """Publishes a version: its folders, and last `version.json`. Completes what a killed run has left of it.

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
            text = json.dumps(dataclasses.asdict(version), indent=2, allow_nan=False) + "\n"
            self.store.write(f"{version.key}/{VERSION_FILE}", text.encode(), only_if_absent=True)
        return self._version(f"{version.key}/{VERSION_FILE}")

    def _copy(self, folder: str, source: Version, target: Version) -> None:
        """Copies a published folder within the store, its manifest last."""
        start, end = f"{source.key}/{folder}", f"{target.key}/{folder}"
        sizes = {row["name"]: row["size"] for row in self.manifest(source, folder)["files"]}
        if self.store.exists(f"{end}/{MANIFEST}") and not missing(self.store, end, sizes):
            return
        for name in missing(self.store, start, sizes):
            raise InputError(
                "is missing or has another size", file=self.store.uri_of(f"{start}/{name}"), hint="restore it"
            )
        self.store.copy(start, end, only=sizes.__contains__)
        with contextlib.suppress(FileExistsError):
            self.store.write(f"{end}/{MANIFEST}", self.store.read(f"{start}/{MANIFEST}"), only_if_absent=True)

    def put_into_production(self, version: Version, reason: Mapping[str, Any], seen: Alias | None = None) -> None:
        """Moves the alias to a version, in a single write.

        Args:
            version: A published one.
            reason: What the decision rests on; kept in the alias for people.
            seen: The alias that the decision rests on; None = as it is now.

        Raises:
            MovedError: The alias names another version than the decision rests on; the version stays published.
            InputError: The version was deleted meanwhile; the alias is as it was.
        """
        seen = seen or self.alias()
        try:
            seen.replace(self.store, seen.followed_by(version.name, version.key, version.card) | dict(reason))
        except FileExistsError:
            self._check_moved_to(version)
        if not self.store.exists(f"{version.key}/{VERSION_FILE}"):
            with contextlib.suppress(FileExistsError):
                self.alias().replace(self.store, seen.content)
            raise InputError(
                "was deleted meanwhile", file=self.uri_of(version), hint="publish it again, or name another"
            )

    def _check_moved_to(self, version: Version) -> None:
        now = self.alias().version
        if now != version.name:
            raise MovedError(
                f"another run put {now or 'nothing'} into production meanwhile",
                file=self.store.uri_of(ALIAS),
                hint=f"{version.name} stays published: promote again, or roll back --to {version.name}",
            )

    def versions(self) -> list[Version]:
        """Lists all complete versions, the oldest first."""
        suffix = f"/{VERSION_FILE}"
        keys = [entry.key for entry in self.store.list(VERSIONS) if entry.key.endswith(suffix)]
        versions = [self._version(key) for key in keys if key.count("/") == 2]
        return sorted(versions, key=lambda version: (version.name[:_DAY], version.published, version.name))

    def named(self, name: str) -> Version:
        """Returns the complete version of a name.

        Raises:
            InputError: There is none.
        """
        known = {version.name: version for version in self.versions()}
        if name not in known:
            hint = f"known: {', '.join(known) or 'none'}"
            raise InputError(f"there is no version {name!r}", file=self.store.uri_of(VERSIONS), hint=hint)
        return known[name]

    def previous(self, alias: Alias | None = None) -> Version:
        """Returns the version that the alias named before: another model, or the same one with another index.

        Raises:
            InputError: None was in production before, or it is gone.
        """
        name = str((alias or self.alias()).content.get("previous", ""))
        if not name:
            raise InputError("no previous version is known", file=self.store.uri_of(ALIAS), hint="name a version")
        return self.named(name)

    def earlier_model(self, alias: Alias | None = None) -> Version | None:
        """Returns the newest version of the model in production before the present one; None if none is known.

        Where an earlier release wrote the alias, it is the newest version of another model that was published before the
        present model was for the first time.
        """
        content, known = (alias or self.alias()).content, self.versions()
        if not content:
            return None
        if "earlier" in content:
            by_name = {version.name: version for version in known}
            left = [by_name[name] for name in content["earlier"] if name in by_name]
        else:
            left = list(itertools.takewhile(lambda version: version.card != content.get("card"), known))
        return left[-1] if left else None

    def roll_back(self, name: str = "", *, previous: bool = False) -> Version:
        """Puts an earlier version into production again.

        Args:
            name: Name of the version; empty = that of the earlier model.
            previous: Take the one that was in production just before.

        Raises:
            InputError: There is no such version, no other model was in production before, or another run promotes.
        """
        seen = self.alias()
        version = self.previous(seen) if previous else self.named(name) if name else self.earlier_model(seen)
        if version is None:
            hint = "name a version (list shows all)"
            raise InputError("no earlier model is known", file=self.store.uri_of(ALIAS), field="earlier", hint=hint)
        self.put_into_production(version, {"reason": "rolled back by hand"}, seen)
        return version

    def prune(self, keep: int) -> list[Version]:
        """Deletes all but the newest `keep`, the one in production, the one before it, and that of the earlier model.

        `version.json` goes first, so that a version of which something is gone is no version. What a rollback puts into
        production meanwhile stays: the one looks at the other's mark after it has made its own.

        Returns:
            What was deleted.
        """
        alias, known = self.alias(), self.versions()
        earlier = self.earlier_model(alias)
        safe = {alias.version, alias.content.get("previous"), earlier.name if earlier else ""}
        old = [version for version in known[: max(len(known) - keep, 0)] if version.name not in safe]
        return [version for version in old if self._deleted(version)]

    def _deleted(self, version: Version) -> bool:
        mark = f"{version.key}/{VERSION_FILE}"
        content = self.store.read(mark)
        self.store.delete(mark)
        alias = self.alias()
        if version.name in (alias.version, alias.content.get("previous")):
            self.store.write(mark, content)
            return False
        self.store.delete(version.key)
        return True

    def _begun(self, short: str) -> str | None:
        """Name of a version of this content that a killed run has begun, perhaps on another day; None if there is none."""
        names = {entry.key.split("/")[1] for entry in self.store.list(VERSIONS)}
        return min((name for name in names if name.endswith(f"-{short}")), default=None)

    def _version(self, key: str) -> Version:
        content = self.store.read_object(key, HINT)
        names = [field.name for field in dataclasses.fields(Version) if field.name in content]
        try:
            return Version(**{name: str(content[name]) for name in ("name", "model", "card", *names)})
        except KeyError as error:
            raise InputError(
                "is missing", file=self.store.uri_of(key), field=error.args[0], hint="restore that version"
            ) from None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def model_digest(retriever: Path | Mapping[str, Any], index: Path) -> str:
    """Digest over the files of a retriever, which is given by its directory or their manifest, and of its index."""
    return files.digest([manifest_of(retriever) if isinstance(retriever, Path) else retriever, manifest_of(index)])
