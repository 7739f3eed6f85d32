"""Metrics on arrays of labels and scores, and the statistics that turn them into a verdict.

`auc` is exact; `grouped` names its conventions; `calibration` separates logits from probabilities; `topk` ranks items
for users; `significance` and `paired` put noise of seeds and of rows, or users, together.
"""

from recdistill.evaluation.auc import (
    DelongTest,
    Placements,
    auc,
    delong_covariance,
    delong_interval,
    delong_test,
    logit_interval,
    placement_covariance,
    placements,
)
from recdistill.evaluation.calibration import (
    Reliability,
    brier,
    ece_equal_mass,
    log_loss,
    normalized_entropy,
    pcoc,
    reliability,
)
from recdistill.evaluation.churn import churn
from recdistill.evaluation.fidelity import divergence
from recdistill.evaluation.grouped import GroupedAuc, GroupTable, group_table, grouped_auc
from recdistill.evaluation.paired import compare_users
from recdistill.evaluation.significance import (
    AucOverSeeds,
    Comparison,
    Noise,
    RecoveredGap,
    Verdict,
    auc_ci,
    compare,
    holm,
    holm_adjusted,
    minimum_detectable_effect,
    recovered_gap,
    verdict,
)
from recdistill.evaluation.topk import Lists, TopK, draw_candidates, full_ranking, sampled_ranking

__all__ = [
    "AucOverSeeds",
    "Comparison",
    "DelongTest",
    "GroupTable",
    "GroupedAuc",
    "Lists",
    "Noise",
    "Placements",
    "RecoveredGap",
    "Reliability",
    "TopK",
    "Verdict",
    "auc",
    "auc_ci",
    "brier",
    "churn",
    "compare",
    "compare_users",
    "delong_covariance",
    "delong_interval",
    "delong_test",
    "divergence",
    "draw_candidates",
    "ece_equal_mass",
    "full_ranking",
    "group_table",
    "grouped_auc",
    "holm",
    "holm_adjusted",
    "log_loss",
    "logit_interval",
    "minimum_detectable_effect",
    "normalized_entropy",
    "pcoc",
    "placement_covariance",
    "placements",
    "recovered_gap",
    "reliability",
    "sampled_ranking",
    "verdict",
]
