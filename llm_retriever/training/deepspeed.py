"""DeepSpeed by configuration: ZeRO-1/2/3 on GPU and CPU, without anything that needs a compiler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from llm_retriever.training.trainer import Plan

COLLECTIVE_SECONDS = 7200
"""The longest that processes wait for each other: one of them may be writing a large model."""
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}


def prepare_deepspeed() -> None:
    """Makes DeepSpeed use what is there: the CPU where no GPU is, and no extension that would be compiled at first use.

    On a CPU, DeepSpeed compiles a shared-memory all-reduce for inference; training never calls it.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def zero_configuration(stage: str, precision: str, plan: Plan) -> dict[str, Any]:
    """DeepSpeed's configuration for a ZeRO stage; the optimizer and the schedule are the Trainer's own.

    Args:
        stage: `zero1`, `zero2` or `zero3`.
        precision: `bf16` or `fp32`.
        plan: Batch sizes.
    """
    zero: dict[str, Any] = {"stage": STAGES[stage], "overlap_comm": torch.cuda.is_available()}
    if stage == "zero3":
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": False},
        "gradient_clipping": 1.0,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "train_batch_size": plan.micro_batch_size * plan.accumulation * plan.world,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


@contextlib.contextmanager
def sharded_loading(stage: str, precision: str) -> Iterator[None]:
    """Under ZeRO-3, models that are loaded inside this context are sharded as they are read; else nothing happens."""
    if stage != "zero3":
        yield
        return
    prepare_deepspeed()
    _join_processes()
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    alone = Plan(1, 1, world_size(), 1, 1, 1, 0)
    kept_alive = HfDeepSpeedConfig(zero_configuration(stage, precision, alone))
    yield
    del kept_alive
    unset_hf_deepspeed_config()


def _join_processes() -> None:
    """Starts the process group: sharding needs it before the Trainer would start it."""
    import deepspeed

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=COLLECTIVE_SECONDS))


def world_size() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def full_parameters(model: nn.Module, *, trainable_only: bool) -> Iterator[tuple[str, Tensor]]:
    """Yields every parameter whole, one at a time, gathered from the shards of all processes.

    Every process must run through all of it. Where ZeRO keeps an fp32 copy of a trained parameter, that copy is given.

    Yields:
        Name and a detached copy on the CPU.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trainable_only:
            yield name, _whole(parameter)


def _whole(parameter: nn.Parameter) -> Tensor:
    if parameter.requires_grad and (hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")):
        from deepspeed.utils import safe_get_full_fp32_param

        master = safe_get_full_fp32_param(parameter)
        if master is not None:
            return master.detach().cpu().clone()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()
    return parameter.detach().cpu().clone()
