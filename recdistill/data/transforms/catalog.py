"""The column types, by their declarations. A new type is one file beside this one and one line in each table here."""

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from recdistill.data.transforms import (
    bag,
    buckets,
    cross,
    date_part,
    history,
    missing,
    numeric,
    sequence,
    single,
    text,
)
from recdistill.data.transforms.column import Fitted, Learned
from recdistill.data.transforms.raw import numbers, plain
from recdistill.errors import LogError
from recdistill.spec import columns as declared
from recdistill.spec.features import FeatureSpec

# How a fitted column is called on disk.
KINDS: dict[str, type[Fitted]] = {
    "single": single.Single,
    "bag": bag.Bag,
    "sequence": sequence.Sequence,
    "number": numeric.Number,
    "buckets": buckets.Buckets,
    "text": text.Text,
    "cross": cross.Cross,
    "date_part": date_part.DatePart,
    "missing": missing.Missing,
    "history": history.History,
}


# Types that take other raw columns than all others do: not any type, or lists too.
TYPES: dict[type, Callable[[str, Any, pl.Schema, str], dict[str, pl.DataType]]] = {
    declared.Text: text.types,
    declared.Cross: cross.types,
    declared.DatePart: date_part.types,
    declared.Missing: missing.types,
}


def types_of(name: str, spec: FeatureSpec, schema: pl.Schema) -> dict[str, pl.DataType]:
    """The raw columns of a typed column and their types; of lists, those of their elements.

    Raises:
        LogError: a list column holds no lists, or another column does.
    """
    column = spec.columns[name]
    if isinstance(column, declared.Bag):
        found = bag.types(name, column, schema, spec.sources(name)[0])
    elif isinstance(column, declared.Sequence):
        found = sequence.types(name, column, schema, spec.sources(name))
    elif isinstance(column, declared.History):
        found = history.types(name, column, schema)
    elif type(column) in TYPES:
        found = TYPES[type(column)](name, column, schema, spec.source(name))
    else:
        found = {source: schema[source] for source in spec.sources(name)}
        if any(isinstance(dtype, pl.List | pl.Array) for dtype in found.values()):
            raise LogError(
                f"{name}: holds lists, but its type is {column.type}; declare it `type: list` without separator"
            )
    return {source: plain(dtype) for source, dtype in found.items()}


def summaries(name: str, learned: Learned) -> Iterator[pl.Expr]:
    """The aggregates of raw values that `fit` needs."""
    column = learned.spec.columns[name]
    if isinstance(column, declared.Numeric | declared.Binary):
        number = numbers(pl.col(learned.only(name)[0]), learned.only(name)[1], name)
        if isinstance(column, declared.Numeric) and column.buckets is not None:
            yield from buckets.summaries(name, number, column.buckets)
        elif not column.embedded:
            yield from numeric.summaries(name, column, number)
    elif isinstance(column, declared.History):
        yield from numeric.summaries(name, column.numeric, history.raw_number(name))
    elif isinstance(column, declared.DatePart):
        yield from date_part.summaries(name, learned)


def queries(learned: Learned, train: pl.LazyFrame) -> dict[str, pl.LazyFrame]:
    """The queries over the training rows that columns need for themselves, by column; see `Learned.frames`."""
    texts = {n: c for n, c in learned.spec.columns.items() if isinstance(c, declared.Text) and c.idf}
    return {name: text.frequencies(name, column, learned, train) for name, column in texts.items()}


def fit(name: str, learned: Learned) -> Fitted:
    """The fitted column, when the passes over the training rows are done."""
    column = learned.spec.columns[name]
    if isinstance(column, declared.Numeric) and column.buckets is not None:
        return buckets.fit(name, learned)
    if isinstance(column, declared.Numeric) and column.edges is not None:
        return buckets.cut_at(name, column.edges, learned)
    return FITS[type(column)](name, column, learned)


FITS: dict[type, Callable[[str, Any, Learned], Fitted]] = {
    declared.Categorical: lambda name, _, learned: single.fit(name, learned),
    declared.Id: lambda name, _, learned: single.fit(name, learned),
    declared.Bag: bag.fit,
    declared.Sequence: sequence.fit,
    declared.Text: text.fit,
    declared.Cross: cross.fit,
    declared.DatePart: date_part.fit,
    declared.Numeric: numeric.fit,
    declared.Missing: missing.fit,
    declared.History: history.fit,
    declared.Binary: numeric.fit,
}
