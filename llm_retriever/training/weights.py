"""Weights of a causal LM: loads them for training, attaches an adapter, gathers, merges, compares and saves."""

from __future__ import annotations

import functools
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM

from llm_retriever.errors import InputError
from llm_retriever.methods import Lora
from llm_retriever.models.attention import check_bidirectional, set_attention
from llm_retriever.models.batches import padded
from llm_retriever.models.fp32_products import use_fast_products
from llm_retriever.models.loading import quiet, whole
from llm_retriever.models.product_attention import use_products
from llm_retriever.models.projections import projections
from llm_retriever.training.deepspeed import full_parameters, sharded_loading
from llm_retriever.training.train import TrainingRun
from llm_retriever.training.weight_files import SHARD_BYTES, OtherNamesError, StreamedModel, WeightFiles, write_shards

MINIMUM_COSINE = 0.9999
ADAPTER_CONFIG = "adapter_config.json"
Save = Callable[[torch.dtype], None]
"""Writes a model's directory in a dtype."""
logger = logging.getLogger(__name__)


def load_backbone(directory: Path, run: TrainingRun, *, tune: str, head: bool, attention: str = "causal") -> Any:
    """Loads a causal LM for training; sharded from the start under ZeRO-3.

    Weights are fp32, or bf16 where the precision is bf16 and they stay frozen (LoRA) or DeepSpeed keeps fp32 copies.

    Args:
        directory: A backbone directory.
        run: Its precision and DeepSpeed stage.
        tune: `full` or `lora`.
        head: True = with the language-model head (`AutoModelForCausalLM`); False = the inner model, whose output is
            `last_hidden_state`.
        attention: `causal` or `bidirectional`; the configuration remembers it when the model is saved.

    Raises:
        InputError: The model cannot be bidirectional.
    """
    halved = run.precision == "bf16" and (tune == "lora" or run.deepspeed != "off")
    with sharded_loading(run.deepspeed, run.precision):
        model = _load(directory, head=head, dtype=torch.bfloat16 if halved else torch.float32)
    set_attention(model, attention)
    if run.precision == "bf16" and not torch.cuda.is_available():
        use_products(model)
    if attention == "bidirectional":
        check_bidirectional(model)
    return model


def _load(directory: Path, *, head: bool, dtype: torch.dtype) -> Any:
    kind = AutoModelForCausalLM if head else AutoModel
    with whole(directory), quiet():
        model = kind.from_pretrained(directory, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    return use_fast_products(model)


def attach_lora(model: Any, lora: Lora, seed: int, trained_tokens: Sequence[int] = ()) -> PeftModel:
    """Puts a fresh LoRA adapter on a model; only the adapter is trainable then, in fp32.

    Args:
        model: A causal LM, or its inner model.
        lora: Rank, scale, dropout and targets.
        seed: Seed of the adapter's first values.
        trained_tokens: Ids whose embeddings are trained with the adapter: tokens that the backbone has just been given.

    What is adapted is told on standard error: architectures name their projections otherwise, and may have more.

    Raises:
        InputError: The model does not have the projections that the adapter is for (`models.projections`), or tokens are
            to be trained in embeddings that ZeRO-3 has sharded.
    """
    if trained_tokens and hasattr(model.get_input_embeddings().weight, "ds_id"):
        raise InputError(
            "new tokens cannot be trained with LoRA under ZeRO-3",
            field="deepspeed",
            hint="use zero2, or train all weights",
        )
    names, left = projections(model, lora.targets)
    if not dist.is_initialized() or dist.get_rank() == 0:
        others = f"; {', '.join(left)} of its experts stay as they are" if left else ""
        print(f"LoRA adapts {', '.join(names)} of {type(model).__name__}{others}", file=sys.stderr, flush=True)
    torch.manual_seed(seed)
    has_head = model.get_output_embeddings() is not None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names,
        trainable_token_indices=list(trained_tokens) or None,
        task_type="CAUSAL_LM" if has_head else "FEATURE_EXTRACTION",
    )
    adapted = get_peft_model(model, config)
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            # Under autocast the adapter would cast bf16 to fp32, which is cast back at once.
            layer.cast_input_dtype_enabled = next(model.parameters()).dtype != torch.bfloat16
    use_fast_products(adapted)
    return adapted


def save_model(
    model: Any,
    tokenizer: Any,
    *,
    base: Path,
    merged: Path,
    adapter: Path | None = None,
    probe: Sequence[Sequence[int]] = (),
) -> None:
    """Saves a trained model completely; every process must call it, rank 0 writes.

    `merged` becomes a causal LM with its head and tokenizer; with LoRA, `adapter` becomes a PEFT directory. Works on a
    plain, PEFT, DDP-trained or ZeRO-1/2/3-trained model, with or without head. Merging happens in fp32. What is written
    is read again and must give the same hidden states on `probe`. The dtype is the one `base` was saved in; where
    rounding to it would lose the comparison, fp32. Weights are gathered, merged and written one by one: beside the trained
    model itself, memory holds no more than a shard. What all weights were trained to lies on disk meanwhile, in fp32.

    Args:
        model: What was given to `training.train`.
        tokenizer: Saved beside the merged model.
        base: The backbone directory that `model` was loaded from.
        merged: An existing or new directory for the full model.
        adapter: Where the LoRA adapter goes.
        probe: Token ids of a few texts on which models are compared; random ids if empty.

    Raises:
        RuntimeError: The adapter did not train, or merging changed the vectors.
    """
    is_lora, first = isinstance(model, PeftModel), not dist.is_initialized() or dist.get_rank() == 0
    gathered = full_parameters(model, trainable_only=is_lora)
    if first:
        rows = [list(ids) for ids in probe] or _random_rows(model.config.vocab_size)
        attention = "causal" if getattr(model.config, "is_causal", None) is not False else "bidirectional"
        if is_lora:
            place = adapter or merged / "adapter"
            _save_adapter(model, dict(gathered), place)
            _save_compared(Trained(base, attention, rows, adapter=place), saved_dtype(base), merged)
        else:
            merged.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".trained-", dir=merged) as scratch:
                write_shards(Path(scratch), gathered)
                _save_compared(Trained(base, attention, rows, weights=Path(scratch)), saved_dtype(base), merged)
        tokenizer.save_pretrained(merged)
    else:
        for _ in gathered:  # Every process gives its share of each.
            pass
    if dist.is_initialized():
        dist.barrier()


def _check_trained(adapter: dict[str, Tensor]) -> None:
    unchanged = [name for name, value in adapter.items() if "lora_B" in name and not value.any()]
    if unchanged:
        raise RuntimeError(f"the adapter did not train: {len(unchanged)} matrices are still zero, first {unchanged[0]}")


def _save_adapter(model: PeftModel, trained: dict[str, Tensor], directory: Path) -> None:
    _check_trained(trained)
    directory.mkdir(parents=True, exist_ok=True)
    named = {name.removeprefix("module."): value.float().contiguous() for name, value in trained.items()}
    state = get_peft_model_state_dict(model, state_dict=named, save_embedding_layers=False)
    save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.inference_mode, config.base_model_name_or_path = True, None
    config.save_pretrained(str(directory))


def load_adapter(model: Any, directory: Path) -> PeftModel:
    """Puts a saved adapter on `model`: a causal LM, or its inner model, whichever the adapter was trained on."""
    kind = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))["task_type"]
    target = model.base_model if kind == "FEATURE_EXTRACTION" and model.get_output_embeddings() is not None else model
    return PeftModel.from_pretrained(target, str(directory), autocast_adapter_dtype=False)


@dataclass(frozen=True)
class Trained:
    """Trained weights on disk, and the base that they belong to.

    Attributes:
        base: The backbone directory.
        attention: `causal` or `bidirectional`.
        rows: Token ids on which models are compared.
        adapter: Directory of the adapter that was trained; None if all weights were.
        weights: Directory of the trained weights, in fp32; None if an adapter was trained.
    """

    base: Path
    attention: str
    rows: list[list[int]]
    adapter: Path | None = None
    weights: Path | None = None


def _save_compared(trained: Trained, dtype: torch.dtype, directory: Path) -> None:
    """Saves a model with what was trained, in `dtype` if that agrees with fp32, else in fp32."""
    try:
        save, expected = _streamed(trained, directory)
    except OtherNamesError:
        save, expected = _in_memory(trained, directory)
    for target in dict.fromkeys((dtype, torch.float32)):
        save(target)
        saved = _saved_states(directory, trained.rows)
        # A padding token that sees nothing but itself has the hidden state zero, whose cosine is 0 even with itself.
        same = (saved == expected).all(dim=-1)
        worst = functional.cosine_similarity(saved, expected, dim=-1).masked_fill(same, 1.0).min().item()
        if worst >= MINIMUM_COSINE:
            return
        logger.warning("saved as %s, the hidden states agree only to a cosine of %.5f", target, worst)
    raise RuntimeError(f"saving changed the model: its hidden states agree only to a cosine of {worst:.5f}")


def _streamed(trained: Trained, directory: Path) -> tuple[Save, Tensor]:
    """Prepares saving weight by weight; returns the function that saves, and hidden states before anything is merged.

    Raises:
        OtherNamesError: The files of the base hold its weights under other names than the model.
    """
    with quiet():
        whole = StreamedModel(trained.base)
        set_attention(whole.model, trained.attention)
        if trained.weights is not None:
            whole.replace(WeightFiles(trained.weights))
        if trained.adapter is not None:
            if json.loads((trained.adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get(
                "trainable_token_indices"
            ):
                whole.hold_embeddings()
            load_adapter(whole.model, trained.adapter)
    with whole.reading() as model:
        expected = hidden_states(model, trained.rows)
    return functools.partial(whole.save, directory), expected


def _in_memory(trained: Trained, directory: Path) -> tuple[Save, Tensor]:
    """Does the same with all weights in memory, where transformers names or joins them otherwise than their files do."""
    whole, expected = _whole(trained)
    made = [whole]
    del whole

    def save(dtype: torch.dtype) -> None:
        # Rounded in place: there is no second copy, and for a second attempt it is made anew.
        last = made.pop() if made else _whole(trained)[0]
        with quiet():
            last.to(dtype).save_pretrained(directory, max_shard_size=SHARD_BYTES)

    return save, expected


def _whole(trained: Trained) -> tuple[Any, Tensor]:
    """Returns the base with the trained weights, in fp32, and its hidden states before anything is merged."""
    whole = _load(trained.base, head=True, dtype=torch.float32)
    set_attention(whole, trained.attention)
    if trained.weights is not None:
        _fill(whole, WeightFiles(trained.weights), trained.base)
    adapted = load_adapter(whole, trained.adapter) if trained.adapter is not None else None
    expected = hidden_states(whole, trained.rows)
    if adapted is not None:
        adapted.merge_and_unload()
    return whole, expected


def _fill(whole: Any, files: WeightFiles, base: Path) -> None:
    """Replaces weights of a model, or of its inner model, by those of files."""
    target = whole if any(n.startswith(f"{whole.base_model_prefix}.") for n in files.names()) else whole.base_model
    unknown = target.load_state_dict({n: files[n] for n in files.names()}, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"{base} has no weights named {unknown[0]}")
    whole.tie_weights()


def _saved_states(directory: Path, rows: Sequence[Sequence[int]]) -> Tensor:
    try:
        with quiet(), StreamedModel(directory).reading() as model:
            return hidden_states(model, rows)
    except OtherNamesError:
        return hidden_states(_load(directory, head=True, dtype=torch.float32), rows)


def hidden_states(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Last hidden states of a causal LM at the real tokens of `rows`, float32 [tokens, dimension]."""
    batch = padded(rows, pad=0)
    with torch.no_grad():
        states = model.base_model(**batch).last_hidden_state
    return states[batch["attention_mask"].bool()].float()


def saved_dtype(directory: Path) -> torch.dtype:
    """The dtype of most weights in a model directory."""
    named = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    counts: Counter[str] = Counter()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            counts.update(weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118
    return named.get(counts.most_common(1)[0][0], torch.float32) if counts else torch.float32


def _random_rows(vocabulary: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (8, 24), generator=draw).tolist()
