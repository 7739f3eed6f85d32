"""Did a system rank better for the same users? Paired comparisons of any metric that has one value per user.

The noise is that of `significance`: of users, which does not fall with the number of seeds, and of seeds, which does.
"""

# Shapes: S seeds, V users.

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from recdistill.errors import MetricError
from recdistill.evaluation.auc import Interval, checked_share, two_sided_p
from recdistill.evaluation.significance import Comparison, RecoveredGap, fieller_interval, noise_over_seeds
from recdistill.evaluation.topk import TopK


def compare_users(a_S: Sequence[TopK], b_S: Sequence[TopK], metric: str, *, confidence: float = 0.95) -> Comparison:
    """Whether system a has a higher mean of a metric over users than system b, over seeds and users.

    ``delta = mean over seeds and users of (a - b)``, its standard error from the spread of the difference over users,
    and over seeds where there are several; a t interval and p-value.

    Args:
        a_S: what was found for a, once per seed; with sampled candidates, each averaged over its draws.
        b_S: the same for b, on the same users.
        metric: a name of `TopK.values`, for example ``recall@20``.
        confidence: coverage of the interval.

    Raises:
        MetricError: numbers of seeds, or users, differ; or nobody measured the metric.

    Example:
        >>> users = np.arange(4)
        >>> a, b = (TopK(users, {"hr@5": np.array(x)}) for x in ([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.5]))
        >>> result = compare_users([a], [b], "hr@5")
        >>> result.delta, round(result.p_value, 3)
        (0.375, 0.117)

    Source: Student's paired test; Satterthwaite, Biometrics Bulletin 2 (1946), for the sum of both noises.
    """
    checked_share("compare_users", "confidence", confidence)
    if len(a_S) != len(b_S) or not a_S:
        raise MetricError(
            f"compare_users: every system needs the same seeds, at least one, but a has {len(a_S)} and b {len(b_S)}. "
            "Train the missing seeds or leave the surplus ones out."
        )
    differences_S = []
    for a, b in zip(a_S, b_S, strict=True):
        if not np.array_equal(a.user_V, b.user_V):
            raise MetricError(
                f"compare_users: both systems need the same users, but a has {len(a.user_V)} and b {len(b.user_V)}, or "
                "others. Rank both on the same split."
            )
        if metric not in a.values or metric not in b.values:
            raise MetricError(f"compare_users: {metric!r} was not measured; known: {', '.join(a.values)}")
        differences_S.append(a.values[metric] - b.values[metric])
    delta_S = np.array([difference_V.mean() for difference_V in differences_S])
    noise = noise_over_seeds(delta_S, np.array([d.var(ddof=1) / len(d) for d in differences_S]))
    delta = float(delta_S.mean())
    reach = float(special.stdtrit(noise.freedom, (1 + confidence) / 2)) * noise.standard_error
    return Comparison(
        delta=delta,
        ci=(delta - reach, delta + reach),
        p_value=two_sided_p(delta, noise.standard_error, freedom=noise.freedom),
        delta_S=tuple(delta_S.tolist()),
        noise=noise,
        test="paired over users, normal" if len(a_S) == 1 else "paired over users and seeds, t",
    )


def mean_over_users(found_S: Sequence[TopK], metric: str, *, confidence: float = 0.95) -> tuple[float, Interval]:
    """The mean of a metric over users and seeds with its interval; the noise is that of `compare_users`.

    Example:
        >>> found = [TopK(np.arange(4), {"hr@5": np.array([1.0, 0.0, 0.0, 1.0])})]
        >>> mean, ci = mean_over_users(found, "hr@5")
        >>> mean, [round(end, 2) for end in ci]
        (0.5, [-0.07, 1.07])
    """
    values = [found.values[metric] for found in found_S]
    mean_S = np.array([value_V.mean() for value_V in values])
    noise = noise_over_seeds(mean_S, np.array([value_V.var(ddof=1) / len(value_V) for value_V in values]))
    reach = float(special.stdtrit(noise.freedom, (1 + confidence) / 2)) * noise.standard_error
    mean = float(mean_S.mean())
    return mean, (mean - reach, mean + reach)


def recovered_gap_of_users(
    distilled_S: Sequence[TopK],
    plain_S: Sequence[TopK],
    teacher_S: Sequence[TopK],
    metric: str,
    *,
    confidence: float = 0.95,
) -> RecoveredGap:
    """The distilled student's gain over the plain one as a share of the teacher's lead, as `recovered_gap` has it.

    Args:
        distilled_S: of the distilled student, once per seed.
        plain_S: of the student trained alone, likewise, on the same users.
        teacher_S: of the teacher, likewise.
        metric: a name of `TopK.values`.
        confidence: coverage of the interval.
    """
    effects, covariances = [], []
    for distilled, plain, teacher in zip(distilled_S, plain_S, teacher_S, strict=True):
        of_users_2V = np.stack([each.values[metric] - plain.values[metric] for each in (distilled, teacher)])
        effects.append(of_users_2V.mean(axis=1))
        covariances.append(np.cov(of_users_2V, ddof=1) / of_users_2V.shape[1])
    gain, gap = np.mean(effects, axis=0).tolist()
    if not gap > 0:
        return RecoveredGap(math.nan, (math.nan, math.nan), gain, gap)
    ci = fieller_interval(np.stack(effects), np.mean(covariances, axis=0), confidence)
    return RecoveredGap(gain / gap, ci, gain, gap)
