"""Churn: how much scores change when a job is trained again."""

from itertools import combinations

import numpy as np
import pytest

from recdistill.errors import MetricError
from recdistill.evaluation import churn


def test_the_mean_over_trainings_is_that_over_all_pairs_of_them() -> None:
    score_SN = np.random.default_rng(0).random((4, 50))
    pairs = [np.abs(a - b).mean() for a, b in combinations(score_SN, 2)]
    assert churn(score_SN).mean() == pytest.approx(np.mean(pairs))
    for s in range(4):
        others = [np.abs(score_SN[s] - score_SN[t]).mean() for t in range(4) if t != s]
        assert churn(score_SN)[s] == pytest.approx(np.mean(others))


def test_equal_trainings_have_none_and_opposite_ones_all() -> None:
    assert churn(np.full((3, 5), 0.3)).tolist() == [0, 0, 0]
    assert churn(np.array([[0.0, 1.0], [1.0, 0.0]])).tolist() == [1, 1]


def test_one_training_has_none_to_compare_with() -> None:
    with pytest.raises(MetricError, match="takes at least two; found 1"):
        churn(np.zeros((1, 5)))
