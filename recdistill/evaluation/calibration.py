"""Whether predicted probabilities mean what they say.

Two families, never mixed up: likelihood metrics take *logits*, because a probability rounded to 1 has lost its log
loss; calibration metrics take *probabilities*, because they compare rates. A weight means so many copies of the row.

Shapes: N rows, R tie runs, K bins that hold rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from recdistill.errors import MetricError
from recdistill.evaluation.auc import Floats, checked_labels, checked_numbers, checked_weights, tie_runs


def _checked_rows(
    place: str, name: str, label_N: npt.ArrayLike, value_N: npt.ArrayLike, weight_N: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """Labels, values and weights (ones where none are given) as float64, each of shape (N,)."""
    label_float_N = checked_labels(place, label_N).astype(np.float64)
    rows = len(label_float_N)
    float_N = checked_numbers(place, name, value_N, rows).astype(np.float64)
    weight_or_none_N = checked_weights(place, weight_N, rows)
    return label_float_N, float_N, np.ones(rows) if weight_or_none_N is None else weight_or_none_N


def _checked_probabilities(
    place: str, label_N: npt.ArrayLike, prob_N: npt.ArrayLike, weight_N: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    label_float_N, float_N, weight_float_N = _checked_rows(place, "probability", label_N, prob_N, weight_N)
    is_outside_N = (float_N < 0) | (float_N > 1)
    if is_outside_N.any():
        row = int(is_outside_N.argmax())
        raise MetricError(
            f"{place}: a probability must lie in [0, 1], but {int(is_outside_N.sum())} do not; the first is "
            f"{float_N[row]} in row {row}. Apply the sigmoid if these are logits."
        )
    return label_float_N, float_N, weight_float_N


def _mean(value_N: Floats, weight_N: Floats) -> float:
    """Weighted mean; `nan` without weight."""
    total = weight_N.sum()
    return float((weight_N * value_N).sum() / total) if total > 0 else math.nan


def log_loss(label_N: npt.ArrayLike, logit_N: npt.ArrayLike, *, weight_N: npt.ArrayLike | None = None) -> float:
    """Mean negative log likelihood, in nats, of the labels under the probabilities ``sigmoid(logit)``.

    ``mean(log(1 + exp(-z)))`` over positives and ``mean(log(1 + exp(z)))`` over negatives, taken together, written
    without forming the probability: no clipping, no overflow.

    Args:
        label_N: 0 or 1, shape (N,).
        logit_N: finite logits z, shape (N,).
        weight_N: optional weights >= 0, shape (N,).

    Returns:
        The log loss; `nan` without rows or without weight.

    Raises:
        MetricError: labels outside {0, 1}, a NaN or infinite logit, a negative weight, unequal lengths.

    Example:
        >>> round(log_loss([0, 1, 1], [0.0, 0.0, 1000.0]), 4)
        0.4621

    Source: Bernoulli likelihood.
    """
    label_float_N, float_N, weight_float_N = _checked_rows("log_loss", "logit", label_N, logit_N, weight_N)
    # Turning the sign first keeps the digits of a tiny loss, which log(1 + exp(z)) - z would cancel.
    return _mean(np.logaddexp(0.0, np.where(label_float_N == 1, -float_N, float_N)), weight_float_N)


def normalized_entropy(
    label_N: npt.ArrayLike, logit_N: npt.ArrayLike, *, weight_N: npt.ArrayLike | None = None
) -> float:
    """Log loss relative to that of always predicting the click rate: 1 is no information, 0 is perfect.

    ``log_loss / (-r log r - (1 - r) log(1 - r))`` with r the (weighted) share of positives in these rows.

    Args:
        label_N: 0 or 1, shape (N,).
        logit_N: finite logits, shape (N,).
        weight_N: optional weights >= 0, shape (N,).

    Returns:
        The normalised entropy; `nan` when a class is missing, because the base rate then has no entropy.

    Raises:
        MetricError: as `log_loss`.

    Example:
        >>> normalized_entropy([0, 1], [0.0, 0.0])
        1.0

    Source: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014, section 2.
    """
    label_float_N, float_N, weight_float_N = _checked_rows("normalized_entropy", "logit", label_N, logit_N, weight_N)
    rate = _mean(label_float_N, weight_float_N)
    entropy = float(special.entr(rate) + special.entr(1 - rate))
    return log_loss(label_float_N, float_N, weight_N=weight_float_N) / entropy if entropy > 0 else math.nan


def brier(label_N: npt.ArrayLike, prob_N: npt.ArrayLike, *, weight_N: npt.ArrayLike | None = None) -> float:
    """Mean squared distance of the probability from the label; `nan` without rows or weight.

    Example:
        >>> brier([0, 1], [0.5, 1.0])
        0.125

    Source: Brier, Monthly Weather Review 78 (1950).
    """
    label_float_N, float_N, weight_float_N = _checked_probabilities("brier", label_N, prob_N, weight_N)
    return _mean((float_N - label_float_N) ** 2, weight_float_N)


def pcoc(label_N: npt.ArrayLike, prob_N: npt.ArrayLike, *, weight_N: npt.ArrayLike | None = None) -> float:
    """Predicted clicks over observed clicks: 1 is unbiased, above 1 promises too much.

    ``sum(w p) / sum(w y)``; `nan` when no positive has weight.

    Example:
        >>> pcoc([0, 1], [0.5, 0.75])
        1.25

    Source: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014, section 2.
    """
    label_float_N, float_N, weight_float_N = _checked_probabilities("pcoc", label_N, prob_N, weight_N)
    observed = float((weight_float_N * label_float_N).sum())
    return float((weight_float_N * float_N).sum()) / observed if observed > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Reliability:
    """One entry per bin that holds rows, in ascending order of probability.

    Attributes:
        prob_K: mean predicted probability of the bin.
        rate_K: share of positives in the bin.
        rows_K: rows in the bin, each counted by its weight.
    """

    prob_K: Floats
    rate_K: Floats
    rows_K: Floats


def reliability(
    label_N: npt.ArrayLike, prob_N: npt.ArrayLike, *, bins: int = 20, weight_N: npt.ArrayLike | None = None
) -> Reliability:
    """Predicted against observed rates in bins of equal mass, which never separate rows of equal probability.

    Rows of one probability form a run; a run goes, whole, to the bin in which the middle of its mass lies. Without
    ties, and with rows a multiple of bins, that is the same number of rows in each bin. Long runs leave some bins
    empty: they are left out.

    Args:
        label_N: 0 or 1, shape (N,).
        prob_N: probabilities in [0, 1], shape (N,).
        bins: number of bins, 20 for the equal-mass ECE of the report.
        weight_N: optional weights >= 0, shape (N,).

    Returns:
        The table, at most `bins` long; empty without rows or weight.

    Raises:
        MetricError: as `log_loss`, and for a probability outside [0, 1] or `bins` below 1.

    Example:
        >>> table = reliability([0, 1, 1, 1], [0.2, 0.2, 0.6, 0.8], bins=2)
        >>> table.prob_K.round(3).tolist(), table.rate_K.tolist(), table.rows_K.tolist()
        ([0.2, 0.7], [0.5, 1.0], [2.0, 2.0])

    Source: equal-mass bins as in Nguyen and O'Connor, EMNLP 2015.
    """
    if bins < 1:
        raise MetricError(f"reliability: bins must be at least 1, but is {bins}. The report uses 20.")
    label_float_N, float_N, weight_float_N = _checked_probabilities("reliability", label_N, prob_N, weight_N)
    total = weight_float_N.sum()
    if not total > 0:
        return Reliability(np.empty(0), np.empty(0), np.empty(0))
    order_N, start_R = tie_runs(float_N)
    sorted_weight_N = weight_float_N[order_N]
    weight_R = np.add.reduceat(sorted_weight_N, start_R)
    positive_R = np.add.reduceat(sorted_weight_N * label_float_N[order_N], start_R)
    # Doubled, so that integer weights give the exact bin: twice the middle is a whole number.
    middle_twice_R = 2 * np.cumsum(weight_R) - weight_R
    bin_R = np.minimum((middle_twice_R * bins / (2 * total)).astype(np.int64), bins - 1)
    rows_all_K: Floats = np.bincount(bin_R, weights=weight_R).astype(np.float64)
    prob_all_K = np.bincount(bin_R, weights=weight_R * float_N[order_N[start_R]])
    positive_all_K = np.bincount(bin_R, weights=positive_R)
    has_rows_K = rows_all_K > 0
    rows_K = rows_all_K[has_rows_K]
    return Reliability(prob_all_K[has_rows_K] / rows_K, positive_all_K[has_rows_K] / rows_K, rows_K)


def ece_equal_mass(
    label_N: npt.ArrayLike, prob_N: npt.ArrayLike, *, bins: int = 20, weight_N: npt.ArrayLike | None = None
) -> float:
    """Expected calibration error over 20 bins of equal mass (not equal width), ties kept together.

    ``sum_k rows_k / N * |mean p in k - mean y in k|`` over the bins of `reliability`. Click probabilities crowd near
    zero, where bins of equal width would put nearly all rows into one. Biased upward on few rows: noise within a bin
    never cancels.

    Args:
        label_N: 0 or 1, shape (N,).
        prob_N: probabilities in [0, 1], shape (N,).
        bins: number of bins.
        weight_N: optional weights >= 0, shape (N,).

    Returns:
        The error in [0, 1]; `nan` without rows or weight.

    Raises:
        MetricError: as `reliability`.

    Example:
        >>> round(ece_equal_mass([0, 1, 1, 1], [0.2, 0.2, 0.6, 0.8], bins=2), 3)
        0.3

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; equal-mass bins as in Nguyen and O'Connor, EMNLP 2015.
    """
    table = reliability(label_N, prob_N, bins=bins, weight_N=weight_N)
    return _mean(np.abs(table.prob_K - table.rate_K), table.rows_K)
