"""P6, Privileged Features Distillation: the teacher's knowledge reaches the student, and nothing else moves.

1. The soft term moves the student and the tables that both share, never the teacher's own layers or tables.
2. Before the swap the student is trained as if no teacher were there, bit for bit.
3. Where dwell time misleads (dear goods are looked at for long and sell rarely), a teacher on both views helps, and one
   on the privileged view alone (generalised distillation, P5) harms.
4. The gain is not monotone in what the privileged column tells: the better the teacher knows the label, the harder its
   targets, so that the gain over a permuted column peaks in between while the teacher's own AUC keeps rising.

A student that reads a privileged column is refused when the job is read, and the student's scores do not depend on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recdistill.errors import SpecError
from tests.signatures.lab import SPLIT, Lab, mean_auc, same, splits

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


def confounded(folder: Path, seed: int) -> Lab:
    """Goods with a high x0 are looked at for long and sell rarely; the labels of a quarter of the rows are known."""
    rng = np.random.default_rng(seed)
    rows = (12000, 1500, 10000)
    part = splits(rows)
    x = rng.normal(size=(sum(rows), 8))
    w = 0.35 * rng.normal(size=8)
    useful = x @ w + 0.6 * x[:, 1] * x[:, 2] - 0.8 * x[:, 0] + rng.normal(size=len(x))
    y = rng.random(len(x)) < 1 / (1 + np.exp(3 - useful))
    known = (part > 0) | (np.arange(len(x)) % 4 == 0)
    columns = {f"x{i}": x[:, i] for i in range(8)} | {
        "z": useful + 2.5 * x[:, 0] + 0.3 * rng.normal(size=len(x)),
        "y": [int(label) if told else None for label, told in zip(y, known, strict=True)],
        "part": part,
    }
    spec = {
        "split": SPLIT,
        "serving": {f"x{i}": "numeric" for i in range(8)},
        "post_event": {"z": "numeric", "y": "binary"},
    }
    overrides = {
        "label": "y",
        "privileged": ["z"],
        "members.student.net": {"mlp": [32, 16]},
        "members.teacher.net": {"mlp": [32, 16]},
        "members.teacher.view": ["serving", "privileged"],
        "members.teacher.dense": {"adam": {"lr": 0.003, "weight_decay": 0.003}},
        "train": {"batch": 512, "dense": {"adam": {"lr": 0.003}}},
        **NO_DROPOUT,
    }
    return Lab(folder / str(seed), ROW, columns, spec, overrides)


def check_both_views_help_and_one_harms(auc: float, plain: float, gend: float) -> None:
    assert auc >= plain - 0.005
    assert auc - gend > 0.04


def check_gain_is_more_than_smoothing(auc: float, plain: float, shuffled: float) -> None:
    assert auc - plain > 0.003
    assert auc - shuffled > 0.003


def test_a_teacher_on_both_views_helps_where_dwell_time_misleads(tmp_path: Path) -> None:
    labs = [confounded(tmp_path, 0)]
    plain, gend = mean_auc(labs, "student", {}, "plain"), mean_auc(labs, "student", GEND)
    check_both_views_help_and_one_harms(mean_auc(labs, "student"), plain, gend)
    with pytest.raises(AssertionError):
        check_both_views_help_and_one_harms(gend, plain, gend)


@pytest.mark.signature
def test_a_teacher_on_both_views_helps_where_dwell_time_misleads_over_seeds(tmp_path: Path) -> None:
    labs = [confounded(tmp_path, seed) for seed in range(8)]
    auc, plain = mean_auc(labs, "student"), mean_auc(labs, "student", {}, "plain")
    gend, shuffled = mean_auc(labs, "student", GEND), mean_auc(labs, "student", arm="shuffled")
    check_both_views_help_and_one_harms(auc, plain, gend)
    check_gain_is_more_than_smoothing(auc, plain, shuffled)
    for wrong in (gend, mean_auc(labs, "student", LIVE)):
        with pytest.raises(AssertionError):
            check_both_views_help_and_one_harms(wrong, plain, gend)
    for wrong in (shuffled, mean_auc(labs, "student", {"members.teacher.view": ["serving"]})):
        with pytest.raises(AssertionError):
            check_gain_is_more_than_smoothing(wrong, plain, shuffled)


# 4: the gain is not monotone

KAPPAS = (0.0, 0.3, 0.6, 1.0)
FROM_LABELS = {"phases.0.terms.1": "bce(student.logit, label) * 0.9"}


def revealing(folder: Path, seed: int, *, steps: int = 400, lr: float = 0.03) -> Lab:
    """Columns z0 ... z3 that tell more and more of the luck that decides the label; few rows, linear members."""
    rng = np.random.default_rng(seed)
    rows, d = (300, 200, 10000), 50
    x = rng.normal(size=(sum(rows), d))
    u = x @ (1.5 * rng.normal(size=d) / d**0.5)
    luck, noise = rng.logistic(size=len(x)), 0.3 * rng.normal(size=len(x))
    columns = {f"x{i}": x[:, i] for i in range(d)} | {f"z{j}": u + k * luck + noise for j, k in enumerate(KAPPAS)}
    spec = {
        "split": SPLIT,
        "serving": {f"x{i}": "numeric" for i in range(d)},
        "post_event": {"y": "binary"} | {f"z{j}": "numeric" for j in range(len(KAPPAS))},
    }
    overrides = {
        "label": "y",
        "privileged": ["z0"],
        "members.student.net": {"mlp": []},
        "members.teacher.net": {"mlp": []},
        "members.teacher.view": ["serving", "privileged"],
        "members.teacher.dense": {"adam": {"lr": lr, "weight_decay": 0.01}},
        "members.student.dense": {"adam": {"lr": lr, "weight_decay": 0.03}},
        "phases.0.epochs": None,
        "phases.0.steps": steps,
        "train": {"batch": rows[0], "stop": {"every": steps, "keep": "last"}},
        **CONSTANT,
        **NO_DROPOUT,
    }
    y = (u + luck > 0).astype(np.int8)
    return Lab(folder / str(seed), ROW, {**columns, "y": y, "part": splits(rows)}, spec, overrides)


@dataclass(frozen=True)
class Curve:
    """Test AUCs by column, averaged over logs: gains of the student over plain and over a permuted column, teacher."""

    gain: NDArray[np.float64]
    over_shuffled: NDArray[np.float64]
    teacher: NDArray[np.float64]


def curve(labs: list[Lab], columns: list[str], wrong: Mapping[str, Any] | None = None, arm: str = "main") -> Curve:
    """The curve of the job, of a twin, or of an arm in its place; plain and shuffled are always the job's own."""
    points = []
    for seed, lab in enumerate(labs):
        plain = lab.fit(seed=seed, arm="plain").auc("student")
        for column in columns:
            shuffled = lab.fit({"privileged": [column]}, seed=seed, arm="shuffled").auc("student")
            found = lab.fit({"privileged": [column], **(wrong or {})}, seed=seed, arm=arm)
            student = found.auc("student")
            points.append((student - plain, student - shuffled, found.auc("teacher")))
    return Curve(*np.array(points).reshape(len(labs), len(columns), 3).mean(0).T)


def check_gain_peaks_inside(found: Curve) -> None:
    assert (np.diff(found.teacher) > 0.005).all(), "a column that tells more makes no better teacher"
    ends = max(found.over_shuffled[0], found.over_shuffled[-1])
    assert found.over_shuffled[1:-1].max() > ends + 0.0017, "the gain over a permuted column is monotone"


def check_student_gains(found: Curve) -> None:
    assert (found.gain > 0.0005).all(), "the student gains nothing over plain"


def test_the_gain_peaks_where_the_column_tells_something_but_not_all(tmp_path: Path) -> None:
    check_gain_peaks_inside(curve([revealing(tmp_path, 0, steps=60, lr=0.1)], ["z0", "z1", "z3"]))


@pytest.mark.signature
def test_the_gain_peaks_inside_over_seeds(tmp_path: Path) -> None:
    found = curve([revealing(tmp_path, seed) for seed in range(6)], ["z0", "z1", "z2", "z3"])
    check_gain_peaks_inside(found)
    check_student_gains(found)


@pytest.mark.signature
def test_targets_from_the_labels_give_no_gain(tmp_path: Path) -> None:
    found = curve([revealing(tmp_path, seed) for seed in range(2)], ["z0", "z1", "z3"], FROM_LABELS)
    for check in (check_gain_peaks_inside, check_student_gains):
        with pytest.raises(AssertionError):
            check(found)


@pytest.mark.signature
@pytest.mark.parametrize(
    ("wrong", "arm"),
    [({"members.teacher.view": ["serving"]}, "main"), ({}, "shuffled")],
    ids=["teacher without the column", "permuted column"],
)
def test_smoothing_has_no_peak(tmp_path: Path, wrong: Mapping[str, Any], arm: str) -> None:
    found = curve([revealing(tmp_path, seed) for seed in range(2)], ["z0", "z1", "z3"], wrong, arm)
    with pytest.raises(AssertionError):
        check_gain_peaks_inside(found)
