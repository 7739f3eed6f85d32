"""Losses against labels.

Every loss in this package is a pure function of tensors that returns one value per row: the learner comes first, then
its targets, then hyper-parameters by keyword. The engine weights, selects and averages. A CTR logit has shape (B,).
"""

# Shapes: B rows, K classes.

import torch.nn.functional as F
from torch import Tensor

from recdistill.errors import ShapeError
from recdistill.losses.shapes import same_shape


def bce(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Cross entropy of each row's click probability against its label.

    ``softplus(s) - y s`` with the logit s and the label y; with several labels the sum over them.

    Args:
        logit_B: logits, (B,), or of several labels (B, K).
        label_B: labels in [0, 1], of the same shape.

    Returns:
        Loss per row, (B,).

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> import torch
        >>> bce(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
        tensor([0.6931, 2.1269])
    """
    same_shape(logit_B, label_B, "bce")
    loss = F.binary_cross_entropy_with_logits(logit_B, label_B, reduction="none")
    return loss if loss.dim() == 1 else loss.sum(1)


def categorical(logits_BK: Tensor, share_BK: Tensor) -> Tensor:
    """Cross entropy of each row's distribution over classes that exclude each other against its target.

    ``- sum_k y_k log (p_k / sum_j p_j)`` with ``p = sigmoid(logits)`` and the target y: a label per class, exactly one
    of which is 1, or a teacher's shares. Of all labels of a net that is `exclusive` the p add up to 1 already; of some
    of them what is left is the distribution given that it is one of those.

    Args:
        logits_BK: log-odds of at least three classes, (B, K).
        share_BK: labels or shares, (B, K).

    Returns:
        Loss per row, (B,).

    Raises:
        ShapeError: the shapes differ, or there are fewer than three classes: two are one label, which takes bce.

    Example:
        >>> import torch
        >>> categorical(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))
        tensor([1.0986])

    Source: P3, Vongkulbhisal, Vinayavekhin and Visentini-Scarzanella, 2019: a softmax, also restricted to some classes.
    Departure: from log-odds instead of scores, so that the sigmoid of a logit remains a probability.
    """
    same_shape(logits_BK, share_BK, "categorical")
    if logits_BK.dim() != 2 or logits_BK.shape[1] < 3:
        raise ShapeError(
            f"categorical: compares at least three classes, (B, K), found {tuple(logits_BK.shape)}; a lone "
            "logit takes bce"
        )
    return -(share_BK * F.log_softmax(F.logsigmoid(logits_BK), 1)).sum(1)
