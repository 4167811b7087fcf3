"""Exports: what other programs make of them are the retriever's vectors, or there is no export."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llm_retriever.data.collection import Passage
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from llm_retriever.exporting import __main__ as command
from llm_retriever.exporting.export import export, export_merged, export_sentence_transformers
from llm_retriever.methods import NEW_TOKENS, PromptTemplate, method, with_embedding, with_read_out
from llm_retriever.models.card import CARD_FILE, Lineage, RetrieverCard, weights_digest
from tests.conftest import passages, write_backbone
from tests.models.test_attention import random_model
from tests.models.test_prompts import MAKERS

LENGTHS = {"query_length": 190, "passage_length": 130}
"""The small tokenizer needs 100 tokens for some prompts alone."""
ROWS = {
    "repllama": method("repllama"),
    "repllama released": method("repllama", "released"),
    "summarize": method("summarize"),
    "llm2vec last": method("llm2vec"),
    "llm2vec mean": method("llm2vec", "paper"),
    "llm-ql s2s": with_read_out(method("llm-ql"), "s2s"),
    "llm-ql": method("llm-ql"),
    "echo": method("echo"),
    "echo mean": method("echo", "paper"),
    "llama2vec": method("llama2vec"),
    "repllama eos4": with_embedding(method("repllama"), "eos4"),
    "llm-ql not normalised": dataclasses.replace(with_read_out(method("llm-ql"), "s2s"), normalise=False),
}
REFUSED = {
    "llm-ql": "end queries and passages alike, .* 'The|most relevant passage:",
    "llama2vec": r"end queries and passages alike",
    "echo": "cannot put a text in twice",
    "echo mean": "cannot put a text in twice",
    "repllama eos4": "cannot average over 4 embedding tokens",
}
EXPRESSIBLE = sorted(ROWS.keys() - REFUSED)
QUERIES = ["which river is old", "a literal </s> and <s> in it", "Grüße, 你好", "which bridge " * 60]
PASSAGES = [Passage(row["_id"], row["title"], row["text"]) for row in passages(8)] + [
    Passage("l", "Long", "bread and violin, " * 90),
    Passage("e", "", "needs water: 'never'"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small only wait for one another's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory) -> Path:
    """A random Llama that has the tokens of Llama2Vec, and is the model of all retrievers here."""
    directory = write_backbone(tmp_path_factory.mktemp("model") / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)
    tokenizer.add_tokens(list(NEW_TOKENS))
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def written(model_directory, tmp_path_factory):
    """`written(name)`: the directory of a retriever of a row."""
    made = {}

    def write(name: str, **changes) -> Path:
        key = name + str(changes)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("retriever")
            (made[key] / "model").symlink_to(model_directory)
            row = dataclasses.replace(ROWS[name], **{**LENGTHS, **changes})
            if "echo" in name:
                row = dataclasses.replace(row, query_length=400, passage_length=300)
            RetrieverCard.of(row, Lineage("random"), weights=weights_digest(model_directory)).save(made[key])
        return made[key]

    return write


def texts_of(retriever: Retriever, rows: list[Passage]) -> list[str]:
    return [f"{p.title}{retriever.card.title_joiner}{p.text}" if p.title else p.text for p in rows]


def assert_same(got, expected) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.fixture(scope="module")
def exported(written, tmp_path_factory):
    """`exported(name)`: the sentence-transformers directory of a row's retriever."""
    made = {}

    def directory(name: str) -> str:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("exported") / "export"
            export_sentence_transformers(written(name), made[name])
        return str(made[name])

    return directory


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_sentence_transformers_gives_the_vectors_of_the_retriever(written, exported, name):
    retriever = Retriever.load(written(name), precision="fp32")
    model = SentenceTransformer(exported(name), device="cpu")
    passages = texts_of(retriever, PASSAGES)
    assert_same(model.encode_query(QUERIES), retriever.encode_queries(QUERIES))
    assert_same(model.encode_document(passages, batch_size=3), retriever.encode_passages(PASSAGES))
    assert_same(model.encode(passages, prompt_name="passage"), retriever.encode_passages(PASSAGES))
    scores = retriever.encode_queries(QUERIES) @ retriever.encode_passages(PASSAGES).T
    found = model.similarity(model.encode_query(QUERIES), model.encode_document(passages))
    np.testing.assert_allclose(found.numpy(), scores, atol=1e-3 if name.endswith("normalised") else 1e-4)


@pytest.mark.parametrize("name", ["repllama", "repllama released", "summarize", "llm2vec last"])
def test_long_queries_and_passages_are_cut_to_lengths_of_their_own(written, exported, name):
    model = SentenceTransformer(exported(name), device="cpu")
    retriever = Retriever.load(written(name), precision="fp32")
    words = "bridge bread " * 200
    query = model.preprocess([words], prompt=model.prompts["query"], task="query")["input_ids"][0].tolist()
    passage = model.preprocess([words], prompt=model.prompts["document"], task="document")["input_ids"][0].tolist()
    assert len(query) == LENGTHS["query_length"]
    assert len(passage) == LENGTHS["passage_length"] == model.max_seq_length
    assert [query] == retriever.tokenise_queries([words])
    assert [passage] == retriever.tokenise_passages([words])
    assert query[0] == passage[0] == retriever.tokenizer.bos_token_id
    ending = [] if name == "llm2vec last" else retriever.tokenise_passages(["bridge"])[0][-1:]
    assert all(row[len(row) - len(ending) :] == ending for row in (query, passage))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_sentence_transformers_cannot_express_is_refused_with_the_reason(written, tmp_path, name):
    with pytest.raises(InputError, match=REFUSED[name]) as refused:
        export_sentence_transformers(written(name), tmp_path / "export")
    assert refused.value.hint == "use Retriever, or export it as merged"
    assert list(tmp_path.iterdir()) == []


def test_a_suffix_that_melts_into_some_texts_is_refused(written, tmp_path):
    """As a quotation mark does with a full stop before it, in large vocabularies."""
    template = PromptTemplate("This sentence: ", "er means", "whole", ())
    directory = written("summarize", query=template, passage=template)
    with pytest.raises(InputError, match=r"its tokenizer joins the query .* and the prompt"):
        export_sentence_transformers(directory, tmp_path / "export")
    export_merged(directory, tmp_path / "merged")


def test_pieces_that_a_tokenizer_would_join_are_kept_apart(written, tmp_path):
    """As pieces, the space at the prompt's end is a token of its own; as a whole, it belongs to the text's first word."""
    apart = {
        side: dataclasses.replace(getattr(ROWS["repllama"], side), tokenise="pieces") for side in ("query", "passage")
    }
    pieces, whole = written("repllama", **apart), written("repllama")
    retriever = Retriever.load(pieces, precision="fp32")
    assert retriever.tokenise_queries(["river"]) != Retriever.load(whole).tokenise_queries(["river"])
    export_sentence_transformers(pieces, tmp_path / "export")
    model = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    assert_same(model.encode_query(QUERIES), retriever.encode_queries(QUERIES))


def spaced_at_the_start() -> PreTrainedTokenizerFast:
    """As Llama-2 in later releases: only the beginning of a string gets a ▁."""
    tokenizer = MAKERS["sentencepiece"]()
    first = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.backend_tokenizer.pre_tokenizer = first
    return tokenizer


def spaced_by_the_normaliser() -> PreTrainedTokenizerFast:
    """As Llama-2 in earlier releases: nothing is split."""
    tokenizer = MAKERS["sentencepiece"]()
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer", [MAKERS["sentencepiece"], spaced_at_the_start, spaced_by_the_normaliser, MAKERS["nfkc"]]
)
@pytest.mark.parametrize("name", ["repllama", "llm2vec last", "llm2vec mean"])
def test_other_kinds_of_tokenizers_are_exported_too(model_directory, tmp_path, name, tokenizer):
    AutoModelForCausalLM.from_pretrained(model_directory).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.resize_token_embeddings(2000)
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    row = dataclasses.replace(ROWS[name], **LENGTHS)
    retriever = Retriever.on_backbone(tmp_path / "model", RetrieverCard.of(row, Lineage("random")), precision="fp32")
    export(retriever, tmp_path / "export", "sentence-transformers")
    found = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    # None of these is cut: this vocabulary has tokens of white space alone, and `Retriever` drops them at a cut.
    assert_same(found.encode_query(QUERIES[:3]), retriever.encode_queries(QUERIES[:3]))
    short = PASSAGES[:8]
    assert_same(found.encode_document(texts_of(retriever, short)), retriever.encode_passages(short))


def code_of(readme: Path) -> str:
    return re.search(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_lines_of_the_merged_readme_give_the_vectors_of_the_retriever(written, tmp_path, name):
    retriever = Retriever.load(written(name), precision="fp32")
    export(retriever, tmp_path / "export")
    lines = code_of(tmp_path / "export" / "README.md").replace('path = "."', f"path = {str(tmp_path / 'export')!r}")
    there: dict = {}
    exec(lines, there)
    for text in QUERIES:
        assert_same(there["encode"](text, "query").numpy(), retriever.encode_queries([text])[0])
    for text in texts_of(retriever, PASSAGES):
        assert_same(there["encode"](text, "passage").numpy(), retriever.encode_passages([text])[0])


def test_the_lines_of_the_sentence_transformers_readme_run(written, exported, monkeypatch):
    monkeypatch.chdir(exported("repllama"))
    there: dict = {}
    exec(code_of(Path("README.md")), there)
    retriever = Retriever.load(written("repllama"), precision="fp32")
    expected = retriever.encode_queries(["how old is the bridge"])
    expected = expected @ retriever.encode_passages([Passage("a", "Old bridge", "Built in 1302.")]).T
    np.testing.assert_allclose(there["scores"].numpy(), expected, atol=1e-4)


def test_a_merged_export_is_a_retriever_with_a_card_of_its_own_weights(written, tmp_path):
    export_merged(written("llm2vec mean"), tmp_path / "export")
    card = RetrieverCard.load(tmp_path / "export")
    again = Retriever.on_backbone(tmp_path / "export", card, precision="fp32")
    assert again.card == card
    assert card.weights == weights_digest(tmp_path / "export")
    original = Retriever.load(written("llm2vec mean"), precision="fp32")
    assert_same(again.encode_queries(QUERIES), original.encode_queries(QUERIES))
    assert not any("lm_head" in name for name in load_file(tmp_path / "export" / "model.safetensors"))


@pytest.mark.parametrize("format", ["merged", "sentence-transformers"])
def test_an_export_remembers_which_way_the_model_looks(written, tmp_path, format):
    for name, bidirectional in (("llm2vec last", True), ("repllama", False)):
        export(Retriever.load(written(name), precision="fp32"), tmp_path / name, format)
        config = (tmp_path / name / "config.json").read_text()
        assert ('"is_causal": false' in config) == bidirectional
        assert ("**bidirectional**" in (tmp_path / name / "README.md").read_text()) == bidirectional


def test_weights_keep_the_precision_that_the_retriever_was_loaded_in(written, tmp_path):
    export(Retriever.load(written("repllama"), precision="bf16"), tmp_path / "low")
    export_merged(written("repllama"), tmp_path / "high")
    for name, dtype in (("low", torch.bfloat16), ("high", torch.float32)):
        assert {w.dtype for w in load_file(tmp_path / name / "model.safetensors").values()} == {dtype}


def test_an_export_that_gives_other_vectors_is_not_written(written, tmp_path):
    retriever = Retriever.load(written("repllama"), precision="fp32")
    export(retriever, tmp_path / "export")
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    # A hook is not saved: the files say something else than the model in memory.
    retriever.model.layers[0].register_forward_hook(lambda module, given, output: output.flip(-1))
    for kind in ("merged", "sentence-transformers"):
        with pytest.raises(InputError, match="gets another vector"):
            export(retriever, tmp_path / "export", kind)
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("kind", ["merged", "sentence-transformers"])
def test_a_model_that_forgets_to_be_bidirectional_is_not_exported(model_directory, tmp_path, kind):
    """StableLM alone in its batch: its layers are told here, and no file could tell them elsewhere."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    random_model("StableLmConfig", vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    row = dataclasses.replace(ROWS["llm2vec last"], **LENGTHS)
    retriever = Retriever.on_backbone(tmp_path, RetrieverCard.of(row, Lineage("random")), precision="fp32")
    with pytest.raises(InputError, match="gets another vector"):
        export(retriever, tmp_path / "export", kind)


@pytest.mark.parametrize("kind", ["merged", "sentence-transformers"])
def test_an_export_replaces_no_directory_of_somebodys_own(written, tmp_path, kind):
    """Another model has files of the same names."""
    mine = Path(shutil.copytree(written("repllama") / "model", tmp_path / "mine"))
    (mine / "README.md").write_text("# My model\n")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(InputError, match="not known as an export"):
        export(Retriever.load(written("repllama"), precision="fp32"), mine, kind)
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


@pytest.mark.parametrize("place", [".", "model", ".."])
def test_an_export_never_replaces_the_retriever_itself(written, place):
    directory = written("repllama")
    with pytest.raises(InputError, match="would replace the retriever or lie within it"):
        export_merged(directory, directory / place)
    assert Retriever.load(directory).card.method == "repllama"


def test_the_command_line_says_what_it_did_or_why_not(written, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "export"), "--format", "sentence-transformers", "--retriever"]
    assert command.main([*arguments, str(written("llm-ql"))]) == EXIT_BAD_INPUT
    shown = capsys.readouterr().err
    assert shown.startswith('exporting: field "format": sentence-transformers can only end queries and passages alike')
    assert shown.count("\n") == 1
    assert command.main([*arguments, str(tmp_path / "nowhere")]) == EXIT_BAD_INPUT
    capsys.readouterr()
    assert command.main([*arguments, str(written("repllama"))]) == 0
    assert capsys.readouterr().out.strip().endswith("its vectors are the retriever's")
    assert (tmp_path / "export" / "modules.json").is_file()
    arguments[3] = "merged"
    assert command.main([*arguments, str(written("repllama"))]) == 0
    assert (tmp_path / "export" / CARD_FILE).is_file()
    assert not (tmp_path / "export" / "modules.json").exists()
