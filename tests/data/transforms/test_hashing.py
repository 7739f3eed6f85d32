"""Hashes against plain Python integers; the artefact's twins of them are scripted."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recdistill.data.transforms.hashing import (
    bucket_of,
    hash_texts,
    hash_texts_tensor,
    hashable,
    key_hash,
    splitmix64,
    splitmix64_tensor,
)
from tests.oracles import encoding as oracle

integers = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)
texts = st.lists(st.text(max_size=20), max_size=20)
EXTREMES = [0, 1, -1, 2**63 - 1, -(2**63), -(2**63) + 1, 2**31, -(2**31) - 1]


@pytest.fixture(scope="module")
def hash_texts_script():
    return torch.jit.script(hash_texts_tensor)


@given(integers)
@example(EXTREMES)
def test_integers_hash_like_splitmix64_in_pipeline_and_artefact(values):
    expected = [oracle.splitmix64(v) for v in values]
    assert splitmix64(np.array(values, np.int64)).tolist() == expected
    assert splitmix64_tensor(torch.tensor(values, dtype=torch.int64)).tolist() == expected


@given(texts)
@example(["", "a", "\x00", "a\x00b", "é", "日本", "\U0001f600", "\U0010ffff", "x" * 300])
def test_texts_hash_like_fnv1a_over_their_utf8_bytes_in_pipeline_and_artefact(hash_texts_script, values):
    expected = [oracle.text_hash(v) for v in values]
    assert hash_texts(pl.Series(values, dtype=pl.String)).tolist() == expected
    assert hash_texts_script(values).tolist() == expected


def test_a_slice_or_several_chunks_of_texts_hash_like_their_values():
    values = [f"text {i}" * (i % 5) for i in range(40)]
    expected = [oracle.text_hash(v) for v in values]
    series = pl.Series(values)
    assert hash_texts(series[7:23]).tolist() == expected[7:23]
    assert hash_texts(pl.concat([series[:11], series[11:]], rechunk=False)).tolist() == expected


def test_a_null_text_hashes_like_the_empty_one():
    assert hash_texts(pl.Series([None, ""], dtype=pl.String)).tolist() == [oracle.text_hash("")] * 2


@given(integers, st.integers(2, 2**40))
def test_buckets_are_the_remainder_of_the_hash_without_its_sign(values, buckets):
    expected = [oracle.bucket(v, buckets) for v in values]
    assert bucket_of(np.array(values, np.int64), buckets).tolist() == expected


def test_buckets_are_filled_evenly():
    counts = np.bincount(bucket_of(splitmix64(np.arange(100_000)), 100), minlength=100)
    assert counts.sum() == 100_000
    assert 5 * np.sqrt(1000) > np.abs(counts - 1000).max()


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1, None, -1], pl.Int8, [1, -(2**63), -1]),
        ([1, None, 2**31], pl.UInt32, [1, -(2**63), 2**31]),
        ([1, None, 2**63 + 5], pl.UInt64, [1, -(2**63), -(2**63) + 5]),
        ([True, False, None], pl.Boolean, [1, 0, -(2**63)]),
        ([1.0, -0.0, None, float("nan"), 2.0**53 - 1], pl.Float64, [1, 0, -(2**63), -(2**63), 2**53 - 1]),
        ([3.0, None], pl.Float32, [3, -(2**63)]),
    ],
)
def test_keys_hash_by_their_value_whatever_their_type(values, dtype, expected):
    assert key_hash(pl.Series(values, dtype=dtype)).tolist() == [oracle.splitmix64(v) for v in expected]


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["b", "a", "ü"])])
def test_text_keys_hash_by_their_text_and_not_by_a_code(dtype):
    values = ["ü", "a", None, "b", "a"]
    assert key_hash(pl.Series(values, dtype=dtype)).tolist() == [oracle.text_hash(v or "") for v in values]


def test_fractions_that_differ_hash_differently():
    values = pl.Series([0.5, 0.25, 1.5, -0.5, 1e300, 2.0**53, float("inf"), -float("inf")])
    assert len(set(key_hash(values).tolist())) == len(values)


def test_times_hash_by_their_number():
    day = pl.Series([3, 4]).cast(pl.Date)
    assert key_hash(day).tolist() == [oracle.splitmix64(3), oracle.splitmix64(4)]


@pytest.mark.parametrize(
    "dtype", [pl.Binary(), pl.List(pl.Int64), pl.Struct({"a": pl.Int64}), pl.Decimal(10, 2), pl.Null()]
)
def test_types_without_a_hash_are_named_so(dtype):
    assert not hashable(dtype)


@pytest.mark.parametrize(
    "dtype", [pl.Int8(), pl.UInt64(), pl.Float32(), pl.String(), pl.Boolean(), pl.Date(), pl.Datetime()]
)
def test_types_with_a_hash_have_one_for_null(dtype):
    assert hashable(dtype)
    assert len(key_hash(pl.Series([None], dtype=dtype))) == 1
