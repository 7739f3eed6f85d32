"""Columns of type ``missing``: 1 where a raw column is missing, otherwise 0.

What missing means is the same as for all columns; a list is missing if it holds no value that is not.
"""

from dataclasses import dataclass
from typing import ClassVar

import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.column import Kind, Learned, OfOneColumn
from recdistill.data.transforms.raw import key_type, keyed_by_text, keys, numbers, numbers_tensor
from recdistill.spec import columns as declared


def types(name: str, column: declared.Missing, schema: pl.Schema, source: str) -> dict[str, pl.DataType]:  # noqa: ARG001
    """The raw column and its type; of lists, that of their elements.

    Raises:
        LogError: it holds something that cannot be handed to the artefact.
    """
    dtype = schema[source]
    if isinstance(dtype, pl.List):
        dtype = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
    if not dtype.is_temporal():
        key_type(dtype, name)
    return {source: dtype}


def fit(name: str, _: declared.Missing, learned: Learned) -> "Missing":
    """The fitted column; nothing is learned."""
    source, dtype = learned.only(name)
    return Missing(name, source, dtype, listed=source in learned.lists)


@dataclass(frozen=True)
class Missing(OfOneColumn):
    """A fitted indicator of missing values; ``listed`` if the raw column holds lists, ``dtype`` is then inside them."""

    name: str
    source: str
    dtype: pl.DataType
    listed: bool
    kind: ClassVar[Kind] = "float"

    @property
    def lists(self) -> frozenset[str]:
        """The raw column, if it holds lists."""
        return frozenset(self.raw) if self.listed else frozenset()

    @property
    def unknown(self) -> str:
        """Only whether there is a value counts."""
        return "a value like any other"

    def polars(self) -> list[pl.Expr]:
        """1 or 0, Float32."""
        column = pl.col(self.source)
        known = column.list.eval(self._known(pl.element())).list.any() if self.listed else self._known(column)
        return [(~known.fill_null(False)).cast(pl.Float32).alias(self.name)]

    def _known(self, value: pl.Expr) -> pl.Expr:
        """Whether a value is there."""
        if keyed_by_text(self.dtype):
            return keys(value, self.dtype, self.name).is_not_null()
        if self.dtype.is_temporal():
            return numbers(value.cast(pl.Int64), pl.Int64(), self.name).is_not_null()
        return numbers(value, self.dtype, self.name).is_not_null()

    def torch(self) -> nn.Module:
        """1 or 0, float32 (B,), from raw inputs."""
        return MissingModule(self.source, self.listed)


class MissingModule(nn.Module):
    """`Missing` inside the artefact."""

    def __init__(self, source: str, listed: bool) -> None:
        super().__init__()
        self.source = source
        self.listed = listed

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],
        batch: int,
    ) -> Tensor:
        """1 or 0, float32 (B,)."""
        if self.source in numbers:
            known_N = ~torch.isnan(numbers_tensor(numbers[self.source]))
        elif self.source in texts:
            present: list[bool] = []
            for text in texts[self.source]:
                present.append(len(text) > 0)
            known_N = torch.tensor(present, dtype=torch.bool)
        else:
            return torch.ones(batch)
        if self.listed:
            row_N = torch.repeat_interleave(torch.arange(batch), lengths[self.source])
            known_N = torch.zeros(batch).index_add(0, row_N, known_N.to(torch.float32)) > 0
        return (~known_N).to(torch.float32)
