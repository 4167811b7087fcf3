"""Small real inputs that the tests share: a BEIR source, a prepared collection, a random Llama with its own tokenizer."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.s3_server import s3, s3_process  # noqa: F401  (fixtures for every test)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")

# KFP reads every compiled pipeline by PyYAML's Python parser; its C parser gives the same, ten times as fast.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# A shell lets what it starts in the background ignore Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

OURS = ("AWS_", "LLM_RETRIEVER_", "KFP_", "KUBEFLOW_", "CUDA_", "RANK", "WORLD_SIZE", "MASTER_", "DEEPSPEED_")
"""What the names of the environment variables begin with that this project reads."""


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """Fails a test that leaves variables of this project behind, which would decide what the next one sees."""
    before = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    yield
    after = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    for name in after.keys() - before.keys():
        del os.environ[name]
    assert after == before, "the test leaves the environment changed"


TOPICS = ["river", "engine", "poem", "planet", "bread", "bridge", "violin", "glacier", "harbour", "lantern"]
FACTS = ["is old", "was built by hand", "can be seen at night", "needs water", "has a long history", "moves slowly"]
PLACES = ["in the north", "near the coast", "behind the hill", "under the moon", "at the market", "across the valley"]


def passages(number: int = 60) -> list[dict[str, str]]:
    """Distinct short passages; every third one has a title."""
    draw = random.Random(3)
    rows = []
    for i in range(number):
        topic, fact, place = TOPICS[i % 10], FACTS[(i // 10) % 6], PLACES[i % 6]
        extra = " ".join(draw.choices(TOPICS, k=6))
        rows.append(
            {
                "_id": f"p{i}",
                "title": topic.title() if i % 3 == 0 else "",
                "text": f"The {topic} {place} {fact}: {extra} {i}.",
            }
        )
    return rows


def queries(rows: list[dict[str, str]], every: int = 1) -> list[tuple[str, str, str]]:
    """(query id, query, relevant passage id) for the passages."""
    return [
        (f"q{i}", f"which {r['text'].split(':')[0][4:].lower()} {i}", r["_id"])
        for i, r in enumerate(rows)
        if i % every == 0
    ]


def write_beir(directory: Path, number: int = 60, train_share: float = 0.7) -> Path:
    """A BEIR source with splits train and test."""
    rows = passages(number)
    asked = queries(rows)
    (directory / "qrels").mkdir(parents=True)
    (directory / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "queries.jsonl").write_text("".join(json.dumps({"_id": q, "text": t}) + "\n" for q, t, _ in asked))
    border = int(len(asked) * train_share)
    for split, part in (("train", asked[:border]), ("test", asked[border:])):
        lines = [f"{query}\t{passage}\t1\n" for query, _, passage in part]
        (directory / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return directory


@pytest.fixture
def beir_source(tmp_path: Path) -> Path:
    """A fresh BEIR directory that a test may spoil."""
    return write_beir(tmp_path / "beir")


@pytest.fixture(scope="session")
def collection_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared collection, as prepare_corpus writes it; not to be changed."""
    from llm_retriever.data import preparation
    from llm_retriever.settings import CorpusSettings

    root = tmp_path_factory.mktemp("collection")
    preparation.prepare(CorpusSettings(uri=str(write_beir(root / "source"))), root / "collection")
    return root / "collection"


def seal(directory: Path) -> str:
    """Makes a collection that a test has changed whole again; returns its fingerprint."""
    from llm_retriever.data.collection import fingerprint_of
    from llm_retriever.files.seal import write_seal

    path = directory / "collection.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {name: (directory / name).stat().st_size for name in manifest["files"]}
    manifest["fingerprint"] = fingerprint_of(directory, manifest["files"])
    path.write_text(json.dumps(manifest))
    write_seal(directory)
    return manifest["fingerprint"]


@pytest.fixture(scope="session")
def training_set_directory(tmp_path_factory: pytest.TempPathFactory, collection_directory: Path) -> Path:
    """A training set over the collection, ten negatives a query, as mine_negatives writes it; not to be changed."""
    directory = tmp_path_factory.mktemp("training_set") / "training_set"
    write_training_set_of(collection_directory, directory)
    return directory


def write_training_set_of(collection_directory: Path, directory: Path, negatives: int = 10) -> None:
    """Writes a training set whose negatives are the next passages of the collection."""
    from llm_retriever.data.collection import Collection
    from llm_retriever.data.training_set import Negative, TrainingExample, write_training_set

    source = Collection.open(collection_directory)
    ids, judged, texts = [p.id for p in source.passages()], source.qrels("train"), source.queries("train")
    examples = []
    for start, (query, text) in enumerate(texts.items()):
        others = [i for i in ids[start:] + ids[:start] if i not in judged[query]][:negatives]
        found = tuple(Negative(other, "bm25", rank, 10.0 - rank) for rank, other in enumerate(others, 1))
        examples.append(TrainingExample(query, text, tuple(judged[query]), found))
    write_training_set(directory, examples, {"source": "neighbours"}, {"queries": len(examples)}, source)


@pytest.fixture(scope="session")
def backbone_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 3-layer Llama with a byte-level BPE tokenizer of 400 ids, as fetch_backbone leaves it; not to be changed."""
    directory = tmp_path_factory.mktemp("backbone") / "backbone"
    return write_backbone(directory)


def write_backbone(directory: Path, *, seed: int = 0, layers: int = 3, heads: int = 4) -> Path:
    """Writes a random Llama, its tokenizer and its lineage."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from llm_retriever.models.card import Lineage, save_lineage, weights_digest

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([row["text"] for row in passages(200)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    save_lineage(directory, Lineage(source="random", digest=weights_digest(directory)))
    return directory
