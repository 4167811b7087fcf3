"""What a LoRA adapter goes to, by architecture: every projection of the recipe, or none and an error."""

from __future__ import annotations

import pytest
import torch
import transformers

from llm_retriever.errors import InputError
from llm_retriever.methods import Lora
from llm_retriever.methods.types import ALL_PROJECTIONS
from llm_retriever.models.projections import projections
from llm_retriever.training.weights import attach_lora
from tests.models.test_attention import GROUPED, random_model

WITHOUT_K = [name for name in ALL_PROJECTIONS if name != "k_proj"]
NAMES = {
    "LlamaConfig": set(ALL_PROJECTIONS),
    "Qwen3Config": set(ALL_PROJECTIONS),
    "StableLmConfig": set(ALL_PROJECTIONS),
    "NemotronConfig": set(ALL_PROJECTIONS) - {"gate_proj"},
    "Phi3Config": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "GPT2Config": {"c_attn", "attn.c_proj", "c_fc", "c_proj"},
    "GPTJConfig": {"q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"},
    "GPTNeoConfig": {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"},
    "OPTConfig": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "BloomConfig": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
}


@pytest.mark.parametrize("kind", NAMES)
def test_an_adapter_goes_to_every_linear_layer_whatever_it_is_called(kind, capsys):
    model = random_model(kind)
    linear = {
        path.removeprefix(f"{model.base_model_prefix}.")
        for path, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and any(part.isdigit() for part in path.split("."))
    }
    names, left = projections(model, ALL_PROJECTIONS)
    assert (set(names), left) == (NAMES[kind], [])
    adapted = attach_lora(model, Lora(rank=2), seed=1)
    got = {path.rpartition(".lora_A.default")[0] for path, _ in adapted.named_parameters() if ".lora_A." in path}
    assert {path.removeprefix(f"base_model.model.{model.base_model_prefix}.") for path in got} == linear
    assert f"LoRA adapts {', '.join(names)} of {type(model).__name__}\n" in capsys.readouterr().err


def test_attention_and_feed_forward_layers_of_one_name_are_told_apart():
    names, _ = projections(random_model("GPT2Config"), ["o_proj"])
    assert names == ["attn.c_proj"]


def test_experts_in_one_tensor_stay_as_they_are_and_are_named(capsys):
    config = transformers.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    names, left = projections(model, ALL_PROJECTIONS)
    assert (names, left) == (["k_proj", "o_proj", "q_proj", "v_proj"], ["down_proj", "gate_up_proj"])
    attach_lora(model, Lora(rank=2), seed=1)
    assert "down_proj, gate_up_proj of its experts stay as they are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "wanted", "reason"),
    [
        ("Phi3Config", WITHOUT_K, "qkv_proj joins q_proj, k_proj, v_proj"),
        ("MambaConfig", ALL_PROJECTIONS, "it computes with dt_proj, in_proj, x_proj as well"),
        ("BloomConfig", ["gate_proj"], "it has none of gate_proj"),
    ],
)
def test_what_would_adapt_a_part_without_a_word_is_refused(kind, wanted, reason):
    with pytest.raises(InputError, match=rf'"tune".*no LoRA adapter fits \w+: {reason}'):
        projections(random_model(kind), wanted)
