"""T2, teacher assistant: each net of a chain learns from the one before it and from no other.

1. In the last hop the student hears its assistant and never the teacher, and in the hop before the assistant hears
   the teacher; whoever teaches stands still, as it was at its best evaluation.
2. What a hop teaches is its teacher's answers, both sides softened at one temperature, beside the labels.
3. The student follows its assistant far more closely than it could follow an over-trained teacher.

No gain in AUC is promised on a smooth log like this one.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.batch import Batch
from recdistill.distill.compile import Plan, compile_job, problems_of
from recdistill.nets.inputs import Outputs
from recdistill.spec.load import load_job
from recdistill.training import watch
from tests.signatures.lab import JOBS, Lab, Outcome, answering, same
from tests.signatures.traces import slopes, steps_of, traced
from tests.signatures.worlds import apart, fields

ROW = "transfer/teacher_assistant"
DIRECT = {"phases.2.terms.1": "soft(student.logit, teacher.logit, temperature=2) * 0.7"}
BOTH = {"phases.2.terms.1": "soft(student.logit, mean(teacher.logit, assistant.logit), temperature=2) * 0.7"}
SCRATCH = {"phases.1.terms": ["bce(assistant.logit, label)"]}
TOGETHER = {
    "phases.2.terms": [
        "bce(student.logit, label) * 0.3",
        "soft(student.logit, assistant.logit, temperature=2) * 0.7",
        "bce(assistant.logit, label)",
    ]
}
OTHER_TARGETS = [
    "soft(student.logit, shuffled(assistant.logit), temperature=2) * 0.7",
    "soft(student.logit, assistant.logit, temperature=20) * 0.7",
    "bce(student.logit, probability(assistant.logit)) * 0.7",
]


def chain(folder: Path, seed: int, *, rows: int, steps: Sequence[int], batch: int = 256) -> Lab:
    """A small student, an assistant and a teacher that learns its rows by heart; validation holds the training rows."""
    world = fields(seed, (rows, rows, rows)).with_training_rows_for_validation()
    overrides = {
        "members.student.net": {"mlp": [8]},
        "members.assistant.net": {"mlp": [16]},
        "members.teacher": {"net": {"mlp": [128, 64]}, "dim": 16},
        "train": {
            "batch": batch,
            "table_std": 0.3,
            "tables": {"rowwise_adagrad": {"lr": 0.05}},
            "dense": {"adam": {"lr": 0.003}},
            "stop": {"every": 1000, "keep": "last"},
        },
    }
    for k, count in enumerate(steps):
        overrides |= {f"phases.{k}.epochs": None, f"phases.{k}.steps": count}
    return world.lab(folder / str(seed), ROW, overrides)


def small(folder: Path) -> Lab:
    return chain(folder, 0, rows=256, steps=(6, 6, 6), batch=64)


# 1: who hears whom


def with_another_word(lab: Lab, overrides: Mapping[str, Any], *, of: str, phase: int) -> Outcome:
    """A training in which a member answers otherwise throughout a phase."""
    with steps_of(phase) as inside:

        def change(name: str, found: Outputs, batch: Batch) -> Outputs:
            return found._replace(logits_BK=2 - found.logits_BK) if inside() and name == of else found

        with answering(change):
            return lab.fit(overrides)


def check_each_hears_the_one_before(lab: Lab, overrides: Mapping[str, Any]) -> None:
    plain = lab.fit(overrides)

    def hears(learner: str, teacher: str, phase: int) -> bool:
        found = with_another_word(lab, overrides, of=teacher, phase=phase)
        return not same(found.parameters(learner), plain.parameters(learner))

    assert hears("assistant", "teacher", 1), "the assistant is no student of the teacher"
    assert hears("student", "assistant", 2), "the student does not hear its assistant"
    assert not hears("student", "teacher", 2), "the student hears the teacher"


def check_teachers_stand_still(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """And are what they were at their best evaluation."""
    steps, outcome = traced(lab, {"train.stop": {"every": 1}, **overrides})
    events = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    for phase, name in enumerate(("teacher", "assistant")):
        losses = [
            event["values"][f"{name}.logloss"]
            for event in events
            if event["kind"] == "evaluation" and event["phase"] == phase
        ]
        course = [step for step in steps if step.phase == phase]
        best = course[int(np.argmin(losses))].after[name]
        later = [step for step in steps if step.phase > phase]
        assert later
        assert all(same(step.before[name], best) for step in later), f"the {name} moves, or is not at its best"


def test_each_hears_the_one_before(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_each_hears_the_one_before(lab, {})
    for wrong in (DIRECT, BOTH, SCRATCH):
        with pytest.raises(AssertionError):
            check_each_hears_the_one_before(lab, wrong)


def test_teachers_stand_still_at_their_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    course = cycle([0.7, 0.6, 0.5, 0.6, 0.55, 0.7])  # of each phase: the third evaluation is best

    def evaluate(_: Any, names: Sequence[str], *__: Any) -> dict[str, float]:
        loss = next(course)
        return {f"{name}.{metric}": value for name in names for metric, value in (("logloss", loss), ("auc", 1 - loss))}

    monkeypatch.setattr(watch, "evaluate", evaluate)
    check_teachers_stand_still(lab, {})
    for wrong in (TOGETHER, {"train.stop": {"every": 1, "keep": "last"}}):
        with pytest.raises(AssertionError):
            check_teachers_stand_still(lab, wrong)


# 2: what is taught


def check_a_hop_teaches_softened_answers_and_labels(
    lab: Lab, overrides: Mapping[str, Any], phase: int, learner: str, teacher: str
) -> None:
    """On the logit of a row: 0.7 T (sigmoid(s / T) - sigmoid(t / T)) at T = 2, and 0.3 (sigmoid(s) - y)."""
    overrides = {f"members.{learner}.net": {"mlp": []}, "train.table_std": 2.0, **overrides}
    outputs, label_B = lab.outputs(overrides), lab.batch().labels["y"]
    learner_B, teacher_B = (outputs[name].logits_BK[:, 0] for name in (learner, teacher))
    (labels, answers), cast = lab.audit(overrides, phase=phase)
    softened_B = 0.7 * 2 * ((learner_B / 2).sigmoid() - (teacher_B / 2).sigmoid()) / len(label_B)
    labelled_B = 0.3 * (learner_B.sigmoid() - label_B) / len(label_B)
    torch.testing.assert_close(slopes([answers], cast, "", learner), softened_B, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(slopes([labels], cast, "", learner), labelled_B, rtol=1e-3, atol=1e-6)


def test_a_hop_teaches_softened_answers_and_labels(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_a_hop_teaches_softened_answers_and_labels(lab, {}, 1, "assistant", "teacher")
    check_a_hop_teaches_softened_answers_and_labels(lab, {}, 2, "student", "assistant")
    labels_at_full_weight = {"phases.2.terms.0": "bce(student.logit, label)"}
    others = [{"phases.2.terms.1": term} for term in OTHER_TARGETS]
    for wrong in (*others, DIRECT, BOTH, labels_at_full_weight):
        with pytest.raises(AssertionError):
            check_a_hop_teaches_softened_answers_and_labels(lab, wrong, 2, "student", "assistant")


def check_each_sees_more_than_the_next(plan: Plan) -> None:
    """Of the columns that come after the event the assistant has some, and the student, which serves, none."""
    columns = {member.name: {*member.serving, *member.privileged} for member in plan.members}
    assert columns["student"] < columns["assistant"] < columns["teacher"]
    dear = {member.name: len(member.privileged) for member in plan.members}
    assert dear["student"] == 0 < dear["assistant"] <= dear["teacher"] / 2


def test_in_the_chain_of_columns_each_sees_more_than_the_next() -> None:
    path = JOBS / f"{ROW}.yaml"

    def planned(*overrides: str) -> Plan:
        return compile_job(*load_job(path, overrides, variant="columns", check=problems_of))

    check_each_sees_more_than_the_next(planned())
    for wrong in ("[serving]", "[serving, privileged]"):
        with pytest.raises(AssertionError):
            check_each_sees_more_than_the_next(planned(f"members.assistant.view={wrong}"))


# 3: what a hop loses


def mean_apart(labs: Sequence[Lab], overrides: Mapping[str, Any], *teachers: str) -> float:
    return float(np.mean([apart(lab.fit(overrides, seed=k), "student", *teachers) for k, lab in enumerate(labs)]))


def check_the_last_hop_is_short(hop: float, direct: float) -> None:
    assert hop < direct / 3


def long_chains(folder: Path, count: int) -> list[Lab]:
    return [chain(folder, seed, rows=3000, steps=(150, 300, 300)) for seed in range(count)]


def test_the_student_follows_its_assistant(tmp_path: Path) -> None:
    labs = long_chains(tmp_path, 1)
    direct = mean_apart(labs, DIRECT, "teacher")
    check_the_last_hop_is_short(mean_apart(labs, {}, "assistant"), direct)
    with pytest.raises(AssertionError):
        check_the_last_hop_is_short(mean_apart(labs, BOTH, "teacher", "assistant"), direct)


@pytest.mark.signature
def test_the_student_follows_its_assistant_over_seeds(tmp_path: Path) -> None:
    labs = long_chains(tmp_path, 5)
    direct = mean_apart(labs, DIRECT, "teacher")
    check_the_last_hop_is_short(mean_apart(labs, {}, "assistant"), direct)
    for wrong in (mean_apart(labs, BOTH, "teacher", "assistant"), mean_apart(labs, {}, "teacher")):
        with pytest.raises(AssertionError):
            check_the_last_hop_is_short(wrong, direct)
