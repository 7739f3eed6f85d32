"""A net whose labels exclude each other: exactly one of them is 1."""

# Shapes: B rows, K classes.

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Inputs, Outputs, Scorer, Width
from recdistill.nets.towers import Stack


def log_odds(log_share_BK: Tensor) -> Tensor:
    """``log p - log(1 - p)`` of each class from its log share, (B, K)."""
    below_BK = log_share_BK.clamp(max=-1e-7)  # a share of exactly 1 has infinite odds
    return below_BK - torch.log(-torch.expm1(below_BK))


class Exclusive(Scorer):
    """A multilayer perceptron with a softmax: the logit of a label is the log-odds of its share, ``log p / (1 - p)``.

    So every logit still means what it means elsewhere, and its sigmoid is a probability; over the labels they add up
    to 1, and a constant added to all scores of the softmax changes nothing.

    Args:
        mlp: widths of the hidden layers.
    """

    def __init__(self, inputs: Inputs, labels: int, *, mlp: list[Width]) -> None:
        super().__init__()
        if labels < 3:
            raise TrainingError(
                f"exclusive: needs at least 3 labels that exclude each other, found {labels}; two of them are one label"
            )
        self.stack = Stack(inputs.width, [*mlp])
        self.out = nn.Linear(self.stack.width, labels)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Log-odds of each row and class, and the hidden layers."""
        layers = self.stack(embed_BE)
        share_BK = torch.log_softmax(self.out(layers[-1]), 1)
        return Outputs(log_odds(share_BK), layers[1:], embed_BE, [])
