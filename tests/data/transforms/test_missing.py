"""Columns of type ``missing``: what counts as missing, in pipeline and artefact."""

import functools
from datetime import date, datetime, time, timedelta

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.errors import LogError
from tests.data.transforms.cases import Frame, fitted, frame_of
from tests.data.transforms.test_parity import DTYPES, moderate, raw_values
from tests.oracles import encoding as oracle

MISSING = {"type": "missing", "column": "raw"}


def typed(dtype):
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


@functools.cache
def case(dtype):
    return Frame(MISSING, frame_of(raw=pl.Series([None], dtype=typed(dtype))))


def holds(dtype, values):
    raw = frame_of(raw=pl.Series(values, dtype=typed(dtype)))
    expected = [float(oracle.is_missing(v)) for v in raw["raw"].to_list()]
    found = case(dtype)
    assert found.encoded(raw) == expected
    assert found.pipeline(raw)["typed"].dtype == pl.Float32
    assert found.artefact(raw).tolist() == expected
    return expected


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "Float16"])
@moderate
@given(data=st.data())
def test_single_values_are_missing_alike_in_pipeline_and_artefact(dtype, data):
    holds(dtype, data.draw(st.lists(raw_values(dtype), min_size=20, max_size=40) | st.just([])))


@pytest.mark.parametrize("dtype", ["Int64", "UInt64", "Float32", "Boolean", "String", "Categorical"])
@moderate
@given(data=st.data())
def test_lists_are_missing_alike_in_pipeline_and_artefact(dtype, data):
    lists = st.none() | st.just([]) | st.just([None, None]) | st.lists(raw_values(dtype), max_size=4)
    holds(pl.List(DTYPES[dtype]), data.draw(st.lists(lists, min_size=20, max_size=40) | st.just([])))


def test_a_list_is_missing_if_it_holds_no_value():
    assert holds(pl.List(pl.Int64), [[1], [None, 0], [], None, [None]]) == [0, 0, 1, 1, 1]
    assert holds(pl.List(pl.String), [["a"], ["", "a"], [], None, [""]]) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (pl.Date(), date(1970, 1, 1)),
        (pl.Datetime("ms"), datetime(1970, 1, 1)),
        (pl.Datetime("us", "Asia/Tokyo"), datetime(2024, 1, 1)),
        (pl.Datetime("ns"), datetime(1900, 1, 1)),
        (pl.Time(), time(0)),
        (pl.Duration("us"), timedelta(0)),
        (pl.List(pl.Date()), [date(2024, 1, 1)]),
    ],
)
def test_dates_and_times_can_be_missing(dtype, value):
    assert holds(dtype, [value, None, value]) == [0, 1, 0]


def test_a_column_that_is_absent_is_missing_in_all_rows():
    assert case("Int64").ask({}, {}, {}, 2).tolist() == [1, 1]
    assert case(pl.List(pl.String)).ask({}, {}, {}, 2).tolist() == [1, 1]
    assert case("Int64").ask({"raw": torch.tensor([], dtype=torch.int64)}, {}, {}, 0).tolist() == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pl.Series([[[1]]]), r"typed: expected integers, .* found List\(Int64\)"),
        (pl.Series([1]).cast(pl.Decimal(9, 2)), "typed: expected integers, .* found Decimal"),
        (pl.Series([{"a": 1}]), "typed: expected integers, .* found Struct"),
        (pl.Series([b"a"]), "typed: expected integers, .* found Binary"),
    ],
)
def test_raw_columns_that_the_artefact_cannot_take_are_refused(values, message):
    with pytest.raises(LogError, match=message):
        fitted(MISSING, frame_of(raw=values))
