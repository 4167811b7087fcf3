"""Machines for the cluster on loopback: a TrainJob's nodes are started as processes, as its runtime would start them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.training.trainjob.api_server import Cluster, Moment, condition, container, pod

ROOT = Path(__file__).parents[3]


def _free_port() -> int:
    """A port below those that the system gives to whoever asks for any: nobody takes it before the first node does."""
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


class Machines:
    """Starts the nodes of every TrainJob that is created, and ends them when it is deleted.

    Args:
        cluster: Shows how they are.
        directory: For their logs.
        lost: Asked now and then; when it first says yes, all nodes are killed.
    """

    def __init__(self, cluster: Cluster, directory: Path, *, lost: Callable[[], bool] = lambda: False) -> None:
        self.cluster, self.directory, self.lost = cluster, directory, lost
        self.killed = 0
        cluster.moments = [Moment()]
        cluster.created, cluster.deleted = self._start, lambda name: self._kill()
        self._processes: list[subprocess.Popen[bytes]] = []

    def _start(self, job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        port = _free_port()
        self._processes = [self._node(trainer, rank, port) for rank in range(trainer["numNodes"])]
        threading.Thread(target=self._watch, daemon=True).start()

    def _node(self, trainer: dict[str, Any], rank: int, port: int) -> subprocess.Popen[bytes]:
        """A node: what the torch policy of a runtime sets, and what the secret of the manifest holds."""
        secret = {entry["name"] for entry in trainer["env"]}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_") or name in secret}
        meeting = {"PET_NNODES": trainer["numNodes"], "PET_NPROC_PER_NODE": trainer["numProcPerNode"]}
        meeting |= {"PET_NODE_RANK": rank, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
        own = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
        environment = {**kept, **own, **{name: str(value) for name, value in meeting.items()}}
        with (self.directory / f"node-{rank}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.directory)

    def _watch(self) -> None:
        while any(process.poll() is None for process in self._processes):
            if not self.killed and self.lost():
                self.killed += 1
                self._kill()
            self._show([])
            time.sleep(0.05)
        failed = any(process.returncode for process in self._processes)
        self._show([condition("Failed" if failed else "Complete")])

    def _show(self, conditions: list[dict[str, str]]) -> None:
        pods, logs = [], {}
        for rank, process in enumerate(self._processes):
            code = process.poll()
            told = 128 - code if code and code < 0 else code
            ended = {"terminated": {"exitCode": told, "finishedAt": "2026-01-02T03:05:00Z"}}
            pods.append(pod(f"node-{rank}", rank, container(state={"running": {}} if code is None else ended)))
            lines = (self.directory / f"node-{rank}.log").read_text(errors="replace").splitlines()
            logs[f"node-{rank}"] = "\n".join(f"{number:09d} {line}" for number, line in enumerate(lines))
        self.cluster.moments = [Moment(conditions, pods, logs)]

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
