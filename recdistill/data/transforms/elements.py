"""The elements of list columns: parquet lists, or texts that a separator cuts; one after the other, with lengths."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recdistill.data.transforms.raw import keyed_by_text, keys, keys_tensor
from recdistill.data.transforms.rows import MISSING, Rows, rows_module
from recdistill.errors import LogError

Integers = NDArray[np.int64]
Rows32 = NDArray[np.int32]


def element_type(place: str, dtype: pl.DataType, separator: str | None) -> pl.DataType:
    """The type of the elements of a raw column.

    Raises:
        LogError: it holds no lists, or something else than texts where a separator is to cut them.
    """
    if separator is not None:
        if keyed_by_text(dtype):
            return dtype
        raise LogError(f"{place}: `separator` cuts texts, found {dtype}; remove it, or cast the column in the log")
    if not isinstance(dtype, pl.List):
        raise LogError(f"{place}: expected a list, found {dtype}; give `separator` if the lists are written as texts")
    return dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()


def elements(column: pl.Expr, separator: str | None) -> pl.Expr:
    """The raw elements of each row as a list; an empty text has none."""
    if separator is None:
        return column
    text = column.cast(pl.String)
    return pl.when(text != "").then(text.str.split(separator))


def unequal(source: str, separator: str | None, beside: str) -> pl.Expr:
    """Whether a row holds another number of values than the list beside them."""
    values = elements(pl.col(source), separator)
    return values.list.len().fill_null(0) != pl.col(beside).list.len().fill_null(0)


def flat(column: pl.Series) -> pl.Series:
    """The elements of all lists, one after the other."""
    return column.explode(empty_as_null=False, keep_nulls=False)


def lists(length_B: NDArray[Any], value_L: NDArray[Any]) -> pl.Series:
    """Elements of all rows one after the other, as a list per row."""
    offsets = np.concatenate([[0], np.cumsum(length_B)]).astype(np.int64)
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(value_L)))
    assert isinstance(series, pl.Series)
    return series


def rows_of(column: pl.Series, rows: Rows, dtype: pl.DataType, name: str) -> tuple[Rows32, Integers]:
    """The embedding rows of all elements, int32 (L,), and the lengths of the lists, int64 (B,)."""
    keyed = pl.DataFrame({"key": flat(column)}).select(rows.polars(keys(pl.col("key"), dtype, name)))
    return keyed.to_series().to_numpy(), column.list.len().fill_null(0).cast(pl.Int64).to_numpy()


def kept(row_L: Rows32, length_B: Integers, longest: int | None, *, last: bool = True) -> tuple[Integers, Integers]:
    """The places of the elements that stay, (K,): not missing, and not cut off; and the new lengths, (B,)."""
    list_L = np.repeat(np.arange(len(length_B)), length_B)
    place_K = np.flatnonzero(row_L != MISSING)
    list_K = list_L[place_K]
    found_B = np.bincount(list_K, minlength=len(length_B))
    if longest is None or not len(found_B) or found_B.max() <= longest:
        return place_K, found_B
    within_K = np.arange(len(place_K)) - (np.cumsum(found_B) - found_B)[list_K]
    stays_K = within_K >= (found_B - longest)[list_K] if last else within_K < longest
    return place_K[stays_K], np.minimum(found_B, longest)


def elements_module(source: str, dtype: pl.DataType, rows: Rows, separator: str | None) -> nn.Module:
    """The same inside the artefact: a module to embedding rows, int64 (L,), and lengths, int64 (B,)."""
    text = keyed_by_text(dtype)
    module = rows_module(rows, text=text)
    if separator is not None:
        return SplitElements(source, module, separator)
    return TextElements(source, module) if text else NumberElements(source, module)


def same_lengths(name: str, lengths: dict[str, Tensor], lengths_B: Tensor) -> bool:
    """Whether the lists beside the values are given, and as long as those."""
    return name in lengths and torch.equal(lengths[name], lengths_B)


def no_elements(batch: int) -> tuple[Tensor, Tensor]:
    """Empty lists, for a column that the caller left out."""
    return torch.zeros(0, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64)


class NumberElements(nn.Module):
    """Lists of integers or floats."""

    def __init__(self, source: str, rows: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.rows = rows

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],  # noqa: ARG002
        lengths: dict[str, Tensor],
        batch: int,
    ) -> tuple[Tensor, Tensor]:
        """Embedding rows, int64 (L,), and lengths, int64 (B,)."""
        if self.source not in numbers:
            return no_elements(batch)
        return self.rows(keys_tensor(numbers[self.source])), lengths[self.source]


class TextElements(nn.Module):
    """Lists of texts."""

    def __init__(self, source: str, rows: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.rows = rows

    def forward(
        self,
        numbers: dict[str, Tensor],  # noqa: ARG002
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],
        batch: int,
    ) -> tuple[Tensor, Tensor]:
        """Embedding rows, int64 (L,), and lengths, int64 (B,)."""
        if self.source not in texts:
            return no_elements(batch)
        return self.rows(texts[self.source]), lengths[self.source]


class SplitElements(nn.Module):
    """Lists written as one text per row with separators."""

    def __init__(self, source: str, rows: nn.Module, separator: str) -> None:
        super().__init__()
        self.source = source
        self.rows = rows
        self.separator = separator

    def forward(
        self,
        numbers: dict[str, Tensor],  # noqa: ARG002
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],  # noqa: ARG002
        batch: int,
    ) -> tuple[Tensor, Tensor]:
        """Embedding rows, int64 (L,), and lengths, int64 (B,)."""
        if self.source not in texts:
            return no_elements(batch)
        parts: list[str] = []
        counts: list[int] = []
        for text in texts[self.source]:
            found = text.split(self.separator)
            if len(text) == 0:
                found.clear()
            parts.extend(found)
            counts.append(len(found))
        return self.rows(parts), torch.tensor(counts, dtype=torch.int64)
