"""A job becomes members and phases: every name is resolved and every argument checked before anything is trained."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from recdistill.distill.member import Member, Phase
from recdistill.distill.schedule import SCHEDULES, Schedule
from recdistill.distill.signal import SIGNALS, Attention, Column, Embed, Hidden, Logit, Signal
from recdistill.distill.term import SELECTORS, Selector, Term
from recdistill.errors import RecdistillError, SpecError
from recdistill.losses.catalog import LIST, LOSSES
from recdistill.nets.catalog import NETS, Net, wrong_options
from recdistill.nets.sequences import POOLS
from recdistill.spec.columns import Binary
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job, MemberSpec, columns_of
from recdistill.spec.strict import nearest
from recdistill.spec.terms import Argument, Call, Name, ParsedTerm, TermSyntaxError, parse_term

TAPS = ("logit", "hidden", "embed", "attention")
OVER = ("selected", "batch")


@dataclass(frozen=True)
class Plan:
    """What a job trains: members in the order of the job, and phases.

    Attributes:
        members: who is trained.
        phases: in what order.
        columns: raw binary columns that the terms need; the labels come first.
        labels: how many of them are predicted.
    """

    members: tuple[Member, ...]
    phases: tuple[Phase, ...]
    columns: tuple[str, ...]
    labels: int

    @property
    def student(self) -> Member:
        """The member that serves."""
        return next(member for member in self.members if member.serve)


@dataclass
class _Compiler:
    job: Job
    spec: FeatureSpec
    problems: list[str] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)


def compile_job(job: Job, spec: FeatureSpec) -> Plan:
    """The members and phases of a job.

    Raises:
        SpecError: lists every problem.
    """
    plan, problems = examine(job, spec)
    if plan is None or problems:
        raise SpecError("job", problems)
    return plan


def problems_of(job: Job, spec: FeatureSpec) -> list[str]:
    """What is wrong with a job's nets and terms, one sentence each."""
    return examine(job, spec)[1]


def examine(job: Job, spec: FeatureSpec) -> tuple[Plan | None, list[str]]:
    """The plan, if there is one, and all problems."""
    c = _Compiler(job, spec, columns=dict.fromkeys(job.label))
    members = [_member(c, name, member) for name, member in job.members.items()]
    phases = [_phase(c, i) for i in range(len(job.phases))]
    if not c.problems:
        _check_training(c, [p for p in phases if p], [m for m in members if m])
    if c.problems:
        return None, c.problems
    return Plan(tuple(m for m in members if m), tuple(p for p in phases if p), tuple(c.columns), len(job.label)), []


def net_of(described: Mapping[str, Any]) -> Net:
    """``{name: options}`` as a net; a plain list means the layers of an mlp."""
    ((name, options),) = described.items()
    if isinstance(options, list):
        options = {"layers" if name == "mlp" else "mlp": options}
    return Net(name, dict(options or {}))


def _member(c: _Compiler, name: str, member: MemberSpec) -> Member | None:
    place = f"members.{name}.net"
    ((net_name, options),) = member.net.items()
    if net_name not in NETS:
        c.problems.append(f"{place}: unknown net {net_name!r}; {nearest(net_name, NETS)}")
        return None
    if not isinstance(options, dict | list | None):
        c.problems.append(f"{place}.{net_name}: expected options as a mapping or a list, found {options!r}")
        return None
    net = net_of(member.net)
    c.problems += [f"{place}: {problem}" for problem in net.problems()]
    serving, privileged = columns_of(member.view, c.spec, c.job.privileged)
    if not serving and not privileged:
        c.problems.append(f"members.{name}.view: names no column")
    c.problems += _wrong_widths(c, name, member, [*serving, *privileged])
    c.problems += _wrong_pools(c, name, member, [*serving, *privileged])
    if member.serve and privileged:
        return None  # reported with the job's views
    return Member(
        name,
        net,
        tuple(serving),
        tuple(privileged),
        serve=member.serve,
        dim=member.dim,
        dims=member.dims,
        pool=member.pool,
        dropout=member.dropout,
        trunk=tuple(member.trunk),
        share=member.share,
        dense=member.dense,
        warm_start=member.warm_start,
    )


def _wrong_widths(c: _Compiler, name: str, member: MemberSpec, columns: list[str]) -> list[str]:
    found = []
    for column in member.dims:
        place = f"members.{name}.dims.{column}"
        if column not in columns:
            found.append(f"{place}: the member reads no such column; {nearest(column, columns)}")
        elif not c.spec.columns[column].embedded:
            found.append(f"{place}: {column!r} is a plain number, which has no embedding; remove it")
        elif c.spec.table(column) != column:
            found.append(f"{place}: {column!r} is looked up in the table of {c.spec.table(column)!r}; name that one")
        elif member.share.tables is not None and column not in member.share.own:
            found.append(f"{place}: the table belongs to {member.share.tables!r}; set its width there")
    return found


def _wrong_pools(c: _Compiler, name: str, member: MemberSpec, columns: list[str]) -> list[str]:
    found = []
    sequences = [column for column in columns if c.spec.columns[column].type == "sequence"]
    for column, ((pool, options),) in ((column, described.items()) for column, described in member.pool.items()):
        place = f"members.{name}.pool.{column}"
        if column not in sequences:
            found.append(f"{place}: the member reads no such sequence; {nearest(column, sequences)}")
        elif pool not in POOLS:
            found.append(f"{place}: unknown pooling {pool!r}; {nearest(pool, POOLS)}")
        else:
            found += [f"{place}: {problem}" for problem in wrong_options(pool, POOLS[pool], options or {})]
    return found


def _phase(c: _Compiler, index: int) -> Phase | None:
    phase = c.job.phases[index]
    terms = [_term(c, text, f"phases.{index}.terms.{j}") for j, text in enumerate(phase.terms)]
    if None in terms:
        return None
    return Phase(tuple(t for t in terms if t), phase.stop or c.job.train.stop, phase.epochs, phase.steps)


def _term(c: _Compiler, text: str, place: str) -> Term | None:
    try:
        parsed = parse_term(text)
    except TermSyntaxError:
        return None  # reported with the job itself
    before = len(c.problems)
    scale, schedules, losses = 1.0, [], []
    for factor in parsed.factors:
        if isinstance(factor, float | int):
            scale *= factor
        elif factor.function in SCHEDULES:
            schedules.append(_schedule(c, factor, place))
        else:
            losses.append(factor)
    if len(losses) != 1:
        c.problems.append(
            f"{place}: a term has exactly one loss, found {[x.function for x in losses] or 'none'} in {text!r}"
        )
        return None
    rows = _selector(c, parsed, place)
    term = _loss(c, losses[0], place)
    if term is None or len(c.problems) > before:
        return None
    words = " ".join(text.split())
    found = tuple(s for s in schedules if s is not None)
    return replace(term, words=words, scale=scale, schedules=found, rows=rows)


def _schedule(c: _Compiler, call: Call, place: str) -> Schedule | None:
    if not _fits(c, SCHEDULES[call.function], call, place):
        return None
    try:
        return SCHEDULES[call.function](*call.args, **call.kwargs)
    except (RecdistillError, TypeError) as error:
        c.problems.append(f"{place}: {call}: {error}")
        return None


def _selector(c: _Compiler, parsed: ParsedTerm, place: str) -> Selector | None:
    call = parsed.rows
    if call is None:
        return None
    if not isinstance(call, Call) or call.function not in SELECTORS:
        known = nearest(call.function if isinstance(call, Call) else str(call), SELECTORS)
        c.problems.append(f"{place}: rows({call}) is no selector; {known}")
        return None
    if not _fits(c, SELECTORS[call.function], call, place):
        return None
    column = _signal(c, call.args[0], place) if call.args else None
    if not isinstance(column, Column):
        c.problems.append(f"{place}: rows({call}): the first argument is a raw binary column")
        return None
    return SELECTORS[call.function](column, *call.args[1:], **call.kwargs)


def _loss(c: _Compiler, call: Call, place: str) -> Term | None:
    if call.function not in LOSSES:
        c.problems.append(f"{place}: unknown loss {call.function!r}; {nearest(call.function, [*LOSSES, *SCHEDULES])}")
        return None
    loss = LOSSES[call.function]
    kwargs = dict(call.kwargs)
    over = kwargs.pop("over", "selected")
    if over not in OVER:
        c.problems.append(f"{place}: over is {over!r}; expected one of {', '.join(OVER)}")
    if not _fits(c, loss, Call(call.function, call.args, kwargs), place):
        return None
    signals = [_signal(c, argument, place) for argument in call.args]
    if None in signals:
        return None
    learner, *targets = [s for s in signals if s is not None]
    if not learner.members:
        c.problems.append(f"{place}: the first argument learns, but {call.args[0]} is a column; name a member's output")
    options = {k: v for k, v in kwargs.items() if isinstance(v, float | int | str)}
    if len(options) < len(kwargs):
        c.problems.append(f"{place}: options of {call.function} are numbers or texts, found {call}")
        return None
    if problem := _tried(loss, len(targets), options):
        c.problems.append(f"{place}: {problem}")
    per_list = LIST in inspect.signature(loss).parameters
    if per_list and c.spec.group is None:
        c.problems.append(f"{place}: {call.function} compares the rows of a list; name the spec's `group`")
    if per_list and over == "batch":
        c.problems.append(f'{place}: {call.function} has one value per list; over="batch" is for losses of rows')
    return Term(str(call), loss, learner, tuple(targets), options, over=str(over), per_list=per_list)


def _tried(loss: Callable[..., torch.Tensor], targets: int, options: Mapping[str, Any]) -> str | None:
    """Why the loss refuses its options, found by calling it on two rows."""
    try:
        lists = {LIST: torch.zeros(2, dtype=torch.int64)} if LIST in inspect.signature(loss).parameters else {}
        loss(*(torch.zeros(2) for _ in range(1 + targets)), **lists, **options)
    except (RecdistillError, TypeError, ValueError) as error:
        return str(error)
    return None


def _signal(c: _Compiler, argument: Argument, place: str) -> Signal | None:
    if isinstance(argument, Call):
        if argument.function not in SIGNALS:
            c.problems.append(f"{place}: unknown signal {argument.function!r}; {nearest(argument.function, SIGNALS)}")
            return None
        if len(argument.args) != 1 or argument.kwargs:
            c.problems.append(f"{place}: {argument.function} takes one signal, found {argument}")
            return None
        inner = _signal(c, argument.args[0], place)
        return None if inner is None else SIGNALS[argument.function](inner)
    if not isinstance(argument, Name):
        c.problems.append(f"{place}: expected a member's output or a column, found {argument!r}")
        return None
    first, *rest = argument.path
    if first in c.job.members:
        return _tap(c, str(first), rest, argument, place)
    return _column(c, argument, place)


def _column(c: _Compiler, name: Name, place: str) -> Column | None:
    word = str(name)
    if word == "label":
        return Column(c.job.label[0])
    if isinstance(c.spec.post_event.get(word), Binary):
        c.columns[word] = None
        return Column(word)
    binary = [n for n, column in c.spec.post_event.items() if isinstance(column, Binary)]
    hint = nearest(word, [*c.job.members, *binary])
    c.problems.append(f"{place}: {word!r} is neither a member's output nor a binary column; {hint}")
    return None


def _tap(c: _Compiler, member: str, rest: list[str | int], name: Name, place: str) -> Signal | None:
    match rest:
        case ["logit"]:
            return Logit(member)
        case ["logit", str() as label] if label in c.job.label:
            return Logit(member, c.job.label.index(label))
        case ["hidden", int() as layer]:
            return Hidden(member, layer)
        case ["embed"]:
            return Embed(member)
        case ["attention", str() as column] if column in (sequences := _sequences(c, member)):
            return Attention(member, sequences.index(column))
    taps = [
        f"{member}.logit",
        *(f"{member}.logit.{label}" for label in c.job.label),
        f"{member}.hidden[-1]",
        f"{member}.embed",
        *(f"{member}.attention.{column}" for column in _sequences(c, member)),
    ]
    c.problems.append(f"{place}: {name} is no output; {nearest(str(name), taps)} (outputs: {', '.join(TAPS)})")
    return None


def _sequences(c: _Compiler, member: str) -> list[str]:
    """The sequences of a member, in the order in which its head pools them."""
    serving, privileged = columns_of(c.job.members[member].view, c.spec, c.job.privileged)
    return [column for column in (*serving, *privileged) if c.spec.columns[column].type == "sequence"]


def _fits(c: _Compiler, function: Callable[..., Any], call: Call, place: str) -> bool:
    """Whether a call fits a signature, apart from what the engine fills in; if not, the problem is noted."""
    given = [p for p in inspect.signature(function).parameters.values() if p.name != LIST]
    signature = inspect.Signature(given)
    try:
        signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        shown = ", ".join(
            str(p).split(":")[0].strip() for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY
        )
        options = ", ".join(n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY)
        c.problems.append(
            f"{place}: {call}: {error}; {call.function} takes ({shown})" + (f" and {options}" if options else "")
        )
        return False
    return True


def _check_training(c: _Compiler, phases: list[Phase], members: list[Member]) -> None:
    """Each member is trained by some phase, and no phase moves what a frozen member of it uses."""
    never = [m.name for m in members if not any(m.name in p.trained for p in phases)]
    c.problems += [f"members.{name}: no term teaches it; add one, or remove the member" for name in never]
    by_name = {m.name: m for m in members}
    for i, phase in enumerate(phases):
        for frozen in sorted(phase.members - phase.trained):
            for trained in sorted(phase.trained):
                for what in ("tables", "trunk"):
                    if _owner(by_name[frozen], what) == _owner(by_name[trained], what):
                        c.problems.append(
                            f"phases.{i}: trains {trained!r}, whose {what} the frozen {frozen!r} uses as well, so it "
                            f"would change; give {frozen!r} {what} of its own, or add a term that teaches it"
                        )


def _owner(member: Member, what: str) -> str:
    source = member.share.tables if what == "tables" else member.share.trunk
    return source or member.name
