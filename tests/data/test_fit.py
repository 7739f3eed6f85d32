"""What is learned from training rows, against plain Python, and independent of the order of the rows."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recdistill.data.fit import check_types, fit, same_rows
from recdistill.errors import LogError
from recdistill.spec.features import FeatureSpec
from tests.oracles import encoding as oracle

moderate = settings(max_examples=40)


def fitted(columns, frame, post_event=None):
    spec = FeatureSpec.model_validate({"serving": columns, "post_event": post_event or {}})
    assert spec.problems() == []
    return fit(spec, pl.DataFrame(frame).lazy())


def column(column, values, dtype=None):
    """The single column of a spec, fitted on raw values."""
    return fitted({"x": column}, {"x": pl.Series(values, dtype=dtype)}).columns["x"]


def rows_of(column):
    """The vocabulary of a fitted column as a mapping from value to row."""
    return {value: 2 + i for i, value in enumerate(column.rows.values)}


# Vocabularies


@moderate
@given(st.lists(st.none() | st.integers(-3, 3), max_size=30), st.integers(1, 4))
def test_a_vocabulary_holds_frequent_values_the_most_frequent_first(values, least):
    found = column({"type": "categorical", "min_count": least}, values, pl.Int64)
    assert rows_of(found) == oracle.vocabulary(values, least)
    assert list(rows_of(found)) == list(oracle.vocabulary(values, least))


@moderate
@given(st.lists(st.none() | st.sampled_from(["", "a", "b", "é", "Z", "日", "\U0001f600", "\ufffd"]), max_size=30))
def test_texts_of_equal_frequency_follow_the_order_of_their_bytes(values):
    found = column({"type": "categorical"}, values, pl.String)
    assert list(rows_of(found)) == list(oracle.vocabulary(values, 1))


@pytest.mark.parametrize(("type_", "kept"), [("id", [7]), ("categorical", [7, 5])])
def test_an_id_must_be_seen_twice_unless_told_otherwise(type_, kept):
    assert column({"type": type_}, [5, 7, 7]).rows.values.to_list() == kept


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["u", "v", "w"])])
def test_text_types_have_one_vocabulary(dtype):
    found = column({"type": "categorical"}, ["v", "u", "v", None], dtype)
    assert found.rows.values.to_list() == ["v", "u"]
    assert found.rows.values.dtype == pl.String


def test_a_list_counts_its_elements_and_a_separated_text_its_pieces():
    lists = column({"type": "list", "min_count": 2}, [[1, 2, 2], None, [], [1, None, 3]], pl.List(pl.Int64))
    assert lists.rows.values.to_list() == [1, 2]
    pieces = column({"type": "list", "separator": "|", "min_count": 2}, ["a|b", None, "b||b", "a"], pl.String)
    assert pieces.rows.values.to_list() == ["b", "a"]


def test_columns_that_share_a_vocabulary_are_counted_together_by_the_owners_minimum():
    shared = {"type": "list", "vocabulary": "item", "min_count": 9}
    found = fitted(
        {
            "item": {"type": "id", "min_count": 3},
            "seen": shared,
            "twin": {"type": "id", "column": "item", "vocabulary": "item"},
        },
        {"item": [1, 1, 2, 4], "seen": [[2, 2], [3], [3, 3], None], "next": [2, 2, 2, None]},
        {"next": {"type": "id", "vocabulary": "item"}},
    )
    counted = [1, 1, 2, 4] * 2 + [2, 2, 3, 3, 3] + [2, 2, 2]
    expected = list(oracle.vocabulary(counted, 3))
    assert expected == [2, 1, 3]
    for name in ("item", "seen", "twin", "next"):
        assert found.columns[name].rows.values.to_list() == expected
        assert found.columns[name].table == "item"
    assert found.tables == {"item": 2 + 3}


def test_a_hashed_table_is_shared_by_all_its_users():
    found = fitted(
        {"item": {"type": "id", "hash": 9}, "seen": {"type": "list", "vocabulary": "item"}},
        {"item": [1], "seen": [[2]]},
    )
    assert found.tables == {"item": 11}
    assert found.columns["seen"].rows is found.columns["item"].rows


def test_numbers_of_all_widths_may_share_a_vocabulary_but_not_with_texts():
    columns = {"a": "categorical", "b": {"type": "categorical", "vocabulary": "a"}}
    mixed = fitted(columns, {"a": pl.Series([1, 2], dtype=pl.Int8), "b": [2.0, 3.0]})
    assert mixed.columns["b"].rows.values.to_list() == [2, 1, 3]
    with pytest.raises(LogError, match="a: texts and numbers cannot share a vocabulary, found a Int64, b String"):
        fitted(columns, {"a": [1], "b": ["1"]})


def test_a_column_without_a_frequent_value_has_the_reserved_rows_alone():
    for values, dtype in (([1, 2, None], pl.Int64), ([None, ""], pl.String), ([None], pl.Float64)):
        found = fitted({"x": {"type": "id"}}, {"x": pl.Series(values, dtype=dtype)})
        assert found.tables == {"x": 2}


def test_a_key_with_fractions_is_refused_but_rare_ones_are_unknown():
    with pytest.raises(LogError, match="x: holds fractions, which are no keys; declare it numeric"):
        column({"type": "id"}, [0.5, 1.5, 1.0])
    assert column({"type": "id"}, [0.5, 1.0, 1.0]).rows.values.to_list() == [1]


def test_the_smallest_integers_are_keys_like_others():
    values = [-(2**63) + 1, -(2**63) + 1, -(2**63), 2**63 - 1, 2**63 - 1, 2**63 - 1]
    assert column({"type": "id"}, values, pl.Int64).rows.values.to_list() == [2**63 - 1, -(2**63) + 1]


REFUSED = {
    "list that is none": ({"type": "list"}, [1], "x: expected a list, found Int64; give `separator`"),
    "list declared single": ({"type": "id"}, [[1]], "x: holds lists, but its type is id; declare it `type: list`"),
    "list with a separator": (
        {"type": "list", "separator": ","},
        [["a"]],
        "x: `separator` cuts texts, found List(String); remove it",
    ),
    "numbers with a separator": ({"type": "list", "separator": ","}, [1, 2], "x: `separator` cuts texts, found Int64"),
    "list of lists": ({"type": "list"}, [[[1]]], "x: expected integers, whole floats, booleans or texts, found List"),
    "date as id": (
        {"type": "id"},
        pl.Series([0]).cast(pl.Date),
        "x: expected integers, whole floats, booleans or texts",
    ),
    "wide integer as id": ({"type": "id"}, pl.Series([0], dtype=pl.Int128), "found Int128; cast the column"),
    "untyped null": ({"type": "id"}, [None], "x: expected integers, whole floats, booleans or texts, found Null"),
    "text as number": ({"type": "numeric"}, ["1"], "x: expected floats, integers or booleans, found String"),
    "text as binary": ({"type": "binary"}, ["1"], "x: expected floats, integers or booleans, found String"),
    "date as number": ({"type": "numeric"}, pl.Series([0]).cast(pl.Date), "x: expected floats, integers or booleans"),
    "decimal": ({"type": "numeric"}, pl.Series([1]).cast(pl.Decimal(9, 2)), "x: expected floats, integers or booleans"),
    "wide integer": ({"type": "numeric"}, pl.Series([1], dtype=pl.Int128), "x: expected floats, integers or booleans"),
}


@pytest.mark.parametrize(("declared", "values", "message"), REFUSED.values(), ids=REFUSED)
def test_a_raw_column_that_does_not_suit_its_type_is_refused(declared, values, message):
    with pytest.raises(LogError) as caught:
        column(declared, values)
    assert message in str(caught.value)


# Scales

finite = st.floats(-1e150, 1e150) | st.sampled_from([0.0, -0.0, 1.0, 0.1, 1e-9, 123456789.0])


@moderate
@given(st.lists(st.none() | finite | st.sampled_from([math.nan, math.inf]), max_size=30))
@example([0.1] * 7)
@example([1e9 + 1, 1e9 + 2, 1e9 + 3])
def test_standardising_learns_mean_and_deviation_of_the_known_values(values):
    known = [v for v in values if v is not None and math.isfinite(v)]
    found = column({"type": "numeric"}, values, pl.Float64)
    span = max(known) - min(known) if known else 0.0
    if span == 0:
        assert (found.shift, found.scale) == (known[0] if known else 0.0, 1.0)
    else:
        mean = math.fsum(known) / len(known)
        deviation = math.sqrt(math.fsum(((v - mean) / span) ** 2 for v in known) / len(known)) * span
        assert found.shift == pytest.approx(mean, rel=1e-12, abs=1e-12 * span)
        assert found.scale == pytest.approx(deviation, rel=1e-9)


@moderate
@given(st.lists(finite, min_size=1, max_size=30))
def test_minmax_learns_the_range_of_the_known_values(values):
    found = column({"type": "numeric", "scale": "minmax"}, [*values, None], pl.Float64)
    assert found.shift == min(values)
    assert found.scale == (max(values) - min(values) or 1.0)


def test_scales_are_learned_after_clipping_and_compressing():
    values = [-100.0, 0.0, 3.0, 1e9]
    clipped = [math.log1p(v) for v in (0.0, 0.0, 3.0, 10.0)]
    found = column({"type": "numeric", "clip": [0, 10], "log": True}, values)
    assert found.shift == pytest.approx(np.mean(clipped), rel=1e-14)
    assert found.scale == pytest.approx(np.std(clipped), rel=1e-14)
    found = column({"type": "numeric", "clip": [0, 10], "log": True, "scale": "minmax"}, values)
    assert (found.shift, found.scale) == (0.0, pytest.approx(math.log1p(10)))


def test_without_scale_nothing_is_learned():
    found = column({"type": "numeric", "scale": "none"}, [1.0, 1e308, -1e308])
    assert (found.shift, found.scale) == (0.0, 1.0)


def test_a_binary_input_is_centred():
    found = column({"type": "binary"}, [1, 0, 0, None, 0], pl.Int8)
    assert (found.shift, found.scale) == (0.25, 1.0)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-320, 1e300, 123456.789, -7.7])
@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_a_constant_is_only_shifted_however_often_it_occurs(value, scale):
    found = column({"type": "numeric", "scale": scale}, [value] * 1000 + [None])
    assert (found.shift, found.scale) == (value, 1.0)


@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_a_range_that_no_float_can_hold_is_refused(scale):
    with pytest.raises(LogError, match=r"x: values from -1e\+308 to 1e\+308 cannot be scaled; use `clip` or `log`"):
        column({"type": "numeric", "scale": scale}, [1e308, -1e308])
    assert column({"type": "numeric", "scale": scale, "log": True}, [1e308, -1e308]).scale > 1


def test_the_same_rows_in_any_order_and_cut_give_the_same_bits():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"x": np.exp(rng.normal(0, 4, 50_000)), "y": rng.integers(0, 99, 50_000)})
    columns = {
        "x": {"type": "numeric"},
        "log": {"type": "numeric", "column": "x", "log": True},
        "band": {"type": "numeric", "column": "x", "buckets": 9},
        "y": "categorical",
    }
    shuffled = frame.sample(fraction=1, shuffle=True, seed=1)
    pieces = pl.concat([shuffled[:7], shuffled[7:30_000], shuffled[30_000:]], rechunk=False)
    first, second, third = (fitted(columns, f) for f in (frame, shuffled, pieces))
    for name in ("x", "log"):
        assert len({(f.columns[name].shift, f.columns[name].scale) for f in (first, second, third)}) == 1
    assert first.columns["band"].cuts == second.columns["band"].cuts == third.columns["band"].cuts
    assert first.columns["y"].rows.values.equals(third.columns["y"].rows.values)


# Buckets


def cuts(values, buckets, dtype=pl.Float64):
    return column({"type": "numeric", "buckets": buckets}, values, dtype).cuts


def test_cuts_are_quantiles_of_the_training_values():
    assert cuts(list(range(100)), 4, pl.Int64) == (24.0, 49.0, 74.0)
    assert cuts([5.0, 1.0, None, 3.0, math.nan, math.inf], 2) == (3.0,)


@moderate
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 50.0]), min_size=1, max_size=40), st.integers(2, 12))
def test_every_bucket_holds_training_values(values, buckets):
    found = column({"type": "numeric", "buckets": buckets}, values)
    rows = {oracle.bucket_row(v, found.cuts) for v in values}
    assert rows == set(range(2, found.count))
    assert list(found.cuts) == sorted(set(found.cuts))
    assert set(found.cuts) <= set(values)


@pytest.mark.parametrize("values", [[7.0] * 9, [None], []])
def test_a_column_without_two_values_has_one_bucket(values):
    assert cuts(values, 5) == ()


def test_even_buckets_hold_even_numbers_of_rows():
    values = np.random.default_rng(0).normal(size=10_000)
    found = cuts(values.tolist(), 10)
    counts = np.bincount(np.searchsorted(found, values, side="right"))
    assert (counts.min(), counts.max()) == (999, 1001)


def test_tables_are_those_of_embedded_columns():
    found = fitted(
        {
            "a": "categorical",
            "b": {"type": "list", "hash": 5},
            "c": "numeric",
            "d": {"type": "numeric", "column": "c", "buckets": 3},
        },
        {"a": ["x", "y"], "b": [[1], [2]], "c": [1.0, 2.0]},
    )
    assert found.tables == {"a": 4, "b": 7, "d": found.columns["d"].count}


# Rows of another fit


def test_rows_correspond_by_value():
    old, new = (column({"type": "categorical"}, values) for values in ([1, 1, 2, 3], [3, 3, 3, 4, 1, 1]))
    assert new.rows.values.to_list() == [3, 1, 4]
    assert same_rows(new, old).tolist() == [0, 1, rows_of(old)[3], rows_of(old)[1], -1]
    assert same_rows(old, old).tolist() == [0, 1, 2, 3, 4]


def test_rows_of_an_empty_vocabulary_are_the_reserved_ones():
    empty = column({"type": "id"}, [None], pl.Int64)
    full = column({"type": "categorical"}, [5, 6])
    assert same_rows(empty, full).tolist() == [0, 1]
    assert same_rows(full, empty).tolist() == [0, 1, -1, -1]


def test_hashed_rows_and_buckets_correspond_if_they_are_alike():
    hashed = [column({"type": "id", "hash": n}, [1]) for n in (5, 5, 6)]
    assert same_rows(hashed[0], hashed[1]).tolist() == list(range(7))
    cut = [
        column({"type": "numeric", "buckets": 2}, values)
        for values in ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 6.0, 9.0])
    ]
    assert same_rows(cut[0], cut[1]).tolist() == list(range(cut[0].count))
    for new, old in (
        (hashed[0], hashed[2]),
        (cut[0], cut[2]),
        (hashed[0], cut[0]),
        (column({"type": "id"}, [1, 1]), hashed[0]),
    ):
        with pytest.raises(LogError, match="warm start: column 'x' is encoded differently in the other run"):
            same_rows(new, old)


def test_texts_and_numbers_do_not_correspond():
    with pytest.raises(LogError, match="warm start: column 'x'"):
        same_rows(column({"type": "categorical"}, ["1"]), column({"type": "categorical"}, [1]))


@pytest.mark.parametrize(
    ("declared", "before", "now", "message"),
    [
        ({"type": "missing"}, [1], [[1]], r"x: is List\(Int64\) here, but was Int64"),
        ({"type": "missing"}, [["a"]], ["a"], r"x: is String here, but was List\(String\)"),
        (
            {"type": "date_part", "part": "day"},
            pl.Datetime("ms"),
            pl.Datetime("us"),
            "x: is Datetime.*us.*was Datetime.*ms",
        ),
        ({"type": "date_part", "part": "day"}, pl.Datetime("ms"), pl.Int64(), "x: is Int64 here, but was Datetime"),
        ({"type": "date_part", "part": "day"}, pl.Datetime("ms"), pl.Datetime("ms", "Asia/Tokyo"), None),
        ({"type": "date_part", "part": "day"}, pl.Int64(), pl.Int32(), None),
    ],
)
def test_a_log_of_later_days_holds_the_same_types(declared, before, now, message):
    first, second = (
        {"x": pl.Series([1]).cast(values) if isinstance(values, pl.DataType) else pl.Series(values)}
        for values in (before, now)
    )
    spec = FeatureSpec.model_validate({"serving": {"x": declared}})
    known = fit(spec, pl.DataFrame(first).lazy())
    if message is None:
        check_types(known, spec, pl.DataFrame(second).schema)
    else:
        with pytest.raises(LogError, match=message):
            check_types(known, spec, pl.DataFrame(second).schema)
