"""Codes of -1 and +1: how they are made from real numbers, and a net of two towers that ends in them.

What is trained is the relaxed code ``u = tanh(w)`` in (-1, 1). Its bits are drawn (`stochastic`) or cut (`cut`), always
exactly -1 or +1 in the forward pass, and let the gradient through unchanged. In eval mode every kind is cut, which is
what is served. Numbers to draw with are handed in where they must not depend on the batch.
"""

# Shapes: B rows, M candidates of each, R bits.

import math

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Inputs, Outputs, Rate, Scorer, Width
from recdistill.nets.towers import TwoTower

KINDS = ("stochastic", "cut", "after", "real")


def through(relaxed: Tensor, code: Tensor) -> Tensor:
    """A code, exactly, with the gradient of its relaxed form.

    ``b + (u - u)`` is b to the last bit; the usual ``u + (b - u)`` is not where a small u and b differ in sign.
    """
    return code + (relaxed - relaxed.detach())


def bits(value: Tensor) -> Tensor:
    """+1 where a number is at least 0, otherwise -1, without gradient.

    Example:
        >>> bits(torch.tensor([0.3, 0.0, -2.0]))
        tensor([ 1.,  1., -1.])
    """
    return torch.where(value >= 0, torch.ones_like(value), -torch.ones_like(value))


def stochastic(relaxed: Tensor, uniform: Tensor) -> Tensor:
    """Bits that are +1 with probability ``(1 + u) / 2``, so that their mean is u; the gradient is u's.

    Args:
        relaxed: u in [-1, 1].
        uniform: numbers in [0, 1) of the same shape.

    Example:
        >>> stochastic(torch.tensor([-1.0, 0.0, 0.0, 1.0]), torch.tensor([0.0, 0.4, 0.6, 0.99]))
        tensor([-1.,  1., -1.,  1.])

    Source: P10, Wang et al., 2019; BinaryConnect, Courbariaux et al., 2015, section 2.3.
    Departure: none.
    """
    is_up = uniform * 2 - 1 < relaxed  # in the precision of the draws, where they have more
    return through(relaxed, torch.where(is_up, torch.ones_like(relaxed), -torch.ones_like(relaxed)))


def cut(relaxed: Tensor) -> Tensor:
    """The signs of u, with u's gradient.

    Example:
        >>> cut(torch.tensor([0.3, -0.2]))
        tensor([ 1., -1.])

    Source: straight-through estimator, Bengio, Léonard and Courville, 2013.
    Departure: none.
    """
    return through(relaxed, bits(relaxed))


def spread(beta: float, bits: int) -> float:
    """``beta / sqrt(R)`` to 12 binary digits, so that float32 adds up to 4096 of them exactly: equal scores stay equal.

    Example:
        >>> spread(2.0, 64), spread(2.0, 32)
        (0.25, 0.353515625)
    """
    mantissa, exponent = math.frexp(beta / math.sqrt(bits))
    return math.ldexp(round(mantissa * 2**12), exponent - 12)


class Binariser(nn.Module):
    """From real numbers w to a relaxed code ``tanh(w)`` and the code that is scored with.

    Args:
        kind: ``stochastic`` draws the bits in training, ``cut`` takes signs throughout; ``after`` trains real numbers
            and takes their signs when it is done; ``real`` never takes any.
    """

    def __init__(self, kind: str = "stochastic") -> None:
        super().__init__()
        if kind not in KINDS:
            raise TrainingError(f"binariser: kind is {kind!r}; expected one of {', '.join(KINDS)}")
        self.stochastic = kind == "stochastic"
        self.real = kind == "real"
        self.after = kind == "after"

    def forward(self, raw: Tensor, uniform: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The relaxed code and the code, both of the shape of the numbers.

        Args:
            raw: w.
            uniform: numbers in [0, 1) to draw bits with; without them PyTorch's generator is used, as dropout does.
        """
        if self.real or (self.after and self.training):
            return raw, raw
        relaxed = torch.tanh(raw)
        if self.stochastic and self.training:
            return relaxed, stochastic(relaxed, torch.rand_like(relaxed) if uniform is None else uniform)
        return relaxed, cut(relaxed)


class BinaryTwoTower(Scorer):
    """Two towers that end in codes: new users and items have codes as soon as they have features.

    ``beta / sqrt(R) <b_user, b_item> + bias``, with the codes of `Binariser`. Fields of neither side belong to the
    request; they join the user's side.

    Args:
        inputs: the fields of the input vector.
        labels: 1.
        item: the fields of the item's side.
        mlp: hidden layers of each tower.
        bits: R.
        kind: how codes are made, see `Binariser`.
        beta: the spread of the scores of unrelated codes.
        dropout: after hidden layers.

    Source: P10, Wang et al., 2019, for codes and score.
    Departure: codes from towers instead of a table of numbers for each user and item.
    """

    ranks = True
    codes = True

    def __init__(
        self,
        inputs: Inputs,
        labels: int,
        *,
        item: list[str],
        mlp: list[Width],
        bits: Width = 64,
        kind: str = "stochastic",
        beta: float = 2.0,
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.towers = TwoTower(inputs, labels, item=item, mlp=mlp, dim=bits, dropout=dropout)
        self.binariser = Binariser(kind)
        self.scale = spread(beta, bits)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits of each row; the hidden taps are the relaxed codes, the user's code times the scale, the item's."""
        user_BR, user_code_BR = self.binariser(self.towers.user_vector(embed_BE))
        item_BR, item_code_BR = self.binariser(self.towers.item_vector(embed_BE))
        scaled_BR = self.scale * user_code_BR
        logits_BK = (scaled_BR * item_code_BR).sum(1, keepdim=True) + self.towers.bias
        return Outputs(logits_BK, [user_BR, item_BR, scaled_BR, item_code_BR], embed_BE, [])
