"""Losses that teach the order in which a teacher puts the candidates of an anchor.

Student and teacher score the same candidates, (B, M), or flat, (B,), with ``list_B``; a candidate that the teacher
scores NaN is none. There is one value per anchor. What a loss can teach is bounded by the candidates: without those
that the teacher ranks highest there is nothing to learn from it.
"""

# Shapes: B anchors, M candidates of each, K those at the top of the teacher's order.

import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.errors import ShapeError, TrainingError
from recdistill.losses.candidates import by_teacher, logsumexp_where, lowest, mean_where, side_by_side
from recdistill.losses.ranking import positive_temperature


def soft_sides(
    student: Tensor,
    teacher: Tensor,
    label: Tensor,
    *,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
    list_B: Tensor | None = None,
) -> Tensor:
    """Cross entropy against the teacher's distributions over an anchor's positives and over its negatives.

    ``sum over g in {positives, negatives} of - sum_(i in g) softmax_g(t / T)_i log softmax_g(s / S)_i``. It does not
    teach that positives rank above negatives; a hard loss such as `bpr` does.

    Args:
        student: scores of the learner, (B, M); or (B,) with ``list_B``.
        teacher: scores of the teacher, of the same shape.
        label: 1, 0, or NaN for no candidate, of the same shape.
        temperature: T > 0 of the teacher; about half the spread of its scores.
        student_temperature: S > 0.
        list_B: the anchor of each row of the flat form, int64 (B,), numbered without gaps.

    Returns:
        Loss per anchor, (B,); a side of one candidate or none adds 0.

    Raises:
        ShapeError: the shapes do not fit.
        TrainingError: a temperature is not positive.

    Example:
        >>> soft_sides(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        tensor([1.3863])

    Source: P10, Wang et al., 2019: distributions over positive and over negative items; formula reconstructed.
    Departure: no T^2, because the two temperatures set the scales of two different kinds of scores.
    """
    positive_temperature("soft_sides", temperature)
    positive_temperature("soft_sides", student_temperature)
    student_BM, teacher_BM, label_BM = side_by_side("soft_sides", student, teacher, label, list_B=list_B)
    is_known_BM = ~teacher_BM.isnan()
    loss_B = student_BM.new_zeros(len(student_BM))
    for is_in_BM in ((label_BM > 0) & is_known_BM, (label_BM == 0) & is_known_BM):
        log_target_BM = _log_softmax_where(teacher_BM.nan_to_num() / temperature, is_in_BM)
        log_share_BM = _log_softmax_where(student_BM / student_temperature, is_in_BM)
        loss_B = loss_B - (log_target_BM.exp() * is_in_BM * log_share_BM).sum(1)
    return loss_B


def _log_softmax_where(score_BM: Tensor, is_in_BM: Tensor) -> Tensor:
    """The logarithm of each candidate's share among some of them, (B, M); 0 for the others."""
    share_BM = score_BM.masked_fill(~is_in_BM, 0.0) - logsumexp_where(score_BM, is_in_BM).unsqueeze(1)
    return share_BM.masked_fill(~is_in_BM, 0.0)


def rd(
    student: Tensor,
    teacher: Tensor,
    *,
    top: int,
    position: float = 10.0,
    discrepancy: float | None = None,
    items: int | None = None,
    list_B: Tensor | None = None,
) -> Tensor:
    """Ranking distillation: the teacher's top candidates are positives, weighted by place and by how far off they are.

    ``- sum_k a_k b_k log sigmoid(s_k)`` over the teacher's places k = 1 .. K with
    ``a_k = exp(-k / position) / sum`` and ``b_k = max(0, tanh(discrepancy (r_k - k)))``, where ``r_k`` is the rank that
    the student gives the item, estimated from the candidates behind the top: their share with a higher score, times the
    number of items.

    Args:
        student: scores of the learner, (B, M); or (B,) with ``list_B``.
        teacher: scores of the teacher, of the same shape. Candidates behind the top must be a uniform sample.
        top: K, how many candidates of the teacher's order are taught.
        position: length of the decay over places, > 0.
        discrepancy: > 0; None weighs by place alone, as a warm-up should.
        items: the number of all items; needed with ``discrepancy``.
        list_B: the anchor of each row of the flat form, int64 (B,), numbered without gaps.

    Returns:
        Loss per anchor, (B,).

    Raises:
        ShapeError: the shapes do not fit.
        TrainingError: an option is out of range.

    Example:
        >>> rd(torch.zeros(1, 4), torch.tensor([[3.0, 1.0, 2.0, 0.0]]), top=2)
        tensor([0.6931])

    Source: RD, Tang and Wang, 2018, equations 5-9.
    Departure: the logarithm of the sigmoid is computed stably; the weights' product is not normalised again.
    """
    if position <= 0 or (discrepancy is not None and (discrepancy <= 0 or items is None)):
        raise TrainingError(
            f"rd: position {position} and discrepancy {discrepancy} must be positive, and discrepancy needs items, "
            f"found {items}; leave discrepancy out to weigh by place alone"
        )
    student_BM, is_present_BM = by_teacher(*side_by_side("rd", student, teacher, list_B=list_B))
    _check_top("rd", top, student_BM, behind=discrepancy is not None)
    taught_BK, is_taught_BK = student_BM[:, :top], is_present_BM[:, :top]
    place_K = torch.arange(1, taught_BK.shape[1] + 1, device=student_BM.device, dtype=student_BM.dtype)
    weight_BK = torch.exp(-place_K / position) * is_taught_BK
    weight_BK = weight_BK / weight_BK.sum(1, keepdim=True).clamp(min=torch.finfo(weight_BK.dtype).tiny)
    if discrepancy is not None and items is not None:
        is_behind_BM = is_present_BM[:, top:]
        is_above_BKM = student_BM[:, top:].detach().unsqueeze(1) > taught_BK.detach().unsqueeze(2)
        above_BK = (is_above_BKM & is_behind_BM.unsqueeze(1)).sum(2)
        share_BK = above_BK / is_behind_BM.sum(1, keepdim=True).clamp(min=1)
        rank_BK = torch.floor(items * share_BK) + 1
        weight_BK = weight_BK * torch.tanh(discrepancy * (rank_BK - place_K)).clamp(min=0)
    return (weight_BK * F.softplus(-taught_BK)).sum(1)


def cd(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, shift: float = 0.0, list_B: Tensor | None = None
) -> Tensor:
    """Collaborative distillation: each candidate's probability to please, as the teacher sees it.

    ``mean over candidates of CE(sigmoid(s), sigmoid((t + shift) / T))``. Candidates are items that the user has not
    taken, drawn by their rank (`by_rank` of the data layer).

    Args:
        student: scores of the learner, (B, M); or (B,) with ``list_B``.
        teacher: scores of the teacher, of the same shape.
        temperature: T > 0 of the teacher.
        shift: moves the teacher's scores, so that unknown items need not all please or displease.
        list_B: the anchor of each row of the flat form, int64 (B,), numbered without gaps.

    Returns:
        Loss per anchor, (B,); 0 without candidates.

    Raises:
        ShapeError: the shapes do not fit.
        TrainingError: T is not positive.

    Example:
        >>> cd(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]))
        tensor([0.6931])

    Source: CD, Lee et al., 2019, equations 5-6.
    Departure: the mean over candidates instead of their sum; the student is not tempered.
    """
    positive_temperature("cd", temperature)
    student_BM, teacher_BM = side_by_side("cd", student, teacher, list_B=list_B)
    is_present_BM = ~teacher_BM.isnan()
    target_BM = torch.sigmoid((teacher_BM.nan_to_num() + shift) / temperature)
    score_BM = student_BM.masked_fill(~is_present_BM, 0.0)
    return mean_where(F.binary_cross_entropy_with_logits(score_BM, target_BM, reduction="none"), is_present_BM)


def rrd(student: Tensor, teacher: Tensor, *, interesting: int, list_B: Tensor | None = None) -> Tensor:
    """Relaxed ranking distillation: the top candidates in the teacher's order, and all of them above the others.

    ``- sum_k log (e_k / (sum_(i >= k) e_i + sum_j e_j))`` with ``e = exp(s)``, over the teacher's places k = 1 .. K, i
    the interesting candidates from place k on, and j the uninteresting ones, whose order among each other is free.

    The item side of the method is the same loss with items as anchors and users as candidates.

    Args:
        student: scores of the learner, (B, M); or (B,) with ``list_B``.
        teacher: scores of the teacher, of the same shape.
        interesting: K, how many candidates of the teacher's order are ranked among each other.
        list_B: the anchor of each row of the flat form, int64 (B,), numbered without gaps.

    Returns:
        Loss per anchor, (B,), the sum over its K places.

    Raises:
        ShapeError: the shapes do not fit.
        TrainingError: K is not positive.

    Example:
        >>> rrd(torch.zeros(1, 3), torch.tensor([[1.0, 3.0, 2.0]]), interesting=2)
        tensor([1.7918])

    Source: RRD, Kang et al., 2020, equation 8; IR-RRD, Kang et al., 2021, for items as anchors.
    Departure: exponentials are summed in the logarithm, so that scores need no upper bound.
    """
    student_BM, is_present_BM = by_teacher(*side_by_side("rrd", student, teacher, list_B=list_B))
    _check_top("rrd", interesting, student_BM)
    top_BK, is_top_BK = student_BM[:, :interesting], is_present_BM[:, :interesting]
    below_B1 = logsumexp_where(student_BM[:, interesting:], is_present_BM[:, interesting:]).unsqueeze(1)
    if student_BM.shape[1] <= interesting:
        below_B1 = torch.full_like(below_B1, lowest(student_BM))
    onward_BK = top_BK.masked_fill(~is_top_BK, lowest(top_BK)).flip(1).logcumsumexp(1).flip(1)
    term_BK = torch.logaddexp(onward_BK, below_B1) - top_BK
    return term_BK.masked_fill(~is_top_BK, 0.0).sum(1)


def unkd(student: Tensor, teacher: Tensor, group: Tensor, *, list_B: Tensor | None = None) -> Tensor:
    """Unbiased distillation: the teacher's order of pairs, only among candidates of about the same popularity.

    ``mean over groups of the mean over its pairs (i, j), t_i > t_j, of - log sigmoid(s_i - s_j)``. What popularity
    alone does to the teacher's scores is about the same within a group, so it is not taught.

    Args:
        student: scores of the learner, (B, M); or (B,) with ``list_B``.
        teacher: scores of the teacher, of the same shape.
        group: the popularity group of each candidate, of the same shape.
        list_B: the anchor of each row of the flat form, int64 (B,), numbered without gaps.

    Returns:
        Loss per anchor, (B,); groups without a pair are left out, 0 if no group has one.

    Raises:
        ShapeError: the shapes do not fit.

    Example:
        >>> group = torch.tensor([[0, 0, 1, 1]])
        >>> unkd(torch.tensor([[2.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 9.0, 9.0]]), group)
        tensor([0.1269])

    Source: UnKD, Chen et al., 2023, equation 10.
    Departure: all pairs of the candidates instead of sampled ones, and all groups weigh alike instead of in proportion
        to a power of their popularity.
    """
    student_BM, teacher_BM, group_BM = side_by_side("unkd", student, teacher, group, list_B=list_B)
    is_same_BMM = group_BM.unsqueeze(2) == group_BM.unsqueeze(1)
    is_pair_BMM = is_same_BMM & (teacher_BM.unsqueeze(2) > teacher_BM.unsqueeze(1))  # comparisons with NaN are false
    margin_BMM = student_BM.unsqueeze(2) - student_BM.unsqueeze(1)
    loss_BM = (F.softplus(-margin_BMM.masked_fill(~is_pair_BMM, 0.0)) * is_pair_BMM).sum(2)
    is_same_BMM = is_same_BMM.to(student_BM.dtype)
    # Each candidate knows the number of pairs in its group and the size of the group.
    pairs_BM = (is_same_BMM * is_pair_BMM.sum(2).unsqueeze(1)).sum(2)
    groups_B = ((pairs_BM > 0) / is_same_BMM.sum(2).clamp(min=1)).sum(1)
    return (loss_BM / pairs_BM.clamp(min=1)).sum(1) / groups_B.clamp(min=1)


def _check_top(loss: str, top: int, score_BM: Tensor, *, behind: bool = False) -> None:
    if top < 1:
        raise TrainingError(f"{loss}: expected a number of at least 1, found {top} of {score_BM.shape[1]}")
    if behind and len(score_BM) and score_BM.shape[1] <= top:
        raise ShapeError(
            f"{loss}: expected at least one more than {top} candidates, to estimate ranks from, found "
            f"{score_BM.shape[1]}; draw candidates accordingly"
        )
