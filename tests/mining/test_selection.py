from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from llm_retriever.bm25.sparse import Ranking
from llm_retriever.data.training_set import Found, Negative
from llm_retriever.errors import InputError
from llm_retriever.mining import selection
from llm_retriever.mining.selection import Rule, Selection, parse_sources

RANKING = [(f"p{rank}", 20.0 - rank) for rank in range(1, 11)]
ALL = Rule(negatives=100)


def select(
    query_id: str,
    ranking: Ranking,
    positives: set[str],
    rule: Rule,
    same_text: Callable[[str], bool] = lambda passage: False,
) -> Selection:
    """From BM25's ranking alone."""
    return selection.select(query_id, {"bm25": ranking}, positives, rule, same_text=same_text)


def best(chosen: Selection) -> tuple[int, float]:
    view = chosen.views["bm25"]
    return view.positive_rank, view.positive_score


def ids(negatives: tuple[Negative, ...]) -> list[str]:
    return [negative.id for negative in negatives]


def test_positives_are_no_negatives() -> None:
    chosen = select("q", RANKING, {"p2", "p5", "unretrieved"}, ALL)
    assert ids(chosen.negatives) == ["p1", "p3", "p4", "p6", "p7", "p8", "p9", "p10"]
    assert chosen.views["bm25"].removed == Counter(positive=2)
    assert chosen.views["bm25"].candidates == 10


def test_texts_of_positives_are_no_negatives() -> None:
    chosen = select("q", RANKING, {"p2"}, ALL, lambda passage: passage in {"p3", "p9"})
    assert not {"p3", "p9"} & set(ids(chosen.negatives))
    assert chosen.views["bm25"].removed == Counter(positive=1, same_text=2)


def test_a_negative_knows_where_it_was_found() -> None:
    chosen = select("q", RANKING, set(), Rule(negatives=10))
    assert chosen.negatives[3] == Negative("p4", "bm25", 4, 16.0)


def test_the_rank_floor_counts_ranks_of_the_whole_list() -> None:
    chosen = select("q", RANKING, {"p2"}, Rule(negatives=100, rank_floor=3))
    assert ids(chosen.negatives) == ["p4", "p5", "p6", "p7", "p8", "p9", "p10"]
    assert chosen.views["bm25"].removed == Counter(positive=1, rank_floor=2)


def test_the_score_ceiling_is_a_share_of_the_best_positive() -> None:
    # The best positive is p4 with 16.0: what scores above 14.4 goes, p6 with 14.0 stays.
    chosen = select("q", RANKING, {"p4", "p9"}, Rule(negatives=100, score_ceiling=0.9))
    assert ids(chosen.negatives) == ["p6", "p7", "p8", "p10"]
    assert chosen.views["bm25"].removed == Counter(positive=2, score_ceiling=4)


def test_without_a_retrieved_positive_there_is_no_ceiling() -> None:
    chosen = select("q", RANKING, {"elsewhere"}, Rule(negatives=100, score_ceiling=0.5))
    assert len(chosen.negatives) == 10
    assert best(chosen) == (0, 0.0)


def test_the_best_positive_is_reported() -> None:
    chosen = select("q", RANKING, {"p9", "p4"}, ALL)
    assert best(chosen) == (4, 16.0)


def test_a_draw_is_without_replacement_and_in_the_order_of_ranks() -> None:
    drawn = select("q", RANKING, set(), Rule(negatives=6)).negatives
    assert len({negative.id for negative in drawn}) == 6
    assert [negative.rank for negative in drawn] == sorted(negative.rank for negative in drawn)


def test_a_draw_depends_on_seed_and_query_alone() -> None:
    def drawn(query: str, seed: int) -> list[str]:
        return ids(select(query, RANKING, set(), Rule(negatives=4, seed=seed)).negatives)

    assert drawn("q", 1) == drawn("q", 1)
    assert len({tuple(drawn("q", seed)) for seed in range(20)}) > 5
    assert len({tuple(drawn(f"q{number}", 1)) for number in range(20)}) > 5


def test_every_candidate_has_the_same_chance() -> None:
    drawn: Counter[str] = Counter()
    for number in range(3000):
        drawn.update(ids(select(f"q{number}", RANKING, set(), Rule(negatives=3)).negatives))
    # 900 are expected of each; five standard deviations are 125.
    assert all(775 < drawn[passage] < 1025 for passage, _ in RANKING)


def test_fewer_candidates_than_wanted_are_all_taken() -> None:
    assert len(select("q", RANKING[:2], set(), Rule(negatives=5)).negatives) == 2
    assert select("q", [], {"p1"}, ALL).negatives == ()


# "both" stands at BM25's rank 2 and at the encoder's rank 1, "tie" at rank 4 of either.
TWO = {
    "bm25": [("b1", 9.0), ("both", 8.0), ("right", 7.0), ("tie", 6.0), ("b5", 5.0), ("b6", 4.0)],
    "dense": [("both", 0.9), ("d2", 0.8), ("d3", 0.7), ("tie", 0.6), ("right", 0.5), ("d6", 0.4)],
}


def mixed(rule: Rule, query: str = "q", **tests: Callable[[str], bool]) -> Selection:
    return selection.select(query, TWO, {"right"}, rule, **tests)


def test_the_union_of_two_sources_is_drawn_from_evenly() -> None:
    assert set(ids(mixed(ALL).negatives)) == {"b1", "both", "tie", "b5", "b6", "d2", "d3", "d6"}
    drawn: Counter[str] = Counter()
    for number in range(4000):
        drawn.update(ids(mixed(Rule(negatives=2), f"q{number}").negatives))
    # 1,000 are expected of each of the eight; five standard deviations are 137.
    assert len(drawn) == 8
    assert all(863 < times < 1137 for times in drawn.values())


def test_a_passage_that_both_find_counts_for_the_better_rank_and_keeps_the_other() -> None:
    found = {negative.id: negative for negative in mixed(ALL).negatives}
    assert found["both"] == Negative("both", "dense", 1, 0.9, (Found("bm25", 2, 8.0),))
    assert found["tie"] == Negative("tie", "bm25", 4, 6.0, (Found("dense", 4, 0.6),))
    assert found["d2"] == Negative("d2", "dense", 2, 0.8)


def test_negatives_stand_in_the_order_of_ranks_then_of_sources() -> None:
    assert ids(mixed(ALL).negatives) == ["b1", "both", "d2", "d3", "tie", "b5", "b6", "d6"]


def test_quotas_are_drawn_from_a_source_of_its_own() -> None:
    for number in range(50):
        drawn = set(ids(mixed(Rule(negatives=5, quotas={"bm25": 2, "dense": 3}), f"q{number}").negatives))
        assert len(drawn) == 5
        assert len(drawn & {"b1", "both", "tie", "b5", "b6"}) >= 2
        assert len(drawn & {"both", "d2", "d3", "tie", "d6"}) >= 3


def test_what_quotas_leave_open_comes_from_the_union() -> None:
    # BM25 has five candidates of eight it should give; the rest is the encoder's.
    assert len(mixed(Rule(negatives=8, quotas={"bm25": 8})).negatives) == 8
    drawn = [set(ids(mixed(Rule(negatives=4, quotas={"dense": 1}), f"q{n}").negatives)) for n in range(50)]
    assert all(len(one) == 4 for one in drawn)
    assert any(one >= {"b1", "b5"} for one in drawn)


def test_a_rank_floor_holds_in_every_source_and_for_all() -> None:
    chosen = mixed(Rule(negatives=100, rank_floor=1))
    # The encoder's first is suspected to be a positive, so BM25's second, the same passage, goes too.
    assert ids(chosen.negatives) == ["d2", "d3", "tie", "b5", "b6", "d6"]
    assert chosen.views["bm25"].removed == Counter(positive=1, rank_floor=1, other_source=1)
    assert chosen.views["dense"].removed == Counter(positive=1, rank_floor=1)


def test_a_score_ceiling_is_relative_to_the_positive_in_the_same_source() -> None:
    chosen = mixed(Rule(negatives=100, score_ceiling=1.0))
    # Above 7.0 in BM25: b1, both. Above 0.5 in the encoder: both, d2, d3, tie.
    assert ids(chosen.negatives) == ["b5", "b6", "d6"]
    assert chosen.views["bm25"].removed == Counter(positive=1, score_ceiling=2, other_source=1)
    assert chosen.views["dense"].removed == Counter(positive=1, score_ceiling=4)


def test_a_ceiling_below_a_negative_score_lies_below_it() -> None:
    ranking = [("p1", -1.0), ("right", -2.0), ("p3", -2.1), ("p4", -2.3)]
    chosen = selection.select("q", {"dense": ranking}, {"right"}, Rule(negatives=9, score_ceiling=0.9))
    assert ids(chosen.negatives) == ["p4"]


def test_near_copies_are_put_back_and_others_drawn() -> None:
    asked: list[str] = []

    def near_copy(passage: str) -> bool:
        asked.append(passage)
        return passage in {"d2", "b5"}

    chosen = mixed(Rule(negatives=7, quotas={"bm25": 3}), near_copy=near_copy)
    assert set(ids(chosen.negatives)) == {"b1", "both", "tie", "b6", "d3", "d6"}
    assert chosen.near_copies == 2
    assert len(asked) == len(set(asked))


def test_random_passages_fill_up_what_is_left_open() -> None:
    spare = ["right", "b1", "d2", "r1", "r2", "r3", "same"]
    chosen = selection.select(
        "q", TWO, {"right"}, Rule(negatives=10), spare=spare, same_text=lambda passage: passage == "same"
    )
    assert len(chosen.negatives) == 10
    assert {n.id for n in chosen.negatives[8:]} < {"r1", "r2", "r3"}
    assert all((n.source, n.rank, n.score) == ("random", 0, 0.0) for n in chosen.negatives[8:])


def test_suspects_do_not_come_back_at_random() -> None:
    chosen = selection.select("q", TWO, {"right"}, Rule(negatives=9, rank_floor=6), spare=["b1", "d2", "other"])
    assert ids(chosen.negatives) == ["other"]


def test_sources_are_all_there_are_unless_they_are_named() -> None:
    assert parse_sources("", with_encoder=False, negatives=30) == (["bm25"], {})
    assert parse_sources("", with_encoder=True, negatives=30) == (["bm25", "dense"], {})
    assert parse_sources("dense", with_encoder=True, negatives=30) == (["dense"], {})
    assert parse_sources("bm25:15, dense:15", with_encoder=True, negatives=30) == (
        ["bm25", "dense"],
        {"bm25": 15, "dense": 15},
    )


@pytest.mark.parametrize(
    ("text", "with_encoder"),
    [
        ("dense", False),
        ("bm25", True),
        ("splade", True),
        ("dense,dense:3", True),
        ("dense:x", True),
        ("dense:-1", True),
        ("bm25:20,dense:11", True),
    ],
)
def test_sources_that_cannot_be_are_refused(text: str, with_encoder: bool) -> None:
    with pytest.raises(InputError) as caught:
        parse_sources(text, with_encoder=with_encoder, negatives=30)
    assert caught.value.field == "sources"
    assert caught.value.hint
