"""Nets with explicit feature interactions: DeepFM and DCN v2."""

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Count, Inputs, Outputs, Rate, Scorer, Width
from recdistill.nets.towers import Stack, places


class DeepFM(Scorer):
    """A factorisation machine beside a multilayer perceptron, on the same embeddings.

    Source: Guo et al., 2017, equations 1-4.
    Departure: the first-order weight of a value is a learned projection of its embedding instead of a table of its
        own, which would double the lookups; plain numbers have first-order weights and enter the perceptron, but not
        the pairs.
    """

    embedded_places: Tensor

    def __init__(
        self, inputs: Inputs, labels: int, *, mlp: list[Width], norm: str = "none", dropout: Rate = 0.0
    ) -> None:
        super().__init__()
        fields = inputs.embedded
        widths = {field.width for field in fields}
        if len(widths) != 1:
            raise TrainingError(f"deepfm: needs embedded columns of one width, found widths {sorted(widths)}")
        self.count, self.dim = len(fields), widths.pop()
        self.register_buffer("embedded_places", places(inputs, {field.name for field in fields}), persistent=False)
        self.first_order = nn.Linear(inputs.width, labels)
        self.stack = Stack(inputs.width, [*mlp], norm, dropout)
        self.out = nn.Linear(self.stack.width, labels, bias=False)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits and the perceptron's hidden layers of each row."""
        vectors_BFD = embed_BE.index_select(1, self.embedded_places).reshape(-1, self.count, self.dim)
        pairs_B = 0.5 * (vectors_BFD.sum(1).square() - vectors_BFD.square().sum(1)).sum(1)
        layers = self.stack(embed_BE)
        logits_BK = self.first_order(embed_BE) + self.out(layers[-1]) + pairs_B.unsqueeze(1)
        return Outputs(logits_BK, layers[1:], embed_BE, [])


class CrossLayer(nn.Module):
    """``x0 * (W x + b) + x``, with W of full or of low rank."""

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        narrow: nn.Module = nn.Identity() if rank is None else nn.Linear(width, rank, bias=False)
        self.narrow = narrow
        self.widen = nn.Linear(width if rank is None else rank, width)

    def forward(self, first_BE: Tensor, x_BE: Tensor) -> Tensor:
        """The crossed vector, (B, E)."""
        crossed_BE: Tensor = first_BE * self.widen(self.narrow(x_BE)) + x_BE
        return crossed_BE


class DcnV2(Scorer):
    """Cross layers beside a multilayer perceptron, joined by the last linear layer (the parallel structure).

    Source: Wang et al., 2021, equations 1-4.
    Departure: none.
    """

    def __init__(
        self,
        inputs: Inputs,
        labels: int,
        *,
        cross_layers: Count = 2,
        mlp: list[Width],
        rank: Width | None = None,
        norm: str = "none",
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.cross = nn.ModuleList(CrossLayer(inputs.width, rank) for _ in range(cross_layers))
        self.stack = Stack(inputs.width, [*mlp], norm, dropout)
        self.out = nn.Linear(inputs.width + self.stack.width, labels)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits and the perceptron's hidden layers of each row."""
        crossed_BE = embed_BE
        for layer in self.cross:
            crossed_BE = layer(embed_BE, crossed_BE)
        layers = self.stack(embed_BE)
        return Outputs(self.out(torch.cat([crossed_BE, layers[-1]], 1)), layers[1:], embed_BE, [])
