"""Sequences that are built from the log itself: for each row the values of past rows that share its keys.

All rows of the log count, of whatever split and whether or not a job uses them, because a server knows what its users
have done lately. A log that already has a list column of the sequence's name is taken at its word.

In memory are the keys, times and values of all rows, and where each row's past starts and ends; the lists themselves
are put together chunk by chunk while the log streams through.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from recdistill.data.history import PastLists, past_lists
from recdistill.data.times import collected, time_of
from recdistill.data.transforms.hashing import hash_in_turn, hashable
from recdistill.errors import LogError
from recdistill.spec.columns import Sequence
from recdistill.spec.features import FeatureSpec

Filter = Callable[[str, Any, pl.DataType], pl.Expr]


def pasts(spec: FeatureSpec, have: Mapping[str, object]) -> dict[str, Sequence]:
    """The sequences of a spec that have to be built, because the log has no column of their name."""
    columns = {name: column for name, column in spec.columns.items() if isinstance(column, Sequence)}
    return {name: column for name, column in columns.items() if column.past is not None and name not in have}


def made(columns: Mapping[str, Sequence]) -> list[str]:
    """The raw columns that building them makes."""
    return [raw for name, column in columns.items() for raw in column.sources(name)]


def needed(columns: Mapping[str, Sequence], time: str | None) -> list[str]:
    """The raw columns that they are built from."""
    found = []
    for name, column in columns.items():
        assert column.past is not None
        found += [column.column or name, *column.past.keys, *column.past.where]
    return list(dict.fromkeys([*found, *([time] if found and time is not None else [])]))


def with_pasts(
    frame: pl.LazyFrame, columns: Mapping[str, Sequence], time: str, row: str, where: Filter
) -> pl.LazyFrame:
    """The log with a list column for each sequence, and one for its times.

    Args:
        frame: the whole log.
        columns: the sequences.
        time: the raw column that orders rows.
        row: the column that holds the number of each row.
        where: the expression that is true where a column has one of some values.

    Raises:
        LogError: a raw column does not suit.
    """
    for name, column in columns.items():
        lists = _lists(name, column, frame, time, where)
        source = column.column or name
        frame = frame.with_columns(_gathered(lists, frame.select(source).collect()[source], row).alias(name))
        if (times := column.times_of(name)) is not None:
            frame = frame.with_columns(_gathered(lists, frame.select(time).collect()[time], row).alias(times))
    return frame


def _lists(name: str, column: Sequence, frame: pl.LazyFrame, time: str, where: Filter) -> PastLists:
    assert column.past is not None
    schema = frame.collect_schema()
    for key in column.past.keys:
        if not hashable(schema[key]):
            raise LogError(f"{name}.past: expected keys of one value, found {schema[key]} in {key!r}; name another one")

    kept = [where(raw, value, schema[raw]) for raw, value in column.past.where.items()]
    wanted = frame.select(
        key=pl.struct(column.past.keys).map_batches(
            lambda keys: pl.Series(hash_in_turn(keys)), return_dtype=pl.Int64, is_elementwise=True
        ),
        time=time_of(time, schema[time]),
        keep=pl.all_horizontal(*kept, pl.lit(True)).fill_null(False),
        # a row without its keys belongs to nobody
        known=pl.all_horizontal(pl.col(key).is_not_null() for key in column.past.keys),
    )
    rows = frame.select(pl.len()).collect(engine="streaming").item()
    found = collected(wanted, rows)
    key_N = np.where(found["known"], found["key"], -np.arange(rows, dtype=np.int64))
    return past_lists(key_N, found["time"], found["keep"] & found["known"], column.max_length)


def _gathered(lists: PastLists, values: pl.Series, row: str) -> pl.Expr:
    """The values of each row's past, as lists."""

    def gather(rows: pl.Series) -> pl.Series:
        length_B, past_L = lists.of(rows.to_numpy().astype(np.int64))
        offsets = pa.array(np.concatenate([[0], np.cumsum(length_B)]))
        found = pa.LargeListArray.from_arrays(offsets, values.gather(past_L).to_arrow())
        return pl.Series(pl.from_arrow(found), dtype=pl.List(values.dtype))

    return pl.col(row).map_batches(gather, return_dtype=pl.List(values.dtype), is_elementwise=True)
