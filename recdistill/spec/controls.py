"""The jobs that a result is compared with, derived from the job itself.

``plain`` drops every member that does not serve, with every term that needs one and every phase left empty. What is
left trains the student at full weight: schedules that made room for a teacher are dropped as well.
``shuffled`` keeps the whole job but takes the knowledge out of it: privileged columns are permuted jointly over the
rows; where nothing is privileged, what the student receives from other members is permuted instead, and the control is
called ``shuffled_signal``. Only the difference between the result and this control is the teacher's knowledge; the
difference to ``plain`` may be mere smoothing.
"""

import math
from dataclasses import dataclass
from typing import Any

from recdistill.errors import SpecError
from recdistill.spec.job import PRIVILEGED, Job, NoControls, Sharing, member_names
from recdistill.spec.terms import Argument, Call, Name, ParsedTerm

MAIN = "main"


@dataclass(frozen=True)
class Arm:
    """One of the jobs of a run.

    Attributes:
        name: ``main``, ``plain``, ``shuffled`` or ``shuffled_signal``.
        job: what is trained.
        shuffle_privileged: whether its privileged columns are permuted over the rows.
    """

    name: str
    job: Job
    shuffle_privileged: bool = False


def arms(job: Job) -> list[Arm]:
    """The job itself and its controls.

    Raises:
        SpecError: a control has no meaning for this job.
    """
    if isinstance(job.controls, NoControls):
        return [Arm(MAIN, job)]
    made = {"plain": _plain, "shuffled": _shuffled}
    return [Arm(MAIN, job), *(made[name](job) for name in job.controls)]


def _plain(job: Job) -> Arm:
    student = job.student
    share = job.members[student].share
    trunk = job.members[share.trunk or student].trunk  # the student keeps the layers that it has shared
    alone = {"share": Sharing(), "trunk": trunk}
    members = {student: job.members[student].model_copy(update=alone)}
    phases = []
    for i, phase in enumerate(job.phases):
        kept = [term for term in job.terms(i) if set(member_names(job, term)) == {student}]
        if kept:
            phases.append(phase.model_copy(update={"terms": [str(term) for term in _at_full_weight(kept, job)]}))
    if not phases:
        raise SpecError(
            "controls",
            [
                f"plain: without the other members no term teaches {student!r}; drop `plain` from controls, or "
                "write `controls: {none: <reason>}`"
            ],
        )
    changes: dict[str, Any] = {
        "members": members,
        "phases": phases,
        "privileged": [],
        "controls": NoControls(none="it is a control itself"),
    }
    return Arm("plain", job.model_copy(update=changes))


def _at_full_weight(terms: list[ParsedTerm], job: Job) -> list[ParsedTerm]:
    """The terms with constant weights, the heaviest 1.

    A label that gave way to a teacher does so no longer once the teacher is gone: a student that trains at a tenth of
    its loss, on optimizers that remember the whole, would be a weak opponent.
    """
    scales = [math.prod(f for f in term.factors if isinstance(f, int | float)) for term in terms]
    heaviest = max(abs(scale) for scale in scales) or 1.0
    made = []
    for term, scale in zip(terms, scales, strict=True):
        losses = tuple(f for f in term.factors if isinstance(f, Call) and _members_of(f, job))
        relative = scale / heaviest
        made.append(ParsedTerm(losses if relative == 1 else (*losses, relative), term.rows))
    return made


def _shuffled(job: Job) -> Arm:
    if any(word == PRIVILEGED or word in job.privileged for member in job.members.values() for word in member.view):
        return Arm("shuffled", job, shuffle_privileged=True)
    phases = []
    changed = 0
    for i, phase in enumerate(job.phases):
        terms = [_with_shuffled_targets(term, job) for term in job.terms(i)]
        changed += sum(str(new) != str(old) for new, old in zip(terms, job.terms(i), strict=True))
        phases.append(phase.model_copy(update={"terms": [str(term) for term in terms]}))
    if not changed:
        raise SpecError(
            "controls",
            [
                f"shuffled: {job.student!r} receives nothing from another member that could be permuted; drop "
                "`shuffled` from controls, or write `controls: {none: <reason>}`"
            ],
        )
    return Arm("shuffled_signal", job.model_copy(update={"phases": phases}))


def _with_shuffled_targets(term: ParsedTerm, job: Job) -> ParsedTerm:
    """The term with every target of the student that comes from another member permuted over the rows."""
    factors = []
    for factor in term.factors:
        if isinstance(factor, Call) and factor.args and _members_of(factor.args[0], job) == {job.student}:
            targets = [_shuffled_signal(a) if _from_others(a, job) else a for a in factor.args[1:]]
            factor = Call(factor.function, (factor.args[0], *targets), factor.kwargs)
        factors.append(factor)
    return ParsedTerm(tuple(factors), term.rows)


def _shuffled_signal(signal: Argument) -> Argument:
    """The signal permuted over the rows; what was live stays live."""
    if isinstance(signal, Call) and signal.function == "live":
        return Call("live", (_shuffled_signal(signal.args[0]),))
    return Call("shuffled", (signal,))


def _from_others(argument: Argument, job: Job) -> bool:
    found = _members_of(argument, job)
    return bool(found - {job.student})


def _members_of(argument: Argument, job: Job) -> set[str]:
    if isinstance(argument, Name):
        return {str(argument.path[0])} & job.members.keys()
    if isinstance(argument, Call):
        return set().union(*(_members_of(a, job) for a in (*argument.args, *argument.kwargs.values())))
    return set()
