"""Log loss, normalised entropy and calibration against definitions and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from recdistill.errors import MetricError
from recdistill.evaluation import brier, ece_equal_mass, log_loss, normalized_entropy, pcoc, reliability
from tests.oracles import metrics as oracle

# Eighths are exact in binary, so that equal probabilities are equal and sums carry no rounding.
rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=50)
METRICS_OF_PROB = [brier, pcoc, ece_equal_mass]
METRICS_OF_LOGIT = [log_loss, normalized_entropy]


def columns(data):
    label_N, eighth_N, weight_N = (np.array(column) for column in zip(*data, strict=True))
    return label_N, eighth_N / 8, weight_N


def same(value, expected):
    return value == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


def clicks(seed, rows_count=2000):
    rng = np.random.default_rng(seed)
    logit_N = rng.normal(-1, 1.5, rows_count)
    return (rng.random(rows_count) < special.expit(logit_N)).astype(int), logit_N, rng.exponential(size=rows_count)


@pytest.mark.parametrize("weighted", [False, True])
def test_log_loss_and_brier_agree_with_scikit_learn(weighted):
    label_N, logit_N, weight_N = clicks(0)
    weight_N = weight_N if weighted else None
    prob_N = special.expit(logit_N)
    assert same(
        log_loss(label_N, logit_N, weight_N=weight_N), sklearn_log_loss(label_N, prob_N, sample_weight=weight_N)
    )
    assert same(brier(label_N, prob_N, weight_N=weight_N), brier_score_loss(label_N, prob_N, sample_weight=weight_N))


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-20, 20)), min_size=1, max_size=30))
def test_log_loss_equals_its_definition(data):
    label_N, logit_N = zip(*data, strict=True)
    # Forming 1 - p loses digits, at most exp(20) * 2^-53 of them here.
    assert log_loss(label_N, logit_N) == pytest.approx(oracle.log_loss(label_N, logit_N), rel=1e-7, abs=1e-12)


def test_log_loss_neither_overflows_nor_clips():
    assert log_loss([0, 1], [1e6, 1e6]) == 5e5
    assert log_loss([1], [1000.0]) == 0.0
    assert log_loss([1], [50.0]) == pytest.approx(math.exp(-50), rel=1e-12)
    assert log_loss([0], [-50.0]) == pytest.approx(math.exp(-50), rel=1e-12)


def test_single_precision_logits_are_summed_in_double():
    label_N, logit_N, _ = clicks(1)
    single_N = logit_N.astype(np.float32)
    assert log_loss(label_N, single_N) == log_loss(label_N, single_N.astype(np.float64))


def test_normalized_entropy_is_one_at_the_base_rate_and_relative_to_it():
    label_N, logit_N, _ = clicks(2)
    base = special.logit(label_N.mean())
    assert same(normalized_entropy(label_N, np.full(2000, base)), 1.0)
    assert same(normalized_entropy(label_N, logit_N), log_loss(label_N, logit_N) / oracle.entropy(label_N))
    assert normalized_entropy(label_N, logit_N) < 1 < normalized_entropy(label_N, -logit_N)


def test_normalized_entropy_uses_the_weighted_base_rate():
    weight_N = np.array([3.0, 1.0, 0.0])
    assert same(normalized_entropy([0, 1, 1], np.full(3, special.logit(0.25)), weight_N=weight_N), 1.0)


@pytest.mark.parametrize("label_N", [[], [0, 0], [1, 1]])
def test_normalized_entropy_is_nan_when_a_class_is_missing(label_N):
    assert math.isnan(normalized_entropy(label_N, np.zeros(len(label_N))))


@pytest.mark.parametrize("metric", METRICS_OF_PROB + METRICS_OF_LOGIT)
def test_without_rows_or_weight_a_metric_is_nan(metric):
    assert math.isnan(metric([], []))
    assert math.isnan(metric([0, 1], [0.5, 0.5], weight_N=[0, 0]))


@pytest.mark.parametrize("metric", METRICS_OF_PROB + METRICS_OF_LOGIT)
@given(rows)
def test_weight_two_is_the_row_twice_and_weight_zero_is_the_row_absent(metric, data):
    label_N, prob_N, weight_N = columns(data)
    assert same(metric(label_N, prob_N, weight_N=weight_N), metric(*oracle.copies(weight_N, label_N, prob_N)))


@pytest.mark.parametrize("metric", METRICS_OF_PROB + METRICS_OF_LOGIT)
@given(rows, st.integers(0, 2**32 - 1))
def test_row_order_does_not_matter(metric, data, seed):
    label_N, prob_N, weight_N = columns(data)
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    expected = metric(label_N, prob_N, weight_N=weight_N)
    assert same(metric(label_N[order_N], prob_N[order_N], weight_N=weight_N[order_N]), expected)


@given(rows, st.integers(1, 25))
def test_reliability_and_ece_equal_their_definition_with_ties(data, bins):
    label_N, prob_N, _ = columns(data)
    expected = oracle.reliability_rows(label_N.tolist(), prob_N.tolist(), bins)
    table = reliability(label_N, prob_N, bins=bins)
    np.testing.assert_allclose(np.column_stack([table.prob_K, table.rate_K, table.rows_K]), expected, atol=1e-12)
    assert same(ece_equal_mass(label_N, prob_N, bins=bins), oracle.ece(label_N.tolist(), prob_N.tolist(), bins))


@given(rows, st.integers(1, 25))
def test_ties_are_never_split_and_every_row_lies_in_one_bin(data, bins):
    label_N, prob_N, _ = columns(data)
    table = reliability(label_N, prob_N, bins=bins)
    assert table.rows_K.sum() == len(label_N)
    assert len(table.rows_K) <= min(bins, len(set(prob_N)))
    assert (np.diff(table.prob_K) > 0).all()
    boundaries = np.cumsum(table.rows_K).astype(int)[:-1]
    sorted_N = np.sort(prob_N)
    assert (sorted_N[boundaries] != sorted_N[boundaries - 1]).all()


@pytest.mark.parametrize("bins", [1, 5, 20])
def test_reliability_agrees_with_scikit_learn_where_no_probability_repeats(bins):
    label_N, logit_N, _ = clicks(3)
    prob_N = special.expit(logit_N)
    rate_K, prob_K = calibration_curve(label_N, prob_N, n_bins=bins, strategy="quantile")
    table = reliability(label_N, prob_N, bins=bins)
    np.testing.assert_allclose(table.rate_K, rate_K, rtol=0, atol=1e-12)
    np.testing.assert_allclose(table.prob_K, prob_K, rtol=0, atol=1e-12)
    assert set(table.rows_K) == {2000 / bins}


def test_ece_and_its_table_use_twenty_bins_unless_told():
    label_N, logit_N, _ = clicks(4)
    prob_N = special.expit(logit_N)
    assert ece_equal_mass(label_N, prob_N) == ece_equal_mass(label_N, prob_N, bins=20)
    assert ece_equal_mass(label_N, prob_N) != ece_equal_mass(label_N, prob_N, bins=10)
    assert len(reliability(label_N, prob_N).rows_K) == 20


def test_a_constant_probability_is_one_bin():
    table = reliability([0, 1, 1, 1], [0.5] * 4)
    assert (table.prob_K.tolist(), table.rate_K.tolist(), table.rows_K.tolist()) == ([0.5], [0.75], [4.0])
    assert ece_equal_mass([0, 1, 1, 1], [0.5] * 4) == 0.25


def test_probabilities_zero_and_one_are_legal():
    assert ece_equal_mass([0, 1], [0.0, 1.0]) == 0.0
    assert brier([0, 1], [0.0, 1.0]) == 0.0
    assert pcoc([0, 1], [0.0, 1.0]) == 1.0


def test_ece_is_small_for_true_probabilities_and_sees_a_bias_that_auc_cannot():
    label_N, logit_N, _ = clicks(5, rows_count=100_000)
    assert ece_equal_mass(label_N, special.expit(logit_N)) < 0.01
    assert ece_equal_mass(label_N, special.expit(logit_N + 1)) > 0.1


def test_pcoc_is_predicted_over_observed_clicks():
    assert pcoc([0, 0, 1, 1], [0.2, 0.4, 0.6, 0.4]) == pytest.approx(0.8, abs=1e-12)
    assert pcoc([0, 1], [0.5, 0.5], weight_N=[3, 1]) == 2.0
    assert math.isnan(pcoc([0, 0], [0.1, 0.2]))


@pytest.mark.parametrize("metric", [*METRICS_OF_PROB, reliability])
def test_logits_are_refused_where_probabilities_are_due(metric):
    message = f"^{'reliability' if metric is ece_equal_mass else metric.__name__}: a probability must lie in"
    with pytest.raises(MetricError, match=message + ".*2 do not; the first is -1.5 in row 0.*sigmoid"):
        metric([0, 1, 1], [-1.5, 0.5, 2.0])


@pytest.mark.parametrize("metric", [*METRICS_OF_PROB, *METRICS_OF_LOGIT, reliability])
def test_unusable_rows_are_refused_by_every_metric(metric):
    for label_N, value_N, weight_N, message in [
        ([0, 3], [0.1, 0.2], None, "labels must be 0 or 1"),
        ([0, 1], [0.1, math.nan], None, "must be finite"),
        ([0, 1], [0.1, math.inf], None, "must be finite"),
        ([0, 1], [[0.1], [0.2]], None, "must have the shape of the labels"),
        ([0, 1], [0.1, 0.2], [1, -1], "weight must not be negative"),
        ([0, 1], [0.1, 0.2], [1, 1, 1], "weight must have the shape of the labels"),
    ]:
        with pytest.raises(MetricError, match=message):
            metric(label_N, value_N, weight_N=weight_N)


@pytest.mark.parametrize("bins", [0, -3])
def test_fewer_than_one_bin_is_refused(bins):
    with pytest.raises(MetricError, match=f"bins must be at least 1, but is {bins}"):
        reliability([0, 1], [0.1, 0.2], bins=bins)
