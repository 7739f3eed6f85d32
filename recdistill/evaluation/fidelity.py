"""How closely a student answers as its teacher does."""

# Shapes: N rows.

from typing import Any

import numpy as np
from numpy.typing import NDArray


def divergence(logit_N: NDArray[np.floating[Any]], target_logit_N: NDArray[np.floating[Any]]) -> float:
    """How far answers are from their targets: the mean divergence of Bernoulli variables, of the target's from ours.

    ``mean of p (t - s) - log(1 + e^t) + log(1 + e^s)`` with ``p = sigmoid(t)``; 0 where all answers are the same.

    Args:
        logit_N: logits of the learner, (N,).
        target_logit_N: logits of its target for the same rows, (N,).

    Example:
        >>> round(divergence(np.array([0.0, 2.0]), np.array([0.0, 0.0])), 4)
        0.2169

    Source: U3, Cho and Hariharan, 2019 (what a student cannot follow).
    """
    ours_N, target_N = (np.asarray(each, np.float64) for each in (logit_N, target_logit_N))
    probability_N = np.exp(-np.logaddexp(0, -target_N))
    return float((probability_N * (target_N - ours_N) - np.logaddexp(0, target_N) + np.logaddexp(0, ours_N)).mean())
