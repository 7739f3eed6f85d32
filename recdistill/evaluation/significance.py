"""Did distillation help? Differences of AUC with their noise, and the verdict of a report.

A difference measured over S seeds on one test log is noisy twice. Another training seed gives other weights: that noise
falls with S. Other users would give other rows: that noise does not, because every seed is scored on the same rows. So

    SE^2 = var(delta over seeds) / S + mean over seeds of the paired DeLong variance

where the first part has S - 1 degrees of freedom and the second, resting on all rows, infinitely many. Welch and
Satterthwaite's rule joins them: ``freedom = (S - 1) * (SE^2 / seed part)^2``. With one seed only the row part exists,
the interval is normal, and nothing is known about training noise.

Two limits of the rule. It is cautious where a seed moves single rows rather than the whole AUC: that noise is counted
in both parts, although it, too, falls with S; if it is all there is, SE is ``sqrt(1 + S)`` times too large. It is bold
with very few seeds, whose spread says little about itself: where seeds are most of the noise, a 5 % test of two equal
systems rejects 13 % of the time with 2 seeds, 8 % with 3 and 6 % with 4 or 5.

Shapes: N rows, S seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from recdistill.errors import MetricError
from recdistill.evaluation.auc import (
    Floats,
    Interval,
    checked_share,
    logit_interval,
    placement_covariance,
    placements,
    two_sided_p,
)

Verdict = Literal["helps", "no evidence", "hurts"]


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a mean over seeds: its two parts as variances, the standard error, and degrees of freedom."""

    seed_variance: float
    row_variance: float
    freedom: float

    @property
    def standard_error(self) -> float:
        """Root of the sum of both parts."""
        return math.sqrt(self.seed_variance + self.row_variance)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The AUC of a minus that of b, averaged over seeds, on the same rows.

    Attributes:
        delta: mean difference.
        ci: its interval.
        p_value: two-sided, for this comparison alone.
        p_adjusted: the same after Holm over a report, once `holm_adjusted` has seen it.
        delta_S: the difference for each seed.
        noise: what the interval rests on.
        test: which test was made.
    """

    delta: float
    ci: Interval
    p_value: float
    delta_S: tuple[float, ...]
    noise: Noise
    test: str
    p_adjusted: float | None = None

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.delta_S)


@dataclass(frozen=True, slots=True)
class AucOverSeeds:
    """Mean AUC of one system over seeds, its interval, its spread over seeds (`nan` with one) and its noise."""

    mean: float
    ci: Interval
    std: float
    auc_S: tuple[float, ...]
    noise: Noise


@dataclass(frozen=True, slots=True)
class RecoveredGap:
    """Which share of the teacher's lead over the plain student the distilled student recovers, with its interval."""

    value: float
    ci: Interval
    gain: float
    gap: float


def _check_seeds(place: str, **score_SN: Sequence[npt.ArrayLike]) -> int:
    """Number of seeds, which all systems share."""
    seeds = {name: len(scores) for name, scores in score_SN.items()}
    if len(set(seeds.values())) != 1 or 0 in seeds.values():
        found = ", ".join(f"{name} has {count}" for name, count in seeds.items())
        raise MetricError(
            f"{place}: every system needs scores of the same seeds, at least one, but {found}. "
            "Train the missing seeds or leave the surplus ones out."
        )
    return next(iter(seeds.values()))


def noise_over_seeds(value_S: Floats, row_variance_S: Floats) -> Noise:
    """The noise of the mean of `value_S`, shape (S,), given the row variance of each."""
    seeds = len(value_S)
    seed_variance = float(value_S.var(ddof=1)) / seeds if seeds > 1 else 0.0
    row_variance = float(row_variance_S.mean())
    if seed_variance == 0:
        return Noise(seed_variance, row_variance, math.inf)
    ratio = (seed_variance + row_variance) / seed_variance
    return Noise(seed_variance, row_variance, (seeds - 1) * ratio * ratio)


def compare(
    label_N: npt.ArrayLike,
    score_a_SN: Sequence[npt.ArrayLike],
    score_b_SN: Sequence[npt.ArrayLike],
    *,
    confidence: float = 0.95,
) -> Comparison:
    """Whether system a has a higher AUC than system b, over seeds and rows.

    ``delta = mean_s(A_a,s - A_b,s)``, its standard error as at the head of this module, a t interval and p-value.

    Args:
        label_N: 0 or 1, the same rows for every seed, shape (N,).
        score_a_SN: scores of a, one array of shape (N,) per seed.
        score_b_SN: scores of b for the same seeds, likewise.
        confidence: coverage of the interval.

    Returns:
        The comparison; all numbers are `nan` when a class is missing, the noise also when a class has a single row.

    Raises:
        MetricError: as `auc`, and when the numbers of seeds differ or are zero.

    Example:
        >>> label, b = [0, 0, 0, 1, 1, 1], [0.1, 0.6, 0.8, 0.5, 0.7, 0.9]
        >>> result = compare(label, [[0.1, 0.2, 0.6, 0.5, 0.7, 0.9], [0.1, 0.2, 0.4, 0.5, 0.7, 0.9]], [b, b])
        >>> round(result.delta, 3), [round(x, 3) for x in result.ci], round(result.p_value, 3)
        (0.278, [-0.173, 0.729], 0.226)

    Source: DeLong et al., Biometrics 44 (1988), for rows; Satterthwaite, Biometrics Bulletin 2 (1946), for the sum.
    """
    checked_share("compare", "confidence", confidence)
    seeds = _check_seeds("compare", a=score_a_SN, b=score_b_SN)
    delta_S, row_variance_S = np.empty(seeds), np.empty(seeds)
    # Seed by seed, so that the placements of one pair only are in memory.
    for seed, (score_a_N, score_b_N) in enumerate(zip(score_a_SN, score_b_SN, strict=True)):
        a = placements(label_N, score_a_N, place=f"compare, a[{seed}]")
        difference = a.minus(placements(label_N, score_b_N, place=f"compare, b[{seed}]"))
        delta_S[seed], row_variance_S[seed] = difference.auc, difference.variance
    noise = noise_over_seeds(delta_S, row_variance_S)
    delta = float(delta_S.mean())
    reach = float(special.stdtrit(noise.freedom, (1 + confidence) / 2)) * noise.standard_error
    return Comparison(
        delta=delta,
        ci=(delta - reach, delta + reach),
        p_value=two_sided_p(delta, noise.standard_error, freedom=noise.freedom),
        delta_S=tuple(delta_S.tolist()),
        noise=noise,
        test="paired DeLong, normal" if seeds == 1 else "paired DeLong and seeds, t",
    )


def auc_ci(label_N: npt.ArrayLike, score_SN: Sequence[npt.ArrayLike], *, confidence: float = 0.95) -> AucOverSeeds:
    """Mean AUC of one system over seeds with an interval inside [0, 1], noise over seeds and rows as in `compare`.

    Args:
        label_N: 0 or 1, the same rows for every seed, shape (N,).
        score_SN: one array of scores of shape (N,) per seed.
        confidence: coverage of the interval.

    Returns:
        Mean, interval on the logit scale mapped back, and spread; `nan` when a class is missing.

    Raises:
        MetricError: as `auc`, and without a seed.

    Example:
        >>> result = auc_ci([0, 0, 0, 1, 1, 1], [[0.1, 0.2, 0.6, 0.5, 0.7, 0.9], [0.1, 0.6, 0.8, 0.5, 0.7, 0.9]])
        >>> round(result.mean, 3), [round(x, 3) for x in result.ci]
        (0.778, [0.153, 0.985])

    Source: as `compare` and `logit_interval`.
    """
    _check_seeds("auc_ci", score=score_SN)
    placements_S = [placements(label_N, score_N, place=f"auc_ci, seed {s}") for s, score_N in enumerate(score_SN)]
    auc_S = np.array([p.auc for p in placements_S])
    noise = noise_over_seeds(auc_S, np.array([p.variance for p in placements_S]))
    mean = float(auc_S.mean())
    ci = logit_interval(
        mean,
        noise.standard_error,
        disjoint_pairs=min(len(placements_S[0].positive_P), len(placements_S[0].negative_M)),
        confidence=confidence,
        freedom=noise.freedom,
    )
    std = float(auc_S.std(ddof=1)) if len(auc_S) > 1 else math.nan
    return AucOverSeeds(mean, ci, std, tuple(auc_S.tolist()), noise)


def minimum_detectable_effect(comparison: Comparison, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that this comparison's test would have found, with probability `power`.

    ``(t_{1 - alpha/2} + t_{power}) * SE`` with the comparison's own error and degrees of freedom. It says what the test
    log and the seeds can resolve, whatever the difference turned out to be.

    Example:
        >>> plain = Comparison(0.0, (-0.002, 0.002), 1.0, (0.0,), Noise(0.0, 1e-6, math.inf), "paired DeLong, normal")
        >>> round(minimum_detectable_effect(plain), 5)
        0.0028

    Source: Bloom, Evaluation Review 19 (1995).
    """
    checked_share("minimum_detectable_effect", "alpha", alpha)
    checked_share("minimum_detectable_effect", "power", power)
    freedom = comparison.noise.freedom
    quantiles = special.stdtrit(freedom, 1 - alpha / 2) + special.stdtrit(freedom, power)
    return float(quantiles) * comparison.noise.standard_error


def recovered_gap(
    label_N: npt.ArrayLike,
    distilled_SN: Sequence[npt.ArrayLike],
    plain_SN: Sequence[npt.ArrayLike],
    teacher_SN: Sequence[npt.ArrayLike],
    *,
    confidence: float = 0.95,
) -> RecoveredGap:
    """The distilled student's gain over the plain one as a share of the teacher's lead over the plain one.

    ``gain / gap`` with gain = mean_s(A_distilled - A_plain) and gap = mean_s(A_teacher - A_plain): a ratio of means,
    since a mean of ratios explodes with one small gap. The interval is Fieller's, the values r at which
    ``gain - r gap`` is not significantly different from zero. The delta method fails where the gap is uncertain, which
    is the usual case, and a bootstrap over a handful of seeds would miss the row noise altogether.

    Args:
        label_N: 0 or 1, the same rows for every seed, shape (N,).
        distilled_SN: scores of the distilled student, one array of shape (N,) per seed.
        plain_SN: scores of the student trained alone, likewise.
        teacher_SN: scores of the teacher, likewise; a frozen teacher is given once per seed.
        confidence: coverage of the interval.

    Returns:
        The share with its interval. All `nan` when the teacher is not above plain; the interval is infinite on both
        sides when the teacher's lead is not significant, because then no share is ruled out.

    Raises:
        MetricError: as `compare`.

    Example:
        >>> label, teacher = [0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.4, 0.5, 0.7, 0.9]
        >>> result = recovered_gap(label, [[0.1, 0.2, 0.6, 0.5, 0.7, 0.9]], [[0.1, 0.6, 0.8, 0.5, 0.7, 0.9]], [teacher])
        >>> round(result.value, 3), result.ci
        (0.667, (-inf, inf))

    Source: Fieller, Journal of the Royal Statistical Society B 16 (1954).
    """
    checked_share("recovered_gap", "confidence", confidence)
    seeds = _check_seeds("recovered_gap", distilled=distilled_SN, plain=plain_SN, teacher=teacher_SN)
    effect_S2, covariance_S22 = np.empty((seeds, 2)), np.empty((seeds, 2, 2))
    for seed in range(seeds):
        plain = placements(label_N, plain_SN[seed], place=f"recovered_gap, plain[{seed}]")
        gain = placements(label_N, distilled_SN[seed], place=f"recovered_gap, distilled[{seed}]").minus(plain)
        gap = placements(label_N, teacher_SN[seed], place=f"recovered_gap, teacher[{seed}]").minus(plain)
        effect_S2[seed] = gain.auc, gap.auc
        covariance_S22[seed] = placement_covariance([gain, gap])
    mean_gain, mean_gap = effect_S2.mean(axis=0).tolist()
    if not mean_gap > 0:
        return RecoveredGap(math.nan, (math.nan, math.nan), mean_gain, mean_gap)
    ci = _fieller_interval(effect_S2, covariance_S22.mean(axis=0), confidence)
    return RecoveredGap(mean_gain / mean_gap, ci, mean_gain, mean_gap)


def _fieller_interval(effect_S2: Floats, row_covariance_22: Floats, confidence: float) -> Interval:
    """Interval for the ratio of two means over seeds: the roots r of ``(d - r g)^2 = t^2 var(d - r g)``."""
    seeds = len(effect_S2)
    gain, gap = effect_S2.mean(axis=0).tolist()
    contrast_2 = np.array([1.0, -gain / gap])
    noise = noise_over_seeds(effect_S2 @ contrast_2, np.array([contrast_2 @ row_covariance_22 @ contrast_2]))
    seed_covariance_22 = np.cov(effect_S2.T, ddof=1) / seeds if seeds > 1 else np.zeros((2, 2))
    scaled_22 = special.stdtrit(noise.freedom, (1 + confidence) / 2) ** 2 * (seed_covariance_22 + row_covariance_22)
    square = gap**2 - scaled_22[1, 1]
    if math.isnan(square):
        return math.nan, math.nan
    if square <= 0:
        return -math.inf, math.inf
    middle = (gain * gap - scaled_22[0, 1]) / square
    # The ratio itself satisfies the inequality, so a negative discriminant can only be rounding.
    reach = math.sqrt(max(middle**2 - (gain**2 - scaled_22[0, 0]) / square, 0.0))
    return float(middle - reach), float(middle + reach)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down rule; a `nan` is no test and counts for nothing.

    ``max over j <= i of min(1, (m - j + 1) p_(j))`` for the i-th smallest of m.

    Example:
        >>> holm([0.01, 0.04, 0.03, math.nan])
        [0.03, 0.06, 0.06, nan]

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise MetricError(f"holm: p-values must lie in [0, 1], but are {p.tolist()}. Pass p-values, not statistics.")
    adjusted = np.full(len(p), math.nan)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return [float(value) for value in adjusted]


def holm_adjusted(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """All comparisons of one report, each with its p-value adjusted for all of them."""
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return tuple(replace(comparison, p_adjusted=p) for comparison, p in zip(comparisons, adjusted, strict=True))


def verdict(over_control: Mapping[str, Comparison], *, alpha: float = 0.05) -> Verdict:
    """What a report says in words, from the distilled student's comparisons over its controls.

    `helps`: significantly above *every* control. `hurts`: significantly below `plain`. Anything else is `no evidence`,
    so that beating `plain` but not `shuffled` (mere smoothing) is none. Significant means that the interval excludes
    zero and the adjusted p-value is below `alpha`; `nan` is never significant.

    Args:
        over_control: distilled minus control by name of control, all through `holm_adjusted`.
        alpha: level.

    Returns:
        The verdict.

    Raises:
        MetricError: without a comparison, or for one that is not adjusted.

    Example:
        >>> up = Comparison(0.01, (0.005, 0.015), 1e-4, (0.01,), Noise(0.0, 6e-6, math.inf), "paired DeLong, normal")
        >>> verdict(dict(zip(["plain", "shuffled"], holm_adjusted([up, up]))))
        'helps'
    """
    if not over_control:
        raise MetricError("verdict: needs the comparison with at least one control, but has none. Run the controls.")
    unadjusted = sorted(name for name, comparison in over_control.items() if comparison.p_adjusted is None)
    if unadjusted:
        raise MetricError(
            f"verdict: p-values must be adjusted for all comparisons of the report, but {unadjusted} are not. "
            "Pass them through holm_adjusted first."
        )
    is_below = {name: c.ci[1] < 0 and _is_significant(c, alpha) for name, c in over_control.items()}
    is_above = {name: c.ci[0] > 0 and _is_significant(c, alpha) for name, c in over_control.items()}
    if is_below.get("plain", False):
        return "hurts"
    return "helps" if all(is_above.values()) else "no evidence"


def _is_significant(comparison: Comparison, alpha: float) -> bool:
    return comparison.p_adjusted is not None and comparison.p_adjusted < alpha
