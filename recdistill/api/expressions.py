"""Terms and signals as Python objects, which know how a job writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Names = Mapping[int, str]  # of members, by identity


class Expression:
    """Something that a job writes: an output, a call, a product."""

    def text(self, names: Names) -> str:
        """How a job writes it, once the members have names."""
        raise NotImplementedError

    def __mul__(self, other: "Expression | float") -> "Expression":
        return Product((self, other))

    __rmul__ = __mul__

    def rows(self, selector: "Expression") -> "Expression":
        """The same on some rows only."""
        return Rows(self, selector)


def shown(value: Any, names: Names) -> str:
    """An argument as a job writes it."""
    return value.text(names) if isinstance(value, Expression) else repr(value)


@dataclass(frozen=True, eq=False)
class Column(Expression):
    """A raw column, or ``label``, ``scenario``; or what is known of candidates, ``own``, ``taken``, ..."""

    name: str

    def text(self, names: Names) -> str:
        """Its name."""
        del names
        return self.name


@dataclass(frozen=True, eq=False)
class Product(Expression):
    """A loss times numbers and schedules."""

    factors: tuple[Any, ...]

    def text(self, names: Names) -> str:
        """The factors with ``*`` between them."""
        return " * ".join(shown(factor, names) for factor in self.factors)


@dataclass(frozen=True, eq=False)
class Rows(Expression):
    """A product on some rows."""

    product: Expression
    selector: Expression

    def text(self, names: Names) -> str:
        """The product with its selector."""
        return f"({self.product.text(names)}).rows({self.selector.text(names)})"


@dataclass(frozen=True, eq=False)
class Called(Expression):
    """A word with its arguments."""

    word: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def text(self, names: Names) -> str:
        """``word(argument, key=argument)``."""
        given = [shown(arg, names) for arg in self.args] + [f"{key}={shown(v, names)}" for key, v in self.kwargs]
        return f"{self.word}({', '.join(given)})"


class Word:
    """A loss, signal, selector or schedule; to call it is to write it."""

    def __init__(self, name: str, catalog: Mapping[str, Callable[..., Any]]) -> None:
        self.name = name
        self.__doc__ = catalog[name].__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Called:
        """The word with its arguments."""
        return Called(self.name, args, tuple(kwargs.items()))


@dataclass(frozen=True, eq=False)
class Output(Expression):
    """An output of a member: ``student.logit``, ``student.hidden[-1]``, ``teacher[:].logit``."""

    member: object
    path: str

    def text(self, names: Names) -> str:
        """The member's name and the path."""
        return f"{names[id(self.member)]}{self.path}"

    def __getattr__(self, name: str) -> "Output":
        if name.startswith("_"):
            raise AttributeError(name)
        return Output(self.member, f"{self.path}.{name}")

    def __getitem__(self, index: int | slice) -> "Output":
        return Output(self.member, f"{self.path}[{':' if isinstance(index, slice) else index}]")
