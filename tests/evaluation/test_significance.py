"""Comparisons over seeds and rows: their formula, their level and coverage in simulation, and the verdict."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recdistill.errors import MetricError
from recdistill.evaluation import (
    Comparison,
    Noise,
    auc,
    auc_ci,
    compare,
    delong_interval,
    delong_test,
    holm,
    holm_adjusted,
    minimum_detectable_effect,
    recovered_gap,
    verdict,
)
from tests.oracles import metrics as oracle

LABEL_N = np.arange(300) % 4 == 0


def system(rng, seeds, *, row_N, shift=1.0, seed_spread=0.0, row_spread=0.0):
    """Scores of one system: a row noise common to its seeds, a separation and a row noise of each seed's own."""
    return [
        row_N + LABEL_N * (shift + seed_spread * rng.normal()) + row_spread * rng.normal(size=len(LABEL_N))
        for _ in range(seeds)
    ]


def pair(rng, seeds, *, shift_a=1.0, **spread):
    """Two systems that share most of the row noise."""
    shared_N, own_a_N, own_b_N = rng.normal(size=(3, len(LABEL_N))) * [[1.0], [0.5], [0.5]]
    a_SN = system(rng, seeds, row_N=shared_N + own_a_N, shift=shift_a, **spread)
    return a_SN, system(rng, seeds, row_N=shared_N + own_b_N, **spread)


def binormal_auc(shift, seed_spread=0.0, row_variance=1.25):
    return stats.norm.cdf(shift / math.sqrt(2 * row_variance + seed_spread**2))


def comparison(low, high, p_adjusted):
    return Comparison((low + high) / 2, (low, high), 0.01, (0.0,), Noise(0.0, 1e-6, math.inf), "test", p_adjusted)


UP, FLAT, DOWN = comparison(0.01, 0.03, 0.001), comparison(-0.01, 0.02, 0.6), comparison(-0.03, -0.01, 0.001)


def test_compare_adds_seed_and_row_noise_as_written_in_the_design():
    a_SN, b_SN = pair(np.random.default_rng(0), 4, shift_a=1.3, seed_spread=0.2)
    result = compare(LABEL_N, a_SN, b_SN, confidence=0.9)
    slow = [oracle.structural_delong(LABEL_N, scores) for scores in zip(a_SN, b_SN, strict=True)]
    delta_S = np.array([auc_K[0] - auc_K[1] for auc_K, _ in slow])
    row = np.mean([c[0, 0] + c[1, 1] - 2 * c[0, 1] for _, c in slow])
    seed = delta_S.var(ddof=1) / 4
    freedom = 3 * (seed + row) ** 2 / seed**2
    spread = stats.t(freedom, loc=delta_S.mean(), scale=math.sqrt(seed + row))
    assert result.delta == pytest.approx(delta_S.mean(), abs=1e-12)
    assert result.delta_S == pytest.approx(delta_S, abs=1e-12)
    assert result.ci == pytest.approx(spread.interval(0.9), abs=1e-12)
    assert result.p_value == pytest.approx(2 * min(spread.cdf(0), spread.sf(0)), rel=1e-9)
    assert result.noise.freedom == pytest.approx(freedom, rel=1e-9)
    assert (result.seeds, result.test, result.p_adjusted) == (4, "paired DeLong and seeds, t", None)


def test_one_seed_is_the_paired_delong_test():
    a_SN, b_SN = pair(np.random.default_rng(1), 1)
    result, expected = compare(LABEL_N, a_SN, b_SN), delong_test(LABEL_N, a_SN[0], b_SN[0])
    assert (result.delta, result.p_value) == (expected.delta, expected.p_value)
    assert result.ci == pytest.approx(expected.ci, abs=1e-15)
    assert (result.noise.freedom, result.noise.seed_variance) == (math.inf, 0.0)
    assert (result.seeds, result.test) == (1, "paired DeLong, normal")


def test_row_noise_does_not_shrink_with_more_seeds_of_the_same_scores():
    a_SN, b_SN = pair(np.random.default_rng(2), 1)
    once, often = compare(LABEL_N, a_SN, b_SN), compare(LABEL_N, a_SN * 20, b_SN * 20)
    assert often.noise.standard_error == pytest.approx(once.noise.standard_error, rel=1e-9)
    assert often.ci == pytest.approx(once.ci, abs=1e-9)


def test_a_matrix_of_scores_is_as_good_as_a_list():
    a_SN, b_SN = pair(np.random.default_rng(3), 3)
    assert compare(LABEL_N, np.stack(a_SN), np.stack(b_SN)) == compare(LABEL_N, a_SN, b_SN)


def test_a_system_compared_with_itself_shows_no_difference():
    a_SN, _ = pair(np.random.default_rng(4), 3, seed_spread=0.3)
    result = compare(LABEL_N, a_SN, a_SN)
    assert (result.delta, result.ci, result.p_value) == (0.0, (0.0, 0.0), 1.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_the_p_value_is_below_five_percent_exactly_when_the_interval_excludes_zero(seed, seeds):
    rng = np.random.default_rng(seed)
    result = compare(LABEL_N, *pair(rng, seeds, shift_a=rng.uniform(0.6, 1.4), seed_spread=0.1))
    assert (result.p_value < 0.05) == (result.ci[0] > 0 or result.ci[1] < 0)
    assert 0 <= result.p_value <= 1


def test_swapping_the_systems_turns_the_sign():
    a_SN, b_SN = pair(np.random.default_rng(5), 3, seed_spread=0.2)
    ab, ba = compare(LABEL_N, a_SN, b_SN), compare(LABEL_N, b_SN, a_SN)
    assert (ab.delta, ab.p_value, ab.ci) == (-ba.delta, ba.p_value, (-ba.ci[1], -ba.ci[0]))


@pytest.mark.parametrize("label_N", [[0, 0, 0], [1, 1, 1], []])
def test_a_missing_class_makes_every_number_nan(label_N):
    score_SN = [np.arange(len(label_N)), np.ones(len(label_N))]
    result, single = compare(label_N, score_SN, score_SN), auc_ci(label_N, score_SN)
    gap = recovered_gap(label_N, score_SN, score_SN, score_SN)
    assert np.isnan([result.delta, *result.ci, result.p_value, single.mean, *single.ci, gap.value, *gap.ci]).all()


def test_a_class_with_one_row_leaves_delta_without_noise():
    result = compare([0, 0, 1], [[1, 2, 3]], [[1, 3, 2]])
    assert result.delta == 0.5
    assert np.isnan([*result.ci, result.p_value]).all()
    gap = recovered_gap([0, 0, 1], [[1, 2, 3]], [[1, 3, 2]], [[1, 2, 3]])
    assert gap.value == 1.0
    assert np.isnan(gap.ci).all()


@pytest.mark.parametrize(("seeds", "seed_spread"), [(1, 0.0), (5, 0.3), (5, 0.1)])
def test_compare_holds_its_level_under_the_null(seeds, seed_spread):
    rng = np.random.default_rng(seeds)
    p_values = [compare(LABEL_N, *pair(rng, seeds, seed_spread=seed_spread)).p_value for _ in range(2000)]
    assert 0.035 <= np.mean(np.array(p_values) < 0.05) <= 0.065


def test_compare_is_cautious_where_seeds_differ_only_row_by_row():
    rng = np.random.default_rng(6)
    p_values = [compare(LABEL_N, *pair(rng, 3, row_spread=1.0)).p_value for _ in range(500)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.05


def test_the_interval_of_a_difference_covers_the_truth_at_its_nominal_rate():
    rng = np.random.default_rng(8)
    truth = binormal_auc(1.4, 0.2) - binormal_auc(1.0, 0.2)
    covered = 0
    for _ in range(2000):
        low, high = compare(LABEL_N, *pair(rng, 5, shift_a=1.4, seed_spread=0.2)).ci
        covered += low <= truth <= high
    assert 0.935 <= covered / 2000 <= 0.965


@pytest.mark.parametrize(("seeds", "seed_spread"), [(1, 0.0), (5, 0.3)])
def test_auc_ci_covers_the_truth_at_its_nominal_rate(seeds, seed_spread):
    rng = np.random.default_rng(9)
    truth = binormal_auc(1.5, seed_spread, row_variance=1.0)
    covered = 0
    for _ in range(2000):
        scores = system(rng, seeds, row_N=rng.normal(size=300), shift=1.5, seed_spread=seed_spread)
        low, high = auc_ci(LABEL_N, scores).ci
        covered += low <= truth <= high
    assert 0.935 <= covered / 2000 <= 0.965


def test_auc_ci_of_one_seed_is_the_delong_interval():
    a_SN, _ = pair(np.random.default_rng(10), 1)
    result = auc_ci(LABEL_N, a_SN)
    assert result.mean == auc(LABEL_N, a_SN[0])
    assert result.ci == pytest.approx(delong_interval(LABEL_N, a_SN[0]), abs=1e-15)
    assert math.isnan(result.std)


def test_auc_ci_reports_mean_and_spread_over_seeds_and_stays_inside_zero_and_one():
    a_SN, _ = pair(np.random.default_rng(11), 3, shift_a=5.0, seed_spread=2.0)
    result = auc_ci(LABEL_N, a_SN)
    auc_S = [auc(LABEL_N, score_N) for score_N in a_SN]
    assert result.auc_S == tuple(auc_S)
    assert result.mean == pytest.approx(np.mean(auc_S), abs=1e-15)
    assert result.std == pytest.approx(np.std(auc_S, ddof=1), abs=1e-15)
    assert 0 < result.ci[0] < result.mean < result.ci[1] < 1


def test_auc_ci_of_perfect_separation_is_the_exact_bound():
    result = auc_ci([0, 0, 0, 1, 1], [[1, 2, 3, 4, 5]] * 2)
    assert (result.mean, result.ci) == (1.0, (pytest.approx(0.025**0.5), 1.0))


def test_holm_on_a_worked_example():
    # Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04; the last is raised to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 100).map(lambda i: i / 500), min_size=1, max_size=6))
def test_holm_rejects_what_its_procedure_rejects(p_values):
    assert holm(p_values) == pytest.approx(oracle.holm_by_rejection(p_values), abs=2e-4)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_only_raises_keeps_the_order_and_stays_below_one(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values)
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_holm_leaves_out_what_could_not_be_tested():
    assert holm([0.01, math.nan, 0.02]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


@pytest.mark.parametrize("p_value", [-0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(p_value):
    with pytest.raises(MetricError, match=r"^holm: p-values must lie in \[0, 1\]"):
        holm([0.5, p_value])


def test_holm_adjusted_writes_into_each_comparison():
    first, second = holm_adjusted([replace(UP, p_value=0.01), replace(UP, p_value=0.03)])
    assert (first.p_adjusted, second.p_adjusted) == (0.02, 0.03)
    assert (first.p_value, second.p_value) == (0.01, 0.03)


def test_minimum_detectable_effect_is_what_the_test_finds_with_its_power():
    error = 0.001
    result = replace(UP, noise=Noise(0.0, error**2, math.inf))
    effect = minimum_detectable_effect(result, alpha=0.05, power=0.8)
    assert stats.norm.sf(stats.norm.ppf(0.975) - effect / error) == pytest.approx(0.8, abs=1e-12)
    few_seeds = replace(UP, noise=Noise(error**2 / 2, error**2 / 2, 4.0))
    assert minimum_detectable_effect(few_seeds) > minimum_detectable_effect(result)
    assert minimum_detectable_effect(result, power=0.9) > effect


def test_recovered_gap_is_the_share_of_the_teachers_lead():
    rng = np.random.default_rng(12)
    row_N = rng.normal(size=300)
    plain, distilled, teacher = (system(rng, 3, row_N=row_N, shift=s, seed_spread=0.05) for s in (0.5, 1.0, 2.0))
    result = recovered_gap(LABEL_N, distilled, plain, teacher)
    mean = {name: np.mean([auc(LABEL_N, s) for s in x]) for name, x in [("d", distilled), ("p", plain), ("t", teacher)]}
    assert result.gain == pytest.approx(mean["d"] - mean["p"], abs=1e-12)
    assert result.gap == pytest.approx(mean["t"] - mean["p"], abs=1e-12)
    assert result.value == pytest.approx(result.gain / result.gap, abs=1e-12)
    assert result.ci[0] < result.value < result.ci[1]


def test_the_ends_of_the_recovered_gap_are_where_the_contrast_becomes_significant():
    a_SN, b_SN = pair(np.random.default_rng(13), 1, shift_a=2.0)
    middle_SN = [(a_SN[0] + b_SN[0]) / 2]
    _, covariance_KK = oracle.structural_delong(LABEL_N, [middle_SN[0], b_SN[0], a_SN[0]])
    result = recovered_gap(LABEL_N, middle_SN, b_SN, a_SN)
    for share in result.ci:
        contrast_K = np.array([1.0, share - 1.0, -share])
        z = (result.gain - share * result.gap) / math.sqrt(contrast_K @ covariance_KK @ contrast_K)
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), abs=1e-8)


def test_recovered_gap_is_one_for_the_teacher_and_zero_for_the_plain_student():
    teacher, plain = pair(np.random.default_rng(14), 3, shift_a=2.0, seed_spread=0.1)
    as_teacher, as_plain = (recovered_gap(LABEL_N, x, plain, teacher) for x in (teacher, plain))
    assert (as_teacher.value, as_plain.value) == (1.0, 0.0)
    assert as_teacher.ci == pytest.approx((1.0, 1.0), abs=1e-6)
    assert as_plain.ci == pytest.approx((0.0, 0.0), abs=1e-6)


def test_recovered_gap_is_nan_when_the_teacher_is_not_above_plain():
    teacher, plain = pair(np.random.default_rng(15), 3, shift_a=0.2)
    for other in (teacher, plain):
        result = recovered_gap(LABEL_N, plain, plain, other)
        assert np.isnan([result.value, *result.ci]).all()
        assert result.gap <= 0


def test_recovered_gap_rules_nothing_out_when_the_teachers_lead_is_not_significant():
    label_N, teacher, plain = [0, 0, 0, 1, 1, 1], [[1, 2, 3, 4, 5, 6]], [[1, 5, 5, 4, 5, 6]]
    assert compare(label_N, teacher, plain).p_value > 0.05
    result = recovered_gap(label_N, [[1, 2, 5, 4, 5, 6]], plain, teacher)
    assert (result.value, result.ci) == (pytest.approx(0.5), (-math.inf, math.inf))


def test_the_interval_of_the_recovered_gap_covers_the_truth_at_its_nominal_rate():
    rng = np.random.default_rng(17)
    truth_plain, truth_distilled, truth_teacher = (binormal_auc(s, 0.1) for s in (0.6, 0.9, 1.6))
    truth = (truth_distilled - truth_plain) / (truth_teacher - truth_plain)
    covered = 0
    for _ in range(1000):
        shared_N = rng.normal(size=300)
        systems = (
            system(rng, 5, row_N=shared_N + 0.5 * rng.normal(size=300), shift=shift, seed_spread=0.1)
            for shift in (0.9, 0.6, 1.6)
        )
        low, high = recovered_gap(LABEL_N, *systems).ci
        covered += low <= truth <= high
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize(
    ("over_plain", "over_shuffled", "expected"),
    [
        (UP, UP, "helps"),
        (UP, FLAT, "no evidence"),
        (UP, DOWN, "no evidence"),
        (FLAT, UP, "no evidence"),
        (FLAT, FLAT, "no evidence"),
        (FLAT, DOWN, "no evidence"),
        (DOWN, UP, "hurts"),
        (DOWN, FLAT, "hurts"),
        (DOWN, DOWN, "hurts"),
        (replace(UP, p_adjusted=0.05), UP, "no evidence"),
        (replace(UP, p_adjusted=math.nan), UP, "no evidence"),
        (replace(DOWN, p_adjusted=0.2), UP, "no evidence"),
        (replace(UP, ci=(-0.001, 0.04)), UP, "no evidence"),
        (replace(UP, ci=(math.nan, math.nan)), UP, "no evidence"),
    ],
)
def test_the_verdict_needs_every_control_to_help_and_plain_to_hurt(over_plain, over_shuffled, expected):
    assert verdict({"plain": over_plain, "shuffled": over_shuffled}) == expected
    assert verdict({"shuffled": over_shuffled, "plain": over_plain}) == expected


def test_the_verdict_on_plain_alone_uses_plain_alone():
    assert [verdict({"plain": x}) for x in (UP, FLAT, DOWN)] == ["helps", "no evidence", "hurts"]


def test_a_twin_of_the_student_gets_no_evidence_and_a_real_teacher_helps():
    rng = np.random.default_rng(18)
    twin, plain = pair(rng, 5, seed_spread=0.05)
    better, worse = pair(rng, 5, shift_a=2.0, seed_spread=0.05)
    for a_SN, b_SN, expected in [(twin, plain, "no evidence"), (better, worse, "helps"), (worse, better, "hurts")]:
        adjusted = holm_adjusted([compare(LABEL_N, a_SN, b_SN)] * 2)
        assert verdict(dict(zip(["plain", "shuffled"], adjusted, strict=True))) == expected


def test_the_verdict_judges_by_the_controls_that_there_are():
    assert verdict({"shuffled": UP}) == "helps"


def test_the_verdict_refuses_to_judge_without_a_control_or_without_holm():
    with pytest.raises(MetricError, match=r"^verdict: needs the comparison with at least one control"):
        verdict({})
    with pytest.raises(MetricError, match=r"^verdict: p-values must be adjusted.*\['shuffled'\].*holm_adjusted"):
        verdict({"plain": UP, "shuffled": replace(UP, p_adjusted=None)})


def test_systems_need_the_same_seeds_and_at_least_one():
    score_N = [1, 2, 3, 4]
    with pytest.raises(MetricError, match=r"^compare: every system needs.*a has 2, b has 1"):
        compare([0, 0, 1, 1], [score_N] * 2, [score_N])
    with pytest.raises(MetricError, match=r"^compare: every system needs.*a has 0, b has 0"):
        compare([0, 0, 1, 1], [], [])
    with pytest.raises(MetricError, match=r"^auc_ci: every system needs.*score has 0"):
        auc_ci([0, 0, 1, 1], [])
    with pytest.raises(MetricError, match=r"^recovered_gap: .*distilled has 1, plain has 1, teacher has 2"):
        recovered_gap([0, 0, 1, 1], [score_N], [score_N], [score_N] * 2)


def test_errors_name_the_system_and_the_seed():
    good_N, short_N, diverged_N = [1, 2, 3, 4], [1, 2], [1, 2, math.nan, 4]
    with pytest.raises(MetricError, match=r"^compare, b\[1\]: score must be finite"):
        compare([0, 0, 1, 1], [good_N, good_N], [good_N, diverged_N])
    with pytest.raises(MetricError, match=r"^auc_ci, seed 1: score must have the shape"):
        auc_ci([0, 0, 1, 1], [good_N, short_N])
    with pytest.raises(MetricError, match=r"^recovered_gap, teacher\[0\]: score must be finite"):
        recovered_gap([0, 0, 1, 1], [good_N], [good_N], [diverged_N])


def test_levels_outside_zero_to_one_are_refused():
    scores = [[1, 2, 3, 4]]
    for call in (
        lambda: compare([0, 0, 1, 1], scores, scores, confidence=95),
        lambda: auc_ci([0, 0, 1, 1], scores, confidence=95),
        lambda: recovered_gap([0, 0, 1, 1], scores, scores, scores, confidence=0),
        lambda: minimum_detectable_effect(UP, alpha=5),
        lambda: minimum_detectable_effect(UP, power=1.0),
    ):
        with pytest.raises(MetricError, match="must lie strictly between 0 and 1"):
            call()
