"""The vocabulary projection of query likelihood: at the label positions only, against everywhere.

    python benchmarks/ql_projection.py [--vocabulary 32000] [--hidden 512] [--batch 32] [--rounds 3]

One training step (forward and backward) on rows of 200 document, 1 embedding and 9 query tokens, as MS MARCO has them in the
median, in a Llama of two layers whose head weighs as much as it would in a large one. Best processor time of the rounds, each
way in a process of its own, and the peak memory above what the process held before the step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from llm_retriever.adaptation.query_likelihood import QueryLikelihoodLoss

DOCUMENT, QUERY = 200, 9


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = vars(parser.parse_args())
    processes = multiprocessing.get_context("spawn")
    measured = {}
    for way in ("everywhere", "labels"):
        with processes.Pool(1) as pool:
            measured[way] = pool.apply(step, (way,), given)
        seconds, megabytes, loss = measured[way]
        print(f"head {way:12s} {seconds:7.2f} processor seconds   peak {megabytes:7.0f} MB more   loss {loss:.6f}")
    (slow, large, _), (fast, small, _) = measured["everywhere"], measured["labels"]
    print(f"labels / everywhere: time {fast / slow:.2f}, memory {small / max(large, 1):.2f}")


def step(way: str, vocabulary: int, hidden: int, batch: int, rounds: int) -> tuple[float, float, float]:
    """Best processor time of a step in seconds, its peak memory in MB, and the loss."""
    torch.set_num_threads(1)
    model, rows = made(vocabulary, hidden, batch)
    loss = QueryLikelihoodLoss(attention_block=True)
    before, best = peak(), float("inf")
    for _ in range(rounds):
        started = time.process_time()
        value = loss(model, rows) if way == "labels" else full_head_loss(model, rows, loss)
        value.backward()
        best = min(best, time.process_time() - started)
        model.zero_grad()
    return best, peak() - before, value.item()


def made(vocabulary: int, hidden: int, batch: int) -> tuple[LlamaForCausalLM, dict[str, torch.Tensor]]:
    """A random model and a random batch."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_hidden_layers=2, **shape))
    width = DOCUMENT + 1 + QUERY
    targets = torch.zeros(batch, width, dtype=torch.bool)
    targets[:, -QUERY:] = True
    return model, {
        "input_ids": torch.randint(vocabulary, (batch, width)),
        "attention_mask": torch.ones(batch, width, dtype=torch.long),
        "embedding": torch.full((batch,), DOCUMENT),
        "targets": targets,
    }


def full_head_loss(model: Any, rows: dict[str, torch.Tensor], loss: QueryLikelihoodLoss) -> torch.Tensor:
    """The same loss by logits of every position and labels of -100."""
    logits = model(input_ids=rows["input_ids"], attention_mask=loss.mask(model, rows), use_cache=False).logits
    labels = rows["input_ids"].masked_fill(~rows["targets"], -100)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def peak() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
