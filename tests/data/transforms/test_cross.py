"""Columns of type ``cross``: pipeline, artefact and a slow oracle agree; what missing and order mean."""

import functools

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.fit import same_rows
from recdistill.errors import LogError
from tests.data.transforms.cases import Frame, fitted, frame_of
from tests.data.transforms.test_parity import DTYPES, known, moderate, raw_values
from tests.oracles import encoding as oracle

PAIRS = [
    ("Int64", "Int64"),
    ("String", "Int8"),
    ("Categorical", "String"),
    ("Float32", "UInt64"),
    ("Boolean", "Float64"),
    ("UInt32", "Boolean", "String"),
]


def frame(dtypes, rows):
    columns = zip(*rows, strict=True) if rows else [[]] * len(dtypes)
    return frame_of(
        **{f"raw{i}": pl.Series(list(v), dtype=DTYPES[d]) for i, (d, v) in enumerate(zip(dtypes, columns, strict=True))}
    )


@functools.cache
def case(dtypes, buckets=11):
    train = frame(dtypes, [tuple(known(d)[0] for d in dtypes)])
    return Frame({"type": "cross", "of": train.columns, "hash": buckets}, train)


@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
@moderate
@given(data=st.data())
def test_crosses_get_the_same_row_in_pipeline_and_artefact(dtypes, data):
    rows = data.draw(st.lists(st.tuples(*map(raw_values, dtypes)), min_size=20, max_size=40) | st.just([]))
    raw = frame(dtypes, rows)
    texts = [d in ("String", "Categorical") for d in dtypes]
    expected = [oracle.cross_row(row, texts, 11) for row in raw.rows()]
    assert case(dtypes).encoded(raw) == expected
    assert case(dtypes).pipeline(raw)["typed"].dtype == pl.Int32
    assert case(dtypes).artefact(raw).tolist() == expected


def test_a_cross_is_missing_only_where_all_its_values_are():
    raw = frame(("String", "Int64"), [(None, None), ("", -(2**63)), ("a", None), (None, 1), ("a", 1), ("a", 0)])
    found = case(("String", "Int64"), 10**6).encoded(raw)
    assert found[:2] == [0, 0]
    assert len(set(found[2:])) == 4 and min(found[2:]) >= 2


def test_order_matters_and_a_value_crossed_with_itself_is_not_nothing():
    raw = frame(("Int64", "Int64"), [(1, 2), (2, 1), (1, 1), (2, 2)])
    assert len(set(case(("Int64", "Int64"), 10**6).encoded(raw))) == 4


def test_all_pairs_of_values_are_spread_evenly():
    rows = [(i, j) for i in range(200) for j in range(200)]
    counts = np.bincount(case(("Int64", "Int64"), 100).encoded(frame(("Int64", "Int64"), rows)))[2:]
    assert 5 * np.sqrt(400) > np.abs(counts - 400).max()


def test_a_column_that_is_absent_is_missing_in_all_rows():
    numbers, texts = {"raw1": torch.tensor([5, 6])}, {"raw0": ["a", ""]}
    found = case(("String", "Int64"))
    raw = frame(("String", "Int64"), [(None, 5), (None, 6), ("a", None), ("", None)])
    assert found.ask(numbers, {}, {}, 2).tolist() == found.encoded(raw)[:2]
    assert found.ask({}, texts, {}, 2).tolist() == found.encoded(raw)[2:]
    assert found.ask({}, {}, {}, 3).tolist() == [0, 0, 0]
    assert found.ask({}, {}, {}, 0).tolist() == []


def test_raw_columns_that_are_no_keys_are_refused():
    declared = {"type": "cross", "of": ["a", "b"], "hash": 9}
    with pytest.raises(LogError, match=r"typed.of 'b': expected integers, whole floats, booleans or texts, found List"):
        fitted(declared, frame_of(a=[1], b=[[1]]))
    with pytest.raises(LogError, match=r"typed.of 'a': expected integers, .* found Date"):
        fitted(declared, frame_of(a=pl.Series([1]).cast(pl.Date), b=[1]))


def test_rows_of_another_run_stand_for_the_same_values_if_columns_and_buckets_are_the_same():
    def cross(of, buckets, dtype=pl.Int64):
        return fitted({"type": "cross", "of": of, "hash": buckets}, frame_of(a=pl.Series([1]).cast(dtype), b=[1]))

    old = cross(["a", "b"], 9)
    assert same_rows(cross(["a", "b"], 9, pl.Int8), old).tolist() == list(range(11))
    for other in (cross(["b", "a"], 9), cross(["a", "b"], 8), cross(["a", "b"], 9, pl.String)):
        with pytest.raises(LogError, match="warm start: column 'typed' is encoded differently"):
            same_rows(other, old)
