"""Which of a query's candidates become its hard negatives."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from llm_retriever.mining.bm25 import Ranking
from llm_retriever.training_set import Negative

POSITIVE, SAME_TEXT, RANK_FLOOR, SCORE_CEILING = "positive", "same_text", "rank_floor", "score_ceiling"
REASONS = (POSITIVE, SAME_TEXT, RANK_FLOOR, SCORE_CEILING)


@dataclass(frozen=True)
class Rule:
    """How negatives are chosen.

    Attributes:
        negatives: How many are drawn, without replacement and all with the same chance.
        rank_floor: So many ranks at the top, positives counted, are left out.
        score_ceiling: Candidates above this share of the best retrieved positive's score are left out; 0 = off. Where
            no positive is retrieved there is nothing to compare with, and nothing is left out.
        seed: With the query id it decides the draw, so that a query's negatives do not depend on the other queries.
    """

    negatives: int
    rank_floor: int = 0
    score_ceiling: float = 0.0
    seed: int = 17


@dataclass(frozen=True)
class Selection:
    """What came of one query.

    Attributes:
        negatives: Drawn, in the order of their ranks.
        candidates: How many were retrieved.
        removed: How many candidates each of `REASONS` removed; the first that applies counts.
        positive_rank: 1-based rank of the best retrieved positive; 0 = none was retrieved.
        positive_score: Its score.
    """

    negatives: tuple[Negative, ...]
    candidates: int
    removed: Counter[str] = field(default_factory=Counter)
    positive_rank: int = 0
    positive_score: float = 0.0


def select(
    query_id: str,
    ranking: Ranking,
    positives: Set[str],
    same_text: Callable[[str], bool],
    rule: Rule,
    source: str = "bm25",
) -> Selection:
    """Draws the negatives of one query.

    Args:
        query_id: The query.
        ranking: Its candidates, best first.
        positives: Ids of its positives.
        same_text: Tells of a passage id whether its text is that of a positive or of the query.
        rule: How to choose.
        source: Name of the miner, for the provenance.
    """
    rank, score = next(((n, s) for n, (p, s) in enumerate(ranking, 1) if p in positives), (0, 0.0))
    ceiling = rule.score_ceiling * score if rank and rule.score_ceiling else float("inf")
    removed: Counter[str] = Counter()
    left: list[Negative] = []
    for number, (passage, found) in enumerate(ranking, 1):
        if passage in positives:
            removed[POSITIVE] += 1
        elif same_text(passage):
            removed[SAME_TEXT] += 1
        elif number <= rule.rank_floor:
            removed[RANK_FLOOR] += 1
        elif found > ceiling:
            removed[SCORE_CEILING] += 1
        else:
            left.append(Negative(passage, source, number, found))
    draw = random.Random(f"{rule.seed}:{query_id}")  # noqa: S311 - a reproducible draw, no secret
    drawn = draw.sample(left, min(rule.negatives, len(left)))
    return Selection(tuple(sorted(drawn, key=lambda negative: negative.rank)), len(ranking), removed, rank, score)
