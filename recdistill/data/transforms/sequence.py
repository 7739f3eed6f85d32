"""Columns of type ``sequence``: an ordered list of values per row, oldest first, and the time gaps to them.

Missing values are left out; an empty or missing list stays empty. The gap between the row's time and a value's is
encoded by its number of bits (0, 1, 2-3, 4-7, ...), which suits the unit of any clock; a gap into the future counts as
0.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import torch
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
from recdistill.data.transforms.raw import MISSING_INT
from recdistill.data.transforms.rows import FIRST, MISSING, Rows
from recdistill.errors import LogError
from recdistill.spec import columns as declared

POWERS = 2 ** np.arange(63, dtype=np.int64)
GAP_ROWS = FIRST + len(POWERS) + 1


def types(name: str, column: declared.Sequence, schema: pl.Schema, sources: list[str]) -> dict[str, pl.DataType]:
    """The raw columns and their types; of lists, those of their elements.

    Raises:
        LogError: a raw column holds no lists, or times are no integers.
    """
    found = {sources[0]: element_type(name, schema[sources[0]], column.separator)}
    if column.times_of(name) is not None:
        found[sources[1]] = element_type(f"{name}.times", schema[sources[1]], None)
        found[sources[2]] = schema[sources[2]]
        for source in sources[1:]:
            if not found[source].is_integer():
                raise LogError(
                    f"{name}.times: gaps are differences of integers, but {source!r} holds {found[source]}; cast both "
                    "columns in the log to one unit, for example milliseconds"
                )
    return found


def fit(name: str, column: declared.Sequence, learned: Learned) -> "Sequence":
    """The fitted column."""
    table = learned.spec.table(name)
    (source, dtype), *others = learned.types[name].items()
    times, time = (others[0][0], others[1][0]) if others else (None, None)
    last = column.side == "last"
    rows = learned.rows[table]
    return Sequence(name, source, dtype, rows, table, column.separator, column.max_length, last, times, time)


@dataclass(frozen=True)
class Sequence(Fitted):
    """A fitted sequence; ``dtype`` is that of its elements, ``times`` and ``time`` are raw columns of integers."""

    name: str
    source: str
    dtype: pl.DataType
    rows: Rows
    table: str
    separator: str | None
    max_length: int
    last: bool
    times: str | None
    time: str | None
    kind: ClassVar[Kind] = "sequence"

    @property
    def raw(self) -> dict[str, pl.DataType]:
        """The raw list, the times of its values, and the row's."""
        found = {self.source: self.dtype}
        for column in (self.times, self.time):
            if column is not None:
                found[column] = pl.Int64()
        return found

    @property
    def lists(self) -> frozenset[str]:
        """The times, and the values unless they are cut from texts."""
        return frozenset(c for c in (None if self.separator else self.source, self.times) if c is not None)

    @property
    def tables(self) -> dict[str, int]:
        """Its table, maybe one that other columns use as well, and that of its gaps."""
        gaps = {} if self.times is None else {f"{self.name}/gaps": GAP_ROWS}
        return {self.table: self.rows.count} | gaps

    @property
    def unknown(self) -> str:
        """By vocabulary or by hash."""
        return self.rows.unknown

    def polars(self) -> list[pl.Expr]:
        """Embedding rows, List(Int32), and those of the gaps."""
        values = elements(pl.col(self.source), self.separator)
        encoded = pl.List(pl.Int32)
        rows = values.map_batches(self._rows, return_dtype=encoded, is_elementwise=True).alias(self.name)
        if self.times is None or self.time is None:
            return [rows]
        timed = pl.struct(values.alias("values"), pl.col(self.times).alias("then"), pl.col(self.time).alias("now"))
        gaps = timed.map_batches(self._gaps, return_dtype=encoded, is_elementwise=True)
        return [rows, gaps.alias(f"{self.name}/gaps")]

    def _rows(self, values: pl.Series) -> pl.Series:
        row_L, length_B = rows_of(values, self.rows, self.dtype, self.name)
        place_K, kept_B = kept(row_L, length_B, self.max_length, last=self.last)
        return lists(kept_B, row_L[place_K])

    def _gaps(self, timed: pl.Series) -> pl.Series:
        row_L, length_B = rows_of(timed.struct.field("values"), self.rows, self.dtype, self.name)
        place_K, kept_B = kept(row_L, length_B, self.max_length, last=self.last)
        now_K = _integers(timed.struct.field("now"))[np.repeat(np.arange(len(length_B)), length_B)[place_K]]
        then_K = _integers(flat(timed.struct.field("then")))[place_K]
        gap_K = np.maximum(-(then_K - now_K), 0)  # wraps around at the ends of int64, as in the artefact
        found_K = FIRST + np.searchsorted(POWERS, gap_K, side="right")
        missing_K = (then_K == MISSING_INT) | (now_K == MISSING_INT)
        return lists(kept_B, np.where(missing_K, MISSING, found_K).astype(np.int32))

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and rows of gaps, int64 (L,) or empty, from raw inputs."""
        values = elements_module(self.source, self.dtype, self.rows, self.separator)
        return SequenceModule(values, self.times or "", self.time or "", self.max_length, self.last)


def _integers(column: pl.Series) -> Integers:
    """Int64, its minimum where missing."""
    return column.cast(pl.Int64).fill_null(MISSING_INT).to_numpy()


class SequenceModule(nn.Module):
    """`Sequence` inside the artefact."""

    powers: Tensor

    def __init__(self, elements: nn.Module, times: str, time: str, longest: int, last: bool) -> None:
        super().__init__()
        self.elements = elements
        self.times, self.time = times, time
        self.longest, self.last = longest, last
        self.register_buffer("powers", torch.from_numpy(POWERS))

    def forward(
        self, numbers: dict[str, Tensor], texts: dict[str, list[str]], lengths: dict[str, Tensor], batch: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and rows of gaps, int64 (L,) or empty."""
        rows_L, lengths_B = self.elements(numbers, texts, lengths, batch)
        row_L = torch.repeat_interleave(torch.arange(batch), lengths_B)
        if self.times in numbers and not same_lengths(self.times, lengths, lengths_B):
            raise ValueError("column " + self.times + " holds another number of times than there are values")
        gaps_L = self.gaps(numbers, row_L)
        known_L = rows_L != 0
        rows_L, row_L = rows_L[known_L], row_L[known_L]
        gaps_L = gaps_L[known_L] if self.times != "" else gaps_L
        found_B = torch.bincount(row_L, minlength=batch)
        first_B = torch.cumsum(found_B, 0) - found_B
        place_L = torch.arange(rows_L.numel()) - first_B[row_L]
        kept_L = place_L >= (found_B - self.longest)[row_L] if self.last else place_L < self.longest
        gaps_L = gaps_L[kept_L] if self.times != "" else gaps_L
        return rows_L[kept_L], torch.clamp(found_B, max=self.longest), gaps_L

    def gaps(self, numbers: dict[str, Tensor], row_L: Tensor) -> Tensor:
        """The rows of all gaps, missing where a time is; empty if the column has none."""
        if self.times == "":
            return torch.zeros(0, dtype=torch.int64)
        if self.times not in numbers or self.time not in numbers:
            return torch.zeros(row_L.numel(), dtype=torch.int64)
        then_L = numbers[self.times].to(torch.int64)
        now_L = numbers[self.time].to(torch.int64)[row_L]
        gap_L = torch.clamp(-(then_L - now_L), min=0)
        found_L = 2 + torch.searchsorted(self.powers, gap_L, right=True)
        least = -9223372036854775807 - 1
        return torch.where((then_L == least) | (now_L == least), torch.zeros_like(found_L), found_L)
