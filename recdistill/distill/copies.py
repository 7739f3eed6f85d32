"""Copies of a member become members of their own: ``teacher: {copies: 3}`` is teacher_0, teacher_1 and teacher_2.

In terms, ``teacher[1].logit`` is one of them. ``teacher[:].logit`` stands for all: a signal that takes any number of
signals (``mean``, ``vote``, ``gate``) gets every one of them, and a term whose loss names it becomes one term for each
copy, in which ``others(teacher[:].logit)`` are those of all copies but that one. ``each('a b c')`` makes three terms of
one as well, each with its own text. The first copy serves, if the member serves. A copy that shares with its own kind
shares with the first one.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from recdistill.distill.combine import SIGNALS
from recdistill.errors import SpecError
from recdistill.spec.job import Job, without_index
from recdistill.spec.members import MemberSpec, Sharing
from recdistill.spec.terms import ALL, Argument, Call, Name, ParsedTerm, TermSyntaxError, parse_signal, parse_term

Copies = Mapping[str, int]
WORD = re.compile(r"(?P<name>[^\[]+)(\[(?P<number>-?\d+|:)\])?\Z")  # teacher, teacher[1], teacher[:]
EACH, OTHERS = "each", "others"


def expanded(job: Job, problems: list[str]) -> Job:
    """The job with every copy as a member of its own; what is wrong with their names is added to the problems.

    Raises:
        SpecError: two members would have one name.
    """
    copies = {name: member.copies for name, member in job.members.items()}
    problems += _wrong_numbers(job, copies)
    members: dict[str, MemberSpec] = {}
    for name, member in job.members.items():
        for k in range(member.copies):
            own = _copy_name(name, k, copies)
            if own in members or (own != name and own in job.members):
                raise SpecError("job", [f"members.{own}: is also the name of a copy of {name!r}; rename one of them"])
            members[own] = _copy(name, member, k, copies, problems)
    phases = []
    for i, phase in enumerate(job.phases):
        moves = []
        for j, move in enumerate(phase.moves):
            place = f"phases.{i}.updates.{j}" if phase.updates else f"phases.{i}"
            terms = [
                t for k, text in enumerate(move.terms) for t in _terms(text, f"{place}.terms.{k}", copies, problems)
            ]
            train = [part for word in move.train for part in _parts(word, copies)]
            moves.append(move.model_copy(update={"terms": terms, "train": train}))
        restart = [name for word in phase.restart for name in _parts(word, copies)]
        carry = {_one(to, copies): _one(of, copies) for to, of in phase.carry.items()}
        phases.append(phase.with_moves(moves).model_copy(update={"restart": restart, "carry": carry}))
    return job.model_copy(update={"members": members, "phases": phases})


def _wrong_numbers(job: Job, copies: Copies) -> list[str]:
    """References outside of terms and signals to a missing copy, or to all copies where one is required."""
    one: list[tuple[str, str | None]] = []
    some: list[tuple[str, str]] = []
    for name, member in job.members.items():
        place, share = f"members.{name}", member.share
        tables = {"": share.tables} if not isinstance(share.tables, dict) else share.tables
        one += [(f"{place}.share.tables", word) for word in tables.values()]
        one += [(f"{place}.share.modules.{path}", owner) for path, (owner, _) in share.borrowed.items()]
        one += [(f"{place}.share.trunk", share.trunk), (place, member.of)]
    for i, phase in enumerate(job.phases):
        some += [(f"phases.{i}.restart", word) for word in phase.restart]
        some += [(f"phases.{i}.train", word.partition(".")[0]) for move in phase.moves for word in move.train]
        one += [(f"phases.{i}.carry", word) for word in (*phase.carry, *phase.carry.values())]
    given = [(place, word, False) for place, word in one if word is not None]
    return [
        f"{place}: {word!r} names no copy; {name!r} has {copies[name]}, numbered from 0"
        for place, word, several in (*given, *((place, word, True) for place, word in some))
        if (name := without_index(word)) in copies and not _is_copy(word, copies, several=several)
    ]


def _is_copy(word: str, copies: Copies, *, several: bool) -> bool:
    """Whether a word such as ``teacher[1]``, or ``teacher`` alone, names a copy, or maybe several."""
    found = WORD.match(word)
    if found is None or found["number"] == ALL:
        return found is not None and several
    return found["number"] is None or -copies[found["name"]] <= int(found["number"]) < copies[found["name"]]


def _copy_name(name: str, k: int, copies: Copies) -> str:
    return f"{name}_{k}" if copies.get(name, 1) > 1 else name


def _copy(name: str, member: MemberSpec, k: int, copies: Copies, problems: list[str]) -> MemberSpec:
    """One copy: what it names of other members is resolved."""
    share = member.share
    mine = _copy_name(name, k, copies)

    def other(word: str) -> str | None:
        first = _copy_name(name, 0, copies) if word == name else _one(word, copies)
        return None if first == mine else first

    tables = other(share.tables) if isinstance(share.tables, str) else share.tables
    if isinstance(tables, dict):
        tables = {column: owner for column, word in tables.items() if (owner := other(word)) is not None} or None
    borrowed = {path: (other(word), theirs) for path, (word, theirs) in share.borrowed.items()}
    modules = {path: f"{owner}.{theirs}" for path, (owner, theirs) in borrowed.items() if owner is not None}
    places = {f"members.{name}.inputs.{i}": text for i, text in enumerate(member.inputs)}
    changes: dict[str, Any] = {
        "copies": 1,
        "folds": False,
        "fold": (k, member.copies) if member.folds else member.fold,
        "serve": member.serve if k == 0 else False,
        "share": Sharing(tables=tables, own=share.own, trunk=other(share.trunk or mine), modules=modules),
        "inputs": [made for where, text in places.items() for made in _inputs(text, where, copies, problems)],
    }
    for key in ("ema", "best", "snapshot", "previous", "remote", "edit"):
        if (origin := getattr(member, key)) is not None:
            changes[key] = origin.model_copy(update={"of": _twin(origin.of, name, k, copies)})
    if member.same is not None:
        changes["same"] = _twin(member.same, name, k, copies)
    return member.model_copy(update=changes)


def _twin(word: str, name: str, k: int, copies: Copies) -> str:
    """The member the k-th copy follows: the other's k-th copy, if both have equally many and none is named."""
    same_number = "[" not in word and copies.get(word, 1) == copies[name] > 1
    return _copy_name(word, k, copies) if same_number else _one(word, copies)


def _one(word: str, copies: Copies) -> str:
    """The member that a word such as ``teacher[1]`` names; without a number the first copy."""
    found = WORD.match(word)
    if found is None or found["name"] not in copies or found["number"] == ALL:
        return word  # reported
    return _copy_name(found["name"], int(found["number"] or 0) % copies[found["name"]], copies)


def _parts(word: str, copies: Copies) -> list[str]:
    """The members, or parts of them, that a word in a list names; without a number all copies."""
    head, dot, path = word.partition(".")
    name = without_index(head)
    names = [_one(head, copies)] if head != name and not head.endswith("[:]") else []
    return [f"{n}{dot}{path}" for n in names or [_copy_name(name, k, copies) for k in range(copies.get(name, 1))]]


def _inputs(text: str, place: str, copies: Copies, problems: list[str]) -> list[str]:
    """The signals that an input names: one for each copy, if it names all of them."""
    try:
        signal = parse_signal(text)
    except TermSyntaxError:
        return [text]  # reported with the job itself
    count = _width([signal], copies)
    return [str(_resolved(signal, k, copies, place, problems)) for k in range(count)]


def _terms(text: str, place: str, copies: Copies, problems: list[str]) -> list[str]:
    """The terms that a text stands for: one for each copy, if its loss names all of them, or for each text."""
    try:
        parsed = parse_term(text)
    except TermSyntaxError:
        return [text]  # reported with the job itself
    calls = [part for part in (*parsed.factors, parsed.rows) if isinstance(part, Call)]
    arguments = [a for call in calls if call is not parsed.rows for a in call.args]
    count = _width(arguments, copies)
    problems += _unequal(arguments, parsed.rows, copies, f"{place}: {text!r}")
    texts = {len(_texts(call)) for each in calls for call in _calls(each) if call.function == EACH}
    if texts and (len(texts) > 1 or count not in (1, *texts) or 0 in texts):
        problems.append(f"{place}: each() names {sorted(texts)} texts for {count} copies; name one for each")
        if 0 in texts:
            return [text]
        count = min(texts)  # those that can be made are looked at all the same
    else:
        count = max(count, *texts, 1)
    made = []
    for k in range(count):
        factors = tuple(_resolved(f, k, copies, place, problems) if isinstance(f, Call) else f for f in parsed.factors)
        rows = None if parsed.rows is None else _resolved(parsed.rows, k, copies, place, problems)
        made.append(str(ParsedTerm(factors, rows)))  # type: ignore[arg-type]
    return [text] if made == [str(parsed)] else made


def _width(arguments: list[Argument], copies: Copies) -> int:
    """How many terms the ``[:]`` names expand to; those inside variadic signals do not count."""
    return max(_widths(arguments, copies), default=1)


def _widths(arguments: list[Argument], copies: Copies) -> set[int]:
    """The numbers of copies behind the ``[:]`` names that are not inside a variadic signal."""
    return {copies.get(str(name.path[0]), 1) for name in _apart(arguments) if ALL in name.path}


def _unequal(arguments: list[Argument], rows: Argument | None, copies: Copies, place: str) -> list[str]:
    """Copies that cannot be paired: of members with unequal numbers of them, or named by a selector alone."""
    taught, chosen = _widths(arguments, copies), _widths([] if rows is None else [rows], copies)
    found = []
    if len(taught - {1}) > 1:
        found.append(f"{place}: names {' and '.join(map(str, sorted(taught)))} copies at once; make them as many")
    if not chosen <= {1, *taught}:
        found.append(f"{place}: the selector names all copies, but the loss does not; name one of them")
    return found


def _apart(arguments: list[Argument]) -> Iterator[Name]:
    """Names that are not inside a variadic signal."""
    for argument in arguments:
        if isinstance(argument, Name):
            yield argument
        elif isinstance(argument, Call) and argument.function != OTHERS:
            together = takes_many(argument.function)
            yield from _apart([*([] if together else argument.args), *argument.kwargs.values()])


def _calls(call: Call) -> Iterator[Call]:
    """A call and those within it."""
    yield call
    for argument in (*call.args, *call.kwargs.values()):
        if isinstance(argument, Call):
            yield from _calls(argument)


def _texts(call: Call) -> list[str]:
    """The words of ``each('a b c')``."""
    return call.args[0].split() if len(call.args) == 1 and isinstance(call.args[0], str) else []


def takes_many(function: str) -> bool:
    """Whether a signal takes any number of signals."""
    kinds = inspect.signature(SIGNALS[function]).parameters.values() if function in SIGNALS else ()
    return any(p.kind is p.VAR_POSITIONAL for p in kinds)


def _resolved(argument: Argument, k: int, copies: Copies, place: str, problems: list[str]) -> Argument:
    """The argument with each name bound to one copy; ``[:]`` outside a variadic signal means the k-th."""
    if isinstance(argument, Name):
        return _named(argument, k, copies, place, problems)
    if not isinstance(argument, Call):
        return argument
    if argument.function == EACH:
        return _texts(argument)[k]
    args: list[Argument] = []
    for each in argument.args:
        numbers: Iterable[int] = range(_width([each], copies)) if takes_many(argument.function) else [k]
        if isinstance(each, Call) and each.function == OTHERS and len(each.args) == 1:
            (each,) = each.args
            numbers = [number for number in range(_width([each], copies)) if number != k]
        args += [_resolved(each, number, copies, place, problems) for number in numbers]
    kwargs = {key: _resolved(value, k, copies, place, problems) for key, value in argument.kwargs.items()}
    return Call(argument.function, tuple(args), kwargs)


def _named(name: Name, k: int, copies: Copies, place: str, problems: list[str]) -> Name:
    """The name of one copy's output."""
    first, *rest = name.path
    count = copies.get(str(first), 0)
    if count == 0:
        return name
    if rest and isinstance(rest[0], int) and not isinstance(rest[0], bool):
        number, rest = rest[0], rest[1:]
        if not -count <= number < count:
            problems.append(f"{place}: {name}: {first!r} has {count} copies, numbered from 0")
        return Name((_copy_name(str(first), number % count, copies), *rest))
    if rest and rest[0] == ALL:
        return Name((_copy_name(str(first), k % count, copies), *rest[1:]))
    if count > 1:
        problems.append(f"{place}: {name}: {first!r} has {count} copies; write {first}[0], or {first}[:] for all")
    return Name((_copy_name(str(first), 0, copies), *rest))
