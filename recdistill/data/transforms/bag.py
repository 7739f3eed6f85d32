"""Columns of type ``list``: an unordered bag of values per row, pooled into one vector.

Missing elements are left out. An empty or missing list becomes one element, the missing row, so that no bag is empty
and the mean of a bag is always defined.
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.raw import keys, keys_tensor
from recdistill.data.transforms.rows import MISSING, Rows, rows_module
from recdistill.data.transforms.single import keyed_by_text


@dataclass(frozen=True)
class Bag:
    """A fitted list column; ``dtype`` is that of its elements, ``separator`` cuts raw texts into elements."""

    name: str
    source: str
    dtype: pl.DataType
    rows: Rows
    table: str
    separator: str | None
    max_length: int | None
    kind: Literal["bag"] = "bag"

    def polars(self) -> pl.Expr:
        """Embedding rows, List(Int32)."""
        row = self.rows.polars(keys(pl.element(), self.dtype, self.name))
        bags = elements(pl.col(self.source), self.separator).list.eval(row)
        kept = bags.list.filter(pl.element() != MISSING)
        if self.max_length is not None:
            kept = kept.list.tail(self.max_length)
        empty = pl.lit(pl.Series([[MISSING]], dtype=pl.List(pl.Int32))).first()
        return pl.when(kept.list.len() > 0).then(kept).otherwise(empty).alias(self.name)

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (L,), and lengths, int64 (B,), from raw inputs."""
        text = keyed_by_text(self.dtype)
        module = rows_module(self.rows, text=text)
        longest = -1 if self.max_length is None else self.max_length
        if self.separator is not None:
            return SplitText(self.source, module, self.separator, longest)
        return TextBag(self.source, module, longest) if text else NumberBag(self.source, module, longest)


def elements(column: pl.Expr, separator: str | None) -> pl.Expr:
    """The raw elements of each row as a list."""
    return column if separator is None else column.cast(pl.String).str.split(separator)


def tidy(rows_L: Tensor, lengths_B: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Bags without missing elements, cut to their last ``longest`` ones, with one missing row where nothing is left."""
    batch = lengths_B.numel()
    bag_L = torch.repeat_interleave(torch.arange(batch), lengths_B)
    kept_L = rows_L != 0
    rows_L, bag_L = rows_L[kept_L], bag_L[kept_L]
    kept_B = torch.bincount(bag_L, minlength=batch)
    if longest >= 0:
        end_B = torch.cumsum(kept_B, 0)
        near_end_L = torch.arange(rows_L.numel()) >= (end_B - longest)[bag_L]
        rows_L, bag_L = rows_L[near_end_L], bag_L[near_end_L]
        kept_B = torch.clamp(kept_B, max=longest)
    empty_B = torch.nonzero(kept_B == 0).flatten()
    rows_L = torch.cat([rows_L, torch.zeros(empty_B.numel(), dtype=torch.int64)])
    order_L = torch.argsort(torch.cat([bag_L, empty_B]), stable=True)
    return rows_L[order_L], torch.clamp(kept_B, min=1)


class NumberBag(nn.Module):
    """Bags of integers or floats."""

    def __init__(self, source: str, rows: nn.Module, longest: int) -> None:
        super().__init__()
        self.source = source
        self.rows = rows
        self.longest = longest

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],  # noqa: ARG002
        lengths: dict[str, Tensor],
        batch: int,
    ) -> tuple[Tensor, Tensor]:
        """Embedding rows, int64 (L,), and lengths, int64 (B,)."""
        if self.source not in numbers:
            return torch.zeros(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.int64)
        return tidy(self.rows(keys_tensor(numbers[self.source])), lengths[self.source], self.longest)


class TextBag(nn.Module):
    """Bags of texts."""

    def __init__(self, source: str, rows: nn.Module, longest: int) -> None:
        super().__init__()
        self.source = source
        self.rows = rows
        self.longest = longest

    def forward(
        self,
        numbers: dict[str, Tensor],  # noqa: ARG002
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],
        batch: int,
    ) -> tuple[Tensor, Tensor]:
        """Embedding rows, int64 (L,), and lengths, int64 (B,)."""
        if self.source not in texts:
            return torch.zeros(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.int64)
        return tidy(self.rows(texts[self.source]), lengths[self.source], self.longest)


class SplitText(nn.Module):
    """Bags written as one text per row with separators."""

    def __init__(self, source: str, rows: nn.Module, separator: str, longest: int) -> None:
        super().__init__()
        self.source = source
        self.rows = rows
        self.separator = separator
        self.longest = longest

    def forward(
        self,
        numbers: dict[str, Tensor],  # noqa: ARG002
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],  # noqa: ARG002
        batch: int,
    ) -> tuple[Tensor, Tensor]:
        """Embedding rows, int64 (L,), and lengths, int64 (B,)."""
        if self.source not in texts:
            return torch.zeros(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.int64)
        parts: list[str] = []
        counts: list[int] = []
        for text in texts[self.source]:
            found = text.split(self.separator)
            parts.extend(found)
            counts.append(len(found))
        return tidy(self.rows(parts), torch.tensor(counts, dtype=torch.int64), self.longest)
