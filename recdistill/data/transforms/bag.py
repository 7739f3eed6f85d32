"""Columns of type ``list``: an unordered bag of values per row, pooled into one vector.

Missing elements are left out. An empty or missing list becomes one element, the missing row, so that no bag is empty
and the mean of a bag is always defined. Elements may carry weights, from a second list of the same length;
a weight that is missing or negative counts as 0, and the one of the missing row is 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.column import Fitted, Kind, Learned
from recdistill.data.transforms.raw import keyed_by_text, keys, keys_tensor, numbers, numbers_tensor
from recdistill.data.transforms.rows import MISSING, Rows, rows_module
from recdistill.errors import LogError
from recdistill.spec import columns as declared


def types(name: str, column: declared.Bag, schema: pl.Schema, source: str) -> dict[str, pl.DataType]:
    """The raw columns and the types of their elements.

    Raises:
        LogError: a raw column holds no lists, or lists where texts are to be cut.
    """
    if column.separator is None:
        found = {source: inner(name, schema[source])}
    elif keyed_by_text(schema[source]):
        found = {source: schema[source]}
    else:
        raise LogError(
            f"{name}: `separator` cuts texts, found {schema[source]}; remove it, or cast the column in the log"
        )
    if column.weights is not None:
        found[column.weights] = inner(f"{name}.weights", schema[column.weights])
    return found


def inner(place: str, dtype: pl.DataType) -> pl.DataType:
    """The type of the elements of a list column.

    Raises:
        LogError: it holds no lists.
    """
    if not isinstance(dtype, pl.List):
        raise LogError(f"{place}: expected a list, found {dtype}; give `separator` if the lists are written as texts")
    return dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()


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
        row = self.rows.polars(keys(pl.element(), self.dtype, self.name))
        bags = elements(pl.col(self.source), self.separator).list.eval(row)
        if self.weights is None or self.weight_dtype is None:
            return [self._tidy(bags.list.filter(pl.element() != MISSING), pl.Int32, MISSING).alias(self.name)]
        known = bags.list.eval((pl.element() != MISSING).arg_true())
        weight = numbers(pl.element(), self.weight_dtype, f"{self.name}.weights").fill_null(0.0).clip(0.0)
        weights = pl.col(self.weights).list.eval(weight.cast(pl.Float32))
        return [
            self._tidy(bags.list.gather(known), pl.Int32, MISSING).alias(self.name),
            self._tidy(weights.list.gather(known), pl.Float32, 1).alias(f"{self.name}/weights"),
        ]

    def _tidy(self, kept: pl.Expr, dtype: type[pl.DataType], missing: int) -> pl.Expr:
        """The last elements of each list; one that stands for *missing* where there are none."""
        if self.max_length is not None:
            kept = kept.list.tail(self.max_length)
        empty = pl.lit(pl.Series([[missing]], dtype=pl.List(dtype))).first()
        return pl.when(kept.list.len() > 0).then(kept).otherwise(empty)

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and weights, float32 (L,) or empty, from raw inputs."""
        text = keyed_by_text(self.dtype)
        module = rows_module(self.rows, text=text)
        longest = -1 if self.max_length is None else self.max_length
        weights = self.weights or ""
        if self.separator is not None:
            return SplitText(self.source, module, self.separator, longest, weights)
        kind = TextBag if text else NumberBag
        return kind(self.source, module, longest, weights)


def elements(column: pl.Expr, separator: str | None) -> pl.Expr:
    """The raw elements of each row as a list."""
    return column if separator is None else column.cast(pl.String).str.split(separator)


def weights_of(name: str, numbers: dict[str, Tensor], elements: int) -> Tensor:
    """The weights of all elements, float32 (L,); empty if the column has none or the caller gives none."""
    if name == "" or name not in numbers:
        return torch.zeros(0)
    weight_L = torch.clamp(torch.nan_to_num(numbers_tensor(numbers[name])), min=0.0).to(torch.float32)
    if weight_L.numel() != elements:
        raise ValueError("column " + name + " holds another number of weights than there are elements")
    return weight_L


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


def missing_bags(batch: int, weighted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One missing row per bag."""
    ones = torch.ones(batch) if weighted else torch.zeros(0)
    return torch.zeros(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.int64), ones


class NumberBag(nn.Module):
    """Bags of integers or floats."""

    def __init__(self, source: str, rows: nn.Module, longest: int, weights: str) -> None:
        super().__init__()
        self.source = source
        self.rows = rows
        self.longest = longest
        self.weights = weights

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],  # noqa: ARG002
        lengths: dict[str, Tensor],
        batch: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and weights, float32 (L,) or empty."""
        if self.source not in numbers:
            return missing_bags(batch, self.weights != "")
        rows_L = self.rows(keys_tensor(numbers[self.source]))
        weight_L = weights_of(self.weights, numbers, rows_L.numel())
        return tidy(rows_L, lengths[self.source], weight_L, self.longest, self.weights != "")


class TextBag(nn.Module):
    """Bags of texts."""

    def __init__(self, source: str, rows: nn.Module, longest: int, weights: str) -> None:
        super().__init__()
        self.source = source
        self.rows = rows
        self.longest = longest
        self.weights = weights

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],
        batch: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and weights, float32 (L,) or empty."""
        if self.source not in texts:
            return missing_bags(batch, self.weights != "")
        rows_L = self.rows(texts[self.source])
        weight_L = weights_of(self.weights, numbers, rows_L.numel())
        return tidy(rows_L, lengths[self.source], weight_L, self.longest, self.weights != "")


class SplitText(nn.Module):
    """Bags written as one text per row with separators."""

    def __init__(self, source: str, rows: nn.Module, separator: str, longest: int, weights: str) -> None:
        super().__init__()
        self.source = source
        self.rows = rows
        self.separator = separator
        self.longest = longest
        self.weights = weights

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],  # noqa: ARG002
        batch: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and weights, float32 (L,) or empty."""
        if self.source not in texts:
            return missing_bags(batch, self.weights != "")
        parts: list[str] = []
        counts: list[int] = []
        for text in texts[self.source]:
            found = text.split(self.separator)
            parts.extend(found)
            counts.append(len(found))
        rows_L = self.rows(parts)
        weight_L = weights_of(self.weights, numbers, rows_L.numel())
        return tidy(rows_L, torch.tensor(counts, dtype=torch.int64), weight_L, self.longest, self.weights != "")
