"""What runs are compared by: metrics of lists as the report sees them."""

import numpy as np
import pytest

from recdistill.evaluation.report.measures import OfLists, OfRows, measure_of
from recdistill.evaluation.topk import Lists, TopK, full_ranking

USERS, ITEMS = 12, 40


def judged(scores: np.ndarray) -> TopK:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(USERS), 3)
    test = Lists.of(USERS, users, rng.integers(0, ITEMS, len(users)))
    known = Lists.of(USERS, users, rng.integers(0, ITEMS, len(users)))
    return full_ranking(lambda user_B: scores[user_B], test, known, candidate_I=np.ones(ITEMS, bool), at=[5])


@pytest.mark.parametrize("metric", ["recall@5", "ndcg@5"])
def test_only_lists_that_are_left_to_chance_are_doubted(metric: str) -> None:
    measure, rng = OfLists(metric), np.random.default_rng(1)
    alike = np.full((USERS, ITEMS), 0.3)
    popular = np.tile(rng.random(ITEMS), (USERS, 1))
    codes = rng.integers(0, 9, (USERS, ITEMS)).astype(float)
    for scores, causes in ((alike, ["constant_scores"]), (popular, []), (codes, [])):
        assert [cause for cause, _ in measure.doubts("student", judged(scores), {}, serves=True)] == causes


def test_a_report_names_the_measure_of_its_metric() -> None:
    assert measure_of("auc") == OfRows() and measure_of("hr@3") == OfLists("hr@3")
