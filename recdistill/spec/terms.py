"""The grammar of a term: text to a small tree, by a whitelist; nothing is ever evaluated.

    term     := product ['.rows(' argument ')']
    product  := factor {'*' factor}
    factor   := number | call
    call     := word '(' [argument {',' argument}] {',' word '=' argument} ')'
    argument := call | name | number | 'text'
    name     := word {'.' word | '[' integer ']' | '[:]'}

There is no comparison, no sum and no attribute call: write ``equals(scenario, 3)`` or ``smallest(bce(b.logit,
label))``. Anything more is Python, which has the same words. This module knows no loss and no member: names and
arguments are checked against what exists when the job is compiled (`recdistill/distill`).
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

ALL = ":"  # the index of ``teacher[:]``, every copy of a member
Number = TypeVar("Number", int, float)

LARGEST = 1e300  # numbers beyond it do not survive being written and read again


class TermSyntaxError(ValueError):
    """A text outside the grammar; the message says what and where."""


@dataclass(frozen=True)
class Name:
    """A dotted name such as ``student.hidden[-1]``: its words and indices in order."""

    path: tuple[str | int, ...]

    def __str__(self) -> str:
        text = str(self.path[0])
        for part in self.path[1:]:
            text += f"[{part}]" if isinstance(part, int) or part == ALL else f".{part}"
        return text


@dataclass(frozen=True)
class Call:
    """A call with positional and keyword arguments."""

    function: str
    args: tuple["Argument", ...] = ()
    kwargs: dict[str, "Argument"] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [_show(a) for a in self.args] + [f"{k}={_show(v)}" for k, v in self.kwargs.items()]
        return f"{self.function}({', '.join(parts)})"


Argument = Call | Name | float | int | str


@dataclass(frozen=True)
class ParsedTerm:
    """A product of numbers and calls, over the rows that a selector leaves."""

    factors: tuple[float | int | Call, ...]
    rows: Argument | None = None

    def __str__(self) -> str:
        product = " * ".join(_show(f) for f in self.factors)
        if self.rows is None:
            return product
        bare = len(self.factors) == 1 and isinstance(self.factors[0], Call)
        return f"{product if bare else f'({product})'}.rows({_show(self.rows)})"


def _show(argument: Argument) -> str:
    return repr(argument) if isinstance(argument, str) else str(argument)


def parse_term(text: str) -> ParsedTerm:
    """The tree of one term.

    Raises:
        TermSyntaxError: the text is outside the grammar.

    Example:
        >>> parse_term("soft(student.logit, teacher.logit, temperature=2) * step(0, 0.9, at=200)").factors[1]
        Call(function='step', args=(0, 0.9), kwargs={'at': 200})
    """
    if not text.strip():
        raise TermSyntaxError("the term is empty; write for example bce(student.logit, label)")
    try:
        node = ast.parse(f"({text.strip()}\n)", mode="eval").body
        factors, selectors = _product(node, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, TermSyntaxError):
            raise
        raise TermSyntaxError(f"{text!r} is not a term: {getattr(error, 'msg', error)}") from None
    if node.col_offset == 0:  # our own bracket is part of the tree: the text closes it and opens another one
        raise TermSyntaxError(f"{text!r} is not a term: it closes a bracket that it has not opened")
    if len(selectors) > 1:
        raise TermSyntaxError(f"{text!r}: .rows() may be given once")
    return ParsedTerm(tuple(factors), selectors[0] if selectors else None)


def parse_signal(text: str) -> Argument:
    """The tree of one signal: a name, or a call of names.

    Raises:
        TermSyntaxError: the text is outside the grammar.

    Example:
        >>> parse_signal("live(generator.out)")
        Call(function='live', args=(Name(path=('generator', 'out')),), kwargs={})
    """
    found = parse_term(f"signal({text})").factors[0]
    if not isinstance(found, Call) or found.function != "signal" or len(found.args) != 1 or found.kwargs:
        raise TermSyntaxError(f"{text!r} is not a signal; name a member's output, for example teacher.hidden[-1]")
    (signal,) = found.args
    if not isinstance(signal, Call | Name):
        raise TermSyntaxError(f"{text!r} is not a signal; name a member's output, for example teacher.hidden[-1]")
    return signal


def _product(node: ast.expr, text: str) -> tuple[list[float | int | Call], list[Argument]]:
    """Factors and row selectors; ``.rows`` may follow the whole product or its loss, which means the same."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _product(node.left, text), _product(node.right, text)
        return left[0] + right[0], left[1] + right[1]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "rows":
        if len(node.args) != 1 or node.keywords:
            raise TermSyntaxError(f"{text!r}: .rows() takes one selector")
        factors, selectors = _product(node.func.value, text)
        return factors, [*selectors, _argument(node.args[0], text)]
    factor = _argument(node, text)
    if isinstance(factor, Name | str):
        raise TermSyntaxError(
            f"{text!r}: {ast.unparse(node)!r} is neither a number nor a call; a term multiplies only those"
        )
    return [factor], []


def _argument(node: ast.expr, text: str) -> Argument:
    match node:
        case ast.Constant(value=bool() as flag):
            raise TermSyntaxError(f"{text!r}: {flag} is not allowed; arguments are calls, names, numbers and texts")
        case ast.Constant(value=str() as word):
            return word
        case ast.Constant(value=int() | float() as number):
            return _finite(number, text)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if not _is_bool(number):
            return -_finite(number, text)
        case ast.Call(func=ast.Name(id=function)):
            return _call(function, node, text)
        case ast.Name() | ast.Attribute() | ast.Subscript():
            return Name(tuple(_path(node, text)))
        case ast.Call():
            raise TermSyntaxError(f"{text!r}: {ast.unparse(node.func)!r} cannot be called; call a plain word")
        case ast.BinOp() | ast.Compare() | ast.BoolOp():
            raise TermSyntaxError(
                f"{text!r}: {ast.unparse(node)!r} is an expression; write a call such as equals(scenario, 3), or use "
                "Python"
            )
        case _:
            raise TermSyntaxError(
                f"{text!r}: {ast.unparse(node)!r} is not allowed; arguments are calls, names, numbers and texts"
            )


def _is_bool(value: object) -> bool:
    """Python counts True and False among the integers; the grammar does not."""
    return isinstance(value, bool)


def _finite(number: Number, text: str) -> Number:
    """The number, unless it is too large to be written down again.

    Raises:
        TermSyntaxError: the number is infinite or an integer of absurd length.
    """
    if abs(number) >= LARGEST:
        raise TermSyntaxError(f"{text!r}: a number is larger than {LARGEST:.0e}; write a smaller one")
    return number


def _call(function: str, node: ast.Call, text: str) -> Call:
    kwargs: dict[str, Argument] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise TermSyntaxError(f"{text!r}: ** is not allowed")
        if keyword.arg in kwargs:
            raise TermSyntaxError(f"{text!r}: {keyword.arg} is given twice to {function}")
        kwargs[keyword.arg] = _argument(keyword.value, text)
    return Call(function, tuple(_argument(a, text) for a in node.args), kwargs)


def _path(node: ast.expr, text: str) -> list[str | int]:
    match node:
        case ast.Name(id=word):
            return [word]
        case ast.Attribute(value=inner, attr=word):
            return [*_path(inner, text), word]
        case ast.Subscript(value=inner, slice=ast.Slice(lower=None, upper=None, step=None)):
            return [*_path(inner, text), ALL]
        case ast.Subscript(value=inner, slice=ast.Constant(value=int() as index)) if not _is_bool(index):
            return [*_path(inner, text), _finite(index, text)]
        case ast.Subscript(
            value=inner, slice=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as index))
        ) if not _is_bool(index):
            return [*_path(inner, text), -_finite(index, text)]
        case _:
            raise TermSyntaxError(f"{text!r}: {ast.unparse(node)!r} is not a name; an index is one integer or [:]")


def names_in(term: ParsedTerm) -> list[Name]:
    """Every name in a term, in order of appearance."""
    return names_of([*term.factors, *([term.rows] if term.rows is not None else [])])


def names_of(arguments: Sequence[Argument]) -> list[Name]:
    """Every name in some arguments, in order of appearance."""
    found: list[Name] = []
    stack: list[Any] = [*reversed(arguments)]
    while stack:
        node = stack.pop()
        if isinstance(node, Name):
            found.append(node)
        elif isinstance(node, Call):
            stack.extend([*reversed(node.kwargs.values()), *reversed(node.args)])
    return found
