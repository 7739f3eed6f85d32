"""Checks on the first line of every loss: a silent broadcast would turn (B,) and (B, 1) into (B, B)."""

from torch import Tensor

from recdistill.errors import ShapeError


def same_shape(learner: Tensor, target: Tensor, loss: str) -> None:
    """Raise unless both have the same shape.

    Raises:
        ShapeError: they differ.
    """
    if learner.shape != target.shape:
        raise ShapeError(
            f"{loss}: the learner has shape {tuple(learner.shape)}, its target {tuple(target.shape)}; both must be "
            "equal (adapt one of them to the other's width)"
        )


def logits(learner: Tensor, target: Tensor, loss: str) -> None:
    """Raise unless both are logits of the same rows.

    Raises:
        ShapeError: they are not of shape (B,), or differ.
    """
    if learner.dim() != 1 or target.dim() != 1:
        raise ShapeError(
            f"{loss}: compares logits of shape (B,), found {tuple(learner.shape)} and {tuple(target.shape)}; "
            "for layers use l2"
        )
    same_shape(learner, target, loss)


def listed(learner: Tensor, list_B: Tensor, loss: str) -> None:
    """Raise unless each row has a list.

    Raises:
        ShapeError: there are more or fewer lists than rows.
    """
    if list_B.shape != learner.shape:
        raise ShapeError(
            f"{loss}: list_B has shape {tuple(list_B.shape)}, scores {tuple(learner.shape)}; give each row its list"
        )
