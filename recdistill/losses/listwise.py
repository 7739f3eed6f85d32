"""Losses over lists: the rows of one request or user in a batch, ranked against each other.

They return one value per list. ``list_B`` numbers the list of each row, 0 to G - 1; the engine derives it from the
spec's ``group``. A list is what a batch holds of it.
"""

# Shapes: B rows, G lists.

import torch
from torch import Tensor

from recdistill.errors import TrainingError
from recdistill.losses.shapes import listed, logits


def log_softmax_by_list(score_B: Tensor, list_B: Tensor, lists: int) -> Tensor:
    """The logarithm of each row's share within its list, (B,)."""
    highest_G = score_B.new_full((lists,), -torch.inf).scatter_reduce(0, list_B, score_B.detach(), "amax")
    shifted_B = score_B - highest_G[list_B]
    total_G = score_B.new_zeros(lists).index_add(0, list_B, shifted_B.exp())
    return shifted_B - total_G.log()[list_B]


def soft_list(student_logit_B: Tensor, teacher_logit_B: Tensor, *, list_B: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross entropy of each list against the teacher's softened distribution over its rows.

    ``- T^2 sum_i softmax(t / T)_i log softmax(s / T)_i`` over the rows i of a list. Adding a constant to all
    logits of a list changes nothing, so the loss teaches order and margins, and no calibration.

    Args:
        student_logit_B: logits of the learner, (B,).
        teacher_logit_B: logits of the teacher, (B,).
        list_B: the list of each row, int64 (B,), numbered without gaps.
        temperature: T > 0; larger is softer.

    Returns:
        Loss per list, (G,); 0 for a list of one row.

    Raises:
        ShapeError: the shapes differ or are not (B,), or not every row has a list.
        TrainingError: T is not positive.

    Example:
        >>> soft_list(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 9.0]), list_B=torch.tensor([0, 0, 1]))
        tensor([0.6931, 0.0000])

    Source: K6, Hinton, Vinyals and Dean, 2015, section 2, with the rows of a list as classes.
    Departure: the classes are the rows that were shown together, not a fixed set.
    """
    logits(student_logit_B, teacher_logit_B, "soft_list")
    listed(student_logit_B, list_B, "soft_list")
    if temperature <= 0:
        raise TrainingError(f"soft_list: temperature must be positive, found {temperature}")
    lists = int(list_B.max()) + 1 if len(list_B) else 0
    target_B = log_softmax_by_list(teacher_logit_B / temperature, list_B, lists).exp()
    cross_B = target_B * log_softmax_by_list(student_logit_B / temperature, list_B, lists)
    return cross_B.new_zeros(lists).index_add(0, list_B, -(temperature**2) * cross_B)


def score_gap(logit_B: Tensor, *, list_B: Tensor, top: int = 5) -> Tensor:
    """How far the first share of each list is ahead of the next ones.

    ``f_(1) - mean_{k = 2..K} f_(k)`` with the shares ``f = softmax(s)`` over the rows of a list in falling order. It
    speaks of the K first rows alone: the others feel it only through the common denominator.

    Args:
        logit_B: logits of the learner, (B,).
        list_B: the list of each row, int64 (B,), numbered without gaps.
        top: K >= 2, the first row and the secondary ones; shorter lists have fewer of these.

    Returns:
        Loss per list, (G,); 0 for a list of one row.

    Raises:
        ShapeError: the logits are not of shape (B,), or not every row has a list.
        TrainingError: K is below 2.

    Example:
        >>> score_gap(torch.tensor([2.0, 0.0, 0.0, 7.0]).log1p(), list_B=torch.tensor([0, 0, 0, 1]))
        tensor([0.4000, 0.0000])

    Source: U2, Yang et al., 2018 (the gap as recalled; K = 5 unverified).
    Departure: the classes are the rows that were shown together, not a fixed set. The gap alone is about lists: several
        of their rows may be clicked, or none, so that labels and answers are learned row by row (``bce``, ``soft``).
    """
    logits(logit_B, logit_B, "score_gap")
    listed(logit_B, list_B, "score_gap")
    if top < 2:
        raise TrainingError(f"score_gap: top is at least 2, found {top}")
    size_G = torch.bincount(list_B)
    order_B = torch.argsort(logit_B.detach(), descending=True, stable=True)
    order_B = order_B[torch.argsort(list_B[order_B], stable=True)]
    first_G = torch.cumsum(size_G, 0) - size_G
    rank_B = torch.empty_like(order_B)
    rank_B[order_B] = torch.arange(len(order_B), device=order_B.device) - first_G[list_B[order_B]]
    others_B = (size_G.clamp(max=top) - 1)[list_B]
    weight_B = torch.where(rank_B == 0, 1.0, -1.0 / others_B.clamp(min=1)) * ((rank_B < top) & (others_B > 0))
    share_B = log_softmax_by_list(logit_B, list_B, len(size_G)).exp()
    return share_B.new_zeros(len(size_G)).index_add(0, list_B, weight_B.to(share_B.dtype) * share_B)
