"""Slow references for losses over candidates: one anchor at a time, loops over pairs, plain exponentials.

Each takes lists of one anchor in which every candidate exists.
"""

import itertools
import math

import numpy as np

from tests.oracles.losses import sigmoid


def per_anchor(loss, *columns, **options):
    """A reference on matrices; the candidates whose last column but the options is NaN are taken out before."""
    found = []
    for rows in zip(*columns, strict=True):
        kept = [i for i in range(len(rows[0])) if not any(math.isnan(column[i]) for column in rows[1:])]
        found.append(loss(*([column[i] for i in kept] for column in rows), **options))
    return np.array(found)


def bpr(score, label):
    pairs = [-math.log(sigmoid(s - n)) for s, y in zip(score, label, strict=True) if y > 0
             for n, z in zip(score, label, strict=True) if z == 0]  # fmt: skip
    return sum(pairs) / len(pairs) if pairs else 0.0


def sampled_softmax(score, label, log_q=None, temperature=1.0):
    weight = [math.exp(s / temperature - q) for s, q in zip(score, log_q or [0.0] * len(score), strict=True)]
    others = sum(w for w, y in zip(weight, label, strict=True) if y == 0)
    found = [-math.log(w / (w + others)) for w, y in zip(weight, label, strict=True) if y > 0]
    return sum(found) / len(found) if found else 0.0


def soft_sides(student, teacher, label, temperature=1.0, student_temperature=1.0):
    total = 0.0
    for side in (1, 0):
        s = np.array([x / student_temperature for x, y in zip(student, label, strict=True) if y == side])
        t = np.array([x / temperature for x, y in zip(teacher, label, strict=True) if y == side])
        if len(s):
            total -= float((np.exp(t) / np.exp(t).sum() * np.log(np.exp(s) / np.exp(s).sum())).sum())
    return total


def _order(student, teacher):
    return [student[i] for i in sorted(range(len(teacher)), key=lambda i: (-teacher[i], i))]


def rd(student, teacher, top, position=10.0, discrepancy=None, items=None):
    ordered = _order(student, teacher)
    taught, behind = ordered[:top], ordered[top:]
    weight = [math.exp(-k / position) for k in range(1, len(taught) + 1)]
    weight = [w / sum(weight) for w in weight]
    if discrepancy is not None:
        for k, s in enumerate(taught):
            rank = math.floor(items * sum(other > s for other in behind) / max(len(behind), 1)) + 1
            weight[k] *= max(0.0, math.tanh(discrepancy * (rank - (k + 1))))
    return -sum(w * math.log(sigmoid(s)) for w, s in zip(weight, taught, strict=True))


def cd(student, teacher, temperature=1.0, shift=0.0):
    found = []
    for s, t in zip(student, teacher, strict=True):
        q = sigmoid((t + shift) / temperature)
        found.append(-q * math.log(sigmoid(s)) - (1 - q) * math.log(sigmoid(-s)))
    return sum(found) / len(found) if found else 0.0


def rrd(student, teacher, interesting):
    ordered = _order(student, teacher)
    top, rest = ordered[:interesting], ordered[interesting:]
    total = 0.0
    for k, s in enumerate(top):
        below = sum(math.exp(x) for x in top[k:]) + sum(math.exp(x) for x in rest)
        total -= math.log(math.exp(s) / below)
    return total


def unkd(student, teacher, group):
    by_group = []
    for g in set(group):
        mine = [(s, t) for s, t, h in zip(student, teacher, group, strict=True) if h == g]
        pairs = [(a, b) if a[1] > b[1] else (b, a) for a, b in itertools.combinations(mine, 2) if a[1] != b[1]]
        if pairs:
            by_group.append(sum(-math.log(sigmoid(a[0] - b[0])) for a, b in pairs) / len(pairs))
    return sum(by_group) / len(by_group) if by_group else 0.0


def quantisation(relaxed):
    """Squared distance of either value of a bit from its relaxed form, by the probability of that value."""
    found = []
    for row in relaxed:
        expected = [(1 + u) / 2 * (1 - u) ** 2 + (1 - u) / 2 * (-1 - u) ** 2 for u in row]
        found.append(sum(expected) / len(expected))
    return np.array(found)


def half_square(vectors):
    return np.array([sum(x * x for x in row) / 2 for row in vectors])


def experts(expert, teacher, gate):
    found = []
    for x, t, g in zip(expert, teacher, gate, strict=True):
        mixture = [sum(g[e] * x[e][d] for e in range(len(g))) for d in range(len(t))]
        found.append(sum((a - b) ** 2 for a, b in zip(t, mixture, strict=True)))
    return np.array(found)
