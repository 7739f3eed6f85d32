"""What a raw value means, before any vocabulary or scaling: a key, a number, or missing.

The same rules hold in the pipeline and in the artefact. Missing are null, NaN and infinity, the empty text, and the
int64 minimum (which is how the artefact's callers say *missing* for integers).
"""

import polars as pl
import torch
from torch import Tensor

from recdistill.errors import LogError

MISSING_INT = -(2**63)
NOT_WHOLE = MISSING_INT + 1  # a float key with a fraction: never in a vocabulary, so it falls into the unknown row
LARGEST_WHOLE = 2.0**53  # floats beyond it no longer tell neighbouring integers apart


def keyed_by_text(dtype: pl.DataType) -> bool:
    """Whether keys of this raw type are texts."""
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


def plain(dtype: pl.DataType) -> pl.DataType:
    """The type without details that do not affect values: all texts are one type, and so are times of all zones."""
    if keyed_by_text(dtype):
        return pl.String()
    return pl.Datetime(dtype.time_unit) if isinstance(dtype, pl.Datetime) else dtype


def unit_of(dtype: pl.DataType) -> str | None:
    """``day``, ``ms``, ``us`` or ``ns`` of dates and times, which travel as a number of those since 1970."""
    if dtype == pl.Date:
        return "day"
    return dtype.time_unit if isinstance(dtype, pl.Datetime) else None


def key_type(dtype: pl.DataType, place: str) -> str:
    """``text``, ``float`` or ``integer``: how keys of a raw column travel.

    Raises:
        LogError: the column holds something that cannot be a key.
    """
    if keyed_by_text(dtype):
        return "text"
    if dtype.is_float():
        return "float"
    if _fits_int64(dtype):
        return "integer"
    raise LogError(
        f"{place}: expected integers, whole floats, booleans or texts, found {dtype}; cast the column in the log"
    )


def _fits_int64(dtype: pl.DataType) -> bool:
    """Whether the artefact's callers can hand the values over as int64 (unsigned ones as the same bits, signed)."""
    return dtype == pl.Boolean or (dtype.is_integer() and dtype not in (pl.Int128, pl.UInt128))


def _as_int64(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    integer = column.reinterpret(signed=True) if dtype == pl.UInt64 else column.cast(pl.Int64)
    return pl.when(integer != MISSING_INT).then(integer)


def keys(column: pl.Expr, dtype: pl.DataType, place: str) -> pl.Expr:
    """Keys as Int64 or String, null where missing."""
    kind = key_type(dtype, place)
    if kind == "text":
        text = column.cast(pl.String)
        return pl.when(text != "").then(text)
    if kind == "float":
        number = column.cast(pl.Float64)
        whole = (number == number.floor()) & (number.abs() < LARGEST_WHOLE)
        key = pl.when(whole).then(number).otherwise(None).cast(pl.Int64, strict=False).fill_null(NOT_WHOLE)
        return pl.when(number.is_finite()).then(key)
    return _as_int64(column, dtype)


def keys_tensor(numbers_N: Tensor) -> Tensor:
    """Keys as int64, `MISSING_INT` where missing, of an integer or float tensor."""
    if not torch.is_floating_point(numbers_N):
        return numbers_N.to(torch.int64)
    number = numbers_N.to(torch.float64)
    finite = torch.isfinite(number)
    number = torch.where(finite, number, torch.zeros_like(number))
    whole = (number == torch.floor(number)) & (torch.abs(number) < 9007199254740992.0)
    key = torch.where(whole, number, torch.zeros_like(number)).to(torch.int64)
    key = torch.where(whole, key, torch.full_like(key, -9223372036854775807))
    return torch.where(finite, key, torch.full_like(key, -9223372036854775807 - 1))


def numbers(column: pl.Expr, dtype: pl.DataType, place: str) -> pl.Expr:
    """Numbers as Float64, null where missing.

    Raises:
        LogError: the column does not hold numbers.
    """
    if not (dtype.is_float() or _fits_int64(dtype)):
        raise LogError(
            f"{place}: expected floats, integers or booleans, found {dtype}; cast the column in the log, or choose "
            "another type"
        )
    number = (column if dtype.is_float() else _as_int64(column, dtype)).cast(pl.Float64)
    return pl.when(number.is_finite()).then(number)


def numbers_tensor(numbers_N: Tensor) -> Tensor:
    """Numbers as float64, NaN where missing, of an integer or float tensor."""
    number = numbers_N.to(torch.float64)
    nan = torch.full_like(number, float("nan"))
    if not torch.is_floating_point(numbers_N):
        return torch.where(numbers_N.to(torch.int64) == -9223372036854775807 - 1, nan, number)
    return torch.where(torch.isfinite(number), number, nan)
