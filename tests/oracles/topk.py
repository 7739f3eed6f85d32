"""Slow metrics of the K best items: lists that are sorted, and every order of ties written out and averaged."""

import itertools
import math

import numpy as np


def orders(scores, items):
    """Every order of the items that puts higher scores first."""
    runs = {}
    for item in items:
        runs.setdefault(scores[item], []).append(item)
    by_score = [itertools.permutations(runs[s]) for s in sorted(runs, reverse=True)]
    for parts in itertools.product(*by_score):
        yield [item for part in parts for item in part]


def by_row(scores, items):
    """The order that puts higher scores first, and lower rows first among equal ones."""
    return sorted(items, key=lambda item: (-scores[item], item))


def metrics_of(order, relevant, cut):
    """Recall, NDCG, hit and reciprocal place of one order."""
    hits = [place for place, item in enumerate(order[:cut], 1) if item in relevant]
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(relevant), cut) + 1))
    return {
        "recall": len(hits) / len(relevant),
        "ndcg": sum(1 / math.log2(place + 1) for place in hits) / ideal,
        "hr": float(bool(hits)),
        "mrr": 1 / hits[0] if hits else 0.0,
    }


def full_ranking(scores, relevant, known, candidates, cuts, ties):
    """Metrics of each user, by user; and the coverage with the orders of users independent of each other."""
    users, missed = {}, {cut: dict.fromkeys(candidates, 1.0) for cut in cuts}
    for user, row in enumerate(scores):
        left = set(relevant[user]) - set(known[user])
        if not left:
            continue
        items = [item for item in candidates if item not in known[user]]
        found = list(orders(row, items)) if ties == "expected" else [by_row(row, items)]
        for cut in cuts:
            each = [metrics_of(order, left, cut) for order in found]
            for name in each[0]:
                users.setdefault(user, {})[f"{name}@{cut}"] = float(np.mean([one[name] for one in each]))
            for item in candidates:
                missed[cut][item] *= np.mean([item not in order[:cut] for order in found])
    coverage = {f"coverage@{cut}": 1 - float(np.mean(list(m.values()))) for cut, m in missed.items()}
    return users, coverage
