"""The alias of a registry: one small object that names the version in production.

It is replaced in a single write, and only as the writer has seen it: of several who move it at the same time one wins, and
the others are told. A reader finds the old version or the new one.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections.abc import Mapping
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.stores.interface import Store, object_of

ALIAS = "production.json"
_EARLIER_MODELS = 20


class MovedError(InputError):
    """The alias has changed since the decision to move it was made."""


@dataclasses.dataclass(frozen=True)
class Alias:
    """The alias as it was read.

    Attributes:
        content: Version, since when, why, and the version before; {} where nothing was ever promoted.
        tag: By which the store knows this state again; "" where there is none.
    """

    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tag: str = ""

    @property
    def version(self) -> str:
        """Name of the version in production; "" if there is none."""
        return str(self.content.get("version", ""))

    @classmethod
    def read(cls, store: Store) -> Alias:
        """Reads the alias of a registry.

        Raises:
            InputError: It is not one of ours.
        """
        stored = store.read_tagged(ALIAS)
        if stored is None:
            return cls()
        return cls(object_of(stored[0], store.uri_of(ALIAS), "restore it, or remove the alias"), stored[1])

    def followed_by(self, version: str, path: str, card: str) -> dict[str, Any]:
        """Builds the content of an alias that names another version after this one."""
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content: dict[str, Any] = {"version": version, "path": path, "card": card, "since": since}
        content |= {"previous": self.version} if self.version not in ("", version) else {}
        models = {**self.content.get("earlier", {})}
        models |= {self.version: self.content.get("card")} if self.version else {}
        # Of a model that comes back, what came after it was taken out, and is nothing to go back to.
        earlier = list(itertools.takewhile(lambda item: item[1] != card, models.items()))[-_EARLIER_MODELS:]
        return content | {"earlier": dict(earlier)}

    def replace(self, store: Store, content: Mapping[str, Any]) -> None:
        """Writes another alias in place of this one.

        Raises:
            FileExistsError: The alias is not this one any more.
        """
        data = (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
        try:
            if self.tag:
                store.replace(ALIAS, data, self.tag)
            else:
                store.write(ALIAS, data, only_if_absent=True)
        except FileExistsError:
            # A client that sends a write again, because the answer was lost, meets what it has written itself.
            stored = store.read_tagged(ALIAS)
            if stored is None or stored[0] != data:
                raise
