"""Losses on the vectors and codes of users and items."""

# Shapes: B rows, D width of a vector, R bits of a code.

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
    Departure: the mean over bits instead of the sum, so that a weight keeps its meaning across lengths. Of the items
        only each anchor's own one is penalised, since rows of candidates have no weight.
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
