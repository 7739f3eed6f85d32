"""The time column of a log as numbers, and columns of a streamed log as arrays."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recdistill.data.transforms.raw import MISSING_INT
from recdistill.errors import LogError

CHUNK_ROWS = 2**17
UNITS = {"ms": 1e3, "us": 1e6, "ns": 1e9}  # in a second


def time_of(source: str, dtype: pl.DataType) -> pl.Expr:
    """Times as Int64 or Float64 that compare as they do; the int64 minimum or NaN where they are missing.

    Raises:
        LogError: the column holds no times.
    """
    if dtype.is_temporal():
        return pl.col(source).to_physical().cast(pl.Int64).fill_null(MISSING_INT)
    if dtype.is_integer():
        return pl.col(source).cast(pl.Int64, strict=False).fill_null(MISSING_INT)
    if not dtype.is_numeric():
        raise LogError(
            f"time: expected numbers, dates or times, found {dtype} in {source!r}; cast the column in the log"
        )
    number = pl.col(source).cast(pl.Float64)
    return pl.when(number.is_finite()).then(number).otherwise(float("nan"))


def per_unit(dtype: pl.DataType) -> float:
    """How many steps of `time_of` are one unit: of dates a day, of dates with a time of day a second."""
    if isinstance(dtype, pl.Time):
        return UNITS["ns"]
    return UNITS[dtype.time_unit] if isinstance(dtype, pl.Datetime | pl.Duration) else 1.0


def collected(frame: pl.LazyFrame, rows: int) -> dict[str, NDArray[Any]]:
    """The columns of a frame without nulls as arrays in the order of the log, each (N,)."""
    kinds = {pl.Boolean(): np.bool_, pl.Int64(): np.int64, pl.Float64(): np.float64}
    found: dict[str, NDArray[Any]] = {n: np.empty(rows, kinds[t]) for n, t in frame.collect_schema().items()}
    done = 0
    for chunk in frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming"):
        for name, array in found.items():
            array[done : done + len(chunk)] = chunk[name].to_numpy()
        done += len(chunk)
    return found
