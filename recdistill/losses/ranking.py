"""Losses that rank what a user took above what the user did not.

Scores of an anchor's candidates stand side by side, (B, M), with labels 1 for positives, 0 for negatives and NaN for no
candidate; or flat, (B,), with ``list_B``. There is one value per anchor, the mean over its positives, so that an anchor
with many of them weighs no more than others; an anchor without a positive or a negative has nothing to teach and
loses 0.
"""

# Shapes: B anchors, M candidates of each, P positives of each.

import torch.nn.functional as F
from torch import Tensor

from recdistill.errors import TrainingError
from recdistill.losses.candidates import logsumexp_where, mean_where, side_by_side


def bpr(score: Tensor, label: Tensor, *, list_B: Tensor | None = None) -> Tensor:
    """Bayesian personalised ranking: each positive of an anchor against each of its negatives.

    ``mean over pairs (i, j) of - log sigmoid(s_i - s_j)``.

    Args:
        score: scores of the learner, (B, M); or (B,) with ``list_B``.
        label: 1, 0 or NaN, of the same shape.
        list_B: the anchor of each row of the flat form, int64 (B,), numbered without gaps.

    Returns:
        Loss per anchor, (B,).

    Raises:
        ShapeError: the shapes do not fit.

    Example:
        >>> import torch
        >>> bpr(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor([0.1269, 0.6931])

    Source: Rendle et al., 2009, equation 3 (P10's hard term).
    Departure: the mean over all pairs of an anchor instead of the sum over sampled triples; the penalty of the vectors
        is a term of its own (`half_square`).
    """
    score_BM, label_BM = side_by_side("bpr", score, label, list_B=list_B)
    is_positive_BM, is_negative_BM = label_BM > 0, label_BM == 0
    # Positives are few: gathered, they cost (B, P, M) instead of (B, M, M).
    most = int(is_positive_BM.sum(1).max()) if is_positive_BM.numel() else 0
    is_real_BP, place_BP = is_positive_BM.byte().topk(most, dim=1)
    margin_BPM = score_BM.gather(1, place_BP).unsqueeze(2) - score_BM.unsqueeze(1)
    is_pair_BPM = is_real_BP.bool().unsqueeze(2) & is_negative_BM.unsqueeze(1)
    loss_BPM = F.softplus(-margin_BPM.masked_fill(~is_pair_BPM, 0.0))
    return mean_where(loss_BPM.flatten(1), is_pair_BPM.flatten(1))


def sampled_softmax(
    score: Tensor, label: Tensor, log_q: Tensor | None = None, *, temperature: float = 1.0, list_B: Tensor | None = None
) -> Tensor:
    """Cross entropy of each positive of an anchor among its negatives.

    ``mean over positives i of - log (e_i / (e_i + sum_j e_j))`` with ``e = exp(s / T - log q)`` and j the negatives.

    Args:
        score: scores of the learner, (B, M); or (B,) with ``list_B``.
        label: 1, 0 or NaN, of the same shape.
        log_q: the logarithm of the expected number of times that each candidate is drawn, of the same shape; 0 for
            those that are there for certain, as positives are. With it the sum over negatives estimates that over all
            items without bias.
        temperature: T > 0 of the scores.
        list_B: the anchor of each row of the flat form, int64 (B,), numbered without gaps.

    Returns:
        Loss per anchor, (B,).

    Raises:
        ShapeError: the shapes do not fit.
        TrainingError: T is not positive.

    Example:
        >>> import torch
        >>> sampled_softmax(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([1.0986])

    Source: Bengio and Senécal, 2008, equation 11; in batch, Yi et al., 2019, equation 3.
    Departure: of several positives each stands alone against the negatives; Yi et al. correct the positive as well,
        which is not drawn.
    """
    positive_temperature("sampled_softmax", temperature)
    given = (score, label) if log_q is None else (score, label, log_q)
    score_BM, label_BM, *rest = side_by_side("sampled_softmax", *given, list_B=list_B)
    corrected_BM = score_BM / temperature - (rest[0].nan_to_num() if rest else 0.0)
    is_positive_BM = label_BM > 0
    others_B = logsumexp_where(corrected_BM, label_BM == 0)
    margin_BM = others_B.unsqueeze(1) - corrected_BM.masked_fill(~is_positive_BM, 0.0)
    return mean_where(F.softplus(margin_BM), is_positive_BM)


def positive_temperature(loss: str, temperature: float) -> None:
    """Raise unless a temperature is positive.

    Raises:
        TrainingError: it is not positive.
    """
    if temperature <= 0:
        raise TrainingError(f"{loss}: temperature must be positive, found {temperature}")
