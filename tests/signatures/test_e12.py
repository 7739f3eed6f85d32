"""E12, generalised distillation for robust recognition: a teacher on clean rows, a student on the same rows corrupted.

1. In every step the student is taught on a new corruption of its rows, and the target of a row is the teacher's answer
   to that very row, whole.
2. What the clean teacher knows reaches the student: it is better than under a teacher that is trained and asked on
   corrupted rows, at every level of corruption and not at level 0 alone; answers of other rows harm it.
3. Scores see the level of corruption that the job names; the artefact answers to rows as they are.

Departures: the handbook measures on sixteen numbers (P7's rows), of which 40 % are missing and the rest disturbed. Here
rows are what serving mostly knows, ids, whose values count in pairs; half of them are missing, and since noise moves
numbers alone, it has no part (`tests/data/test_distort.py` shows it). In clause 2 students are trained at full
corruption alone, where the gain is asked for; that the levels of the job are drawn by row is shown in clause 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from recdistill.data.scores import served_logits
from recdistill.data.transforms.rows import MISSING
from recdistill.distill.member import Member
from recdistill.losses.catalog import LOSSES
from recdistill.nets.inputs import Outputs
from recdistill.spec.load import read_yaml
from recdistill.training.play import Play
from tests.signatures.lab import JOBS, SPLIT, Lab, splits

ROW = "ensemble/clean_to_noisy"
LEVELS = {"student": 1, "student_at_half": 0.5, "student_on_clean_rows": 0}
LOSSY = {"mask": 0.5, "levels": [1]}
ASKED_ON_NOISE = {"members.teacher.distort": LOSSY}
ONLY_AT_TEST = {"members.student.distort": {**LOSSY, "levels": [0], "scores": 1}}
MISALIGNED = {"phases.1.terms.1": "soft(student.logit, shuffled(teacher.logit)) * 0.7"}


def crossed(folder: Path, seed: int, *, rows: tuple[int, int, int] = (8000, 200, 10000)) -> Lab:
    """Four fields whose values matter in pairs, so that a row with a value missing tells much less."""
    rng = np.random.default_rng(seed)
    sizes = (6, 8, 6, 50)
    v = np.stack([rng.integers(size, size=sum(rows)) for size in sizes], 1)
    pairs = [rng.normal(size=(sizes[k], sizes[2]))[v[:, k], v[:, 2]] for k in (0, 1)]
    z = 1.4 * sum(pairs) + 0.5 * sum(rng.normal(size=size)[v[:, k]] for k, size in enumerate(sizes))
    columns = {f"x{k}": v[:, k] for k in range(len(sizes))} | {
        "y": (rng.random(len(z)) < 1 / (1 + np.exp(-z))).astype(np.int8),
        "part": splits(rows),
    }
    spec = {
        "split": SPLIT,
        "serving": {f"x{k}": "categorical" for k in range(len(sizes))},
        "post_event": {"y": "binary"},
    }
    train = {
        "batch": 256,
        "table_std": 0.1,
        "tables": {"rowwise_adagrad": {"lr": 0.1}},
        "dense": {"adam": {"lr": 0.003}},
        "stop": {"every": 1000, "keep": "last"},
    }
    overrides = {f"members.{name}.distort": {**LOSSY, "scores": level} for name, level in LEVELS.items()}
    for phase, steps in enumerate((200, 300)):
        overrides |= {f"phases.{phase}.epochs": None, f"phases.{phase}.steps": steps}
    return Lab(folder / str(seed), ROW, columns, spec, {"label": "y", "train": train, **overrides})


# 1: who sees what


def small(folder: Path) -> Lab:
    """A few rows, all of them in every step; wide tables, so that rows are told apart."""
    lab = crossed(folder, 0, rows=(256, 50, 100))
    lab.raw["train"] |= {"batch": 256, "table_std": 1.0}
    lab.raw["members"]["teacher"]["dropout"] = 0.0
    for phase in lab.raw["phases"]:
        phase["steps"] = 3
    return lab


def seen(lab: Lab, overrides: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """The ids that each member looks up in the steps of the second phase, (F, B) in the order of the log."""
    found: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    answer = Play._answer

    def listening(played: Play, member: Member) -> Outputs:
        if played.trained == {"student"} and member.name in found:
            view = played.lookups.view_of(member)
            batch = played.lookups.views[view]
            found[member.name].append(batch.serving.ids_FB[:, batch.row_id_B.argsort()])
        return answer(played, member)

    with monkeypatch.context() as patch:
        patch.setattr(Play, "_answer", listening)
        lab.fit(overrides)
    return found


def check_student_sees_new_corruptions_and_teacher_whole_rows(found: Mapping[str, list[Tensor]]) -> None:
    student, teacher = found["student"], found["teacher"]
    assert len(student) == len(teacher) == 3
    for ids_FB in teacher:
        assert not (ids_FB == MISSING).any(), "the teacher is asked on corrupted rows"
        assert (ids_FB == teacher[0]).all()
    lost = [ids_FB == MISSING for ids_FB in student]
    for lost_FB in lost:
        assert 0.4 < float(lost_FB.float().mean()) < 0.6, "the student is trained on whole rows"
    assert (lost[0] != lost[1]).any() and (lost[1] != lost[2]).any(), "the corruption is drawn once"
    for ids_FB, lost_FB in zip(student, lost, strict=True):
        assert (ids_FB[~lost_FB] == teacher[0][~lost_FB]).all(), "student and teacher see different rows"


def check_levels_are_drawn_by_row(found: Mapping[str, Sequence[Tensor]]) -> None:
    """At a third of the level each, (1 + .75^4 + .5^4) / 3 = .46 of the rows lose none of their four values."""
    for ids_FB in found["student"]:
        assert 0.38 < float((ids_FB != MISSING).all(0).float().mean()) < 0.54


def check_target_is_the_teachers_answer_to_the_whole_row(
    lab: Lab, overrides: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[Tensor] = []
    soft = LOSSES["soft"]

    def listening(student_B: Tensor, teacher_B: Tensor) -> Tensor:
        targets.append(teacher_B)
        return soft(student_B, teacher_B)

    whole_B = lab.outputs({**overrides, "members.teacher.distort": None})["teacher"].logits_BK[:, 0]
    with monkeypatch.context() as patch:
        patch.setitem(LOSSES, "soft", listening)
        audits, _ = lab.audit(overrides, phase=1)
    assert (targets[-1] == whole_B).all()
    taught = audits[1]
    assert taught.reaches("student") and not taught.reaches("teacher")
    assert "teacher" not in taught.tables


def test_the_student_sees_new_corruptions_and_the_teacher_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = small(tmp_path)
    check_student_sees_new_corruptions_and_teacher_whole_rows(seen(lab, {}, monkeypatch))
    for wrong in (ASKED_ON_NOISE, ONLY_AT_TEST):
        with pytest.raises(AssertionError):
            check_student_sees_new_corruptions_and_teacher_whole_rows(seen(lab, wrong, monkeypatch))


def test_the_levels_of_the_job_are_drawn_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    levels = read_yaml(JOBS / f"{ROW}.yaml")["members"]["student"]["distort"]["levels"]

    def at(*levels: float) -> dict[str, list[Tensor]]:
        return seen(lab, {"members.student.distort": {**LOSSY, "levels": [*levels], "scores": 1}}, monkeypatch)

    check_levels_are_drawn_by_row(at(*levels))
    for wrong in (1, 0.5):  # the mean level for all rows among them
        with pytest.raises(AssertionError):
            check_levels_are_drawn_by_row(at(wrong))


def test_a_corruption_that_is_drawn_once_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recdistill.training import play

    salted = play.salted
    monkeypatch.setattr(play, "salted", lambda scene, words: salted(play.Scene({}, scene.batch, scene.seed), words))
    with pytest.raises(AssertionError, match="drawn once"):
        check_student_sees_new_corruptions_and_teacher_whole_rows(seen(small(tmp_path), {}, monkeypatch))


def test_the_target_is_the_teachers_answer_to_the_whole_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_target_is_the_teachers_answer_to_the_whole_row(lab, {}, monkeypatch)
    live = {"phases.1.terms.1": "soft(student.logit, live(teacher.logit)) * 0.7"}
    for wrong in (ASKED_ON_NOISE, MISALIGNED, live):
        with pytest.raises(AssertionError):
            check_target_is_the_teachers_answer_to_the_whole_row(lab, wrong, monkeypatch)


# 3: scores of corrupted rows


def check_scores_follow_the_level(lab: Lab) -> None:
    """The student's scores are of corrupted rows; what it serves, and its scores at level 0, are of whole ones."""
    found = lab.fit()
    noisy, half, clean = (found.logits(name) for name in LEVELS)
    served = served_logits(found.folder / "scores", "student.test")[:, 0]
    assert np.array_equal(served, clean)
    changed = [float((logit != clean).mean()) for logit in (half, noisy)]
    assert 0.5 < changed[0] < changed[1], changed
    assert np.array_equal(found.logits("student"), lab.fit().logits("student"))


def test_scores_follow_the_level_of_corruption(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_scores_follow_the_level(lab)
    lab.raw["members"]["student"]["distort"].pop("scores")
    with pytest.raises(AssertionError):
        check_scores_follow_the_level(lab)


# 2: what it is good for


def by_level(
    labs: list[Lab], overrides: Mapping[str, Any] | None = None, arm: str = "main", first: int = 0
) -> dict[str, float]:
    """The student's test AUC at each level, averaged over logs; of a control at the full level."""
    found = [lab.fit(overrides, seed=seed, arm=arm) for seed, lab in enumerate(labs, first)]
    names = LEVELS if arm == "main" else ["student"]
    return {name: float(np.mean([each.auc(name) for each in found])) for name in names}


# Over 20 logs, mean (standard deviation; least, most): against a teacher asked on corrupted rows .0141 (.0071; .0034,
# .0316) at the full level, .026 at half of it and .039 at level 0; against plain .0067 (.0046; -.0008, .0171); rows of
# others against plain -.0136 (.0057; -.0224, -.0024). The handbook asks for .004 over the mean of four logs, and for
# -.02 of the last one, where corruptions were drawn once: drawn anew in every step they leave plain less to forget.


def check_clean_teacher_beats_noisy_one(clean: Mapping[str, float], noisy: Mapping[str, float]) -> None:
    for level in LEVELS:
        assert clean[level] - noisy[level] > 0.004, level


def check_gain_needs_the_right_rows(taught: float, plain: float) -> None:
    assert taught - plain > 0.003


def check_other_rows_harm(misaligned: float, plain: float) -> None:
    assert misaligned < plain - 0.007


def test_a_clean_teacher_beats_a_noisy_one(tmp_path: Path) -> None:
    labs = [crossed(tmp_path, 0)]
    noisy = by_level(labs, ASKED_ON_NOISE)
    check_clean_teacher_beats_noisy_one(by_level(labs), noisy)
    with pytest.raises(AssertionError):
        check_clean_teacher_beats_noisy_one(by_level(labs, ASKED_ON_NOISE, first=100), noisy)


@pytest.mark.signature
def test_a_clean_teacher_beats_a_noisy_one_over_seeds(tmp_path: Path) -> None:
    labs = [crossed(tmp_path, seed) for seed in range(4)]
    clean, noisy = by_level(labs), by_level(labs, ASKED_ON_NOISE)
    plain, misaligned = (by_level(labs, arm=arm)["student"] for arm in ("plain", "shuffled_signal"))
    check_clean_teacher_beats_noisy_one(clean, noisy)
    check_gain_needs_the_right_rows(clean["student"], plain)
    check_other_rows_harm(misaligned, plain)
    for wrong in (by_level(labs, ASKED_ON_NOISE, first=100), by_level(labs, MISALIGNED)):
        with pytest.raises(AssertionError):
            check_clean_teacher_beats_noisy_one(wrong, noisy)
        with pytest.raises(AssertionError):
            check_gain_needs_the_right_rows(wrong["student"], plain)
    with pytest.raises(AssertionError):
        check_other_rows_harm(clean["student"], plain)
