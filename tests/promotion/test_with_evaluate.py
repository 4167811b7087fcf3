"""What `evaluate` hands over is what `promote` takes: a real retriever on a corpus that grows."""

from __future__ import annotations

from pathlib import Path

from llm_retriever import files
from llm_retriever.collection import Collection
from llm_retriever.indexing.search import Index
from llm_retriever.promotion import promote
from llm_retriever.registry import Registry
from llm_retriever.retriever import Retriever
from llm_retriever.settings import PromotionSettings
from tests.evaluation.conftest import unspoilt_inputs  # noqa: F401  (a fixture)
from tests.evaluation.test_evaluate import run
from tests.evaluation.test_production import NEW, old_rows, with_corpus


def test_a_retriever_that_stays_answers_from_an_index_of_the_grown_corpus(
    unspoilt_inputs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    def night(name: str, made: dict[str, Path], production: str, minimum_gain: float) -> str:
        run(made, tmp_path / name, production_uri=production, untuned_passages=0)
        paths = {part: tmp_path / name / part for part in ("evaluation", "refreshed")}
        settings = PromotionSettings(uri=str(tmp_path / "published"), minimum_gain=minimum_gain)
        given = {**paths, "retriever": made["retriever"], "index": made["index"], "decision": tmp_path / name / "d.md"}
        return promote(settings, **given)[0]

    first = night("first", unspoilt_inputs, "", 0.0)
    grown = with_corpus(unspoilt_inputs, tmp_path / "grown", [*old_rows(unspoilt_inputs), *NEW])
    after = night("second", grown, first, 1.0)
    assert after != first
    assert "10 passages were encoded for it, 40 were in the old one" in (tmp_path / "second" / "d.md").read_text()
    corpus = Collection.open(grown["collection"])
    retriever = Retriever.load(f"{after}/retriever", precision="fp32")
    index = Index.open(Path(after) / "index", retriever, verify=True)
    assert index.manifest.collection == corpus.fingerprint
    text = next(passage.text for passage in corpus.passages() if passage.id == NEW[0]["_id"])
    _, found = index.search(retriever.encode_queries([text]), 50)
    assert {row["_id"] for row in NEW} < set(found[0])
    registry = Registry(str(tmp_path / "published"))
    version = registry.production()
    assert version is not None
    content = registry.evaluation(version)
    measured = files.read_json(tmp_path / "second" / "evaluation" / "evaluation.json")
    assert {name: split["systems"]["retriever"] for name, split in content["splits"].items()} == {
        name: split["systems"]["production"] for name, split in measured["splits"].items()
    }

    assert night("third", grown, after, 1.0) == after
    assert files.read_json(tmp_path / "third" / "refreshed" / "refreshed.json")["index"] is False
