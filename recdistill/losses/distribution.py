"""Losses between what two members say of a batch as a whole, whichever row says it."""

# Shapes: B rows, H width of a layer.

from torch import Tensor

from recdistill.losses.scope import over_batch
from recdistill.losses.shapes import same_shape


@over_batch
def mmd(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the means of a batch, averaged over the width of a layer.

    ``mean_H (mean_B f - mean_B g)^2``: the maximum mean discrepancy with a linear kernel. It has one value for the
    batch, and the order of the rows of either side changes nothing.

    Args:
        student: logits (B,) or a layer (B, H) of the learner.
        teacher: the same of the other side.

    Returns:
        One loss for the batch, ().

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> import torch
        >>> mmd(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[4.0, 1.0], [0.0, -1.0]]))
        tensor(0.)

    Source: S1, Xu and Liu, 2019 (the kernel as recalled, unverified).
    Departure: the mean over the width of a layer instead of the sum, so that a weight keeps its meaning across widths.
    """
    same_shape(student, teacher, "mmd")
    return (student - teacher).mean(0).square().mean()
