"""The column types, by their declarations. A new type is one file beside this one and one line in each table here."""

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from recdistill.data.transforms import bag, buckets, numeric, single
from recdistill.data.transforms.column import Fitted, Learned
from recdistill.data.transforms.raw import keyed_by_text, numbers
from recdistill.errors import LogError
from recdistill.spec import columns as declared
from recdistill.spec.features import FeatureSpec

# How a fitted column is called on disk.
KINDS: dict[str, type[Fitted]] = {
    "single": single.Single,
    "bag": bag.Bag,
    "number": numeric.Number,
    "buckets": buckets.Buckets,
}


def types_of(name: str, spec: FeatureSpec, schema: pl.Schema) -> dict[str, pl.DataType]:
    """The raw columns of a typed column and their types; of lists, those of their elements.

    Raises:
        LogError: a list column holds no lists, or another column does.
    """
    column = spec.columns[name]
    if isinstance(column, declared.Bag):
        found = bag.types(name, column, schema, spec.sources(name)[0])
    else:
        found = {source: schema[source] for source in spec.sources(name)}
        if any(isinstance(dtype, pl.List | pl.Array) for dtype in found.values()):
            raise LogError(
                f"{name}: holds lists, but its type is {column.type}; declare it `type: list` without separator"
            )
    return {source: pl.String() if keyed_by_text(dtype) else dtype for source, dtype in found.items()}


def summaries(name: str, learned: Learned) -> Iterator[pl.Expr]:
    """The aggregates of raw values that `fit` needs."""
    column = learned.spec.columns[name]
    if isinstance(column, declared.Numeric | declared.Binary):
        number = numbers(pl.col(learned.only(name)[0]), learned.only(name)[1], name)
        if isinstance(column, declared.Numeric) and column.buckets is not None:
            yield from buckets.summaries(name, number, column.buckets)
        else:
            yield from numeric.summaries(name, column, number)


def fit(name: str, learned: Learned) -> Fitted:
    """The fitted column, when the passes over the training rows are done."""
    column = learned.spec.columns[name]
    if isinstance(column, declared.Numeric) and column.buckets is not None:
        return buckets.fit(name, column.buckets, learned)
    return FITS[type(column)](name, column, learned)


FITS: dict[type, Callable[[str, Any, Learned], Fitted]] = {
    declared.Categorical: lambda name, _, learned: single.fit(name, learned),
    declared.Id: lambda name, _, learned: single.fit(name, learned),
    declared.Bag: bag.fit,
    declared.Numeric: numeric.fit,
    declared.Binary: numeric.fit,
}
