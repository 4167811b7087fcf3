"""Batches whose queries all come from one data set, so that in-batch negatives are of one kind (E5, LLM2Vec)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_retriever.contrastive.dataset import ContrastiveDataset, Group
from llm_retriever.errors import InputError


class HomogeneousDataset:
    """A training set dealt into updates of one data set each; the order follows from (seed, epoch).

    In every epoch each data set is shuffled and cut into updates, and the updates of all of them are shuffled. What is left
    of a data set after its last whole update is left out, other examples in every epoch. Memory is 16 bytes an example.

    Args:
        dataset: The examples.
        members: Positions of the examples of each data set.
        batch_size: Queries per update.
        seed: Seed of the order.
    """

    ordered = True
    """The order is made here: the training is to take the examples as they come."""

    def __init__(
        self, dataset: ContrastiveDataset, members: Sequence[NDArray[np.int64]], batch_size: int, seed: int
    ) -> None:
        self.dataset, self.members, self.batch_size, self.seed = dataset, members, batch_size, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._order)

    def set_epoch(self, epoch: int) -> None:
        """Switches to the draws of an epoch, counted from 0."""
        self.dataset.set_epoch(epoch)
        draw = np.random.default_rng((self.seed, epoch))
        updates = [update for positions in self.members for update in self._updates(draw.permutation(positions))]
        random.Random(f"{self.seed} {epoch}").shuffle(updates)  # noqa: S311
        self._order = np.concatenate(updates)

    def _updates(self, positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        whole = len(positions) // self.batch_size
        return np.split(positions[: whole * self.batch_size], whole)

    def __getitem__(self, item: int) -> Group:
        return self.dataset[int(self._order[item])]


def homogeneous(dataset: ContrastiveDataset, batch_size: int, seed: int) -> ContrastiveDataset | HomogeneousDataset:
    """Deals the dataset into updates of one data set each; returns it as it is where there is only one.

    Raises:
        InputError: A data set has fewer examples than an update.
    """
    named: dict[str, list[int]] = {}
    for position, source in enumerate(dataset.sources()):
        named.setdefault(source, []).append(position)
    if len(named) < 2:
        return dataset
    check_source_sizes({source: len(positions) for source, positions in named.items()}, batch_size, dataset.path)
    return HomogeneousDataset(dataset, [np.asarray(positions) for positions in named.values()], batch_size, seed)


def check_source_sizes(sizes: dict[str, int], batch_size: int, path: Path) -> None:
    """Raises InputError for data sets that cannot fill an update.

    Raises:
        InputError: For the smallest one.
    """
    source, size = min(sizes.items(), key=lambda entry: (entry[1], entry[0]))
    if size < batch_size:
        raise InputError(
            f"the source {source!r} has {size} examples, fewer than an update of {batch_size}",
            file=path,
            field="sources",
            hint="lower batch_size, or use sources=mixed",
        )
