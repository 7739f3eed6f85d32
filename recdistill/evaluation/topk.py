"""Quality of the K best items of each user: recall, NDCG, hit rate, reciprocal rank, coverage.

Two protocols. *Full ranking* scores every item and leaves out what the user is known to have taken. *Sampled
candidates* rank one held-out item among a fixed number of others; it is kept because published tables use it, although
its order of systems need not be that of full ranking (Krichene and Rendle, 2020).

Ties. Items with equal scores are in random order, and every metric is its expected value over that order, in closed
form (`places`). AUC here gives ties half credit, which is the same rule. It matters for codes: 64 bits make only 65
different scores, so that dozens of items tie around place K, and an order by row number would favour frequent items,
which have low rows. What is shown in the end needs some order: ``ties="row"`` puts lower rows
first, as the packed scan does.
"""

# Shapes: U users, V users that are evaluated, B of them in a batch, I items, L relevant items of a batch, N candidates.

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from recdistill.errors import MetricError
from recdistill.evaluation.auc import Bools, Counts, Floats
from recdistill.evaluation.places import METRICS, Ties, add_missed, highest, metrics, places

Scores = Callable[[Counts], npt.NDArray[np.floating]]  # users (B,) -> scores of all items (B, I)
PairScores = Callable[[Counts, Counts], npt.NDArray[np.floating]]  # users (B,), items (B, N) -> scores (B, N)


@dataclass(frozen=True, eq=False)
class Lists:
    """The items of each user, ascending and each once, one list after the other: user u has those from offsets[u]."""

    offsets: Counts
    item_E: Counts

    @classmethod
    def of(cls, users: int, user_N: npt.ArrayLike, item_N: npt.ArrayLike) -> "Lists":
        """The lists of (user, item) pairs in any order.

        Example:
            >>> lists = Lists.of(3, [2, 0, 2, 2], [5, 1, 4, 5])
            >>> lists.offsets.tolist(), lists.item_E.tolist()
            ([0, 1, 1, 3], [1, 4, 5])
        """
        pairs = np.unique(np.stack([np.asarray(user_N), np.asarray(item_N)], 1).astype(np.int64), axis=0)
        return cls(np.searchsorted(pairs[:, 0], np.arange(users + 1)), pairs[:, 1].copy())

    @property
    def users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    def count(self) -> Counts:
        """The number of items of each user, (U,)."""
        return np.diff(self.offsets)

    def pairs(self, user_B: Counts) -> tuple[Counts, Counts]:
        """The place of the user in the batch and the item, of all items of some users, (L,) each."""
        length_B = self.count()[user_B]
        row_L = np.repeat(np.arange(len(user_B)), length_B)
        start_L = np.repeat(self.offsets[user_B] - (np.cumsum(length_B) - length_B), length_B)
        return row_L, self.item_E[start_L + np.arange(len(row_L))]

    def joined(self, other: "Lists") -> "Lists":
        """The items that a user has in either."""
        everyone = np.arange(self.users)
        both = [lists.pairs(everyone) for lists in (self, other)]
        return Lists.of(self.users, np.concatenate([b[0] for b in both]), np.concatenate([b[1] for b in both]))

    def without(self, other: "Lists") -> "Lists":
        """The items that a user does not have in the other."""
        everyone, span = np.arange(self.users), max(int(e.item_E.max(initial=0)) for e in (self, other)) + 1
        (user_E, item_E), (user_F, item_F) = self.pairs(everyone), other.pairs(everyone)
        kept_E = ~np.isin(user_E * span + item_E, user_F * span + item_F)
        return Lists.of(self.users, user_E[kept_E], item_E[kept_E])


@dataclass(frozen=True, eq=False)
class TopK:
    """What `full_ranking` and `sampled_ranking` find.

    Attributes:
        user_V: the users that have something to find, ascending.
        values: by metric and cut, ``recall@20`` for example, one number per such user, (V,).
        coverage: by cut, the expected share of the items that somebody is shown; empty with sampled candidates.
    """

    user_V: Counts
    values: Mapping[str, Floats]
    coverage: Mapping[str, float] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Every metric averaged over users, all alike; `nan` without users."""
        found = {name: float(value_V.mean()) if len(value_V) else math.nan for name, value_V in self.values.items()}
        return {**found, **self.coverage}

    def with_nothing_for(self, user_W: Counts) -> "TopK":
        """The same with further users, who find nothing.

        Example:
            >>> TopK(np.array([3]), {"hr@1": np.array([1.0])}).with_nothing_for(np.array([2])).means()["hr@1"]
            0.5
        """
        user_V = np.concatenate([self.user_V, user_W])
        order_V = np.argsort(user_V, kind="stable")
        padded = {name: np.concatenate([value_V, np.zeros(len(user_W))]) for name, value_V in self.values.items()}
        return TopK(user_V[order_V], {name: value_V[order_V] for name, value_V in padded.items()}, self.coverage)


def full_ranking(
    score: Scores,
    relevant: Lists,
    known: Lists,
    *,
    candidate_I: Bools,
    at: Iterable[int] = (10, 20),
    ties: Ties = "expected",
    batch: int = 256,
) -> TopK:
    """Every item ranked for every user, without those that the user is known to have taken.

    With n relevant items of a user and their places p: recall@K ``#(p <= K) / n``; NDCG@K the sum of
    ``1 / log2(p + 1)`` over p <= K, divided by that over 1 .. min(n, K); hit rate@K 1 if any p <= K; MRR@K one over the
    smallest p if that is <= K; coverage@K the share of candidates that are among the K best of some user.

    Args:
        score: from user rows to the scores of all items; finite numbers.
        relevant: what each user takes later. Items that are no candidates count as never found; those that are known
            already are left out, and so are users with nothing left to find.
        known: what each user has taken before, training and, when testing, validation.
        candidate_I: the items that may be shown, (I,); not the rows for missing and unknown values.
        at: the cuts K.
        ties: expected values over random order, or lower rows first.
        batch: users that are scored at a time.

    Returns:
        The metrics ``recall``, ``ndcg``, ``hr``, ``mrr`` at each cut for each user, and the coverage.

    Raises:
        MetricError: scores are of another shape or not finite, or a cut is not positive.

    Example:
        >>> table = np.array([[0.9, 0.5, 0.5, 0.1]])
        >>> test, train = Lists.of(1, [0], [2]), Lists.of(1, [0], [0])
        >>> found = full_ranking(lambda users: table[users], test, train, candidate_I=np.ones(4, bool), at=[1, 2])
        >>> found.means()["recall@1"], found.means()["recall@2"], found.coverage["coverage@1"]
        (0.5, 1.0, 0.25)

    Source: Järvelin and Kekäläinen, 2002, for NDCG; ties as at the head of this module.
    """
    cuts = _cuts(at)
    relevant = relevant.without(known)
    user_V = np.flatnonzero(relevant.count())
    parts: list[dict[str, Floats]] = []
    log_missed = {cut: np.zeros(len(candidate_I)) for cut in cuts}
    for start in range(0, len(user_V), batch):
        user_B = user_V[start : start + batch]
        score_BI = _checked(score(user_B), (len(user_B), len(candidate_I)))
        score_BI[:, ~candidate_I] = -np.inf
        score_BI[known.pairs(user_B)] = -np.inf
        top_BK = highest(score_BI, cuts[-1])
        row_L, item_L = relevant.pairs(user_B)
        runs = places(score_BI, top_BK, row_L, item_L, ties)
        parts.append(metrics(*runs, row_L, relevant.count()[user_B], cuts))
        for cut in cuts:
            add_missed(log_missed[cut], score_BI, top_BK, cut, ties)
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else _nothing(cuts)
    shown = {f"coverage@{cut}": float(-np.expm1(log_missed[cut][candidate_I]).mean()) for cut in cuts}
    return TopK(user_V, values, shown)


def sampled_ranking(
    score: PairScores,
    user_V: Counts,
    held_out_V: Counts,
    candidates_DVN: Counts,
    *,
    at: Iterable[int] = (5, 10),
    ties: Ties = "expected",
    batch: int = 1024,
) -> TopK:
    """One held-out item of each user ranked among sampled others, averaged over draws of these.

    Args:
        score: from user rows and items to scores; finite numbers.
        user_V: the users, (V,).
        held_out_V: the item of each, (V,).
        candidates_DVN: the others, D draws of N for each user, from `draw_candidates`.
        at: the cuts K.
        ties: expected values over random order, or lower rows first.
        batch: users that are scored at a time.

    Returns:
        The metrics of `full_ranking` for each user, averaged over draws; recall and hit rate are the same here.

    Raises:
        MetricError: scores or candidates are of another shape, scores are not finite, or a cut is not positive.

    Example:
        >>> table = np.array([[0.9, 0.5, 0.1]])
        >>> found = sampled_ranking(
        ...     lambda u, i: table[u[:, None], i], np.array([0]), np.array([1]), np.array([[[0, 2]]]), at=[1, 2]
        ... )
        >>> found.means()["hr@1"], round(found.means()["ndcg@2"], 4)
        (0.0, 0.6309)

    Source: the protocol of DE-RRD, Kang et al., 2020, section 5.1: 499 others that the user has never taken.
    """
    cuts = _cuts(at)
    if candidates_DVN.ndim != 3 or candidates_DVN.shape[1] != len(user_V) or len(held_out_V) != len(user_V):
        raise MetricError(
            f"sampled_ranking: expected one held-out item and (draws, {len(user_V)}, N) candidates, found "
            f"{len(held_out_V)} and {candidates_DVN.shape}; draw candidates for these users"
        )
    draws_of, _, count = candidates_DVN.shape
    parts = []
    for start in range(0, len(user_V), batch):
        some = slice(start, start + batch)
        user_B, item_B1 = user_V[some], held_out_V[some, None]
        item_BM = np.concatenate([item_B1, *candidates_DVN[:, some]], 1)  # of all draws, so that each user is met once
        score_BM = _checked(score(user_B, item_BM), item_BM.shape)
        mine_B1, draws = score_BM[:, :1], []
        for end in range(1 + count, 2 + draws_of * count, count):
            others_BN, item_BN = score_BM[:, end - count : end], item_BM[:, end - count : end]
            above_B, same_BN = (others_BN > mine_B1).sum(1), others_BN == mine_B1
            if ties == "row":
                above_B, tied_B = (
                    above_B + (same_BN & (item_BN < item_B1)).sum(1),
                    np.ones(len(user_B), np.int64),
                )
            else:
                tied_B = same_BN.sum(1) + 1
            draws.append(metrics(above_B, tied_B, np.arange(len(user_B)), np.ones(len(user_B), np.int64), cuts))
        parts.append({name: np.mean([draw[name] for draw in draws], axis=0) for name in draws[0]})
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else _nothing(cuts)
    return TopK(user_V, values)


def draw_candidates(
    user_V: Counts, taken: Lists, candidate_I: Bools, count: int, *, draws: int = 1, seed: int = 0
) -> Counts:
    """Items that a user has never taken, each at most once in a draw, all alike, (D, V, N).

    What is drawn for a user depends on seed, draw and user alone.

    Args:
        user_V: the users, (V,).
        taken: all items of each user, in whatever split.
        candidate_I: the items that may be drawn, (I,).
        count: N.
        draws: D.
        seed: of the draws.

    Raises:
        MetricError: a user has fewer items left.

    Example:
        >>> drawn = draw_candidates(np.array([0]), Lists.of(1, [0, 0], [1, 3]), np.ones(5, bool), 3)
        >>> np.sort(drawn).tolist()
        [[[0, 2, 4]]]
    """
    item_C = np.flatnonzero(candidate_I)
    found = np.empty((draws, len(user_V), count), np.int64)
    for v, user in enumerate(user_V.tolist()):
        taken_E = taken.item_E[taken.offsets[user] : taken.offsets[user + 1]]
        place_E = np.searchsorted(item_C, taken_E[candidate_I[taken_E]])
        left = len(item_C) - len(place_E)
        if left < count:
            raise MetricError(
                f"draw_candidates: {count} items are to be drawn for user {user}, who has only {left} left; draw fewer"
            )
        for draw in range(draws):
            pick_N = np.random.default_rng([seed, draw, user]).choice(left, count, replace=False)
            # The k-th item that is left lies behind all taken ones that have at most k left before them.
            pick_N = pick_N + np.searchsorted(place_E - np.arange(len(place_E)), pick_N, side="right")
            found[draw, v] = item_C[pick_N]
    return found


def _cuts(at: Iterable[int]) -> list[int]:
    cuts = sorted(set(at))
    if not cuts or cuts[0] < 1:
        raise MetricError(f"topk: cuts must be positive, found {cuts}; ask for at=[10, 20], for example")
    return cuts


def _nothing(cuts: list[int]) -> dict[str, Floats]:
    return {f"{metric}@{cut}": np.empty(0) for cut in cuts for metric in METRICS}


def _checked(score: npt.NDArray[np.floating], shape: tuple[int, ...]) -> npt.NDArray[np.floating]:
    """A copy of the scores that may be written to."""
    if score.shape != shape:
        raise MetricError(f"topk: expected scores of shape {shape}, found {score.shape}; score all items asked for")
    if not np.isfinite(score).all():
        raise MetricError(
            f"topk: {int((~np.isfinite(score)).sum())} of {score.size} scores are NaN or infinite; look for a diverged "
            "member (items are left out by `known` and `candidate_I`)"
        )
    return score.astype(score.dtype if score.dtype.kind == "f" else np.float64)
