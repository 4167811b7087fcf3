"""Masked next-token prediction: what is masked, where it is predicted, and what training on it leaves behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llm_retriever import files, methods
from llm_retriever.adaptation import mntp
from llm_retriever.adaptation.adapt import adapt
from llm_retriever.adaptation.mntp import (
    IGNORED,
    Block,
    BlockCollator,
    BlockDataset,
    MaskedLoss,
    mask_id,
    objective,
    shared_stream,
    token_stream,
)
from llm_retriever.adaptation.objective import Task
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.models.attention import set_attention
from llm_retriever.models.card import load_lineage, weights_digest
from llm_retriever.models.prompts import PromptEncoder, passage_text
from llm_retriever.settings import AdaptationSettings, build
from llm_retriever.training.chunks import ByLength
from llm_retriever.training.launching import STOP_FILE
from llm_retriever.training.passes import DIVISOR

ROOT = Path(__file__).parents[2]
RECIPE = methods.MNTP["default"]
SHORT = {
    "method": "mntp",
    "passage_length": 48,
    "batch_size": 8,
    "micro_batch_size": 4,
    "max_steps": 6,
    "learning_rate": 5e-3,
    "precision": "fp32",
    "processes": 1,
}


@pytest.fixture(scope="module")
def tokenizer(backbone_directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(backbone_directory)


@pytest.fixture(scope="module")
def model(backbone_directory: Path) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(backbone_directory, dtype=torch.float32).eval()
    set_attention(loaded, "bidirectional")
    return loaded


def random_blocks(tokenizer: Any, number: int, length: int = 512, epoch: int = 0) -> list[Block]:
    ids = np.random.default_rng(5).integers(0, len(tokenizer), (number, length), dtype=np.int32)
    return [Block(row, (17, epoch, item)) for item, row in enumerate(ids)]


def task(backbone: Path, collection: Path, **changes: Any) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    return Task(replace(RECIPE, **changes), methods.method("llm2vec"), tokenizer, collection, Path("unused"), 17)


def test_blocks_are_the_passages_one_after_the_other_begun_as_in_encoding(
    backbone_directory, collection_directory, tokenizer
):
    dataset = objective(task(backbone_directory, collection_directory, passage_length=100)).dataset
    text = [
        token
        for p in Collection.open(collection_directory).passages()
        for token in PromptEncoder(tokenizer, methods.PromptTemplate("", "", embedding_tokens=()), 10_000).ids(
            passage_text(p.title, p.text)
        )
    ]
    assert len(dataset) == len(text) // 100 > 5
    joined = np.concatenate([dataset[item].ids for item in range(len(dataset))])
    assert joined.tolist() == text[: 100 * len(dataset)]
    assert {len(dataset[item].ids) for item in range(len(dataset))} == {100}


def test_a_collection_smaller_than_a_block_makes_one_shorter_block(backbone_directory, collection_directory):
    dataset = objective(task(backbone_directory, collection_directory, passage_length=10**6)).dataset
    assert len(dataset) == 1
    assert 100 < len(dataset[0].ids) < 10**6


def test_the_names_of_special_tokens_in_a_text_are_ordinary_characters(tokenizer):
    ids = token_stream(iter(["a </s> <s> b"]), tokenizer).tolist()
    assert [ids.count(token) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [1, 0]
    assert ids[0] == tokenizer.bos_token_id


def test_where_nothing_begins_a_text_its_end_is_marked():
    tokenizer = sentencepiece_like("▁river", "▁old")
    assert token_stream(iter(["river old", "old"]), tokenizer).tolist() == [3, 4, 1, 4, 1]


def test_a_stream_longer_than_one_portion_is_whole_and_compact(tokenizer):
    stream = token_stream((f"bridge {i}" for i in range(2500)), tokenizer)
    assert stream.dtype == np.int32
    assert (stream == tokenizer.bos_token_id).sum() == 2500
    assert tokenizer.decode(stream[-3:]).endswith("99")


@pytest.mark.parametrize("masking", ["bert", "all"])
def test_a_fifth_of_the_tokens_is_chosen_and_replaced_as_published(tokenizer, masking):
    blocks = random_blocks(tokenizer, 250)
    batch = BlockCollator(replace(RECIPE, masking=masking), tokenizer)(blocks)
    before, after, labels = torch.tensor(np.stack([b.ids for b in blocks])), batch["input_ids"], batch["labels"]
    chosen, mask = labels != IGNORED, mask_id(tokenizer, "_")
    usable = ~torch.isin(before, torch.tensor(tokenizer.all_special_ids))
    usable[:, 0] = False
    assert usable.sum() > 1e5
    assert (chosen.sum() / usable.sum()).item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(labels[chosen], before[chosen].long())
    assert torch.equal(after[~chosen], before[~chosen].long())
    masked = (after[chosen] == mask).float().mean().item()
    stayed = (after[chosen] == before[chosen]).float().mean().item()
    if masking == "all":
        assert masked == 1
    else:
        assert masked == pytest.approx(0.8, abs=0.01)
        assert stayed == pytest.approx(0.1, abs=0.01)
        random = after[chosen & (after != mask) & (after != before)]
        assert len(random.unique()) > 300
        assert not torch.isin(random, torch.tensor(tokenizer.all_special_ids)).any()


@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_special_tokens_and_the_first_token_are_never_masked(tokenizer, ratio):
    blocks = random_blocks(tokenizer, 40)
    labels = BlockCollator(replace(RECIPE, corruption_ratio=ratio), tokenizer)(blocks)["labels"]
    ids = torch.tensor(np.stack([block.ids for block in blocks]))
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert special.sum() > 50
    assert (labels[special] == IGNORED).all()
    assert (labels[:, 0] == IGNORED).all()
    if ratio == 1:
        assert (labels[:, 1:][~special[:, 1:]] != IGNORED).all()


def test_the_masks_follow_from_seed_epoch_and_item(backbone_directory, collection_directory):
    def batch(seed: int, epoch: int) -> torch.Tensor:
        found = objective(replace(task(backbone_directory, collection_directory, passage_length=64), seed=seed))
        found.dataset.set_epoch(epoch)
        return found.collate([found.dataset[item] for item in (3, 1)])["input_ids"]

    assert torch.equal(batch(1, 0), batch(1, 0))
    assert not torch.equal(batch(1, 0), batch(1, 1))
    assert not torch.equal(batch(1, 0), batch(2, 0))


def test_a_block_alone_is_masked_like_the_same_block_in_a_batch(tokenizer):
    blocks, collate = random_blocks(tokenizer, 4), BlockCollator(RECIPE, tokenizer)
    assert torch.equal(collate(blocks)["input_ids"][2:3], collate(blocks[2:3])["input_ids"])


def test_a_very_short_block_has_at_least_one_label(tokenizer):
    blocks = [Block(np.array([300, 301, 2], np.int32), (0, 0, item)) for item in range(50)]
    labels = BlockCollator(replace(RECIPE, corruption_ratio=0.01), tokenizer)(blocks)["labels"]
    assert (labels[:, 1] == 301).all()


def test_the_label_of_a_position_is_read_one_position_before_it(model, tokenizer):
    batch = BlockCollator(RECIPE, tokenizer)(random_blocks(tokenizer, 3, 40))
    read = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        MaskedLoss()(model, batch)
    finally:
        hook.remove()
    states = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    rows, positions = torch.nonzero(batch["labels"] != IGNORED, as_tuple=True)
    assert torch.equal(read[0].reshape(-1, 64), states[rows, positions - 1])


def test_after_memory_ran_out_the_gradients_are_those_of_one_pass(model, tokenizer, monkeypatch):
    batch = BlockCollator(RECIPE, tokenizer)(random_blocks(tokenizer, 5, 40))
    monkeypatch.setenv(DIVISOR, "2")
    sizes, found = list[int](), []
    hook = model.register_forward_pre_hook(lambda _, __, named: sizes.append(len(named["input_ids"])), with_kwargs=True)
    try:
        for loss in (MaskedLoss(), ByLength(MaskedLoss())):
            model.zero_grad()
            loss(model, batch).backward()
            found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    finally:
        hook.remove()
        model.zero_grad()
    assert sizes[0] == 5
    assert max(sizes[1:]) == 3
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-4)


def test_the_loss_is_that_of_a_plain_loop(model, tokenizer):
    batch = BlockCollator(RECIPE, tokenizer)(
        [*random_blocks(tokenizer, 2, 30), Block(np.arange(300, 312, dtype=np.int32), (1, 1, 1))]
    )
    with torch.no_grad():
        value = MaskedLoss()(model, batch)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = []
    for row, labels in enumerate(batch["labels"].tolist()):
        for position, label in enumerate(labels):
            if label != IGNORED:
                losses.append(-functional.log_softmax(logits[row, position - 1], dim=-1)[label])
    assert len(losses) > 8
    torch.testing.assert_close(value, torch.stack(losses).mean(), atol=1e-6, rtol=0)


def test_a_token_after_the_masked_one_changes_its_prediction(model, tokenizer):
    batch = BlockCollator(RECIPE, tokenizer)(random_blocks(tokenizer, 1, 30))
    batch["labels"][:] = IGNORED
    batch["labels"][0, 5] = 300
    later = {**batch, "input_ids": batch["input_ids"].clone()}
    later["input_ids"][0, 20] = (later["input_ids"][0, 20] + 7) % 300 + 4
    with torch.no_grad():
        assert (MaskedLoss()(model, batch) - MaskedLoss()(model, later)).abs() > 1e-4


def test_a_batch_of_special_tokens_alone_has_a_loss_of_zero(model, tokenizer):
    batch = BlockCollator(RECIPE, tokenizer)([Block(np.full(12, tokenizer.unk_token_id, np.int32), (0, 0, 0))])
    assert MaskedLoss()(model, batch).item() == 0


def sentencepiece_like(*tokens: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(("<unk>", "</s>", "▁", *tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def test_the_mask_is_the_bare_token_where_the_vocabulary_has_two():
    assert mask_id(sentencepiece_like("▁_", "_"), "_") == 4
    assert mask_id(sentencepiece_like("▁_"), "_") == 3


def test_a_tokenizer_without_a_single_mask_token_is_refused(tokenizer):
    with pytest.raises(InputError, match="no single token for the mask '_'"):
        mask_id(sentencepiece_like("a"), "_")
    with pytest.raises(InputError, match="no single token for the mask 'Zq'"):
        mask_id(tokenizer, "Zq")


def test_settings_that_leave_nothing_to_predict_are_refused(tokenizer):
    with pytest.raises(InputError, match="corruption_ratio"):
        BlockCollator(replace(RECIPE, corruption_ratio=0.0), tokenizer)
    with pytest.raises(InputError, match="passage_length"):
        BlockDataset(np.arange(9, dtype=np.int32), 1, 0)
    with pytest.raises(InputError, match="holds no text"):
        BlockDataset(token_stream(iter([]), tokenizer), 8, 0)


def loss_and_gradient(backbone: Path, blocks: list[Block], *, distributed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    set_attention(model, "bidirectional")
    batch = BlockCollator(RECIPE, AutoTokenizer.from_pretrained(backbone))(blocks)
    trained = DistributedDataParallel(model) if distributed else model
    value = MaskedLoss()(trained, batch)
    value.backward()
    return value.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def one_of_two(rank: int, backbone: Path, blocks: list[Block], directory: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=2)
    value, gradient = loss_and_gradient(backbone, blocks[rank::2], distributed=True)
    dist.all_reduce(value)
    torch.save((value / 2, gradient), directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_loss_and_the_gradient_of_one(backbone_directory, tokenizer, tmp_path):
    # Blocks of unequal length have unequally many labels: means of means would differ.
    long, short = random_blocks(tokenizer, 1, 90)[0], random_blocks(tokenizer, 1, 12)[0]
    expected, gradient = loss_and_gradient(backbone_directory, [long, short], distributed=False)
    mp.spawn(one_of_two, (backbone_directory, [long, short], tmp_path), nprocs=2)
    for rank in (0, 1):
        value, own = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(own, gradient, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_an_adaptation_trains_saves_and_says_so(
    backbone_directory, collection_directory, training_set_directory, tmp_path, tune
):
    settings = build(AdaptationSettings, {**SHORT, "tune": tune})
    log = adapt(settings, backbone_directory, collection_directory, training_set_directory, tmp_path / "adapted")
    losses = [entry["loss"] for entry in log.steps]
    assert len(losses) == 6
    assert sum(losses[-2:]) < sum(losses[:2])
    (stage,) = load_lineage(tmp_path / "adapted").stages
    assert stage.stage == "mntp"
    assert (stage.settings["masking"], stage.settings["corruption_ratio"]) == ("bert", 0.2)
    assert weights_digest(tmp_path / "adapted") != weights_digest(backbone_directory)
    after, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "adapted", output_loading_info=True)
    assert not loading["missing_keys"]
    assert after.config.is_causal is False
    if tune == "lora":
        before = AutoModelForCausalLM.from_pretrained(backbone_directory)
        assert torch.equal(after.lm_head.weight, before.lm_head.weight), "the head is frozen"


def test_a_run_of_few_updates_tokenises_no_more_than_it_needs(
    backbone_directory, collection_directory, tokenizer, monkeypatch
):
    monkeypatch.setattr(mntp, "RUN", 2)
    schedule = replace(RECIPE.schedule, max_steps=4, batch_size=5)
    bounded = task(backbone_directory, collection_directory, passage_length=16, schedule=schedule)
    everything = objective(task(backbone_directory, collection_directory, passage_length=16)).dataset.tokens.tolist()
    found = objective(bounded).dataset
    assert 4 * 5 <= len(found) < 3 * 4 * 5 < len(everything) // 16
    begun = np.flatnonzero(found.tokens == tokenizer.bos_token_id)
    passages = [part.tolist() for part in np.split(found.tokens, begun) if len(part)]
    text = " ".join(map(str, everything)) + " "
    places = [text.index(" ".join(map(str, passage)) + " ") for passage in passages]
    assert places == sorted(places), "in the order of the collection"
    other = objective(replace(bounded, seed=18)).dataset
    assert found.tokens.tolist() == objective(bounded).dataset.tokens.tolist() != other.tokens.tolist()


def test_processes_that_train_together_share_one_stream(backbone_directory, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    texts, read = ["which river is old", "a harbour"], []

    def counted(rank: int) -> Iterator[str]:
        for text in texts:
            read.append(rank)
            yield text

    streams = []
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        streams.append(shared_stream(counted(rank), tokenizer).tolist())
    assert streams[0] == streams[1] == token_stream(iter(texts), tokenizer).tolist()
    assert read == [0, 0]


NODE = """
import sys
from pathlib import Path
from llm_retriever.training.launching import launch_share
launch_share("node_streams", {"backbone": sys.argv[1], "output": sys.argv[2]}, Path(sys.argv[3]))
"""
STREAMS = """
import os
from pathlib import Path
from transformers import AutoTokenizer
from llm_retriever.adaptation.mntp import shared_stream

def work(job):
    rank, read = os.environ["RANK"], []
    texts = (read.append(text) or text for text in ["which river is old", "a harbour"])
    ids = shared_stream(texts, AutoTokenizer.from_pretrained(job["backbone"]))
    Path(job["output"], rank).write_text(f"{len(read)} {ids.tolist()}")
"""


@pytest.mark.slow
def test_nodes_that_train_together_have_a_stream_each(backbone_directory, tokenizer, tmp_path):
    (tmp_path / "node_streams.py").write_text(STREAMS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "2",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    nodes = []
    for rank in ("0", "1"):
        disk = tmp_path / f"node-{rank}"
        disk.mkdir()
        own = {"PET_NODE_RANK": rank, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", NODE, str(backbone_directory), str(tmp_path), str(disk)]
        nodes.append(subprocess.Popen(command, env={**os.environ, **meeting, **own}, cwd=disk))
    try:
        assert [node.wait(120) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    found = [(tmp_path / rank).read_text().split(" ", 1) for rank in "0123"]
    stream = str(token_stream(iter(["which river is old", "a harbour"]), tokenizer).tolist())
    assert found == [["2", stream], ["0", stream]] * 2


def test_a_stream_that_nobody_writes_ends_the_wait_with_its_name(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(mntp, "STALLED_SECONDS", 0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    with pytest.raises(RuntimeError, match=r"tokens.int32: nobody on this machine has written to it for 0.5 s"):
        shared_stream(iter(["a text"]), tokenizer)


def test_a_stream_that_grows_slowly_is_waited_for(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(mntp, "STALLED_SECONDS", 0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    path, ids = tmp_path / mntp.SHARED_FILE, np.arange(8, dtype=np.int32)

    def write() -> None:
        with files.atomic_file(path) as draft, draft.open("wb") as file:
            for number in ids:
                file.write(number.tobytes())
                file.flush()
                time.sleep(0.25)

    monkeypatch.setenv("LOCAL_RANK", "1")
    writer = threading.Thread(target=write)
    writer.start()
    assert shared_stream(iter([]), tokenizer).tolist() == ids.tolist()
    writer.join()
