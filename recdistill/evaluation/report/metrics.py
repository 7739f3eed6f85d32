"""The metrics of one system over seeds, as the report holds them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recdistill.data.scores import Scored
from recdistill.evaluation.auc import auc
from recdistill.evaluation.calibration import ece_equal_mass, log_loss, normalized_entropy, pcoc
from recdistill.evaluation.churn import churn
from recdistill.evaluation.grouped import grouped_auc
from recdistill.evaluation.significance import auc_ci

Entry = dict[str, Any]
SCENARIOS = 20  # named one by one in a report


def metrics_of(scored: Scored) -> dict[str, float]:
    """All metrics of one system on one split for one seed; NaN where a metric is not defined.

    Row weights enter the log loss and the calibration metrics, and make an AUC of their own; the plain AUC is the one
    that intervals and tests are about.
    """
    found: dict[str, float] = {"auc": auc(scored.label_N, scored.logit_N)}
    if scored.group_N is not None:
        grouped = grouped_auc(scored.label_N, scored.logit_N, scored.group_N).as_dict()
        found |= {key: value for key, value in grouped.items() if key != "groups"}
    weight_N = scored.weight_N
    if weight_N is not None:
        found["auc_weighted"] = auc(scored.label_N, scored.logit_N, weight_N=weight_N)
    if scored.scenario_N is not None:
        found |= by_scenario(scored)
    found |= {
        "logloss": log_loss(scored.label_N, scored.logit_N, weight_N=weight_N),
        "normalized_entropy": normalized_entropy(scored.label_N, scored.logit_N, weight_N=weight_N),
        "ece": ece_equal_mass(scored.label_N, scored.score_N, weight_N=weight_N),
        "pcoc": pcoc(scored.label_N, scored.score_N, weight_N=weight_N),
        "rows": len(scored.label_N),
        "positives": int(scored.label_N.sum()),
    }
    return found


def by_scenario(scored: Scored) -> dict[str, float]:
    """The AUC within each of the largest scenarios, as ``auc_scenario.NAME``, and the mean over all, by their rows.

    A model may rank well over all traffic only because it tells the scenarios apart.
    """
    assert scored.scenario_N is not None
    names, place_N, rows = np.unique(scored.scenario_N, return_inverse=True, return_counts=True)
    together = np.split(np.argsort(place_N, kind="stable"), np.cumsum(rows)[:-1])
    parts = {str(names[k]): scored.only(together[k]) for k in np.argsort(-rows, kind="stable")}
    found = {n: auc(part.label_N, part.logit_N) for n, part in parts.items()}
    sizes = {n: len(part.label_N) for n, part in parts.items() if not math.isnan(found[n])}
    mean = sum(found[n] * size for n, size in sizes.items()) / sum(sizes.values()) if sizes else math.nan
    largest = list(found.items())[:SCENARIOS]
    return {"auc_within_scenarios": mean} | {f"auc_scenario.{n or 'none'}": value for n, value in largest}


def over_seeds(per_seed: Sequence[Mapping[str, float]]) -> Entry:
    """Mean, spread and single values of each metric."""
    entry: Entry = {}
    for name in per_seed[0]:
        values = [metrics[name] for metrics in per_seed]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        entry[name] = {"mean": float(np.mean(values)), "std": std, "per_seed": values}
    return entry


def summary(seeds: Sequence[Scored]) -> Entry:
    """Mean, spread and single values of each metric over seeds, and the interval of the AUC.

    The churn of a seed is how far its scores lie from those of the others.
    """
    per_seed = [metrics_of(scored) for scored in seeds]
    if len(seeds) > 1:
        changes = churn(np.stack([scored.score_N for scored in seeds]).astype(np.float64))
        per_seed = [{**metrics, "churn": float(c)} for metrics, c in zip(per_seed, changes, strict=True)]
    entry = over_seeds(per_seed)
    if len(seeds) == 2:
        entry["churn"]["std"] = math.nan  # two trainings are a single pair, whose spread is not known
    entry["auc_ci"] = list(auc_ci(seeds[0].label_N, [scored.logit_N for scored in seeds]).ci)
    return entry


def plain_json(value: Any) -> Any:
    """The value with plain numbers only: NaN and infinity, which JSON cannot hold, become null."""
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
