"""From a key to a row of an embedding table: by vocabulary or by hash.

Row 0 stands for *missing*, row 1 for *unknown* (unseen, or too rare in the training rows); values follow from row 2. A
hashed table has no unknown value, but keeps the row so that every table is laid out alike.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.hashing import bucket_of, hash_texts_tensor, key_hash, splitmix64_tensor
from recdistill.data.transforms.raw import MISSING_INT

MISSING, UNKNOWN, FIRST = 0, 1, 2


@dataclass(frozen=True)
class VocabularyRows:
    """Known values in the order of their rows, most frequent first; Int64 or String; and how often each occurred."""

    values: pl.Series
    counts: pl.Series
    unknown: ClassVar[str] = "the row for unknown values"

    @property
    def count(self) -> int:
        """Rows of the table, the reserved ones included."""
        return FIRST + len(self.values)

    def followed_by(self, later: "VocabularyRows") -> "VocabularyRows":
        """These values in their rows, then the new ones of a later log; counts add up."""
        places = pl.Series(range(len(self.values)), dtype=pl.Int64)
        known = later.values.replace_strict(self.values, places, default=None, return_dtype=pl.Int64)
        counts = self.counts.to_numpy().copy()
        counts[known.drop_nulls().to_numpy()] += later.counts.filter(known.is_not_null()).to_numpy()
        values = pl.concat([self.values, later.values.filter(known.is_null()).cast(self.values.dtype)])
        return VocabularyRows(
            values, pl.concat([pl.Series(counts), later.counts.filter(known.is_null()).cast(pl.UInt32)])
        )

    def polars(self, key: pl.Expr) -> pl.Expr:
        """The row of each key; null is missing."""
        rows = pl.Series(range(FIRST, self.count), dtype=pl.Int32)
        known = key.replace_strict(self.values, rows, default=UNKNOWN, return_dtype=pl.Int32)
        return pl.when(key.is_null()).then(MISSING).otherwise(known).cast(pl.Int32)

    def torch(self) -> nn.Module:
        """The same inside the artefact: a module from an int64 tensor, or from a list of texts, to rows."""
        if self.values.dtype == pl.String:
            return TextVocabulary({value: FIRST + i for i, value in enumerate(self.values)})
        keys = self.values.to_numpy()
        order = np.argsort(keys, kind="stable")
        return IntegerVocabulary(torch.from_numpy(keys[order].copy()), torch.from_numpy(order + FIRST))


@dataclass(frozen=True)
class HashedRows:
    """``buckets`` rows that all values share by their hash."""

    buckets: int
    unknown: ClassVar[str] = "hashed like any other"

    @property
    def count(self) -> int:
        """Rows of the table, the reserved ones included."""
        return FIRST + self.buckets

    def polars(self, key: pl.Expr) -> pl.Expr:
        """The row of each key; null is missing."""

        def rows(keys: pl.Series) -> pl.Series:
            return pl.Series(FIRST + bucket_of(key_hash(keys), self.buckets), dtype=pl.Int64)

        hashed = key.map_batches(rows, return_dtype=pl.Int64, is_elementwise=True)
        return pl.when(key.is_null()).then(MISSING).otherwise(hashed).cast(pl.Int32)

    def torch(self, *, text: bool) -> nn.Module:
        """The same inside the artefact."""
        return TextHash(self.buckets) if text else IntegerHash(self.buckets)


Rows = VocabularyRows | HashedRows


def rows_module(rows: Rows, *, text: bool) -> nn.Module:
    """The artefact's module for rows of either kind."""
    return rows.torch() if isinstance(rows, VocabularyRows) else rows.torch(text=text)


class IntegerVocabulary(nn.Module):
    """Rows of integer keys, found by binary search."""

    keys: Tensor
    rows: Tensor

    def __init__(self, keys_V: Tensor, rows_V: Tensor) -> None:
        super().__init__()
        if not len(keys_V):  # a column without a single frequent value: everything is unknown
            keys_V, rows_V = torch.tensor([MISSING_INT]), torch.tensor([MISSING])
        self.register_buffer("keys", keys_V)
        self.register_buffer("rows", rows_V)

    def forward(self, keys_N: Tensor) -> Tensor:
        """Rows, int64, of int64 keys."""
        place = torch.searchsorted(self.keys, keys_N).clamp(max=self.keys.numel() - 1)
        row = torch.where(self.keys[place] == keys_N, self.rows[place], torch.ones_like(place))
        return torch.where(keys_N == -9223372036854775807 - 1, torch.zeros_like(row), row)


class TextVocabulary(nn.Module):
    """Rows of texts, found in a dictionary."""

    def __init__(self, index: dict[str, int]) -> None:
        super().__init__()
        self.index: dict[str, int] = {"": MISSING, **index}

    def forward(self, texts: list[str]) -> Tensor:
        """Rows, int64, of texts."""
        rows: list[int] = []
        for text in texts:
            rows.append(self.index.get(text, 1))
        return torch.tensor(rows, dtype=torch.int64)


class IntegerHash(nn.Module):
    """Rows of integer keys by hash."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.buckets = buckets

    def forward(self, keys_N: Tensor) -> Tensor:
        """Rows, int64, of int64 keys."""
        row = 2 + (splitmix64_tensor(keys_N) & 0x7FFFFFFFFFFFFFFF) % self.buckets
        return torch.where(keys_N == -9223372036854775807 - 1, torch.zeros_like(row), row)


class TextHash(nn.Module):
    """Rows of texts by hash."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.buckets = buckets

    def forward(self, texts: list[str]) -> Tensor:
        """Rows, int64, of texts."""
        missing: list[bool] = []
        for text in texts:
            missing.append(len(text) == 0)
        row = 2 + (hash_texts_tensor(texts) & 0x7FFFFFFFFFFFFFFF) % self.buckets
        return torch.where(torch.tensor(missing, dtype=torch.bool), torch.zeros_like(row), row)
