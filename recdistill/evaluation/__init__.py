"""Metrics on arrays of labels and scores, and the statistics that turn them into a verdict.

`auc` is exact; `grouped` names its conventions; `calibration` separates logits from probabilities; `significance` puts
noise of seeds and of rows together.
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
from recdistill.evaluation.grouped import GroupedAuc, GroupTable, group_table, grouped_auc
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

__all__ = [
    "AucOverSeeds",
    "Comparison",
    "DelongTest",
    "GroupTable",
    "GroupedAuc",
    "Noise",
    "Placements",
    "RecoveredGap",
    "Reliability",
    "Verdict",
    "auc",
    "auc_ci",
    "brier",
    "compare",
    "delong_covariance",
    "delong_interval",
    "delong_test",
    "ece_equal_mass",
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
    "verdict",
]
