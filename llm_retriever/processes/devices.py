"""Compares the GPUs that a step asked for with those of the machine before anything is loaded."""

from __future__ import annotations

import os

from llm_retriever.errors import InputError

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Environment variables by which CUDA and ROCm hide GPUs from a program and from those that it starts."""


def claim_gpus(asked: str) -> None:
    """Makes exactly the GPUs visible that a step asked for, in this process and in those that it starts.

    Call it before anything initialises a GPU. On a cluster the device plug-in has given the pod what it requested; a pod
    without a request may still see every GPU of its node, so 0 hides them.

    Args:
        asked: A number as text; 0 = compute on the processor; empty = leave things as they are.

    Raises:
        InputError: The machine has fewer.
    """
    if not asked:
        return
    if asked != "0":
        import torch

        number, count = int(asked), torch.cuda.device_count()
        if count < number:
            raise InputError(
                f"{number} GPU{'s' if number > 1 else ''} asked for, {count or 'none'} on this machine",
                field="gpus",
                hint="on a cluster the count must be a text and the node pool must have them; 0 computes on the processor",
            )
        if count == number:
            return
    for variable in VISIBLE:
        visible = [device for device in os.environ.get(variable, "").split(",") if device]
        chosen = (visible or [str(index) for index in range(int(asked))])[: int(asked)]
        os.environ[variable] = ",".join(chosen)
