"""Columns that nearly are the label: in the serving view a leak, among the privileged ones the label in disguise."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recdistill.evaluation.auc import auc

TOO_GOOD = 0.97  # AUC of a single column


def too_good(label_N: NDArray[np.float32], columns: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """The columns that alone rank the label almost perfectly, in either direction, with their AUC.

    Args:
        label_N: 0 or 1, NaN where not known, (N,).
        columns: numbers by name, (N,).

    Example:
        >>> label = np.array([0, 0, 1, 1], np.float32)
        >>> too_good(label, {"dwell": np.array([1, 2, 8, 9], np.float32), "price": np.array([1, 2, 2, 1], np.float32)})
        {'dwell': 1.0}
    """
    known_N = ~np.isnan(label_N)
    found = {}
    for name, value_N in columns.items():
        area = auc(label_N[known_N], value_N[known_N])
        if max(area, 1 - area) >= TOO_GOOD:
            found[name] = max(area, 1 - area)
    return found
