"""Damaged inputs through the readers' doors: each is read, or refused with `InputError`.

None may end with another exception, take 20 seconds or 2 GB, or be read as something else where a checksum tells. The damage
follows from the number of the input, which a failure names. An ordinary run tries a few inputs at every door; 3,000 in all with

    LLM_RETRIEVER_FUZZ=3000 python -m pytest tests/fuzz
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from components.entrypoint import Step
from components.executor_input import ExecutorInput
from llm_retriever import files
from llm_retriever.adaptation.lengths import check_lengths
from llm_retriever.contrastive.tuning import check_tokenizer
from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import Negative, TrainingExample, TrainingSet, write_training_set
from llm_retriever.errors import InputError
from llm_retriever.evaluation import comparison
from llm_retriever.evaluation.systems import BM25Runs
from llm_retriever.evaluation.variants import check_alike, open_evaluations
from llm_retriever.files.seal import check_seal, write_seal
from llm_retriever.indexing.hybrid.published import Published, listed_files
from llm_retriever.indexing.shards import Manifest, check_index
from llm_retriever.methods import QUERY_LIKELIHOOD, method
from llm_retriever.metrics.content import sealed
from llm_retriever.metrics.runs import read_run, write_run
from llm_retriever.models.card import Lineage, RetrieverCard, Stage, load_lineage, save_lineage
from llm_retriever.promotion.evidence import contest, measured, target_of
from llm_retriever.settings import CorpusSettings, PromotionSettings
from tests.conftest import write_backbone, write_beir
from tests.data.sources import test_layouts as layouts
from tests.data.sources.test_many_layouts import TRAIN, as_csv, write_example, write_scored
from tests.evaluation.test_comparison import evaluation
from tests.fuzz.mutations import DAMAGES, WITHIN, damage, revalued
from tests.indexing.vectors import write_vectors

pytestmark = pytest.mark.fuzz

INPUTS = int(os.environ.get("LLM_RETRIEVER_FUZZ", "150"))
SECONDS, KILOBYTES = 20, 2_000_000


@dataclasses.dataclass(frozen=True)
class Door:
    """A reader and something that it reads.

    Attributes:
        write: Writes what is whole into a directory.
        read: Reads a directory; what it returns is compared.
        checked: Whether a file, by its name, is vouched for: if it is read at all, what is read is what was written.
        kinds: Of damage.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    checked: Callable[[str], bool] = lambda name: False
    kinds: tuple[Any, ...] = DAMAGES


def prepared(directory: Path) -> Any:
    target = directory.with_name("collection")
    manifest = preparation.prepare(CorpusSettings(uri=str(directory), heldout_queries=0), target)
    return manifest["fingerprint"]


def write_packed(directory: Path) -> None:
    """BEIR, every file gzipped or parquet with checksums."""
    write_beir(directory, 30)
    for name in ("corpus", "queries"):
        path = directory / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.unlink()
        if name == "corpus":
            (directory / "corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
        else:
            table = arrow.Table.from_pylist(rows)
            parquet.write_table(table, directory / "queries.parquet", write_page_checksum=True)


def write_tables(directory: Path) -> None:
    """BEIR as a JSON array, CSV and qrels as JSON."""
    write_beir(directory, 30)
    rows = [json.loads(line) for line in (directory / "corpus.jsonl").read_text().splitlines()]
    (directory / "corpus.jsonl").write_text(json.dumps(rows, indent=1))
    rows = [json.loads(line) for line in (directory / "queries.jsonl").read_text().splitlines()]
    (directory / "queries.jsonl").unlink()
    (directory / "queries.csv").write_text(as_csv(rows))


def write_triples(directory: Path) -> None:
    for kind, name in (("triplet", "train"), ("csv", "dev"), ("lines", "test"), ("table", "more")):
        write_example(kind, directory / f"{name}.jsonl", TRAIN)


def collected(directory: Path) -> Any:
    made = Collection.open(directory)
    splits = [(made.queries(split), made.qrels(split), sorted(made.own_passages(split))) for split in made.splits]
    passages = list(made.passages())
    assert all(passage.id in made.lookup() for passage in passages[:3])
    return passages, splits, list(made.articles()), made.teacher_scores(), made.kept_ids({"p5"})


def write_collection(directory: Path) -> None:
    source = write_scored(directory.with_name("scored"))
    preparation.prepare(CorpusSettings(uri=str(source)), directory)


def write_mined(directory: Path) -> None:
    write_collection(directory.with_name("whole"))
    collection = Collection.open(directory.with_name("whole"))
    found = [passage.id for passage in collection.passages()]
    negatives = tuple(
        Negative(name, "bm25", rank, 9.5 - rank, score_teacher=0.5) for rank, name in enumerate(found[:4], 1)
    )
    examples = [
        TrainingExample(query, text, (found[-1],), negatives, "x", (1.5,))
        for query, text in collection.queries("train").items()
    ]
    write_training_set(directory, examples, {"seed": 1}, {"examples": len(examples)}, collection)


def mined(directory: Path) -> Any:
    return list(TrainingSet.open(directory, Collection.open(directory.with_name("whole"))).examples())


def write_runs(directory: Path) -> None:
    write_collection(directory.with_name("whole"))
    collection = Collection.open(directory.with_name("whole"))
    rows = [(query, [(f"p{i}", 5.5 - i) for i in range(5)]) for query in collection.queries("train")]
    directory.mkdir()
    write_run(directory / "train.trec", rows, "BM25")
    system = {"description": "x", "parameters": {"depth": 10}, "files": {"train": "train.trec"}}
    manifest = {
        "parameters": {"k1": 0.9, "depth": 100},
        "collection": collection.fingerprint,
        "systems": {"QLM": system},
    }
    files.write_json(directory / "runs.json", manifest)


def runs(directory: Path) -> Any:
    read_run(directory / "train.trec")
    found = BM25Runs(directory, Collection.open(directory.with_name("whole")))
    return [found.run("train", found.systems[name].depth, name) for name in found.systems]


def write_sealed_runs(directory: Path) -> None:
    write_runs(directory)
    write_seal(directory)


def as_a_step(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Reads a directory as a step does its input."""

    def sealed_first(directory: Path) -> Any:
        check_seal(directory)
        return read(directory)

    return sealed_first


def write_card(directory: Path) -> None:
    directory.mkdir()
    lineage = Lineage("b", stages=(Stage("ql", {"lora": {"rank": 8}}, "d", 1.5, 10),))
    RetrieverCard.of(method("llm-ql"), lineage, weights="0" * 64).save(directory)
    save_lineage(directory, lineage)


def carded(directory: Path) -> Any:
    load_lineage(directory)
    return RetrieverCard.load(directory).digest()


def write_index(directory: Path) -> None:
    write_vectors(directory, np.random.default_rng(1).standard_normal((40, 8)), [f"p{i}" for i in range(40)], shards=2)


def indexed(directory: Path) -> Any:
    manifest = Manifest.load(directory)
    check_index(manifest, directory, directory)
    return [np.load(directory / shard.file).tobytes() for shard in manifest.shards]


def write_evaluations(directory: Path) -> None:
    for seed in (1, 2):
        files.write_json(directory / f"v{seed}" / "evaluation.json", sealed(evaluation(0.5, seed, untuned=True)))


def evaluated(directory: Path) -> Any:
    variants = open_evaluations({"one": directory / "v1", "two": directory / "v2"})
    check_alike(variants)
    return comparison.results(variants, "one")


def promoted(directory: Path) -> Any:
    file = directory / "v1" / "evaluation.json"
    content, settings = files.read_json(file), PromotionSettings()
    comparison_file = open_evaluations({"one": directory / "v1", "two": directory / "v2"})[0]
    measured(content, target_of(content, settings), settings.metric, file)
    return contest(content, settings, file), comparison_file.content


def resealed(data: bytes, draw: random.Random) -> bytes:
    """A value is another one, and the checksum is that of the whole: what only a check of types notices."""
    changed = revalued(data, draw)
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        content = json.loads(changed)
        content.pop("checksum", None)
        changed = json.dumps(sealed(content)).encode()
    return changed


def reported(directory: Path) -> Any:
    return comparison.flat_metrics(evaluated(directory))


def write_described(directory: Path) -> None:
    """A backbone without its weights, which have a door of their own where their checksum is known."""
    (write_backbone(directory) / "model.safetensors").unlink()


def described(directory: Path) -> Any:
    row = dataclasses.replace(method("llm-ql"), query_length=160, passage_length=160)
    check_lengths(QUERY_LIKELIHOOD["default"], row, directory)
    check_tokenizer(row, directory)


def write_hybrid(directory: Path) -> None:
    directory.mkdir()
    listed = [{"name": "_0.cfs", "bytes": 3, "sha256": "0" * 64}]
    content = {"card": "c", "collection": "f", "depth": 100, "query_length": None, "bm25_depth": 200, "files": listed}
    fused = {"format": 1, "fusion": "convex", "weight": 0.5, "bm25": {"k1": 0.9, "b": 0.4}, "language": "en"}
    files.write_json(directory / "hybrid.json", {**content, **fused})
    files.write_json(directory / "lucene.json", {"files": listed})


def told_of_hybrid(directory: Path) -> Any:
    with contextlib.suppress(InputError):  # The other file is damaged then.
        listed_files(directory / "lucene.json")
    return Published.load(directory)


def write_message(directory: Path) -> None:
    artifact = {"name": "copy", "uri": "minio/one/copy", "customPath": "deep/one/copy", "metadata": {"kept": 1.0}}
    content = {
        "inputs": {"parameterValues": {"times": 3.0}, "artifacts": {"original": {"artifacts": [artifact]}}},
        "outputs": {"outputFile": "deep/meta/answer.json", "artifacts": {"copy": {"artifacts": [artifact]}}},
    }
    files.write_json(directory / "message.json", content)


def messaged(directory: Path) -> Any:
    """The answer to a message, in a directory where relative paths may be made."""
    text = (directory / "message.json").read_bytes().decode(errors="replace")
    before = Path.cwd()
    os.chdir(directory)
    try:
        message = ExecutorInput(text, ["copy"])
        step = Step("copy", CorpusSettings, lambda run: None)
        step.told(message.parameters)
        return sorted(message.inputs), sorted(message.outputs)
    finally:
        os.chdir(before)


def is_packed(name: str) -> bool:
    return name.endswith(".gz")


def always(name: str) -> bool:
    return True


DOORS = {
    "beir": Door(lambda at: write_beir(at, 30), prepared),
    "packed": Door(write_packed, prepared, is_packed),
    "tables": Door(write_tables, prepared),
    "msmarco": Door(layouts.write_msmarco, prepared),
    "tevatron": Door(layouts.write_tevatron_v1, prepared),
    "tevatron-2": Door(layouts.write_tevatron_v2, prepared),
    "flagembedding": Door(write_scored, prepared),
    "triples": Door(write_triples, prepared),
    "collection": Door(write_collection, collected, lambda name: name != "collection.json"),
    "training set": Door(write_mined, mined),
    "runs": Door(write_runs, runs),
    "sealed training set": Door(write_mined, as_a_step(mined), always),
    "sealed runs": Door(write_sealed_runs, as_a_step(runs), always),
    "card": Door(write_card, carded),
    "index": Door(write_index, indexed, always),
    "evaluations": Door(write_evaluations, evaluated, always),
    "promotion": Door(write_evaluations, promoted, always),
    "resealed": Door(write_evaluations, reported, kinds=(resealed,)),
    "backbone": Door(write_described, described),
    "hybrid": Door(write_hybrid, told_of_hybrid),
    "message": Door(write_message, messaged, kinds=WITHIN),
}


def _late(number: int, frame: Any) -> None:
    raise TimeoutError(f"it takes more than {SECONDS} s")


def _fault(door: Door, directory: Path, whole: Any, draw: random.Random) -> str:
    """What is wrong with how a damaged input is read; "" where nothing is."""
    name = damage(directory, draw, door.kinds)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        found = door.read(directory)
    except InputError:
        return ""
    except Exception:
        return f"{name}: {traceback.format_exc(limit=-4)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return f"{name}: is read as something else" if door.checked(name) and found != whole else ""


@pytest.mark.parametrize("name", DOORS)
def test_what_is_damaged_is_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    door, source = DOORS[name], tmp_path / "source"
    door.write(source)
    shutil.copytree(source, tmp_path / "kept")
    whole = door.read(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, _late)
    faults = []
    try:
        for number in range(-(-INPUTS // len(DOORS))):
            shutil.rmtree(source)
            shutil.copytree(tmp_path / "kept", source)
            if fault := _fault(door, source, whole, random.Random(f"{name} {number}")):
                faults.append(f"input {number}: {fault}")
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert not faults, "\n".join(faults[:5]) + f"\n{len(faults)} in all"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES
