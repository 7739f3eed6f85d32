"""The jobs that a result is compared with, derived from the job itself.

``plain`` drops every member that is no student, with every term that compares anything with a member's output, and
every phase left empty. What is left trains the student from labels at full weight and on all rows: schedules that made
room for a teacher, selectors that asked one, and what corrected a label are dropped as well.
``shuffled`` keeps the whole job but takes the knowledge out of it: privileged columns are permuted jointly over the
rows; where nothing is privileged, what the student receives from other members (targets, and what chooses its rows) is
permuted instead, and the control is called ``shuffled_signal``. Only the difference between the result and this control
is the teacher's knowledge; the difference to ``plain`` may be mere smoothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from recdistill.errors import SpecError
from recdistill.spec.graph import Ranked
from recdistill.spec.job import Job, NoControls, member_names, without_index
from recdistill.spec.members import PRIVILEGED, MemberSpec, Sharing
from recdistill.spec.phases import FeedSpec, PhaseSpec
from recdistill.spec.terms import Argument, Call, Name, ParsedTerm, names_of, parse_signal, parse_term

MAIN = "main"
OF_LABEL = ("corrected", "hedged")  # signals of a label and an answer, in this order; only the answer is knowledge
BY_TARGET = ("experts",)  # signals that look at what they are to become; where that is permuted, so is what they see
PLAIN_WORDS = ("live", "probability")  # signals that are still one output of one member


@dataclass(frozen=True)
class Arm:
    """One of the jobs of a run.

    Attributes:
        name: ``main``, ``plain``, ``shuffled`` or ``shuffled_signal``; ``plain_NAME`` of a further student.
        job: what is trained.
        shuffle_privileged: whether its privileged columns are permuted over the rows.
        of: the only student that it is a control of, if there are several.
    """

    name: str
    job: Job
    shuffle_privileged: bool = False
    of: str | None = None

    @property
    def control(self) -> str:
        """Which control it is, whoever the student."""
        return self.name if self.of is None else self.name.removesuffix(f"_{self.of}")


def arms(job: Job) -> list[Arm]:
    """The job itself and its controls.

    Raises:
        SpecError: a control has no meaning for this job.
    """
    if isinstance(job.controls, NoControls):
        return [Arm(MAIN, job)]
    found = [Arm(MAIN, job)]
    for name in job.controls:
        found += [_shuffled(job)] if name == "shuffled" else [_plain_of(job, student) for student in job.students]
    return found


def _plain_of(job: Job, student: str) -> Arm:
    """The control of one of several students, in which it serves."""
    if job.students == [student]:
        return _plain(job)
    members = dict(job.members)
    for name in job.students:
        serve = (job.members[name].serve or True) if name == student else False  # it may serve with a view of its own
        members[name] = members[name].model_copy(update={"serve": serve, "compare": False})
    made = _plain(job.model_copy(update={"members": members}))
    return replace(made, name="plain" if student == job.student else f"plain_{student}", of=student)


def _plain(job: Job) -> Arm:
    served = served_with(job)
    members = {name: _alone(job, name, served) for name in served}
    phases = [made for phase in job.phases if (made := _plain_phase(job, phase, served)) is not None]
    if not phases:
        raise SpecError(
            "controls",
            [
                f"plain: without the other members no term teaches {job.student!r}; drop `plain` from controls, or "
                "write `controls: {none: <reason>}`"
            ],
        )
    feeds = _read_by(phases, _with_rankings(job, {*served}, lambda _: None))
    if alone := [name for name, feed in feeds.items() if feed.candidates is not None and feed.candidates.alone]:
        raise SpecError(
            "controls",
            [
                f"plain: without the ranking of another member the anchors of feeds.{name} have no candidates besides "
                "their own; ask for `negatives` as well"
                for name in alone
            ],
        )
    changes: dict[str, Any] = {
        "members": members,
        "phases": phases,
        "feeds": feeds,
        "privileged": [],
        "controls": NoControls(none="it is a control itself"),
    }
    return Arm("plain", job.model_copy(update=changes))


def _read_by(phases: list[PhaseSpec], feeds: dict[str, FeedSpec]) -> dict[str, FeedSpec]:
    """The feeds still in use; jobs that differ only in others share a control."""
    read = {move.feed for phase in phases for move in phase.moves}
    read |= {part for name in read if name in feeds for part in feeds[name].mix}
    return {name: feed for name, feed in feeds.items() if name in read}


def _with_rankings(job: Job, served: set[str], change: Callable[[Ranked], Ranked | None]) -> dict[str, FeedSpec]:
    """The feeds, with other candidates where these come from the ranking of a member that does not serve."""
    feeds = {}
    for name, feed in job.feeds.items():
        candidates = feed.candidates
        if candidates is not None and candidates.ranked is not None and candidates.ranked.by not in served:
            candidates = candidates.model_copy(update={"ranked": change(candidates.ranked)})
        feeds[name] = feed.model_copy(update={"candidates": candidates})
    return feeds


def served_with(job: Job) -> list[str]:
    """The students, and the members without which they could not answer: whose outputs they read, or whom they follow.

    In the order of the job.
    """
    found, waiting = {*job.students}, job.students
    while waiting:
        member = job.members[waiting.pop()]
        names = {name for text in member.inputs for name in _members_of(parse_signal(text), job)}
        names |= {without_index(member.of)} if member.of is not None else set()
        waiting += names - found
        found |= names
    return [name for name in job.members if name in found]


def _alone(job: Job, name: str, served: list[str]) -> MemberSpec:
    """The member with its own copy of whatever it shared with dropped members."""
    member = job.members[name]
    share = member.share
    owners = (share.trunk, *share.table_owners, *(owner for owner, _ in share.borrowed.values()))
    gone = [owner for owner in owners if owner and owner not in served]
    changes: dict[str, Any] = {"share": Sharing()} if gone else {}
    if share.trunk in gone:
        changes["trunk"] = job.members[without_index(share.trunk)].trunk
    if name == job.student and len(served) == 1:
        changes |= {"copies": 1, "share": Sharing(), "trunk": changes.get("trunk", member.trunk)}
    return member.model_copy(update=changes)


def _plain_phase(job: Job, phase: PhaseSpec, served: list[str]) -> PhaseSpec | None:
    """What is left of a phase: the terms that compare served members with labels, and nothing with a member."""
    moves = []
    for move in phase.moves:
        parsed = [_on_rows_of(served, _uncorrected(parse_term(text)), job) for text in move.terms]
        kept = [term for term in parsed if _is_supervised(term, job, served)]
        if kept:
            train = [part for part in move.train if without_index(part.partition(".")[0]) in served]
            terms = [str(term) for term in _at_full_weight(kept, job)]
            moves.append(move.model_copy(update={"terms": terms, "train": train}))
    if not moves:
        return None
    carry = {to: of for to, of in phase.carry.items() if {without_index(to), without_index(of)} <= {*served}}
    restart = [name for name in phase.restart if without_index(name) in served]
    return phase.with_moves(moves).model_copy(update={"carry": carry, "restart": restart})


def _uncorrected(term: ParsedTerm) -> ParsedTerm:
    """The term with labels as they are, where answers correct them."""
    factors = []
    for factor in term.factors:
        if isinstance(factor, Call):
            given = (a.args[0] if isinstance(a, Call) and a.function in OF_LABEL and a.args else a for a in factor.args)
            factor = Call(factor.function, tuple(given), factor.kwargs)
        factors.append(factor)
    return ParsedTerm(tuple(factors), term.rows)


def _on_rows_of(served: list[str], term: ParsedTerm, job: Job) -> ParsedTerm:
    """The term on all rows, if it asks members that are gone which ones to take."""
    asked = {without_index(name) for name in _members_of(term.rows, job)} if term.rows is not None else set()
    return term if asked <= {*served} else ParsedTerm(term.factors)


def _is_supervised(term: ParsedTerm, job: Job, served: list[str]) -> bool:
    """Whether a term teaches single outputs of served members, and from labels alone.

    What combines outputs (a gate over branches, their mean, an adapter) leaves with the members that it was made for.
    """
    losses = [factor for factor in term.factors if _teaches(factor, job)]
    if not {without_index(name) for name in member_names(job, ParsedTerm(tuple(losses), term.rows))} <= {*served}:
        return False
    taught_by = [argument for loss in losses for argument in (*loss.args[1:], *loss.kwargs.values())]
    single = all(_is_single(loss.args[0]) for loss in losses)
    return len(losses) == 1 and single and not any(_members_of(argument, job) for argument in taught_by)


def _is_single(learner: Argument) -> bool:
    """Whether a learner is an output of one member."""
    while isinstance(learner, Call) and learner.function in PLAIN_WORDS and learner.args:
        learner = learner.args[0]
    return isinstance(learner, Name)


def _teaches(factor: Argument, job: Job) -> TypeGuard[Call]:
    """Whether a factor is a loss of some member; a weight may look at members, but begins with a number."""
    return isinstance(factor, Call) and bool(factor.args) and bool(_members_of(factor.args[0], job))


def _at_full_weight(terms: list[ParsedTerm], job: Job) -> list[ParsedTerm]:
    """The terms with constant weights, the heaviest 1; penalties, which have no target, keep theirs.

    A label that gave way to a teacher does so no longer once the teacher is gone: a student that trains at a tenth of
    its loss, on optimizers that remember the whole, would be a weak opponent.
    """
    scales = [math.prod(f for f in term.factors if isinstance(f, int | float)) for term in terms]
    losses = [[f for f in term.factors if _teaches(f, job)] for term in terms]
    aims = [len(found[0].args) > 1 for found in losses]
    heaviest = max((abs(scale) for scale, aim in zip(scales, aims, strict=True) if aim), default=1.0) or 1.0
    made = []
    for term, found, scale, aim in zip(terms, losses, scales, aims, strict=True):
        relative = scale / heaviest
        alone = ParsedTerm(tuple(found) if relative == 1 else (*found, relative), term.rows)
        made.append(alone if aim else term)
    return made


def _shuffled(job: Job) -> Arm:
    views = [word for member in job.members.values() for word in member.columns]
    if any(word == PRIVILEGED or word in job.privileged for word in views):
        return Arm("shuffled", job, shuffle_privileged=True)
    served = {*served_with(job)}
    served |= {name for name, member in job.members.items() if without_index(member.same or "") in served}
    phases = []
    changed = 0
    for phase in job.phases:
        moves = []
        for move in phase.moves:
            terms = [(text, str(_with_shuffled_targets(parse_term(text), job, served))) for text in move.terms]
            changed += sum(str(parse_term(old)) != new for old, new in terms)
            moves.append(move.model_copy(update={"terms": [new for _, new in terms]}))
        phases.append(phase.with_moves(moves))
    if not changed:
        raise SpecError(
            "controls",
            [
                f"shuffled: {job.student!r} receives nothing from a member that could be permuted; drop `shuffled` "
                "from controls, or write `controls: {none: <reason>}`"
            ],
        )
    feeds = _with_rankings(job, served, lambda ranked: ranked.model_copy(update={"shuffled": True}))
    return Arm("shuffled_signal", job.model_copy(update={"phases": phases, "feeds": feeds}))


def _with_shuffled_targets(term: ParsedTerm, job: Job, served: set[str]) -> ParsedTerm:
    """The term with all that the student takes from members permuted over the rows: targets, and choices of rows."""
    factors, rows = [], term.rows
    for factor in term.factors:
        if isinstance(factor, Call) and factor.args and _members_of(factor.args[0], job) & served:
            targets = [_shuffled_signal(a) if _members_of(a, job) else a for a in factor.args[1:]]
            learner = factor.args[0]
            if isinstance(learner, Call) and learner.function in BY_TARGET:
                learner = _shuffled_answers(learner, job, served)
            factor = Call(factor.function, (learner, *targets), factor.kwargs)
            rows = None if term.rows is None else _shuffled_answers(term.rows, job, served)
        factors.append(factor)
    return ParsedTerm(tuple(factors), rows)


def _shuffled_signal(signal: Argument) -> Argument:
    """The signal permuted over the rows; what was live stays live, and a label that it corrects stays in its place."""
    if isinstance(signal, Call) and signal.function == "live":
        return Call("live", (_shuffled_signal(signal.args[0]),))
    if isinstance(signal, Call) and signal.function in OF_LABEL:
        label, *answers = signal.args
        return Call(signal.function, (label, *(_shuffled_signal(a) for a in answers)), signal.kwargs)
    return Call("shuffled", (signal,))


def _shuffled_answers(selector: Argument, job: Job, served: set[str]) -> Argument:
    """A selector, or a signal, in which every answer of a member that does not serve is permuted."""
    if isinstance(selector, Call):
        args = tuple(_shuffled_answers(a, job, served) for a in selector.args)
        kwargs = {key: _shuffled_answers(value, job, served) for key, value in selector.kwargs.items()}
        return Call(selector.function, args, kwargs)
    foreign = isinstance(selector, Name) and _members_of(selector, job) - served
    return Call("shuffled", (selector,)) if foreign else selector


def _members_of(argument: Argument, job: Job) -> set[str]:
    return {str(name.path[0]) for name in names_of([argument])} & job.members.keys()
