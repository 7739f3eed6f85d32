"""Plain towers: the multilayer perceptron, and two towers that meet in an inner product.

Every net is built from `Inputs` and a number of labels K, and maps ``embed_BE`` to `Outputs`. Nets are scripted for
export, so they hold no configuration objects and no optional paths.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Inputs, Outputs, Rate, Scorer, Width

NORMS = ("none", "layer", "batch")


def block(width_in: int, width_out: int, norm: str, dropout: float) -> nn.Sequential:
    """Linear, normalisation, ReLU, dropout."""
    parts: list[nn.Module] = [nn.Linear(width_in, width_out)]
    if norm == "layer":
        parts.append(nn.LayerNorm(width_out))
    elif norm == "batch":
        parts.append(nn.BatchNorm1d(width_out))
    elif norm != "none":
        raise TrainingError(f"net: norm is {norm!r}; expected one of {', '.join(NORMS)}")
    parts.append(nn.ReLU())
    if dropout > 0:
        parts.append(nn.Dropout(dropout))
    return nn.Sequential(*parts)


class Stack(nn.Module):
    """Hidden layers whose outputs are all kept."""

    def __init__(self, width: int, layers: list[int], norm: str = "none", dropout: float = 0.0) -> None:
        super().__init__()
        widths = [width, *layers]
        self.blocks = nn.ModuleList(block(a, b, norm, dropout) for a, b in pairwise(widths))
        self.width = widths[-1]

    def forward(self, x_BE: Tensor) -> list[Tensor]:
        """The outputs of all layers, first to last, after the input itself."""
        outputs = [x_BE]
        for layer in self.blocks:
            outputs.append(layer(outputs[-1]))
        return outputs


class Mlp(Scorer):
    """A multilayer perceptron; without hidden layers it is logistic regression on the input vector."""

    def __init__(
        self, inputs: Inputs, labels: int, *, layers: list[Width], norm: str = "none", dropout: Rate = 0.0
    ) -> None:
        super().__init__()
        self.stack = Stack(inputs.width, layers, norm, dropout)
        self.out = nn.Linear(self.stack.width, labels)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits and hidden layers of each row."""
        layers = self.stack(embed_BE)
        return Outputs(self.out(layers[-1]), layers[1:], embed_BE, [])


class TwoTower(Scorer):
    """``<user vector, item vector> + bias``: item vectors can be computed before any request is known.

    Fields of neither side belong to the request; they join the user's side.
    """

    item_places: Tensor
    user_places: Tensor
    ranks = True

    def __init__(
        self,
        inputs: Inputs,
        labels: int,
        *,
        item: list[str],
        mlp: list[Width],
        dim: Width = 32,
        norm: str = "none",
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__()
        names = [field.name for field in inputs.fields]
        if labels != 1:
            raise TrainingError(f"two_tower: has one inner product, so one label, but {labels} are asked for")
        if not (wanted := [name for name in item if name in names]) or len(wanted) == len(names):
            raise TrainingError(f"two_tower: item {item} must name some but not all of the columns {names}")
        self.register_buffer("item_places", places(inputs, set(item)), persistent=False)
        self.register_buffer("user_places", places(inputs, set(names) - set(item)), persistent=False)
        self.item_tower = Stack(self.item_places.numel(), [*mlp], norm, dropout)
        self.user_tower = Stack(self.user_places.numel(), [*mlp], norm, dropout)
        self.item_out = nn.Linear(self.item_tower.width, dim)
        self.user_out = nn.Linear(self.user_tower.width, dim)
        self.bias = nn.Parameter(torch.zeros(1))

    def user_vector(self, embed_BE: Tensor) -> Tensor:
        """The vectors of users (and requests), (B, dim); reads the user fields only."""
        vector_BD: Tensor = self.user_out(self.user_tower(embed_BE.index_select(1, self.user_places))[-1])
        return vector_BD

    def item_vector(self, embed_BE: Tensor) -> Tensor:
        """The vectors of items, (B, dim); reads the item fields only."""
        vector_BD: Tensor = self.item_out(self.item_tower(embed_BE.index_select(1, self.item_places))[-1])
        return vector_BD

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits of each row; the hidden taps are the two vectors, user first."""
        user_BD, item_BD = self.user_vector(embed_BE), self.item_vector(embed_BE)
        logits_BK = (user_BD * item_BD).sum(1, keepdim=True) + self.bias
        return Outputs(logits_BK, [user_BD, item_BD], embed_BE, [])


def places(inputs: Inputs, names: set[str]) -> Tensor:
    """The positions in the input vector that belong to some fields."""
    found = [torch.arange(f.start, f.start + f.width) for f in inputs.fields if f.name in names]
    return torch.cat(found)
