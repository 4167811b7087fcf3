"""Published retrievers made of LLMs: base and adapters merged, texts worded to the token, read out as published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from llm_retriever import encoders
from llm_retriever.errors import InputError
from llm_retriever.methods import NEW_TOKENS
from tests.encoders import models
from tests.encoders.models import PASSAGES, QUERIES

TASK = "Given a web search query, retrieve relevant passages that answer the query"


def title_text(passage: Any) -> str:
    return f"{passage.title} {passage.text}" if passage.title else passage.text


def ids_of(directory: Path, *pieces: str) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.llm(tmp_path_factory.mktemp("llm") / "base", extra=NEW_TOKENS)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.llm(tmp_path_factory.mktemp("llm") / "mistral", "Mistral", seed=9)


def states(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("of_causal_lm", [False, True])
def test_repllama_is_its_base_with_the_adapter_read_at_the_end(base: Path, tmp_path: Path, of_causal_lm: bool) -> None:
    adapter = models.adapter(tmp_path / "adapter", base, of_causal_lm=of_causal_lm, seed=1)
    encoder = encoders.load(f"repllama={base},{adapter}", precision="fp32")
    kind = transformers.AutoModelForCausalLM if of_causal_lm else transformers.AutoModel
    adapted = PeftModel.from_pretrained(kind.from_pretrained(base), str(adapter)).eval()
    model = adapted.base_model.model.model if of_causal_lm else adapted.base_model.model
    queries, passages = encoder.encode_queries(QUERIES), encoder.encode_passages(PASSAGES)
    for i in (0, 3, 12):
        query = [1, *ids_of(base, f"query: {QUERIES[i]}"), 2]
        passage = [1, *ids_of(base, f"passage: {title_text(PASSAGES[i])}"), 2]
        for row, found in ((query, queries[i]), (passage, passages[i])):
            expected = torch.nn.functional.normalize(states(model, row)[-1], dim=0)
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    without = encoders.load(f"repllama={base}", precision="fp32")
    assert np.abs(without.encode_queries(QUERIES) - queries).max() > 0.01
    assert without.identity() != encoder.identity()


def test_llara_averages_over_its_eight_tokens(base: Path) -> None:
    encoder = encoders.load(f"llara-passage={base}", precision="fp32")
    model = transformers.AutoModel.from_pretrained(base).eval()
    next_, self_ = "".join(NEW_TOKENS[8:]), "".join(NEW_TOKENS[:8])
    suffixes = (
        f'", predict the following passage within eight words: {next_}',
        f'", summarize the above passage within eight words: {self_}',
    )
    for text, suffix, found in (
        (QUERIES[0], suffixes[0], encoder.encode_queries(QUERIES[:1], length=200)[0]),
        (title_text(PASSAGES[1]), suffixes[1], encoder.encode_passages(PASSAGES[1:2], length=200)[0]),
    ):
        row = [1, *ids_of(base, '"', text, suffix)]
        assert len(row) < 200
        expected = torch.nn.functional.normalize(states(model, row)[-8:].mean(dim=0), dim=0)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_llara_without_its_tokens_is_refused(mistral: Path) -> None:
    with pytest.raises(InputError, match="no token '<s9>'"):
        encoders.load(f"llara-beir={mistral}").encode_queries(QUERIES)


def both_ways(base: Path, adapters: list[Path]) -> Any:
    model: Any = transformers.AutoModel.from_pretrained(base)
    for path in adapters:
        model = PeftModel.from_pretrained(model, str(path)).merge_and_unload()
    model.config.is_causal = False
    return model.eval()


@pytest.mark.parametrize(
    ("name", "before", "after"), [("llm2vec", "[INST] ", " [/INST]"), ("llm2vec-sheared-llama", "", "")]
)
def test_llm2vec_sees_both_ways_and_averages_over_the_text(
    mistral: Path, tmp_path: Path, name: str, before: str, after: str
) -> None:
    first = models.adapter(tmp_path / "mntp", mistral, of_causal_lm=False, seed=2)
    second = models.adapter(tmp_path / "supervised", mistral, of_causal_lm=False, seed=3, merged=(first,))
    shutil.copytree(mistral, tmp_path / "base")
    encoder = encoders.load(f"{name}={tmp_path}", precision="fp32")
    model = both_ways(mistral, [first, second])
    queries, passages = encoder.encode_queries(QUERIES), encoder.encode_passages(PASSAGES)
    for i in (0, 3, 12):
        for worded, text, found in (
            (f"{TASK}: {QUERIES[i]}", QUERIES[i], queries[i]),
            (title_text(PASSAGES[i]), title_text(PASSAGES[i]), passages[i]),
        ):
            # The whole string is tokenised at once, and the mean is over as many last tokens as the text alone has.
            row = [1, *ids_of(mistral, f"{before}{worded}{after}")]
            pooled = states(model, row)[-len(ids_of(mistral, text + after)) :].mean(dim=0)
            np.testing.assert_allclose(found, torch.nn.functional.normalize(pooled, dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["echo", "echo-mean"])
def test_echo_reads_the_second_copy(mistral: Path, name: str) -> None:
    encoder = encoders.load(f"{name}={mistral}", precision="fp32")
    model = transformers.AutoModel.from_pretrained(mistral).eval()
    text = title_text(PASSAGES[1])
    for pieces, found in (
        ((("Instruct:", f"{TASK},", "\nQuery:"), "\nQuery again:", QUERIES[0]), encoder.encode_queries(QUERIES[:1])[0]),
        ((("Document:",), "\nDocument again:", text), encoder.encode_passages(PASSAGES[1:2])[0]),
    ):
        start, between, body = pieces
        row = [1, *ids_of(mistral, *start, body, between, body), 2]
        count = 1 if name == "echo" else len(ids_of(mistral, body)) + 1
        expected = torch.nn.functional.normalize(states(model, row)[-count:].mean(dim=0), dim=0)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_merged_model_may_stand_for_base_and_adapter(base: Path, tmp_path: Path) -> None:
    adapter = models.adapter(tmp_path / "adapter", base, of_causal_lm=False, seed=1)
    apart = encoders.load(f"repllama={base},{adapter}", precision="fp32")
    apart.model.save_pretrained(tmp_path / "merged")  # type: ignore[attr-defined]
    apart.tokenizer.save_pretrained(tmp_path / "merged")  # type: ignore[attr-defined]
    together = encoders.load(f"repllama={tmp_path / 'merged'}", precision="fp32")
    np.testing.assert_allclose(together.encode_queries(QUERIES), apart.encode_queries(QUERIES), atol=1e-5)


def test_an_adapter_alone_is_refused_with_the_form_that_works(base: Path, tmp_path: Path) -> None:
    adapter = models.adapter(tmp_path / "adapter", base, of_causal_lm=False, seed=1)
    with pytest.raises(InputError, match="an adapter without its base; give both, base first: echo=BASE,ADAPTER"):
        encoders.load(f"echo={adapter}")


def test_an_adapter_of_which_a_matrix_is_missing_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = models.adapter(tmp_path / "adapter", base, of_causal_lm=False, seed=1)
    weights = load_file(adapter / "adapter_model.safetensors")
    removed = sorted(weights)[0]
    kept = {name: value for name, value in weights.items() if name != removed}
    save_file(kept, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the adapter lacks .*lora_A"):
        encoders.load(f"repllama={base},{adapter}")


def test_an_adapter_of_a_larger_model_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = models.adapter(tmp_path / "adapter", base, of_causal_lm=False, seed=1)
    weights = load_file(adapter / "adapter_model.safetensors")
    more = {
        name.replace("layers.1.", "layers.7."): value.clone() for name, value in weights.items() if "layers.1." in name
    }
    save_file({**weights, **more}, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the base has no place for, .*layers\.7"):
        encoders.load(f"repllama={base},{adapter}")


def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(base: Path, tmp_path: Path) -> None:
    adapter = models.adapter(tmp_path / "adapter", base, of_causal_lm=False, seed=1)
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=f"llm-retriever encoders convert {adapter} OUT, and give OUT"):
        encoders.load(f"repllama={base},{adapter}")
