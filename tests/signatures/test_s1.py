"""S1, distortion-guided self-distillation: one net, two distorted views of the same rows, made to agree.

1. The two views have one role: exchanged, they give the same gradients.
2. The features are compared as batches: which row of the other view is which changes nothing.
3. Views that are alike teach nothing; the job's two are drawn apart.
4. Trained so, the net answers two views more alike than with doubled labels alone, and predicts better.
5. It serves what it has learned on rows as they are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.distill.member import Member
from recdistill.losses.catalog import LOSSES
from recdistill.losses.scope import over_batch
from recdistill.training.play import Lookups, View
from tests.signatures.lab import Lab
from tests.signatures.worlds import fields

ROW = "self/distortion"
MMD = "mmd(student.hidden[-1], live(mirror.hidden[-1])) * 0.01"
AS_THEY_ARE = {"members.student.distort": None, "members.mirror.distort": None}
LABELS_ALONE = {"phases.0.terms": ["bce(student.logit, label)", "bce(mirror.logit, label)"], "controls": ["plain"]}
FIXED_TEACHER = {"phases.0.terms": [*LABELS_ALONE["phases.0.terms"], "soft(student.logit, mirror.logit) * 2", MMD]}
ON_ANSWERS = {"phases.0.terms.4": "l2(student.logit, live(mirror.logit)) * 0.01"}
ANSWERS, FEATURES = slice(2, 4), slice(4, 5)  # terms of the job
OTHER_ROWS = {"phases.0.terms.4": "mmd(student.hidden[-1], live(shuffled(mirror.hidden[-1]))) * 0.01"}
# Two more names of the student, whose scores are those of two masked views; and one that sees every row as it is.
WATCHED = {f"members.{name}": {"same": "student", "distort": {"mask": 0.15, "scores": 1}} for name in ("one", "two")}
CLEAN = {"members.clean": {"same": "student"}}


def crowd(folder: Path, seed: int, *, rows: Sequence[int] = (4000, 500, 6000), steps: int = 150) -> Lab:
    """The job as it is, on columns that can go missing."""
    overrides = {
        "members.student.net": {"mlp": [32]},
        "phases.0.epochs": None,
        "phases.0.steps": steps,
        "train": {
            "batch": 256,
            "table_std": 0.1,
            "tables": {"rowwise_adagrad": {"lr": 0.05}},
            "dense": {"adam": {"lr": 0.003}},
            "stop": {"every": steps, "keep": "last"},
        },
        **WATCHED,
    }
    return fields(seed, rows).lab(folder / str(seed), ROW, overrides)


def small(folder: Path) -> Lab:
    return crowd(folder, 0, rows=(512, 100, 100), steps=8)


def gradients(lab: Lab, overrides: Mapping[str, Any], terms: slice = slice(None)) -> dict[str, Tensor]:
    """The sum over some terms on every parameter of the student, and on each of its looked-up values of either view."""
    audits, _ = lab.audit(overrides)
    found: dict[str, Tensor] = {}
    for audit in audits[terms]:
        dense = {name: value for name, value in audit.dense.items() if name.startswith("student.")}
        for name, value in {**dense, **audit.tables}.items():
            found[name] = found[name] + value if name in found else value
    assert found, "there is no such term"
    return found


def check_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


# 1, 2, 3: structure


def exchanged(lab: Lab, overrides: Mapping[str, Any]) -> dict[str, Tensor]:
    """The gradients if each name sees the view that is the other's, those on looked-up values in the order of views."""
    view_of = Lookups.view_of

    def of_the_other(lookups: Lookups, member: Member) -> View:
        view = view_of(lookups, member)
        assert isinstance(view, tuple)
        return view[0], "" if view[1] else "mirror"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lookups, "view_of", of_the_other)
        found = gradients(lab, overrides)
    return {**found, "student": found["student"].roll(len(found["student"]) // 2, 0)}


def check_views_have_one_role(lab: Lab, overrides: Mapping[str, Any]) -> None:
    check_equal(gradients(lab, overrides), exchanged(lab, overrides))
    for half in gradients(lab, overrides, ANSWERS)["student"].chunk(2):
        assert half.any(), "one view is not taught"


def check_features_are_compared_as_batches(lab: Lab, overrides: Mapping[str, Any]) -> None:
    ours = gradients(lab, overrides, FEATURES)
    assert ours["student"].any()
    out = [value for name, value in ours.items() if name.startswith("student.net.out.")]
    assert not any(bool(value.any()) for value in out), "answers are compared"
    check_equal(ours, gradients(lab, OTHER_ROWS, FEATURES))


def check_only_views_that_differ_teach(lab: Lab) -> None:
    for terms in (ANSWERS, FEATURES):
        alike = gradients(lab, AS_THEY_ARE, terms)
        assert not any(bool(value.any()) for value in alike.values()), "views that are alike teach something"
        assert any(bool(value.any()) for value in gradients(lab, {}, terms).values()), "the views are drawn alike"


def row_by_row(student_BH: Tensor, mirror_BH: Tensor) -> Tensor:
    return (student_BH - mirror_BH).square().mean()


def test_exchanged_views_give_the_same_gradients(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_views_have_one_role(lab, {})
    for wrong, why in ((FIXED_TEACHER, "not close"), (LABELS_ALONE, "no such term")):
        with pytest.raises(AssertionError, match=why):
            check_views_have_one_role(lab, wrong)


def test_features_are_compared_as_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_features_are_compared_as_batches(lab, {})
    with pytest.raises(AssertionError, match="answers are compared"):
        check_features_are_compared_as_batches(lab, ON_ANSWERS)
    monkeypatch.setitem(LOSSES, "mmd", over_batch(row_by_row))
    with pytest.raises(AssertionError):
        check_features_are_compared_as_batches(lab, {})


def test_views_that_are_alike_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_only_views_that_differ_teach(lab)
    monkeypatch.setattr(
        Lookups, "view_of", lambda lookups, member: None if member.distort is None else (member.distort, "")
    )
    with pytest.raises(AssertionError):
        check_only_views_that_differ_teach(lab)


# 5: serving


def check_serves_rows_as_they_are(lab: Lab, overrides: Mapping[str, Any]) -> None:
    found = lab.fit({**CLEAN, **overrides})
    assert np.array_equal(found.logits("student"), found.logits("clean"))
    assert not np.array_equal(found.logits("one"), found.logits("two"))


def test_the_student_serves_rows_as_they_are(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_serves_rows_as_they_are(lab, {})
    with pytest.raises(AssertionError):
        check_serves_rows_as_they_are(lab, {"members.student.distort.scores": 1})


# 4: what it is good for


def outcome(labs: Sequence[Lab], overrides: Mapping[str, Any] | None = None) -> tuple[float, float]:
    """How far the answers to two views lie apart, and the log loss on test rows as they are; means over logs."""
    found = []
    for seed, lab in enumerate(labs):
        made = lab.fit(overrides, seed=seed)
        one, two = (1 / (1 + np.exp(-made.logits(name))) for name in ("one", "two"))
        found.append((np.abs(one - two).mean(), made.logloss("student")))
    apart, loss = np.mean(found, 0)
    return float(apart), float(loss)


def check_views_agree_and_predict(ours: tuple[float, float], labels: tuple[float, float]) -> None:
    """Views a tenth closer (measured .061 -> .050 and the like), and a smaller log loss."""
    assert ours[0] <= 0.9 * labels[0], "the views agree no better"
    assert ours[1] < labels[1], "it predicts no better"


def test_views_agree_and_predict_better(tmp_path: Path) -> None:
    labs = [crowd(tmp_path, 0)]
    labels = outcome(labs, LABELS_ALONE)
    check_views_agree_and_predict(outcome(labs), labels)
    with pytest.raises(AssertionError):
        check_views_agree_and_predict(outcome(labs, AS_THEY_ARE), labels)


@pytest.mark.signature
def test_views_agree_and_predict_better_over_seeds(tmp_path: Path) -> None:
    labs = [crowd(tmp_path, seed) for seed in range(6)]
    labels = outcome(labs, LABELS_ALONE)
    check_views_agree_and_predict(outcome(labs), labels)
    shuffled = {
        f"phases.0.terms.{k}": f"soft({a}.logit, shuffled({b}.logit))"
        for k, a, b in ((2, "student", "mirror"), (3, "mirror", "student"))
    }
    for wrong in (outcome(labs, AS_THEY_ARE), outcome(labs, shuffled)):
        with pytest.raises(AssertionError):
            check_views_agree_and_predict(wrong, labels)
