"""What was trained is what is saved: adapters, merged models, dtypes, and the refusal of models that did not train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, MixtralConfig

from llm_retriever.errors import InputError
from llm_retriever.methods import Lora
from llm_retriever.models.attention import set_attention
from llm_retriever.training import weight_files, weights
from llm_retriever.training.train import TrainingRun
from llm_retriever.training.weights import attach_lora, hidden_states, load_backbone, save_model, saved_dtype
from tests.conftest import write_backbone
from tests.models.test_attention import random_model

ROOT = Path(__file__).parents[2]
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


def adapter_gradients(directory: Path, precision: str, *, checkpointed: bool = False, casts: bool | None = None):
    """Gradients of an adapter without zeros, on a few random rows."""
    run = replace(RUN, precision=precision)
    model = attach_lora(load_backbone(directory, run, tune="lora", head=False), replace(LORA, dropout=0.0), seed=1)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    draw, trained = torch.Generator().manual_seed(2), [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    for layer in model.modules():
        if casts is not None and isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = casts
    ids = torch.randint(4, 300, (3, 20), generator=draw)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        model.train()(input_ids=ids, use_cache=False).last_hidden_state.float().square().mean().backward()
    return [parameter.grad for parameter in trained]


def test_checkpointed_layers_of_a_frozen_base_train_the_adapter(backbone_directory):
    expected = adapter_gradients(backbone_directory, "fp32")
    assert all(gradient.any() for gradient in expected)
    torch.testing.assert_close(adapter_gradients(backbone_directory, "fp32", checkpointed=True), expected)


def test_an_adapter_that_takes_bf16_as_it_comes_has_the_same_gradients(backbone_directory):
    found = adapter_gradients(backbone_directory, "bf16")
    torch.testing.assert_close(found, adapter_gradients(backbone_directory, "bf16", casts=True), atol=0, rtol=0)


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


# ---- weight by weight


def reference(model, backbone: Path, directory: Path, dtype: torch.dtype) -> Path:
    """What transformers and PEFT write with all weights in memory."""
    whole = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    if isinstance(model, PeftModel):
        saved_adapter = directory.parent / "adapter"
        inner = json.loads((saved_adapter / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"
        PeftModel.from_pretrained(whole.base_model if inner else whole, saved_adapter).merge_and_unload()
    else:
        target = whole if hasattr(model, "lm_head") else whole.base_model
        target.load_state_dict(model.state_dict(), strict=False)
        whole.tie_weights()
    set_attention(whole, "causal")
    whole.to(dtype).save_pretrained(directory)
    return directory


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}


def assert_same(found: Path, expected: Path) -> None:
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name
    for file in ("config.json", "generation_config.json"):
        assert json.loads((found / file).read_text()) == json.loads((expected / file).read_text())


def tied(directory: Path) -> Path:
    """A bfloat16 backbone whose head is the table of input embeddings."""
    write_backbone(directory)
    config = AutoConfig.from_pretrained(directory, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["bf16", "fp32", "tied", "new tokens"])
def test_a_merged_model_is_to_the_bit_what_is_merged_in_memory(head, kind, tmp_path, monkeypatch):
    backbone = (
        tied(tmp_path / "b")
        if kind == "tied"
        else backbone_as(torch.float32 if kind == "fp32" else torch.bfloat16, tmp_path / "b")
    )
    tokens = (390, 395) if kind == "new tokens" else ()
    model = attach_lora(load_backbone(backbone, RUN, tune="lora", head=head), LORA, seed=1, trained_tokens=tokens)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.normal_(std=0.02)
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 100_000)
    saved(model.eval(), backbone, tmp_path)
    assert len(list((tmp_path / "model").glob("model-*-of-*.safetensors"))) > 2
    assert_same(tmp_path / "model", reference(model, backbone, tmp_path / "reference", saved_dtype(backbone)))
    assert sorted(path.name for path in (tmp_path / "model").glob(".*")) == []
    loaded, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values())
    assert loaded.dtype == saved_dtype(backbone)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["bf16", "tied"])
def test_trained_weights_are_saved_to_the_bit_as_from_memory(head, kind, tmp_path, monkeypatch):
    backbone = tied(tmp_path / "b") if kind == "tied" else backbone_as(torch.bfloat16, tmp_path / "b")
    model = load_backbone(backbone, RUN, tune="full", head=head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 100_000)
    saved(model, backbone, tmp_path)
    assert_same(tmp_path / "model", reference(model, backbone, tmp_path / "reference", torch.bfloat16))


def test_no_model_is_loaded_as_a_whole(backbone_directory, tmp_path, monkeypatch):
    model = trained_lora(backbone_directory, head=False)

    def refuse(*_, **__) -> None:
        raise AssertionError("all weights are in memory")

    monkeypatch.setattr(weights, "_in_memory", refuse)
    monkeypatch.setattr(weights, "_load", refuse)
    saved(model, backbone_directory, tmp_path)
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_weights_under_other_names_are_saved_from_memory(tmp_path):
    """As transformers joins the experts of a layer, whose files hold each for itself."""
    backbone = write_backbone(tmp_path / "b")
    config = MixtralConfig(
        **{
            name: getattr(AutoConfig.from_pretrained(backbone), name)
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "bos_token_id",
                "eos_token_id",
                "pad_token_id",
            )
        },
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(backbone)
    with pytest.raises(weight_files.OtherNamesError):
        weight_files.StreamedModel(backbone)
    model = trained_lora(backbone, head=False)
    saved(model, backbone, tmp_path)
    assert_same(tmp_path / "model", reference(model, backbone, tmp_path / "reference", torch.float32))


@pytest.mark.parametrize("kind", ["Phi3Config", "GPT2Config", "OPTConfig"])
def test_an_adapter_is_merged_into_every_projection_whatever_it_is_called(kind, backbone_directory, tmp_path):
    backbone = tmp_path / "backbone"
    random_model(kind).save_pretrained(backbone)
    AutoTokenizer.from_pretrained(backbone_directory).save_pretrained(backbone)
    model = trained_lora(backbone, head=False)
    saved(model, backbone, tmp_path)
    assert_same(tmp_path / "model", reference(model, backbone, tmp_path / "reference", torch.float32))
    before, after = (tensors(directory) for directory in (backbone, tmp_path / "model"))
    same = {name for name, value in before.items() if value.ndim == 2 and torch.equal(value, after[name])}
    assert {name for name in same if any(part.isdigit() for part in name.split("."))} == set()
    assert same


MEASURED = """
import gc, sys
from pathlib import Path
import torch
from transformers import AutoTokenizer
from llm_retriever.training import weight_files
from tests.training.test_weights import ROWS, RUN, LORA, attach_lora, load_backbone, saved
small, backbone, output, tune = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
weight_files.SHARD_BYTES = 4_000_000
torch.set_num_threads(1)

def trained(backbone):
    model = load_backbone(backbone, RUN, tune=tune, head=False)
    if tune == "lora":
        model = attach_lora(model, LORA, seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()

def kib(name):
    (line,) = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name)]
    return int(line.split()[1])

saved(trained(small), small, output / "small")  # what libraries take at first use
model = trained(backbone)
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kib("VmRSS")
saved(model, backbone, output)
print(kib("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_saving_needs_a_fraction_of_the_model_in_memory(tune, tmp_path):
    backbone, small = write_backbone(tmp_path / "b"), write_backbone(tmp_path / "small")
    config = AutoConfig.from_pretrained(backbone, hidden_size=512, intermediate_size=1408, num_hidden_layers=10)
    config.head_dim = config.hidden_size // config.num_attention_heads
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(backbone)
    command = [sys.executable, "-c", MEASURED, str(small), str(backbone), str(tmp_path / "out"), tune]
    # Matrices of a small model would be taken from a heap that does not shrink; those of a large one never are.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    whole = 4 * sum(value.numel() for value in tensors(backbone).values())
    assert whole > 100_000_000
    assert 1024 * int(done.stdout.split()[-1]) < 0.25 * whole
