"""Columns of type ``list``: an unordered bag of values per row, pooled into one vector.

Missing elements are left out. An empty or missing list becomes one element, the missing row, so that no bag is empty
and the mean of a bag is always defined. Elements may carry weights, from a second list of the same length;
a weight that is missing or negative counts as 0, and the one of the missing row is 1.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recdistill.data.transforms.column import Fitted, Kind, Learned
from recdistill.data.transforms.elements import (
    Integers,
    element_type,
    elements,
    elements_module,
    flat,
    kept,
    lists,
    rows_of,
    same_lengths,
)
from recdistill.data.transforms.raw import numbers, numbers_tensor
from recdistill.data.transforms.rows import MISSING, Rows
from recdistill.spec import columns as declared


def types(name: str, column: declared.Bag, schema: pl.Schema, source: str) -> dict[str, pl.DataType]:
    """The raw columns and the types of their elements.

    Raises:
        LogError: a raw column holds no lists, or lists where texts are to be cut.
    """
    found = {source: element_type(name, schema[source], column.separator)}
    if column.weights is not None:
        found[column.weights] = element_type(f"{name}.weights", schema[column.weights], None)
    return found


def fit(name: str, column: declared.Bag, learned: Learned) -> "Bag":
    """The fitted column."""
    table = learned.spec.table(name)
    (source, dtype), *others = learned.types[name].items()
    weights, weight_type = others[0] if others else (None, None)
    rows = learned.rows[table]
    return Bag(name, source, dtype, rows, table, column.separator, column.max_length, weights, weight_type)


@dataclass(frozen=True)
class Bag(Fitted):
    """A fitted list column; ``dtype`` is that of its elements, ``separator`` cuts raw texts into elements."""

    name: str
    source: str
    dtype: pl.DataType
    rows: Rows
    table: str
    separator: str | None
    max_length: int | None
    weights: str | None = None
    weight_dtype: pl.DataType | None = None
    kind: ClassVar[Kind] = "bag"

    @property
    def raw(self) -> dict[str, pl.DataType]:
        """The raw list and that of its weights."""
        found = {self.source: self.dtype}
        if self.weights is not None and self.weight_dtype is not None:
            found[self.weights] = self.weight_dtype
        return found

    @property
    def lists(self) -> frozenset[str]:
        """All but texts that are cut."""
        return frozenset(self.raw) - ({self.source} if self.separator is not None else set())

    @property
    def tables(self) -> dict[str, int]:
        """Its table, maybe one that other columns use as well."""
        return {self.table: self.rows.count}

    @property
    def unknown(self) -> str:
        """By vocabulary or by hash."""
        return self.rows.unknown

    def polars(self) -> list[pl.Expr]:
        """Embedding rows, List(Int32), and their weights, List(Float32)."""
        values = elements(pl.col(self.source), self.separator)
        rows = values.map_batches(self._rows, return_dtype=pl.List(pl.Int32), is_elementwise=True).alias(self.name)
        if self.weights is None:
            return [rows]
        pairs = pl.struct(values.alias("values"), pl.col(self.weights).alias("weights"))
        weights = pairs.map_batches(self._weights, return_dtype=pl.List(pl.Float32), is_elementwise=True)
        return [rows, weights.alias(f"{self.name}/weights")]

    def _rows(self, values: pl.Series) -> pl.Series:
        row_L, length_B = rows_of(values, self.rows, self.dtype, self.name)
        place_K, kept_B = kept(row_L, length_B, self.max_length)
        return lists(*_never_empty(row_L[place_K], kept_B, MISSING))

    def _weights(self, pairs: pl.Series) -> pl.Series:
        row_L, length_B = rows_of(pairs.struct.field("values"), self.rows, self.dtype, self.name)
        place_K, kept_B = kept(row_L, length_B, self.max_length)
        assert self.weight_dtype is not None
        weight = numbers(pl.col("weight"), self.weight_dtype, f"{self.name}.weights").fill_null(0.0).clip(0.0)
        given = pl.DataFrame({"weight": flat(pairs.struct.field("weights"))}).select(weight.cast(pl.Float32))
        return lists(*_never_empty(given.to_series().to_numpy()[place_K], kept_B, 1))

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and weights, float32 (L,) or empty, from raw inputs."""
        longest = -1 if self.max_length is None else self.max_length
        values = elements_module(self.source, self.dtype, self.rows, self.separator)
        return BagModule(values, self.weights or "", longest)


def _never_empty(value_K: NDArray[Any], kept_B: Integers, missing: int) -> tuple[Integers, NDArray[Any]]:
    """The lengths and values of the lists, with the *missing* value put into each empty one."""
    empty_B = np.flatnonzero(kept_B == 0)
    filled_L = np.insert(value_K, (np.cumsum(kept_B) - kept_B)[empty_B], missing) if len(empty_B) else value_K
    return np.maximum(kept_B, 1), filled_L


def weights_of(name: str, numbers: dict[str, Tensor], lengths: dict[str, Tensor], lengths_B: Tensor) -> Tensor:
    """The weights of all elements, float32 (L,); empty if the column has none or the caller gives none."""
    if name == "" or name not in numbers:
        return torch.zeros(0)
    if not same_lengths(name, lengths, lengths_B):
        raise ValueError("column " + name + " holds lists of weights of other lengths than the lists of values")
    return torch.clamp(torch.nan_to_num(numbers_tensor(numbers[name])), min=0.0).to(torch.float32)


def tidy(
    rows_L: Tensor, lengths_B: Tensor, weight_L: Tensor, longest: int, weighted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Bags without missing elements, cut to their last ``longest`` ones, with one missing row where nothing is left."""
    batch = lengths_B.numel()
    if weighted and weight_L.numel() == 0:
        weight_L = torch.zeros(rows_L.numel())
    bag_L = torch.repeat_interleave(torch.arange(batch), lengths_B)
    kept_L = rows_L != 0
    rows_L, bag_L = rows_L[kept_L], bag_L[kept_L]
    weight_L = weight_L[kept_L] if weighted else weight_L
    kept_B = torch.bincount(bag_L, minlength=batch)
    if longest >= 0:
        end_B = torch.cumsum(kept_B, 0)
        near_end_L = torch.arange(rows_L.numel()) >= (end_B - longest)[bag_L]
        rows_L, bag_L = rows_L[near_end_L], bag_L[near_end_L]
        weight_L = weight_L[near_end_L] if weighted else weight_L
        kept_B = torch.clamp(kept_B, max=longest)
    empty_B = torch.nonzero(kept_B == 0).flatten()
    rows_L = torch.cat([rows_L, torch.zeros(empty_B.numel(), dtype=torch.int64)])
    order_L = torch.argsort(torch.cat([bag_L, empty_B]), stable=True)
    if weighted:
        weight_L = torch.cat([weight_L, torch.ones(empty_B.numel())])[order_L]
    return rows_L[order_L], torch.clamp(kept_B, min=1), weight_L


class BagModule(nn.Module):
    """`Bag` inside the artefact."""

    def __init__(self, elements: nn.Module, weights: str, longest: int) -> None:
        super().__init__()
        self.elements = elements
        self.weights = weights
        self.longest = longest

    def forward(
        self, numbers: dict[str, Tensor], texts: dict[str, list[str]], lengths: dict[str, Tensor], batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and weights, float32 (L,) or empty."""
        rows_L, lengths_B = self.elements(numbers, texts, lengths, batch)
        weight_L = weights_of(self.weights, numbers, lengths, lengths_B)
        return tidy(rows_L, lengths_B, weight_L, self.longest, self.weights != "")
