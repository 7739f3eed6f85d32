"""Columns of type ``numeric`` with ``buckets``: quantile cuts of the training values, one embedding row per bucket.

Cuts are made on raw values, so that pipeline and artefact compare the same numbers and agree exactly.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.raw import numbers, numbers_tensor
from recdistill.data.transforms.rows import FIRST, MISSING


@dataclass(frozen=True)
class Buckets:
    """A fitted bucketed column; a value equal to a cut falls into the bucket above it."""

    name: str
    source: str
    dtype: pl.DataType
    cuts: tuple[float, ...]
    table: str
    kind: Literal["id"] = "id"

    @property
    def count(self) -> int:
        """Rows of the table, the reserved ones included."""
        return FIRST + len(self.cuts) + 1

    def polars(self) -> pl.Expr:
        """Embedding rows, Int32."""
        cuts = np.array(self.cuts)

        def rows(values: pl.Series) -> pl.Series:
            return pl.Series(
                FIRST + np.searchsorted(cuts, values.fill_null(0.0).to_numpy(), side="right"), dtype=pl.Int64
            )

        number = numbers(pl.col(self.source), self.dtype, self.name)
        bucket = number.map_batches(rows, return_dtype=pl.Int64, is_elementwise=True)
        return pl.when(number.is_null()).then(MISSING).otherwise(bucket).cast(pl.Int32).alias(self.name)

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (B,), from raw inputs."""
        return BucketModule(self.source, torch.tensor(self.cuts, dtype=torch.float64))


class BucketModule(nn.Module):
    """`Buckets` inside the artefact."""

    cuts: Tensor

    def __init__(self, source: str, cuts_K: Tensor) -> None:
        super().__init__()
        self.source = source
        self.register_buffer("cuts", cuts_K)

    def forward(self, numbers: dict[str, Tensor], texts: dict[str, list[str]], batch: int) -> Tensor:  # noqa: ARG002
        """Embedding rows, int64 (B,)."""
        if self.source not in numbers:
            return torch.zeros(batch, dtype=torch.int64)
        number = numbers_tensor(numbers[self.source])
        row = 2 + torch.searchsorted(self.cuts, torch.nan_to_num(number), right=True)
        return torch.where(torch.isnan(number), torch.zeros_like(row), row)
