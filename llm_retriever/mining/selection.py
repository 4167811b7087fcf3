"""Chooses a query's hard negatives among its candidates.

Every source has a ranking of its own, and is judged on its own: by its ranks, and by its score of the best positive. A
candidate that one source leaves out as a suspected positive is left out altogether, whatever the others say of it. What
remains is drawn from: first each source's quota from its own candidates, then the rest evenly from the union.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from llm_retriever.bm25.sparse import Ranking
from llm_retriever.data.training_set import Found, Negative
from llm_retriever.errors import InputError

SPARSE, DENSE, TEACHER, RANDOM = "bm25", "dense", "teacher", "random"
POSITIVE, SAME_TEXT, RANK_FLOOR, SCORE_CEILING = "positive", "same_text", "rank_floor", "score_ceiling"
OTHER_SOURCE = "other_source"
REASONS = (POSITIVE, SAME_TEXT, RANK_FLOOR, SCORE_CEILING, OTHER_SOURCE)


@dataclass(frozen=True)
class Rule:
    """How negatives are chosen.

    Attributes:
        negatives: How many are drawn, without replacement.
        quotas: How many of them come from a source's own candidates, by source, as far as it has so many; the rest is
            drawn from the union of all sources, every candidate with the same chance.
        rank_floor: So many ranks at the top of each source, positives counted, are left out.
        score_ceiling: Candidates above this share of the best retrieved positive's score are left out; 0 = off. Where
            no positive is retrieved there is nothing to compare with, and nothing is left out.
        seed: Decides the draw, with the query id, so that a query's negatives do not depend on the other queries.
    """

    negatives: int
    quotas: Mapping[str, int] = field(default_factory=dict)
    rank_floor: int = 0
    score_ceiling: float = 0.0
    seed: int = 17


@dataclass(frozen=True)
class View:
    """A source's candidates for a query, judged.

    Attributes:
        candidates: How many it retrieved.
        left: Rank and score of those that may become negatives, best first, by passage id.
        suspects: Ids that it leaves out as suspected positives.
        removed: How many each of `REASONS` removed; the first that applies counts.
        positive_rank: 1-based rank of the best retrieved positive; 0 = none was retrieved.
        positive_score: Its score.
    """

    candidates: int
    left: dict[str, tuple[int, float]]
    suspects: set[str]
    removed: Counter[str]
    positive_rank: int = 0
    positive_score: float = 0.0


@dataclass(frozen=True)
class Selection:
    """The negatives drawn for one query.

    Attributes:
        negatives: Drawn, in the order of their ranks; random ones come last.
        views: What each source had, by source.
        near_copies: How many passages were drawn and put back because they nearly say what a positive says.
    """

    negatives: tuple[Negative, ...]
    views: Mapping[str, View]
    near_copies: int = 0


def parse_sources(
    text: str, *, with_encoder: bool, negatives: int, with_teacher: bool = False
) -> tuple[list[str], dict[str, int]]:
    """Parses sources and quotas from ``"bm25:15,dense:15"``; empty = all that search, without quotas.

    Raises:
        InputError: A source is unknown, stands twice or lacks its encoder, a quota is no number of negatives, or the
            quotas are more than the negatives that are wanted.
    """
    known = [SPARSE, DENSE] if with_encoder else [SPARSE]
    nameable = [*known, TEACHER] if with_teacher else known
    sources: list[str] = []
    quotas: dict[str, int] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, colon, number = (part.strip() for part in entry.partition(":"))
        if name == DENSE and not with_encoder:
            raise InputError("dense candidates need an encoder", field="sources", hint="set encoder")
        if name not in nameable or name in sources:
            raise InputError(f"{entry!r} is refused", field="sources", hint=f"name {' and '.join(nameable)}, each once")
        if colon and not (number.isascii() and number.isdigit() and int(number)):
            raise InputError(f"the quota in {entry!r} is refused", field="sources", hint="write as in bm25:15")
        sources.append(name)
        quotas |= {name: int(number)} if colon else {}
    if with_encoder and sources and DENSE not in sources:
        raise InputError("leaves out the encoder that is given", field="sources", hint="name dense, or empty encoder")
    if sum(quotas.values()) > negatives:
        problem = f"the quotas are {sum(quotas.values())} of {negatives} negatives"
        raise InputError(problem, field="sources", hint="lower them, or raise negatives")
    return sources or known, quotas


def select(
    query_id: str,
    rankings: Mapping[str, Ranking],
    positives: Set[str],
    rule: Rule,
    *,
    same_text: Callable[[str], bool] = lambda passage: False,
    near_copy: Callable[[str], bool] = lambda passage: False,
    spare: Sequence[str] = (),
) -> Selection:
    """Draws the negatives of one query.

    Args:
        query_id: The query.
        rankings: Its candidates by source, best first.
        positives: Ids of its positives.
        rule: How to choose.
        same_text: Tells of a passage id whether its text is that of a positive or of the query.
        near_copy: Tells the same of nearly the text of a positive; asked only of what is drawn.
        spare: Passages that fill up what the sources leave open.
    """
    views = {source: _view(ranking, positives, rule, same_text) for source, ranking in rankings.items()}
    union = _merged(views)
    draw = _Draw(random.Random(f"{rule.seed}:{query_id}"), near_copy)  # noqa: S311 - a reproducible draw, no secret
    for source, quota in rule.quotas.items():
        draw.take([passage for passage in views[source].left if passage in union], quota)
    draw.take(union, rule.negatives - len(draw.taken))
    negatives = [_negative(passage, views) for passage in draw.taken]
    if len(negatives) < rule.negatives and spare:
        unfit = set().union(positives, union, *(view.suspects for view in views.values()))
        fit = (p for p in spare if p not in unfit and not same_text(p))
        negatives += [Negative(p, RANDOM, 0, 0.0) for p in draw.take(fit, rule.negatives - len(negatives))]
    order = {source: place for place, source in enumerate(views)}
    negatives.sort(key=lambda n: (n.rank == 0, n.rank, order.get(n.source, 0)))
    return Selection(tuple(negatives), views, len(draw.near_copies))


def ceiling_of(score: float, share: float) -> float:
    """Returns the score that is `share` of a positive's: below it also where inner products are negative.

    >>> ceiling_of(20.0, 0.95), ceiling_of(-20.0, 0.95)
    (19.0, -21.0)
    """
    return score - (1 - share) * abs(score)


def _view(ranking: Ranking, positives: Set[str], rule: Rule, same_text: Callable[[str], bool]) -> View:
    rank, score = next(((n, s) for n, (p, s) in enumerate(ranking, 1) if p in positives), (0, 0.0))
    ceiling = ceiling_of(score, rule.score_ceiling) if rank and rule.score_ceiling else float("inf")
    view = View(len(ranking), {}, set(), Counter(), rank, score)
    for number, (passage, score_of_passage) in enumerate(ranking, 1):
        if passage in positives:
            view.removed[POSITIVE] += 1
        elif same_text(passage):
            view.removed[SAME_TEXT] += 1
        elif number <= rule.rank_floor:
            view.removed[RANK_FLOOR] += 1
            view.suspects.add(passage)
        elif score_of_passage > ceiling:
            view.removed[SCORE_CEILING] += 1
            view.suspects.add(passage)
        else:
            view.left[passage] = number, score_of_passage
    return view


def _merged(views: Mapping[str, View]) -> dict[str, None]:
    """Unites what is left, in the order of sources and ranks, without any source's suspects."""
    suspects = set().union(*(view.suspects for view in views.values()))
    union: dict[str, None] = {}
    for view in views.values():
        union |= dict.fromkeys(view.left)
        view.removed[OTHER_SOURCE] += sum(passage in view.left for passage in suspects)
    for passage in suspects:
        union.pop(passage, None)
    return union


def _negative(passage: str, views: Mapping[str, View]) -> Negative:
    places = [Found(source, *view.left[passage]) for source, view in views.items() if passage in view.left]
    best = min(places, key=lambda where: where.rank)
    others = tuple(where for where in places if where is not best)
    return Negative(passage, best.source, best.rank, best.score, others)


class _Draw:
    """Draws without replacement; near copies are put aside for good.

    Attributes:
        taken: Ids drawn so far, in the order of the draw.
        near_copies: Ids put aside.
    """

    def __init__(self, random_: random.Random, near_copy: Callable[[str], bool]) -> None:
        self._random, self._near_copy = random_, near_copy
        self.taken: dict[str, None] = {}
        self.near_copies: set[str] = set()

    def take(self, passages: Iterable[str], number: int) -> list[str]:
        """Draws `number` more of the passages, as far as there are so many; returns them."""
        if number <= 0:
            return []
        left = [p for p in passages if p not in self.taken and p not in self.near_copies]
        self._random.shuffle(left)
        drawn: list[str] = []
        for passage in left:
            if self._near_copy(passage):
                self.near_copies.add(passage)
                continue
            drawn.append(passage)
            if len(drawn) == number:
                break
        self.taken |= dict.fromkeys(drawn)
        return drawn
