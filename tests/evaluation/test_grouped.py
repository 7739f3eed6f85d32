"""Grouped AUCs against a loop over groups, on data where the conventions disagree."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.errors import MetricError
from recdistill.evaluation import auc, group_table, grouped_auc
from tests.oracles import metrics as oracle

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(-2, 2), st.integers(-4, 4)), min_size=1, max_size=60)

# Groups: a perfect with 1 positive of 4 rows, b upside down with 2 of 3, c one tie, d negatives only, e one positive.
LABEL_N = [1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1]
SCORE_N = [9, 1, 2, 3, 8, 5, 4, 6, 6, 1, 2, 3]
GROUP_N = list("aaaabbbccdde")


@given(rows)
def test_grouped_auc_equals_a_loop_over_groups(data):
    columns = list(zip(*data, strict=True))
    assert grouped_auc(*columns).as_dict() == pytest.approx(
        oracle.grouped_aucs(*columns), rel=0, abs=1e-12, nan_ok=True
    )


def test_the_four_conventions_disagree_and_each_keeps_its_definition():
    result = grouped_auc(LABEL_N, SCORE_N, GROUP_N)
    assert result.gauc_macro == pytest.approx((1 + 0 + 0.5) / 3, abs=1e-15)
    assert result.gauc_impressions == pytest.approx((4 * 1 + 3 * 0 + 2 * 0.5) / 9, abs=1e-15)
    assert result.gauc_positives == pytest.approx((1 * 1 + 2 * 0 + 1 * 0.5) / 4, abs=1e-15)
    assert result.gauc_half == pytest.approx((1 + 0 + 0.5 + 0.5 + 0.5) / 5, abs=1e-15)
    values = [result.gauc_macro, result.gauc_impressions, result.gauc_positives, auc(LABEL_N, SCORE_N)]
    assert len({round(value, 6) for value in values}) == 4
    assert result.coverage_rows == 9 / 12
    assert result.coverage_groups == 3 / 5
    assert result.groups == 5


def test_half_differs_from_macro_unless_every_group_is_covered_or_even():
    result = grouped_auc([1, 0, 1], [2, 1, 0], [1, 1, 2])
    assert (result.gauc_macro, result.gauc_half) == (1.0, 0.75)


@given(rows, st.integers(0, 2**32 - 1))
def test_row_order_and_group_names_do_not_matter(data, seed):
    label_N, score_N, group_N = (np.array(column) for column in zip(*data, strict=True))
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    renamed_N = np.array([f"user {-group}" for group in group_N])
    expected = grouped_auc(label_N, score_N, group_N).as_dict()
    renamed = grouped_auc(label_N[order_N], score_N[order_N], renamed_N[order_N]).as_dict()
    assert renamed == pytest.approx(expected, rel=0, abs=1e-12, nan_ok=True)


@given(rows)
def test_a_monotone_transform_within_each_group_changes_nothing(data):
    label_N, score_N, group_N = (np.array(column) for column in zip(*data, strict=True))
    shifted_N = np.exp(score_N) * (group_N + 5) + 100 * group_N
    expected = grouped_auc(label_N, score_N, group_N).as_dict()
    assert grouped_auc(label_N, shifted_N, group_N).as_dict() == pytest.approx(expected, rel=0, abs=1e-12, nan_ok=True)


def test_one_group_is_the_plain_auc_in_every_convention():
    rng = np.random.default_rng(0)
    label_N, score_N = rng.integers(0, 2, 500), rng.integers(0, 9, 500)
    result = grouped_auc(label_N, score_N, np.zeros(500, np.int64))
    values = [result.gauc_macro, result.gauc_impressions, result.gauc_positives, result.gauc_half]
    assert values == pytest.approx([auc(label_N, score_N)] * 4, rel=0, abs=1e-12)
    assert result.coverage_rows == result.coverage_groups == 1.0


def test_constant_scores_are_one_half_in_every_covered_group():
    result = grouped_auc([1, 0, 0, 1, 1], [3.0] * 5, [1, 1, 2, 2, 3])
    assert (result.gauc_macro, result.gauc_impressions, result.gauc_positives, result.gauc_half) == (0.5,) * 4


def test_without_a_covered_group_only_half_is_a_number():
    result = grouped_auc([1, 1, 0], [1, 2, 3], [1, 1, 2])
    assert math.isnan(result.gauc_macro)
    assert math.isnan(result.gauc_impressions)
    assert math.isnan(result.gauc_positives)
    assert (result.gauc_half, result.coverage_rows, result.coverage_groups) == (0.5, 0.0, 0.0)


def test_without_rows_nothing_is_a_number():
    result = grouped_auc([], [], []).as_dict()
    assert result.pop("groups") == 0
    assert all(math.isnan(value) for value in result.values())


@pytest.mark.parametrize(
    "group_N",
    [
        np.array([2**62, 2**62 + 1, 2**62, 2**62 + 1]),
        np.array(["x", "y", "x", "y"]),
        np.array(["x", "y", "x", "y"], dtype=object),
        np.array([True, False, True, False]),
        np.array(["2022-04-25", "2022-05-01"] * 2, dtype="datetime64[D]"),
        np.array([0.5, 1.5, 0.5, 1.5]),
        [7, 8, 7, 8],
    ],
)
def test_any_sortable_key_may_name_a_group(group_N):
    table = group_table([1, 1, 0, 0], [2, 1, 1, 2], group_N)
    assert sorted(table.auc_G.tolist()) == [0.0, 1.0]
    assert table.rows_G.tolist() == [2, 2]
    assert table.positives_G.tolist() == [1, 1]


def test_the_table_is_in_ascending_order_of_group():
    table = group_table(LABEL_N[::-1], SCORE_N[::-1], GROUP_N[::-1])
    assert table.group_G.tolist() == list("abcde")
    assert table.auc_G.tolist() == pytest.approx([1.0, 0.0, 0.5, math.nan, math.nan], nan_ok=True)
    assert table.rows_G.tolist() == [4, 3, 2, 2, 1]
    assert table.positives_G.tolist() == [1, 2, 1, 0, 1]


def test_a_million_rows_in_fifty_thousand_groups_take_no_loop_over_groups():
    rng = np.random.default_rng(0)
    label_N, score_N = rng.random(10**6) < 0.2, rng.normal(size=10**6).astype(np.float32)
    group_N = rng.integers(0, 50_000, 10**6)
    start = time.perf_counter()
    result = grouped_auc(label_N, score_N, group_N)
    # About 0.4 s on two cores; a loop over groups takes ten times as long.
    assert time.perf_counter() - start < 2.5
    assert result.groups == 50_000
    assert result.gauc_macro == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("group_N", "message"),
    [
        ([1, 2], r"group must have the shape of the labels, \(3,\), but has shape \(2,\)"),
        ([1.0, math.nan, math.nan], "every row must have a group, but 2 have none; the first is row 1"),
        (np.array(["2022-01-01", "NaT", "2022-01-01"], "M8[D]"), "every row must have a group, but 1 have none"),
        (np.array([1, None, "x"], dtype=object), r"groups must be comparable.*Use one type, without missing values"),
    ],
)
def test_unusable_groups_are_refused(group_N, message):
    with pytest.raises(MetricError, match=f"^group_table: {message}"):
        grouped_auc([0, 1, 1], [1, 2, 3], group_N)


def test_unusable_scores_and_labels_are_refused_as_in_auc():
    with pytest.raises(MetricError, match=r"^group_table: score must be finite"):
        grouped_auc([0, 1], [1, math.nan], [1, 1])
    with pytest.raises(MetricError, match=r"^group_table: labels must be 0 or 1"):
        grouped_auc([0, -1], [1, 2], [1, 1])
