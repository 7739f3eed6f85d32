"""P6, Privileged Features Distillation: the teacher's knowledge reaches the student, and nothing else moves.

1. The soft term moves the student and the tables that both share, never the teacher's own layers or tables.
2. Before the swap the student is trained as if no teacher were there, bit for bit.
3. Where dwell time misleads (dear goods are looked at for long and sell rarely), a teacher on both views helps, and one
   on the privileged view alone (generalised distillation, P5) harms.
4. The gain is not monotone in what the privileged column tells: the better the teacher knows the label, the harder its
   targets, so that the gain peaks in between while the teacher's own AUC keeps rising. With scores of rows that have no
   label it rises as well.
5. Linear members on the same rows, without a penalty, have nothing to teach: what is left of the label's noise in soft
   targets is orthogonal to what the student sees.

A student that reads a privileged column is refused when the job is read, and the student's scores do not depend on it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recdistill.errors import SpecError
from tests.signatures.lab import SPLIT, Lab, Outcome, same, splits
from tests.signatures.worlds import misleading, telling

ROW = "applications/privileged_features"
NO_DROPOUT = {"members.student.dropout": 0.0, "members.teacher.dropout": 0.0}
SWAPPED = 500  # a step of the audit (of 1000) at which the teacher's word counts
MUTE = {"phases.0.terms.1": "soft(student.logit, teacher.logit) * step(0, 0, at=0.1)"}
GEND = {"members.teacher.view": ["privileged"]}
LIVE = {"phases.0.terms.1": "soft(student.logit, live(teacher.logit)) * step(0, 0.9, at=0.1)"}
CONSTANT = {
    "phases.0.terms.0": "bce(student.logit, label) * 0.1",
    "phases.0.terms.1": "soft(student.logit, teacher.logit) * 0.9",
}
MUTUAL = [
    "bce(student.logit, label) * step(1, 0.1, at=0.1)",
    "soft(student.logit, teacher.logit) * step(0, 0.9, at=0.1)",
    "bce(teacher.logit, label)",
    "soft(teacher.logit, student.logit) * step(0, 0.9, at=0.1)",
]


# 1, 2: what moves whom


def shop(folder: Path, *, dwell_of_the_test: float = 1.0) -> Lab:
    """A small shop: ids that both members look up, and bucketed dwell time in a table of the teacher's own."""
    rng = np.random.default_rng(0)
    rows = (400, 100, 100)
    n = sum(rows)
    user, item, x = rng.integers(30, size=n), rng.integers(20, size=n), rng.normal(size=n)
    dwell, reviews = rng.exponential(size=n) + x, rng.normal(size=n)
    test = splits(rows) == 2
    columns = {
        "user": user,
        "item": item,
        "x": x,
        "dwell": np.where(test, dwell * dwell_of_the_test, dwell),
        "reviews": np.where(test, reviews * dwell_of_the_test, reviews),
        "y": (rng.random(n) < 1 / (1 + np.exp(-x - dwell))).astype(np.int8),
        "part": splits(rows),
    }
    spec = {
        "split": SPLIT,
        "serving": {"user": "categorical", "item": "categorical", "x": "numeric"},
        "post_event": {"dwell": {"type": "numeric", "buckets": 8}, "reviews": "numeric", "y": "binary"},
    }
    overrides = {
        "label": "y",
        "privileged": ["dwell", "reviews"],
        "members.student.net": {"mlp": [8]},
        "members.teacher.net": {"mlp": [8]},
        "members.teacher.view": ["item", "x", "privileged"],
        "train": {"batch": 50, "table_std": 0.5, "stop": {"every": 100, "keep": "last"}},
    }
    return Lab(folder, ROW, columns, spec, overrides)


def check_soft_terms_teach_the_student_alone(lab: Lab, overrides: Mapping[str, Any]) -> None:
    audits, _ = lab.audit(overrides, step=SWAPPED)
    soft = [a for a in audits if a.words.startswith("soft(")]
    assert soft
    for term in soft:
        assert term.weight == 0.9
        assert not term.reaches("teacher"), "the teacher's layers move"
        assert "teacher" not in term.tables or not term.tables["teacher"].any(), "the teacher's tables move"
        assert term.reaches("student")
        assert term.tables["student"].any()


def check_hard_teacher_term_moves_shared_tables_but_no_student(lab: Lab, overrides: Mapping[str, Any]) -> None:
    audits, _ = lab.audit(overrides, step=SWAPPED)
    hard = next(a for a in audits if a.words.startswith("bce(teacher"))
    assert hard.reaches("teacher")
    assert hard.tables["teacher"].any()
    assert not hard.reaches("student"), "the student's layers move"
    assert "student" in hard.tables, "no table is shared"
    assert hard.tables["student"].any()


def student_gradient(lab: Lab, overrides: Mapping[str, Any], step: int, arm: str) -> dict[str, NDArray[Any]]:
    """The sum over all terms, by parameter of the student's layers."""
    audits, cast = lab.audit({**NO_DROPOUT, **overrides}, step=step, arm=arm)
    names = [f"student.{name}" for name, _ in cast.heads["student"].named_parameters()]
    return {name: sum(a.dense[name].numpy() for a in audits if name in a.dense) for name in names}


def check_gradient_before_the_swap_is_that_of_plain(lab: Lab, overrides: Mapping[str, Any]) -> None:
    for step in (0, 99):
        main, plain = (student_gradient(lab, overrides, step, arm) for arm in ("main", "plain"))
        assert same(main, plain), f"step {step}: the teacher has a say before the swap"


def check_swap_lets_the_teacher_in(lab: Lab, overrides: Mapping[str, Any]) -> None:
    main, mute = (student_gradient(lab, {**overrides, **changes}, 100, "main") for changes in ({}, MUTE))
    assert not same(main, mute), "the teacher has no say after the swap"


def until_the_swap(at: int) -> dict[str, Any]:
    """Eight steps with the swap at a given one, and tables apart, so that the teacher cannot move the student's."""
    terms = [
        f"bce(student.logit, label) * step(1, 0.1, at={at})",
        f"soft(student.logit, teacher.logit) * step(0, 0.9, at={at})",
        "bce(teacher.logit, label)",
    ]
    return {**NO_DROPOUT, "members.teacher.share.tables": None, "phases.0": {"steps": 8, "terms": terms}}


def check_student_before_the_swap_is_plain(lab: Lab, overrides: Mapping[str, Any]) -> None:
    main, plain = (lab.fit(overrides, arm=arm).parameters("student") for arm in ("main", "plain"))
    assert same(main, plain)


def check_scores_do_not_depend_on_privileged_columns(one: Lab, other: Lab, member: str) -> None:
    few = {"phases.0.epochs": None, "phases.0.steps": 8}
    assert np.array_equal(one.fit(few).logits(member), other.fit(few).logits(member))


def test_the_soft_term_moves_the_student_alone(tmp_path: Path) -> None:
    lab = shop(tmp_path)
    check_soft_terms_teach_the_student_alone(lab, {})
    for wrong in (
        LIVE,
        {"phases.0.terms": MUTUAL},
        {"phases.0.terms.1": "soft(teacher.logit, student.logit) * step(0, 0.9, at=0.1)"},
    ):
        with pytest.raises(AssertionError):
            check_soft_terms_teach_the_student_alone(lab, wrong)


def test_the_teachers_labels_reach_shared_tables_and_no_layer_of_the_student(tmp_path: Path) -> None:
    lab = shop(tmp_path)
    check_hard_teacher_term_moves_shared_tables_but_no_student(lab, {})
    with pytest.raises(AssertionError):
        check_hard_teacher_term_moves_shared_tables_but_no_student(lab, {"members.teacher.share.tables": None})


def test_before_the_swap_the_gradient_is_that_of_plain(tmp_path: Path) -> None:
    lab = shop(tmp_path)
    check_gradient_before_the_swap_is_that_of_plain(lab, {})
    check_swap_lets_the_teacher_in(lab, {})
    with pytest.raises(AssertionError):
        check_gradient_before_the_swap_is_that_of_plain(lab, CONSTANT)
    with pytest.raises(AssertionError):
        check_swap_lets_the_teacher_in(lab, MUTE)


def test_before_the_swap_training_is_that_of_plain(tmp_path: Path) -> None:
    lab = shop(tmp_path)
    check_student_before_the_swap_is_plain(lab, until_the_swap(8))
    with pytest.raises(AssertionError):
        check_student_before_the_swap_is_plain(lab, until_the_swap(7))


@pytest.mark.parametrize("view", [["serving", "dwell"], ["privileged"], ["serving", "privileged"]])
def test_a_student_that_reads_a_privileged_column_is_refused(tmp_path: Path, view: list[str]) -> None:
    with pytest.raises(SpecError, match="a serving member may read serving columns only"):
        shop(tmp_path).job({"members.student.view": view})


def test_the_students_scores_do_not_depend_on_privileged_columns(tmp_path: Path) -> None:
    one, other = shop(tmp_path / "one"), shop(tmp_path / "other", dwell_of_the_test=-3.0)
    check_scores_do_not_depend_on_privileged_columns(one, other, "student")
    with pytest.raises(AssertionError):
        check_scores_do_not_depend_on_privileged_columns(one, other, "teacher")


# 3: dwell time misleads


def trained(
    labs: list[Lab], columns: Sequence[str], wrong: Mapping[str, Any] | None = None, arm: str = "main", first: int = 0
) -> list[list[Outcome]]:
    """A training for each log and privileged column, with the seed of the log's place."""
    return [
        [lab.fit({"privileged": [column], **(wrong or {})}, seed=seed, arm=arm) for column in columns]
        for seed, lab in enumerate(labs, first)
    ]


def aucs(found: list[list[Outcome]], member: str = "student") -> NDArray[np.float64]:
    """Test AUCs, logs x columns."""
    return np.array([[each.auc(member) for each in row] for row in found])


def confounded(folder: Path, seed: int) -> Lab:
    overrides = {
        "privileged": ["z"],
        "members.student.net": {"mlp": [32, 16]},
        "members.teacher.net": {"mlp": [32, 16]},
        "members.teacher.view": ["serving", "privileged"],
        "members.teacher.dense": {"adam": {"lr": 0.003, "weight_decay": 0.003}},
        "train": {"batch": 512, "dense": {"adam": {"lr": 0.003}}},
        **NO_DROPOUT,
    }
    return misleading(seed, (12000, 1500, 10000)).lab(folder / f"{seed}", ROW, overrides)


def student(labs: list[Lab], wrong: Mapping[str, Any] | None = None, arm: str = "main", first: int = 0) -> float:
    return float(aucs(trained(labs, ["z"], wrong, arm, first)).mean())


def check_both_views_help_and_one_harms(auc: float, plain: float, gend: float) -> None:
    assert auc >= plain - 0.005
    assert auc - gend > 0.04


def check_gain_is_more_than_smoothing(auc: float, plain: float, shuffled: float) -> None:
    assert auc - plain > 0.003
    assert auc - shuffled > 0.003


def test_a_teacher_on_both_views_helps_where_dwell_time_misleads(tmp_path: Path) -> None:
    labs = [confounded(tmp_path, 0)]
    plain, gend = student(labs, arm="plain"), student(labs, GEND)
    check_both_views_help_and_one_harms(student(labs), plain, gend)
    with pytest.raises(AssertionError):
        check_both_views_help_and_one_harms(student(labs, GEND, first=100), plain, gend)


@pytest.mark.signature
def test_a_teacher_on_both_views_helps_where_dwell_time_misleads_over_seeds(tmp_path: Path) -> None:
    labs = [confounded(tmp_path, seed) for seed in range(8)]
    plain, shuffled = student(labs, arm="plain"), student(labs, arm="shuffled")
    auc, gend = student(labs), student(labs, GEND)
    check_both_views_help_and_one_harms(auc, plain, gend)
    check_gain_is_more_than_smoothing(auc, plain, shuffled)
    for wrong in (GEND, LIVE):
        with pytest.raises(AssertionError):
            check_both_views_help_and_one_harms(student(labs, wrong, first=100), plain, gend)
    with pytest.raises(AssertionError):
        check_gain_is_more_than_smoothing(student(labs, arm="shuffled", first=100), plain, shuffled)
    with pytest.raises(AssertionError):
        check_gain_is_more_than_smoothing(student(labs, {"members.teacher.view": ["serving"]}), plain, shuffled)


# 4: the gain is not monotone

KAPPAS = (0.0, 0.3, 0.6, 1.0)
COLUMNS = ("z0", "z1", "z2", "z3")
FROM_LABELS = {"phases.0.terms.1": "bce(student.logit, label) * 0.9"}
ON_KNOWN_ROWS = {"phases.0.terms.1": "soft(student.logit, teacher.logit).rows(present(y)) * 0.9"}


def revealing(folder: Path, seed: int, *, d: int = 50, extra: int = 0, judged: int = 10000, steps: int = 100) -> Lab:
    """300 known labels, linear members; so many extra rows have a teacher's score only. All rows are in every step."""
    rows = (300 + extra, 200, judged)
    overrides = {
        "privileged": ["z0"],
        "members.student.net": {"mlp": []},
        "members.teacher.net": {"mlp": []},
        "members.teacher.view": ["serving", "privileged"],
        "members.teacher.dense": {"adam": {"lr": 0.1, "weight_decay": 0.02}},  # the gradient of .01 |w|^2
        "members.student.dense": {"adam": {"lr": 0.1, "weight_decay": 0.03}},
        "phases.0.epochs": None,
        "phases.0.steps": steps,
        "phases.0.lr": "cosine(1, 0, over=0.999)",
        "train": {"batch": rows[0], "stop": {"every": steps, "keep": "last"}},
        **CONSTANT,
        **NO_DROPOUT,
    }
    return telling(seed, rows, d, KAPPAS, unlabelled=extra).lab(folder / f"{seed}_{extra}", ROW, overrides)


# Over 20 logs, mean (standard deviation; least, most): gain over plain from z0 to z3 .0054 (.0019; .0018, .0095), .0101
# (.0034; .0052, .0206), .0074 (.0028; .0030, .0153), .0036 (.0021; -.0003, .0079); over a permuted column .0045, .0092,
# .0066, .0027. The peak is above the higher end by .0046 (.0026; .0013, .0126), by either control. With 1500 rows more
# the gain is .0038, .0182, .0245, .0263; it rises in every log, in all by .0226 (.0065; .0145, .0371). The handbook has
# .008, .016, .012, .005 and .006 to .040, where the student's penalty is picked on validation rows; here it is the same
# for all. The bars are half of its gaps. Tests of one seed have a log whose peak is as high as mostly.


def check_teacher_rises(teacher_LC: NDArray[np.float64]) -> None:
    assert (np.diff(teacher_LC.mean(0)) > 0.005).all(), "a column that tells more makes no better teacher"


def check_gain_peaks_inside(gain_LC: NDArray[np.float64]) -> None:
    gain_C = gain_LC.mean(0)
    assert gain_C[1:-1].max() > max(gain_C[0], gain_C[-1]) + 0.004, "the gain is monotone"


def check_student_gains(gain_LC: NDArray[np.float64]) -> None:
    assert (gain_LC.mean(0) > 0.0025).all(), "the student gains nothing over plain"
    assert (gain_LC[:, 1] > 0).all(), "it does not in every log"


def check_gain_rises(gain_LC: NDArray[np.float64]) -> None:
    gain_C = gain_LC.mean(0)
    assert (np.diff(gain_C) > 0).all(), "the gain is not monotone"
    assert gain_C[-1] - gain_C[0] > 0.017


NO_PEAK = [
    {"wrong": FROM_LABELS},
    {"wrong": GEND},  # the more the column tells of luck, the less it alone tells of what the student sees
    {"wrong": {}, "arm": "shuffled", "first": 100},  # a permuted column, with other seeds than the control
]


def test_the_gain_peaks_where_the_column_tells_something_but_not_all(tmp_path: Path) -> None:
    labs, columns = [revealing(tmp_path, 5)], ["z0", "z1", "z3"]
    plain = aucs(trained(labs, ["z0"], arm="plain"))
    found = trained(labs, columns)
    check_teacher_rises(aucs(found, "teacher"))
    check_gain_peaks_inside(aucs(found) - plain)
    with pytest.raises(AssertionError):
        check_gain_peaks_inside(aucs(trained(labs, columns, FROM_LABELS)) - plain)


@pytest.mark.signature
def test_the_gain_peaks_inside_over_seeds(tmp_path: Path) -> None:
    labs = [revealing(tmp_path, seed) for seed in range(8)]
    plain, shuffled = aucs(trained(labs, ["z0"], arm="plain")), aucs(trained(labs, COLUMNS, arm="shuffled"))
    found = trained(labs, COLUMNS)
    check_teacher_rises(aucs(found, "teacher"))
    check_student_gains(aucs(found) - plain)
    for control in (plain, shuffled):
        check_gain_peaks_inside(aucs(found) - control)
    for wrong in NO_PEAK:
        smooth = aucs(trained(labs, COLUMNS, **wrong))
        for control in (plain, shuffled):
            with pytest.raises(AssertionError):
                check_gain_peaks_inside(smooth - control)
        if wrong["wrong"] == FROM_LABELS:
            with pytest.raises(AssertionError):
                check_student_gains(smooth - plain)


def check_unlabelled_rows(labs: list[Lab], columns: Sequence[str]) -> None:
    plain = aucs(trained(labs, ["z0"], arm="plain"))
    check_gain_rises(aucs(trained(labs, columns)) - plain)
    with pytest.raises(AssertionError):
        check_gain_rises(aucs(trained(labs, columns, ON_KNOWN_ROWS)) - plain)


def test_with_scores_of_unlabelled_rows_the_gain_rises(tmp_path: Path) -> None:
    check_unlabelled_rows([revealing(tmp_path, 5, extra=1500)], ["z0", "z1", "z3"])


@pytest.mark.signature
def test_with_scores_of_unlabelled_rows_the_gain_rises_over_seeds(tmp_path: Path) -> None:
    check_unlabelled_rows([revealing(tmp_path, seed, extra=1500) for seed in range(8)], COLUMNS)


# 5: where it tells nothing

UNPENALISED = {
    "privileged": ["z1"],
    "members.student.dense": {"adam": {"lr": 0.2}},
    "members.teacher.dense": {"adam": {"lr": 0.2}},
}
HALF = {
    "phases.0.terms.0": "bce(student.logit, label) * 0.5",
    "phases.0.terms.1": "soft(student.logit, teacher.logit) * 0.5",
}
PENALISED_TEACHER = {"members.teacher.dense": {"adam": {"lr": 0.1, "weight_decay": 0.02}}}
HOT = {"phases.0.terms.1": "soft(student.logit, teacher.logit, temperature=4) * 0.9"}


def check_student_is_plain(lab: Lab, plain: Mapping[str, NDArray[Any]], overrides: Mapping[str, Any]) -> None:
    """The weights, up to .86, are the same to 8e-5; under a penalised teacher they are off by .04."""
    taught = lab.fit({**UNPENALISED, **overrides}).parameters("student")
    assert plain.keys() == taught.keys()
    assert max(np.abs(plain[name] - taught[name]).max() for name in plain) < 1e-3


def test_linear_members_on_the_same_rows_have_nothing_to_teach(tmp_path: Path) -> None:
    lab, more = (revealing(tmp_path, 0, d=5, extra=extra, judged=200, steps=400) for extra in (0, 300))
    plain, of_more = (where.fit(UNPENALISED, arm="plain").parameters("student") for where in (lab, more))
    for right in ({}, HALF):
        check_student_is_plain(lab, plain, right)
    for wrong in (HOT, PENALISED_TEACHER, GEND):
        with pytest.raises(AssertionError):
            check_student_is_plain(lab, plain, wrong)
    with pytest.raises(AssertionError):
        check_student_is_plain(more, of_more, {})
