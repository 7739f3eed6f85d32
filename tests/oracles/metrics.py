"""Slow metrics straight from their definitions: pairs, loops and copies, where `recdistill.evaluation` sorts.

Shapes: N rows, P positives, M negatives, G groups, K bins.
"""

import math
from collections import defaultdict

import numpy as np


def copies(weight_N, *column_N):
    """Each column with every row repeated as often as its integer weight says."""
    return [np.repeat(np.asarray(column), np.asarray(weight_N)) for column in column_N]


def pair_credit(label_N, score_N):
    """1 where the positive is above the negative, one half at a tie, else 0; shape (P, M)."""
    positive_P = [score for label, score in zip(label_N, score_N, strict=True) if label == 1]
    negative_M = [score for label, score in zip(label_N, score_N, strict=True) if label == 0]
    credit_PM = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in negative_M] for x in positive_P]
    return np.array(credit_PM).reshape(len(positive_P), len(negative_M))


def pair_auc(label_N, score_N, weight_N=None):
    """Credit of every (positive, negative) pair, averaged with the product of their weights."""
    label_N = np.asarray(label_N)
    weight_N = np.ones(len(label_N)) if weight_N is None else np.asarray(weight_N, dtype=float)
    weight_PM = np.outer(weight_N[label_N == 1], weight_N[label_N == 0])
    total = weight_PM.sum()
    return (weight_PM * pair_credit(label_N, score_N)).sum() / total if total > 0 else math.nan


def structural_delong(label_N, score_KN):
    """Covariance (K, K) from the structural components: row and column means of the matrix of pairs."""
    credit_KPM = [pair_credit(label_N, score_N) for score_N in score_KN]
    auc_K = [credit_PM.mean() for credit_PM in credit_KPM]
    positives, negatives = credit_KPM[0].shape
    covariance_KK = np.zeros((len(auc_K), len(auc_K)))
    for k, first_PM in enumerate(credit_KPM):
        for m, second_PM in enumerate(credit_KPM):
            positive_part = sum(
                (first_PM[i].mean() - auc_K[k]) * (second_PM[i].mean() - auc_K[m]) for i in range(positives)
            )
            negative_part = sum(
                (first_PM[:, j].mean() - auc_K[k]) * (second_PM[:, j].mean() - auc_K[m]) for j in range(negatives)
            )
            covariance_KK[k, m] = positive_part / (positives - 1) / positives
            covariance_KK[k, m] += negative_part / (negatives - 1) / negatives
    return np.array(auc_K), covariance_KK


def grouped_aucs(label_N, score_N, group_N):
    """Every grouped convention by a loop over groups, as a dictionary."""
    rows_of = defaultdict(list)
    for row, group in enumerate(group_N):
        rows_of[group].append((label_N[row], score_N[row]))
    auc_G, rows_G, positives_G, half_G = [], [], [], []
    for pairs in rows_of.values():
        value = pair_auc(*zip(*pairs, strict=True))
        half_G.append(0.5 if math.isnan(value) else value)
        if not math.isnan(value):
            auc_G.append(value)
            rows_G.append(len(pairs))
            positives_G.append(sum(label for label, _ in pairs))
    return {
        "gauc_macro": sum(auc_G) / len(auc_G) if auc_G else math.nan,
        "gauc_impressions": sum(a * n for a, n in zip(auc_G, rows_G, strict=True)) / sum(rows_G) if auc_G else math.nan,
        "gauc_positives": sum(a * p for a, p in zip(auc_G, positives_G, strict=True)) / sum(positives_G)
        if auc_G
        else math.nan,
        "gauc_half": sum(half_G) / len(half_G),
        "coverage_rows": sum(rows_G) / len(label_N),
        "coverage_groups": len(auc_G) / len(half_G),
        "groups": len(half_G),
    }


def reliability_rows(label_N, prob_N, bins):
    """(mean probability, share of positives, rows) per bin; a run of equal probabilities goes where its middle lies."""
    members = defaultdict(list)
    for prob in sorted(set(prob_N)):
        below = sum(1 for other in prob_N if other < prob)
        run = [label for label, other in zip(label_N, prob_N, strict=True) if other == prob]
        members[(2 * below + len(run)) * bins // (2 * len(prob_N))] += [(label, prob) for label in run]
    return [
        (sum(p for _, p in rows) / len(rows), sum(y for y, _ in rows) / len(rows), len(rows))
        for _, rows in sorted(members.items())
    ]


def ece(label_N, prob_N, bins):
    """Mean gap between predicted and observed rate over `reliability_rows`, weighted by rows."""
    return sum(rows * abs(prob - rate) for prob, rate, rows in reliability_rows(label_N, prob_N, bins)) / len(label_N)


def log_loss(label_N, logit_N):
    """Mean negative log likelihood, the probability formed first."""
    prob_N = [1 / (1 + math.exp(-logit)) for logit in logit_N]
    return sum(-math.log(p if y == 1 else 1 - p) for y, p in zip(label_N, prob_N, strict=True)) / len(prob_N)


def entropy(label_N):
    """Entropy of the share of positives, in nats."""
    rate = sum(label_N) / len(label_N)
    return -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)


def holm_by_rejection(p_values):
    """Adjusted p-value of each hypothesis: the smallest level of a fine grid at which Holm's procedure rejects it."""
    levels = np.linspace(0, 1, 10_001)
    adjusted = [1.0] * len(p_values)
    for level in reversed(levels):
        remaining = list(range(len(p_values)))
        while remaining:
            smallest = min(remaining, key=lambda i: p_values[i])
            if p_values[smallest] > level / len(remaining):
                break
            adjusted[smallest] = level
            remaining.remove(smallest)
    return adjusted
