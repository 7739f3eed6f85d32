"""From scores to a report: metrics, comparisons with the controls, recovered gap, verdict, warnings."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recdistill.data.scores import Scored
from recdistill.errors import RunError
from recdistill.evaluation.auc import auc
from recdistill.evaluation.report.measures import Answers, Measure, OfRows
from recdistill.evaluation.report.metrics import Entry, plain_json
from recdistill.evaluation.report.wording import counted
from recdistill.evaluation.significance import (
    Comparison,
    holm_adjusted,
    minimum_detectable_effect,
    verdict,
)

SCHEMA_VERSION = 1
JUDGED = "test"  # the split on which systems are compared
ENOUGH_SEEDS = 5

BySplit = Mapping[str, Answers]  # split -> one entry per seed


@dataclass(frozen=True)
class Results:
    """What a run has measured.

    Attributes:
        student: name of the serving member.
        seeds: the seeds, in the order of all sequences.
        members: scores of every member of the job.
        controls: scores of the serving member in each control.
        references: reference scores of the log, split to scores; they have no seeds.
        warnings: causes and messages found before.
        measure: what systems are compared by.
        second_names: members that are the student itself, seen otherwise; it is not compared with them.
    """

    student: str
    seeds: Sequence[int]
    members: Mapping[str, BySplit]
    controls: Mapping[str, BySplit]
    references: Mapping[str, Mapping[str, Scored]] = field(default_factory=dict)
    warnings: Sequence[Mapping[str, str]] = ()
    measure: Measure = field(default_factory=OfRows)
    second_names: Collection[str] = ()

    @property
    def others(self) -> list[str]:
        """The members beside the student."""
        return [name for name in self.members if name != self.student and name not in self.second_names]


def build(results: Results) -> dict[str, Any]:
    """The measured part of ``report.json``.

    Raises:
        RunError: systems were scored on different rows.
    """
    _check_rows(results)
    members, controls = (
        {name: {split: results.measure.summary(seeds) for split, seeds in by.items()} for name, by in systems.items()}
        for systems in (results.members, results.controls)
    )
    found = _comparisons(results)
    teacher = best_teacher(results)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "student": results.student,
        "teacher": teacher,
        "metric": results.measure.metric,
        "seeds": list(results.seeds),
        "members": members,
        "controls": controls,
        "references": {n: {split: _reference(s) for split, s in by.items()} for n, by in results.references.items()},
        "comparisons": [_entry(a, b, results.measure.metric, found[a, b]) for a, b in found],
        "recovered_gap": _gap(results, teacher),
        "verdict": _verdict(results, found),
        "warnings": [*results.warnings, *_warnings(results, found, members, teacher)],
    }
    cleaned: dict[str, Any] = plain_json(report)
    return cleaned


def best_teacher(results: Results) -> str | None:
    """The member beside the student that is best on validation."""
    quality = {n: np.mean([results.measure.value(a) for a in results.members[n]["valid"]]) for n in results.others}
    return max(quality, key=lambda name: quality[name]) if quality else None


def _reference(scored: Scored) -> dict[str, float]:
    return {"auc": auc(scored.label_N, scored.logit_N), "rows": len(scored.label_N)}


def _check_rows(results: Results) -> None:
    systems = {**results.members, **{f"control {name}": scores for name, scores in results.controls.items()}}
    first = results.members[results.student]
    for name, scores in systems.items():
        for split, seeds in scores.items():
            if len(seeds) != len(results.seeds) or not results.measure.alike(first[split][0], seeds):
                raise RunError(
                    f"{name}: its {split} answers are of other rows or seeds than the student's; run the job again"
                )


def _comparisons(results: Results) -> dict[tuple[str, str], Comparison]:
    """The student against each control, and every other member against the student; adjusted for their number."""
    student, measure = results.members[results.student][JUDGED], results.measure
    found: dict[tuple[str, str], Comparison] = {}
    for name, answers in results.controls.items():
        found[results.student, name] = measure.compare(student, answers[JUDGED])
    for name in results.others:
        found[name, results.student] = measure.compare(results.members[name][JUDGED], student)
    return dict(zip(found, holm_adjusted(list(found.values())), strict=True))


def _entry(a: str, b: str, metric: str, comparison: Comparison) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "split": JUDGED,
        "metric": metric,
        "delta": comparison.delta,
        "ci": comparison.ci,
        "p_value": comparison.p_value,
        "p_adjusted": comparison.p_adjusted,
        "test": comparison.test,
        "seeds": comparison.seeds,
        "delta_per_seed": comparison.delta_S,
        "minimum_detectable_effect": minimum_detectable_effect(comparison),
    }


def _gap(results: Results, teacher: str | None) -> dict[str, Any] | None:
    if teacher is None or "plain" not in results.controls:
        return None
    systems = (results.members[results.student], results.controls["plain"], results.members[teacher])
    gap = results.measure.gap(*(answers[JUDGED] for answers in systems))
    return {"value": gap.value, "ci": gap.ci, "gain": gap.gain, "gap": gap.gap}


def _verdict(results: Results, found: Mapping[tuple[str, str], Comparison]) -> str:
    over = {b: comparison for (a, b), comparison in found.items() if a == results.student}
    return verdict(over) if over else "not compared"


def _warnings(
    results: Results,
    found: Mapping[tuple[str, str], Comparison],
    members: Mapping[str, Mapping[str, Entry]],
    teacher: str | None,
) -> list[dict[str, str]]:
    made = []

    def warn(cause: str, message: str) -> None:
        made.append({"cause": cause, "message": message})

    if len(results.seeds) < ENOUGH_SEEDS:
        warn(
            "few_seeds",
            f"{counted(len(results.seeds), 'seed')} {'says' if len(results.seeds) == 1 else 'say'} little about the "
            f"noise of training; use at least {ENOUGH_SEEDS}",
        )
    if not results.controls:
        warn("no_controls", "without controls nothing tells a teacher's knowledge from mere smoothing")
    for name, entry in members.items():
        answer, serves = results.members[name][JUDGED][0], name == results.student
        for cause, message in results.measure.doubts(name, answer, entry[JUDGED], serves=serves):
            if serves or name == teacher or cause != "teacher_knows_label":
                warn(cause, message)
    if teacher is not None and not found[teacher, results.student].delta > 0:
        warn("weak_teacher", f"{teacher} is no better than {results.student}; it has nothing to teach on these rows")
    return made
