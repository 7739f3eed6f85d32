"""Losses between the answers of two members.

A binary logit is a two-class softmax over (logit, 0), so the softened Kullback-Leibler divergence of two classes is
exactly the Bernoulli form below; no other class exists whose similarity could be taught.
"""

# Shapes: B rows.

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.errors import TrainingError
from recdistill.losses.shapes import logits


def soft(student_logit_B: Tensor, teacher_logit_B: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross entropy of each row against the teacher's softened click probability.

    ``T^2 CE(sigmoid(s / T), sigmoid(t / T))``; its gradient ``T (sigmoid(s / T) - sigmoid(t / T))`` stays of one
    order for every T. At perfect imitation the loss is the teacher's entropy, not zero.

    Args:
        student_logit_B: logits of the learner, (B,).
        teacher_logit_B: logits of the teacher, (B,).
        temperature: T > 0; larger is softer.

    Returns:
        Loss per row, (B,).

    Raises:
        ShapeError: the shapes differ or are not (B,).
        TrainingError: T is not positive.

    Example:
        >>> same = torch.tensor([0.0, 2.0, -2.0])
        >>> soft(same, same)
        tensor([0.6931, 0.3653, 0.3653])

    Source: K6, Hinton, Vinyals and Dean, 2015, section 2.
    Departure: one logit read as two classes.
    """
    logits(student_logit_B, teacher_logit_B, "soft")
    if temperature <= 0:
        raise TrainingError(f"soft: temperature must be positive, found {temperature}")
    target_B = torch.sigmoid(teacher_logit_B / temperature)
    return temperature**2 * F.binary_cross_entropy_with_logits(
        student_logit_B / temperature, target_B, reduction="none"
    )


def softened(
    student_logit_B: Tensor, teacher_logit_B: Tensor, *, temperature: float = 2.0, base: float = 0.5
) -> Tensor:
    """Cross entropy of each row against a teacher that alone is softened, towards a base rate.

    ``CE(sigmoid(s), sigmoid(b + (t - b) / T))`` with ``b = logit(base)``: the student answers as it serves, so there is
    no T^2, and what the teacher says of an average row keeps its probability.

    Args:
        student_logit_B: logits of the learner, (B,).
        teacher_logit_B: logits of the teacher, (B,).
        temperature: T > 0; larger is softer.
        base: the probability towards which the teacher is softened, the share of positives; in (0, 1).

    Returns:
        Loss per row, (B,).

    Raises:
        ShapeError: the shapes differ or are not (B,).
        TrainingError: T is not positive, or the base rate not a probability.

    Example:
        >>> softened(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 9.0]), temperature=3)
        tensor([0.6931, 0.6931])

    Source: S3, Yang et al., 2019 (the asymmetry as in an unofficial implementation).
    Departure: two classes in one logit; softened around the base rate, because around 0 a rare click would become a
    frequent one.
    """
    logits(student_logit_B, teacher_logit_B, "softened")
    if temperature <= 0 or not 0 < base < 1:
        raise TrainingError(
            f"softened: temperature must be positive and base in (0, 1), found {temperature} and {base}"
        )
    middle = math.log(base / (1 - base))
    target_B = torch.sigmoid(middle + (teacher_logit_B - middle) / temperature)
    return F.binary_cross_entropy_with_logits(student_logit_B, target_B, reduction="none")
