"""What a training run hands to promote, without a training run, and what is in production afterwards."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm_retriever import files
from llm_retriever.indexing.shards import Manifest, Shard
from llm_retriever.methods import method
from llm_retriever.metrics.content import sealed
from llm_retriever.metrics.conventions import REFRESHED_FOLDER
from llm_retriever.metrics.significance import compare
from llm_retriever.models.card import Lineage, RetrieverCard, weights_digest
from llm_retriever.promotion import promote
from llm_retriever.settings import PromotionSettings
from llm_retriever.stores.opening import fetched
from llm_retriever.stores.registry import Registry, Version
from tests.s3_server import S3Server

FOLDERS = ("retriever", "index", "evaluation")


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place to publish to."""
    if request.param == "local":
        return str(tmp_path / "published")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/retrievers"


class Run:
    """What one training run hands to promote: a retriever, its index and its evaluation."""

    def __init__(
        self, directory: Path, value: float, *, seed: int = 0, collection: str = "c1", queries: int = 50
    ) -> None:
        self.directory = directory
        self.retriever, self.index, self.evaluation = (
            directory / name for name in ("retriever", "index", "evaluation")
        )
        self._write_model(self.retriever / "model", seed)
        weights = weights_digest(self.retriever / "model")
        self.card = RetrieverCard.of(method("llm-ql"), Lineage("b"), weights=weights)
        self.card.save(self.retriever)
        self._write_index(self.index, seed, self.card.digest(), collection)
        self.refreshed = directory / "refreshed"
        files.write_json(self.refreshed / "refreshed.json", {"production_uri": "", "index": False})
        systems = {"retriever": {"ndcg@10": value, "mrr@10": value / 2}, "BM25": {"ndcg@10": 0.2, "mrr@10": 0.1}}
        self.content: dict[str, Any] = {
            "collection": collection,
            "card": self.card.digest(),
            "splits": {"test": {"queries": queries, "systems": systems, "comparisons": []}},
        }
        self.save()

    @staticmethod
    def _write_model(directory: Path, seed: int) -> None:
        """The files of a causal LM, with as good as no weights."""
        files.write_json(directory / "config.json", {"architectures": ["LlamaForCausalLM"]})
        files.write_json(directory / "tokenizer_config.json", {"eos_token": "</s>"})
        files.write_json(directory / "tokenizer.json", {"model": {"vocab": {"</s>": 0}}})
        save_file({"weights": np.full(4, seed, np.float32)}, directory / "model.safetensors")

    @staticmethod
    def _write_index(directory: Path, seed: int, card: str, collection: str) -> None:
        """Two shards of three passages each."""
        directory.mkdir(parents=True)
        shards = []
        for i in range(2):
            file, ids = directory / f"vectors-{i:05d}.npy", directory / f"ids-{i:05d}.txt"
            np.save(file, np.random.default_rng([seed, i]).standard_normal((3, 4)).astype(np.float32))
            ids.write_text("".join(f"p{3 * i + row}\n" for row in range(3)))
            digests = files.sha256_of_file(file), files.sha256_of_file(ids)
            shards.append(Shard(file.name, ids.name, 3, *digests, 9.0, 1, 1, 1.0))
        manifest = Manifest("flat", "inner_product", 6, 4, "fp32", tuple(shards), card, collection, {}, {}, {})
        files.write_json(directory / "manifest.json", manifest.as_json())

    def compare(
        self, production: str, splits: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, index: bool = False
    ) -> Run:
        """Has the version in production measured too, as evaluate does.

        Args:
            production: Its URI.
            splits: Values of every query: of this run's retriever, and of the one in production.
            index: Whether its index was of another collection, and was brought to this one.
        """
        name = production.rpartition("/versions/")[2]
        told = {"production_uri": production, "version": name, "encoded": 10, "reused": 50, "index": index}
        self.content["production"] = {"uri": production, "version": name, "encoded": 10, "reused": 50}
        self.content["splits"] = {split: self._split(*values) for split, values in splits.items()}
        self.save()
        files.write_json(self.refreshed / "refreshed.json", told)
        if index:
            self.write_refreshed(99, production)
        for split in splits:
            for system in ("retriever", "production", "BM25"):
                files.write_text(self.evaluation / "runs" / split / f"{system}.trec", f"q1 Q0 p1 1 1.0 {system}\n")
        return self

    def write_refreshed(self, seed: int, production: str) -> None:
        """The index of the version in production, of this run's collection."""
        version = Registry(production.rpartition("/versions/")[0]).production()
        assert version is not None
        shutil.rmtree(self.refreshed / "index", ignore_errors=True)
        self._write_index(self.refreshed / "index", seed, version.card, self.content["collection"])

    def _split(self, new: Sequence[float], old: Sequence[float]) -> dict[str, Any]:
        per_query = {
            system: {f"q{i}": value for i, value in enumerate(values)}
            for system, values in (("retriever", new), ("BM25", [0.2] * len(new)), ("production", old))
        }
        baselines = {name: values for name, values in per_query.items() if name != "retriever"}
        compared = compare("ndcg@10", per_query["retriever"], baselines)
        means = {name: sum(values.values()) / len(values) for name, values in per_query.items()}
        return {
            "collection": self.content["collection"],
            "queries": len(new),
            "systems": {name: {"ndcg@10": mean, "mrr@10": mean / 2} for name, mean in means.items()},
            "comparisons": [dataclasses.asdict(one) | {"verdict": one.verdict} for one in compared],
            "per_query": per_query,
            "notes": [],
        }

    def save(self) -> None:
        files.write_json(self.evaluation / "evaluation.json", sealed(self.content))

    @property
    def decision(self) -> str:
        return (self.directory / "decision.md").read_text()

    def promote(self, uri: str, **settings: Any) -> tuple[str, bool]:
        return promote(
            PromotionSettings(uri=uri, **settings),
            self.evaluation,
            self.retriever,
            self.index,
            self.directory / "decision.md",
            self.refreshed,
        )

    def flags(self, uri: str) -> list[str]:
        shutil.copytree(self.refreshed, self.evaluation / REFRESHED_FOLDER, dirs_exist_ok=True)
        inputs = [f"--{name}={self.directory / name}" for name in FOLDERS]
        return [*inputs, f"--decision={self.directory / 'decision.md'}", f"--uri={uri}"]


@pytest.fixture
def old(tmp_path: Path) -> Run:
    return Run(tmp_path / "old", 0.40, seed=1)


def in_production(uri: str) -> Version | None:
    """The version in production, after checking every byte of it."""
    registry = Registry(uri)
    version = registry.production()
    if version is not None:
        for folder in FOLDERS:
            with fetched(f"{registry.uri_of(version)}/{folder}") as copy:
                assert any(copy.iterdir())
    return version


def kill_when_it_writes(s3: S3Server, key: str, flags: list[str]) -> None:
    """Runs the step in a process of its own and kills it while the server holds back the write of `key`."""
    arrived, killed = threading.Event(), threading.Event()

    def hold_back(request: dict[str, Any]) -> tuple[str, bytes] | None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith(key):
            arrived.set()
            killed.wait(30)
            return "503 Slow Down", b""
        return None

    s3.fault = hold_back
    with subprocess.Popen([sys.executable, "-m", "components.promote", *flags], env=os.environ.copy()) as process:
        assert arrived.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
    s3.fault = None
