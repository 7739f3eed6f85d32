"""Losses on the vectors and codes of users and items."""

# Shapes: B rows, D width of a vector, R bits of a code, E experts.

from torch import Tensor

from recdistill.errors import ShapeError


def quantisation(relaxed_BR: Tensor) -> Tensor:
    """The expected squared distance of a stochastic code from its relaxed form, averaged over the bits.

    ``mean_r (1 - u_r^2)`` for u in [-1, 1]. A bit that is +1 with probability (1 + u) / 2 and -1 otherwise has mean u
    and squared distance 1 - u^2 from it, so this is exact and not a bound; it is 0 only where u is -1 or 1.

    Args:
        relaxed_BR: the learner's relaxed codes, (B, R).

    Returns:
        Loss per row, (B,), in [0, 1].

    Raises:
        ShapeError: the codes are not (B, R).

    Example:
        >>> import torch
        >>> quantisation(torch.tensor([[1.0, -1.0], [0.5, 0.0]]))
        tensor([0.0000, 0.8750])

    Source: P10, Wang et al., 2019: continuous problem with a stochastic penalty; formula reconstructed.
    Departure: the mean over bits instead of the sum, so that a weight keeps its meaning across lengths.
    """
    if relaxed_BR.dim() != 2:
        raise ShapeError(f"quantisation: takes relaxed codes (B, R), found {tuple(relaxed_BR.shape)}; flatten them")
    return (1 - relaxed_BR.square()).mean(1)


def half_square(vector_BD: Tensor) -> Tensor:
    """Half the squared length of each row: the penalty that goes with BPR, on the rows that a step looks up.

    ``1/2 sum_d x_d^2``.

    Args:
        vector_BD: the learner's vectors, (B, D); of a graph convolution, those of its first layer.

    Returns:
        Loss per row, (B,).

    Raises:
        ShapeError: the vectors are not (B, D).

    Example:
        >>> import torch
        >>> half_square(torch.tensor([[3.0, 4.0]]))
        tensor([12.5000])

    Source: Rendle et al., 2009, section 4.1; LightGCN, He et al., 2020, equation 15.
    Departure: none.
    """
    if vector_BD.dim() != 2:
        raise ShapeError(f"half_square: takes vectors (B, D), found {tuple(vector_BD.shape)}; flatten them")
    return 0.5 * vector_BD.square().sum(1)


def experts(expert_BED: Tensor, teacher_BD: Tensor, gate_BE: Tensor) -> Tensor:
    """Squared distance of the teacher's vector from a mixture of experts on the student's.

    ``|| t - sum_e g_e x_e ||^2``.

    Args:
        expert_BED: the answers of the learner's experts, (B, E, D).
        teacher_BD: the teacher's vectors, (B, D).
        gate_BE: the weight of each expert, (B, E). The gate learns only if it is handed over live.

    Returns:
        Loss per row, (B,), summed over the width.

    Raises:
        ShapeError: the shapes do not fit.

    Example:
        >>> import torch
        >>> expert = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> experts(expert, torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([0.2500])

    Source: DE, Kang et al., 2020, equation 3.
    Departure: none; experts and gate are members' parameters, so they live elsewhere.
    """
    rows, count, width = expert_BED.shape if expert_BED.dim() == 3 else (-1, -1, -1)
    if teacher_BD.shape != (rows, width) or gate_BE.shape != (rows, count):
        raise ShapeError(
            f"experts: needs (B, E, D), (B, D) and (B, E), found {tuple(expert_BED.shape)}, {tuple(teacher_BD.shape)} "
            f"and {tuple(gate_BE.shape)}; give each expert the teacher's width and a weight"
        )
    return (teacher_BD - (gate_BE.unsqueeze(2) * expert_BED).sum(1)).square().sum(1)
