"""Reads a sentence-transformers directory, as far as its modules can be understood; what cannot be is refused, not guessed.

Layout: sentence-transformers 6, `modules.json` with a Transformer, a Pooling, any number of Dense and at most one Normalize.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from llm_retriever import files
from llm_retriever.encoders.rows import Head, Part, Row, Wiring
from llm_retriever.errors import InputError
from llm_retriever.models.model_files import CONFIG_FILE
from llm_retriever.models.pooling import POOLINGS

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
_POOLINGS = {row.exported: name for name, row in POOLINGS.items() if not row.counted}
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh"}
_ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
_PLAIN = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
_TRANSFORMER_KEYS = {
    "max_seq_length",
    "do_lower_case",
    "query_length",
    "document_length",
    "modality_config",
    *_PLAIN,
}
_FALLBACK_LENGTH = 512


def understood(directory: Path, name: str) -> tuple[Row, Wiring, Path]:
    """Reads a sentence-transformers directory as a row with its wiring, and finds its model.

    Args:
        directory: With `modules.json`.
        name: What people call it.

    Raises:
        InputError: It has a module, or a setting of one, that is not known here.
    """
    kinds = _modules(directory)
    (_, model), (_, pooling), *rest = kinds
    model_directory = directory / model
    transformer, prompts = _transformer(model_directory), _prompts(directory)
    heads = tuple(_head(directory, path, model) for kind, path in rest if kind == "Dense")
    mode, pool_prefix = _pooling(directory / pooling / CONFIG_FILE)
    wiring = Wiring(
        query_length=transformer.get("query_length") or transformer["max_seq_length"],
        passage_length=transformer.get("document_length") or transformer["max_seq_length"],
        pooling=mode,
        normalise=any(kind == "Normalize" for kind, _ in rest) or _by_cosine(directory),
        query_prefix=prompts["query"],
        passage_prefix=prompts["passage"],
        heads=heads,
        pool_prefix=pool_prefix,
        lower_case=bool(transformer.get("do_lower_case")),
    )
    family = _json(model_directory / CONFIG_FILE).get("model_type", "")
    part = Part("model", name, kind=_ENCODERS.get(family, "AutoModel"))
    return Row(name, "sentence-transformers", (part,), wiring), wiring, model_directory


def _modules(directory: Path) -> list[tuple[str, str]]:
    """Reads kind and folder of each module, in order."""
    file = directory / MODULES
    rows = files.read_json(file)
    try:
        modules = [(str(row["type"]).rpartition(".")[2], str(row["path"])) for row in rows]
    except (TypeError, KeyError):
        raise InputError("not a list of modules", file=file) from None
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not _follows(kinds[2:]):
        raise InputError(
            f"modules {', '.join(kinds)} are not known here",
            file=file,
            hint="Transformer, Pooling, Dense and a last Normalize are",
        )
    for _, path in modules:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise InputError(f"the folder {path!r} is outside of the directory", file=file, field="path")
    return modules


def _follows(kinds: list[str]) -> bool:
    dense = kinds[:-1] if kinds[-1:] == ["Normalize"] else kinds
    return set(dense) <= {"Dense"}


def _transformer(directory: Path) -> dict[str, Any]:
    """Reads the settings of the Transformer module, with a `max_seq_length`."""
    file = next(iter(sorted(directory.glob("sentence_*_config.json"))), None)
    content = _json(file) if file else {}
    for key, value in content.items():
        if value and (key not in _TRANSFORMER_KEYS or _PLAIN.get(key, value) != value):
            raise InputError(f"{value!r} is not known here", file=file, field=key)
    if not content.get("max_seq_length"):
        most = [
            _json(directory / CONFIG_FILE).get("max_position_embeddings"),
            _json(directory / "tokenizer_config.json").get("model_max_length"),
        ]
        content["max_seq_length"] = min([int(number) for number in most if number] or [_FALLBACK_LENGTH])
    return content


def _pooling(file: Path) -> tuple[str, bool]:
    """Reads the pooling, and whether a prefix's tokens take part."""
    content = _json(file)
    modes = [mode for key, mode in _OLD_POOLINGS.items() if content.get(key)]
    named = content.get("pooling_mode", modes[0] if len(modes) == 1 else modes)
    mode = named if isinstance(named, str) else "+".join(named or ["no pooling"])
    if mode not in _POOLINGS:
        known = ", ".join(_POOLINGS.values())
        raise InputError(f"{mode!r} is not known here", file=file, field="pooling_mode", hint=f"{known} are")
    include = bool(content.get("include_prompt", True))
    if not include and mode == "cls":
        raise InputError("the first token cannot be left out of itself", file=file, field="include_prompt")
    return _POOLINGS[mode], include


def _head(directory: Path, path: str, model: str) -> Head:
    file = directory / path / CONFIG_FILE
    content = _json(file)
    activation = str(content.get("activation_function", "Tanh")).rpartition(".")[2]
    named = {content.get(key, "sentence_embedding") for key in ("module_input_name", "module_output_name")}
    if activation not in _ACTIVATIONS or content.get("use_residual") or named - {"sentence_embedding", None}:
        raise InputError("a Dense module of a kind that is not known here", file=file, hint="Identity and Tanh are")
    folder = str(PurePosixPath(*[".."] * len(PurePosixPath(model).parts), path))
    bias = bool(content.get("bias", True))
    return Head("linear", "linear", bias=bias, folder=folder, activation="tanh" if activation == "Tanh" else "identity")


def _prompts(directory: Path) -> dict[str, str]:
    """Reads the prefix of each side, chosen as `encode_query` and `encode_document` choose it."""
    content = _settings(directory)
    named = {key: text for key, text in (content.get("prompts") or {}).items() if text is not None}
    default = named.get(content.get("default_prompt_name") or "", "")
    passage = next((named[key] for key in ("document", "passage", "corpus") if key in named), default)
    return {"query": named.get("query", default), "passage": passage}


def _by_cosine(directory: Path) -> bool:
    """Whether the directory asks for cosine similarity, which here is the inner product of vectors of length 1."""
    asked = _settings(directory).get("similarity_fn_name")
    if asked not in (None, "cosine", "dot"):
        raise InputError(f"{asked!r} is not known here", file=directory / SETTINGS, field="similarity_fn_name")
    return asked == "cosine"


def _settings(directory: Path) -> dict[str, Any]:
    return _json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}


def _json(file: Path) -> dict[str, Any]:
    content = files.read_json(file, hint="give a complete sentence-transformers directory")
    if not isinstance(content, dict):
        raise InputError("not a JSON object", file=file)
    return content
