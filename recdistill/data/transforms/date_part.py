"""Columns of type ``date_part``: hour, weekday, day or month in a time zone; one embedding row for each.

A zone is a list of instants at which its distance from UTC changes, daylight saving included, from 1900 to 2099; it is
looked up once, at fitting, and travels with the fitted column. What follows is arithmetic on whole seconds, written
once: the pipeline runs the very function that the artefact runs.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar
from zoneinfo import ZoneInfo

import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.column import Kind, Learned, OfOneColumn
from recdistill.data.transforms.raw import key_type, keys, keys_tensor, unit_of
from recdistill.data.transforms.rows import FIRST
from recdistill.errors import LogError
from recdistill.spec import columns as declared

COUNTS = {"hour": 24, "weekday": 7, "day": 31, "month": 12, "hour_of_week": 168}
SECONDS = {"s": (1, 1), "ms": (1, 1000), "us": (1, 10**6), "ns": (1, 10**9), "day": (86_400, 1)}  # times, divided by
START, END = -2_208_988_800, 4_102_444_800  # 1900 and 2100
PLAUSIBLE = 631_152_000  # 1990; times of events hardly lie before
DAY = 86_400


def types(name: str, column: declared.DatePart, schema: pl.Schema, source: str) -> dict[str, pl.DataType]:
    """The raw column and its type.

    Raises:
        LogError: it holds no times, or dates where a time of day is needed.
    """
    dtype = schema[source]
    if dtype == pl.Date and ("hour" in column.part or column.zone != "UTC"):
        raise LogError(
            f"{name}: {source!r} holds dates, which have no time of day, so that `part: {column.part}` in the zone "
            f"{column.zone} is not defined; choose another part without `zone`, or a column of times"
        )
    if unit_of(dtype) is None and (dtype == pl.Boolean or dtype.is_float() or key_type(dtype, name) != "integer"):
        raise LogError(f"{name}: expected integers, times or dates, found {dtype}; cast the column in the log")
    return {source: dtype}


def summaries(name: str, learned: Learned) -> Iterator[pl.Expr]:
    """The aggregates of raw values that `fit` needs."""
    source, dtype = learned.only(name)
    if unit_of(dtype) is None:
        yield keys(pl.col(source), dtype, name).min().alias(f"{name}/min")
        yield keys(pl.col(source), dtype, name).max().alias(f"{name}/max")


def fit(name: str, column: declared.DatePart, learned: Learned) -> "DatePart":
    """The fitted column.

    Raises:
        LogError: the training rows hold times of another unit.
    """
    source, dtype = learned.only(name)
    range_ = learned.statistics.get(f"{name}/min"), learned.statistics.get(f"{name}/max")
    if unit_of(dtype) is None and range_[0] is not None and range_[1] is not None:
        _check_unit(name, column.unit, (range_[0], range_[1]))
    return DatePart(name, source, dtype, column.part, unit_of(dtype) or column.unit, *spans(column.zone), table=name)


def _check_unit(name: str, unit: str, range_: tuple[float, float]) -> None:
    """Raises LogError if the range makes no sense in this unit, but does in another."""
    others = [u for u in ("s", "ms", "us") if all(PLAUSIBLE <= value // SECONDS[u][1] < END for value in range_)]
    if others and unit not in others:
        low, high = (datetime.fromtimestamp(value // SECONDS[others[0]][1], UTC).date() for value in range_)
        raise LogError(
            f"{name}: values from {range_[0]} to {range_[1]} are hardly times in {unit}; with `unit: {others[0]}` they "
            f"lie between {low} and {high}"
        )


@functools.cache
def spans(zone: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the spans of a constant distance from UTC start, and after them where the last one ends; the distances.

    Example:
        >>> spans("UTC")
        ((-2208988800, 4102444800), (0,))
    """
    info = ZoneInfo(zone)

    def offset(second: int) -> int:
        distance = datetime.fromtimestamp(second, info).utcoffset()
        return 0 if distance is None else distance.days * DAY + distance.seconds

    starts, offsets = [START], [offset(START)]
    for low in range(START, END, DAY):  # no zone changes its clocks twice within a day
        last = offset(low + DAY)
        if last == offsets[-1]:
            continue
        same, other = low, low + DAY
        while other - same > 1:
            middle = (same + other) // 2
            same, other = (middle, other) if offset(middle) == offsets[-1] else (same, middle)
        starts.append(other)
        offsets.append(last)
    return (*starts, END), tuple(offsets)


@dataclass(frozen=True)
class DatePart(OfOneColumn):
    """A fitted part of a time; ``starts`` and ``offsets`` are the `spans` of its zone, in seconds."""

    name: str
    source: str
    dtype: pl.DataType
    part: str
    unit: str
    starts: tuple[int, ...]
    offsets: tuple[int, ...]
    table: str
    kind: ClassVar[Kind] = "id"

    @property
    def tables(self) -> dict[str, int]:
        """A table of its own, of a fixed size."""
        return {self.table: FIRST + COUNTS[self.part]}

    @property
    def unknown(self) -> str:
        """Every time of the years whose zones are known has a row."""
        return "a row of its own for times before 1900 or after 2099"

    @property
    def meaning(self) -> tuple[object, ...]:
        """The part."""
        return (self.part,)

    def polars(self) -> list[pl.Expr]:
        """Embedding rows, Int32."""
        module = self.torch()

        def rows(values: pl.Series) -> pl.Series:
            with torch.no_grad():
                row = module({self.source: torch.tensor(values.to_numpy())}, {}, {}, len(values))
            return pl.Series(row.numpy(), dtype=pl.Int32)

        whole = pl.col(self.source) if unit_of(self.dtype) is None else pl.col(self.source).cast(pl.Int64)
        key = keys(whole, self.dtype if unit_of(self.dtype) is None else pl.Int64(), self.name)
        row = key.fill_null(-(2**63)).map_batches(rows, return_dtype=pl.Int32, is_elementwise=True)
        return [row.alias(self.name)]

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (B,), from raw inputs."""
        starts, offsets = (torch.tensor(x, dtype=torch.int64) for x in (self.starts, self.offsets))
        return DatePartModule(self.source, self.part, *SECONDS[self.unit], starts, offsets)


class DatePartModule(nn.Module):
    """`DatePart` inside the artefact."""

    starts: Tensor
    offsets: Tensor

    def __init__(self, source: str, part: str, times: int, per: int, starts_K: Tensor, offsets_K: Tensor) -> None:
        super().__init__()
        self.source = source
        self.part = part
        self.times, self.per = times, per
        self.register_buffer("starts", starts_K)
        self.register_buffer("offsets", offsets_K)

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
        value_B = keys_tensor(numbers[self.source])
        second_B = torch.div(value_B * self.times, self.per, rounding_mode="floor")
        span_B = torch.searchsorted(self.starts, second_B, right=True) - 1
        known_B = (span_B >= 0) & (span_B < self.offsets.numel())
        local_B = second_B + self.offsets[span_B.clamp(0, self.offsets.numel() - 1)]
        row_B = torch.where(known_B, 2 + part_of(local_B, self.part), torch.ones_like(value_B))
        return torch.where(value_B == -9223372036854775807 - 1, torch.zeros_like(row_B), row_B)


def part_of(local_N: Tensor, part: str) -> Tensor:
    """The part, from 0, of seconds since 1970 on local clocks; dates by Hinnant's ``civil_from_days``."""
    day_N = torch.div(local_N, 86400, rounding_mode="floor")
    hour_N = torch.div(local_N - 86400 * day_N, 3600, rounding_mode="floor")
    weekday_N = (day_N + 3) % 7  # 1970 began on a Thursday
    if part == "hour":
        return hour_N
    if part == "weekday":
        return weekday_N
    if part == "hour_of_week":
        return 24 * weekday_N + hour_N
    in_era_N = (day_N + 719468) % 146097  # days since a first of March whose year is a multiple of 400
    leap_N = in_era_N // 1460 - in_era_N // 36524 + in_era_N // 146096
    year_N = (in_era_N - leap_N) // 365
    in_year_N = in_era_N - (365 * year_N + year_N // 4 - year_N // 100)
    month_N = (5 * in_year_N + 2) // 153  # 0 is March
    if part == "month":
        return (month_N + 2) % 12
    return in_year_N - (153 * month_N + 2) // 5
