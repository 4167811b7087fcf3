"""Llama2Vec stage one, to the token: rows, who sees whom, targets, losses, and what comes out of a training."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_retriever.adaptation import bag_of_words
from llm_retriever.adaptation.adapt import adapt
from llm_retriever.adaptation.consecutive import TextPair, consecutive_texts
from llm_retriever.adaptation.ebae_ebar import EbaeEbarLoss, JointCollator, joint_mask, objective
from llm_retriever.adaptation.objective import Task
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.methods import EBAE_EBAR, METHODS, NEW_TOKENS, EbaeEbarRecipe
from llm_retriever.models import masks
from llm_retriever.models.batches import padded
from llm_retriever.models.prompts import PromptEncoder
from llm_retriever.settings import AdaptationSettings, build
from llm_retriever.training.vocabulary import extended, new_token_ids

METHOD = METHODS["llama2vec"]["default"]
RELEASED = replace(EBAE_EBAR["released"], passage_length=40)
PAPER = replace(EBAE_EBAR["paper"], passage_length=40)
PAIRS = [
    TextPair("River is old", "It needs water, and the coast."),
    TextPair("The glacier moves slowly near the coast. " * 6, "the bridge"),
    TextPair("</s> 🙂 <s1>?", "it is the <s> and </s>"),
    TextPair("a poem under the moon", "The violin at the market, the lantern across the valley " * 5),
]


@pytest.fixture(scope="module")
def directory(backbone_directory: Path):
    with extended(backbone_directory, NEW_TOKENS) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(directory: Path):
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def model(directory: Path):
    return loud(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval())


def loud(llm):
    """Makes the weights large enough for outputs to differ from row to row, and the new tokens' rows unlike each other."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
        embeddings = llm.get_input_embeddings().weight
        embeddings[-16:] += 0.1 * torch.randn_like(embeddings[-16:])
    return llm


def collator(tokenizer, recipe: EbaeEbarRecipe = RELEASED, **options) -> JointCollator:
    return JointCollator(recipe, options.pop("method", METHOD), tokenizer, **options)


def plain(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def hidden(llm, **inputs) -> Tensor:
    with torch.no_grad():
        return llm.base_model(use_cache=False, **inputs).last_hidden_state


def joint_hidden(llm, batch: dict[str, Tensor]) -> Tensor:
    """Last hidden states of the joint pass."""
    ids, positions = batch["input_ids"], batch["position_ids"]
    return hidden(llm, input_ids=ids, attention_mask=joint_mask(llm, batch), position_ids=positions)


def real_rows(batch: dict[str, Tensor]) -> list[list[int]]:
    return [ids[real.bool()].tolist() for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def expected_branch(tokenizer, side: str) -> list[int]:
    template = METHOD.passage if side == "self" else METHOD.query
    return [*plain(tokenizer, template.suffix), *tokenizer.convert_tokens_to_ids(list(template.embedding_tokens))]


def test_a_row_is_prompt_text_self_next(tokenizer):
    row = real_rows(collator(tokenizer)(PAIRS[:1]))[0]
    assert row == [
        tokenizer.bos_token_id,
        *plain(tokenizer, '"'),
        *plain(tokenizer, "River is old"),
        *expected_branch(tokenizer, "self"),
        *expected_branch(tokenizer, "next"),
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [8, 40, 500])
def test_the_text_is_cut_and_the_prompts_never(tokenizer, side: str, length: int):
    batch = collator(tokenizer, replace(RELEASED, passage_length=length), padding_side=side)(PAIRS)
    own, following = (expected_branch(tokenizer, branch) for branch in ("self", "next"))
    for i, (pair, row) in enumerate(zip(PAIRS, real_rows(batch), strict=True)):
        assert row[2 : -len(own) - len(following)] == plain(tokenizer, pair.text.strip())[:length]
        assert row[-len(own) - len(following) :] == [*own, *following]
        s, p = int(batch["self_start"][i]), int(batch["next_start"][i])
        assert batch["input_ids"][i, s:p].tolist() == own
        assert batch["input_ids"][i, p : p + len(following)].tolist() == following
        places = {side: batch["input_ids"][i, batch[f"{side}_places"][i]].tolist() for side in ("self", "next")}
        assert places == {"self": own[-8:], "next": following[-8:]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_next_stands_where_self_does(tokenizer, side: str):
    batch = collator(tokenizer, padding_side=side)(PAIRS)
    own, following = (len(expected_branch(tokenizer, branch)) for branch in ("self", "next"))
    for positions, real in zip(batch["position_ids"], batch["attention_mask"].bool(), strict=True):
        s = int(real.sum()) - own - following
        assert positions[real].tolist() == [*range(s + own), *range(s, s + following)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_joint_pass_equals_two_passes(tokenizer, directory: Path, side: str, attention: str):
    llm = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation=attention)
    llm = loud(llm.eval())
    batch = collator(tokenizer, padding_side=side)(PAIRS)
    joint = joint_hidden(llm, batch)
    own, following = (len(expected_branch(tokenizer, branch)) for branch in ("self", "next"))
    whole = real_rows(batch)
    first = [row[:-following] for row in whole]
    second = [row[: -own - following] + row[-following:] for row in whole]
    for rows, start, end in ((first, batch["self_start"], own), (second, batch["next_start"], following)):
        alone = padded(rows, 3, side)
        states = hidden(llm, **alone)
        for i, (real, s) in enumerate(zip(alone["attention_mask"].bool(), start.tolist(), strict=True)):
            torch.testing.assert_close(joint[i, s : s + end], states[i][real][-end:], atol=1e-5, rtol=0)


def test_retrieval_prompts_read_the_states_of_the_joint_pass(tokenizer, model):
    recipe = replace(RELEASED, passage_length=30)
    batch = collator(tokenizer, recipe)(PAIRS)
    joint = joint_hidden(model, batch)
    for template, places in ((METHOD.passage, "self_places"), (METHOD.query, "next_places")):
        prompt = 2 + len(expected_branch(tokenizer, places.removesuffix("_places")))
        rows = PromptEncoder(tokenizer, template, 30 + prompt).batch([pair.text for pair in PAIRS])
        states = hidden(model, **padded(rows, 3))[:, -8:]
        found = joint[torch.arange(len(PAIRS))[:, None], batch[places]]
        torch.testing.assert_close(found, states, atol=1e-5, rtol=0)


def test_nothing_flows_between_the_branches(tokenizer, model):
    batch = collator(tokenizer)(PAIRS)
    inputs = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    mask, positions = joint_mask(model, batch), batch["position_ids"]
    states = model.base_model(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False)
    states = states.last_hidden_state
    for i, (s, p) in enumerate(zip(batch["self_start"].tolist(), batch["next_start"].tolist(), strict=True)):
        for own, other in ((slice(s, p), slice(p, None)), (slice(p, None), slice(s, p))):
            (gradient,) = torch.autograd.grad(states[i, own].square().sum(), inputs, retain_graph=True)
            assert gradient[i, other].abs().max() == 0
            assert gradient[i, own].abs().max() > 0
            assert gradient[i, s - 1].abs().max() > 0, "the text must be seen"


def test_the_following_text_never_leaks_into_the_row(tokenizer):
    """With another following text the row is the same; only the targets of NEXT differ."""
    one = collator(tokenizer)([TextPair("River is old", "It needs water")])
    other = collator(tokenizer)([TextPair("River is old", "violin lantern")])
    assert [name for name in one if not torch.equal(one[name], other[name])] == ["next_targets"]


def loop_loss(llm, tokenizer, pairs: list[TextPair], recipe: EbaeEbarRecipe) -> float:
    """The loss by loops over single rows, with two passes for each, and the full head."""
    bags, counts, ar, ar_count = [0.0, 0.0], [0, 0], 0.0, 0
    for pair in pairs:
        batch = collator(tokenizer, recipe)([pair])
        row, s, p = batch["input_ids"][0].tolist(), int(batch["self_start"]), int(batch["next_start"])
        for branch, ids, name in ((0, row[:p], "self_targets"), (1, row[:s] + row[p:], "next_targets")):
            with torch.no_grad():
                logits = llm(input_ids=torch.tensor([ids])).logits[0].double()
            at_tokens = logits[-len(batch["self_places"][0]) :]
            targets = [t for t in batch[name][0].tolist() if t != bag_of_words.IGNORED]
            if recipe.loss == "released" and targets:
                z = at_tokens.max(dim=0).values.log_softmax(-1)
                bags[branch] -= sum(z[t].item() for t in targets) / len(targets)
                counts[branch] += 1
            elif recipe.loss == "paper":
                bags[branch] -= sum(row[t].item() for t in targets for row in at_tokens.log_softmax(-1)) / len(
                    at_tokens
                )
                counts[branch] += len(targets)
        for i in range(2, s):
            ar -= logits[i - 1].log_softmax(-1)[row[i]].item()
            ar_count += 1
    bag = sum(total / count for total, count in zip(bags, counts, strict=True))
    return recipe.bag_weight * bag + recipe.ar_weight * ar / ar_count


@pytest.mark.parametrize("recipe", [RELEASED, PAPER, replace(RELEASED, ar_weight=0.0, bag_weight=1.0)])
def test_the_loss_is_that_of_a_plain_loop(tokenizer, model, recipe: EbaeEbarRecipe):
    value = EbaeEbarLoss(recipe)(model, collator(tokenizer, recipe)(PAIRS)).item()
    assert value == pytest.approx(loop_loss(model, tokenizer, PAIRS, recipe), abs=1e-5)


def test_bag_losses_are_those_of_a_plain_loop():
    torch.manual_seed(1)
    logits = torch.randn(3, 4, 50)
    targets = bag_of_words.stacked([[7, 9, 30], [], [4]])
    z = logits.max(dim=1).values.log_softmax(-1)
    unique = -((z[0, 7] + z[0, 9] + z[0, 30]) / 3 + z[2, 4]) / 2
    assert bag_of_words.unique_loss(logits, targets).item() == pytest.approx(unique.item(), abs=1e-6)
    every = logits.log_softmax(-1)
    tokens = sum(every[b, k, t].item() / 4 for b, t in ((0, 7), (0, 9), (0, 30), (2, 4)) for k in range(4)) / 4
    assert bag_of_words.token_loss(logits, targets).item() == pytest.approx(-tokens, abs=1e-6)


@pytest.mark.parametrize("loss", [bag_of_words.unique_loss, bag_of_words.token_loss])
def test_empty_bags_alone_give_zero_and_no_nan(loss):
    logits = torch.randn(2, 4, 50, requires_grad=True)
    value = loss(logits, bag_of_words.stacked([[], []]))
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("recipe", [RELEASED, PAPER])
def test_the_loss_does_not_depend_on_padding_or_order(tokenizer, model, recipe: EbaeEbarRecipe):
    left = EbaeEbarLoss(recipe)(model, collator(tokenizer, recipe)(PAIRS))
    right = EbaeEbarLoss(recipe)(model, collator(tokenizer, recipe, padding_side="right")(PAIRS[::-1]))
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_eager_and_sdpa_give_the_same_loss_and_gradients(
    tokenizer, directory: Path, dtype: torch.dtype, tolerance: float
):
    batch, outcome = collator(tokenizer)(PAIRS), []
    for attention in ("eager", "sdpa"):
        llm = AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention, dtype=dtype)
        value = EbaeEbarLoss(RELEASED)(llm, batch)
        value.backward()
        outcome.append([value.detach(), *(p.grad for p in llm.parameters())])
    for eager, sdpa in zip(*outcome, strict=True):
        torch.testing.assert_close(eager, sdpa, atol=tolerance, rtol=0)


@pytest.mark.parametrize("recipe", [RELEASED, PAPER, replace(PAPER, loss="released")])
def test_special_tokens_are_never_targets(tokenizer, recipe: EbaeEbarRecipe):
    batch = collator(tokenizer, recipe)(PAIRS)
    for name in ("self_targets", "next_targets"):
        assert not set(batch[name].flatten().tolist()) & set(tokenizer.all_special_ids)
    assert bag_of_words.without_specials(tokenizer, [5, 2, 1, len(tokenizer) - 1, 6]) == [5, 6]


def test_clean_targets_are_the_content_words_once(tokenizer):
    pair = TextPair("The river, the river_bank: it isn't old!", "Is it?")
    batch = collator(tokenizer)([pair])
    wanted = plain(tokenizer, "river river bank old")
    assert batch["self_targets"][0].tolist() == list(dict.fromkeys(wanted))
    assert batch["next_targets"].tolist() == [[bag_of_words.IGNORED]], "stop words only: an empty bag"


def test_uncleaned_targets_are_all_tokens_as_often_as_they_come(tokenizer):
    batch = collator(tokenizer, PAPER)([TextPair("the river, the river", "the old old")])
    assert batch["self_targets"][0].tolist() == plain(tokenizer, "the river, the river")
    assert [t for t in batch["next_targets"][0].tolist() if t >= 0] == plain(tokenizer, "the old old")


def test_released_targets_have_a_length_of_their_own(tokenizer):
    text = "The river in the north is old, and the glacier and the harbour and the bridge are older"
    wanted = plain(tokenizer, "river north old glacier harbour bridge older")
    for length in (3, 40):
        recipe = replace(RELEASED, passage_length=8, target_length=length)
        batch = collator(tokenizer, recipe)([TextPair(text, text)])
        expected = list(dict.fromkeys(wanted[:length]))
        assert [batch[f"{branch}_targets"][0].tolist() for branch in ("self", "next")] == [expected, expected]


def test_targets_are_cut_where_the_text_is(tokenizer):
    text = "glacier harbour " * 4 + "violin " * 30
    recipe = replace(RELEASED, passage_length=8, target_length=0)
    ids = plain(tokenizer, text)[:8]
    batch = collator(tokenizer, recipe)([TextPair(text, text)])
    cut = list(dict.fromkeys(plain(tokenizer, tokenizer.decode(ids).strip())))
    assert set(batch["self_targets"][0].tolist()) <= set(cut)
    assert batch["self_targets"].tolist() == batch["next_targets"].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_next_token_loss_is_on_the_text_alone(tokenizer, side: str):
    batch = collator(tokenizer, padding_side=side)(PAIRS)
    for pair, ids, targets in zip(PAIRS, batch["input_ids"], batch["targets"], strict=True):
        assert ids[targets].tolist() == plain(tokenizer, pair.text.strip())[:40]


@pytest.mark.parametrize("ar_weight", [0.0, 1.0])
def test_the_head_runs_only_where_it_is_needed(tokenizer, model, ar_weight: float):
    batch, seen = collator(tokenizer)(PAIRS), []
    hook = model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    EbaeEbarLoss(replace(RELEASED, ar_weight=ar_weight))(model, batch)
    hook.remove()
    text = int(batch["targets"].sum()) if ar_weight else 0
    assert [shape[:-1].numel() for shape in seen] == [len(PAIRS) * 16 + text]


def test_a_random_model_starts_at_the_entropy_of_its_vocabulary(tokenizer, directory: Path):
    llm = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        value = EbaeEbarLoss(PAPER)(llm, collator(tokenizer, PAPER)(PAIRS))
    assert value.item() == pytest.approx(2 * math.log(len(tokenizer)), abs=0.3)


@pytest.mark.parametrize("random", [True, False])
def test_new_tokens_start_alike_at_the_mean_or_apart_at_random(backbone_directory: Path, random: bool):
    starts = []
    for _ in range(2):
        with extended(backbone_directory, NEW_TOKENS, random=random) as directory:
            ids = new_token_ids(AutoTokenizer.from_pretrained(directory), METHOD)
            starts.append(AutoModelForCausalLM.from_pretrained(directory).get_input_embeddings().weight[ids].detach())
    assert torch.equal(*starts)
    assert bool((starts[0] == starts[0][0]).all()) != random
    assert not random or starts[0].std().item() == pytest.approx(0.02, rel=0.1)


def test_a_backbone_without_the_new_tokens_is_refused(backbone_directory: Path):
    with pytest.raises(InputError, match="no token '<s1>'"):
        collator(AutoTokenizer.from_pretrained(backbone_directory))


def test_a_passage_length_without_room_is_refused(tokenizer):
    with pytest.raises(InputError, match='"passage_length": 4 tokens leave no room'):
        collator(tokenizer, replace(RELEASED, passage_length=4))


def test_the_papers_own_prompts_work_with_one_embedding_token(tokenizer, model):
    method = METHODS["llama2vec"]["paper"]
    batch = collator(tokenizer, PAPER, method=method)(PAIRS)
    assert batch["self_places"].shape == (4, 1)
    assert (batch["input_ids"].gather(1, batch["next_places"]) == tokenizer.eos_token_id).all()
    value = EbaeEbarLoss(PAPER)(model, batch)
    assert torch.isfinite(value)


def loss_and_gradient(directory: Path, pairs: list[TextPair], *, distributed: bool) -> tuple[Tensor, Tensor]:
    llm = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    batch = collator(AutoTokenizer.from_pretrained(directory))(pairs)
    trained = DistributedDataParallel(llm) if distributed else llm
    value = EbaeEbarLoss(RELEASED)(trained, batch)
    value.backward()
    return value.detach(), torch.cat([parameter.grad.flatten() for parameter in llm.parameters()])


def one_of_two(rank: int, backbone: Path, place: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'rendezvous'}", rank=rank, world_size=2)
    # The third pair has no bag for what follows, and texts are of unequal lengths: means of means would differ.
    own = PAIRS[:2] if rank == 0 else PAIRS[2:]
    value, gradient = loss_and_gradient(backbone, own, distributed=True)
    dist.all_reduce(value)
    torch.save((value / 2, gradient), place / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_loss_and_the_gradient_of_one(directory: Path, tmp_path: Path):
    expected, gradient = loss_and_gradient(directory, PAIRS, distributed=False)
    mp.spawn(one_of_two, (directory, tmp_path), nprocs=2)
    for rank in (0, 1):
        value, own = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(own, gradient, atol=1e-5, rtol=0)


def test_the_objective_reads_the_collection(tokenizer, collection_directory: Path, training_set_directory: Path):
    found = objective(Task(RELEASED, METHOD, tokenizer, collection_directory, training_set_directory, 17))
    assert len(found.dataset) == Collection.open(collection_directory).passage_count
    assert found.head
    batch = found.collate([found.dataset[i] for i in range(3)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["position_ids"].shape


SHORT = {
    "method": "ebae_ebar",
    "passage_length": 40,
    "batch_size": 8,
    "micro_batch_size": 4,
    "max_steps": 6,
    "learning_rate": 5e-3,
    "precision": "fp32",
    "processes": 1,
}


def loss_of(model_directory: Path, collection: Path) -> float:
    llm = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    dataset = consecutive_texts(Collection.open(collection), 0)
    collate = collator(AutoTokenizer.from_pretrained(model_directory))
    with torch.no_grad():
        return EbaeEbarLoss(RELEASED)(llm, collate([dataset[i] for i in range(16)])).item()


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_adapting_learns_and_saves_the_new_tokens(
    tune: str,
    directory: Path,
    backbone_directory: Path,
    collection_directory: Path,
    training_set_directory: Path,
    tmp_path: Path,
):
    settings = build(AdaptationSettings, {**SHORT, "tune": tune})
    log = adapt(settings, backbone_directory, collection_directory, training_set_directory, tmp_path / "adapted")
    assert (len(log.steps), log.examples) == (6, 48)
    saved = AutoTokenizer.from_pretrained(tmp_path / "adapted")
    ids = new_token_ids(saved, METHOD)
    assert len(ids) == 16
    assert saved("<s1>", add_special_tokens=False)["input_ids"] == ids[:1]
    before, after = (
        AutoModelForCausalLM.from_pretrained(d).get_input_embeddings().weight[ids]
        for d in (directory, tmp_path / "adapted")
    )
    assert ((after - before).norm(dim=-1) > 1e-4).all(), "an embedding of a new token was not trained"
    assert functional.pairwise_distance(after[:1], after[1:]).min() > 0
    assert loss_of(tmp_path / "adapted", collection_directory) < loss_of(directory, collection_directory) - 0.02
    with safe_open(tmp_path / "adapted" / "model.safetensors", framework="pt") as weights:
        assert "lm_head.weight" in weights.keys()  # noqa: SIM118


def test_a_mask_of_the_wrong_kind_is_rejected(tokenizer, model):
    with pytest.raises(ValueError, match="silently wrong"):
        masks.check(joint_mask(model, collator(tokenizer)(PAIRS)) == 0)
