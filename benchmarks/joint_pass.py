"""Both prompts of EBAE and EBAR in one pass over the text, against a pass for each.

    python benchmarks/joint_pass.py [--text 256] [--hidden 512] [--layers 4] [--batch 16] [--rounds 3]

One training step (forward and backward, the head at the embedding tokens alone) of the same Llama on the same texts, with 19
tokens of SELF and 18 of NEXT behind each. Both ways in one process, turn about; best processor time of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llm_retriever.adaptation import bag_of_words
from llm_retriever.adaptation.ebae_ebar import EbaeEbarLoss
from llm_retriever.methods import EBAE_EBAR

SELF, NEXT, EMBEDDING, TARGETS = 19, 18, 8, 60
RECIPE = replace(EBAE_EBAR["default"], ar_weight=0.0, bag_weight=1.0)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": given.hidden, "intermediate_size": 2 * given.hidden}
    config = LlamaConfig(vocab_size=given.vocabulary, num_hidden_layers=given.layers, num_attention_heads=8, **shape)
    model, batch = LlamaForCausalLM(config), made(given.vocabulary, given.batch, given.text)
    joint, best = EbaeEbarLoss(RECIPE), {"joint": float("inf"), "separate": float("inf")}
    ways: dict[str, Callable[[Any, dict[str, Tensor]], Tensor]] = {"joint": joint, "separate": separate_passes}
    for _ in range(given.rounds):
        for name, way in ways.items():
            seconds, loss = step(way, model, batch)
            best[name] = min(best[name], seconds)
            print(f"{name:9s} {seconds:7.2f} processor seconds   loss {loss:.6f}")
    print(f"joint / separate: {best['joint'] / best['separate']:.2f}")


def step(
    way: Callable[[Any, dict[str, Tensor]], Tensor], model: LlamaForCausalLM, batch: dict[str, Tensor]
) -> tuple[float, float]:
    """Processor seconds of a forward and a backward pass, and the loss."""
    started = time.process_time()
    value = way(model, batch)
    value.backward()
    seconds = time.process_time() - started
    model.zero_grad()
    return seconds, value.item()


def made(vocabulary: int, batch: int, text: int) -> dict[str, Tensor]:
    """A random batch as `JointCollator` makes it, without padding."""
    width = text + SELF + NEXT
    return {
        "input_ids": torch.randint(vocabulary, (batch, width)),
        "attention_mask": torch.ones(batch, width, dtype=torch.long),
        "position_ids": torch.cat([torch.arange(text + SELF), torch.arange(text, text + NEXT)]).expand(batch, -1),
        "self_start": torch.full((batch,), text),
        "next_start": torch.full((batch,), text + SELF),
        "self_places": torch.arange(text + SELF - EMBEDDING, text + SELF).expand(batch, -1),
        "next_places": torch.arange(width - EMBEDDING, width).expand(batch, -1),
        "self_targets": torch.randint(vocabulary, (batch, TARGETS)),
        "next_targets": torch.randint(vocabulary, (batch, TARGETS)),
        "targets": torch.zeros(batch, width, dtype=torch.bool),
    }


def separate_passes(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The same loss by an ordinary causal pass for each prompt."""
    ids, text = batch["input_ids"], int(batch["self_start"][0])
    rows = {"self": ids[:, : text + SELF], "next": torch.cat([ids[:, :text], ids[:, text + SELF :]], dim=1)}
    value = torch.zeros(())
    for branch, inputs in rows.items():
        logits = model(input_ids=inputs, use_cache=False, logits_to_keep=EMBEDDING).logits
        value = value + bag_of_words.unique_loss(logits, batch[f"{branch}_targets"])
    return value


if __name__ == "__main__":
    main()
