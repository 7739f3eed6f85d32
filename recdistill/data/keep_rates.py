"""What leaving out negatives does to logits.

Rows are thinned by the first label of a job, its main one: a share of its negatives is kept when the log is written
(the spec's ``negative_keep_rate``), and a share of these when training reads it (the job's). Whoever has seen only a
share r of the negatives answers with odds that are 1 / r times too high. How rows were thinned says nothing of other
labels, whose logits are left as they are.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAIN_LABEL = 0


def correction(labels: Sequence[int], keep_rate: float) -> NDArray[np.float32]:
    """What brings logits of a thinned log back to those of all its rows when added to them, (K,).

    Args:
        labels: the numbers, among the job's labels, of those that the logits predict.
        keep_rate: the share of negatives that was kept, above 0.
    """
    return np.where(np.asarray(labels) == MAIN_LABEL, np.log(keep_rate), 0.0).astype(np.float32)
