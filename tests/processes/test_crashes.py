"""Which crashes may pass: the exceptions that libraries really raise, and those of our own."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import botocore.exceptions
import pytest
import requests
import torch
import torch.distributed as dist
import urllib3.exceptions

from llm_retriever.errors import InputError
from llm_retriever.processes.crashes import Crash, ProcessFailedError, TransferError, crash_of
from llm_retriever.training.trainjob.follow import UnreachableError


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2233"),
        RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. "),
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited"),
        dist.DistNetworkError("The client socket has timed out"),
        ConnectionResetError("reset"),
        TimeoutError("timed out"),
        BrokenProcessPool("a process was terminated abruptly"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://127.0.0.1:9"),
        urllib3.exceptions.ProtocolError("Connection broken"),
        requests.exceptions.ConnectionError("refused"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        TransferError("s3://models/x: the transfer failed (SSLError)"),
        ProcessFailedError("a training process failed"),
        UnreachableError("the cluster does not answer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lost_device_process_or_connection_may_pass(error):
    assert crash_of(error) is Crash.PASSING


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ProcessFailedError("a training process failed", Crash.MEMORY),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ran_out_is_told_apart(error):
    assert crash_of(error) is Crash.MEMORY


def test_a_processors_memory_that_ran_out_is_told_apart():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert crash_of(caught.value) is Crash.MEMORY


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a mistake"),
        KeyError("CUDA error"),
        AssertionError("closed by peer"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 16x2)"),
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("models/x is not a local folder and is not a valid model identifier"),
        InputError("the text is empty"),
        ProcessFailedError("a training process failed", Crash.LASTING),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_happen_again_lasts(error):
    assert crash_of(error) is Crash.LASTING


def test_the_exception_that_another_one_was_raised_from_counts():
    error = RuntimeError("the shard could not be written")
    error.__cause__ = ConnectionResetError("reset")
    assert crash_of(error) is Crash.PASSING
    error.__cause__ = TypeError("a mistake")
    assert crash_of(error) is Crash.LASTING


def test_a_kind_travels_between_processes_as_what_it_is():
    assert pickle.loads(pickle.dumps(Crash.MEMORY)) is Crash.MEMORY
    assert Crash("memory") is Crash.MEMORY


def test_telling_them_apart_loads_no_library():
    program = (
        "import sys; from llm_retriever.processes.crashes import crash_of; crash_of(OSError()); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "botocore", "urllib3"} & set(loaded) == set()
