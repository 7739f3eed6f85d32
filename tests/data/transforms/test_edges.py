"""Numeric columns with declared edges: which bucket a value falls into, in pipeline and artefact."""

import functools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.fit import same_rows
from recdistill.errors import LogError
from tests.data.transforms.cases import Frame, fitted, frame_of
from tests.data.transforms.test_parity import DTYPES, NUMBERS, moderate, raw_values
from tests.oracles import encoding as oracle

EDGES = [[0], [-1.5, 0, 100], [5e-324, 2.0**53, 1e300], [-(2**63), 2**31]]


@functools.cache
def case(dtype, edges):
    train = frame_of(raw=pl.Series([None], dtype=DTYPES[dtype]))
    return Frame({"type": "numeric", "column": "raw", "edges": list(edges)}, train)


@pytest.mark.parametrize("edges", EDGES, ids=str)
@pytest.mark.parametrize("dtype", [d for d in NUMBERS if d != "Float16"])
@moderate
@given(data=st.data())
def test_values_fall_into_the_same_bucket_in_pipeline_and_artefact(dtype, edges, data):
    values = data.draw(st.lists(raw_values(dtype), min_size=20, max_size=40) | st.just([]))
    found, raw = case(dtype, tuple(edges)), frame_of(raw=pl.Series(values, dtype=DTYPES[dtype]))
    expected = [oracle.bucket_row(v, edges) for v in raw["raw"].to_list()]
    assert found.encoded(raw) == expected == found.artefact(raw).tolist()


def test_a_value_on_an_edge_lies_above_it_and_nothing_is_learned():
    edges = [0.0, 10.0, 100.0]
    raw = frame_of(raw=[x for e in edges for x in (np.nextafter(e, -math.inf), e, np.nextafter(e, math.inf))])
    found = Frame({"type": "numeric", "column": "raw", "edges": edges}, frame_of(raw=[7.0, 7.0]))
    assert found.encoded(raw) == [2, 3, 3, 3, 4, 4, 4, 5, 5] == found.artefact(raw).tolist()
    assert found.column.tables == {"typed": 2 + 4}


def test_texts_have_no_edges():
    with pytest.raises(LogError, match="typed: expected floats, integers or booleans, found String"):
        fitted({"type": "numeric", "column": "raw", "edges": [0]}, frame_of(raw=["1"]))


def test_rows_of_another_run_stand_for_the_same_buckets_if_the_cuts_are_the_same():
    def cut(values=(1.0, 2.0, 3.0), **options):
        return fitted({"type": "numeric", "column": "raw", **options}, frame_of(raw=list(values)))

    old = cut(buckets=2)
    assert same_rows(cut(edges=list(old.cuts)), old).tolist() == list(range(4))
    with pytest.raises(LogError, match="is encoded differently"):
        same_rows(cut(edges=[7]), old)
