"""Losses between layers."""

# Shapes: B rows, H width of a layer.

from torch import Tensor

from recdistill.losses.shapes import same_shape


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of each row, averaged over the width of a layer.

    Args:
        student: logits (B,) or a layer (B, H) of the learner.
        teacher: the same of the teacher.

    Returns:
        Loss per row, (B,).

    Raises:
        ShapeError: the shapes differ.

    Example:
        >>> import torch
        >>> l2(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
        tensor([1., 4.])

    Source: O4, Zhou et al., 2018, section 3 (on logits before the sigmoid); FitNets, Romero et al., 2015, on layers.
    Departure: the mean over the width of a layer instead of the sum, so that a weight keeps its meaning across widths.
    """
    same_shape(student, teacher, "l2")
    squared = (student - teacher).square()
    return squared if squared.dim() == 1 else squared.flatten(1).mean(1)
