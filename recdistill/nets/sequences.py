"""From the tokens of an ordered sequence to one vector: mean, target attention, self-attention.

A pooling maps (input vector without sequences, padded tokens, lengths) to the vector and the weights of the tokens,
which are a tap for distillation. An empty sequence becomes the zero vector. Positions count from the end of the
sequence that the spec keeps, so that they mean the same at every length.
"""

# Shapes: B rows, T tokens over all rows, L the longest sequence of a batch, D width of a token, E of the input vector.

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Inputs, Width


def padded(tokens_TD: Tensor, lengths_B: Tensor) -> Tensor:
    """The tokens of each row side by side, (B, L, D), zeros behind shorter sequences; L is at least 1."""
    rows = lengths_B.numel()
    longest = max(int(lengths_B.max()), 1) if rows > 0 else 1
    row_T = torch.repeat_interleave(torch.arange(rows), lengths_B)
    place_T = torch.arange(tokens_TD.size(0)) - (torch.cumsum(lengths_B, 0) - lengths_B)[row_T]
    flat = tokens_TD.new_zeros((rows * longest, tokens_TD.size(1))).index_copy(0, row_T * longest + place_T, tokens_TD)
    return flat.view(rows, longest, tokens_TD.size(1))


def present(tokens_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """1.0 where a row has a token, 0.0 behind it, (B, L)."""
    return (torch.arange(tokens_BLD.size(1)).unsqueeze(0) < lengths_B.unsqueeze(1)).to(tokens_BLD.dtype)


def softmax_over_tokens(score_BL: Tensor, present_BL: Tensor) -> Tensor:
    """Weights of the tokens that are present, which add up to 1; all 0 for an empty sequence."""
    among_BL = score_BL.masked_fill(present_BL == 0, -1e30)  # not infinite, for a row without tokens would be NaN
    return torch.softmax(among_BL, 1) * present_BL


class Mean(nn.Module):
    """The mean of the tokens."""

    def __init__(self, inputs: Inputs, width: int) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self, flat_BE: Tensor, tokens_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The pooled vector, (B, D), and the weights, (B, L)."""
        weight_BL = present(tokens_BLD, lengths_B) / torch.clamp(lengths_B.unsqueeze(1), min=1).to(tokens_BLD.dtype)
        return (weight_BL.unsqueeze(2) * tokens_BLD).sum(1), weight_BL


class TargetAttention(nn.Module):
    """Each token weighs as much as a small net finds it relevant to the target, for example the item at hand.

    The net sees token, target, their difference and their product. By default the weights are not normalised, so that
    their sum tells how strong an interest is.

    Source: Deep Interest Network, Zhou et al., 2018, section 4.3.
    Departure: the product enters element by element, and the hidden layers use SiLU instead of Dice.
    """

    def __init__(
        self, inputs: Inputs, width: int, *, target: str, layers: Sequence[Width] = (32,), normalise: bool = False
    ) -> None:
        super().__init__()
        fields = {field.name: field for field in inputs.fields if field.embedded}
        if target not in fields or fields[target].width != width:
            raise TrainingError(
                f"pool: the target {target!r} must be an embedded column of width {width}, as the sequence is; found "
                f"{ {name: field.width for name, field in fields.items()} }"
            )
        self.start, self.end = fields[target].start, fields[target].start + width
        self.normalise = normalise
        widths = [4 * width, *layers]
        parts: list[nn.Module] = []
        for a, b in pairwise(widths):
            parts += [nn.Linear(a, b), nn.SiLU()]
        self.relevance = nn.Sequential(*parts, nn.Linear(widths[-1], 1))

    def forward(self, flat_BE: Tensor, tokens_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled vector, (B, D), and the weights, (B, L)."""
        target_BLD = flat_BE[:, self.start : self.end].unsqueeze(1).expand(-1, tokens_BLD.size(1), -1)
        pairs = torch.cat([tokens_BLD, target_BLD, tokens_BLD - target_BLD, tokens_BLD * target_BLD], 2)
        score_BL = self.relevance(pairs).squeeze(2)
        present_BL = present(tokens_BLD, lengths_B)
        weight_BL = softmax_over_tokens(score_BL, present_BL) if self.normalise else score_BL * present_BL
        return (weight_BL.unsqueeze(2) * tokens_BLD).sum(1), weight_BL


class SelfAttention(nn.Module):
    """Tokens attend to each other in several heads, then a learned query pools them.

    Source: Attention Is All You Need, Vaswani et al., 2017, section 3.2, for the heads; BST, Chen et al., 2019, for its
    use on behaviour sequences.
    Departure: one block without feed-forward layer, and pooling by a learned query instead of concatenation.
    """

    def __init__(self, inputs: Inputs, width: int, *, heads: Width = 2, positions: Width = 64) -> None:  # noqa: ARG002
        super().__init__()
        if heads < 1 or width % heads:
            raise TrainingError(f"pool: heads is {heads}, which must divide the width {width} of the tokens")
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(positions, width))
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, flat_BE: Tensor, tokens_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The pooled vector, (B, D), and the weights of the pooling, (B, L)."""
        rows, longest, width = tokens_BLD.size(0), tokens_BLD.size(1), tokens_BLD.size(2)
        present_BL = present(tokens_BLD, lengths_B)
        from_end_BL = lengths_B.unsqueeze(1) - 1 - torch.arange(longest).unsqueeze(0)
        place_BL = torch.clamp(from_end_BL, min=0, max=self.position.size(0) - 1)
        x_BLD = tokens_BLD + self.position[place_BL]
        by_head = self.project(x_BLD).view(rows, longest, 3 * self.heads, width // self.heads)
        q, k, v = by_head.transpose(1, 2).chunk(3, 1)
        score_BHLL = q @ k.transpose(2, 3) * (width // self.heads) ** -0.5
        absent_BL = present_BL == 0
        weight_BHLL = torch.softmax(score_BHLL.masked_fill(absent_BL[:, None, None, :], -1e9), 3)
        mixed_BLD = (weight_BHLL @ v).transpose(1, 2).reshape(rows, longest, width)
        x_BLD = self.norm(x_BLD + self.mix(mixed_BLD))
        weight_BL = softmax_over_tokens(x_BLD @ self.query, present_BL)
        return (weight_BL.unsqueeze(2) * x_BLD).sum(1), weight_BL


POOLS: dict[str, Callable[..., nn.Module]] = {
    "mean": Mean,
    "target_attention": TargetAttention,
    "self_attention": SelfAttention,
}


def build_pool(described: dict[str, Any], inputs: Inputs, width: int) -> nn.Module:
    """The pooling that ``{name: options}`` describes, for tokens of a width."""
    ((name, options),) = described.items()
    return POOLS[name](inputs, width, **(options or {}))
