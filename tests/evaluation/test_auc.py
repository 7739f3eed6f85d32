"""AUC and DeLong against pair counting, scikit-learn and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from recdistill.errors import MetricError
from recdistill.evaluation import (
    auc,
    delong_covariance,
    delong_interval,
    delong_test,
    logit_interval,
    placement_covariance,
    placements,
)
from tests.oracles import metrics as oracle

# Few distinct scores, so that ties within and across classes are the rule.
rows = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=40)
seeds = st.integers(0, 2**32 - 1)


def tied_rows(rng, rows_count, levels):
    """Labels of both classes and scores with `levels` distinct values that know something about them."""
    label_N = rng.integers(0, 2, rows_count)
    label_N[:4] = [0, 0, 1, 1]
    score_N = np.floor(rng.normal(size=rows_count) * levels / 4 + label_N * levels / 8)
    return label_N, score_N


def same(value, expected):
    return value == pytest.approx(expected, rel=0, abs=1e-12, nan_ok=True)


@given(rows)
def test_auc_counts_pairs_with_ties_at_half_credit(data):
    label_N, score_N, _ = zip(*data, strict=True)
    assert same(auc(label_N, score_N), oracle.pair_auc(label_N, score_N))


@given(rows)
def test_weighted_auc_counts_pairs_by_the_product_of_their_weights(data):
    label_N, score_N, weight_N = zip(*data, strict=True)
    assert same(auc(label_N, score_N, weight_N=weight_N), oracle.pair_auc(label_N, score_N, weight_N))


@given(rows)
def test_weight_two_is_the_row_twice_and_weight_zero_is_the_row_absent(data):
    label_N, score_N, weight_N = zip(*data, strict=True)
    assert same(auc(label_N, score_N, weight_N=weight_N), auc(*oracle.copies(weight_N, label_N, score_N)))


@pytest.mark.parametrize("levels", [2, 4, 16, 10**6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("weighted", [False, True])
def test_auc_agrees_with_scikit_learn(levels, dtype, weighted):
    rng = np.random.default_rng(levels)
    label_N, score_N = tied_rows(rng, 5000, levels)
    score_N = (score_N / 64).astype(dtype)
    weight_N = rng.exponential(size=5000) if weighted else None
    assert same(auc(label_N, score_N, weight_N=weight_N), roc_auc_score(label_N, score_N, sample_weight=weight_N))


@given(rows, seeds)
def test_auc_and_delong_do_not_depend_on_the_order_of_rows(data, seed):
    label_N, score_N, weight_N = (np.array(column) for column in zip(*data, strict=True))
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    shuffled = label_N[order_N], score_N[order_N]
    assert same(auc(*shuffled), auc(label_N, score_N))
    assert same(auc(*shuffled, weight_N=weight_N[order_N]), auc(label_N, score_N, weight_N=weight_N))
    assert same(placements(*shuffled).variance, placements(label_N, score_N).variance)


@given(rows)
def test_auc_and_delong_see_only_the_order_of_scores(data):
    label_N, score_N, _ = (np.array(column) for column in zip(*data, strict=True))
    for transformed_N in (np.exp(score_N), score_N**3 + 5.0, 1e-3 * score_N.astype(np.float32)):
        assert auc(label_N, transformed_N) == pytest.approx(auc(label_N, score_N), abs=0, rel=0, nan_ok=True)
        assert same(placements(label_N, transformed_N).variance, placements(label_N, score_N).variance)


@given(rows)
def test_turning_scores_or_labels_around_mirrors_the_auc(data):
    label_N, score_N, _ = (np.array(column) for column in zip(*data, strict=True))
    assert same(auc(label_N, -score_N), 1 - auc(label_N, score_N))
    assert same(auc(1 - label_N, score_N), 1 - auc(label_N, score_N))


@pytest.mark.parametrize("order", ["positives first", "negatives first", "mixed"])
def test_a_constant_score_has_auc_one_half_in_any_row_order(order):
    label_N = {"positives first": [1, 1, 0, 0, 0], "negatives first": [0, 0, 0, 1, 1], "mixed": [0, 1, 0, 1, 0]}[order]
    assert auc(label_N, [7.0] * 5) == 0.5
    assert placements(label_N, [7.0] * 5).variance == 0.0


def test_a_two_valued_score_has_the_auc_of_its_two_rates():
    # True positive rate 3/4, false positive rate 1/2: (1 + 3/4 - 1/2) / 2.
    assert auc([1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]) == 0.625


@pytest.mark.parametrize("label_N", [[], [0, 0, 0], [1, 1, 1]])
def test_auc_is_nan_when_a_class_is_missing(label_N):
    score_N = np.arange(len(label_N), dtype=float)
    assert math.isnan(auc(label_N, score_N))
    assert math.isnan(placements(label_N, score_N).auc)
    assert math.isnan(placements(label_N, score_N).variance)
    assert all(math.isnan(bound) for bound in delong_interval(label_N, score_N))
    assert math.isnan(delong_test(label_N, score_N, score_N).p_value)


def test_auc_is_nan_when_a_class_has_no_weight():
    assert math.isnan(auc([0, 0, 1], [0.1, 0.2, 0.3], weight_N=[1, 1, 0]))


@pytest.mark.parametrize("label_N", [np.array([False, True, True]), np.array([0.0, 1.0, 1.0], np.float32)])
def test_boolean_and_float_labels_mean_the_same(label_N):
    assert auc(label_N, [0.1, 0.0, 0.3]) == 0.5


def test_minus_zero_ties_with_zero():
    assert auc([0, 1], [0.0, -0.0]) == 0.5


def test_auc_of_large_counts_is_exact():
    # 2 P M exceeds 32 bits and the AUC is one pair short of one.
    label_N = np.repeat([0, 1], 60_000)
    score_N = np.arange(120_000, dtype=float)
    score_N[[59_999, 60_000]] = score_N[[60_000, 59_999]]
    assert auc(label_N, score_N) == (60_000**2 - 1) / 60_000**2


@settings(max_examples=50)
@given(seeds, st.sampled_from([1, 2, 5, 1000]))
def test_delong_covariance_equals_the_structural_components(seed, levels):
    rng = np.random.default_rng(seed)
    label_N, score_a_N = tied_rows(rng, 30, levels)
    score_KN = [score_a_N, np.floor(score_a_N + rng.normal(size=30)), rng.normal(size=30)]
    expected_auc_K, expected_KK = oracle.structural_delong(label_N, score_KN)
    auc_K, covariance_KK = delong_covariance(label_N, score_KN)
    np.testing.assert_allclose(auc_K, expected_auc_K, rtol=0, atol=1e-12)
    np.testing.assert_allclose(covariance_KK, expected_KK, rtol=0, atol=1e-12)
    test = delong_test(label_N, score_KN[0], score_KN[1])
    contrast_K = np.array([1.0, -1.0, 0.0])
    assert same(test.delta, contrast_K @ expected_auc_K)
    assert same(test.variance, contrast_K @ expected_KK @ contrast_K)
    assert same(placements(label_N, score_a_N).variance, expected_KK[0, 0])


@given(rows)
def test_placements_of_either_class_average_to_the_auc(data):
    label_N, score_N, _ = zip(*data, strict=True)
    value = placements(label_N, score_N)
    if 0 < sum(label_N) < len(label_N):
        assert same(value.positive_P.mean(), value.auc)
        assert same(value.negative_M.mean(), value.auc)


def test_placements_keep_the_order_of_rows_within_a_class():
    value = placements([1, 0, 1, 0, 0], [0.2, 0.9, 0.8, 0.1, 0.2])
    assert value.positive_P.tolist() == [0.5, 2 / 3]
    np.testing.assert_allclose(value.negative_M, [0.0, 1.0, 0.75])


def test_equal_scores_have_no_difference_and_no_variance_of_it():
    label_N, score_N = tied_rows(np.random.default_rng(0), 500, 20)
    test = delong_test(label_N, score_N, 3 * score_N + 1)
    assert (test.delta, test.variance, test.ci, test.p_value) == (0.0, 0.0, (0.0, 0.0), 1.0)


def test_a_difference_without_any_noise_has_p_value_zero():
    test = delong_test([0, 0, 1, 1], [0, 0, 1, 1], [5, 5, 5, 5])
    assert (test.delta, test.ci, test.p_value) == (0.5, (0.5, 0.5), 0.0)


def test_swapping_the_systems_turns_the_sign():
    rng = np.random.default_rng(1)
    label_N, score_N = tied_rows(rng, 300, 50)
    other_N = rng.normal(size=300)
    ab, ba = delong_test(label_N, score_N, other_N), delong_test(label_N, other_N, score_N)
    assert (ab.delta, ab.p_value, ab.ci) == (-ba.delta, ba.p_value, (-ba.ci[1], -ba.ci[0]))
    assert (ab.auc_a, ab.auc_b) == (ba.auc_b, ba.auc_a)


def test_one_row_of_a_class_leaves_the_auc_but_no_variance():
    value = placements([0, 0, 1], [0.1, 0.2, 0.3])
    assert value.auc == 1.0
    assert math.isnan(value.variance)
    assert np.isnan(placement_covariance([value, value])).all()


def test_delong_p_value_and_interval_agree_with_the_normal():
    label_N, score_N = tied_rows(np.random.default_rng(2), 400, 100)
    test = delong_test(label_N, score_N, np.random.default_rng(3).normal(size=400), confidence=0.9)
    error = math.sqrt(test.variance)
    assert same(test.p_value, 2 * stats.norm.sf(abs(test.delta) / error))
    np.testing.assert_allclose(test.ci, stats.norm.interval(0.9, test.delta, error), rtol=1e-12)


@pytest.mark.parametrize("auc_value", [1e-6, 0.03, 0.5, 0.97, 1 - 1e-6])
@pytest.mark.parametrize("freedom", [1.0, 3.3, math.inf])
def test_logit_interval_stays_inside_and_holds_the_estimate(auc_value, freedom):
    low, high = logit_interval(auc_value, 0.02, disjoint_pairs=10, freedom=freedom)
    assert 0 <= low < auc_value < high <= 1


def test_logit_interval_is_mirrored_with_the_auc():
    low, high = logit_interval(0.9, 0.02, disjoint_pairs=10)
    assert logit_interval(1 - 0.9, 0.02, disjoint_pairs=10) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_logit_interval_is_the_plain_one_where_noise_is_small():
    assert logit_interval(0.7, 1e-5, disjoint_pairs=10) == pytest.approx(stats.norm.interval(0.95, 0.7, 1e-5), abs=1e-9)


def test_perfect_separation_has_the_exact_binomial_bound_of_its_disjoint_pairs():
    low, high = delong_interval([0] * 20 + [1] * 30, np.arange(50))
    exact = stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((exact.low, 1.0), abs=1e-12)
    assert delong_interval([1] * 20 + [0] * 30, np.arange(50)) == pytest.approx((0.0, 1 - exact.low), abs=1e-12)


@pytest.mark.parametrize(("shift", "rows_count"), [(0.5, 200), (2.0, 200), (1.0, 60)])
def test_delong_interval_covers_the_true_auc_at_its_nominal_rate(shift, rows_count):
    rng = np.random.default_rng(rows_count)
    truth = stats.norm.cdf(shift / math.sqrt(2))
    label_N = np.arange(rows_count) % 3 == 0
    covered = 0
    for _ in range(2000):
        low, high = delong_interval(label_N, rng.normal(size=rows_count) + shift * label_N)
        covered += low <= truth <= high
    assert 0.93 <= covered / 2000 <= 0.97


def test_paired_test_holds_its_level_under_the_null():
    rng = np.random.default_rng(7)
    label_N = np.arange(300) % 4 == 0
    rejected = 0
    for _ in range(10_000):
        shared_N = rng.normal(size=300) + label_N
        a_N, b_N = shared_N + 0.5 * rng.normal(size=300), shared_N + 0.5 * rng.normal(size=300)
        rejected += delong_test(label_N, a_N, b_N).p_value < 0.05
    assert 0.043 <= rejected / 10_000 <= 0.057


@pytest.mark.parametrize(
    ("label_N", "score_N", "weight_N", "message"),
    [
        ([0, 1, 2], [1, 2, 3], None, "labels must be 0 or 1, but 1 are not; the first is 2 in row 2"),
        ([0.0, math.nan, 1.0], [1, 2, 3], None, "labels must be 0 or 1.*the first is nan in row 1.*drop the rows"),
        (["a", "b"], [1, 2], None, "labels must be one number per row"),
        ([[0, 1]], [[1, 2]], None, r"labels must be one number per row.*\(1, 2\)"),
        ([0, 1], [1, 2, 3], None, r"score must have the shape of the labels, \(2,\), but has shape \(3,\)"),
        ([0, 1], [[1], [2]], None, r"score must have the shape of the labels, \(2,\), but has shape \(2, 1\)"),
        ([0, 1, 1], [1, math.nan, math.inf], None, "score must be finite, but 2 values.*nan in row 1"),
        ([0, 1], [1, -math.inf], None, "score must be finite, but 1 values.*-inf in row 1"),
        ([0, 1], ["x", "y"], None, "score must be real numbers"),
        ([0, 1], [1j, 2j], None, "score must be real numbers"),
        ([0, 1], [1, 2], [1, -2], "weight must not be negative, but is -2.0 in row 1"),
        ([0, 1], [1, 2], [1, math.nan], "weight must be finite"),
        ([0, 1], [1, 2], [1], r"weight must have the shape of the labels, \(2,\), but has shape \(1,\)"),
    ],
)
def test_unusable_rows_are_refused_by_name(label_N, score_N, weight_N, message):
    with pytest.raises(MetricError, match=f"^auc: {message}"):
        auc(label_N, score_N, weight_N=weight_N)


def test_errors_name_the_system_that_is_wrong():
    with pytest.raises(MetricError, match=r"^delong_test, b: score must be finite"):
        delong_test([0, 1], [1, 2], [1, math.nan])
    with pytest.raises(MetricError, match=r"^delong_covariance, system 1: score must have the shape"):
        delong_covariance([0, 1], [[1, 2], [1]])
    with pytest.raises(MetricError, match=r"^delong_covariance: at least one system"):
        delong_covariance([0, 1], [])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, -0.1, math.nan])
def test_a_confidence_outside_zero_to_one_is_refused(confidence):
    with pytest.raises(MetricError, match="confidence must lie strictly between 0 and 1"):
        delong_interval([0, 0, 1, 1], [1, 2, 3, 4], confidence=confidence)
    with pytest.raises(MetricError, match="confidence must lie strictly between 0 and 1"):
        delong_test([0, 0, 1, 1], [1, 2, 3, 4], [1, 2, 3, 4], confidence=confidence)
