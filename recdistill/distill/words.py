"""From the words of a term to what they stand for: signals, losses, weights and selectors, all of them checked."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from recdistill.distill.calls import labels_for_logits, misfit, refused
from recdistill.distill.combine import SIGNALS
from recdistill.distill.learned import Wanted
from recdistill.distill.member import Member
from recdistill.distill.ranked import Mark, Scores, is_ranked
from recdistill.distill.schedule import METRICS, SCHEDULES, Metric, Schedule
from recdistill.distill.selector import SELECTORS, Measured, Selector
from recdistill.distill.signal import All, Attention, Column, Embed, Hidden, Logit, Scenario, Signal, Traits, walk
from recdistill.distill.term import Term
from recdistill.edits.towers import EDITS, Edit
from recdistill.errors import RecdistillError
from recdistill.losses.catalog import LOSSES
from recdistill.losses.scope import is_in_batch, scope_of, takes_candidates
from recdistill.nets.catalog import Net
from recdistill.spec import columns as declared
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job, columns_of
from recdistill.spec.members import MemberSpec
from recdistill.spec.names import LABEL, MARKS
from recdistill.spec.strict import nearest
from recdistill.spec.terms import Argument, Call, Name, ParsedTerm, TermSyntaxError, parse_signal, parse_term

TAPS = ("logit", "logits", "scores", "hidden", "embed", "attention", "out")
OVER = ("selected", "batch")


@dataclass
class Compiler:
    """A job on its way to a plan: what is wrong so far, and what its terms need besides the members of the job.

    Attributes:
        job: with every copy of a member as a member of its own.
        spec: the feature spec.
        problems: what is wrong, one sentence each.
        columns: raw columns that the terms need.
        scenario: whether they need the scenario of each row.
        implied: members that stand behind signals, by the words of the signal.
    """

    job: Job
    spec: FeatureSpec
    problems: list[str] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)
    scenario: bool = False
    implied: dict[str, Member] = field(default_factory=dict)

    def source(self, name: str) -> MemberSpec:
        """What the job says of a member, or of the one whose net it has."""
        member = self.job.members[name]
        while member.of is not None and member.of in self.job.members:
            member = self.job.members[member.of]
        return member


def term(c: Compiler, text: str, place: str) -> Term | None:
    """The term that a text stands for, or None if something is wrong with it, which is then noted."""
    try:
        parsed = parse_term(text)
    except TermSyntaxError:
        return None  # reported with the job itself
    before = len(c.problems)
    scale, found = _weights(c, parsed, place)
    losses = [f for f in parsed.factors if isinstance(f, Call) and f.function not in SCHEDULES]
    if len(losses) != 1:
        c.problems += [f"{place}: {problem}" for problem in _not_one_loss(losses, text)]
        return None
    rows = _selector(c, parsed, place)
    term = _loss(c, losses[0], place)
    if term is None or len(c.problems) > before:
        return None
    if rows is not None and term.scope == "batch":
        c.problems.append(f"{place}: {losses[0].function} has one value for a whole batch, so it takes no `.rows`")
    return replace(term, words=" ".join(text.split()), scale=scale, schedules=found, rows=rows)


def _not_one_loss(losses: Sequence[Call], text: str) -> list[str]:
    """What is wrong with a term of no loss or several; words that nobody knows are named first."""
    unknown = [call.function for call in losses if call.function not in LOSSES]
    if unknown:
        return [f"unknown word {word!r} in {text!r}; {nearest(word, [*LOSSES, *SCHEDULES])}" for word in unknown]
    return [f"a term has exactly one loss, found {[x.function for x in losses] or 'none'} in {text!r}"]


def rates(c: Compiler, text: str | None, place: str) -> tuple[Schedule, ...]:
    """The schedules of a learning rate, ``cosine(1, 0, over=0.9)`` for example."""
    try:
        parsed = parse_term(text) if text is not None else ParsedTerm(())
    except TermSyntaxError:
        return ()  # reported with the job itself
    wrong = [str(f) for f in parsed.factors if isinstance(f, Call) and f.function not in SCHEDULES]
    if wrong or parsed.rows is not None:
        c.problems.append(f"{place}: a learning rate is a product of numbers and schedules ({', '.join(SCHEDULES)})")
        return ()
    scale, found = _weights(c, parsed, place)
    return found if scale == 1 else (*found, Schedule(lambda _: scale, str(scale)))


def _weights(c: Compiler, parsed: ParsedTerm, place: str) -> tuple[float, tuple[Schedule, ...]]:
    """The product of a term's numbers, and its schedules."""
    scale, found = 1.0, []
    for factor in parsed.factors:
        if isinstance(factor, float | int):
            scale *= factor
        elif factor.function in SCHEDULES:
            found.append(_made(c, SCHEDULES[factor.function], factor, place))
    return scale, tuple(schedule for schedule in found if schedule is not None)


def signal(c: Compiler, text: str, place: str) -> Signal | None:
    """The signal that a text stands for, or None if something is wrong with it, which is then noted."""
    try:
        return _signal(c, parse_signal(text), place)
    except TermSyntaxError:
        return None  # reported with the job itself


def edit(c: Compiler, text: str, place: str) -> Edit | None:
    """The edit that a text stands for, ``shrink(0, keep=0.5)`` for example, or None if something is wrong with it."""
    try:
        call = parse_signal(text)
    except TermSyntaxError as error:
        c.problems.append(f"{place}: {error}")
        return None
    if not isinstance(call, Call) or call.function not in EDITS:
        word = call.function if isinstance(call, Call) else str(call)
        c.problems.append(f"{place}: {text} is no edit; {nearest(word, EDITS)}")
        return None
    made: Edit | None = _made(c, EDITS[call.function], call, place)
    return made


def _selector(c: Compiler, parsed: ParsedTerm, place: str) -> Selector | None:
    call = parsed.rows
    if call is None:
        return None
    if not isinstance(call, Call) or call.function not in SELECTORS:
        known = nearest(call.function if isinstance(call, Call) else str(call), SELECTORS)
        c.problems.append(f"{place}: rows({call}) is no selector; {known}")
        return None
    made: Selector | None = _made(c, SELECTORS[call.function], call, place)
    return made


def _made(c: Compiler, function: Callable[..., Any], call: Call, place: str) -> Any:
    """What a function makes of its arguments, each of which is compiled to what its parameter asks for."""
    if problem := misfit(function, call):
        c.problems.append(f"{place}: {problem}")
        return None
    signature = inspect.signature(function)
    wanted = get_type_hints(function)
    before = len(c.problems)
    bound = signature.bind(*call.args, **call.kwargs)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, given in bound.arguments.items():
        kind = signature.parameters[name].kind
        compiled = [
            _argument(c, each, kinds_of(wanted[name]), call, place)
            for each in (given if kind is kind.VAR_POSITIONAL else [given])
        ]
        if kind is kind.KEYWORD_ONLY:
            kwargs[name] = compiled[0]
        else:
            args += compiled
    if len(c.problems) > before:
        return None
    try:
        made = function(*args, **kwargs)
    except RecdistillError as error:
        c.problems.append(f"{place}: {call}: {error}")
        return None
    if isinstance(made, Schedule) and c.spec.scenario is None and any(metric.scenario for metric in made.metrics):
        c.problems.append(f"{place}: {call}: the feature spec names no `scenario`; add the raw column")
    return made


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """What a parameter takes: the types of a union, or the only one."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


NAMED = {
    float: "a number",
    int: "a whole number",
    str: "a text",
    Schedule: "a schedule such as ramp(0, 1, over=100)",
    Metric: "a metric such as student.auc",
    Measured: "a loss such as bce(student.logit, label)",
    Signal: "a member's output",
    Column: "a raw binary column",
    Scenario: "`scenario`",
}


def _argument(c: Compiler, given: Argument, wanted: tuple[Any, ...], call: Call, place: str) -> Any:
    """One argument as its parameter asks for it: a number, a text, a schedule, a metric, a loss, a column, a signal."""
    found: Any = None
    before = len(c.problems)
    match given:
        case str() | int() | float() if type(given) in wanted or (float in wanted and not isinstance(given, str)):
            found = given
        case Call(function=name) if Schedule in wanted and name in SCHEDULES:
            found = _made(c, SCHEDULES[name], given, place)
        case Call() if Measured in wanted:
            measured = _loss(c, given, place)
            found = measured and replace(measured, fold=None)  # nobody learns from it
        case Name() if Metric in wanted:
            found = _metric(c, given, place)
        case Name(path=("scenario",)) if Scenario in wanted:
            found = _scenario(c, place)
        case Name() | Call() if Signal in wanted or Column in wanted:
            found = _signal(c, given, place)
            if Signal not in wanted and found is not None and not isinstance(found, Column):
                found = None
    if found is None and len(c.problems) == before:
        expected = " or ".join(NAMED[kind] for kind in wanted if kind in NAMED)
        shown = repr(given) if isinstance(given, str) else given
        c.problems.append(f"{place}: {call}: expected {expected}, found {shown}")
    return found


def _metric(c: Compiler, name: Name, place: str) -> Metric | None:
    match name.path:
        case (str() as member, str() as metric) if member in c.job.members and metric in METRICS:
            return Metric(member, metric)
    known = [f"{member}.{metric}" for member in c.job.members for metric in METRICS]
    c.problems.append(f"{place}: {name} is no validation metric; {nearest(str(name), known)}")
    return None


def _scenario(c: Compiler, place: str) -> Scenario | None:
    if c.spec.scenario is None:
        c.problems.append(f"{place}: the feature spec names no `scenario`; add the raw column that tells them apart")
        return None
    c.scenario = True
    return Scenario()


def _loss(c: Compiler, call: Call, place: str) -> Term | None:
    if call.function not in LOSSES:
        c.problems.append(f"{place}: unknown loss {call.function!r}; {nearest(call.function, [*LOSSES, *SCHEDULES])}")
        return None
    loss = LOSSES[call.function]
    kwargs = dict(call.kwargs)
    over = kwargs.pop("over", "selected")
    if over not in OVER:
        c.problems.append(f"{place}: over is {over!r}; expected one of {', '.join(OVER)}")
    if problem := misfit(loss, Call(call.function, call.args, kwargs)):
        c.problems.append(f"{place}: {problem}")
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
    if problem := refused(loss, len(targets), options):
        c.problems.append(f"{place}: {problem}")
    c.problems += [f"{place}: {problem}" for problem in labels_for_logits(loss, call, targets)]
    scope = scope_of(loss)
    if scope == "list" and any(is_ranked(s) for s in (learner, *targets)):
        scope = "row"  # the candidates of an anchor are its list
        if not takes_candidates(loss):
            hint = nearest(call.function, [name for name, other in LOSSES.items() if takes_candidates(other)])
            c.problems.append(f"{place}: {call.function} compares rows of a log, not the candidates of anchors; {hint}")
            return None
    c.problems += [f"{place}: {problem}" for problem in _wrong_scope(c, call, scope, over, targets)]
    in_batch = is_in_batch(loss)
    return Term(str(call), loss, learner, tuple(targets), options, over=str(over), scope=scope, in_batch=in_batch)


def _wrong_scope(c: Compiler, call: Call, scope: str, over: object, targets: Sequence[Signal]) -> list[str]:
    """What is wrong with what one value of a loss stands for."""
    found = []
    if scope == "list" and c.spec.group is None:
        found.append(f"{call.function} compares the rows of a list; name the spec's `group`")
    if scope != "list" and any(isinstance(part, Traits) and part.over_lists for s in targets for part in walk(s)):
        found.append(
            f"{call}: exchanges values within a list, of which a lone logit knows nothing; use it in a loss over "
            "lists such as soft_list"
        )
    if scope != "row" and over == "batch":
        found.append(f'{call.function} has one value per {scope}; over="batch" is for losses of rows')
    return found


def _signal(c: Compiler, argument: Argument, place: str) -> Signal | None:
    if isinstance(argument, Call):
        if argument.function not in SIGNALS:
            c.problems.append(f"{place}: unknown signal {argument.function!r}; {nearest(argument.function, SIGNALS)}")
            return None
        made = _made(c, SIGNALS[argument.function], argument, place)
        if isinstance(made, Wanted):
            return made.of(_implied(c, made, str(argument)).name)
        combined: Signal | None = made
        return combined
    if not isinstance(argument, Name):
        c.problems.append(f"{place}: expected a member's output or a column, found {argument!r}")
        return None
    first, *rest = argument.path
    if first in c.job.members:
        return _tap(c, str(first), rest, argument, place)
    return _column(c, argument, place)


def _implied(c: Compiler, wanted: Wanted, words: str) -> Member:
    """The member that stands behind a signal; the same words stand for the same one."""
    if words not in c.implied:
        taken = {*c.job.members, *(member.name for member in c.implied.values())}
        name = next(n for n in (f"{wanted.kind}{k}" for k in itertools.count()) if n not in taken)
        c.implied[words] = Member(name, wanted.net, (), inputs=wanted.inputs, outputs=wanted.outputs, implied=words)
    return c.implied[words]


def _column(c: Compiler, name: Name, place: str) -> Signal | None:
    word = str(name)
    if word in MARKS and c.job.graph is not None:
        return Mark(word)
    if word == LABEL:
        return Column(c.job.label[0])
    if isinstance(c.spec.post_event.get(word), declared.Binary):
        c.columns[word] = None
        return Column(word)
    binary = [n for n, column in c.spec.post_event.items() if isinstance(column, declared.Binary)]
    hint = nearest(word, [*c.job.members, *binary, *(MARKS if c.job.graph is not None else ())])
    c.problems.append(f"{place}: {word!r} is neither a member's output nor a binary column; {hint}")
    return None


def _tap(c: Compiler, member: str, rest: list[str | int], name: Name, place: str) -> Signal | None:
    found, known = taps(c, member)
    match rest:
        case ["hidden", int() as layer] if "hidden" in found:
            return Hidden(member, layer)
        case _ if ".".join(map(str, rest)) in found:
            return found[".".join(map(str, rest))]
    c.problems.append(f"{place}: {name} is no output; {nearest(str(name), known)} (outputs: {', '.join(TAPS)})")
    return None


def taps(c: Compiler, member: str) -> tuple[dict[str, Signal], list[str]]:
    """The outputs of a member by what follows its name, and how they are written."""
    described = c.source(member)
    labels = described.labels or c.job.label
    found: dict[str, Signal] = {}
    if described.outputs is None:
        places = tuple(c.job.label.index(label) for label in labels if label in c.job.label)
        found = {"logit": Logit(member), "logits": All(member, places)}
        found |= {f"logit.{label}": Logit(member, k) for k, label in enumerate(labels)}
    else:
        found = {"out": All(member)} | ({"logit": Logit(member)} if described.outputs == 1 else {})
    if described.scores is None:
        found |= {"embed": Embed(member), "hidden": Hidden(member, -1)}
        if Net(next(iter(described.net or {"": None}))).ranks:
            found["scores"] = Scores(member)
        serving, privileged = columns_of(described.columns, c.spec, c.job.privileged)
        columns = {name: c.spec.columns[name] for name in (*serving, *privileged)}
        lengths = {name: column.max_length for name, column in columns.items() if isinstance(column, declared.Sequence)}
        found |= {f"attention.{name}": Attention(member, k, lengths[name]) for k, name in enumerate(lengths)}
    return found, [f"{member}.{word if word != 'hidden' else 'hidden[-1]'}" for word in found]
