"""A label that no term teaches would be served as it was drawn; it is refused."""

from typing import Any

import pytest

from recdistill.distill.compile import compile_job, problems_of
from recdistill.spec.controls import arms
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job

SPEC = FeatureSpec.model_validate(
    {"serving": {"user": {"type": "id"}}, "post_event": {"buy": "binary", "added": "binary", "late": "binary"}}
)
NET = {"net": {"mlp": [4]}}
BUY, ADDED = "bce(student.logit, buy)", "bce(student.logit.added, added)"
TEACHER = ["bce(teacher.logit, buy)", "bce(teacher.logit.added, added)"]


def found(terms: list[str], members: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    every = {"student": {**NET, "serve": True}, **(members or {})}
    job = {"spec": "-", "log": "-", "label": ["buy", "added"], "members": every, **settings}
    phases = [{"epochs": 1, "terms": terms}]
    return problems_of(Job.model_validate({"phases": phases, **job}), SPEC)


def test_a_second_label_that_no_term_teaches_is_refused() -> None:
    (problem,) = found([BUY])
    assert problem.startswith("members.student: no term teaches student.logit.added, which would stay as it was drawn")
    assert "bce(student.logit.added, added)" in problem and problem.endswith("with `labels: [buy]`")
    (problem,) = found([BUY, ADDED, TEACHER[0]], {"teacher": NET})
    assert "no term teaches teacher.logit.added" in problem
    assert found([BUY, ADDED]) == []
    assert found([BUY], {"student": {**NET, "serve": True, "labels": "buy"}}) == []


@pytest.mark.parametrize(
    ("terms", "members"),
    [
        (["bce(student.logits, stack(buy, added))"], {}),
        ([BUY, "soft(student.logit.added, teacher.logit.added)", *TEACHER], {"teacher": NET}),
        ([BUY, "bce(weighted(student.logit, student.logit.added, weights='1 1'), late)"], {}),
        ([BUY, "bce(second.logit.added, added)"], {"second": {"same": "student"}}),
        (
            [BUY, "bce(head.logit, buy)"],
            {"head": {**NET, "labels": "buy", "view": [], "inputs": ["live(student.logits)"]}},
        ),
        ([BUY, ADDED], {"calm": {"ema": "student"}}),
        ([BUY, ADDED, "bce(many[:].logits, stack(buy, added))"], {"many": {**NET, "copies": 2}}),
    ],
    ids=["all", "soft", "mixed", "second_name", "read_live", "follower", "copies"],
)
def test_a_label_is_taught_by_whatever_has_gradients_for_it(terms: list[str], members: dict[str, Any]) -> None:
    assert found(terms, members) == []


@pytest.mark.parametrize(
    ("terms", "members"),
    [
        ([BUY, "l2(student.hidden[-1], teacher.hidden[-1])", *TEACHER], {"teacher": NET}),
        ([BUY, "soft(teacher.logit.added, student.logit.added)", *TEACHER], {"teacher": NET}),
        (
            [BUY, "bce(head.logit, buy)"],
            {"head": {**NET, "labels": "buy", "view": [], "inputs": ["student.logits"]}},
        ),
    ],
    ids=["hidden", "target", "read"],
)
def test_what_only_looks_at_a_label_does_not_teach_it(terms: list[str], members: dict[str, Any]) -> None:
    (problem,) = found(terms, members)
    assert "no term teaches student.logit.added" in problem


def test_a_control_may_lack_what_only_a_teacher_teaches() -> None:
    every = {"student": {**NET, "serve": True}, "teacher": NET}
    terms = [BUY, "soft(student.logit.added, teacher.logit.added)", *TEACHER]
    raw = {"spec": "-", "log": "-", "label": ["buy", "added"], "members": every, "controls": ["plain"]}
    job = Job.model_validate({**raw, "phases": [{"epochs": 1, "terms": terms}]})
    assert problems_of(job, SPEC) == []
    plain = next(arm for arm in arms(job) if arm.name == "plain")
    assert len(compile_job(plain.job, SPEC).phases[0].terms) == 1
