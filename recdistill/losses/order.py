"""Losses on the order of rows: each row is compared with other rows of its batch that take part in the term."""

# Shapes: B rows, H width of a layer (every member has its own).

import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.errors import ShapeError, TrainingError
from recdistill.losses.scope import within_batch
from recdistill.losses.shapes import logits

EQUAL = 1e-4  # distances that differ by a smaller share of their sum differ by rounding


@within_batch
def relative_order(student_BH: Tensor, *teacher_BH: Tensor, margin: float = 0.2, triplets: float = 4) -> Tensor:
    """How far a layer's distances between rows are from the order that most teachers give them.

    ``mean_n max(0, d(u, u+) - d(u, u-) + margin)``, where u+ is the one of two other rows that the majority finds
    closer to u, and d is the squared distance of the learner's layer, scaled to length 1. Teachers judge by the squared
    distance of their layers as they are: only its order counts, so that width, scale, rotation and shift of a layer do
    not. A teacher has no opinion on rows that it finds equally close, and pairs on which the votes are equal teach
    nothing. The other rows are the next ones in the batch, which is drawn anew in every epoch; where batches hold whole
    lists, they are mostly of the same list. A small batch comes round to the row itself; such a pair teaches nothing.

    Args:
        student_BH: a layer of the learner, (B, H).
        teacher_BH: a layer of each teacher, (B, H).
        margin: by how much the closer row should be closer.
        triplets: pairs for each row.

    Returns:
        Loss per row, (B,).

    Raises:
        ShapeError: these are no layers of the same rows.
        TrainingError: there is no teacher or no pair.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.tensor([[0.0], [3.0], [1.0]])
        >>> relative_order(student, student, triplets=1), relative_order(student, teacher, triplets=1)
        (tensor([0., 0., 0.]), tensor([1.8000, 0.6000, 1.4000]))

    Source: E1, You et al., 2017 (the exact form of the loss is unverified).
    Departure: triplets are rows that meet in a batch, not a stored list of examples, and their mean is taken, not their
        sum, so that the weight of the term does not depend on how many they are; the layers of the teachers are not
        scaled to length 1, which would let a shift change their votes; they are named in the job, not chosen by how
        much their votes agree.
    """
    if not teacher_BH or triplets < 1:
        raise TrainingError(f"relative_order: needs a teacher and at least one pair a row, found {triplets} pairs")
    for layer in (student_BH, *teacher_BH):
        if layer.dim() != 2 or len(layer) != len(student_BH):
            raise ShapeError(
                f"relative_order: compares layers (B, H) of the same rows, found {tuple(layer.shape)} beside "
                f"{tuple(student_BH.shape)}; name outputs such as member.hidden[-1]"
            )
    unit_BH = F.normalize(student_BH, dim=1)
    loss_B = torch.zeros_like(student_BH[:, 0])
    for n in range(int(triplets)):
        votes_B = torch.stack([opinion(layer, n) for layer in teacher_BH]).sum(0)
        hinge_B = F.relu(margin - torch.sign(votes_B) * lead(unit_BH, n))
        loss_B = loss_B + torch.where(votes_B == 0, torch.zeros_like(hinge_B), hinge_B)
    return loss_B / int(triplets)


def opinion(layer_BH: Tensor, n: int) -> Tensor:
    """1 if the first of the row's n-th pair of successors is closer, -1 if the second is, else 0."""
    first_B, second_B = distances(layer_BH, n)
    apart_B = second_B - first_B
    if comes_round(len(layer_BH), n):
        return torch.zeros_like(apart_B)
    return torch.sign(apart_B) * (apart_B.abs() > EQUAL * (first_B + second_B))


def comes_round(rows: int, n: int) -> bool:
    """Whether one of the n-th pair of rows that follow a row is the row itself, as happens in a small batch."""
    return rows > 0 and 0 in ((2 * n + 1) % rows, (2 * n + 2) % rows)


def lead(layer_BH: Tensor, n: int) -> Tensor:
    """How much closer to each row the first of its n-th pair of followers is than the second, (B,)."""
    first_B, second_B = distances(layer_BH, n)
    return second_B - first_B


def distances(layer_BH: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The squared distance of each row to the two rows of its n-th pair of followers in the batch, both (B,)."""
    first_B, second_B = ((layer_BH - layer_BH.roll(-k, 0)).square().sum(1) for k in (2 * n + 1, 2 * n + 2))
    return first_B, second_B


@within_batch
def pairwise(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Pairwise logistic loss against rows of the other class: a smooth AUC.

    ``mean_j log(1 + exp(s_j - s))`` over the rows j that were not clicked, for a row that was clicked, and with both
    logits exchanged for one that was not; so the mean over a batch is the mean over all pairs of a clicked row and
    another. A constant added to all logits changes nothing: the loss teaches order, and no calibration.

    Args:
        logit_B: logits, (B,).
        label_B: labels, 0 or 1, (B,).

    Returns:
        Loss per row, (B,); 0 where there is no row of the other class.

    Raises:
        ShapeError: the shapes differ or are not (B,).

    Example:
        >>> pairwise(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0]))
        tensor([0.1269, 0.4100, 0.6931])

    Source: RankNet, Burges et al., 2005, section 3; E11 trains a member of its ensemble, and its student in the end, on
        what is measured.
    Departure: pairs are all of a batch, since AUC ranks rows of different requests as well.
    """
    logits(logit_B, label_B, "pairwise")
    side_B = 2 * label_B - 1
    other_BB = (side_B.unsqueeze(1) != side_B.unsqueeze(0)).to(logit_B.dtype)
    loss_BB = F.softplus(-side_B.unsqueeze(1) * (logit_B.unsqueeze(1) - logit_B.unsqueeze(0)))
    return (loss_BB * other_BB).sum(1) / other_BB.sum(1).clamp(min=1)
