"""Checks from the files alone whether they make a usable causal LM: no framework is loaded, no code runs."""

from __future__ import annotations

import json
import struct
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.models.card import LINEAGE_FILE
from llm_retriever.stores.interface import Store

CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
WEIGHTS_FILE, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
DESCRIPTION_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    LINEAGE_FILE,
    "LICENSE*",
    "NOTICE*",
)
WEIGHTS = "model*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HEADER_LIMIT = 100_000_000
"""Bytes; the limit of the safetensors library itself."""


class ModelFiles:
    """The files of a model in a store.

    Args:
        store: The model's directory or prefix.
        label: What the user calls it; error messages name it.
    """

    def __init__(self, store: Store, label: str) -> None:
        self.store, self.label = store, label.rstrip("/")
        self.names = {entry.key for entry in store.list()}

    def check(self) -> None:
        """Raises InputError unless this is a causal LM with a fast tokenizer and safetensors weights.

        Raises:
            InputError: It is not; the message names the file, the field and the hint.
        """
        self.check_description()
        self.weight_files()

    def check_description(self) -> None:
        """The part of `check` that reads no weights."""
        if not self.names:
            raise InputError("nothing is there", file=self.label, hint="check the path, the URI or the model id")
        self._check_architecture()
        self._check_tokenizer()

    def wanted(self) -> set[str]:
        """Names of the files that a backbone is made of; everything else in the source stays behind."""
        described = {name for name in self.names if any(fnmatch(name, pattern) for pattern in DESCRIPTION_FILES)}
        weights = self.weight_files()
        return described | weights | (set() if weights == {WEIGHTS_FILE} else {WEIGHTS_INDEX})

    def weight_files(self) -> set[str]:
        """Names of the weight files.

        Raises:
            InputError: There are none in safetensors format, or a shard is missing.
        """
        if WEIGHTS_FILE in self.names:
            return {WEIGHTS_FILE}
        if WEIGHTS_INDEX in self.names:
            return self._shards()
        if "adapter_config.json" in self.names:
            raise self._error("an adapter without its base model", WEIGHTS_FILE, "merge it and give the merged model")
        if any(fnmatch(name, pattern) for name in self.names for pattern in _PICKLES):
            raise self._error(
                "the weights are pickled, and pickles can run code", WEIGHTS_FILE, "save the model as safetensors"
            )
        raise self._error("no such file", WEIGHTS_FILE, "give a model that is saved as safetensors")

    def _shards(self) -> set[str]:
        weight_map = self._json(WEIGHTS_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise self._error("names no shards", WEIGHTS_INDEX, "save the model again", field="weight_map")
        shards = {str(name) for name in weight_map.values()}
        for name in sorted(shards):
            if name not in self.names or not fnmatch(name, WEIGHTS):
                raise self._error(f"the shard {name!r} is missing", WEIGHTS_INDEX, "fetch the whole model again")
        return shards

    def _check_architecture(self) -> None:
        if CONFIG_FILE not in self.names:
            raise self._error("no such file", CONFIG_FILE, "give a directory in Hugging Face's layout")
        named = self._json(CONFIG_FILE).get("architectures")
        architectures = [str(name) for name in named] if isinstance(named, list) else []
        if not any(name.endswith("ForCausalLM") or name == "GPT2LMHeadModel" for name in architectures):
            shown = ", ".join(architectures) or "nothing"
            raise self._error(
                f"{shown} is not a causal language model",
                CONFIG_FILE,
                "give a decoder such as LlamaForCausalLM or Qwen3ForCausalLM",
                field="architectures",
            )

    def _check_tokenizer(self) -> None:
        if TOKENIZER_FILE not in self.names:
            raise self._error(
                "there is no fast tokenizer", TOKENIZER_FILE, "load the tokenizer with transformers and save it again"
            )
        eos = self._token("tokenizer_config.json") or self._token("special_tokens_map.json")
        if not eos:
            raise self._error(
                "the tokenizer has no end-of-sequence token",
                "tokenizer_config.json",
                "name one of its tokens there",
                field="eos_token",
            )
        if eos not in self._vocabulary():
            raise self._error(
                f"the end-of-sequence token {eos!r} is not in the vocabulary",
                TOKENIZER_FILE,
                "name one of its tokens",
                field="eos_token",
            )

    def _token(self, file: str) -> str:
        token = self._json(file).get("eos_token") if file in self.names else None
        return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")

    def _vocabulary(self) -> set[str]:
        content = self._json(TOKENIZER_FILE)
        added = {str(token.get("content")) for token in content.get("added_tokens") or []}
        vocabulary = (content.get("model") or {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # Unigram models: [token, score] pairs.
            vocabulary = [row[0] for row in vocabulary]
        return added | set(vocabulary)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self.store.read(name))
        except ValueError as error:
            line = getattr(error, "lineno", None)
            raise InputError(
                "not valid JSON", file=f"{self.label}/{name}", line=line, hint="fetch the model again"
            ) from None
        if not isinstance(content, dict):
            raise self._error("not a JSON object", name, "fetch the model again")
        return content

    def _error(self, problem: str, name: str, hint: str, field: str | None = None) -> InputError:
        return InputError(problem, file=f"{self.label}/{name}", field=field, hint=hint)


def check_safetensors(path: Path, label: str) -> None:
    """Raises InputError unless a weight file is complete, by its header (8 bytes of length, JSON, then the tensors).

    Format: https://huggingface.co/docs/safetensors, "Format".

    Raises:
        InputError: It is cut off, or is something else, such as the pointer of a large file that git did not fetch.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(length) if 0 < length <= min(size, _HEADER_LIMIT) else b""
    try:
        tensors = {name: row for name, row in json.loads(header).items() if name != "__metadata__"}
        end = max((row["data_offsets"][1] for row in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise InputError(
            "not a safetensors file", file=f"{label}/{path.name}", hint="fetch the model again (git lfs pull?)"
        ) from None
    if 8 + length + end != size:
        raise InputError(
            f"has {size:,} bytes in place of {8 + length + end:,}",
            file=f"{label}/{path.name}",
            hint="fetch the model again",
        )
