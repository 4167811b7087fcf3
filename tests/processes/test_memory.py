"""Freed memory is kept."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from llm_retriever.processes.memory import keep_memory

if sys.argv[1] == "kept":
    keep_memory()
for number in range(32):
    if number == 24:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Prints the pages that the system hands out for 8 blocks of 64 MiB, each freed before the next, after 24 such blocks: what
alignment leaves beside the first seven or so waits in a list of small pieces and keeps them from being one with the rest."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory in their own way")
def test_freed_memory_is_kept_for_the_next_batch() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, check=True).stdout)
        for way in ("kept", "plain")
    }
    assert faults["kept"] < 20 < 200 < faults["plain"]
