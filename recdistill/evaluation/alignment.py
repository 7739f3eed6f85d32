"""How well a few rows show a linear student its linear teacher's direction, and how often the two then disagree.

Rows are vectors whose last coordinate is one, so that a bias is a weight like any other.
"""

# Shapes: N rows, D coordinates.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SMALLEST = 1e-6  # singular values below this share of the largest are rounding
GRID = np.linspace(0, np.pi / 2, 1801)


def projection(x_ND: Floats, logit_N: Floats) -> Floats:
    """Weights a linear student reaches from zero when taught these answers of a linear teacher.

    ``w = X^T (X X^T)^+ z``, the shortest vector that answers z: with z = X w* the projection of the teacher w* onto the
    span of the rows, and w* itself as soon as they span everything.

    Args:
        x_ND: the rows.
        logit_N: what the teacher answers.

    Returns:
        The student's weights, (D,).

    Example:
        >>> projection(np.array([[2.0, 0.0, 0.0]]), np.array([6.0]))
        array([3., 0., 0.])

    Source: U1, Phuong and Lampert, 2019; the formula is from memory, and checked against trained students.
    Departure: a bias is a coordinate of one; the student takes steps with momentum instead of gradient flow, and by
        default reads a net's last layer, in which its teacher is linear.
    """
    return np.asarray(np.linalg.lstsq(x_ND, logit_N, rcond=SMALLEST)[0], np.float64)


def angles(x_ND: Floats, weight_D: Floats) -> Floats:
    """The angle between each row, or its opposite, and a direction, in [0, pi/2]; (N,).

    Example:
        >>> angles(np.array([[1.0, 0.0], [-1.0, -1.0]]), np.array([0.0, 2.0])) / np.pi
        array([0.5 , 0.25])
    """
    length_N = np.linalg.norm(x_ND, axis=1) * np.linalg.norm(weight_D)
    cosine_N = np.abs(x_ND @ weight_D) / np.where(length_N > 0, length_N, 1)
    found: Floats = np.arccos(np.clip(cosine_N, 0, 1))
    return found


def angle(one_D: Floats, other_D: Floats) -> float:
    """The angle between two directions, in [0, pi]."""
    lengths = np.linalg.norm(one_D) * np.linalg.norm(other_D)
    return float(np.arccos(np.clip(one_D @ other_D / lengths, -1, 1))) if lengths > 0 else np.pi / 2


def disagreement(logit_N: Floats, other_N: Floats) -> float:
    """The share of rows that two members put on different sides."""
    return float(((logit_N > 0) != (other_N > 0)).mean())


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a teacher's direction lies among rows that were not taught.

    Attributes:
        angle_N: the angle between each row and the direction, rising.
    """

    angle_N: Floats

    @classmethod
    def of(cls, x_ND: Floats, weight_D: Floats) -> "Alignment":
        """The alignment of a direction among rows."""
        return cls(np.sort(angles(x_ND, weight_D)))

    def tail(self, theta: float | Floats) -> Floats:
        """``p(theta)``: the share of rows at this angle or a larger one."""
        found: Floats = 1 - np.searchsorted(self.angle_N, theta) / len(self.angle_N)
        return found

    def bound(self, rows: int) -> float:
        """Upper bound on the expected disagreement of a teacher and a student taught ``rows`` rows.

        ``min over beta of p(beta) + p(pi/2 - beta)^n``: one of n rows lies within pi/2 - beta of the teacher, and so
        does the student, who then only fails on rows that lie beyond beta.

        Example:
            >>> Alignment(np.array([0.1, 0.1, 0.1, 1.5])).bound(2)
            0.3125

        Source: U1, Phuong and Lampert, 2019; the formula is from memory, and checked on drawn rows.
        Departure: p is counted on rows, in which a bias is a coordinate of one; by default of a net's last layer.
        """
        return float(min(1.0, (self.tail(GRID) + self.tail(GRID[::-1]) ** rows).min()))
