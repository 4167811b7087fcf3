"""Training: how examples become updates, what a kill leaves, and that going on is the same as never having stopped."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaModel

from llm_retriever.errors import InputError
from llm_retriever.methods import Schedule
from llm_retriever.settings import TuningSettings
from llm_retriever.training.train import TrainingLog, TrainingRun, discard_checkpoints, planned, train, training_run

SCHEDULE = Schedule(
    epochs=2, batch_size=8, micro_batch_size=4, learning_rate=1e-2, warmup=0.1, gradient_checkpointing=False
)


class Numbers:
    """Examples 0, 1, 2, …; remembers the epochs it was told."""

    def __init__(self, size: int = 40) -> None:
        self.size, self.epochs, self.read = size, [], []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, item: int) -> int:
        self.read.append(item)
        return item

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def collate(items: list[int]) -> dict[str, torch.Tensor]:
    return {"numbers": torch.tensor(items)}


def squared(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = batch["numbers"][:, None] % 50
    return (
        (model(input_ids=ids, use_cache=False).last_hidden_state - batch["numbers"][:, None, None] / 40).pow(2).mean()
    )


def small_model(dropout: float = 0.1) -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            attention_dropout=dropout,
        )
    )


def test_the_batch_is_global_and_accumulated():
    plan = planned(replace(SCHEDULE, batch_size=32, micro_batch_size=4), examples=1000, world=2)
    assert (plan.micro_batch_size, plan.accumulation) == (4, 4)
    assert plan.updates_per_epoch == 32
    assert plan.updates == 64
    assert plan.examples(plan.updates) == 2 * 1000


def test_a_micro_batch_that_does_not_fit_becomes_the_largest_divisor():
    assert planned(replace(SCHEDULE, batch_size=12, micro_batch_size=8), 100, 1).micro_batch_size == 6


def test_a_micro_batch_is_no_larger_than_the_dataset():
    plan = planned(replace(SCHEDULE, batch_size=8, micro_batch_size=8), 5, 1)
    assert plan.micro_batch_size == 4
    assert plan.updates_per_epoch == 1


def test_a_warm_up_for_a_longer_training_takes_a_tenth_of_the_updates():
    assert planned(replace(SCHEDULE, warmup=100), 80, 1).warmup == 2
    assert planned(replace(SCHEDULE, warmup=100, max_steps=5000), 40, 1).warmup == 100
    assert planned(replace(SCHEDULE, warmup=300, max_steps=1000), 40, 1).warmup == 300
    assert planned(replace(SCHEDULE, warmup=0.05, max_steps=1000), 40, 1).warmup == 50


def test_a_batch_that_cannot_be_divided_among_the_processes_is_refused_with_the_hint():
    with pytest.raises(InputError, match=r'"batch_size".*9 queries.*2 processes.*multiple of 2'):
        planned(replace(SCHEDULE, batch_size=9), 100, 2)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"epochs": 1e308}, "epochs"), ({"epochs": 1e12}, "epochs"), ({"max_steps": 10**30}, "max_steps")],
)
def test_more_updates_than_anybody_waits_for_are_refused(changes, field):
    with pytest.raises(InputError, match=f'field "{field}": asks for more than 1,000,000,000 updates'):
        planned(replace(SCHEDULE, **{"max_steps": -1, **changes}), 100, 1)


def test_fewer_examples_than_processes_are_refused():
    with pytest.raises(InputError, match="1 training examples for 2 processes"):
        planned(SCHEDULE, 1, 2)


def test_the_loss_falls_and_the_log_tells_of_every_update(capsys):
    log = train(small_model(), Numbers(), collate, squared, SCHEDULE, TrainingRun("fit numbers"))
    assert [entry["step"] for entry in log.steps] == list(range(1, 11))
    assert log.steps[-1]["loss"] < 0.7 * log.steps[0]["loss"]
    assert log.examples == 80
    assert log.seconds > 0
    assert "fit numbers: 80/80 (100%) pairs" in capsys.readouterr().err
    assert set(log.metrics()) == {"updates", "pairs", "seconds", "loss_start", "loss_end", "pairs_per_second"}


def test_the_learning_rate_rises_and_falls_in_a_line():
    log = train(small_model(), Numbers(), collate, squared, replace(SCHEDULE, max_steps=20), TrainingRun("t"))
    rates = [entry["learning_rate"] for entry in log.steps]
    assert max(rates) == rates[2] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-2 / 18)


def test_a_logarithmic_warm_up_and_the_decay_behind_it_are_those_of_deepspeed():
    schedules = pytest.importorskip("deepspeed.runtime.lr_schedules")
    plan = planned(replace(SCHEDULE, warmup=7, max_steps=40, warmup_shape="logarithmic"), 100, 1)
    optimizer = torch.optim.SGD(small_model().parameters(), lr=1.0)
    reference = schedules.WarmupDecayLR(optimizer, 40, warmup_max_lr=1.0, warmup_num_steps=7)
    for update in range(40):
        reference.step(update)
        assert plan.rate(update) == pytest.approx(reference.get_lr()[0], abs=1e-12)
    log = train(
        small_model(),
        Numbers(),
        collate,
        squared,
        replace(SCHEDULE, warmup=4, max_steps=10, warmup_shape="logarithmic"),
        TrainingRun("t"),
    )
    rates = [entry["learning_rate"] for entry in log.steps]
    assert rates[:5] == pytest.approx(
        [0, 1e-2 * math.log(2) / math.log(4), 1e-2 * math.log(3) / math.log(4), 1e-2, 1e-2]
    )


def test_a_decay_that_is_planned_over_more_epochs_is_not_over_at_the_end():
    plan = planned(replace(SCHEDULE, batch_size=8, max_steps=10, warmup=0.0, decay_epochs=3), 80, 1)
    assert (plan.updates, plan.decay) == (10, 30)
    assert [plan.rate(update) for update in (0, 9)] == pytest.approx([1, 21 / 30])
    short = planned(replace(SCHEDULE, batch_size=8, max_steps=10, warmup=0.0, decay_epochs=3), 16, 1)
    assert short.rate(9) == pytest.approx(1 / 10), "where the data are few, it ends with the training"


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.1, 0.9, 1, 2, 100])
@pytest.mark.parametrize("examples", [1, 5, 8, 9, 16, 40])
def test_a_short_training_loses_no_update_to_a_warm_up(examples: int, warmup: float):
    schedule = replace(SCHEDULE, epochs=1, warmup=warmup)
    model = small_model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    log = train(model, Numbers(examples), collate, squared, schedule, TrainingRun("t"))
    rates = [entry["learning_rate"] for entry in log.steps]
    assert max(rates) == 1e-2, "the training reaches the learning rate that was asked for"
    assert rates[-1] > 0, "the last update counts"
    assert rates.count(0.0) == (warmup == 2 and examples == 40), "but for a warm-up that rises, in which the first is 0"
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_accumulating_micro_batches_is_training_with_the_whole_batch():
    whole, accumulated = (
        train(small_model(0.0), Numbers(), collate, squared, replace(SCHEDULE, micro_batch_size=m), TrainingRun("t"))
        for m in (8, 2)
    )
    for key in ("loss", "grad_norm"):
        found = [entry[key] for entry in accumulated.steps]
        assert found == pytest.approx([entry[key] for entry in whole.steps], rel=1e-3)


def test_an_epoch_reads_every_example_once_and_the_dataset_is_told_which_epoch_it_is():
    dataset = Numbers()
    train(small_model(), dataset, collate, squared, SCHEDULE, TrainingRun("t"))
    assert [epoch for epoch, _ in itertools.groupby(dataset.epochs)] == [0, 1]
    assert sorted(dataset.read) == sorted([*range(40)] * 2)
    assert dataset.read[:40] != dataset.read[40:]


def test_a_loss_that_is_not_a_number_ends_the_training_with_the_hint():
    def spoilt(model, batch):
        return squared(model, batch) * float("nan")

    with pytest.raises(InputError, match=r'"learning_rate".*nan at update 1; lower it'):
        train(small_model(), Numbers(), collate, spoilt, SCHEDULE, TrainingRun("t"))


def test_bf16_trains_too():
    log = train(small_model(), Numbers(), collate, squared, SCHEDULE, TrainingRun("t", precision="bf16"))
    assert log.steps[-1]["loss"] < 0.7 * log.steps[0]["loss"]


def test_a_model_comes_back_with_its_own_forward():
    model = small_model()
    train(model, Numbers(), collate, squared, SCHEDULE, TrainingRun("t", precision="bf16"))
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 2]])).last_hidden_state.dtype == torch.float32
    assert not hasattr(model, "_original_forward")


class KilledError(Exception):
    pass


@pytest.mark.parametrize("update", [3, 5, 7])
def test_killed_and_resumed_is_exactly_the_same_as_uninterrupted(update, tmp_path):
    run = TrainingRun("t", checkpoints=tmp_path, checkpoint_minutes=1e-9)
    whole = small_model()
    expected = train(whole, Numbers(), collate, squared, SCHEDULE, TrainingRun("t"))

    calls = 0

    def dies(model, batch):
        nonlocal calls
        calls += 1
        if calls > 2 * update:
            raise KilledError
        return squared(model, batch)

    with pytest.raises(KilledError):
        train(small_model(), Numbers(), collate, dies, SCHEDULE, run)
    torch.manual_seed(99)
    resumed, dataset = small_model(), Numbers()
    log = train(resumed, dataset, collate, squared, SCHEDULE, run)
    assert len(dataset.read) == 80 - 8 * update
    assert min(dataset.epochs) == update // 5
    assert [entry["loss"] for entry in log.steps] == [entry["loss"] for entry in expected.steps]
    assert log.examples == expected.examples
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_log_says_from_where_a_training_goes_on(s3, tmp_path, capsys):
    mirror = f"s3://{s3.bucket}/checkpoints/key"
    run = TrainingRun("fit", checkpoints=tmp_path / "here", checkpoint_minutes=1e-9, mirror=mirror)
    train(small_model(), Numbers(), collate, squared, SCHEDULE, run)
    assert "resumed" not in capsys.readouterr().err
    train(small_model(), Numbers(), collate, squared, SCHEDULE, run)
    assert f"fit: resumed from update 9 of 10 ({tmp_path}/here/checkpoint-9)\n" in capsys.readouterr().err
    train(small_model(), Numbers(), collate, squared, SCHEDULE, replace(run, checkpoints=tmp_path / "there"))
    assert f"fit: resumed from update 9 of 10 ({mirror}/checkpoint-9)\n" in capsys.readouterr().err


def test_a_resumed_log_counts_the_seconds_before_the_interruption(tmp_path):
    run = TrainingRun("t", checkpoints=tmp_path, checkpoint_minutes=1e-9)

    def slow(model, batch):
        time.sleep(0.05)
        return squared(model, batch)

    train(small_model(), Numbers(), collate, slow, replace(SCHEDULE, max_steps=5), run)
    first = max(entry["seconds"] for entry in TrainingLog(*_history(tmp_path)).steps)
    log = train(small_model(), Numbers(), collate, slow, replace(SCHEDULE, max_steps=5), run)
    assert first >= 0.4
    assert log.seconds >= first


def _history(directory: Path) -> tuple[list[dict[str, float]]]:
    newest = max(directory.glob("checkpoint-*/trainer_state.json"))
    return (json.loads(newest.read_text())["log_history"],)


STEP = """
import sys, time
from pathlib import Path
import tests.training.test_training as t
from safetensors.torch import save_file
from llm_retriever.training.train import TrainingRun, train
import components.entrypoint, signal
signal.signal(signal.SIGTERM, components.entrypoint._stop)
def slow(model, batch):
    print("updating", flush=True)
    time.sleep(0.1)
    return t.squared(model, batch)
model = t.small_model()
train(model, t.Numbers(), t.collate, slow, t.SCHEDULE, TrainingRun("t", checkpoints=Path(sys.argv[1])))
save_file(dict(model.state_dict()), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_stops_and_the_next_start_goes_on_from_it(tmp_path, number):
    arguments = [sys.executable, "-c", STEP, str(tmp_path / "checkpoints"), str(tmp_path / "weights")]
    root = Path(__file__).parents[2]
    with subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as step:
        for _ in range(5):
            step.stdout.readline()
        os.kill(step.pid, number)
        _, told = step.communicate(timeout=120)
    assert step.returncode == 128 + number
    saved = [int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").glob("checkpoint-*.json")]
    assert len(saved) == 1
    assert saved[0] >= 2
    assert not (tmp_path / "weights").exists()
    place = tmp_path / "checkpoints" / f"checkpoint-{saved[0]}"
    assert (
        f"t: stopped after update {saved[0]} of 10; the checkpoint {place} is written, and the same command goes"
        in told
    )
    again = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True)
    assert again.stdout.count("updating") == 20 - 2 * saved[0]
    whole = small_model()
    train(whole, Numbers(), collate, squared, SCHEDULE, TrainingRun("t"))
    for name, value in load_file(tmp_path / "weights").items():
        assert torch.equal(value, whole.state_dict()[name])


def settings(**changes) -> TuningSettings:
    return TuningSettings(**changes)


def test_checkpoints_are_named_by_what_decides_the_training(tmp_path):
    named = training_run(settings(), "t", tmp_path / "retriever", "a", "b").checkpoints
    assert named.parent == tmp_path / ".retriever.checkpoints"
    assert training_run(settings(checkpoint_minutes=1), "t", tmp_path / "retriever", "a", "b").checkpoints == named
    assert training_run(settings(seed=1), "t", tmp_path / "retriever", "a", "b").checkpoints != named
    assert training_run(settings(), "t", tmp_path / "retriever", "a", "c").checkpoints != named


def test_checkpoints_go_where_the_settings_say(tmp_path):
    run = training_run(settings(checkpoint_uri=str(tmp_path / "kept")), "t", tmp_path / "retriever", "a")
    assert run.checkpoints.parent == tmp_path / "kept"
    assert run.mirror == ""
    run = training_run(settings(checkpoint_uri="s3://bucket/here/"), "t", tmp_path / "retriever", "a")
    assert run.mirror == f"s3://bucket/here/{run.checkpoints.name}"


def test_checkpoints_are_gone_once_the_result_is_complete(tmp_path):
    run = TrainingRun("t", checkpoints=tmp_path / "here", checkpoint_minutes=1e-9)
    train(small_model(), Numbers(), collate, squared, replace(SCHEDULE, max_steps=3), run)
    assert list((tmp_path / "here").glob("checkpoint-*.json"))
    discard_checkpoints(run)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_are_not_finite_are_not_the_learning_rates_fault(frozen):
    model = small_model()
    name, weight = next(iter(model.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    weight.requires_grad = not frozen
    with pytest.raises(InputError, match=f'field "backbone": the weight {name} holds numbers that are not finite'):
        train(model, Numbers(), collate, squared, SCHEDULE, TrainingRun("t"))


def test_a_loss_that_updates_have_spoilt_is_the_learning_rates_fault():
    def spoilt(model, batch):
        value = squared(model, batch)
        return value * float("nan") if value.requires_grad and next(updates) > 3 else value

    updates = iter(range(1000))
    with pytest.raises(InputError, match=r'field "learning_rate": the loss became nan at update \d+; lower it$'):
        train(small_model(), Numbers(), collate, spoilt, SCHEDULE, TrainingRun("t", precision="fp32"))
