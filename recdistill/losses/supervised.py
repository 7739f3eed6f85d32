"""Losses against labels.

Every loss in this package is a pure function of tensors that returns one value per row: the learner comes first, then
its targets, then hyper-parameters by keyword. The engine weights, selects and averages. A CTR logit has shape (B,).
"""

# Shapes: B rows.

import torch.nn.functional as F
from torch import Tensor

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
