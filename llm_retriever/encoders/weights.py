"""Loads a published model as its wiring needs it: the encoder within it, its heads, its adapters; digests of its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from llm_retriever import files
from llm_retriever.encoders.rows import Head, Part
from llm_retriever.errors import InputError
from llm_retriever.models.card import weights_digest
from llm_retriever.models.loading import load_model, load_tokenizer, quiet

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "spiece.model", "added_tokens.json")
_UNUSED = re.compile(
    r"(.*\.)?(pooler|cls|lm_head|classifier|vocab_\w+|decoder)\..*"
    r"|(.*\.)?(position_ids|inv_freq|embed_positions|masked_bias|attn\.bias|attn\.attention\.bias)"
)
"""Weights that checkpoints keep and no vector is read from: heads of pre-training, constants."""


@dataclass(frozen=True)
class Tower:
    """The model of one side.

    Attributes:
        model: Its output has `last_hidden_state`.
        tokenizer: A fast one.
        heads: From pooled to final vectors, in fp32.
        dimension: Of the final vectors.
        digest: SHA-256 over weights, heads and tokenizer.
    """

    model: Any
    tokenizer: Any
    heads: nn.Sequential
    dimension: int
    digest: str


def load_tower(directory: Path, part: Part, heads: tuple[Head, ...], device: str, precision: str) -> Tower:
    """Loads a model and its heads.

    Raises:
        InputError: Weights are missing, or there are some that the wiring has no place for.
    """
    for place in (directory, *(directory / head.folder for head in heads)):
        if not any(place.glob("*.safetensors")):
            raise no_weights(place)
    whole, unexpected = load_model(directory, precision, part.kind, _pooler_names(part))
    _check_all_read(unexpected, whole, heads, directory)
    if whole.config.is_encoder_decoder and part.kind == "AutoModel":
        raise InputError("a model with a decoder, which this row cannot read", file=directory, field="model_type")
    model = attrgetter(part.inner)(whole) if part.inner else whole
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.config.use_cache = False
    loaded = [_load_head(head, directory) for head in heads]
    dimension = next((layer.out_features for layer in reversed(loaded) if isinstance(layer, nn.Linear)), None)
    activated = [step for head, layer in zip(heads, loaded, strict=True) for step in _activated(head, layer)]
    return Tower(
        model=model.to(device),
        tokenizer=load_tokenizer(directory),
        heads=nn.Sequential(*activated).float().eval().to(device),
        dimension=int(dimension or model.config.hidden_size),
        digest=files.digest([weights_digest(directory), _heads_digest(heads, directory), tokenizer_digest(directory)]),
    )


def _pooler_names(part: Part) -> tuple[str, ...]:
    """Names of BERT's pooler, which some checkpoints lack and no row reads."""
    return ("pooler.", f"{part.inner}.pooler.") if part.inner else ("pooler.",)


def _check_all_read(names: list[str], model: Any, heads: tuple[Head, ...], directory: Path) -> None:
    if getattr(model.config, "projection_dim", 0):
        raise InputError(
            "the model has a projection that its row does not know", file=directory, field="projection_dim"
        )
    read = tuple(f"{head.weights}." for head in heads if not head.folder)
    unread = [name for name in names if not _UNUSED.fullmatch(name) and not (read and name.startswith(read))]
    if unread:
        raise InputError(
            f"there are weights that this row has no place for ({unread[0]})",
            file=directory,
            hint="use the row that the model belongs to",
        )


def _load_head(head: Head, directory: Path) -> nn.Module:
    place = directory / head.folder
    tensors = _tensors(place, f"{head.weights}.")
    names = {"weight", "bias"} if head.bias else {"weight"}
    if set(tensors) != names:
        missing = sorted(names - set(tensors))
        raise InputError(
            f"the weights lack {head.weights}.{missing[0]}, and vectors without it are worthless"
            if missing
            else f"there is {head.weights}.bias, which this row does not know",
            file=place,
            hint="give the complete checkpoint, saved as safetensors",
        )
    size = tensors["weight"].shape
    layer: nn.Module = nn.Linear(size[1], size[0], bias=head.bias) if head.kind == "linear" else nn.LayerNorm(size[0])
    layer.load_state_dict(tensors)
    return layer


def _activated(head: Head, layer: nn.Module) -> list[nn.Module]:
    return [layer, nn.Tanh()] if head.activation == "tanh" else [layer]


def _tensors(directory: Path, start: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            names = [name for name in weights.keys() if name.startswith(start)]  # noqa: SIM118
            found |= {name.removeprefix(start): weights.get_tensor(name) for name in names}
    return found


def _heads_digest(heads: tuple[Head, ...], directory: Path) -> list[str]:
    return [weights_digest(directory / head.folder) for head in heads if head.folder]


def tokenizer_digest(directory: Path) -> str:
    """SHA-256 over the names and bytes of a directory's tokenizer files."""
    paths = sorted({path for pattern in _TOKENIZER_FILES for path in directory.glob(pattern)})
    return files.digest([[path.name, files.sha256_of_file(path)] for path in paths])


def with_adapters(model: Any, directories: Sequence[Path]) -> Any:
    """Merges LoRA adapters into an inner model, one after the other.

    Args:
        model: The base in fp32, without language-model head.
        directories: PEFT directories, trained on the inner model or on the causal LM.

    Raises:
        InputError: An adapter is not LoRA in safetensors, or does not fit.
    """
    for directory in directories:
        model = _with_adapter(model, directory)
    return model.eval()


def _with_adapter(model: Any, directory: Path) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise no_weights(directory, ADAPTER_WEIGHTS)
    kept = files.read_json(directory / ADAPTER_CONFIG, hint="give the directory of a PEFT adapter")
    if str(kept.get("peft_type")).upper() != "LORA":
        raise InputError("not a LoRA adapter", file=directory / ADAPTER_CONFIG, field="peft_type")
    config = LoraConfig.from_pretrained(str(directory))
    # The model here is the inner one, whatever the adapter was trained on; nothing of its source is imported.
    config.task_type, config.auto_mapping, config.inference_mode = "FEATURE_EXTRACTION", None, True
    config.base_model_name_or_path = None
    with quiet():
        adapted = get_peft_model(model, config)
    state = {_inner_name(name): value for name, value in load_file(directory / ADAPTER_WEIGHTS).items()}
    outcome: Any = set_peft_model_state_dict(adapted, state)
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    for problem, names in (("lacks", missing), ("has, and the base has no place for,", outcome.unexpected_keys)):
        if names:
            raise InputError(
                f"the adapter {problem} {names[0]}", file=directory, hint="give the base it was trained on"
            )
    return adapted.merge_and_unload()


def _inner_name(name: str) -> str:
    """Maps a name in an adapter of the causal LM to that in one of its inner model; others stay as they are."""
    return name.replace("base_model.model.model.", "base_model.model.", 1)


def no_weights(directory: Path, wanted: str = "model.safetensors") -> InputError:
    """Returns the error of a directory without safetensors, with the command that makes them where there are pickled weights."""
    pickled = any(directory.glob("*.bin"))
    return InputError(
        "its weights are pickled, and pickles can run code" if pickled else f"there is no {wanted}",
        file=directory,
        hint=f"llm-retriever encoders convert {directory} OUT, and give OUT" if pickled else "give a complete model",
    )
