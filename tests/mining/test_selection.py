from __future__ import annotations

from collections import Counter

from llm_retriever.mining.selection import Rule, select
from llm_retriever.training_set import Negative

RANKING = [(f"p{rank}", 20.0 - rank) for rank in range(1, 11)]
ALL = Rule(negatives=100)


def nothing(passage: str) -> bool:
    return False


def ids(negatives: tuple[Negative, ...]) -> list[str]:
    return [negative.id for negative in negatives]


def test_positives_are_no_negatives() -> None:
    selection = select("q", RANKING, {"p2", "p5", "unretrieved"}, nothing, ALL)
    assert ids(selection.negatives) == ["p1", "p3", "p4", "p6", "p7", "p8", "p9", "p10"]
    assert selection.removed == Counter(positive=2)
    assert selection.candidates == 10


def test_texts_of_positives_are_no_negatives() -> None:
    selection = select("q", RANKING, {"p2"}, lambda passage: passage in {"p3", "p9"}, ALL)
    assert not {"p3", "p9"} & set(ids(selection.negatives))
    assert selection.removed == Counter(positive=1, same_text=2)


def test_a_negative_knows_where_it_was_found() -> None:
    selection = select("q", RANKING, set(), nothing, Rule(negatives=10))
    assert selection.negatives[3] == Negative("p4", "bm25", 4, 16.0)


def test_the_rank_floor_counts_ranks_of_the_whole_list() -> None:
    selection = select("q", RANKING, {"p2"}, nothing, Rule(negatives=100, rank_floor=3))
    assert ids(selection.negatives) == ["p4", "p5", "p6", "p7", "p8", "p9", "p10"]
    assert selection.removed == Counter(positive=1, rank_floor=2)


def test_the_score_ceiling_is_a_share_of_the_best_positive() -> None:
    # The best positive is p4 with 16.0: what scores above 14.4 goes, p6 with 14.0 stays.
    selection = select("q", RANKING, {"p4", "p9"}, nothing, Rule(negatives=100, score_ceiling=0.9))
    assert ids(selection.negatives) == ["p6", "p7", "p8", "p10"]
    assert selection.removed == Counter(positive=2, score_ceiling=4)


def test_without_a_retrieved_positive_there_is_no_ceiling() -> None:
    selection = select("q", RANKING, {"elsewhere"}, nothing, Rule(negatives=100, score_ceiling=0.5))
    assert len(selection.negatives) == 10
    assert (selection.positive_rank, selection.positive_score) == (0, 0.0)


def test_the_best_positive_is_reported() -> None:
    selection = select("q", RANKING, {"p9", "p4"}, nothing, ALL)
    assert (selection.positive_rank, selection.positive_score) == (4, 16.0)


def test_a_draw_is_without_replacement_and_in_the_order_of_ranks() -> None:
    drawn = select("q", RANKING, set(), nothing, Rule(negatives=6)).negatives
    assert len({negative.id for negative in drawn}) == 6
    assert [negative.rank for negative in drawn] == sorted(negative.rank for negative in drawn)


def test_a_draw_depends_on_seed_and_query_alone() -> None:
    def drawn(query: str, seed: int) -> list[str]:
        return ids(select(query, RANKING, set(), nothing, Rule(negatives=4, seed=seed)).negatives)

    assert drawn("q", 1) == drawn("q", 1)
    assert len({tuple(drawn("q", seed)) for seed in range(20)}) > 5
    assert len({tuple(drawn(f"q{number}", 1)) for number in range(20)}) > 5


def test_every_candidate_has_the_same_chance() -> None:
    drawn: Counter[str] = Counter()
    for number in range(3000):
        drawn.update(ids(select(f"q{number}", RANKING, set(), nothing, Rule(negatives=3)).negatives))
    # 900 are expected of each; five standard deviations are 125.
    assert all(775 < drawn[passage] < 1025 for passage, _ in RANKING)


def test_fewer_candidates_than_wanted_are_all_taken() -> None:
    assert len(select("q", RANKING[:2], set(), nothing, Rule(negatives=5)).negatives) == 2
    assert select("q", [], {"p1"}, nothing, ALL).negatives == ()
