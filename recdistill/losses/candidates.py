"""Candidates of an anchor side by side: what all losses over candidates share.

An anchor (a user, a request, an item) has a row of candidates, (B, M). A candidate whose target is NaN is none: it
takes no part and gets no gradient. Rows of a log, one candidate each, are brought into that form by ``list_B``, the
anchor of each row; shorter lists are filled up with NaN.
"""

# Shapes: B anchors, M candidates of each, R rows of candidates in a flat form.

import torch
from torch import Tensor

from recdistill.errors import ShapeError
from recdistill.losses.shapes import listed


def side_by_side(loss: str, learner: Tensor, *targets: Tensor, list_B: Tensor | None) -> tuple[Tensor, ...]:
    """Learner and targets as matrices (B, M), in single precision at least.

    Raises:
        ShapeError: they differ in shape, or are neither matrices nor flat with a list for each row.
    """
    dims = 2 if list_B is None else 1
    shapes = [tuple(t.shape) for t in (learner, *targets)]
    if any(shape != shapes[0] for shape in shapes) or len(shapes[0]) != dims:
        form = "scores (B, M) of the candidates of each anchor" if dims == 2 else "scores (B,) with list_B"
        raise ShapeError(f"{loss}: compares {form}, found {' and '.join(map(str, shapes))}; give all one shape")
    found = [t if t.dtype == torch.float64 else t.float() for t in (learner, *targets)]
    if list_B is None:
        return tuple(found)
    listed(learner, list_B, loss)
    return _filled(found, list_B)


def _filled(columns: list[Tensor], list_R: Tensor) -> tuple[Tensor, ...]:
    """The rows of each list side by side, in their order; targets are NaN where a list ends, the learner is 0 there."""
    if not len(list_R):
        return tuple(column.reshape(0, 0) for column in columns)
    length_B = torch.bincount(list_R)
    order_R = torch.argsort(list_R, stable=True)
    start_B = length_B.cumsum(0) - length_B
    place_R = torch.arange(len(list_R), device=list_R.device) - start_B[list_R[order_R]]
    where = list_R[order_R], place_R
    shape = len(length_B), int(length_B.max())
    fills = [0.0, *[torch.nan] * (len(columns) - 1)]
    return tuple(
        column.new_full(shape, fill).index_put(where, column[order_R])
        for column, fill in zip(columns, fills, strict=True)
    )


def by_teacher(student_BM: Tensor, teacher_BM: Tensor) -> tuple[Tensor, Tensor]:
    """The student's scores in the teacher's order, best first, and where there is a candidate at all, (B, M).

    Candidates that the teacher scores alike keep their order.
    """
    is_absent_BM = teacher_BM.isnan()
    low_BM = teacher_BM.masked_fill(is_absent_BM, -torch.inf)
    order_BM = torch.argsort(low_BM, dim=1, descending=True, stable=True)
    if bool((teacher_BM == -torch.inf).any()):  # real scores that mix with what is absent, which goes last
        last_BM = torch.argsort(is_absent_BM.gather(1, order_BM).to(torch.uint8), dim=1, stable=True)
        order_BM = order_BM.gather(1, last_BM)
    is_present_BM = ~is_absent_BM.gather(1, order_BM)
    return student_BM.gather(1, order_BM).masked_fill(~is_present_BM, 0.0), is_present_BM


def logsumexp_where(score_BM: Tensor, is_in_BM: Tensor) -> Tensor:
    """The logarithm of the sum of exponentials over some of the candidates, (B,); very low where there are none."""
    return score_BM.masked_fill(~is_in_BM, lowest(score_BM)).logsumexp(1)


def mean_where(value_BM: Tensor, is_in_BM: Tensor) -> Tensor:
    """The mean over some of the candidates, (B,); 0 where there are none."""
    return (value_BM * is_in_BM).sum(1) / is_in_BM.sum(1).clamp(min=1)


def lowest(score: Tensor) -> float:
    """A number so low that its exponential is 0 beside any score, yet finite, so that gradients stay so."""
    return torch.finfo(score.dtype).min / 4
