"""The card of a retriever: all that must be the same in training and in encoding, and the origin of the model.

A model without a card is not encoded with. An index remembers the digest of the card and refuses queries of another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from llm_retriever import files
from llm_retriever.files.checksums import sha256_of_large_file
from llm_retriever.methods import Method, PromptTemplate
from llm_retriever.methods.types import Attention
from llm_retriever.settings import UNSET_NUMBER

CARD_FILE, MODEL_DIRECTORY = "retriever_card.json", "model"
LINEAGE_FILE = "backbone.json"
EMBEDDING_TOKENS = "embedding_tokens"
"""Key of a stage's settings: the tokens that an adaptation has trained to stand for a passage, and those for a query."""


@dataclass(frozen=True)
class Stage:
    """One stage of training: its kind (`ql`, `contrastive`, `pretraining`), settings and data.

    Attributes:
        settings: Resolved hyper-parameters (the recipe with every override).
        data: Digest of the training data.
        seconds: Wall-clock time.
        examples: Training examples seen.
    """

    stage: str
    settings: dict[str, Any]
    data: str = ""
    seconds: float = 0.0
    examples: int = 0


@dataclass(frozen=True)
class Lineage:
    """The origin of a model's weights.

    Attributes:
        source: Directory name, URI or hub id of the backbone.
        revision: Commit of a hub model, else "".
        digest: SHA-256 over the backbone's weight files.
        stages: What was trained on top of it, in order.
        layers: How many of the source's layers were kept, and how many it has; () = it is whole.
        licence: SPDX identifier of the licence of the weights, where it is known.
        origin: Which model it is, in words, where the source does not say it.
    """

    source: str
    revision: str = ""
    digest: str = ""
    stages: tuple[Stage, ...] = ()
    layers: tuple[int, ...] = ()
    licence: str = ""
    origin: str = ""

    def then(self, stage: Stage) -> Lineage:
        """Returns the lineage of a model after one more stage."""
        return dataclasses.replace(self, stages=(*self.stages, stage))


@dataclass(frozen=True)
class RetrieverCard:
    """A retriever's prompts, pooling and scores, and its origin.

    Attributes:
        padding_side: Where the published code pads a batch in training. Vectors do not depend on it, and nothing reads it; it
            stays because the digest of the card, by which an index knows its queries, is made of all fields.
    """

    method: str
    recipe: str
    query: PromptTemplate
    passage: PromptTemplate
    pooling: str
    attention: Attention
    padding_side: Literal["left", "right"]
    normalise: bool
    title_joiner: str
    query_length: int
    passage_length: int
    lineage: Lineage
    score: str = "inner_product"
    weights: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, method: Method, lineage: Lineage, *, weights: str = "", versions: dict[str, str] | None = None
    ) -> RetrieverCard:
        """Makes the card of a model that is used the way `method` says; `weights` is the SHA-256 over its weight files."""
        shared = {f.name for f in dataclasses.fields(cls)} & {f.name for f in dataclasses.fields(method)}
        values = {name: getattr(method, name) for name in shared}
        return cls(method=method.name, lineage=lineage, weights=weights, versions=versions or {}, **values)

    def digest(self) -> str:
        """SHA-256 over all that decides the vectors: prompts, pooling, lengths and weights (not the versions)."""
        content = dataclasses.asdict(self)
        del content["versions"], content["lineage"]
        return files.digest(content)

    def tokens(self, side: Literal["query", "passage"], length: int) -> int:
        """Tokens of a text with its prompt where a setting says `length`: settings count one copy of a text.

        A prompt that puts the text in twice (Echo) gets twice as many; -1, which leaves it to the training, stays.
        """
        template: PromptTemplate = getattr(self, side)
        return length if length == UNSET_NUMBER or template.between is None else 2 * length

    def save(self, directory: str | Path) -> None:
        """Writes the card into a retriever's directory."""
        files.write_json(Path(directory) / CARD_FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, directory: str | Path) -> RetrieverCard:
        """Loads the card of a retriever's directory.

        Raises:
            InputError: There is no card, or it is not one.
        """
        path = Path(directory) / CARD_FILE
        content = files.read_json(
            path, hint="give the output of tune_retriever; a model without a card is not encoded with"
        )
        return _validated(cls, content, path)


def save_lineage(directory: str | Path, lineage: Lineage) -> None:
    """Writes a backbone's lineage into its directory."""
    files.write_json(Path(directory) / LINEAGE_FILE, dataclasses.asdict(lineage))


def load_lineage(directory: str | Path) -> Lineage:
    """Loads a backbone's lineage.

    Raises:
        InputError: The directory is not the output of fetch_backbone or adapt_backbone.
    """
    path = Path(directory) / LINEAGE_FILE
    return _validated(Lineage, files.read_json(path, hint="give the output of fetch_backbone or adapt_backbone"), path)


def _validated(kind: Any, content: Any, path: Path) -> Any:
    return files.checked(TypeAdapter(kind), content, path, hint="make it anew with the step that wrote it")


def weights_digest(directory: str | Path) -> str:
    """SHA-256 over the names and bytes of a model directory's safetensors files; each file is read once."""
    weights = sorted(Path(directory).glob("*.safetensors"))
    return digest_of_weights({path.name: sha256_of_large_file(path) for path in weights})


def digest_of_weights(checksums: Mapping[str, str]) -> str:
    """Digest like `weights_digest`, from the SHA-256 (hex) of every weight file by its name."""
    return files.digest([[name, checksums[name]] for name in sorted(checksums)])
