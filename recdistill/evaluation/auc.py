"""Exact AUC, its row noise and its intervals.

Everything here starts from one sort. Rows with equal scores form a *tie run*; counting the positives and negatives of
each run gives the AUC with ties at half credit, and spreading the counts back over the rows gives the placement values
from which DeLong's variance follows. No bins, no sampling, no dependence on the order of the rows.

Shapes: N rows, R tie runs, P positives, M negatives, K systems.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from recdistill.errors import MetricError

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


def checked_labels(place: str, label_N: npt.ArrayLike) -> Bools:
    """Labels as booleans, or a `MetricError` that says what is wrong with them."""
    array_N = np.asarray(label_N)
    if array_N.ndim != 1 or (array_N.dtype.kind not in "biuf" and array_N.size):
        raise MetricError(
            f"{place}: labels must be one number per row, shape (N,), but have shape {array_N.shape} and type "
            f"{array_N.dtype}. Flatten them to 0 and 1."
        )
    is_positive_N = np.asarray(array_N == 1)
    is_wrong_N = ~(is_positive_N | (array_N == 0))
    if is_wrong_N.any():
        row = int(is_wrong_N.argmax())
        raise MetricError(
            f"{place}: labels must be 0 or 1, but {int(is_wrong_N.sum())} are not; the first is {array_N[row]} in row "
            f"{row}. Binarise the label and drop the rows where it is not known."
        )
    return is_positive_N


def checked_numbers(place: str, name: str, value_N: npt.ArrayLike, rows: int) -> npt.NDArray[np.generic]:
    """One finite number per row in its own type, or a `MetricError` that says what is wrong."""
    array_N = np.asarray(value_N)
    if array_N.shape != (rows,):
        raise MetricError(
            f"{place}: {name} must have the shape of the labels, ({rows},), but has shape {array_N.shape}. "
            "Pass one value per labelled row."
        )
    if array_N.dtype.kind not in "biuf":
        raise MetricError(f"{place}: {name} must be real numbers, but has type {array_N.dtype}. Convert it first.")
    is_finite_N = np.isfinite(array_N)
    if not is_finite_N.all():
        row = int(is_finite_N.argmin())
        raise MetricError(
            f"{place}: {name} must be finite, but {rows - int(is_finite_N.sum())} values are NaN or infinite; the "
            f"first is {array_N[row]} in row {row}. Look for a diverged member or an unscored row."
        )
    return array_N


def checked_weights(place: str, weight_N: npt.ArrayLike | None, rows: int) -> Floats | None:
    """Finite weights >= 0 as float64, `None` where none are given, or a `MetricError`."""
    if weight_N is None:
        return None
    array_N = checked_numbers(place, "weight", weight_N, rows).astype(np.float64)
    if (array_N < 0).any():
        row = int((array_N < 0).argmax())
        raise MetricError(
            f"{place}: weight must not be negative, but is {array_N[row]} in row {row}. A weight of 0 leaves a row out."
        )
    return array_N


def checked_share(place: str, name: str, share: float) -> float:
    """A number strictly between 0 and 1, or a `MetricError`."""
    if not 0 < share < 1:
        raise MetricError(f"{place}: {name} must lie strictly between 0 and 1, but is {share}. Write 95 % as 0.95.")
    return share


def tie_runs(score_N: npt.NDArray[np.generic]) -> tuple[Counts, Counts]:
    """Rows in ascending order of score, shape (N,), and where each run of equal scores starts, shape (R,)."""
    order_N = np.argsort(score_N)
    sorted_N = score_N[order_N]
    is_start_N = np.ones(len(sorted_N), dtype=np.bool_)
    np.not_equal(sorted_N[1:], sorted_N[:-1], out=is_start_N[1:])
    return order_N, np.flatnonzero(is_start_N)


def _auc_of_runs(positive_R: npt.NDArray[np.generic], negative_R: npt.NDArray[np.generic]) -> float:
    """AUC from the weight of each class in each tie run; exact for integer counts up to 3e9 rows."""
    # In doubled units half credit is a whole number, so that counts stay integers until the one division.
    below_twice_R = 2 * np.cumsum(negative_R) - negative_R
    pairs = (positive_R.sum() * negative_R.sum()).item()
    return float(np.dot(positive_R, below_twice_R).item() / (2 * pairs)) if pairs > 0 else math.nan


def auc(label_N: npt.ArrayLike, score_N: npt.ArrayLike, *, weight_N: npt.ArrayLike | None = None) -> float:
    """Probability that a random positive scores above a random negative, ties counting one half.

    ``sum_ij u_i v_j (1[x_i > y_j] + 1[x_i = y_j] / 2) / (sum_i u_i * sum_j v_j)`` over positives i with score x and
    weight u and negatives j with score y and weight v. Weight 2 is the row twice, weight 0 the row absent.

    Args:
        label_N: 0 or 1, shape (N,).
        score_N: finite numbers, logits or probabilities alike, shape (N,).
        weight_N: optional weights >= 0, shape (N,).

    Returns:
        The AUC in [0, 1]; `nan` when a class is missing (no row, or no weight), because then no pair exists.

    Raises:
        MetricError: labels outside {0, 1}, a NaN or infinite score or weight, a negative weight, unequal lengths.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
        0.875
        >>> auc([1, 1], [0.1, 0.4])
        nan

    Source: Hanley and McNeil, Radiology 143 (1982); ties as in the Mann-Whitney statistic.
    """
    is_positive_N = checked_labels("auc", label_N)
    number_N = checked_numbers("auc", "score", score_N, len(is_positive_N))
    weight_or_none_N = checked_weights("auc", weight_N, len(is_positive_N))
    if is_positive_N.all() or not is_positive_N.any():
        return math.nan
    order_N, start_R = tie_runs(number_N)
    if weight_or_none_N is None:
        positive_R = np.add.reduceat(is_positive_N[order_N], start_R, dtype=np.int64)
        return _auc_of_runs(positive_R, np.diff(start_R, append=len(order_N)) - positive_R)
    positive_weight_N = np.where(is_positive_N, weight_or_none_N, 0.0)[order_N]
    negative_weight_N = np.where(is_positive_N, 0.0, weight_or_none_N)[order_N]
    return _auc_of_runs(np.add.reduceat(positive_weight_N, start_R), np.add.reduceat(negative_weight_N, start_R))


@dataclass(frozen=True, slots=True)
class Placements:
    """An AUC (or a difference of two) with what each row adds to it, classes apart and in row order.

    `positive_P` is, for each positive, the share of negatives below it; `negative_M`, for each negative, the share of
    positives above it; ties count one half. The mean of either is `auc`.
    """

    auc: float
    positive_P: Floats
    negative_M: Floats

    def minus(self, other: "Placements") -> "Placements":
        """The placements of the difference of two AUCs on the same rows; exactly zero for equal scores."""
        return Placements(self.auc - other.auc, self.positive_P - other.positive_P, self.negative_M - other.negative_M)

    @property
    def variance(self) -> float:
        """DeLong's variance of `auc` over rows; `nan` with fewer than two rows of a class."""
        if min(len(self.positive_P), len(self.negative_M)) < 2:
            return math.nan
        positive_part = self.positive_P.var(ddof=1) / len(self.positive_P)
        return float(positive_part + self.negative_M.var(ddof=1) / len(self.negative_M))


def placements(label_N: npt.ArrayLike, score_N: npt.ArrayLike, *, place: str = "placements") -> Placements:
    """The AUC of a score with the placement value of every row, from one sort.

    ``V10_i = #{y < x_i} + #{y = x_i} / 2`` over M for positives, ``V01_j = #{x > y_j} + #{x = y_j} / 2`` over P for
    negatives. Counting within tie runs equals the difference of two midranks.

    Args:
        label_N: 0 or 1, shape (N,).
        score_N: finite numbers, shape (N,).
        place: how errors name the caller.

    Returns:
        The placements; with a class missing, `auc` is `nan` and so is every value.

    Raises:
        MetricError: as `auc`.

    Example:
        >>> placements([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]).positive_P.tolist()
        [0.75, 1.0]

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988); the fast form follows Sun and Xu, IEEE Signal
    Processing Letters 21 (2014).
    """
    is_positive_N = checked_labels(place, label_N)
    number_N = checked_numbers(place, "score", score_N, len(is_positive_N))
    positives = int(is_positive_N.sum())
    negatives = len(is_positive_N) - positives
    if positives == 0 or negatives == 0:
        return Placements(math.nan, np.full(positives, math.nan), np.full(negatives, math.nan))
    order_N, start_R = tie_runs(number_N)
    is_positive_sorted_N = is_positive_N[order_N]
    size_R = np.diff(start_R, append=len(order_N))
    positive_R = np.add.reduceat(is_positive_sorted_N, start_R, dtype=np.int64)
    negative_R = size_R - positive_R
    below_R = (np.cumsum(negative_R) - negative_R / 2) / negatives
    above_R = (positives - np.cumsum(positive_R) + positive_R / 2) / positives
    value_N = np.empty(len(order_N))
    value_N[order_N] = np.where(is_positive_sorted_N, np.repeat(below_R, size_R), np.repeat(above_R, size_R))
    return Placements(_auc_of_runs(positive_R, negative_R), value_N[is_positive_N], value_N[~is_positive_N])


def placement_covariance(placements_K: Sequence[Placements]) -> Floats:
    """DeLong's covariance, shape (K, K), of the AUCs (or differences) of K systems on the same rows."""
    shares = (np.stack([p.positive_P for p in placements_K]), np.stack([p.negative_M for p in placements_K]))
    if min(share.shape[1] for share in shares) < 2:
        return np.full((len(placements_K), len(placements_K)), math.nan)
    parts = [np.atleast_2d(np.cov(share, ddof=1)) / share.shape[1] for share in shares]
    return np.asarray(parts[0] + parts[1], dtype=np.float64)


def delong_covariance(label_N: npt.ArrayLike, score_KN: Sequence[npt.ArrayLike]) -> tuple[Floats, Floats]:
    """AUCs, shape (K,), of K systems scored on the same rows and their row-noise covariance, shape (K, K).

    Example:
        >>> auc_K, covariance_KK = delong_covariance([0, 0, 1, 1], [[0.1, 0.4, 0.4, 0.8], [0.1, 0.4, 0.3, 0.8]])
        >>> auc_K.tolist(), covariance_KK.round(5).tolist()
        ([0.875, 0.75], [[0.03125, 0.0625], [0.0625, 0.125]])

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988).
    """
    if len(score_KN) == 0:
        raise MetricError("delong_covariance: at least one system is needed, but there is none. Pass its scores.")
    placements_K = [
        placements(label_N, score_N, place=f"delong_covariance, system {k}") for k, score_N in enumerate(score_KN)
    ]
    return np.array([p.auc for p in placements_K]), placement_covariance(placements_K)


def logit_interval(
    auc: float, standard_error: float, *, disjoint_pairs: int, confidence: float = 0.95, freedom: float = math.inf
) -> Interval:
    """Interval for an AUC that never leaves [0, 1]: symmetric on the logit scale, then mapped back.

    ``sigmoid(logit(A) -+ t * SE / (A (1 - A)))``, the delta method for the logit. A symmetric interval around an AUC
    near 1 would reach past 1 and miss the skewness of its estimate. At exactly 0 or 1 DeLong's variance is zero and
    says nothing; the interval is then Clopper and Pearson's for disjoint (positive, negative) pairs, all ordered alike.

    Args:
        auc: the estimate.
        standard_error: its standard error on the AUC scale.
        disjoint_pairs: the smaller of the two class counts.
        confidence: coverage of the interval.
        freedom: degrees of freedom of the t quantile; infinite is the normal.

    Returns:
        (low, high), strictly inside (0, 1) unless the AUC is itself 0 or 1; `nan` where AUC or error is `nan`.

    Example:
        >>> [round(x, 3) for x in logit_interval(0.95, 0.03, disjoint_pairs=20)]
        [0.846, 0.985]
        >>> [round(x, 3) for x in logit_interval(1.0, 0.0, disjoint_pairs=20)]
        [0.832, 1.0]

    Source: Pepe, The Statistical Evaluation of Medical Tests, 2003; Clopper and Pearson, Biometrika 26 (1934).
    """
    checked_share("logit_interval", "confidence", confidence)
    if math.isnan(auc) or math.isnan(standard_error):
        return math.nan, math.nan
    if auc in (0.0, 1.0):
        bound = ((1 - confidence) / 2) ** (1 / disjoint_pairs)
        return (bound, 1.0) if auc == 1.0 else (0.0, 1 - bound)
    half_width = float(special.stdtrit(freedom, (1 + confidence) / 2)) * standard_error / (auc * (1 - auc))
    centre = float(special.logit(auc))
    return float(special.expit(centre - half_width)), float(special.expit(centre + half_width))


def delong_interval(label_N: npt.ArrayLike, score_N: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Interval for the AUC of one score over rows: `logit_interval` with DeLong's standard error.

    Example:
        >>> [round(x, 3) for x in delong_interval([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.5, 0.7, 0.9])]
        [0.261, 0.995]

    Source: as `placements` and `logit_interval`.
    """
    value = placements(label_N, score_N, place="delong_interval")
    pairs = min(len(value.positive_P), len(value.negative_M))
    return logit_interval(value.auc, math.sqrt(value.variance), disjoint_pairs=pairs, confidence=confidence)


@dataclass(frozen=True, slots=True)
class DelongTest:
    """Two AUCs on the same rows and their difference a - b, with interval and two-sided p-value."""

    auc_a: float
    auc_b: float
    delta: float
    variance: float
    ci: Interval
    p_value: float


def two_sided_p(delta: float, standard_error: float, *, freedom: float = math.inf) -> float:
    """Two-sided p-value of delta = 0; with no noise at all 1 for no difference, else 0; `nan` stays `nan`."""
    if math.isnan(delta) or math.isnan(standard_error):
        return math.nan
    if standard_error == 0:
        return 1.0 if delta == 0 else 0.0
    return float(2 * special.stdtr(freedom, -abs(delta / standard_error)))


def delong_test(
    label_N: npt.ArrayLike, score_a_N: npt.ArrayLike, score_b_N: npt.ArrayLike, *, confidence: float = 0.95
) -> DelongTest:
    """Whether two scores of the same rows differ in AUC, by DeLong's paired normal test.

    ``z = (A_a - A_b) / sqrt(var_a + var_b - 2 cov_ab)``. The variance is taken from the differences of placement
    values, so that it loses no digits when the scores are nearly equal. Training noise is not in it; see
    `significance`.

    Example:
        >>> test = delong_test([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.6, 0.5, 0.7, 0.9], [0.1, 0.6, 0.8, 0.5, 0.7, 0.9])
        >>> round(test.delta, 3), round(test.p_value, 3)
        (0.222, 0.157)

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988).
    """
    checked_share("delong_test", "confidence", confidence)
    a = placements(label_N, score_a_N, place="delong_test, a")
    b = placements(label_N, score_b_N, place="delong_test, b")
    difference = a.minus(b)
    error = math.sqrt(difference.variance)
    reach = float(special.ndtri((1 + confidence) / 2)) * error
    ci = (difference.auc - reach, difference.auc + reach)
    return DelongTest(a.auc, b.auc, difference.auc, difference.variance, ci, two_sided_p(difference.auc, error))
