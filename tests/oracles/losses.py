"""Slow references for losses: numpy and loops, from the equations, in probabilities where the code works in logits."""

import math

import numpy as np


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def bce(logit_B: np.ndarray, label_B: np.ndarray) -> np.ndarray:
    return np.array(
        [-y * math.log(sigmoid(s)) - (1 - y) * math.log(sigmoid(-s)) for s, y in zip(logit_B, label_B, strict=True)]
    )


def soft(student_B: np.ndarray, teacher_B: np.ndarray, temperature: float) -> np.ndarray:
    """The softmax form over the two classes (logit, 0), summed over classes."""
    rows = []
    for s, t in zip(student_B / temperature, teacher_B / temperature, strict=True):
        target, log_p = (sigmoid(t), sigmoid(-t)), (math.log(sigmoid(s)), math.log(sigmoid(-s)))
        rows.append(-(temperature**2) * sum(q * lp for q, lp in zip(target, log_p, strict=True)))
    return np.array(rows)


def soft_list(student_B: np.ndarray, teacher_B: np.ndarray, list_B: np.ndarray, temperature: float) -> np.ndarray:
    """List by list, with shares as plain quotients."""
    found = []
    for g in range(int(list_B.max()) + 1):
        s, t = student_B[list_B == g] / temperature, teacher_B[list_B == g] / temperature
        share_s, share_t = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
        found.append(-(temperature**2) * float((share_t * np.log(share_s)).sum()))
    return np.array(found)


def categorical(logits_BK: np.ndarray, share_BK: np.ndarray) -> np.ndarray:
    """Probabilities of each class by itself, divided by their sum."""
    found = []
    for row, wanted in zip(logits_BK, share_BK, strict=True):
        p = [sigmoid(z) for z in row]
        found.append(-sum(y * math.log(x / sum(p)) for x, y in zip(p, wanted, strict=True)))
    return np.array(found)


def l2(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    flat = [np.ravel(np.atleast_1d(s - t)) for s, t in zip(student, teacher, strict=True)]
    return np.array([sum(d * d for d in row) / len(row) for row in flat])


def mmd(student: np.ndarray, teacher: np.ndarray) -> float:
    """As a kernel two-sample statistic: mean k(s, s) + mean k(t, t) - 2 mean k(s, t) with k the inner product."""
    s, t = student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)

    def mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
        return sum(float(a @ b) for a in first for b in second) / (len(first) * len(second))

    return (mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)) / s.shape[1]


def softened(student_B: np.ndarray, teacher_B: np.ndarray, temperature: float, base: float) -> np.ndarray:
    """The target's odds are those of the base rate times the T-th root of how far the teacher departs from them."""
    rows = []
    for s, t in zip(student_B, teacher_B, strict=True):
        odds = base / (1 - base) * (math.exp(t) * (1 - base) / base) ** (1 / temperature)
        q = odds / (1 + odds)
        rows.append(-q * math.log(sigmoid(s)) - (1 - q) * math.log(sigmoid(-s)))
    return np.array(rows)


def score_gap(logit_B: np.ndarray, list_B: np.ndarray, top: int) -> np.ndarray:
    found = []
    for g in range(int(list_B.max()) + 1):
        share = np.exp(logit_B[list_B == g])
        first, *others = sorted(share / share.sum(), reverse=True)[:top]
        found.append(first - float(np.mean(others)) if others else 0.0)
    return np.array(found)


def pairwise(logit_B: np.ndarray, label_B: np.ndarray) -> np.ndarray:
    """Pair by pair, from the probability that the clicked row of a pair stands first."""
    found = []
    for s, y in zip(logit_B, label_B, strict=True):
        others = [o for o, v in zip(logit_B, label_B, strict=True) if v != y]
        losses = [-math.log(sigmoid(s - o if y == 1 else o - s)) for o in others]
        found.append(sum(losses) / max(len(losses), 1))
    return np.array(found)


def relative_order(student: np.ndarray, teachers: list[np.ndarray], margin: float, triplets: int) -> np.ndarray:
    """Triplet by triplet, with votes that are counted one by one; none of a row and itself."""
    rows, found = len(student), []
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in student]

    def distance(layer: list[np.ndarray] | np.ndarray, i: int, j: int) -> float:
        return sum((a - b) ** 2 for a, b in zip(layer[i], layer[j], strict=True))

    for i in range(rows):
        followers = [((i + 2 * n + 1) % rows, (i + 2 * n + 2) % rows) for n in range(triplets)]
        total = 0.0
        for j, k in (pair for pair in followers if i not in pair):
            gaps = [distance(teacher, i, k) - distance(teacher, i, j) for teacher in teachers]
            for_j, for_k = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
            if for_j != for_k:
                near, far = (j, k) if for_j > for_k else (k, j)
                total += max(0.0, distance(unit, i, near) - distance(unit, i, far) + margin)
        found.append(total / triplets)
    return np.array(found)
