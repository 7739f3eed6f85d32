"""The raw columns of a simulated log that one typed column reads, and what they tell about the labels.

Every value of an embedded column has an effect, fixed by its hash; numbers act linearly. Post-event columns are noisy
traces of what the user wanted.

Legend: N rows, L list elements or words.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import special

from recdistill.data.transforms.date_part import SECONDS, spans
from recdistill.data.transforms.date_part import DatePart as FittedPart
from recdistill.data.transforms.hashing import key_hash, splitmix64
from recdistill.spec.columns import (
    AnyColumn,
    Bag,
    Binary,
    Categorical,
    Cross,
    DatePart,
    History,
    Id,
    Missing,
    Numeric,
    Sequence,
    Text,
    Vocabularied,
)
from recdistill.spec.features import FeatureSpec

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Raw = dict[str, pl.Series]
Made = Mapping[str, pl.Series]
MISSING_SHARE = 0.03
START, SPREAD = 1_650_000_000, 28 * 86_400  # seconds
STEPS = {"hour": 3600, "hour_of_week": 3600, "weekday": 86_400, "day": 86_400, "month": 31 * 86_400}


def in_order(columns: Mapping[str, AnyColumn]) -> list[tuple[str, AnyColumn]]:
    """Columns in an order in which each raw column is made for its most demanding typed column."""

    def place(column: AnyColumn) -> int:
        return 0 if isinstance(column, Text | DatePart) else 2 if isinstance(column, Cross | Missing) else 1

    return sorted(columns.items(), key=lambda item: place(item[1]))


def clock(spec: FeatureSpec, rows: int) -> pl.Series:
    """The times of all rows: one each second, or spread over some weeks if calendar columns read them."""
    parts = [c for n, c in spec.columns.items() if isinstance(c, DatePart) and spec.time in c.sources(n)]
    step = max(1, SPREAD // rows) if parts else 1
    return pl.Series((START + np.arange(rows) * step) * SECONDS[parts[0].unit if parts else "ms"][1])


def needs_clock(spec: FeatureSpec) -> bool:
    """Whether a typed column reads the time, so that it must be one."""
    return any(isinstance(c, DatePart | Sequence) and spec.time in spec.sources(n) for n, c in spec.columns.items())


def distinct_keys(spec: FeatureSpec, rows: int, rng: np.random.Generator) -> dict[str, Integers]:
    """Values for row-id columns that are all embedded (user and item, say), unique per row.

    One in eight of all combinations occurs. Empty if the row id has other columns, or a single one.
    """
    keys = [n for n, c in spec.serving.items() if isinstance(c, Categorical | Id) and spec.source(n) in spec.row_id]
    if len(keys) < 2 or {spec.source(name) for name in keys} != {*spec.row_id}:
        return {}
    side = math.ceil((8 * rows) ** (1 / len(keys)))
    cell_N = rng.choice(side ** len(keys), rows, replace=False)
    return dict(zip(keys, np.unravel_index(cell_N, [side] * len(keys)), strict=True))


def serving_columns(
    name: str, column: AnyColumn, made: Made, time: pl.Series, rng: np.random.Generator
) -> tuple[Raw, Floats]:
    """The raw columns of a serving column that are not made yet, and its effect on each row."""
    rows = len(time)
    source = column.sources(name)[0]
    if isinstance(column, History):
        return {}, np.zeros(rows)
    if isinstance(column, Cross):
        new = {raw: _codes(12, rows, rng) for raw in column.of if raw not in made}
        total_N = np.zeros(rows, np.int64)
        for raw in column.of:
            total_N = splitmix64(total_N ^ key_hash({**made, **new}[raw]))
        return new, effect(name, total_N)
    if isinstance(column, Missing):
        new = {} if source in made else {source: _numbers(rows, rng).set(pl.Series(rng.random(rows) < 0.3), None)}
        values = {**made, **new}[source]
        empty = values.list.len() == 0 if isinstance(values.dtype, pl.List) else pl.Series([False])
        return new, (values.is_null() | empty).to_numpy() - 0.3
    if isinstance(column, DatePart):
        new = {} if source in made else {source: _instants(column.unit, rows, rng)}
        return new, effect(name, _parts(column, {**made, **new}[source]))
    if source in made:
        return {}, np.zeros(rows)
    if isinstance(column, Bag | Sequence | Text):
        return _lists(name, column, time, rng)
    values, found = _values(name, column, rows, rng)
    return {source: values}, found


def _values(name: str, column: AnyColumn, rows: int, rng: np.random.Generator) -> tuple[pl.Series, Floats]:
    """Single values and their effect."""
    missing = rng.random(rows) < MISSING_SHARE
    if isinstance(column, Vocabularied):
        size = max(20, rows // 50) if column.type == "id" else 12
        code = (rng.beta(1, 2, rows) * size).astype(np.int64)
        return pl.Series(code).set(pl.Series(missing), None), np.where(missing, 0.0, effect(name, code))
    if isinstance(column, Numeric):
        value = _numbers(rows, rng)
        return value.set(pl.Series(missing), None), np.where(missing, 0.0, np.log(value.to_numpy()) - 3)
    flag = rng.random(rows) < 0.3
    return pl.Series(flag.astype(np.int8)), flag.astype(np.float64) - 0.3


def _lists(name: str, column: Bag | Sequence | Text, time: pl.Series, rng: np.random.Generator) -> tuple[Raw, Floats]:
    """Lists or texts, with their weights or times, and the mean effect of their elements."""
    rng.random(len(time))  # what single values draw first
    length_N = rng.integers(0, 6, len(time))
    value_L = rng.zipf(1.5, int(length_N.sum())) % 200
    found = np.bincount(np.repeat(np.arange(len(time)), length_N), effect(name, value_L), len(time))
    return _listed(name, column, length_N, value_L, time, rng), found / np.maximum(length_N, 1)


def _listed(
    name: str,
    column: Bag | Sequence | Text,
    length_N: Integers,
    value_L: Integers,
    time: pl.Series,
    rng: np.random.Generator,
) -> Raw:
    """Elements in the form that the column reads."""
    source, *further = column.sources(name)
    separator = " " if isinstance(column, Text) else column.separator
    new = {source: _cut(length_N, value_L)}
    if separator is not None:
        new[source] = new[source].cast(pl.List(pl.String)).list.join(separator)
    if isinstance(column, Bag) and further:
        new[further[0]] = _cut(length_N, np.round(rng.uniform(0, 2, len(value_L)), 2))
    if isinstance(column, Sequence) and further:
        ago_L = np.round(np.exp(rng.normal(11, 2, len(value_L)))).astype(np.int64)
        new[further[0]] = _cut(length_N, np.repeat(time.to_numpy(), length_N) - ago_L).list.sort()
    return new


def _cut(length_N: Integers, value_L: NDArray[Any]) -> pl.Series:
    """Elements of all rows as a list per row."""
    return pl.Series(
        [part.tolist() for part in np.split(value_L, np.cumsum(length_N)[:-1])], dtype=pl.List(pl.Series(value_L).dtype)
    )


def _codes(size: int, rows: int, rng: np.random.Generator) -> pl.Series:
    return pl.Series(rng.integers(0, size, rows)).set(pl.Series(rng.random(rows) < MISSING_SHARE), None)


def _numbers(rows: int, rng: np.random.Generator) -> pl.Series:
    return pl.Series(np.round(np.exp(rng.normal(3, 1, rows)), 3))


def _instants(unit: str, rows: int, rng: np.random.Generator) -> pl.Series:
    """Times of one year in no order."""
    second_N = pl.Series((START + rng.integers(0, 365 * 86_400, rows)) * SECONDS[unit][1])
    return second_N.set(pl.Series(rng.random(rows) < MISSING_SHARE), None)


def _parts(column: DatePart, values: pl.Series) -> Integers:
    """The embedding rows of times."""
    fitted = FittedPart("part", "raw", pl.Int64(), column.part, column.unit, *spans(column.zone), table="part")
    value_N = torch.from_numpy(values.fill_null(-(2**63)).to_numpy().copy())
    row_N: Integers = fitted.torch()({"raw": value_N}, {}, {}, len(values)).numpy()
    return row_N


def effect(name: str, value_N: Integers) -> Floats:
    """A standard normal effect for each value, fixed by the column's name and the value."""
    salt = np.int64(sum(name.encode()))
    uniform = (splitmix64(value_N * 1_000_003 + salt) >> np.int64(11)).astype(np.float64) / 2.0**53 + 0.5
    return special.ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))


def post_event_columns(
    name: str, column: AnyColumn, made: Made, want_N: Floats, time: pl.Series, rng: np.random.Generator
) -> Raw:
    """The raw columns of a post-event column that are not made yet: each tells something of what the user wanted."""
    source = column.sources(name)[0]
    if isinstance(column, History) or (source in made and not isinstance(column, Cross)):
        return {}
    noisy_N = want_N + rng.normal(0, 0.5, len(want_N))
    band_N = np.clip(np.floor(noisy_N * 2), -4, 4).astype(np.int64) + 4
    if isinstance(column, Bag | Sequence | Text):
        return _listed(name, column, band_N, np.ones(band_N.sum(), np.int64), time, rng)
    if isinstance(column, Cross):
        return {raw: pl.Series(band_N) for raw in column.of if raw not in made}
    return {source: _trace(column, want_N, noisy_N, band_N, rng)}


def _trace(column: AnyColumn, want_N: Floats, noisy_N: Floats, band_N: Integers, rng: np.random.Generator) -> pl.Series:
    """Single values that follow what the user wanted."""
    if isinstance(column, Binary):
        return binary_trace(want_N, rng)
    number = pl.Series(np.round(np.exp(3 + 0.5 * noisy_N), 3))
    if isinstance(column, Numeric):
        return number
    if isinstance(column, Missing):
        return number.set(pl.Series(noisy_N > 0), None)
    if isinstance(column, DatePart):
        return pl.Series((START + band_N * STEPS[column.part]) * SECONDS[column.unit][1])
    return pl.Series(band_N)


def binary_trace(want_N: Floats, rng: np.random.Generator) -> pl.Series:
    """Zeros and ones that follow what the user wanted."""
    return pl.Series((rng.random(len(want_N)) < special.expit(want_N - 0.5)).astype(np.int8))
