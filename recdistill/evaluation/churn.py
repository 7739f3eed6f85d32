"""How much scores change when the same job is trained again."""

# Shapes: S trainings, N rows.

import numpy as np
from numpy.typing import NDArray

from recdistill.errors import MetricError


def churn(score_SN: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the scores of each training lie from those of the others, on average over these and over rows.

    ``mean over t != s and rows of |p_s - p_t|``; its mean over trainings is that over all pairs of them.

    Args:
        score_SN: probabilities of the same rows from at least two trainings.

    Returns:
        A number in [0, 1] for each training, (S,).

    Raises:
        MetricError: there is only one training.

    Example:
        >>> churn(np.array([[0.1, 0.5], [0.3, 0.5], [0.1, 0.9]]))
        array([0.15, 0.2 , 0.25])

    Source: O1, Anil et al., 2018, section 4 (prediction churn).
    """
    count = len(score_SN)
    if count < 2:
        raise MetricError(f"churn: compares trainings with each other, so it takes at least two; found {count}")
    return np.array([np.abs(score_SN - mine_N).mean(1).sum() / (count - 1) for mine_N in score_SN])
