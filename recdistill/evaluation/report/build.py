"""From scores to a report: metrics, comparisons with the controls, recovered gap, verdict, warnings."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recdistill.data.scores import Scored, same_rows
from recdistill.errors import RunError
from recdistill.evaluation.auc import auc
from recdistill.evaluation.report.metrics import Entry, plain_json, summary
from recdistill.evaluation.significance import (
    Comparison,
    compare,
    holm_adjusted,
    minimum_detectable_effect,
    recovered_gap,
    verdict,
)

SCHEMA_VERSION = 1
JUDGED = "test"  # the split on which systems are compared
ENOUGH_SEEDS = 5

BySplit = Mapping[str, Sequence[Scored]]  # split -> one entry per seed


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
        second_names: members that are the student itself, seen otherwise; it is not compared with them.
    """

    student: str
    seeds: Sequence[int]
    members: Mapping[str, BySplit]
    controls: Mapping[str, BySplit]
    references: Mapping[str, Mapping[str, Scored]] = field(default_factory=dict)
    warnings: Sequence[Mapping[str, str]] = ()
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
    members = {name: _by_split(scores) for name, scores in results.members.items()}
    controls = {name: _by_split(scores) for name, scores in results.controls.items()}
    found = _comparisons(results)
    teacher = best_teacher(results)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "student": results.student,
        "teacher": teacher,
        "seeds": list(results.seeds),
        "members": members,
        "controls": controls,
        "references": {n: {split: _reference(s) for split, s in by.items()} for n, by in results.references.items()},
        "comparisons": [_entry(a, b, comparison) for (a, b), comparison in found.items()],
        "recovered_gap": _gap(results, teacher),
        "verdict": _verdict(results, found),
        "warnings": [*results.warnings, *_warnings(results, found, members, teacher)],
    }
    cleaned: dict[str, Any] = plain_json(report)
    return cleaned


def best_teacher(results: Results) -> str | None:
    """The member beside the student with the highest validation AUC."""
    by_auc = {n: np.mean([auc(s.label_N, s.logit_N) for s in results.members[n]["valid"]]) for n in results.others}
    return max(by_auc, key=lambda name: by_auc[name]) if by_auc else None


def _by_split(scores: BySplit) -> dict[str, Entry]:
    return {split: summary(seeds) for split, seeds in scores.items()}


def _reference(scored: Scored) -> dict[str, float]:
    return {"auc": auc(scored.label_N, scored.logit_N), "rows": len(scored.label_N)}


def _check_rows(results: Results) -> None:
    systems = {**results.members, **{f"control {name}": scores for name, scores in results.controls.items()}}
    first = results.members[results.student]
    for name, scores in systems.items():
        for split, seeds in scores.items():
            if len(seeds) != len(results.seeds) or not same_rows(first[split][0], seeds):
                raise RunError(
                    f"{name}: its {split} scores are of other rows or seeds than the student's; run the job again"
                )


def _comparisons(results: Results) -> dict[tuple[str, str], Comparison]:
    """The student against each control, and every other member against the student; adjusted for their number."""
    student = [s.logit_N for s in results.members[results.student][JUDGED]]
    label_N = results.members[results.student][JUDGED][0].label_N
    found: dict[tuple[str, str], Comparison] = {}
    for name, scores in results.controls.items():
        found[results.student, name] = compare(label_N, student, [s.logit_N for s in scores[JUDGED]])
    for name in results.others:
        theirs = [s.logit_N for s in results.members[name][JUDGED]]
        found[name, results.student] = compare(label_N, theirs, student)
    return dict(zip(found, holm_adjusted(list(found.values())), strict=True))


def _entry(a: str, b: str, comparison: Comparison) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "split": JUDGED,
        "metric": "auc",
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
    logits = [[s.logit_N for s in scores[JUDGED]] for scores in systems]
    gap = recovered_gap(results.members[results.student][JUDGED][0].label_N, *logits)
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
            f"{len(results.seeds)} seeds say little about the noise of training; use at least {ENOUGH_SEEDS}",
        )
    if not results.controls:
        warn("no_controls", "without controls nothing tells a teacher's knowledge from mere smoothing")
    for name, entry in members.items():
        if np.ptp(results.members[name][JUDGED][0].logit_N) == 0:
            warn(
                "constant_scores",
                f"{name} gives every row the same score; lower its learning rates or look at its inputs",
            )
        mean = entry[JUDGED]["pcoc"]["mean"]
        if name == results.student and not 0.8 <= mean <= 1.25:
            warn(
                "calibration",
                f"{name} predicts {mean:.2f} times the observed rate; recalibrate before using probabilities",
            )
    if teacher is not None and not found[teacher, results.student].delta > 0:
        warn("weak_teacher", f"{teacher} is no better than {results.student}; it has nothing to teach on these rows")
    if teacher is not None and members[teacher][JUDGED]["auc"]["mean"] >= 0.99:
        warn(
            "teacher_knows_label",
            f"{teacher} ranks almost perfectly; its privileged columns may be the label in disguise",
        )
    return made
