"""Columns of type ``numeric`` with ``buckets``, quantile cuts of the training values, or ``edges``, cuts as declared.

There is one embedding row per bucket. Cuts are made on raw values, so that pipeline and artefact compare the same
numbers and agree exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.column import Kind, Learned, OfOneColumn
from recdistill.data.transforms.raw import numbers, numbers_tensor
from recdistill.data.transforms.rows import FIRST, MISSING


def summaries(name: str, number: pl.Expr, buckets: int) -> Iterator[pl.Expr]:
    """The aggregates of raw values that `fit` needs."""
    yield number.min().alias(f"{name}/min")
    yield number.quantile([k / buckets for k in range(1, buckets)], "lower").alias(f"{name}/cuts")


def fit(name: str, learned: Learned) -> "Buckets":
    """The fitted column; values that are frequent enough to be several quantiles make fewer buckets."""
    found = learned.statistics
    # nothing in the training rows lies below the lowest value, so a bucket there would never be trained
    cuts = {*(found[f"{name}/cuts"] or [])} - {None, found[f"{name}/min"]}
    return Buckets(name, *learned.only(name), tuple(sorted(c for c in cuts if c is not None)), table=name)


def cut_at(name: str, edges: list[float], learned: Learned) -> "Buckets":
    """The fitted column, cut where it was declared; nothing is learned."""
    return Buckets(name, *learned.only(name), tuple(edges), table=name)


@dataclass(frozen=True)
class Buckets(OfOneColumn):
    """A fitted bucketed column; a value equal to a cut falls into the bucket above it."""

    name: str
    source: str
    dtype: pl.DataType
    cuts: tuple[float, ...]
    table: str
    kind: ClassVar[Kind] = "id"

    @property
    def tables(self) -> dict[str, int]:
        """A table of its own."""
        return {self.table: self.count}

    @property
    def meaning(self) -> tuple[object, ...]:
        """The cuts."""
        return self.cuts

    @property
    def unknown(self) -> str:
        """Every number has a bucket."""
        return "the nearest bucket"

    @property
    def count(self) -> int:
        """Rows of the table, the reserved ones included."""
        return FIRST + len(self.cuts) + 1

    def polars(self) -> list[pl.Expr]:
        """Embedding rows, Int32."""
        cuts = np.array(self.cuts)

        def rows(values: pl.Series) -> pl.Series:
            return pl.Series(
                FIRST + np.searchsorted(cuts, values.fill_null(0.0).to_numpy(), side="right"), dtype=pl.Int64
            )

        number = numbers(pl.col(self.source), self.dtype, self.name)
        bucket = number.map_batches(rows, return_dtype=pl.Int64, is_elementwise=True)
        return [pl.when(number.is_null()).then(MISSING).otherwise(bucket).cast(pl.Int32).alias(self.name)]

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

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],  # noqa: ARG002
        lengths: dict[str, Tensor],  # noqa: ARG002
        batch: int,
    ) -> Tensor:
        """Embedding rows, int64 (B,)."""
        if self.source not in numbers:
            return torch.zeros(batch, dtype=torch.int64)
        number = numbers_tensor(numbers[self.source])
        row = 2 + torch.searchsorted(self.cuts, torch.nan_to_num(number), right=True)
        return torch.where(torch.isnan(number), torch.zeros_like(row), row)
