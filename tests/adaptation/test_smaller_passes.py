"""Stage one after memory ran out: fewer rows at once, the same training, also where several processes share it."""

from __future__ import annotations

import pytest

from llm_retriever.adaptation.adapt import adapt
from llm_retriever.settings import AdaptationSettings
from llm_retriever.training.passes import DIVISOR

SHORT = {"passage_length": 130, "batch_size": 8, "micro_batch_size": 4, "max_steps": 3, "learning_rate": 2e-3}
SHORT |= {"precision": "fp32", "processes": 2, "tune": "full"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "deepspeed", "checkpointing"), [("ql", "off", "on"), ("ql", "zero3", "off"), ("mntp", "zero2", "on")]
)
def test_two_processes_train_the_same_with_fewer_rows_at_once(
    method,
    deepspeed,
    checkpointing,
    backbone_directory,
    collection_directory,
    training_set_directory,
    tmp_path,
    monkeypatch,
):
    ways = {"method": method, "deepspeed": deepspeed, "gradient_checkpointing": checkpointing}
    settings, logs = AdaptationSettings(**SHORT | ways), []
    for divisor in ("", "2"):
        monkeypatch.setenv(DIVISOR, divisor)
        inputs = (backbone_directory, collection_directory, training_set_directory)
        logs.append(adapt(settings, *inputs, tmp_path / f"adapted{divisor}"))
    whole, parts = ([(step["loss"], step["grad_norm"]) for step in log.steps] for log in logs)
    assert len(whole) == 3
    assert parts == [pytest.approx(step, rel=1e-3) for step in whole]
