"""What a net receives: one vector per row, laid out in named fields, and what it returns."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True)
class Between:
    """The numbers that an option may be: from ``least`` on, and below ``end``."""

    least: float
    end: float

    def __contains__(self, number: float) -> bool:
        return self.least <= number < self.end

    def __str__(self) -> str:
        return f"at least {self.least} and below {self.end}"


Width = Annotated[int, Between(1, 2**14 + 1)]  # values of a layer
Count = Annotated[int, Between(0, 65)]  # of layers
Rate = Annotated[float, Between(0, 1)]  # of dropout


@dataclass(frozen=True)
class Field:
    """One column's place in the input vector; ``embedded`` tells an embedding from a plain number."""

    name: str
    start: int
    width: int
    embedded: bool


@dataclass(frozen=True)
class Inputs:
    """The fields of an input vector ``embed_BE``, in order and without gaps."""

    fields: tuple[Field, ...]

    @property
    def width(self) -> int:
        """E, the width of the whole vector."""
        return sum(field.width for field in self.fields)

    @property
    def embedded(self) -> tuple[Field, ...]:
        """The fields that are embeddings."""
        return tuple(field for field in self.fields if field.embedded)

    @classmethod
    def plain(cls, width: int) -> "Inputs":
        """One anonymous field, for a net on top of another one."""
        return cls((Field("trunk", 0, width, embedded=False),))


class Scorer(nn.Module):
    """A net that a job can name, with what is known of its kind; a class says where it differs."""

    learns = True  # whether gradients teach it: whether it has parameters that they could move
    ranks = False  # whether its logit is an inner product of a user's and an item's vector
    codes = False  # whether these vectors are codes, of which the signs count
    whole = False  # whether it needs all rows of its tables
    by_validation = False  # whether its method `choose` is given validation rows


class Outputs(NamedTuple):
    """The named outputs of a net.

    Attributes:
        logits_BK: one logit per row and label, (B, K).
        hidden: the hidden layers, first to last, each (B, H).
        embed_BE: the input vector.
        attention: the weights of the tokens of each sequence, (B, L), in the order of the fields.
    """

    logits_BK: Tensor
    hidden: list[Tensor]
    embed_BE: Tensor
    attention: list[Tensor]
