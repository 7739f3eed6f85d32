"""What every fitted column offers, and what it is fitted from.

A column type is one file here: a function that fits it from the training rows, and a class that holds what was learned
and says the same thing twice, as polars expressions for the pipeline and as a module for the artefact.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import polars as pl
from torch import nn

from recdistill.data.transforms.rows import Rows
from recdistill.spec.features import FeatureSpec

Kind = Literal["id", "float", "bag", "sequence"]
Statistics = dict[str, Any]  # numbers, or None without rows; of cuts a list


class Fitted(ABC):
    """A fitted column.

    Attributes:
        name: of the typed column.
        kind: what a row holds: one embedding row, one float, or a list of embedding rows.
    """

    name: str
    kind: ClassVar[Kind]

    @property
    @abstractmethod
    def raw(self) -> dict[str, pl.DataType]:
        """The raw columns that are read, with their types; of lists, the type of the elements."""

    @property
    def lists(self) -> frozenset[str]:
        """Those of the raw columns that hold lists."""
        return frozenset()

    @property
    def optional(self) -> dict[str, pl.DataType]:
        """Further raw columns that a caller of the artefact may pass, with their types."""
        return {}

    @property
    def tables(self) -> dict[str, int]:
        """The embedding tables that the column is looked up in, with their rows."""
        return {}

    @property
    @abstractmethod
    def unknown(self) -> str:
        """What becomes of a value that was not seen in training, in words."""

    @property
    def meaning(self) -> tuple[object, ...] | None:
        """What its rows stand for, if no vocabulary says so: columns of one type that agree in it number rows alike."""
        return None

    @property
    def scaling(self) -> tuple[object, ...]:
        """What makes a number of a raw value, whichever rows were learned from: the same number, if two agree in it."""
        return (type(self).__name__, *self.raw)

    @abstractmethod
    def polars(self) -> list[pl.Expr]:
        """The encoded column and, where it has them, its further channels (``name/channel``)."""

    @abstractmethod
    def torch(self) -> nn.Module:
        """The same for the artefact: ``(numbers, texts, lengths, rows)`` to the encoded column.

        An ``id`` becomes int64 (B,), a ``float`` float32 (B,), a ``bag`` int64 values (L,), int64 lengths (B,) and one
        float32 tensor (L,) of weights, empty if all are 1. A ``sequence`` becomes int64 values (L,), int64 lengths
        (B,), which may be 0, and int64 rows of time gaps (L,), empty if it has none.
        """


class OfOneColumn(Fitted):
    """A fitted column that reads one raw column, ``source``, of the type ``dtype`` (of lists, inside them)."""

    source: str
    dtype: pl.DataType

    @property
    def raw(self) -> dict[str, pl.DataType]:
        """The raw column."""
        return {self.source: self.dtype}


@dataclass(frozen=True)
class Learned:
    """What the passes over the training rows have found, for the functions that fit a column.

    Attributes:
        spec: the feature spec.
        types: of each typed column, the raw columns that it reads and their types (of lists, of their elements).
        lists: the raw columns that hold lists.
        rows: the mapping of keys to rows, by table.
        statistics: aggregates, by ``column/name``.
        frames: the results of columns that need a query of their own, by column.
    """

    spec: FeatureSpec
    types: dict[str, dict[str, pl.DataType]]
    lists: frozenset[str] = frozenset()
    rows: dict[str, Rows] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=dict)
    frames: dict[str, pl.DataFrame] = field(default_factory=dict)

    def only(self, name: str) -> tuple[str, pl.DataType]:
        """The raw column of a typed column that reads just one, and its type."""
        ((source, dtype),) = self.types[name].items()
        return source, dtype
