"""Several who move the alias at the same time: one wins, the others say who it was, and nothing that is published is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from components.promote.__main__ import STEP
from llm_retriever.errors import InputError
from llm_retriever.promotion.promote import _ATTEMPTS
from llm_retriever.promotion.versions import main
from llm_retriever.stores.registry import Registry, Version
from tests.promotion.conftest import Run, in_production
from tests.s3_server import S3Server


@pytest.fixture
def place(s3: S3Server) -> str:
    return f"s3://{s3.bucket}/retrievers"


def published(run: Run, uri: str) -> Version:
    """The version that a run has promoted."""
    name = run.promote(uri)[0].rpartition("/")[2]
    return Registry(uri).named(name)


@pytest.fixture
def three(place: str, tmp_path: Path) -> list[Version]:
    """Three versions, of which each replaced the one before."""
    return [published(Run(tmp_path / f"run-{seed}", 0.3 + seed / 10, seed=seed), place) for seed in (1, 2, 3)]


def just_before(s3: S3Server, method: str, key: str, act: Callable[[], object]) -> None:
    """Has something happen when a request has been sent and before the server does what it asks."""

    def meanwhile(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == method and request["PATH_INFO"].endswith(key):
            s3.fault = None
            act()

    s3.fault = meanwhile


def test_the_later_of_two_rollbacks_says_who_won_and_moves_nothing(
    s3: S3Server, place: str, three: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, _ = three
    just_before(s3, "PUT", "production.json", lambda: Registry(place).roll_back(one.name))
    assert main(["rollback", place, "--to", two.name]) == 2
    assert capsys.readouterr().err == (
        f"versions: {place}/production.json: another run put {one.name} into production meanwhile; "
        f"{two.name} stays published: promote again, or roll back --to {two.name}\n"
    )
    assert in_production(place) == one
    assert two in Registry(place).versions()


def test_a_run_that_always_comes_late_ends_with_2_and_its_version_stays(
    s3: S3Server, place: str, three: list[Version], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, _ = three
    late, turn = Run(tmp_path / "late", 0.9, seed=9), [one, two] * _ATTEMPTS

    def always(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("production.json"):
            s3.fault = None
            Registry(place).roll_back(turn.pop().name)
            s3.fault = always

    s3.fault = always
    assert STEP.execute(late.flags(place)) == 2
    s3.fault = None
    current = in_production(place)
    assert current in (one, two)
    (own,) = [version for version in Registry(place).versions() if version.card == late.card.digest()]
    told = capsys.readouterr().err
    assert f"another run put {current.name} into production meanwhile; {own.name} stays published" in told
    assert late.promote(place) == (f"{place}/versions/{own.name}", True)


def test_a_write_whose_answer_was_lost_has_not_lost(s3: S3Server, place: str, three: list[Version]) -> None:
    one = three[0]

    def lose(request: dict[str, Any]) -> tuple[str, bytes] | None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("production.json"):
            s3.fault = None
            body = request["wsgi.input"].read(int(request["CONTENT_LENGTH"]))
            s3.client().put_object(Bucket=s3.bucket, Key="retrievers/production.json", Body=body)
            request["CONTENT_LENGTH"] = "0"
            return "503 Slow Down", b""
        return None

    s3.fault = lose
    assert Registry(place).roll_back(one.name) == one
    assert in_production(place) == one


def test_pruning_does_not_take_away_what_a_rollback_just_put_into_production(
    s3: S3Server, place: str, three: list[Version]
) -> None:
    one = three[0]
    just_before(s3, "POST", f"/{s3.bucket}", lambda: Registry(place).roll_back(one.name))
    assert Registry(place).prune(keep=1) == []
    assert in_production(place) == one


def test_a_rollback_to_what_was_just_pruned_changes_nothing(s3: S3Server, place: str, three: list[Version]) -> None:
    one, _, last = three
    just_before(s3, "PUT", "production.json", lambda: Registry(place).prune(keep=1))
    with pytest.raises(InputError, match=f"{one.name}: was deleted meanwhile; publish it again"):
        Registry(place).roll_back(one.name)
    assert in_production(place) == last


def test_of_runs_that_promote_at_once_the_best_is_in_production_at_last(uri: str, tmp_path: Path) -> None:
    runs = [Run(tmp_path / f"run-{seed}", 0.4 + seed / 100, seed=seed) for seed in range(4)]
    together = threading.Barrier(len(runs))

    def promote(run: Run) -> bool:
        together.wait()
        return run.promote(uri)[1]

    with ThreadPoolExecutor(len(runs)) as pool:
        promoted = list(pool.map(promote, runs))
    assert promoted[-1]
    current = in_production(uri)
    assert current is not None
    assert current.card == runs[-1].card.digest()
