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


def l2(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    flat = [np.ravel(np.atleast_1d(s - t)) for s, t in zip(student, teacher, strict=True)]
    return np.array([sum(d * d for d in row) / len(row) for row in flat])
