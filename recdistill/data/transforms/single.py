"""Columns of type ``categorical`` and ``id``: one value per row, one embedding row."""

from dataclasses import dataclass
from typing import Literal

import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.raw import keys, keys_tensor
from recdistill.data.transforms.rows import Rows, rows_module


@dataclass(frozen=True)
class Single:
    """A fitted single-valued column."""

    name: str
    source: str
    dtype: pl.DataType
    rows: Rows
    table: str
    kind: Literal["id"] = "id"

    def polars(self) -> pl.Expr:
        """Embedding rows, Int32."""
        return self.rows.polars(keys(pl.col(self.source), self.dtype, self.name)).alias(self.name)

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (B,), from raw inputs."""
        text = keyed_by_text(self.dtype)
        module = rows_module(self.rows, text=text)
        return TextSingle(self.source, module) if text else NumberSingle(self.source, module)


def keyed_by_text(dtype: pl.DataType) -> bool:
    """Whether keys of this raw type are texts."""
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


class NumberSingle(nn.Module):
    """Rows of an integer or float column."""

    def __init__(self, source: str, rows: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.rows = rows

    def forward(self, numbers: dict[str, Tensor], texts: dict[str, list[str]], batch: int) -> Tensor:  # noqa: ARG002
        """Embedding rows, int64 (B,)."""
        if self.source not in numbers:
            return torch.zeros(batch, dtype=torch.int64)
        row_B: Tensor = self.rows(keys_tensor(numbers[self.source]))
        return row_B


class TextSingle(nn.Module):
    """Rows of a text column."""

    def __init__(self, source: str, rows: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.rows = rows

    def forward(self, numbers: dict[str, Tensor], texts: dict[str, list[str]], batch: int) -> Tensor:  # noqa: ARG002
        """Embedding rows, int64 (B,)."""
        if self.source not in texts:
            return torch.zeros(batch, dtype=torch.int64)
        row_B: Tensor = self.rows(texts[self.source])
        return row_B
