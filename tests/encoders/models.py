"""Small models of every architecture in the table, with random weights and tokenizers made here, as others publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from llm_retriever.data.collection import Passage
from tests.conftest import passages

TEXTS = [row["text"] for row in passages(20)] + [
    "a bridge",
    "bread",
    "The river is old",
    "It needs water and moves slowly at night",
]
QUERIES = [f"which {text.split(':')[0][4:].lower()}" for text in TEXTS[:12]] + ["bread?"]
PASSAGES = [Passage(f"p{i}", "Old bridge" if i % 3 else "", text) for i, text in enumerate(TEXTS)]
HIDDEN = 48
_SHARED = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": HIDDEN, "intermediate_size": 64}


def wordpieces(directory: Path) -> transformers.PreTrainedTokenizerBase:
    """A lower-casing WordPiece tokenizer with `[CLS] a [SEP] b [SEP]`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    corpus = [*TEXTS, *QUERIES, "Represent this sentence for searching relevant passages: Old - [ ] { } SEP CLS"]
    tokenizer.train_from_iterator(corpus, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    fast = transformers.BertTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(directory)
    return fast


def bytes_pieces(directory: Path, template: str, names: dict[str, str]) -> transformers.PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer that puts its special tokens as `template` says."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if template != "$A":
        ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(directory)
    return fast


def sentence_pieces(directory: Path, extra: tuple[str, ...] = ()) -> transformers.PreTrainedTokenizerBase:
    """A BPE tokenizer that begins every string with ▁, as those of Llama-2 and Mistral do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)]]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=special, show_progress=False, max_token_length=8)
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if extra:
        fast.add_tokens([AddedToken(token, normalized=False) for token in extra])
    fast.save_pretrained(directory)
    return fast


def bert(directory: Path, seed: int = 0) -> Path:
    """A BERT, as AutoModel saves it."""
    tokenizer = wordpieces(directory)
    torch.manual_seed(seed)
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **_SHARED)
    _varied(transformers.BertModel(config)).save_pretrained(directory)
    return directory


def dpr(directory: Path) -> Path:
    """A DPR checkpoint: query and passage encoder, each within its own class."""
    for side, kind in (("query", "DPRQuestionEncoder"), ("passage", "DPRContextEncoder")):
        tokenizer = wordpieces(directory / side)
        torch.manual_seed(len(side))
        config = transformers.DPRConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **_SHARED)
        _varied(getattr(transformers, kind)(config)).save_pretrained(directory / side)
    return directory


def dragon(directory: Path) -> Path:
    """Two different BERTs."""
    bert(directory / "query", seed=1)
    bert(directory / "passage", seed=2)
    return directory


def distilbert(directory: Path) -> Path:
    """A DistilBERT."""
    tokenizer = wordpieces(directory)
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), dim=HIDDEN, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=512
    )
    torch.manual_seed(3)
    _varied(transformers.DistilBertModel(config)).save_pretrained(directory)
    return directory


def ance(directory: Path) -> Path:
    """A RoBERTa with ANCE's projection and normalisation among its weights."""
    tokenizer = bytes_pieces(
        directory,
        "<s> $A </s>",
        {
            "bos_token": "<s>",
            "cls_token": "<s>",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
        },
    )
    torch.manual_seed(4)
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, pad_token_id=1, type_vocab_size=1, **_SHARED
    )
    _varied(transformers.RobertaModel(config)).save_pretrained(directory)
    weights = {f"roberta.{name}": value for name, value in load_file(directory / "model.safetensors").items()}
    heads = {
        "embeddingHead.weight": torch.randn(HIDDEN, HIDDEN),
        "embeddingHead.bias": torch.randn(HIDDEN),
        "norm.weight": torch.randn(HIDDEN),
        "norm.bias": torch.randn(HIDDEN),
    }
    save_file({**weights, **heads}, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def gtr(directory: Path) -> Path:
    """A T5 encoder with sentence-transformers' Dense beside it; its dimension is not the hidden size."""
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = bytes_pieces(directory, "$A </s>", names)
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=HIDDEN, d_ff=64, d_kv=12, num_layers=2, num_heads=4, pad_token_id=1
    )
    _varied(transformers.T5EncoderModel(config)).save_pretrained(directory)
    (directory / "2_Dense").mkdir()
    save_file({"linear.weight": torch.randn(32, HIDDEN)}, directory / "2_Dense" / "model.safetensors")
    return directory


def gptj(directory: Path) -> Path:
    """A GPT-J, whose tokenizer adds nothing to a text."""
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    tokenizer = bytes_pieces(directory, "$A", names)
    torch.manual_seed(6)
    config = transformers.GPTJConfig(
        vocab_size=len(tokenizer), n_embd=HIDDEN, n_layer=2, n_head=4, rotary_dim=4, n_positions=512
    )
    _varied(transformers.GPTJModel(config)).save_pretrained(directory)
    return directory


def gpt_neo(directory: Path) -> Path:
    """A GPT-Neo with a layer of local attention."""
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    tokenizer = bytes_pieces(directory, "$A", names)
    torch.manual_seed(7)
    config = transformers.GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=512,
    )
    _varied(transformers.GPTNeoModel(config)).save_pretrained(directory)
    return directory


def llm(directory: Path, kind: str = "Llama", extra: tuple[str, ...] = (), seed: int = 8) -> Path:
    """A Llama or Mistral with its language-model head."""
    tokenizer = sentence_pieces(directory, extra)
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **_SHARED,
    )
    _varied(getattr(transformers, f"{kind}ForCausalLM")(config)).save_pretrained(directory)
    return directory


def adapter(directory: Path, base: Path, *, of_causal_lm: bool, seed: int, merged: tuple[Path, ...] = ()) -> Path:
    """A LoRA adapter with random values for a base, made by peft on the inner model or on the causal LM."""
    from peft import LoraConfig, PeftModel, get_peft_model

    loader = transformers.AutoModelForCausalLM if of_causal_lm else transformers.AutoModel
    model: Any = loader.from_pretrained(base)
    for path in merged:
        model = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    torch.manual_seed(seed)
    kind = "CAUSAL_LM" if of_causal_lm else "FEATURE_EXTRACTION"
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type=kind)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(str(directory))
    return directory


def _varied(model: Any) -> Any:
    """Larger weights than a fresh model's, so that a wrong token or position shows in the vectors."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.15 if weight.dim() > 1 else 0.3))
    return model.eval()


def change_json(path: Path, **changes: Any) -> None:
    """Overwrites keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
