"""Where relevant items stand among equal scores, and what the metrics of the K best items expect of that.

Counting needs, for each relevant item, how many items score higher (A) and how many score the same, itself included
(T): its place is one of A + 1 .. A + T, all equally likely. Every metric follows from these two in closed form.

Source: McSherry and Najork, 2008.
"""

# Shapes: B users of a batch, I items, L relevant items of these users, K places.

from typing import Literal

import numpy as np
import numpy.typing as npt

from recdistill.evaluation.auc import Counts, Floats

Ties = Literal["expected", "row"]
METRICS = ("recall", "ndcg", "hr", "mrr")


def highest(score_BI: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.floating]:
    """The highest scores of each row, descending, (B, K); -inf behind the last item."""
    items = score_BI.shape[1]
    if count < items:
        return -np.sort(-np.partition(score_BI, items - count, axis=1)[:, items - count :], axis=1)
    padding = np.full((len(score_BI), count - items), -np.inf, score_BI.dtype)
    return np.concatenate([-np.sort(-score_BI, axis=1), padding], axis=1)


def best(score_BI: npt.NDArray[np.floating], count: int) -> Counts:
    """The highest-scored items of each row, best first, equal scores by row; -1 where all others score -inf, (B, K).

    Example:
        >>> best(np.array([[0.5, 0.9, 0.5, -np.inf]]), 4).tolist()
        [[1, 0, 2, -1]]
    """
    lowest_B = highest(score_BI, count)[:, -1]
    found = np.full((len(score_BI), count), -1, np.int64)
    for b, lowest in enumerate(lowest_B):
        item_C = np.flatnonzero((score_BI[b] >= lowest) & (score_BI[b] > -np.inf))
        chosen = item_C[np.argsort(-score_BI[b, item_C], kind="stable")[:count]]
        found[b, : len(chosen)] = chosen
    return found


def places(
    score_BI: npt.NDArray[np.floating],
    top_BK: npt.NDArray[np.floating],
    row_L: Counts,
    item_L: Counts,
    ties: Ties,
) -> tuple[Counts, Counts]:
    """How many items score above each relevant one, and how many the same; behind the top only that it is there."""
    last = top_BK.shape[1]
    if ties == "row":
        order_BK = best(score_BI, last)
        is_there_LK = order_BK[row_L] == item_L[:, None]
        return np.where(is_there_LK.any(1), is_there_LK.argmax(1), last), np.ones(len(row_L), np.int64)
    mine_L = score_BI[row_L, item_L]
    above_L = (top_BK[row_L] > mine_L[:, None]).sum(1)
    tied_L = (top_BK[row_L] == mine_L[:, None]).sum(1)
    # The run of equal scores around the last place goes on behind the top.
    in_last_run_B = (score_BI == top_BK[:, -1:]).sum(1)
    tied_L = np.where(mine_L == top_BK[row_L, -1], in_last_run_B[row_L], tied_L)
    is_behind_L = (mine_L < top_BK[row_L, -1]) | (mine_L == -np.inf)
    return np.where(is_behind_L, last, above_L), np.where(is_behind_L, 1, tied_L)


def metrics(above_L: Counts, tied_L: Counts, row_L: Counts, relevant_B: Counts, cuts: list[int]) -> dict[str, Floats]:
    """Every metric of each user from the runs of equal scores in which its relevant items lie."""
    users = len(relevant_B)
    gain = np.concatenate(
        [[0.0], np.cumsum(1 / np.log2(np.arange(2, cuts[-1] + 2)))]
    )  # of the first 0, 1, 2, ... places
    found = {}
    for cut in cuts:
        slots_L = np.clip(cut - above_L, 0, tied_L)
        found[f"recall@{cut}"] = np.bincount(row_L, slots_L / tied_L, minlength=users) / relevant_B
        reached_L = np.minimum(above_L, cut)
        gain_L = (gain[reached_L + slots_L] - gain[reached_L]) / tied_L
        best_B = gain[np.minimum(relevant_B, cut)]
        found[f"ndcg@{cut}"] = np.bincount(row_L, gain_L, minlength=users) / best_B
        found[f"hr@{cut}"] = 1 - _missed_all(slots_L, tied_L, row_L, users)
        found[f"mrr@{cut}"] = _first(above_L, tied_L, row_L, users, cut)
    return found


def _missed_all(slots_L: Counts, tied_L: Counts, row_L: Counts, users: int) -> Floats:
    """The probability that none of a user's relevant items is shown.

    Runs are shown as a whole, in part or not at all. Of a run of T with s places shown, r relevant items are all missed
    with probability ``(T - s)(T - s - 1) ... / (T (T - 1) ...)``, r factors.
    """
    nth_L = _nth_in_user(row_L, slots_L)
    factor_L = np.where(slots_L > 0, np.clip(tied_L - slots_L - nth_L, 0, None) / np.clip(tied_L - nth_L, 1, None), 1.0)
    missed_B = np.ones(users)
    np.multiply.at(missed_B, row_L, factor_L)
    return missed_B


def _nth_in_user(row_L: Counts, slots_L: Counts) -> Counts:
    """For each item, how many relevant ones of its user that have a chance to be shown come before it.

    Only one run of a user is shown in part, and every other run with a chance is shown as a whole, where the product is
    0 whichever number its items get, as long as that of the partial run counts from 0.
    """
    counted_L = (slots_L > 0).astype(np.int64)
    before_L = np.cumsum(counted_L) - counted_L
    first_L = np.searchsorted(row_L, row_L)
    return before_L - before_L[first_L]


def _first(above_L: Counts, tied_L: Counts, row_L: Counts, users: int, cut: int) -> Floats:
    """The expected reciprocal place of each user's first relevant item, 0 beyond the cut.

    It lies in the highest run that holds any. Of T equal items r are relevant, and the first of them is at place
    A + j of all with probability ``C(T - j, r - 1) / C(T, r)``.
    """
    above_B = np.full(users, np.iinfo(np.int64).max)
    np.minimum.at(above_B, row_L, above_L)
    is_first_L = above_L == above_B[row_L]
    tied_B = np.ones(users, np.int64)
    tied_B[row_L[is_first_L]] = tied_L[is_first_L]
    relevant_B = np.bincount(row_L[is_first_L], minlength=users)
    chance_B, found_B = relevant_B / tied_B, np.zeros(users)
    for j in range(1, cut + 1):
        place_B = np.minimum(above_B, cut) + j
        found_B += np.where(place_B <= cut, np.clip(chance_B, 0, None) / place_B, 0.0)
        chance_B = chance_B * (tied_B - j - relevant_B + 1) / np.clip(tied_B - j, 1, None)
        chance_B = np.where(tied_B - j >= relevant_B, chance_B, 0.0)
    return found_B


def add_missed(
    log_missed_I: Floats,
    score_BI: npt.NDArray[np.floating],
    top_BK: npt.NDArray[np.floating],
    cut: int,
    ties: Ties,
) -> None:
    """Add to each item the logarithm of the probability that none of these users is shown it."""
    last_B1 = top_BK[:, cut - 1 : cut]
    is_in_BI = score_BI > last_B1
    is_tied_BI = (score_BI == last_B1) & (score_BI > -np.inf)
    slots_B1 = np.clip(cut - is_in_BI.sum(1, keepdims=True), 0, None)
    tied_B1 = is_tied_BI.sum(1, keepdims=True)
    if ties == "row":
        is_in_BI |= is_tied_BI & (np.cumsum(is_tied_BI, 1) <= slots_B1)
    else:
        is_in_BI |= is_tied_BI & (slots_B1 >= tied_B1)
        row_P, item_P = np.nonzero(is_tied_BI & ~is_in_BI)
        missed_P = np.log1p(-(slots_B1 / np.clip(tied_B1, 1, None))[row_P, 0])
        log_missed_I += np.bincount(item_P, missed_P, minlength=len(log_missed_I))
    log_missed_I[is_in_BI.any(0)] = -np.inf
