"""Did a system rank better for the same users? Paired comparisons of any metric that has one value per user.

The noise is that of `significance`: of users, which does not fall with the number of seeds, and of seeds, which does.
"""

# Shapes: S seeds, V users.

from collections.abc import Sequence

import numpy as np
from scipy import special

from recdistill.errors import MetricError
from recdistill.evaluation.auc import checked_share, two_sided_p
from recdistill.evaluation.significance import Comparison, noise_over_seeds
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
