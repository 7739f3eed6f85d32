"""The value of noisy labels, measured where the true ones are also known."""

# Shapes: N rows.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Flips:
    """How often a label is wrong.

    Attributes:
        false_positive: share of the true zeros that are reported as ones.
        false_negative: share of the true ones that are reported as zeros.
    """

    false_positive: float
    false_negative: float


def flips(noisy_N: Floats, true_N: Floats) -> Flips:
    """How often labels are wrong, for each true class; NaN where no row tells.

    Args:
        noisy_N: labels as reported, 0 or 1, NaN where not known.
        true_N: the true ones likewise.

    Returns:
        The two rates, over rows with both labels known.

    Example:
        >>> flips(np.array([1.0, 0.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0]))
        Flips(false_positive=0.5, false_negative=0.5)
    """
    zeros, ones = noisy_N[(true_N == 0) & ~np.isnan(noisy_N)], noisy_N[(true_N == 1) & ~np.isnan(noisy_N)]
    return Flips(mean_of(zeros), 1 - mean_of(ones))


@dataclass(frozen=True)
class Trust:
    """The best mixture of a noisy label and a score: ``weight * label + (1 - weight) * score``.

    Attributes:
        label: risk of the label, its mean squared difference to the truth.
        score: risk of the score.
    """

    label: float
    score: float

    @property
    def weight(self) -> float:
        """The weight of the label with the smallest risk of the mixture, ``score / (label + score)``."""
        total = self.label + self.score
        return self.score / total if total > 0 else 0.5

    @property
    def mixed(self) -> float:
        """The risk of that mixture, if the errors of both are independent and unbiased."""
        total = self.label + self.score
        return self.label * self.score / total if total > 0 else 0.0


def trust(noisy_N: Floats, score_N: Floats, true_N: Floats) -> Trust:
    """The risks of a noisy label and of a score against the truth.

    Args:
        noisy_N: labels as reported, NaN where not known.
        score_N: probabilities of a teacher that has not learned from these rows.
        true_N: the true labels, NaN where not known.

    Returns:
        Both risks, over rows with both labels known.

    Source: P2a, Li et al., 2017, section 3: the risk of a mixture is ``w^2 R_label + (1 - w)^2 R_score``.
    Departure: risks are Brier scores, against binary labels that are luck in part; that part enters both.
    """
    known = ~np.isnan(noisy_N) & ~np.isnan(true_N)
    risks = [mean_of((value_N[known] - true_N[known]) ** 2) for value_N in (noisy_N, score_N)]
    return Trust(*risks)


@dataclass(frozen=True)
class Purity:
    """Label purity before and after row selection.

    Attributes:
        kept: share of the rows that were chosen.
        right: share of the chosen rows whose label is true.
        before: the same share of all rows.
    """

    kept: float
    right: float
    before: float


def purity(chosen_N: NDArray[np.bool_], noisy_N: Floats, true_N: Floats) -> Purity:
    """How many of the chosen rows have the true label, among rows with both labels known.

    Args:
        chosen_N: whether a row was chosen.
        noisy_N: labels as reported, NaN where not known.
        true_N: the true labels, NaN where not known.
    """
    known_N = ~np.isnan(noisy_N)
    told_N = known_N & ~np.isnan(true_N)
    right_N = (noisy_N == true_N)[told_N]
    return Purity(mean_of(chosen_N[known_N]), mean_of(right_N[chosen_N[told_N]]), mean_of(right_N))


def mean_of(value_N: NDArray[np.bool_] | Floats) -> float:
    """The mean; NaN if there are no values."""
    return float(np.mean(value_N)) if len(value_N) else float("nan")
