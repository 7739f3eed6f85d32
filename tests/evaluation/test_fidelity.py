"""How closely a student answers, against sums over both outcomes of each row."""

import math

import numpy as np
import pytest

from recdistill.evaluation import divergence


def by_outcomes(logits: list[float], targets: list[float]) -> float:
    total = 0.0
    for ours, theirs in zip(logits, targets, strict=True):
        q, p = (1 / (1 + math.exp(-z)) for z in (ours, theirs))
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return total / len(logits)


def test_the_divergence_is_the_sum_over_both_outcomes() -> None:
    rng = np.random.default_rng(0)
    ours_N, theirs_N = 3 * rng.normal(size=(2, 50)).astype(np.float32)
    expected = by_outcomes(ours_N.tolist(), theirs_N.tolist())
    assert divergence(ours_N, theirs_N) == pytest.approx(expected, rel=1e-9)
    assert divergence(theirs_N, ours_N) != pytest.approx(expected, rel=1e-2)  # it has a direction
    assert divergence(ours_N, ours_N) == 0


def test_sure_answers_stay_finite() -> None:
    sure_N = np.array([900.0, -900.0])
    assert divergence(-sure_N, sure_N) == pytest.approx(900)
    assert divergence(sure_N, sure_N) == 0
