"""What was trained is what is saved: adapters, merged models, dtypes, and the refusal of models that did not train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from llm_retriever.errors import InputError
from llm_retriever.methods import Lora
from llm_retriever.training import TrainingRun
from llm_retriever.weights import attach_lora, hidden_states, load_backbone, save_model, saved_dtype
from tests.conftest import write_backbone

RUN = TrainingRun("t")
ROWS = [[1, 40, 41, 42, 2], [1, 50, 2]]
LORA = Lora(rank=4, alpha=8, dropout=0.1)


def trained_lora(backbone: Path, *, head: bool, size: float = 0.05) -> PeftModel:
    """An adapter as training leaves it: every lora_B moved away from zero."""
    model = attach_lora(load_backbone(backbone, RUN, tune="lora", head=head), LORA, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size)
    return model.eval()


def agreement(model: Path, expected: torch.Tensor) -> float:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return functional.cosine_similarity(hidden_states(loaded, ROWS), expected, dim=-1).min().item()


def saved(model, backbone: Path, directory: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    save_model(model, tokenizer, base=backbone, merged=directory / "model", adapter=directory / "adapter", probe=ROWS)
    return directory


@pytest.mark.parametrize("head", [False, True])
def test_adapter_saved_loaded_and_merged_are_the_trained_model(head, backbone_directory, tmp_path):
    model = trained_lora(backbone_directory, head=head)
    expected = hidden_states(model.get_base_model() if head else _Inner(model), ROWS)
    saved(model, backbone_directory, tmp_path)
    assert agreement(tmp_path / "model", expected) >= 0.9999
    base = (
        AutoModelForCausalLM.from_pretrained(backbone_directory)
        if head
        else AutoModel.from_pretrained(backbone_directory)
    )
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    loaded = hidden_states(again.get_base_model() if head else _Inner(again), ROWS)
    torch.testing.assert_close(loaded, expected, atol=1e-5, rtol=0)


class _Inner:
    """An inner model where `hidden_states` expects one with a head."""

    def __init__(self, model) -> None:
        self.base_model = model


def test_the_merged_model_keeps_the_head_and_the_tokenizer(backbone_directory, tmp_path):
    saved(trained_lora(backbone_directory, head=False), backbone_directory, tmp_path)
    merged, base = (AutoModelForCausalLM.from_pretrained(d) for d in (tmp_path / "model", backbone_directory))
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab()
        == AutoTokenizer.from_pretrained(backbone_directory).get_vocab()
    )


def test_the_adapter_names_no_path_of_this_machine(backbone_directory, tmp_path):
    saved(trained_lora(backbone_directory, head=False), backbone_directory, tmp_path)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_an_adapter_that_did_not_train_is_not_saved(backbone_directory, tmp_path):
    model = attach_lora(load_backbone(backbone_directory, RUN, tune="lora", head=False), LORA, seed=1)
    with pytest.raises(RuntimeError, match="the adapter did not train: 21 matrices are still zero"):
        saved(model, backbone_directory, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", [False, True])
def test_all_weights_saved_are_the_trained_ones(head, backbone_directory, tmp_path):
    model = load_backbone(backbone_directory, RUN, tune="full", head=head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    expected = hidden_states(model if head else _Inner(model), ROWS)
    saved(model, backbone_directory, tmp_path)
    assert agreement(tmp_path / "model", expected) >= 0.9999
    assert not (tmp_path / "adapter").exists()


def backbone_as(dtype: torch.dtype, directory: Path) -> Path:
    write_backbone(directory)
    AutoModelForCausalLM.from_pretrained(directory).to(dtype).save_pretrained(directory)
    return directory


def test_the_merged_model_is_saved_in_the_dtype_of_the_backbone(tmp_path):
    backbone = backbone_as(torch.float16, tmp_path / "backbone")
    saved(trained_lora(backbone, head=False), backbone, tmp_path)
    assert saved_dtype(tmp_path / "model") == torch.float16


def test_a_dtype_that_would_change_the_vectors_gives_way_to_fp32(tmp_path):
    backbone = backbone_as(torch.bfloat16, tmp_path / "backbone")
    # Updates far larger than the weights: rounded to bf16 they move the hidden states.
    model = trained_lora(backbone, head=False, size=30.0)
    expected = hidden_states(_Inner(model), ROWS)
    saved(model, backbone, tmp_path)
    assert saved_dtype(tmp_path / "model") == torch.float32
    assert agreement(tmp_path / "model", expected) >= 0.9999


def test_a_frozen_base_is_loaded_in_bf16_and_its_adapter_in_fp32(backbone_directory):
    run = replace(RUN, precision="bf16")
    model = attach_lora(load_backbone(backbone_directory, run, tune="lora", head=False), LORA, seed=1)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}
    assert load_backbone(backbone_directory, run, tune="full", head=False).dtype == torch.float32


def test_the_same_seed_makes_the_same_adapter(backbone_directory):
    first, again = (
        attach_lora(load_backbone(backbone_directory, RUN, tune="lora", head=False), LORA, seed=1) for _ in range(2)
    )
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_without_the_projections_is_refused(backbone_directory):
    model = load_backbone(backbone_directory, RUN, tune="lora", head=False)
    with pytest.raises(InputError, match=r'"tune".*no LoRA adapter fits LlamaModel'):
        attach_lora(model, replace(LORA, targets=("c_attn",)), seed=1)
