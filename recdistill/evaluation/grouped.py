"""AUC within groups (users, sessions, requests), averaged over groups, with the convention in the name.

"GAUC" has at least four meanings that differ in the second decimal on the same scores. They differ in two choices: what
a group with one class counts, and how groups are weighted. Each choice has its own name here, and the coverage (which
share of rows and groups could be used) travels with the numbers.

Shapes: N rows, R tie runs (equal group and score), G groups.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from recdistill.errors import MetricError
from recdistill.evaluation.auc import Counts, Floats, checked_labels, checked_numbers


@dataclass(frozen=True, slots=True)
class GroupTable:
    """One entry per group, in ascending order of group: its AUC (`nan` with one class), rows and positives."""

    group_G: npt.NDArray[np.generic]
    auc_G: Floats
    rows_G: Counts
    positives_G: Counts


@dataclass(frozen=True, slots=True)
class GroupedAuc:
    """The grouped AUCs of one score, each by its convention, and what they rest on.

    Attributes:
        gauc_macro: mean over the groups with both classes, all alike.
        gauc_impressions: mean over the groups with both classes, weighted by their rows.
        gauc_positives: mean over the groups with both classes, weighted by their positives.
        gauc_half: mean over all groups, all alike, where a group with one class counts 0.5.
        coverage_rows: share of rows in groups with both classes.
        coverage_groups: share of groups with both classes.
        groups: number of groups.
    """

    gauc_macro: float
    gauc_impressions: float
    gauc_positives: float
    gauc_half: float
    coverage_rows: float
    coverage_groups: float
    groups: int

    def as_dict(self) -> dict[str, float]:
        """The same numbers by name, as the report holds them."""
        return asdict(self)


def _group_codes(group_N: npt.ArrayLike, rows: int) -> tuple[npt.NDArray[np.generic], Counts]:
    """The distinct groups in order, shape (G,), and the place of each row's group among them, shape (N,)."""
    array_N = np.asarray(group_N)
    if array_N.shape != (rows,):
        raise MetricError(
            f"group_table: group must have the shape of the labels, ({rows},), but has shape {array_N.shape}. "
            "Pass one group per labelled row."
        )
    # NaN and NaT are the values unequal to themselves; `unique` would make one large group of them.
    is_missing_N = np.asarray(array_N != array_N, dtype=np.bool_)
    if is_missing_N.any():
        raise MetricError(
            f"group_table: every row must have a group, but {int(is_missing_N.sum())} have none; the first is row "
            f"{int(is_missing_N.argmax())}. Drop these rows or give each its own group."
        )
    try:
        group_G, code_N = np.unique(array_N, return_inverse=True)
    except TypeError as error:
        raise MetricError(
            f"group_table: groups must be comparable with each other, but have type {array_N.dtype} and {error}. "
            "Use one type, without missing values."
        ) from error
    return group_G, code_N


def group_table(label_N: npt.ArrayLike, score_N: npt.ArrayLike, group_N: npt.ArrayLike) -> GroupTable:
    """The exact AUC of every group, ties at half credit, from one sort and no loop over groups.

    Args:
        label_N: 0 or 1, shape (N,).
        score_N: finite numbers, shape (N,).
        group_N: raw group keys of any one sortable type, shape (N,).

    Returns:
        One entry per group.

    Raises:
        MetricError: as `auc`, and for a missing group or groups that cannot be compared.

    Example:
        >>> table = group_table([0, 1, 1, 0, 1], [0.1, 0.9, 0.5, 0.5, 0.3], ["x", "x", "y", "y", "z"])
        >>> table.group_G.tolist(), table.auc_G.tolist(), table.rows_G.tolist()
        (['x', 'y', 'z'], [1.0, 0.5, nan], [2, 2, 1])

    Source: group-wise Mann-Whitney statistic; the averages are in `grouped_auc`.
    """
    is_positive_N = checked_labels("group_table", label_N)
    rows = len(is_positive_N)
    number_N = checked_numbers("group_table", "score", score_N, rows)
    group_G, code_N = _group_codes(group_N, rows)
    if rows == 0:
        return GroupTable(group_G, np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
    order_N = np.lexsort((number_N, code_N))
    sorted_code_N, sorted_score_N = code_N[order_N], number_N[order_N]
    is_start_N = np.ones(rows, dtype=np.bool_)
    is_start_N[1:] = (sorted_code_N[1:] != sorted_code_N[:-1]) | (sorted_score_N[1:] != sorted_score_N[:-1])
    start_R = np.flatnonzero(is_start_N)
    positive_R = np.add.reduceat(is_positive_N[order_N], start_R, dtype=np.int64)
    negative_R = np.diff(start_R, append=rows) - positive_R

    code_R = sorted_code_N[start_R]
    first_run_G = np.searchsorted(code_R, np.arange(len(group_G)))
    positives_G = np.add.reduceat(positive_R, first_run_G)
    negatives_G = np.add.reduceat(negative_R, first_run_G)
    negatives_before_group_R = (np.cumsum(negatives_G) - negatives_G)[code_R]
    below_R = np.cumsum(negative_R) - negative_R - negatives_before_group_R
    # Doubled, so that half credit stays a whole number and each group's AUC is one exact division.
    credit_twice_G = np.add.reduceat(positive_R * (2 * below_R + negative_R), first_run_G)
    pairs_G = positives_G * negatives_G
    auc_G = np.full(len(group_G), math.nan)
    np.divide(credit_twice_G, 2 * pairs_G, out=auc_G, where=pairs_G > 0)
    return GroupTable(group_G, auc_G, positives_G + negatives_G, positives_G)


def grouped_auc(label_N: npt.ArrayLike, score_N: npt.ArrayLike, group_N: npt.ArrayLike) -> GroupedAuc:
    """The grouped AUCs of a score under every convention in use, with their coverage.

    With ``A_g`` the AUC of group g, ``n_g`` its rows, ``p_g`` its positives and V the groups with both classes:
    macro ``mean_V A_g``, impressions ``sum_V n_g A_g / sum_V n_g``, positives ``sum_V p_g A_g / sum_V p_g``, half
    ``(sum_V A_g + 0.5 #(not V)) / #all``.

    Args:
        label_N: 0 or 1, shape (N,).
        score_N: finite numbers, shape (N,).
        group_N: raw group keys of any one sortable type, shape (N,).

    Returns:
        All conventions. Where no group has both classes the first three are `nan`; without rows everything is.

    Raises:
        MetricError: as `group_table`.

    Example:
        >>> result = grouped_auc([0, 1, 1, 0, 0, 1], [0.1, 0.9, 0.5, 0.5, 0.2, 0.3], [1, 1, 2, 2, 2, 3])
        >>> result.gauc_macro, result.gauc_impressions, result.gauc_half, result.coverage_groups
        (0.875, 0.85, 0.75, 0.6666666666666666)

    Source: impressions, Zhou et al., Deep Interest Network, KDD 2018; macro and half as found in TorchEasyRec and
    TorchRec.
    """
    table = group_table(label_N, score_N, group_N)
    groups = len(table.group_G)
    if groups == 0:
        nan = math.nan
        return GroupedAuc(nan, nan, nan, nan, nan, nan, groups=0)
    has_both_G = ~np.isnan(table.auc_G)
    auc_V, rows_V, positives_V = table.auc_G[has_both_G], table.rows_G[has_both_G], table.positives_G[has_both_G]
    some = len(auc_V) > 0
    return GroupedAuc(
        gauc_macro=float(auc_V.mean()) if some else math.nan,
        gauc_impressions=float(np.average(auc_V, weights=rows_V)) if some else math.nan,
        gauc_positives=float(np.average(auc_V, weights=positives_V)) if some else math.nan,
        gauc_half=float(np.where(has_both_G, table.auc_G, 0.5).mean()),
        coverage_rows=float(rows_V.sum() / table.rows_G.sum()),
        coverage_groups=len(auc_V) / groups,
        groups=groups,
    )
