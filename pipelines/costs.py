"""The workload and the costs of an estimate, and the table of all steps."""

from __future__ import annotations

from dataclasses import dataclass

from llm_retriever.files.markdown import table
from pipelines.artifacts import PASSAGE, PASSAGE_FRAME, TOKEN
from pipelines.model_shapes import Gpu

GIB = 2.0**30
HEADS = ("step", "GPU-hours", "memory per GPU", "disk", "to S3", "from S3", "requests")


@dataclass(frozen=True)
class Workload:
    """Amounts of data and training.

    Attributes:
        passages: Passages of the corpus.
        queries: For training.
        evaluated: Queries of the evaluation splits.
        passage_tokens, query_tokens: Mean tokens of a text with its prompt, where they are known; else texts count at
            the full lengths of the method.
    """

    passages: int
    queries: int
    evaluated: int = 500
    passage_tokens: float = 0.0
    query_tokens: float = 0.0

    @property
    def passage_bytes(self) -> float:
        """Bytes of a row of the corpus."""
        known = self.passage_tokens * TOKEN + PASSAGE_FRAME
        return known if self.passage_tokens else PASSAGE

    def passage(self, longest: int) -> float:
        """Tokens of a passage that is cut at `longest`."""
        return min(self.passage_tokens or longest, longest)

    def query(self, longest: int) -> float:
        """Tokens of a query that is cut at `longest`."""
        return min(self.query_tokens or longest, longest)


@dataclass(frozen=True)
class Cost:
    """What a step takes; None where the step has no such thing.

    Attributes:
        step: Its name.
        flop: Arithmetic of its model.
        gpu_hours: GPU-hours of all its GPUs together, at `UTILISATION` of their rate; None without a GPU.
        gpu_bytes: Memory of one GPU at the peak.
        disk_bytes: Inputs, outputs and checkpoints on the node's disk.
        s3_bytes: Sent to S3.
        fetched_bytes: Read from S3.
        sending, fetching: Requests that these take.
    """

    step: str
    flop: float | None = None
    gpu_hours: float | None = None
    gpu_bytes: float | None = None
    disk_bytes: float = 0.0
    s3_bytes: float = 0.0
    fetched_bytes: float = 0.0
    sending: int = 0
    fetching: int = 0

    @property
    def requests(self) -> int:
        """All requests."""
        return self.sending + self.fetching


def as_table(costs: list[Cost], gpu: Gpu) -> str:
    """Renders a table for people; a step that does not fit into the GPU is marked."""
    rows = [_row(cost, gpu) for cost in costs]
    sent, fetched = (_size(sum(getattr(cost, name) for cost in costs)) for name in ("s3_bytes", "fetched_bytes"))
    hours, requests = sum(cost.gpu_hours or 0 for cost in costs), sum(cost.requests for cost in costs)
    rows.append(["**all**", f"**{hours:,.2f}**", "", "", f"**{sent}**", f"**{fetched}**", f"{requests:,}"])
    return "\n".join(table(HEADS, rows))


def _row(cost: Cost, gpu: Gpu) -> list[str]:
    hours = "–" if cost.gpu_hours is None else f"{cost.gpu_hours:,.2f}"
    memory = "–" if cost.gpu_bytes is None else _size(cost.gpu_bytes)
    memory += " **too much**" if (cost.gpu_bytes or 0) > gpu.memory else ""
    sizes = [_size(size) for size in (cost.disk_bytes, cost.s3_bytes, cost.fetched_bytes)]
    return [cost.step, hours, memory, *sizes, f"{cost.requests:,}"]


def _size(count: float) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"
