"""What a run warns of before its numbers are believed: columns, budgets, shared folders."""

from collections.abc import Mapping, Sequence
from typing import Any

from recdistill.data.encoded import EncodedLog
from recdistill.distill.compile import Plan
from recdistill.evaluation.leaks import too_good
from recdistill.evaluation.report.wording import counted
from recdistill.spec.job import Job

ENOUGH_STEPS = 100  # with fewer, a net is hardly more than what was drawn
STALE = 0.25  # the share of visits without news from which on somebody is not just a little slower


def column_warnings(log: EncodedLog, job: Job, label: str) -> list[dict[str, str]]:
    """Warnings about single columns that nearly are the label, on the validation rows."""
    label_N = log.labels("valid").select(label).collect().to_series().to_numpy()
    made = []
    for view, names in (("serving", list(log.spec.serving)), ("post_event", job.privileged)):
        numbers = [name for name in names if log.fitted.columns[name].kind == "float"]
        frame = log.view("valid", view).select(numbers).collect()
        for name, area in too_good(label_N, {n: frame[n].to_numpy() for n in numbers}).items():
            cause = "serving_leak" if view == "serving" else "label_in_disguise"
            what = (
                "is it really known when a request is answered?"
                if view == "serving"
                else "a teacher that sees it learns the label itself, and its scores are hard labels"
            )
            made.append({"cause": cause, "message": f"{name} alone ranks {label} with AUC {area:.3f}; {what}"})
    return made


def budget_warnings(fits: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Warnings about trainings that were still improving when their steps ran out."""
    made = []
    for name, found in fits.items():
        cut = sum(summary["kept"][-1] == summary["planned"][-1] for summary in found)
        if cut > len(found) / 2:
            what = f"{name}: in {cut} of {len(found)} trainings the last evaluation was the best; allow more epochs"
            made.append(
                {"cause": "still_improving", "message": f"{what}, or the comparison is of unfinished trainings"}
            )
    return made


def steps_taken(plan: Plan, steps: Sequence[int]) -> int | None:
    """The steps that led to the student's parameters; None if it began with those of another member or run.

    Args:
        plan: members and phases.
        steps: of each phase, up to the parameters that it has kept.
    """
    student = plan.student
    name = student.follows or student.same or student.name
    begun = {to for phase in plan.phases for to, _ in phase.carry}
    moved = [(phase, taken) for phase, taken in zip(plan.phases, steps, strict=True) if name in phase.trained]
    if not moved or name in begun or any(m.warm_start is not None for m in plan.members if m.name == name):
        return None
    return sum(taken // min(u.every for u in phase.updates if name in u.trained) for phase, taken in moved)


def training_warnings(plan: Plan, steps: Sequence[int]) -> list[dict[str, str]]:
    """A warning about a student that has hardly been trained."""
    taken = steps_taken(plan, steps)
    if taken is None or taken >= ENOUGH_STEPS:
        return []
    what = f"{plan.student.name} has taken {counted(taken, 'step')} to its parameters, which says little about a method"
    return [{"cause": "hardly_trained", "message": f"{what}; take a smaller train.batch or more epochs"}]


def exchange_warnings(fits: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Warnings about shared folders with missing peers, or with parameters that could not be used."""
    made = []
    for arm, summaries in fits.items():
        for name in dict.fromkeys(name for summary in summaries for name in summary.get("exchange", {})):
            found = [met[name] for summary in summaries if name in (met := summary.get("exchange", {}))]
            visits, alone, stale, unusable = (
                sum(each.get(key, 0) for each in found) for key in ("visits", "alone", "stale", "unusable")
            )
            if alone or not visits:
                what = f"{arm}: on {alone} of {visits} visits {name} found nobody else in the shared folder"
                made.append({"cause": "missing_peers", "message": f"{what}; start all processes at the same time"})
            if stale > STALE * visits:
                what = f"{arm}: on {stale} of {visits} visits {name} found nothing new of somebody"
                made.append({"cause": "stale_peers", "message": f"{what}; look for processes that are slow or stopped"})
            if unusable:
                what = f"{arm}: {unusable} checkpoints that others have left for {name} could not be used"
                made.append({"cause": "unusable_peers", "message": f"{what}; look for processes that were stopped"})
    return made
