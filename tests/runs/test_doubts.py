"""Warnings before numbers are believed: students that have hardly been trained, or have learned nothing."""

from typing import Any

import numpy as np
import pytest

from recdistill.data.scores import Scored
from recdistill.evaluation.report.measures import OfRows
from recdistill.evaluation.report.metrics import summary
from recdistill.runs.doubts import steps_taken, training_warnings
from tests.conftest import Small

ALONE = {"steps": 9, "terms": ["bce(teacher.logit, label)"]}
TAUGHT = {"steps": 9, "terms": ["soft(student.logit, teacher.logit)"]}


def plan(small: Small, phases: list[Any], **changes: Any) -> Any:
    return small.plan(
        {"phases": phases, "members.teacher.share": {}, "controls": {"none": "not compared here"}, **changes}
    )[0]


def test_a_student_of_few_steps_is_doubted(small: Small) -> None:
    one = plan(small, [{"steps": 9, "terms": ["bce(student.logit, label)", "bce(teacher.logit, label)"]}])
    (found,) = training_warnings(one, [1])
    assert found["cause"] == "hardly_trained" and "student has taken 1 step to" in found["message"]
    assert "smaller train.batch or more epochs" in found["message"]
    assert training_warnings(one, [99]) and training_warnings(one, [100]) == []


def test_steps_that_move_others_do_not_count(small: Small) -> None:
    assert steps_taken(plan(small, [ALONE, TAUGHT]), [900, 30]) == 30
    often = {"steps": 9, "updates": [{"terms": ALONE["terms"]}, {"terms": TAUGHT["terms"], "every": 5}]}
    assert steps_taken(plan(small, [often]), [900]) == 180
    assert steps_taken(plan(small, [ALONE, {**TAUGHT, "repeat": 3}]), [9, 10, 20, 30]) == 60


def test_a_student_that_begins_with_the_parameters_of_another_is_not_doubted(small: Small) -> None:
    nets = {"members.teacher": {"net": {"mlp": [16, 8]}, "dim": 4, "dropout": 0.1}, "privileged": []}
    carried = plan(small, [ALONE, {**TAUGHT, "carry": {"student": "teacher"}}], **nets)
    assert steps_taken(carried, [900, 3]) is None and training_warnings(carried, [900, 3]) == []


@pytest.mark.parametrize(("skill", "causes"), [(0.0, ["no_skill"]), (2.0, [])])
def test_a_student_that_may_rank_by_chance_is_doubted(skill: float, causes: list[str]) -> None:
    rng = np.random.default_rng(0)
    label = (np.arange(400) % 2).astype(np.float32)
    logit = (rng.normal(size=400) + skill * (label - 0.5)).astype(np.float32)
    answer = Scored(np.arange(400), label, logit)
    for serves in (True, False):
        doubts = OfRows().doubts("student", answer, summary([answer]), serves=serves)
        assert [cause for cause, _ in doubts] == (causes if serves else [])


def test_rows_without_weight_have_no_calibration_to_doubt() -> None:
    label, logit = np.float32([0, 1, 0, 1]), np.float32([-9, 9, -8, 7])
    answer = Scored(np.arange(4), label, logit, weight_N=np.zeros(4, np.float32))
    assert "calibration" not in [
        cause for cause, _ in OfRows().doubts("student", answer, summary([answer]), serves=True)
    ]
