"""Who sees whom, on small random models of many architectures: what is told is obeyed, or the model is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from llm_retriever.errors import InputError
from llm_retriever.models.attention import check_attention_mask, check_bidirectional, set_attention
from llm_retriever.models.batches import padded

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
SMALL |= {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
GROUPED = {**SMALL, "num_key_value_heads": 2}
OF_GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NARROW_OPT = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}
LOCAL = {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "LlamaConfig": GROUPED,
    "Qwen3Config": {**GROUPED, "head_dim": 8},
    "Gemma3TextConfig": {**GROUPED, "head_dim": 8},
    "Phi3Config": GROUPED,
    "StableLmConfig": GROUPED,
    "NemotronConfig": GROUPED,
    "GPT2Config": OF_GPT,
    "GPTJConfig": {**OF_GPT, "rotary_dim": 8},
    "OPTConfig": NARROW_OPT,
    "BloomConfig": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "GPTNeoConfig": LOCAL,
    "MambaConfig": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
LLAMA_4 = {**GROUPED, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
ONE_SIDED = ("GPTNeoConfig", "MambaConfig")
WITHOUT_MASK = ("OPTConfig", "BloomConfig", "MambaConfig")
ROWS = [list(range(10, 30)), [40, 41, 42], list(range(50, 61))]


def random_model(name: str, **changes: int) -> Any:
    """A causal LM whose weights are large enough for attention to matter."""
    torch.manual_seed(0)
    given = LLAMA_4 if name == "Llama4TextConfig" else CONFIGURATIONS[name]
    config = getattr(transformers, name)(**{**given, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    return model


@torch.inference_mode()
def states(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


@pytest.mark.parametrize("name", sorted(set(CONFIGURATIONS) - set(ONE_SIDED)))
def test_a_bidirectional_row_is_the_same_alone_as_beside_longer_ones(name):
    model = random_model(name)
    set_attention(model, "bidirectional")
    check_bidirectional(model)
    batch = padded(ROWS, pad=0, side="right")
    together = states(model, batch["input_ids"], batch["attention_mask"])
    for number, row in enumerate(ROWS):
        ids = torch.tensor([row])
        alone = states(model, ids, torch.ones_like(ids))
        torch.testing.assert_close(together[number, : len(row)], alone[0], atol=1e-5, rtol=0)
        changed = states(model, torch.cat([ids[:, :-1], ids[:, -1:] + 1], dim=1), torch.ones_like(ids))
        assert (changed - alone)[0, 0].abs().max() > 1e-3


@pytest.mark.parametrize("name", ONE_SIDED)
def test_a_model_that_stays_causal_is_refused(name):
    model = random_model(name)
    set_attention(model, "bidirectional")
    with pytest.raises(InputError, match="cannot be bidirectional"):
        check_bidirectional(model)


def test_a_model_that_is_bidirectional_only_without_pads_is_refused():
    """Llama 4 builds its own mask as soon as a row has pads: causal where it should not be."""
    inner = random_model("Llama4TextConfig").model
    set_attention(inner, "bidirectional")
    ids = torch.arange(10, 18)[None]
    changed = torch.cat([ids[:, :-1], ids[:, -1:] + 1], dim=1)
    whole = torch.ones_like(ids)
    assert (states(inner, ids, whole) - states(inner, changed, whole))[0, 0].abs().max() > 1e-3
    with pytest.raises(InputError, match=r"Llama4TextModel cannot be bidirectional: .* in a row with pads"):
        check_bidirectional(inner)


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_a_causal_model_is_told_from_a_bidirectional_one(name):
    model = random_model(name)
    set_attention(model, "bidirectional")
    set_attention(model, "causal")
    with pytest.raises(InputError, match="cannot be bidirectional"):
        check_bidirectional(model)


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_a_model_either_obeys_a_mask_or_is_refused(name):
    model = random_model(name).train()
    if name in WITHOUT_MASK:
        with pytest.raises(InputError, match="takes no mask"):
            check_attention_mask(model)
    else:
        check_attention_mask(model)
    assert model.training


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("name", sorted(set(CONFIGURATIONS) - set(ONE_SIDED)))
def test_pads_on_the_right_leave_the_states_as_they_are_where_positions_are_absolute_too(name, attention):
    model = random_model(name)
    set_attention(model, attention)
    ids = torch.tensor([ROWS[0]])
    batch = padded(ROWS[:1], pad=0, side="right", multiple_of=32)
    found = states(model, batch["input_ids"], batch["attention_mask"])[:, : ids.shape[1]]
    torch.testing.assert_close(found, states(model, ids, torch.ones_like(ids)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("check", [check_attention_mask, check_bidirectional])
def test_weights_that_are_no_numbers_are_named_and_not_the_architecture(check):
    model = random_model("LlamaConfig")
    set_attention(model, "bidirectional")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = torch.nan
    with pytest.raises(InputError, match=r"the weights of model\.layers\.1\.mlp\.up_proj\.weight are not all finite"):
        check(model)


def test_states_that_overflow_are_laid_to_the_precision():
    model = random_model("LlamaConfig").half()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(6e4)
        model.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(InputError, match='field "precision": the model computes states that are not finite in float16'):
        check_attention_mask(model)


@pytest.mark.parametrize("check", [check_attention_mask, check_bidirectional])
def test_a_model_whose_outputs_hold_no_states_is_refused(check):
    with pytest.raises(InputError, match=r"Llama4ForCausalLM computes no states .*\(.* has no attribute 'last_hidden"):
        check(random_model("Llama4TextConfig"))  # Its inner model goes by another name than transformers looks for.
