"""From the words of a term to what they stand for: signals, losses, weights and selectors, all of them checked."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

import torch

from recdistill.distill.combine import SIGNALS
from recdistill.distill.schedule import SCHEDULES, Schedule
from recdistill.distill.selector import SELECTORS, Measured, Selector
from recdistill.distill.signal import Attention, Column, Embed, Hidden, Logit, Signal
from recdistill.distill.term import Term
from recdistill.errors import RecdistillError
from recdistill.losses.catalog import LIST, LOSSES
from recdistill.spec.columns import Binary
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job, columns_of
from recdistill.spec.strict import nearest
from recdistill.spec.terms import Argument, Call, Name, ParsedTerm, TermSyntaxError, parse_term

TAPS = ("logit", "hidden", "embed", "attention")
OVER = ("selected", "batch")


@dataclass
class Compiler:
    """A job on its way to a plan: what is wrong so far, and the raw columns that its terms need."""

    job: Job
    spec: FeatureSpec
    problems: list[str] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)


def term(c: Compiler, text: str, place: str) -> Term | None:
    """The term that a text stands for, or None if something is wrong with it, which is then noted."""
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


def _schedule(c: Compiler, call: Call, place: str) -> Schedule | None:
    if not _fits(c, SCHEDULES[call.function], call, place):
        return None
    try:
        return SCHEDULES[call.function](*call.args, **call.kwargs)
    except (RecdistillError, TypeError) as error:
        c.problems.append(f"{place}: {call}: {error}")
        return None


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
    """What a function of signals makes of its arguments, each of which is compiled to what its parameter asks for."""
    if not _fits(c, function, call, place):
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
            _argument(c, each, wanted[name], call, place)
            for each in (given if kind is kind.VAR_POSITIONAL else [given])
        ]
        if kind is kind.KEYWORD_ONLY:
            kwargs[name] = compiled[0]
        else:
            args += compiled
    if len(c.problems) > before:
        return None
    try:
        return function(*args, **kwargs)
    except RecdistillError as error:
        c.problems.append(f"{place}: {call}: {error}")
        return None


def _argument(c: Compiler, given: Argument, wanted: Any, call: Call, place: str) -> Any:
    """One argument as its parameter asks for it: a raw column, a signal, a loss, a number or a text."""
    if wanted in (float, str):
        if isinstance(given, str) != (wanted is str) or isinstance(given, Call | Name):
            c.problems.append(f"{place}: {call}: expected a {'text' if wanted is str else 'number'}, found {given!r}")
        return given
    if wanted is Measured:
        if not isinstance(given, Call):
            c.problems.append(f"{place}: {call}: expected a loss such as bce(student.logit, label), found {given}")
            return None
        return _loss(c, given, place)
    signal = _signal(c, given, place)
    if wanted is Column and signal is not None and not isinstance(signal, Column):
        c.problems.append(f"{place}: {call}: {given} stands where a raw binary column is expected")
    return signal


def _loss(c: Compiler, call: Call, place: str) -> Term | None:
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


def _signal(c: Compiler, argument: Argument, place: str) -> Signal | None:
    if isinstance(argument, Call):
        if argument.function not in SIGNALS:
            c.problems.append(f"{place}: unknown signal {argument.function!r}; {nearest(argument.function, SIGNALS)}")
            return None
        combined: Signal | None = _made(c, SIGNALS[argument.function], argument, place)
        return combined
    if not isinstance(argument, Name):
        c.problems.append(f"{place}: expected a member's output or a column, found {argument!r}")
        return None
    first, *rest = argument.path
    if first in c.job.members:
        return _tap(c, str(first), rest, argument, place)
    return _column(c, argument, place)


def _column(c: Compiler, name: Name, place: str) -> Column | None:
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


def _tap(c: Compiler, member: str, rest: list[str | int], name: Name, place: str) -> Signal | None:
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


def _sequences(c: Compiler, member: str) -> list[str]:
    """The sequences of a member, in the order in which its head pools them."""
    serving, privileged = columns_of(c.job.members[member].view, c.spec, c.job.privileged)
    return [column for column in (*serving, *privileged) if c.spec.columns[column].type == "sequence"]


def _fits(c: Compiler, function: Callable[..., Any], call: Call, place: str) -> bool:
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
