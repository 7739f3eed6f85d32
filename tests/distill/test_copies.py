"""Copies of members: what every form of index stands for, who shares and serves, and what is no copy at all."""

from typing import Any

import pytest
import torch

from recdistill.distill.combine import fold_of
from recdistill.distill.compile import Plan, examine
from recdistill.distill.copies import expanded
from recdistill.distill.member import Member, Same
from recdistill.distill.signal import Logit, Scene
from recdistill.spec.job import Job
from recdistill.spec.members import Best, Ema, Previous, Remote, Snapshot
from tests.distill.test_distill import SPEC, batch

STUDENT: dict[str, Any] = {"net": {"mlp": [4]}, "dim": 4, "serve": True}
TEACHERS: dict[str, Any] = {"net": {"mlp": [4]}, "dim": 4, "copies": 3}
TAUGHT = ["bce(student.logit, y)", "bce(teacher[:].logit, y)"]


def job(terms: list[str], members: dict[str, Any] | None = None, **phase: Any) -> Job:
    members = {"student": STUDENT, "teacher": TEACHERS, **(members or {})}
    phases = [{"steps": 4, "terms": terms, **phase}]
    return Job.model_validate({"spec": "-", "log": "-", "label": "y", "members": members, "phases": phases})


def planned(terms: list[str], members: dict[str, Any] | None = None, **phase: Any) -> Plan:
    plan, problems = examine(job(terms, members, **phase), SPEC)
    assert plan is not None, problems
    return plan


def refused(terms: list[str], members: dict[str, Any] | None = None, **phase: Any) -> list[str]:
    return examine(job(terms, members, **phase), SPEC)[1]


def written(term: str, members: dict[str, Any] | None = None) -> list[str]:
    """The terms that one stands for, as they are written with the names of copies."""
    problems: list[str] = []
    found = expanded(job([term], members), problems)
    assert problems == []
    return found.phases[0].terms


def by_name(plan: Plan) -> dict[str, Member]:
    return {member.name: member for member in plan.members}


TWO = {"student": {**STUDENT, "copies": 3}}
TEACHERS_LOGITS = "teacher_0.logit, teacher_1.logit, teacher_2.logit"
INDICES: dict[str, tuple[str, dict[str, Any]]] = {  # what each stands for; with # once for each copy
    "bce(teacher[1].logit, y)": ("bce(teacher_1.logit, y)", {}),
    "bce(teacher[-1].logit, y)": ("bce(teacher_2.logit, y)", {}),
    "bce(student[0].logit, y)": ("bce(student.logit, y)", {}),
    "bce(teacher[:].logit, y) * 2": ("bce(teacher_#.logit, y) * 2", {}),
    "soft(student.logit, teacher[:].logit)": ("soft(student.logit, teacher_#.logit)", {}),
    "soft(student[:].logit, teacher[:].logit)": ("soft(student_#.logit, teacher_#.logit)", TWO),
    "l2(teacher[:].embed, teacher[0].embed)": ("l2(teacher_#.embed, teacher_0.embed)", {}),
    "soft(student.logit, mean(teacher[:].logit, of='probability'))": (
        f"soft(student.logit, mean({TEACHERS_LOGITS}, of='probability'))", {},
    ),
    "soft(student.logit, mean(live(teacher[:].logit), student.logit))": (
        "soft(student.logit, mean(live(teacher_0.logit), live(teacher_1.logit), live(teacher_2.logit), student.logit))",
        {},
    ),
    "soft(student[:].logit, vote(teacher[:].logit))": (f"soft(student_#.logit, vote({TEACHERS_LOGITS}))", TWO),
    "soft(student[:].logit, gate(teacher[:].logit, by=student[:].embed))": (
        f"soft(student_#.logit, gate({TEACHERS_LOGITS}, by=student_#.embed))", TWO,
    ),
    "soft(student[:].logit, teacher[:].logit).rows(beats(teacher[:].logit, student[:].logit, y))": (
        "soft(student_#.logit, teacher_#.logit).rows(beats(teacher_#.logit, student_#.logit, y))", TWO,
    ),
    "soft(student.logit, teacher[:].logit) * stalled(0, 1, teacher[:].auc)": (
        "soft(student.logit, teacher_#.logit) * stalled(0, 1, teacher_#.auc)", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("term", INDICES)
def test_an_index_stands_for_one_copy_or_for_all(term: str) -> None:
    expected, members = INDICES[term]
    assert written(term, members) == [expected.replace("#", str(k)) for k in range(3 if "#" in expected else 1)]


def test_copies_differ_and_only_the_first_one_serves() -> None:
    plan = planned(["bce(student[:].logit, y)", "bce(teacher[:].logit, y)"], TWO)
    assert [(m.name, m.serve) for m in plan.members][:3] == [
        ("student_0", True), ("student_1", False), ("student_2", False),
    ]  # fmt: skip
    assert plan.student.name == "student_0" and plan.served == ("student_0",)
    assert [term.learner for term in plan.phases[0].terms] == [
        Logit(f"{name}_{k}") for name in ("student", "teacher") for k in range(3)
    ]


def test_copies_share_with_the_first_of_their_own_kind_or_with_another_member() -> None:
    shared = {**TEACHERS, "trunk": [4], "share": {"tables": "teacher", "trunk": "teacher"}}
    found = by_name(planned(TAUGHT, {"teacher": shared}))
    assert [found[f"teacher_{k}"].share.tables for k in range(3)] == [None, "teacher_0", "teacher_0"]
    assert [found[f"teacher_{k}"].share.trunk for k in range(3)] == [None, "teacher_0", "teacher_0"]
    assert [found[f"teacher_{k}"].trunk for k in range(3)] == [(4,)] * 3
    found = by_name(planned(TAUGHT, {"teacher": {**TEACHERS, "share": {"tables": {"user": "student"}}}}))
    assert all(found[f"teacher_{k}"].share.tables == {"user": "student"} for k in range(3))
    share = {"tables": "teacher[-1]", "modules": {"net": "teacher[1]", "net.out": "teacher[-1].net.out"}}
    found = by_name(planned([*TAUGHT, "bce(other.logit, y)"], {"other": {**STUDENT, "serve": False, "share": share}}))
    assert found["other"].share.tables == "teacher_2" and found["other"].share.borrowed == {
        "net": ("teacher_1", "net"),
        "net.out": ("teacher_2", "net.out"),
    }


@pytest.mark.parametrize(
    ("origin", "kind"),
    [("ema", Ema), ("best", Best), ("previous", Previous), ("same", Same), ("snapshot", Snapshot), ("remote", Remote)],
)
def test_copies_follow_their_own_twin_or_the_one_that_is_named(origin: str, kind: type) -> None:
    def follower(word: str, **more: Any) -> dict[str, Any]:
        keys = {"snapshot": {"every": 2}, "remote": {"every": 2, "exchange": "runs/exchange", "name": "here"}}
        return {origin: {"of": word, **keys[origin]} if origin in keys else word, **more}

    found = by_name(planned(TAUGHT, {"late": follower("teacher", copies=3)}))
    assert [found[f"late_{k}"].origin.of for k in range(3)] == [f"teacher_{k}" for k in range(3)]
    assert isinstance(found["late_0"].origin, kind)
    found = by_name(planned(TAUGHT, {"late": follower("teacher[1]")}))
    assert found["late"].origin.of == "teacher_1"
    found = by_name(planned(TAUGHT, {"late": follower("teacher[-1]", copies=2)}))
    assert [found[f"late_{k}"].origin.of for k in range(2)] == ["teacher_2"] * 2


def test_a_name_without_a_number_means_all_where_several_may_stand() -> None:
    terms = [*TAUGHT, "soft(student.logit, teacher[0].logit)"]
    plan = planned(terms, train=["teacher", "student.net"], restart=["teacher"], carry={"teacher[2]": "teacher[0]"})
    phase = plan.phases[0]
    assert [(p.member, p.path) for p in phase.updates[0].parts] == [
        ("teacher_0", ""), ("teacher_1", ""), ("teacher_2", ""), ("student", "net"),
    ]  # fmt: skip
    assert phase.restart == ("teacher_0", "teacher_1", "teacher_2") and phase.carry == (("teacher_2", "teacher_0"),)
    only = planned(TAUGHT, train=["teacher[0].tables", "teacher[:]", "student"])
    assert [p.member for p in only.phases[0].updates[0].parts][:2] == ["teacher_0", "teacher_0"]


def test_an_input_of_all_copies_is_an_input_for_each() -> None:
    head = {"net": {"mlp": []}, "view": [], "inputs": ["teacher[:].logit", "mean(teacher[:].hidden[-1])"]}
    found = by_name(planned([*TAUGHT, "bce(head.logit, y)"], {"head": head}))["head"]
    assert [str(signal) for signal in found.inputs] == [
        "teacher_0.logit", "teacher_1.logit", "teacher_2.logit",
        "weighted(teacher_0.hidden[-1], teacher_1.hidden[-1], teacher_2.hidden[-1])",
    ]  # fmt: skip


FOLDED = {"teacher": {**TEACHERS, "folds": True}}


def test_a_copy_with_a_fold_learns_from_no_row_of_it_however_it_is_taught() -> None:
    terms = {
        "soft(teacher[2].logit, student.logit)": "teacher_2",
        "soft(student.logit, live(teacher[0].logit))": "teacher_0",
        "l2(adapt(teacher[1].hidden[-1], width=4), student.hidden[-1])": "teacher_1",
        "l2(mean(student.hidden[-1], teacher[2].hidden[-1]), student.hidden[-1])": "teacher_2",
        "soft(late.logit, student.logit)": "teacher_1",
        "bce(reader.logit, y)": "teacher_0",
    }
    others = {"late": {"same": "teacher[1]"}, "reader": {"net": {"mlp": []}, "inputs": ["live(teacher[0].logit)"]}}
    plan = planned([*TAUGHT, *terms], {**FOLDED, **others})
    folds = {term.words: term.fold for term in plan.phases[0].terms}
    assert list(folds.values())[:4] == [None, (0, 3), (1, 3), (2, 3)]
    for (words, name), fold in zip(terms.items(), list(folds.values())[4:], strict=True):
        assert fold == (int(name[-1]), 3), words


def test_the_rows_of_a_fold_weigh_nothing() -> None:
    plan = planned(TAUGHT, FOLDED)
    b = batch(6, label=[1.0] * 6)
    from tests.distill.test_distill import scene

    outputs = {f"teacher_{k}": scene(b).outputs["teacher"] for k in range(3)}
    folds = fold_of(b.row_id_B, 3)
    assert len(set(folds.tolist())) > 1
    for k, term in enumerate(plan.phases[0].terms[1:]):
        _, weight = term.losses(Scene(outputs, b))
        assert torch.equal(weight > 0, folds != k)


def test_folds_are_about_even_and_depend_on_the_row_alone() -> None:
    rows = torch.arange(30_000) * 7919 - 10**6
    folds = fold_of(rows, 5)
    assert (torch.bincount(folds, minlength=5) - 6000).abs().max() < 350
    assert torch.equal(folds[17:90], fold_of(rows[17:90], 5))


def test_a_copy_out_of_fold_is_the_one_that_has_not_seen_the_row() -> None:
    plan = planned([*TAUGHT, "soft(student.logit, out_of_fold(teacher[:].logit))"], FOLDED)
    signal = plan.phases[0].terms[-1].targets[0]
    b = batch(6, label=[1.0] * 6)
    values = torch.arange(18.0).reshape(3, 6)
    from recdistill.nets.inputs import Outputs

    outputs = {f"teacher_{k}": Outputs(values[k].unsqueeze(1), [], values[k].unsqueeze(1), []) for k in range(3)}
    assert torch.equal(signal.value(Scene(outputs, b)), values[fold_of(b.row_id_B, 3), torch.arange(6)])


@pytest.mark.parametrize(
    ("terms", "members", "phase", "message"),
    [
        (["soft(student.logit, teacher[3].logit)"], {}, {}, "teacher[3].logit: 'teacher' has 3 copies, numbered"),
        (["soft(student.logit, teacher[-4].logit)"], {}, {}, "'teacher' has 3 copies"),
        (["soft(student.logit, teacher.logit)"], {}, {}, "write teacher[0], or teacher[:] for all"),
        (["soft(student[1].logit, teacher[0].logit)"], {}, {}, "'student' has 1 copies"),
        ([], {}, {"train": ["teacher[7]"]}, "phases.0.train: 'teacher[7]' names no copy; 'teacher' has 3"),
        ([], {}, {"train": ["student[1].net"]}, "phases.0.train: 'student[1]' names no copy; 'student' has 1"),
        ([], {}, {"restart": ["teacher[-9]"]}, "phases.0.restart: 'teacher[-9]' names no copy"),
        ([], {}, {"restart": ["teacher[x]"]}, "phases.0.restart: 'teacher[x]' names no copy"),
        ([], {}, {"carry": {"student": "teacher[3]"}}, "phases.0.carry: 'teacher[3]' names no copy"),
        ([], {"late": {"ema": "teacher[9]"}}, {}, "members.late: 'teacher[9]' names no copy"),
        ([], {"late": {"ema": "teacher[:]"}}, {}, "members.late: 'teacher[:]' names no copy"),
        (["bce(o.logit, y)"], {"o": {**STUDENT, "serve": False, "share": {"tables": "teacher[3]"}}}, {},
         "members.o.share.tables: 'teacher[3]' names no copy"),
        (["bce(o.logit, y)"], {"o": {**STUDENT, "serve": False, "share": {"tables": {"user": "teacher[:]"}}}}, {},
         "members.o.share.tables: 'teacher[:]' names no copy"),
        (["bce(o.logit, y)"], {"o": {**STUDENT, "serve": False, "share": {"modules": {"net": "teacher[5]"}}}}, {},
         "members.o.share.modules.net: 'teacher[5]' names no copy"),
        (["soft(student[:].logit, teacher[:].logit)"], {"student": {**STUDENT, "copies": 2}}, {},
         "names 2 and 3 copies at once; make them as many"),
        (["soft(student.logit, teacher[0].logit).rows(agrees(teacher[:].logit, y))"], {}, {},
         "the selector names all copies, but the loss does not"),
        (["soft(student.logit, out_of_fold(teacher[:].logit))"], {}, {},
         "needs all copies of a member with `folds: true`, in their order"),
        (["soft(student.logit, out_of_fold(teacher[0].logit, teacher[1].logit))"], FOLDED, {},
         "needs all copies of a member with `folds: true`"),
        (["soft(student.logit, out_of_fold(teacher[1].logit, teacher[0].logit, teacher[2].logit))"], FOLDED, {},
         "in their order"),
        (["bce(mean(teacher[:].logit), y)"], FOLDED, {}, "teaches copies of 3 folds at once"),
        (["bce(teacher[0].logit, y)"], {}, {}, "'bce(teacher_0.logit, y)' is listed twice"),
        ([], {"teacher_1": TEACHERS}, {}, "members.teacher_1: is also the name of a copy of 'teacher'"),
        ([], {"teacher": {**TEACHERS, "folds": True, "copies": 1}}, {}, ""),
    ],
)  # fmt: skip
def test_what_is_no_copy_is_named(
    terms: list[str], members: dict[str, Any], phase: dict[str, Any], message: str
) -> None:
    if not message:  # found in the job itself
        found = job([*TAUGHT, *terms], members, **phase).problems()
        message = "members.teacher.folds: needs several copies"
    else:
        found = refused([*TAUGHT, *terms], members, **phase)
    assert any(message in problem for problem in found), found
